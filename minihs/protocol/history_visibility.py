"""Who may see an event: `m.room.history_visibility` against the memberships at the event.

The answer depends on three things only: the visibility in force at the event, the reader's
membership at the event, and whether the reader joined later. The first two are facts of the
state *before* the event, so a caller with a page of events asks once per distinct state and not
once per event: messages share the state of their predecessor. Two kinds of event change one of
those facts themselves (`m.room.history_visibility`, and the reader's own `m.room.member`); they
are visible if either the state before or the state after them allows it.

The file does not know how memberships are found, nor about soft failure or ignored users.

Spec: client-server-api#room-history-visibility
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from minihs.protocol.events import Event


class HistoryVisibility(StrEnum):
    """The four values of `history_visibility`, from open to closed."""

    WORLD_READABLE = "world_readable"
    SHARED = "shared"
    INVITED = "invited"
    JOINED = "joined"


_BY_VALUE: dict[object, HistoryVisibility] = {value.value: value for value in HistoryVisibility}


def history_visibility(content: Mapping[str, object] | None) -> HistoryVisibility:
    """Return the visibility that a `m.room.history_visibility` content asks for.

    None, a missing value, or one that is not understood means `shared`.

    Spec: client-server-api#room-history-visibility
    """
    if content is None:
        return HistoryVisibility.SHARED
    value = content.get("history_visibility")
    if not isinstance(value, str):
        return HistoryVisibility.SHARED
    return _BY_VALUE.get(value, HistoryVisibility.SHARED)


@dataclass(frozen=True, slots=True)
class ReaderState:
    """What matters of a room state to one reader.

    `membership` is the reader's membership in that state, `leave` where the state has none.
    """

    visibility: HistoryVisibility
    membership: str = "leave"

    def allows(self, *, joined_since: bool) -> bool:
        """Return whether the reader may see what was sent in this state.

        `joined_since`: the reader joined the room at any point after the event was sent.

        Spec: client-server-api#room-history-visibility
        """
        match self.visibility:
            case HistoryVisibility.WORLD_READABLE:
                return True
            case HistoryVisibility.SHARED:
                return self.membership == "join" or joined_since
            case HistoryVisibility.INVITED:
                return self.membership in {"join", "invite"}
            case HistoryVisibility.JOINED:
                return self.membership == "join"


def state_after(event: Event, before: ReaderState, reader: str) -> ReaderState:
    """Return what matters to `reader` of the state after `event`.

    It is `before` itself unless the event sets the visibility or the reader's own membership.
    """
    if event.state_key == "" and event.type == "m.room.history_visibility":
        return replace(before, visibility=history_visibility(event.content))
    if event.state_key == reader and event.type == "m.room.member":
        membership = event.content.get("membership")
        if isinstance(membership, str):
            return replace(before, membership=membership)
    return before


def may_user_see(
    event: Event,
    reader: str,
    before: ReaderState,
    *,
    joined_since: bool,
    sticky_to_member: bool = False,
) -> bool:
    """Return whether `reader` may see `event`.

    `before` is the state before the event. `joined_since` as in `ReaderState.allows`; a user who
    has left may still see what the last stay made visible, so it is also true for an event that
    was sent before the end of that stay. `sticky_to_member`: the event is sticky now and the
    reader is joined now, which overrides the history visibility.

    Spec: client-server-api#room-history-visibility
    MSC4354#proposal
    """
    if sticky_to_member or before.allows(joined_since=joined_since):
        return True
    after = state_after(event, before, reader)
    return after is not before and after.allows(joined_since=joined_since)


def may_server_see(visibility: HistoryVisibility, memberships: Iterable[str]) -> bool:
    """Return whether a server that takes part in the room may see an event in full.

    `visibility` and `memberships` (those of the server's users) are of the state before the
    event. A server that may not see it is given the redacted event, so that the DAG it receives
    stays whole. What one of its users could see, the server can see; under `shared` and
    `world_readable` any future joiner of that server could.

    Spec: client-server-api#room-history-visibility
    """
    match visibility:
        case HistoryVisibility.WORLD_READABLE | HistoryVisibility.SHARED:
            return True
        case HistoryVisibility.INVITED:
            return any(membership in {"join", "invite"} for membership in memberships)
        case HistoryVisibility.JOINED:
            return "join" in memberships


def may_see_erased(membership_before: str, membership_after: str | None = None) -> bool:
    """Return whether a reader still gets the content of an event whose sender was erased.

    Those who were joined when it was sent keep it; everyone else is served the redacted copy.
    `membership_after` matters only for the reader's own member event.

    Spec: client-server-api#post_matrixclientv3accountdeactivate
    """
    return membership_before == "join" or membership_after == "join"
