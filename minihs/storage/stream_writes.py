"""Writing the rows of the stream that are not events, with the positions that they got.

Many rows of one table are one statement. Of several rows with one key the last one wins, as it
comes last in the stream.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from minihs.storage.sql import BatchStatement, array_literal, statement
from minihs.storage.stream_rows import (
    AccountDataWrite,
    DelayedEventOutcome,
    DeviceListChange,
    ForgottenRoom,
    PresenceWrite,
    PurgedRoom,
    ReceiptWrite,
    StayRedaction,
    StickyEvent,
    ToDeviceSend,
    TypingWrite,
    UnignoredUser,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minihs.storage.database import Queries
    from minihs.storage.stream_rows import StreamRow

WRITE_ACCOUNT_DATA = BatchStatement(
    "stream_writes.account_data",
    """
    INSERT INTO account_data AS old (user_id, room_id, type, json, position)
    SELECT DISTINCT ON (user_id, room_id, type) user_id, room_id, type, json, position
    FROM {new}
    ORDER BY user_id, room_id, type, position DESC
    ON CONFLICT (user_id, room_id, type)
    DO UPDATE SET json = excluded.json, position = excluded.position
    """,
    {
        "new": {
            "user_id": "text", "room_id": "text", "type": "text", "json": "text",
            "position": "bigint",
        },
    },
)  # fmt: skip

WRITE_RECEIPTS = BatchStatement(
    "stream_writes.receipts",
    """
    INSERT INTO receipts (room_nid, user_id, receipt_type, thread_id, event_id, ts_ms, position)
    SELECT DISTINCT ON (r.room_nid, user_id, receipt_type, thread_id)
      r.room_nid, user_id, receipt_type, thread_id, event_id, ts_ms, position
    FROM {new}
    JOIN rooms r ON r.room_id = new.room_id
    ORDER BY r.room_nid, user_id, receipt_type, thread_id, position DESC
    ON CONFLICT (room_nid, user_id, receipt_type, thread_id)
    DO UPDATE SET event_id = excluded.event_id, ts_ms = excluded.ts_ms, position = excluded.position
    """,
    {
        "new": {
            "room_id": "text", "user_id": "text", "receipt_type": "text", "thread_id": "text",
            "event_id": "text", "ts_ms": "bigint", "position": "bigint",
        },
    },
)  # fmt: skip

# A receipt of this server's user moves what that user has read: never back. Threaded receipts move
# only their thread; the thread `main` moves the count of the main timeline.
READ_BY_RECEIPTS = BatchStatement(
    "stream_writes.read_by_receipts",
    """
    WITH of_events AS (
      SELECT r.room_nid, user_id, thread_id, e.position, e.main_count
      FROM {new}
      JOIN rooms r ON r.room_id = new.room_id
      JOIN events e ON e.event_id = new.event_id AND e.room_nid = r.room_nid
      WHERE e.position IS NOT NULL
    ), threads AS (
      INSERT INTO thread_reads AS old (room_nid, user_id, thread_root, position)
      SELECT room_nid, user_id, thread_id, max(position)
      FROM of_events
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
      FROM of_events
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
    {"new": {"room_id": "text", "user_id": "text", "thread_id": "text", "event_id": "text"}},
)

# Primary key. Who writes has the next position of the stream, so what is read here is the newest.
# n / 0 undoes everything. A list that is not there any more was lost in a crash.
WRITE_TYPING = BatchStatement(
    "stream_writes.typing",
    """
    INSERT INTO typing (room_nid, position, user_ids, expires_ms)
    SELECT
      r.room_nid, new.position / (coalesce(old.position, new.replaces) = new.replaces)::integer,
      new.user_ids::text[], new.expires_ms::bigint[]
    FROM {new}
    JOIN rooms r ON r.room_id = new.room_id
    LEFT JOIN typing old ON old.room_nid = r.room_nid
    ON CONFLICT (room_nid)
    DO UPDATE SET
      position = excluded.position, user_ids = excluded.user_ids, expires_ms = excluded.expires_ms
    """,
    {
        "new": {
            "room_id": "text", "user_ids": "text", "expires_ms": "text", "replaces": "bigint",
            "position": "bigint",
        },
    },
)  # fmt: skip

# Primary key. A soft-failed sticky event passed its checks after all: it comes now.
WRITE_STICKY_EVENTS = BatchStatement(
    "stream_writes.sticky_events",
    """
    WITH passed AS (
      SELECT * FROM {new}
    ), accepted AS (
      UPDATE events e SET status = 0 FROM passed WHERE e.event_id = passed.event_id
    )
    UPDATE sticky_events s
    SET position = passed.position
    FROM passed
    WHERE s.event_id = passed.event_id AND s.position IS NULL
    """,
    {"new": {"event_id": "text", "position": "bigint"}},
)

# Primary key. The purge begins at the newest place in the room, and anew where a kick or ban that
# had been taken back is in force again (the row is new: upto 0). More joins of a stay come later.
WRITE_STAY_REDACTIONS = BatchStatement(
    "stream_writes.stay_redactions",
    """
    INSERT INTO redacted_stays AS old (
      room_nid, user_id, first_join_id, because_id, join_ids, spared_ids, replaces, created_ms,
      purged, position, upto, next_major, next_minor
    )
    SELECT DISTINCT ON (r.room_nid, user_id, because_id)
      r.room_nid, user_id, first_join_id, because_id, join_ids::text[], spared_ids::text[],
      replaces::text[], created_ms, purged, position,
      CASE WHEN upto = 0 THEN position ELSE upto END, 9223372036854775807, 0
    FROM {new}
    JOIN rooms r ON r.room_id = new.room_id
    ORDER BY r.room_nid, user_id, because_id, position DESC
    ON CONFLICT (room_nid, user_id, because_id) DO UPDATE
    SET
      position = excluded.position,
      join_ids = ARRAY(SELECT DISTINCT unnest(old.join_ids || excluded.join_ids)),
      spared_ids = ARRAY(SELECT DISTINCT unnest(old.spared_ids || excluded.spared_ids)),
      replaces = ARRAY(SELECT DISTINCT unnest(old.replaces || excluded.replaces)),
      upto = greatest(old.upto, excluded.upto),
      purged = CASE sign(excluded.upto - old.upto)
        WHEN 1 THEN excluded.purged WHEN 0 THEN old.purged OR excluded.purged ELSE old.purged
      END,
      next_major =
        CASE WHEN excluded.upto > old.upto THEN excluded.next_major ELSE old.next_major END,
      next_minor =
        CASE WHEN excluded.upto > old.upto THEN excluded.next_minor ELSE old.next_minor END,
      next_nid = CASE WHEN excluded.upto > old.upto THEN NULL ELSE old.next_nid END
    """,
    {
        "new": {
            "room_id": "text", "user_id": "text", "first_join_id": "text", "because_id": "text",
            "join_ids": "text", "spared_ids": "text", "replaces": "text", "created_ms": "bigint",
            "upto": "bigint", "purged": "boolean", "position": "bigint",
        },
    },
)  # fmt: skip

# Primary key.
DELETE_UNSTUCK = statement(
    "stream_writes.unstuck", "DELETE FROM sticky_events WHERE event_id = ANY($1::text[])"
)

# Primary key of memberships. Who has come back meanwhile does not forget.
WRITE_FORGOTTEN = BatchStatement(
    "stream_writes.forgotten",
    """
    UPDATE memberships m
    SET forgotten = true, forgotten_position = new.position
    FROM {new}
    JOIN rooms r ON r.room_id = new.room_id
    WHERE
      m.room_nid = r.room_nid AND m.user_id = new.user_id
      AND m.membership = ANY(ARRAY['leave', 'ban'])
    """,
    {"new": {"room_id": "text", "user_id": "text", "position": "bigint"}},
)

# Primary key of account_data.
DELETE_FORGOTTEN_DATA = BatchStatement(
    "stream_writes.forgotten_data",
    """
    DELETE FROM account_data a
    USING {new}, rooms r, memberships m
    WHERE
      r.room_id = new.room_id AND m.room_nid = r.room_nid
      AND m.user_id = new.user_id AND m.forgotten
      AND a.user_id = new.user_id AND a.room_id = new.room_id
    """,
    {"new": {"room_id": "text", "user_id": "text"}},
)

# Primary key.
WRITE_UNIGNORED = BatchStatement(
    "stream_writes.unignored",
    """
    INSERT INTO unignored (user_id, sender, until_ms, position)
    SELECT DISTINCT ON (user_id, sender) user_id, sender, until_ms, position
    FROM {new}
    ORDER BY user_id, sender, position DESC
    ON CONFLICT (user_id, sender)
    DO UPDATE SET until_ms = excluded.until_ms, position = excluded.position
    """,
    {"new": {"user_id": "text", "sender": "text", "until_ms": "bigint", "position": "bigint"}},
)

# Primary key.
WRITE_DEVICE_LISTS = BatchStatement(
    "stream_writes.device_lists",
    """
    INSERT INTO device_lists (user_id, position)
    SELECT user_id, max(position)
    FROM {new}
    GROUP BY user_id
    ON CONFLICT (user_id) DO UPDATE SET position = excluded.position
    """,
    {"new": {"user_id": "text", "position": "bigint"}},
)

# Primary key.
WRITE_PRESENCE = BatchStatement(
    "stream_writes.presence",
    """
    INSERT INTO presence (
      user_id, presence, status_msg, last_active_ms, currently_active, until_ms, by_poll, local,
      written_ms, position
    )
    SELECT DISTINCT ON (user_id) *
    FROM {new}
    ORDER BY user_id, position DESC
    ON CONFLICT (user_id) DO UPDATE
    SET
      presence = excluded.presence, status_msg = excluded.status_msg,
      last_active_ms = excluded.last_active_ms, currently_active = excluded.currently_active,
      until_ms = excluded.until_ms, by_poll = excluded.by_poll, written_ms = excluded.written_ms,
      position = excluded.position
    """,
    {
        "new": {
            "user_id": "text", "presence": "text", "status_msg": "text",
            "last_active_ms": "bigint", "currently_active": "boolean", "until_ms": "bigint",
            "by_poll": "boolean", "local": "boolean", "written_ms": "bigint", "position": "bigint",
        },
    },
)  # fmt: skip

# Primary keys of to_device_sends and devices: a device that goes meanwhile gets nothing.
WRITE_TO_DEVICE = BatchStatement(
    "stream_writes.to_device",
    """
    WITH first_sends AS (
      SELECT DISTINCT ON (scope, txn_id) scope, txn_id, sent_ms, sender, position
      FROM {sends}
      ORDER BY scope, txn_id, position
    ), fresh AS (
      INSERT INTO to_device_sends (scope, txn_id, sent_ms)
      SELECT scope, txn_id, sent_ms FROM first_sends
      ON CONFLICT DO NOTHING
      RETURNING scope, txn_id
    ), chosen AS (
      SELECT position, sender FROM first_sends JOIN fresh USING (scope, txn_id)
    ), delivered AS (
      INSERT INTO to_device_messages (device_nid, position, sender, json)
      SELECT d.device_nid, c.position, c.sender, messages.json
      FROM {messages}
      JOIN chosen c ON c.position = messages.position
      JOIN devices d ON d.device_nid = messages.device_nid
      FOR KEY SHARE OF d
    )
    INSERT INTO to_device_outbox (server_name, position, json)
    SELECT outgoing.server_name, c.position, outgoing.json
    FROM {outgoing}
    JOIN chosen c ON c.position = outgoing.position
    """,
    {
        "sends": {
            "scope": "text", "txn_id": "text", "sent_ms": "bigint", "sender": "text",
            "position": "bigint",
        },
        "messages": {"position": "bigint", "device_nid": "bigint", "json": "text"},
        "outgoing": {"position": "bigint", "server_name": "text", "json": "text"},
    },
)  # fmt: skip

# Primary key of delayed_events. If it was cancelled or restarted meanwhile, nothing became of it.
WRITE_OUTCOMES = BatchStatement(
    "stream_writes.delayed_event_outcomes",
    """
    UPDATE delayed_events d
    SET
      finalised_ms = coalesce(d.finalised_ms, new.finalised_ms),
      event_id = coalesce(d.event_id, new.event_id),
      error = coalesce(d.error, new.error),
      position = new.position
    FROM {new}
    WHERE
      d.delay_id = new.delay_id AND d.due_ms = new.due_ms
      AND (d.finalised_ms IS NULL OR d.event_id = new.event_id)
    """,
    {
        "new": {
            "delay_id": "text", "due_ms": "bigint", "finalised_ms": "bigint", "event_id": "text",
            "error": "text", "position": "bigint",
        },
    },
)  # fmt: skip

# Unique index rooms_room_id_key; primary key of room_purges.
WRITE_PURGED = BatchStatement(
    "stream_writes.purged_rooms",
    """
    UPDATE room_purges p
    SET position = new.position
    FROM {new}
    JOIN rooms r ON r.room_id = new.room_id
    WHERE p.room_nid = r.room_nid
    """,
    {"new": {"room_id": "text", "position": "bigint"}},
)


# In this order; a column of the table `new` is the row's field of that name, or its position.
_WRITES: Mapping[type[StreamRow], Sequence[BatchStatement]] = {
    AccountDataWrite: [WRITE_ACCOUNT_DATA],
    ReceiptWrite: [WRITE_RECEIPTS, READ_BY_RECEIPTS],
    TypingWrite: [WRITE_TYPING],
    StickyEvent: [WRITE_STICKY_EVENTS],
    StayRedaction: [WRITE_STAY_REDACTIONS],
    ForgottenRoom: [WRITE_FORGOTTEN, DELETE_FORGOTTEN_DATA],
    UnignoredUser: [WRITE_UNIGNORED],
    DeviceListChange: [WRITE_DEVICE_LISTS],
    PresenceWrite: [WRITE_PRESENCE],
    DelayedEventOutcome: [WRITE_OUTCOMES],
    PurgedRoom: [WRITE_PURGED],
}


async def write_rows(queries: Queries, rows: Sequence[tuple[int, StreamRow]]) -> None:
    """Write rows with their positions."""
    of_type: dict[type[StreamRow], list[tuple[int, StreamRow]]] = defaultdict(list)
    for position, row in rows:
        of_type[type(row)].append((position, row))
    for row_type, writes in _WRITES.items():
        for write in writes if row_type in of_type else ():
            columns = write.columns("new")
            new = [[_value(row, column, at) for column in columns] for at, row in of_type[row_type]]
            await queries.execute(write.text, *write.arguments({"new": new}))
    unstuck = [e for _, row in rows if isinstance(row, StayRedaction) for e in row.unstuck]
    if unstuck:
        await queries.execute(DELETE_UNSTUCK, unstuck)
    sends = [(at, row) for at, row in rows if isinstance(row, ToDeviceSend)]
    if sends:
        await _write_to_device(queries, sends)


def _value(row: StreamRow, column: str, position: int) -> object:
    if column == "position":
        return position
    match getattr(row, column):
        case tuple(values):
            return array_literal(values)
        case frozenset(values):
            return array_literal(sorted(values))
        case value:
            return value


async def _write_to_device(queries: Queries, sends: Sequence[tuple[int, ToDeviceSend]]) -> None:
    tables = {
        "sends": [(send.scope, send.txn_id, send.sent_ms, send.sender, at) for at, send in sends],
        "messages": [(at, m.device_nid, m.json) for at, send in sends for m in send.messages],
        "outgoing": [(at, *one) for at, send in sends for one in send.outgoing],
    }
    await queries.execute(WRITE_TO_DEVICE.text, *WRITE_TO_DEVICE.arguments(tables))
