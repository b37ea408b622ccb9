"""Writing events that take no place in the stream: outliers, refused events, fetched history.

Nobody waits for them, so they need no position and are written in transactions of their own, before
whatever rests upon them (D1). `services.rooms.history_commit` calls this.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import asyncpg

from minihs.base.errors import DatabaseBusy
from minihs.storage import missing_events, sticky_events
from minihs.storage.sql import BatchStatement, array_literal, statement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minihs.protocol.identifiers import EventId, StateKey
    from minihs.storage.database import Database, Queries
    from minihs.storage.event_store import StoredEvent
    from minihs.storage.state import StateRow


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an event was rejected or soft-failed (D13)."""

    rule: str
    passage: str
    message: str
    deciding: Sequence[EventId] = ()


@dataclass(frozen=True, slots=True)
class HistoryWrite:
    """An event without a position; its `order` is None for outliers and refused events.

    `is_gap`: what it follows has no place in the room yet. `is_held_back`: it is sticky, and tried
    again when the room's state has changed.
    """

    stored: StoredEvent
    auth_nids: Sequence[int] | None = None
    states: Sequence[StateRow] = ()
    refusal: Refusal | None = None
    is_gap: bool = False
    is_held_back: bool = False


ATTEMPTS = 20

# Unique index events_event_id_key. What has a place in the room keeps it. Sorted, so that two
# processes that are given one room cannot deadlock. Where the writer did not know that another
# process has just stored an event, and numbered it otherwise, all fails: others rest upon the
# number (see `_renumbered`).
WRITE_EVENTS = BatchStatement(
    "history_writes.write_events",
    """
    INSERT INTO events (
      event_nid, event_id, room_nid, status, key_nid, state_before, state_after, auth_nids,
      order_major, order_minor, thread_root, redacted_by, json, sticky_until_ms, sent_ms
    )
    SELECT
      event_nid, event_id, {room_nid}, status, key_nid, state_before, state_after,
      auth_nids::bigint[], order_major, order_minor, thread_root, redacted_by, json,
      sticky_until_ms, sent_ms
    FROM {new}
    ORDER BY event_id
    ON CONFLICT (event_id) DO UPDATE
    SET
      status = excluded.status / (events.event_nid = excluded.event_nid)::integer,
      state_before = excluded.state_before,
      state_after = excluded.state_after, order_major = excluded.order_major,
      order_minor = excluded.order_minor, thread_root = excluded.thread_root,
      redacted_by = coalesce(events.redacted_by, excluded.redacted_by),
      json = CASE WHEN excluded.redacted_by IS NULL THEN events.json ELSE excluded.json END,
      auth_nids = coalesce(excluded.auth_nids, events.auth_nids)
    WHERE
      events.event_nid <> excluded.event_nid
      OR (events.order_major IS NULL AND excluded.state_before IS NOT NULL)
    RETURNING event_id
    """,
    {
        "room_nid": "bigint",
        "new": {
            "event_nid": "bigint", "event_id": "text", "status": "smallint", "key_nid": "bigint",
            "state_before": "bigint", "state_after": "bigint", "auth_nids": "text",
            "order_major": "bigint", "order_minor": "integer", "thread_root": "text",
            "redacted_by": "text", "json": "text", "sticky_until_ms": "bigint", "sent_ms": "bigint",
        },
    },
)  # fmt: skip

# Unique index events_event_id_key.
LIST_NUMBERS = statement(
    "history_writes.list_numbers",
    "SELECT event_id, event_nid FROM events WHERE event_id = ANY($1::text[])",
)

WRITE_STATES = BatchStatement(
    "history_writes.write_states",
    """
    INSERT INTO states (state_id, parent_id, chain, size)
    SELECT * FROM {new}
    ON CONFLICT DO NOTHING
    """,
    {"new": {"state_id": "bigint", "parent_id": "bigint", "chain": "integer", "size": "integer"}},
)

WRITE_STATE_ENTRIES = BatchStatement(
    "history_writes.write_state_entries",
    """
    INSERT INTO state_entries (state_id, key_nid, event_nid)
    SELECT new.state_id, new.key_nid, e.event_nid
    FROM {new}
    LEFT JOIN events e ON e.event_id = new.event_id
    ON CONFLICT DO NOTHING
    """,
    {"new": {"state_id": "bigint", "key_nid": "bigint", "event_id": "text"}},
)

WRITE_REFUSALS = BatchStatement(
    "history_writes.write_refusals",
    """
    INSERT INTO rejections (event_nid, rule, passage, message, deciding)
    SELECT e.event_nid, new.rule, new.passage, new.message, new.deciding::text[]
    FROM {new}
    JOIN events e ON e.event_id = new.event_id
    ON CONFLICT (event_nid) DO UPDATE
    SET
      rule = excluded.rule, passage = excluded.passage, message = excluded.message,
      deciding = excluded.deciding
    """,
    {
        "new": {
            "event_id": "text", "rule": "text", "passage": "text", "message": "text",
            "deciding": "text",
        },
    },
)  # fmt: skip

# Unique index rooms_room_id_key. A room without extremities is one that nobody here has joined yet;
# what its version is was only said by others, and is believed until somebody says otherwise.
ENSURE_ROOM = statement(
    "history_writes.ensure_room",
    """
    INSERT INTO rooms (
      room_nid, room_id, room_version, version, extremities, state_id, main_count, published
    )
    VALUES ($1, $2, $3, 0, '{}', 0, 0, false)
    ON CONFLICT (room_id) DO UPDATE
    SET
      room_version = CASE
        WHEN rooms.extremities = '{}' THEN excluded.room_version ELSE rooms.room_version END
    RETURNING room_nid
    """,
)


async def ensure_room(queries: Queries, room_nid: int, room_id: str, room_version: str) -> int:
    """Return the surrogate key of a room, made as `room_nid` if it is not known yet."""
    return int(str(await queries.fetchval(ENSURE_ROOM, room_nid, room_id, room_version)))


async def write_history(
    db: Database,
    room_nid: int,
    writes: Sequence[HistoryWrite],
    key_nids: Mapping[StateKey, int],
    more_states: Sequence[StateRow] = (),
) -> set[EventId]:
    """Write events, and what comes with them (states, refusals …), in one transaction.

    `more_states` are written, too. Returned are the events that were written; the others are
    stored already, and not as they were given. Whatever another process has stored meanwhile has
    its number afterwards.

    Raises:
        DatabaseBusy: other processes write the same events, time after time.
    """
    for _ in range(ATTEMPTS):
        try:
            return await _write_once(db, room_nid, writes, key_nids, more_states)
        except DatabaseBusy:
            continue
        except asyncpg.DivisionByZeroError:
            writes = await _renumbered(db, writes)
    raise DatabaseBusy


async def _renumbered(db: Database, writes: Sequence[HistoryWrite]) -> list[HistoryWrite]:
    """Return the events with the numbers that other processes have given to them."""
    by_id = {w.stored.event_id: w.stored for w in writes}
    numbers: dict[int, int] = {}
    for event_id, event_nid in await db.fetch(LIST_NUMBERS, list(by_id)):
        numbers[by_id[event_id].event_nid] = event_nid
        by_id[event_id].event_nid = event_nid
    return [
        w
        if w.auth_nids is None
        else replace(w, auth_nids=[numbers.get(number, number) for number in w.auth_nids])
        for w in writes
    ]


async def _write_once(
    db: Database,
    room_nid: int,
    writes: Sequence[HistoryWrite],
    key_nids: Mapping[StateKey, int],
    more_states: Sequence[StateRow],
) -> set[EventId]:
    async with db.transaction() as tx:
        tables: dict[str, object] = {
            "room_nid": room_nid,
            "new": [_event_row(w, w.stored, key_nids) for w in writes],
        }
        rows = await tx.fetch(WRITE_EVENTS.text, *WRITE_EVENTS.arguments(tables))
        states = [*(row for w in writes for row in w.states), *more_states]
        if states:
            await write_states(tx, states, key_nids)
        refused = [
            (w.stored.event_id, r.rule, r.passage, r.message, array_literal(r.deciding))
            for w in writes
            if (r := w.refusal) is not None
        ]
        if refused:
            await tx.execute(WRITE_REFUSALS.text, *WRITE_REFUSALS.arguments({"new": refused}))
        if gaps := [w.stored.event_nid for w in writes if w.is_gap]:
            await missing_events.insert_gaps(tx, room_nid, gaps)
        written = {row[0] for row in rows}
        for s in (w.stored for w in writes if w.is_held_back):
            if s.event_id in written and s.sticky_until_ms is not None:
                # Against which state it was tried is noted by the first second try.
                await sticky_events.insert_held(
                    tx, s.event_id, room_nid, s.event.sender, s.sticky_until_ms, -1
                )
    return written


def _event_row(
    write: HistoryWrite, s: StoredEvent, key_nids: Mapping[StateKey, int]
) -> tuple[object, ...]:
    order_major, order_minor = (None, 0) if s.order is None else s.order
    return (
        s.event_nid, s.event_id, s.status, key_nids[s.event.key] if s.event.is_state else None,
        s.state_before, s.state_after,
        None if write.auth_nids is None else array_literal(write.auth_nids),
        order_major, order_minor, s.thread_root, s.redacted_by, s.event.json.decode(),
        s.sticky_until_ms, s.sent_ms,
    )  # fmt: skip


async def write_states(
    queries: Queries, states: Sequence[StateRow], key_nids: Mapping[StateKey, int]
) -> None:
    """Write states whose events are in the database."""
    new = [(s.state_id, s.parent_id, s.chain, s.size) for s in states]
    await queries.execute(WRITE_STATES.text, *WRITE_STATES.arguments({"new": new}))
    entries = [(s.state_id, key_nids[k], e) for s in states for k, e in s.changes.items()]
    await queries.execute(
        WRITE_STATE_ENTRIES.text, *WRITE_STATE_ENTRIES.arguments({"new": entries})
    )
