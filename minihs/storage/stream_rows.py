"""Rows of the stream that are not events: values that the group committer writes.

Each class is one table. What a writer hands in is what the stream's follower hands out, but for
what is large.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.protocol.redact_on_ban import is_of_joins

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minihs.protocol.events import Event
    from minihs.protocol.identifiers import EventId, RoomId, ServerName, UserId


@dataclass(frozen=True, slots=True)
class AccountDataWrite:
    """Account data of a user: global where `room_id` is empty. `json` is the content."""

    user_id: UserId
    room_id: RoomId | str
    type: str
    json: str


@dataclass(frozen=True, slots=True)
class ReceiptWrite:
    """A read receipt. `thread_id` is empty for an unthreaded one."""

    room_id: RoomId
    user_id: UserId
    receipt_type: str
    thread_id: str
    event_id: EventId
    ts_ms: int


@dataclass(frozen=True, slots=True)
class TypingWrite:
    """Who types in a room from now on, and until when each of them.

    It was made of the list of position `replaces` (0: there was none). Where another has taken that
    one's place meanwhile, nothing is written, and the writer hears `Conflict`.
    """

    room_id: RoomId
    user_ids: tuple[UserId, ...]
    expires_ms: tuple[int, ...]
    replaces: int = 0


@dataclass(frozen=True, slots=True)
class StickyEvent:
    """A sticky event becomes deliverable: it was accepted, or passed its checks later (MSC4354).

    `waits_for`: it does not yet, because this server sends too many. `instead_of`: it is the
    redaction of a sticky event, and those who have been sent that are sent this.
    """

    room_id: RoomId
    event_id: EventId
    sender: UserId
    until_ms: int
    waits_for: ServerName | None = None
    instead_of: EventId | None = None


@dataclass(frozen=True, slots=True)
class Membership:
    """A user's current membership in a room, as its member event says, which it is written with.

    `since` is the position since when it has been what it is, where the table was read; None:
    it follows from what came before in the stream. `forgotten` is how the row of somebody begins
    who was not known in the room; a row that is there keeps what it says.
    """

    room_id: RoomId
    user_id: UserId
    membership: str
    event_id: EventId
    sender: UserId
    local: bool
    forgotten: bool
    display_name: str | None
    avatar_url: str | None
    since: int | None = None


@dataclass(frozen=True, slots=True)
class StayRedaction:
    """A kick or ban redacts the stay that it ended (MSC4293), or more is known of such a stay.

    `join_ids` are its joins as far as they are known, `spared_ids` those of its events that are not
    redacted, `unstuck` those that were sticky. Of an event that several kicks and bans redact, the
    one with the least id is the reason: `replaces` are those that this one is preferred to. What
    came after position `upto` (0: the one that this row gets) was judged when it came. `purged`: no
    content of it is left.
    """

    room_id: RoomId
    user_id: UserId
    first_join_id: EventId
    because_id: EventId
    join_ids: frozenset[str]
    spared_ids: frozenset[str]
    replaces: frozenset[str]
    created_ms: int
    upto: int = 0
    purged: bool = False
    unstuck: tuple[EventId, ...] = ()

    @classmethod
    def of_row(
        cls,
        room_id: RoomId,
        user_id: UserId,
        first_join_id: EventId,
        because_id: EventId,
        join_ids: Sequence[str],
        spared_ids: Sequence[str],
        replaces: Sequence[str],
        created_ms: int,
        upto: int,
        purged: bool,  # noqa: FBT001  # a column
    ) -> StayRedaction:
        """Return the stay of a row."""
        return cls(
            room_id, user_id, first_join_id, because_id, frozenset(join_ids),
            frozenset(spared_ids), frozenset(replaces), created_ms, upto, purged,
        )  # fmt: skip

    def covers(self, event: Event) -> bool:
        """Return whether an event is redacted by it."""
        return is_of_joins(event, self.user_id, self.join_ids) and (
            event.event_id not in self.spared_ids
        )


@dataclass(frozen=True, slots=True)
class ForgottenRoom:
    """A local user forgets a room that they are not in; what they noted about it goes (MSC4267)."""

    user_id: UserId
    room_id: RoomId


@dataclass(frozen=True, slots=True)
class UnignoredUser:
    """A local user ignores somebody no longer: what of theirs is sticky now is owed (MSC4354)."""

    user_id: UserId
    sender: str
    until_ms: int
    room_id: str = ""


@dataclass(frozen=True, slots=True)
class PresenceWrite:
    """A user's presence changes; they are joined to `room_ids`.

    `last_active_ms` is 0 where it is not known. Without another sign of life the user is offline
    from `until_ms` on. `by_poll`: how a client polls made it so.
    """

    user_id: UserId
    presence: str
    status_msg: str | None
    last_active_ms: int
    currently_active: bool
    until_ms: int
    by_poll: bool
    local: bool
    written_ms: int
    room_ids: tuple[str, ...] = ()
    room_id: str = ""


PRESENCE_COLUMNS = """
      p.user_id, p.presence, p.status_msg, p.last_active_ms, p.currently_active, p.until_ms,
      p.by_poll, p.local, p.written_ms
"""


@dataclass(frozen=True, slots=True)
class DeviceListChange:
    """The devices or keys of a user changed, who is joined to `room_ids`."""

    user_id: UserId
    room_ids: tuple[str, ...] = ()
    room_id: str = ""


@dataclass(frozen=True, slots=True)
class ToDeviceMessage:
    """A message to a device of this server; `json` is the event as the client gets it."""

    user_id: UserId
    device_nid: int
    json: str


@dataclass(frozen=True, slots=True)
class ToDeviceSend:
    """What one request sends to devices: to those here, and to other servers (name, EDU content).

    A repetition, by `scope` and `txn_id`, sends nothing.
    """

    scope: str
    txn_id: str
    sender: UserId
    sent_ms: int
    messages: tuple[ToDeviceMessage, ...] = ()
    outgoing: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class ToDeviceNews:
    """The same for readers of the stream, who need not keep it in memory: who has something."""

    devices: tuple[tuple[str, int], ...]
    servers: tuple[str, ...]
    room_id: str = ""


@dataclass(frozen=True, slots=True)
class DelayedEventOutcome:
    """A delayed event of a user, as it was due at `due_ms`, was sent, or could not be (MSC4140).

    `event_id` is what it was sent as, `error` (JSON) why it was not. Where the commit of the event
    itself finalises it, this tells its owner.
    """

    user_id: UserId
    delay_id: str
    due_ms: int
    finalised_ms: int
    event_id: EventId | None = None
    error: str | None = None
    room_id: str = ""  # It concerns nobody else in the room.


@dataclass(frozen=True, slots=True)
class PurgedRoom:
    """A room that nobody here remembers is being deleted: nothing of it may stay in memory."""

    room_id: RoomId


PlainRow = (
    AccountDataWrite
    | ReceiptWrite
    | TypingWrite
    | StickyEvent
    | StayRedaction
    | ForgottenRoom
    | UnignoredUser
    | PresenceWrite
    | DeviceListChange
    | DelayedEventOutcome
    | PurgedRoom
)
StreamRow = PlainRow | ToDeviceSend
ReadRow = PlainRow | ToDeviceNews
"""What a row is for those who read the stream."""


def as_read(row: StreamRow) -> ReadRow:
    """Return what readers of the stream are handed for a row: what is large stays in its table."""
    if isinstance(row, ToDeviceSend):
        return ToDeviceNews(
            tuple((m.user_id, m.device_nid) for m in row.messages),
            tuple(name for name, _ in row.outgoing),
        )
    return row
