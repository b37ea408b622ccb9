"""Writing events: one statement for a whole batch of rooms, senders and effects (D2).

The statement verifies and bumps the version of every room concerned, takes the batch's positions
last, and inserts everything that depends on them. Where a room has moved it does nothing at all: it
returns no row, or fails. Values go in as arrays, so its cost hardly depends on the size of the
batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import asyncpg

from minihs.storage.delayed_events import lock_scheduled
from minihs.storage.sql import statement
from minihs.storage.stream_rows import StickyEvent, array_literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minihs.protocol.identifiers import EventId, RoomAlias, RoomId, StateKey, UserId
    from minihs.storage.database import Queries
    from minihs.storage.event_store import StoredEvent
    from minihs.storage.state import StateRow


@dataclass(slots=True)
class RoomWrite:
    """What becomes of a room. `expected_version` is None for a room that is made now.

    `alias`, of such a room only, is its first alias and who makes it.
    """

    room_nid: int
    room_id: RoomId
    room_version: str
    expected_version: int | None
    extremity_nids: Sequence[int]
    state_id: int
    main_count: int
    published: bool = False
    alias: tuple[RoomAlias, UserId] | None = None


@dataclass(frozen=True, slots=True)
class Membership:
    """A user's current membership in a room, as its member event says.

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
class Push:
    """An event counts for this user otherwise than for users with default rules."""

    user_id: UserId
    notify_delta: int
    highlight: bool


@dataclass(frozen=True, slots=True)
class DelayedOutcome:
    """An event was a delayed one (MSC4140), due at `due_ms` when it was decided to send it now."""

    delay_id: str
    due_ms: int
    finalised_ms: int


@dataclass(slots=True)
class EventWrite:
    """One event to be written, with everything that it causes."""

    stored: StoredEvent
    room_nid: int
    auth_nids: Sequence[int] | None = None
    txn_scope: str | None = None
    states: Sequence[StateRow] = ()
    memberships: list[Membership] = field(default_factory=list)
    invite_states: dict[UserId, str] = field(default_factory=dict)  # stripped state, as JSON
    pushes: Sequence[Push] = ()
    read_by: UserId | None = None  # a local sender has read what came before
    sticky: StickyEvent | None = None
    redacts: EventId | None = None  # an accepted redaction of this event, known or not
    delayed: DelayedOutcome | None = None

    @property
    def transaction(self) -> tuple[object, ...] | None:
        """What no two events may have in common: their request, or the delayed event they are."""
        stored = self.stored
        if self.delayed is not None:
            return (self.delayed.delay_id,)
        if stored.device_nid is None:
            return None
        return stored.device_nid, stored.txn_id, self.room_nid, self.txn_scope


@dataclass(slots=True)
class EventBatch:
    """Events in stream order, and the rooms they are in."""

    rooms: dict[int, RoomWrite] = field(default_factory=dict)
    events: list[EventWrite] = field(default_factory=list)


_VERIFY = """
    WITH unmoved AS (
      SELECT count(*) AS rooms
      FROM unnest($1::bigint[], $2::bigint[]) AS seen (room_nid, version)
      JOIN rooms r ON r.room_nid = seen.room_nid AND r.version = seen.version
    ), bumped AS (
      UPDATE rooms r
      SET
        version = r.version + 1, extremities = seen.extremities::bigint[],
        state_id = seen.state_id, main_count = seen.main_count
      FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::bigint[], $5::bigint[])
        AS seen (room_nid, version, extremities, state_id, main_count)
      WHERE
        r.room_nid = seen.room_nid AND r.version = seen.version
        AND (
          cardinality($1::bigint[]) = 1
          OR (SELECT rooms FROM unmoved) = cardinality($1::bigint[])
        )
      RETURNING 1
    ), last AS (
      UPDATE stream
      SET position = position + $6::bigint
      WHERE (
        -- One that moved while we looked: the others must not stay bumped. n / 0 undoes everything.
        SELECT CASE WHEN n IN (0, cardinality($1::bigint[])) THEN n = cardinality($1::bigint[])
          ELSE n / (n - n) > 0 END
        FROM (SELECT count(*) AS n FROM bumped) AS found
      )
      RETURNING position - $6::bigint AS base
    ), new_events AS (
      INSERT INTO events (
        event_nid, event_id, room_nid, position, order_major, status, key_nid, state_before,
        state_after, room_state_before, room_state_after, auth_nids, main_count, thread_root,
        notifies, sticky_until_ms, device_nid, txn_id, txn_scope, redacted_by, json
      )
      SELECT
        new.event_nid, new.event_id, new.room_nid, last.base + new.ordinal,
        CASE WHEN new.state_before IS NOT NULL THEN last.base + new.ordinal END, new.status,
        new.key_nid, new.state_before, new.state_after, new.room_state_before, new.room_state_after,
        new.auth_nids::bigint[], new.main_count, new.thread_root,
        new.notifies, new.sticky_until_ms, new.device_nid, new.txn_id, new.txn_scope,
        new.redacted_by, new.json
      FROM
        last,
        unnest(
          $7::bigint[], $8::text[], $9::bigint[], $10::smallint[], $11::bigint[], $12::bigint[],
          $13::bigint[], $14::bigint[], $15::bigint[], $16::text[], $17::bigint[], $18::text[],
          $19::boolean[], $20::bigint[], $21::bigint[], $22::text[], $23::text[], $24::text[],
          $25::text[]
        ) WITH ORDINALITY AS new (
          event_nid, event_id, room_nid, status, key_nid, state_before, state_after,
          room_state_before, room_state_after, auth_nids, main_count, thread_root, notifies,
          sticky_until_ms, device_nid, txn_id, txn_scope, redacted_by, json, ordinal
        )
      -- An event that takes its place in the room only now keeps its number. Where its writer did
      -- not know that (another process has just stored it), all fails: others rest upon the number.
      ON CONFLICT (event_id) DO UPDATE
      SET
        position = excluded.position / (events.event_nid = excluded.event_nid)::integer,
        order_major = excluded.order_major,
        redacted_by = coalesce(events.redacted_by, excluded.redacted_by),
        json = CASE WHEN excluded.redacted_by IS NULL THEN events.json ELSE excluded.json END,
        status = excluded.status, state_before = excluded.state_before,
        state_after = excluded.state_after, room_state_before = excluded.room_state_before,
        room_state_after = excluded.room_state_after, main_count = excluded.main_count,
        thread_root = excluded.thread_root, notifies = excluded.notifies,
        sticky_until_ms = excluded.sticky_until_ms,
        auth_nids = coalesce(excluded.auth_nids, events.auth_nids)
      WHERE events.order_major IS NULL
    ), read AS (
      UPDATE memberships m
      SET
        read_main_position = last.base + new.ordinal, read_main_count = new.main_count
      FROM
        last,
        unnest($26::bigint[], $27::text[], $28::bigint[], $29::bigint[])
          AS new (room_nid, user_id, ordinal, main_count)
      WHERE m.room_nid = new.room_nid AND m.user_id = new.user_id
    ), pushed AS (
      INSERT INTO event_pushes (user_id, room_nid, position, thread_root, notify_delta, highlight)
      SELECT
        new.user_id, new.room_nid, last.base + new.ordinal, new.thread_root, new.notify_delta,
        new.highlight
      FROM
        last,
        unnest(
          $30::text[], $31::bigint[], $32::bigint[], $33::text[], $34::smallint[], $35::boolean[]
        ) AS new (user_id, room_nid, ordinal, thread_root, notify_delta, highlight)
    )
"""

_STATE = """
    , new_rooms AS (
      INSERT INTO rooms (
        room_nid, room_id, room_version, version, extremities, state_id, main_count, published
      )
      SELECT
        new.room_nid, new.room_id, new.room_version, 1, new.extremities::bigint[], new.state_id,
        new.main_count, new.published
      FROM
        last,
        unnest(
          $36::bigint[], $37::text[], $38::text[], $39::text[], $40::bigint[], $41::bigint[],
          $42::boolean[]
        ) AS new (
          room_nid, room_id, room_version, extremities, state_id, main_count, published
        )
    ), new_states AS (
      INSERT INTO states (state_id, parent_id, chain, size)
      SELECT new.*
      FROM last, unnest($43::bigint[], $44::bigint[], $45::integer[], $46::integer[]) AS new
    ), new_entries AS (
      INSERT INTO state_entries (state_id, key_nid, event_nid)
      SELECT
        new.state_id, new.key_nid,
        coalesce(
          new.event_nid, (SELECT e.event_nid FROM events e WHERE e.event_id = new.event_id)
        )
      FROM
        last,
        unnest($47::bigint[], $48::bigint[], $49::bigint[], $50::text[])
          AS new (state_id, key_nid, event_nid, event_id)
    ), members AS (
      INSERT INTO memberships AS old (
        room_nid, user_id, membership, event_id, sender, position, order_major, joined_position,
        local, forgotten, display_name, avatar_url, read_position, read_main_position,
        read_main_count
      )
      SELECT
        new.room_nid, new.user_id, new.membership, new.event_id, new.sender,
        last.base + new.ordinal, last.base + new.ordinal, last.base + new.ordinal, new.local,
        new.forgotten,
        new.display_name, new.avatar_url, last.base + new.read_ordinal,
        last.base + new.read_ordinal, new.read_main_count
      FROM
        last,
        unnest(
          $51::bigint[], $52::text[], $53::text[], $54::text[], $55::text[], $56::bigint[],
          $57::boolean[], $58::boolean[], $59::text[], $60::text[], $61::bigint[], $62::bigint[]
        ) AS new (
          room_nid, user_id, membership, event_id, sender, ordinal, local, forgotten,
          display_name, avatar_url, read_ordinal, read_main_count
        )
      ON CONFLICT (room_nid, user_id) DO UPDATE
      SET
        membership = excluded.membership, event_id = excluded.event_id, sender = excluded.sender,
        position = excluded.position, order_major = excluded.order_major,
        joined_position = CASE
          WHEN old.membership = 'join' AND excluded.membership = 'join'
          THEN old.joined_position ELSE excluded.position END,
        -- Whoever is banned from a room that they have forgotten does not remember it again.
        forgotten = old.forgotten AND excluded.membership IN ('leave', 'ban'),
        display_name = excluded.display_name,
        avatar_url = excluded.avatar_url,
        -- Whoever joins anew has nothing to catch up on; a new display name changes nothing.
        read_position = CASE
          WHEN old.membership = 'join' AND excluded.read_position = excluded.position
          THEN old.read_position ELSE excluded.read_position END,
        read_main_position = CASE
          WHEN old.membership = 'join' AND excluded.read_position = excluded.position
          THEN old.read_main_position ELSE excluded.read_main_position END,
        read_main_count = CASE
          WHEN old.membership = 'join' AND excluded.read_position = excluded.position
          THEN old.read_main_count ELSE excluded.read_main_count END
    ), invited AS (
      INSERT INTO invite_states (room_id, user_id, json)
      SELECT new.* FROM last, unnest($63::text[], $64::text[], $65::text[]) AS new
      ON CONFLICT (room_id, user_id) DO UPDATE SET json = excluded.json
    ), redacting AS (
      INSERT INTO redactions (event_id, redaction_id, room_nid)
      SELECT new.* FROM last, unnest($66::text[], $67::text[], $68::bigint[]) AS new
      ON CONFLICT DO NOTHING
    ), redacted AS (
      UPDATE events e
      SET redacted_by = new.redaction_id
      FROM
        last,
        unnest($66::text[], $67::text[], $68::bigint[]) AS new (event_id, redaction_id, room_nid)
      WHERE e.event_id = new.event_id AND e.room_nid = new.room_nid AND e.redacted_by IS NULL
        AND e.event_id <> ALL($8::text[])  -- One that is written with it says so itself.
    ), threads_read AS (
      INSERT INTO thread_reads (room_nid, user_id, thread_root, position)
      SELECT new.room_nid, new.user_id, new.thread_root, last.base + new.ordinal
      FROM
        last,
        unnest($69::bigint[], $70::text[], $71::text[], $72::bigint[])
          AS new (room_nid, user_id, thread_root, ordinal)
      ON CONFLICT (room_nid, user_id, thread_root) DO UPDATE SET position = excluded.position
    ), new_aliases AS (
      INSERT INTO room_aliases (alias, room_id, creator)
      SELECT new.* FROM last, unnest($73::text[], $74::text[], $75::text[]) AS new
    ), sticky AS (
      INSERT INTO sticky_events (
        event_id, room_nid, sender, until_ms, position, waits_for, told_from
      )
      SELECT
        new.event_id, new.room_nid, new.sender, new.until_ms,
        CASE WHEN new.waits_for IS NULL THEN last.base + new.ordinal END, new.waits_for, s.position
      FROM
        last,
        unnest(
          $76::text[], $77::bigint[], $78::text[], $79::bigint[], $80::bigint[], $85::text[],
          $86::text[]
        ) AS new (event_id, room_nid, sender, until_ms, ordinal, waits_for, instead_of)
        LEFT JOIN sticky_events s ON s.event_id = new.instead_of AND s.room_nid = new.room_nid
      -- Of what nobody has been sent, nobody is told that it was redacted.
      WHERE new.instead_of IS NULL OR s.position IS NOT NULL
      ON CONFLICT (event_id) DO UPDATE
      SET position = excluded.position, waits_for = excluded.waits_for
    ), unstuck AS (
      DELETE FROM sticky_events s
      USING last, unnest($66::text[], $68::bigint[]) AS redacted (event_id, room_nid)
      WHERE s.event_id = redacted.event_id AND s.room_nid = redacted.room_nid
    ), delayed AS (
      UPDATE delayed_events d
      SET finalised_ms = new.finalised_ms, event_id = new.event_id
      FROM
        last,
        unnest($81::text[], $82::bigint[], $83::bigint[], $84::text[])
          AS new (delay_id, due_ms, finalised_ms, event_id)
      WHERE d.delay_id = new.delay_id AND d.due_ms = new.due_ms AND d.finalised_ms IS NULL
      RETURNING 1
    )
"""

_RESULT = """
    SELECT last.base, pg_notify('minihs', (last.base + $6::bigint)::text) FROM last
"""

# A delayed event may have been cancelled, sent or restarted since it was seen to be due: then, too,
# nothing at all may be written.
_UNLESS_SUPERSEDED = """
    WHERE 1 / (SELECT (count(*) = cardinality($81::text[]))::integer FROM delayed) = 1
"""

# Primary keys of rooms and memberships; the stream's only row. The plain form is for messages.
COMMIT_MESSAGES = statement("event_writes.commit_messages", _VERIFY + _RESULT)
COMMIT_EVENTS = statement(
    "event_writes.commit_events", _VERIFY + _STATE + _RESULT + _UNLESS_SUPERSEDED
)

# Primary key; sorted, so that two processes cannot deadlock.
LOCK_ROOMS = statement(
    "event_writes.lock_rooms",
    """
    SELECT room_nid, version
    FROM rooms
    WHERE room_nid = ANY($1::bigint[])
    ORDER BY room_nid
    FOR UPDATE
    """,
)

# Unique index events_transaction_key.
FIND_TRANSACTIONS = statement(
    "event_writes.find_transactions",
    """
    SELECT e.event_nid, asked.event_nid AS asked_nid
    FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::text[], $5::bigint[])
      AS asked (device_nid, txn_id, room_nid, txn_scope, event_nid)
    JOIN events e
      ON e.device_nid = asked.device_nid AND e.txn_id = asked.txn_id
      AND e.room_nid = asked.room_nid AND e.txn_scope = asked.txn_scope
    """,
)


async def write_batch(
    queries: Queries, batch: EventBatch, key_nids: Mapping[StateKey, int], extra_rows: int
) -> int | None:
    """Write a batch; return the position before its first event, or None if a room has moved.

    Then nothing was written, and a transaction that was open may have failed. Events get the
    positions that follow, in order; `extra_rows` more are taken for other rows of the transaction.
    """
    # In one order for all processes, lest two of them wait for each other's rooms.
    existing = [r for _, r in sorted(batch.rooms.items()) if r.expected_version is not None]
    events = batch.events
    arguments: list[object] = [
        [r.room_nid for r in existing],
        [r.expected_version for r in existing],
        [array_literal(r.extremity_nids) for r in existing],
        [r.state_id for r in existing],
        [r.main_count for r in existing],
        len(events) + extra_rows,
        [w.stored.event_nid for w in events],
        [w.stored.event_id for w in events],
        [w.room_nid for w in events],
        [w.stored.status for w in events],
        [key_nids[w.stored.event.key] if w.stored.event.is_state else None for w in events],
        [w.stored.state_before for w in events],
        [w.stored.state_after for w in events],
        [w.stored.room_state_before for w in events],
        [w.stored.room_state_after for w in events],
        [None if w.auth_nids is None else array_literal(w.auth_nids) for w in events],
        [w.stored.main_count for w in events],
        [w.stored.thread_root for w in events],
        [w.stored.notifies for w in events],
        [w.stored.sticky_until_ms for w in events],
        [w.stored.device_nid for w in events],
        [w.stored.txn_id for w in events],
        [w.txn_scope for w in events],
        [w.stored.redacted_by for w in events],
        [w.stored.event.json.decode() for w in events],
    ]
    members = _last_memberships(events)
    reads: dict[tuple[int, str], tuple[int, int]] = {}
    for ordinal, w in enumerate(events, 1):
        if w.read_by is not None and w.stored.thread_root is None:
            reads[w.room_nid, w.read_by] = ordinal, w.stored.main_count or 0
    arguments += _columns(
        [
            (nid, user, ordinal, count)
            for (nid, user), (ordinal, count) in reads.items()
            if (nid, user) not in members
        ],
        4,
    )
    arguments += _columns(
        [
            (
                p.user_id,
                w.room_nid,
                ordinal,
                w.stored.thread_root or "",
                p.notify_delta,
                p.highlight,
            )
            for ordinal, w in enumerate(events, 1)
            for p in w.pushes
        ],
        6,
    )
    text = COMMIT_MESSAGES
    if not all(_is_plain(w) for w in events):
        text = COMMIT_EVENTS
        arguments += _state_arguments(batch, key_nids, members, reads)
    try:
        row = await queries.fetchrow(text, *arguments)
    except asyncpg.DivisionByZeroError:
        return None
    return None if row is None else row[0]


def _is_plain(write: EventWrite) -> bool:
    """Return whether an event changes nothing but the timeline of its room."""
    return not (
        write.states
        or write.memberships
        or write.redacts is not None
        or write.stored.thread_root is not None
        or write.sticky is not None
        or write.delayed is not None
    )


def _columns(rows: Sequence[Sequence[object]], width: int) -> list[object]:
    """Return the columns of a table given by rows."""
    return [[row[n] for row in rows] for n in range(width)]


def _last_memberships(
    events: Sequence[EventWrite],
) -> dict[tuple[int, str], tuple[int, int, Membership]]:
    """Return the last membership of each user and room, its ordinal, and the room's main_count."""
    return {
        (w.room_nid, m.user_id): (ordinal, w.stored.main_count or 0, m)
        for ordinal, w in enumerate(events, 1)
        for m in w.memberships
    }


def _state_arguments(
    batch: EventBatch,
    key_nids: Mapping[StateKey, int],
    members: Mapping[tuple[int, str], tuple[int, int, Membership]],
    reads: Mapping[tuple[int, str], tuple[int, int]],
) -> list[object]:
    """Return the arguments of the second half of COMMIT_EVENTS."""
    events = batch.events
    new_nids = {w.stored.event_id: w.stored.event_nid for w in events}
    states = [row for w in events for row in w.states]
    arguments = _columns(
        [
            (
                r.room_nid, r.room_id, r.room_version, array_literal(r.extremity_nids), r.state_id,
                r.main_count, r.published,
            )
            for r in batch.rooms.values()
            if r.expected_version is None
        ],
        7,
    )  # fmt: skip
    arguments += _columns([(s.state_id, s.parent_id, s.chain, s.size) for s in states], 4)
    arguments += _columns(
        [
            (s.state_id, key_nids[key], None if event is None else new_nids.get(event), event)
            for s in states
            for key, event in s.changes.items()
        ],
        4,
    )
    rows = []
    for (room_nid, user_id), (ordinal, main_count, m) in members.items():
        read_ordinal, read_count = reads.get((room_nid, user_id), (ordinal, main_count))
        rows.append(
            (
                room_nid, user_id, m.membership, m.event_id, m.sender, ordinal, m.local,
                m.forgotten, m.display_name, m.avatar_url, max(ordinal, read_ordinal), read_count,
            )
        )  # fmt: skip
    arguments += _columns(rows, 12)
    invites = {
        (w.stored.event.room_id, user_id): json
        for w in events
        for user_id, json in w.invite_states.items()
    }
    arguments += _columns([(room, user, json) for (room, user), json in invites.items()], 3)
    arguments += _columns(
        [(w.redacts, w.stored.event_id, w.room_nid) for w in events if w.redacts is not None], 3
    )
    threads = {
        (w.room_nid, w.read_by, w.stored.thread_root): ordinal
        for ordinal, w in enumerate(events, 1)
        if w.read_by is not None and w.stored.thread_root is not None
    }
    arguments += _columns([(*key, ordinal) for key, ordinal in threads.items()], 4)
    arguments += _columns(
        [(r.alias[0], r.room_id, r.alias[1]) for r in batch.rooms.values() if r.alias is not None],
        3,
    )
    sticky = _columns(
        [
            (s.event_id, w.room_nid, s.sender, s.until_ms, ordinal, s.waits_for, s.instead_of)
            for ordinal, w in enumerate(events, 1)
            if (s := w.sticky) is not None
        ],
        7,
    )
    arguments += sticky[:5]
    arguments += _columns(
        [
            (w.delayed.delay_id, w.delayed.due_ms, w.delayed.finalised_ms, w.stored.event_id)
            for w in events
            if w.delayed is not None
        ],
        4,
    )
    arguments += sticky[5:]
    return arguments


async def lock_rooms(queries: Queries, room_nids: Sequence[int]) -> dict[int, int]:
    """Lock rooms till the transaction ends; return the version of each."""
    return {row[0]: row[1] for row in await queries.fetch(LOCK_ROOMS, list(room_nids))}


async def find_superseded(queries: Queries, writes: Sequence[EventWrite]) -> set[int]:
    """Return the event_nid of each write of a delayed event that is not as it was seen any more.

    The others stay as they are till the transaction ends.
    """
    own = [(w.stored.event_nid, w.delayed) for w in writes if w.delayed is not None]
    if not own:
        return set()
    left = await lock_scheduled(queries, [(d.delay_id, d.due_ms) for _, d in own])
    return {event_nid for event_nid, d in own if d.delay_id not in left}


async def find_transactions(queries: Queries, writes: Sequence[EventWrite]) -> set[int]:
    """Return the event_nid of each write whose transaction id has been used already."""
    own = [w for w in writes if w.stored.device_nid is not None]
    if not own:
        return set()
    rows = await queries.fetch(
        FIND_TRANSACTIONS,
        [w.stored.device_nid for w in own],
        [w.stored.txn_id for w in own],
        [w.room_nid for w in own],
        [w.txn_scope for w in own],
        [w.stored.event_nid for w in own],
    )
    return {row[1] for row in rows}
