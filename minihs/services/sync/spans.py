"""Spans: which part of which room a sync answer shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minihs.protocol.filters import Filter
    from minihs.protocol.identifiers import UserId
    from minihs.services.accounts.authentication import Requester
    from minihs.services.sync.positions import StickyBacklog, Unignored

STATE = "state"  # The section of the state at the beginning of the timeline.


@dataclass(frozen=True, slots=True)
class Span:
    """What happened in a room in (`after`, `upto`]; `after` is 0 where the reader has seen nothing.

    `joined_at` is a position since which the reader has been joined (None: not joined now), so that
    they may see everything from there on. `is_new`: the reader needs the whole state.
    """

    room_id: str
    after: int
    upto: int
    joined_at: int | None
    is_new: bool

    @property
    def is_open(self) -> bool:
        """Whether the reader was joined all the while: nothing need be hidden."""
        return self.joined_at is not None and self.joined_at <= self.after


@dataclass(frozen=True, slots=True)
class SyncRequest:
    """Who syncs, and how. `since` is None for an initial sync.

    `state_section` is what the section of the state is called: `STATE`, or a name that says the
    state after the timeline. `backlogs` and `unignored` are the sticky events that earlier answers
    had no place for; of the messages to the device only those up to `to_device` were delivered, if
    that is not None.
    """

    requester: Requester
    filter: Filter
    since: int | None
    full_state: bool
    state_section: str
    timeout_ms: int
    ignored: frozenset[str] = frozenset()
    backlogs: Mapping[int, StickyBacklog] = field(default_factory=dict)
    unignored: Sequence[Unignored] = ()
    to_device: int | None = None

    @property
    def user_id(self) -> UserId:
        """Who syncs."""
        return self.requester.user_id

    @property
    def use_state_after(self) -> bool:
        """Whether the state at the end of the timeline is wanted, not that at its beginning."""
        return self.state_section != STATE
