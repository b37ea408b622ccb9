"""What does an event cause? The index of every consequence of an accepted event.

`effects_of` is pure: it looks at the event and at the room's state before and after it, and returns
values. `commit` turns them into rows of the same transaction. Whoever asks "where is it decided
that ..." begins here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.protocol.identifiers import server_name_of
from minihs.protocol.membership import is_deactivation_leave

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from minihs.protocol.events import Event
    from minihs.protocol.identifiers import EventId, ServerName, UserId
    from minihs.protocol.stickiness import Stickiness
    from minihs.storage.stream_rows import StayRedaction


@dataclass(frozen=True, slots=True)
class SetMembership:
    """A user's current membership changes, or their name in the room does.

    Spec: client-server-api#room-membership
    """

    user_id: UserId
    membership: str
    event_id: EventId
    sender: UserId
    display_name: str | None
    avatar_url: str | None
    local: bool


@dataclass(frozen=True, slots=True)
class ForgetRoom:
    """A local user forgets the room by leaving it, however that came about.

    Where the server does so, or as nobody can do it for a deactivated user. MSC4267#proposal
    """

    user_id: UserId


@dataclass(frozen=True, slots=True)
class ShowInvite:
    """A local user is shown a room that they are not in: an invite, or their knock.

    Spec: client-server-api#stripped-state
    """

    user_id: UserId
    member_event: Event


@dataclass(frozen=True, slots=True)
class Redact:
    """An event loses its content. Spec: client-server-api#redactions."""

    event_id: EventId


@dataclass(frozen=True, slots=True)
class RedactStay:
    """A kick or ban redacts what its target sent in the stay that it ended. MSC4293#proposal."""

    stay: StayRedaction


@dataclass(frozen=True, slots=True)
class RecordStickiness:
    """The event is delivered reliably to every joined user until this moment. MSC4354#proposal."""

    until_ms: int


@dataclass(frozen=True, slots=True)
class MarkRead:
    """Who sends has read what came before. Spec: client-server-api#receiving-notifications."""

    user_id: UserId


@dataclass(frozen=True, slots=True)
class CountUnread:
    """The event may count as unread for the room's local members.

    Spec: client-server-api#receiving-notifications
    """


Effect = (
    SetMembership
    | ForgetRoom
    | ShowInvite
    | Redact
    | RedactStay
    | RecordStickiness
    | MarkRead
    | CountUnread
)


def effects_of(
    event: Event,
    *,
    became_current: Sequence[Event],
    lost: Sequence[UserId],
    server_name: ServerName,
    may_redact: bool,
    leaving: Collection[str] = (),
    forget_on_leave: bool = False,
    ended_stays: Sequence[StayRedaction] = (),
    is_redacted: bool = False,
    sticky: Stickiness | None = None,
    now_ms: int = 0,
) -> list[Effect]:
    """Return what an accepted event causes.

    `became_current` are the member events that are part of the room's current state only since it:
    usually none or itself, more where state resolution changed its mind. `lost` are the users whose
    membership the state no longer names. `may_redact`: its sender had the power to redact the event
    it names, or is on the server of that event's sender. `leaving` are the local users who were in
    the room, invited or knocking, and are so no more; `forget_on_leave`: to leave is to forget.
    `ended_stays` are those that kicks and bans among `became_current` redact. `is_redacted`: the
    event itself was redacted before it came. `sticky` is when the event is sticky.
    """
    effects: list[Effect] = []
    local_sender = server_name_of(event.sender) == server_name
    for member_event in became_current:
        effects += _membership_effects(member_event, server_name)
    for user_id in lost:
        local = server_name_of(user_id) == server_name
        effects.append(
            SetMembership(user_id, "leave", event.event_id, event.sender, None, None, local)
        )
    effects += [
        ForgetRoom(member_event.state_key)  # type: ignore[arg-type]  # a user id
        for member_event in became_current
        if member_event.state_key in leaving
        and (forget_on_leave or is_deactivation_leave(member_event))
    ]
    effects += [ForgetRoom(user_id) for user_id in lost if forget_on_leave and user_id in leaving]
    if event.type == "m.room.redaction" and event.redacts is not None and may_redact:
        effects.append(Redact(event.redacts))
    effects += [RedactStay(stay) for stay in ended_stays]
    if sticky is not None and sticky.is_sticky(now_ms):
        effects.append(RecordStickiness(sticky.end_ms))
    if local_sender:
        effects.append(MarkRead(event.sender))
    if not is_redacted:
        effects.append(CountUnread())
    return effects


def _membership_effects(event: Event, server_name: ServerName) -> list[Effect]:
    user_id: UserId = event.state_key  # type: ignore[assignment]
    membership = str(event.content.get("membership"))
    name, avatar = event.content.get("displayname"), event.content.get("avatar_url")
    local = server_name_of(user_id) == server_name
    effects: list[Effect] = [
        SetMembership(
            user_id,
            membership,
            event.event_id,
            event.sender,
            name.replace("\0", "\ufffd") if isinstance(name, str) else None,
            avatar.replace("\0", "\ufffd") if isinstance(avatar, str) else None,
            local,
        )
    ]
    if local and membership in ("invite", "knock"):
        effects.append(ShowInvite(user_id, event))
    return effects
