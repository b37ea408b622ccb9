"""Rows of the stream that are not events: values that the group committer writes.

Each class is one table; `write` puts many rows of it, with the positions they got, in one
statement. What a writer hands in is what the stream's follower hands out, but for what is large.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.protocol.redact_on_ban import is_of_joins
from minihs.storage.sql import statement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minihs.protocol.events import Event
    from minihs.protocol.identifiers import EventId, RoomId, ServerName, UserId
    from minihs.storage.database import Queries


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
    """Who types in a room from now on, and until when each of them."""

    room_id: RoomId
    user_ids: tuple[UserId, ...]
    expires_ms: tuple[int, ...]


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
    it follows from what came before in the stream.
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
    redacted, `unstuck` those that were sticky. What came after position `upto` (0: the one that
    this row gets) was judged when it came. `purged`: no content of it is left.
    """

    room_id: RoomId
    user_id: UserId
    first_join_id: EventId
    because_id: EventId
    join_ids: frozenset[str]
    spared_ids: frozenset[str]
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
        created_ms: int,
        upto: int,
        purged: bool,  # noqa: FBT001  # a column
    ) -> StayRedaction:
        """Return the stay of a row."""
        return cls(
            room_id, user_id, first_join_id, because_id, frozenset(join_ids),
            frozenset(spared_ids), created_ms, upto, purged,
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

# Each writes a batch: the last of several rows with one key wins, as it comes last in the stream.
WRITE_ACCOUNT_DATA = statement(
    "stream_rows.write_account_data",
    """
    INSERT INTO account_data AS old (user_id, room_id, type, json, position)
    SELECT DISTINCT ON (user_id, room_id, type) user_id, room_id, type, json, position
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[])
      AS new (user_id, room_id, type, json, position)
    ORDER BY user_id, room_id, type, position DESC
    ON CONFLICT (user_id, room_id, type)
    DO UPDATE SET json = excluded.json, position = excluded.position
    """,
)

WRITE_RECEIPTS = statement(
    "stream_rows.write_receipts",
    """
    INSERT INTO receipts (room_nid, user_id, receipt_type, thread_id, event_id, ts_ms, position)
    SELECT DISTINCT ON (r.room_nid, user_id, receipt_type, thread_id)
      r.room_nid, user_id, receipt_type, thread_id, event_id, ts_ms, position
    FROM unnest(
      $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bigint[]
    ) AS new (room_id, user_id, receipt_type, thread_id, event_id, ts_ms, position)
    JOIN rooms r ON r.room_id = new.room_id
    ORDER BY r.room_nid, user_id, receipt_type, thread_id, position DESC
    ON CONFLICT (room_nid, user_id, receipt_type, thread_id)
    DO UPDATE SET event_id = excluded.event_id, ts_ms = excluded.ts_ms, position = excluded.position
    """,
)

# A receipt of this server's user moves what that user has read: never back. Threaded receipts move
# only their thread; the thread `main` moves the count of the main timeline.
READ_BY_RECEIPTS = statement(
    "stream_rows.read_by_receipts",
    """
    WITH new AS (
      SELECT r.room_nid, user_id, thread_id, e.position, e.main_count
      FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])
        AS new (room_id, user_id, thread_id, event_id)
      JOIN rooms r ON r.room_id = new.room_id
      JOIN events e ON e.event_id = new.event_id AND e.room_nid = r.room_nid
      WHERE e.position IS NOT NULL
    ), threads AS (
      INSERT INTO thread_reads AS old (room_nid, user_id, thread_root, position)
      SELECT room_nid, user_id, thread_id, max(position)
      FROM new
      WHERE thread_id NOT IN ('', 'main')
      GROUP BY room_nid, user_id, thread_id
      ON CONFLICT (room_nid, user_id, thread_root)
      DO UPDATE SET position = greatest(old.position, excluded.position)
      RETURNING 1
    ), moved AS (
      SELECT
        room_nid, user_id,
        coalesce(max(position) FILTER (WHERE thread_id = ''), 0) AS position,
        coalesce(max(main_count), 0) AS main_count,
        max(position) AS main_position
      FROM new
      WHERE thread_id IN ('', 'main')
      GROUP BY room_nid, user_id
    )
    UPDATE memberships m
    SET
      read_position = greatest(m.read_position, moved.position),
      read_main_count = greatest(m.read_main_count, moved.main_count),
      read_main_position = greatest(m.read_main_position, moved.main_position)
    FROM moved
    WHERE m.room_nid = moved.room_nid AND m.user_id = moved.user_id
    """,
)

WRITE_TYPING = statement(
    "stream_rows.write_typing",
    """
    INSERT INTO typing (room_nid, position, user_ids, expires_ms)
    SELECT DISTINCT ON (r.room_nid) r.room_nid, position, user_ids::text[], expires_ms::bigint[]
    FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[])
      AS new (room_id, position, user_ids, expires_ms)
    JOIN rooms r ON r.room_id = new.room_id
    ORDER BY r.room_nid, position DESC
    ON CONFLICT (room_nid)
    DO UPDATE SET
      position = excluded.position, user_ids = excluded.user_ids, expires_ms = excluded.expires_ms
    """,
)


# Primary key. A soft-failed sticky event passed its checks after all: it comes now.
WRITE_STICKY_EVENTS = statement(
    "stream_rows.write_sticky_events",
    """
    WITH new AS (
      SELECT * FROM unnest($1::text[], $2::bigint[]) AS new (event_id, position)
    ), accepted AS (
      UPDATE events e SET status = 0 FROM new WHERE e.event_id = new.event_id
    )
    UPDATE sticky_events s
    SET position = new.position
    FROM new
    WHERE s.event_id = new.event_id AND s.position IS NULL
    """,
)


# Primary key. The purge begins at the newest place in the room. More joins of a stay come later.
WRITE_STAY_REDACTIONS = statement(
    "stream_rows.write_stay_redactions",
    """
    INSERT INTO redacted_stays AS old (
      room_nid, user_id, first_join_id, because_id, join_ids, spared_ids, created_ms,
      purged, position, upto, next_major, next_minor
    )
    SELECT DISTINCT ON (r.room_nid, user_id, first_join_id)
      r.room_nid, user_id, first_join_id, because_id, join_ids::text[], spared_ids::text[],
      created_ms, purged, position, position, 9223372036854775807, 0
    FROM unnest(
      $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[],
      $8::boolean[], $9::bigint[]
    ) AS new (
      room_id, user_id, first_join_id, because_id, join_ids, spared_ids, created_ms, purged,
      position
    )
    JOIN rooms r ON r.room_id = new.room_id
    ORDER BY r.room_nid, user_id, first_join_id, position DESC
    ON CONFLICT (room_nid, user_id, first_join_id) DO UPDATE
    SET
      position = excluded.position,
      join_ids = ARRAY(SELECT DISTINCT unnest(old.join_ids || excluded.join_ids)),
      spared_ids = ARRAY(SELECT DISTINCT unnest(old.spared_ids || excluded.spared_ids)),
      purged = old.purged OR excluded.purged
    """,
)

# Primary key of memberships. Who has come back meanwhile does not forget.
WRITE_FORGOTTEN = statement(
    "stream_rows.write_forgotten",
    """
    UPDATE memberships m
    SET forgotten = true, forgotten_position = new.position
    FROM unnest($1::text[], $2::text[], $3::bigint[]) AS new (room_id, user_id, position)
    JOIN rooms r ON r.room_id = new.room_id
    WHERE
      m.room_nid = r.room_nid AND m.user_id = new.user_id
      AND m.membership = ANY(ARRAY['leave', 'ban'])
    """,
)

# Primary key of account_data.
DELETE_FORGOTTEN_DATA = statement(
    "stream_rows.delete_forgotten_data",
    """
    DELETE FROM account_data a
    USING
      unnest($1::text[], $2::text[]) AS forgotten (room_id, user_id),
      rooms r, memberships m
    WHERE
      r.room_id = forgotten.room_id AND m.room_nid = r.room_nid
      AND m.user_id = forgotten.user_id AND m.forgotten
      AND a.user_id = forgotten.user_id AND a.room_id = forgotten.room_id
    """,
)

# Primary key.
WRITE_UNIGNORED = statement(
    "stream_rows.write_unignored",
    """
    INSERT INTO unignored (user_id, sender, until_ms, position)
    SELECT DISTINCT ON (user_id, sender) user_id, sender, until_ms, position
    FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[])
      AS new (user_id, sender, until_ms, position)
    ORDER BY user_id, sender, position DESC
    ON CONFLICT (user_id, sender)
    DO UPDATE SET until_ms = excluded.until_ms, position = excluded.position
    """,
)

# Primary key.
WRITE_DEVICE_LISTS = statement(
    "stream_rows.write_device_lists",
    """
    INSERT INTO device_lists (user_id, position)
    SELECT user_id, max(position)
    FROM unnest($1::text[], $2::bigint[]) AS new (user_id, position)
    GROUP BY user_id
    ON CONFLICT (user_id) DO UPDATE SET position = excluded.position
    """,
)

# Primary key.
WRITE_PRESENCE = statement(
    "stream_rows.write_presence",
    """
    INSERT INTO presence (
      user_id, presence, status_msg, last_active_ms, currently_active, until_ms, by_poll, local,
      written_ms, position
    )
    SELECT DISTINCT ON (user_id) *
    FROM unnest(
      $1::text[], $2::text[], $3::text[], $4::bigint[], $5::boolean[], $6::bigint[],
      $7::boolean[], $8::boolean[], $9::bigint[], $10::bigint[]
    ) AS new (
      user_id, presence, status_msg, last_active_ms, currently_active, until_ms, by_poll, local,
      written_ms, position
    )
    ORDER BY user_id, position DESC
    ON CONFLICT (user_id) DO UPDATE
    SET
      presence = excluded.presence, status_msg = excluded.status_msg,
      last_active_ms = excluded.last_active_ms, currently_active = excluded.currently_active,
      until_ms = excluded.until_ms, by_poll = excluded.by_poll, written_ms = excluded.written_ms,
      position = excluded.position
    """,
)

# Primary keys of to_device_sends and devices: a device that goes meanwhile gets nothing.
WRITE_TO_DEVICE = statement(
    "stream_rows.write_to_device",
    """
    WITH sends AS (
      SELECT DISTINCT ON (scope, txn_id) scope, txn_id, sent_ms, sender, position
      FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::bigint[])
        AS new (scope, txn_id, sent_ms, sender, position)
      ORDER BY scope, txn_id, position
    ), fresh AS (
      INSERT INTO to_device_sends (scope, txn_id, sent_ms)
      SELECT scope, txn_id, sent_ms FROM sends
      ON CONFLICT DO NOTHING
      RETURNING scope, txn_id
    ), chosen AS (
      SELECT position, sender FROM sends JOIN fresh USING (scope, txn_id)
    ), messages AS (
      INSERT INTO to_device_messages (device_nid, position, sender, json)
      SELECT d.device_nid, c.position, c.sender, new.json
      FROM unnest($6::bigint[], $7::bigint[], $8::text[]) AS new (position, device_nid, json)
      JOIN chosen c ON c.position = new.position
      JOIN devices d ON d.device_nid = new.device_nid
      FOR KEY SHARE OF d
    )
    INSERT INTO to_device_outbox (server_name, position, json)
    SELECT new.server_name, c.position, new.json
    FROM unnest($9::bigint[], $10::text[], $11::text[]) AS new (position, server_name, json)
    JOIN chosen c ON c.position = new.position
    """,
)

# Primary key of delayed_events. If it was cancelled or restarted meanwhile, nothing became of it.
WRITE_OUTCOMES = statement(
    "stream_rows.write_outcomes",
    """
    UPDATE delayed_events d
    SET
      finalised_ms = coalesce(d.finalised_ms, new.finalised_ms),
      event_id = coalesce(d.event_id, new.event_id),
      error = coalesce(d.error, new.error),
      position = new.position
    FROM
      unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::bigint[])
        AS new (delay_id, due_ms, finalised_ms, event_id, error, position)
    WHERE
      d.delay_id = new.delay_id AND d.due_ms = new.due_ms
      AND (d.finalised_ms IS NULL OR d.event_id = new.event_id)
    """,
)

# Unique index rooms_room_id_key; primary key of room_purges.
WRITE_PURGED = statement(
    "stream_rows.write_purged",
    """
    UPDATE room_purges p
    SET position = new.position
    FROM unnest($1::text[], $2::bigint[]) AS new (room_id, position)
    JOIN rooms r ON r.room_id = new.room_id
    WHERE p.room_nid = r.room_nid
    """,
)

# Primary key of sticky_events.
DELETE_UNSTUCK = statement(
    "stream_rows.delete_unstuck", "DELETE FROM sticky_events WHERE event_id = ANY($1::text[])"
)


def array_literal(values: Sequence[object]) -> str:
    """Return the text form of an array: for arrays of arrays, which `unnest` would flatten."""
    quoted = ('"' + str(v).replace("\\", "\\\\").replace('"', '\\"') + '"' for v in values)
    return "{" + ",".join(quoted) + "}"


async def write_rows(queries: Queries, rows: Sequence[tuple[int, StreamRow]]) -> None:
    """Write rows with their positions, one statement for each table concerned."""
    account_data = [(p, r) for p, r in rows if isinstance(r, AccountDataWrite)]
    if account_data:
        await queries.execute(
            WRITE_ACCOUNT_DATA,
            [r.user_id for _, r in account_data],
            [r.room_id for _, r in account_data],
            [r.type for _, r in account_data],
            [r.json for _, r in account_data],
            [p for p, _ in account_data],
        )
    receipts = [(p, r) for p, r in rows if isinstance(r, ReceiptWrite)]
    if receipts:
        await queries.execute(
            WRITE_RECEIPTS,
            [r.room_id for _, r in receipts],
            [r.user_id for _, r in receipts],
            [r.receipt_type for _, r in receipts],
            [r.thread_id for _, r in receipts],
            [r.event_id for _, r in receipts],
            [r.ts_ms for _, r in receipts],
            [p for p, _ in receipts],
        )
        await queries.execute(
            READ_BY_RECEIPTS,
            [r.room_id for _, r in receipts],
            [r.user_id for _, r in receipts],
            [r.thread_id for _, r in receipts],
            [r.event_id for _, r in receipts],
        )
    typing = [(p, r) for p, r in rows if isinstance(r, TypingWrite)]
    if typing:
        await queries.execute(
            WRITE_TYPING,
            [r.room_id for _, r in typing],
            [p for p, _ in typing],
            [array_literal(r.user_ids) for _, r in typing],
            [array_literal(r.expires_ms) for _, r in typing],
        )
    sticky = [(p, r) for p, r in rows if isinstance(r, StickyEvent)]
    if sticky:
        await queries.execute(
            WRITE_STICKY_EVENTS, [r.event_id for _, r in sticky], [p for p, _ in sticky]
        )
    stays = [(p, r) for p, r in rows if isinstance(r, StayRedaction)]
    if stays:
        await queries.execute(
            WRITE_STAY_REDACTIONS,
            [r.room_id for _, r in stays],
            [r.user_id for _, r in stays],
            [r.first_join_id for _, r in stays],
            [r.because_id for _, r in stays],
            [array_literal(sorted(r.join_ids)) for _, r in stays],
            [array_literal(sorted(r.spared_ids)) for _, r in stays],
            [r.created_ms for _, r in stays],
            [r.purged for _, r in stays],
            [p for p, _ in stays],
        )
        await queries.execute(DELETE_UNSTUCK, [e for _, r in stays for e in r.unstuck])
    forgotten = [(p, r) for p, r in rows if isinstance(r, ForgottenRoom)]
    if forgotten:
        places = [r.room_id for _, r in forgotten], [r.user_id for _, r in forgotten]
        await queries.execute(WRITE_FORGOTTEN, *places, [p for p, _ in forgotten])
        await queries.execute(DELETE_FORGOTTEN_DATA, *places)
    unignored = [(p, r) for p, r in rows if isinstance(r, UnignoredUser)]
    if unignored:
        await queries.execute(
            WRITE_UNIGNORED,
            [r.user_id for _, r in unignored],
            [r.sender for _, r in unignored],
            [r.until_ms for _, r in unignored],
            [p for p, _ in unignored],
        )
    await _write_personal(queries, rows)
    outcomes = [(p, r) for p, r in rows if isinstance(r, DelayedEventOutcome)]
    if outcomes:
        await queries.execute(
            WRITE_OUTCOMES,
            [r.delay_id for _, r in outcomes],
            [r.due_ms for _, r in outcomes],
            [r.finalised_ms for _, r in outcomes],
            [r.event_id for _, r in outcomes],
            [r.error for _, r in outcomes],
            [p for p, _ in outcomes],
        )
    purged = [(p, r) for p, r in rows if isinstance(r, PurgedRoom)]
    if purged:
        await queries.execute(WRITE_PURGED, [r.room_id for _, r in purged], [p for p, _ in purged])


async def _write_personal(queries: Queries, rows: Sequence[tuple[int, StreamRow]]) -> None:
    """Write those of the rows that are about users and devices rather than rooms."""
    changes = [(p, r) for p, r in rows if isinstance(r, DeviceListChange)]
    if changes:
        await queries.execute(
            WRITE_DEVICE_LISTS, [r.user_id for _, r in changes], [p for p, _ in changes]
        )
    presence = [(p, r) for p, r in rows if isinstance(r, PresenceWrite)]
    if presence:
        await queries.execute(
            WRITE_PRESENCE,
            [r.user_id for _, r in presence],
            [r.presence for _, r in presence],
            [r.status_msg for _, r in presence],
            [r.last_active_ms for _, r in presence],
            [r.currently_active for _, r in presence],
            [r.until_ms for _, r in presence],
            [r.by_poll for _, r in presence],
            [r.local for _, r in presence],
            [r.written_ms for _, r in presence],
            [p for p, _ in presence],
        )
    sends = [(p, r) for p, r in rows if isinstance(r, ToDeviceSend)]
    if sends:
        await _write_to_device(queries, sends)


async def _write_to_device(queries: Queries, sends: Sequence[tuple[int, ToDeviceSend]]) -> None:
    messages = [(p, message) for p, r in sends for message in r.messages]
    outgoing = [(p, name, json) for p, r in sends for name, json in r.outgoing]
    await queries.execute(
        WRITE_TO_DEVICE,
        [r.scope for _, r in sends],
        [r.txn_id for _, r in sends],
        [r.sent_ms for _, r in sends],
        [r.sender for _, r in sends],
        [p for p, _ in sends],
        [p for p, _ in messages],
        [m.device_nid for _, m in messages],
        [m.json for _, m in messages],
        [p for p, _, _ in outgoing],
        [name for _, name, _ in outgoing],
        [json for _, _, json in outgoing],
    )


def as_read(row: StreamRow) -> ReadRow:
    """Return what readers of the stream are handed for a row: what is large stays in its table."""
    if isinstance(row, ToDeviceSend):
        return ToDeviceNews(
            tuple((m.user_id, m.device_nid) for m in row.messages),
            tuple(name for name, _ in row.outgoing),
        )
    return row
