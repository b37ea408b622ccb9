"""Writing events: what is written of each, and of its room, in one batch (D2).

The statements themselves are in `commit_statements`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import asyncpg

from minihs.storage.commit_statements import COMMIT_EVENTS, COMMIT_MESSAGES
from minihs.storage.delayed_events import lock_scheduled
from minihs.storage.sql import array_literal, statement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minihs.protocol.identifiers import EventId, RoomAlias, RoomId, StateKey, UserId
    from minihs.storage.database import Queries
    from minihs.storage.event_store import StoredEvent
    from minihs.storage.state import StateRow
    from minihs.storage.stream_rows import Membership, StickyEvent


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
    events = batch.events
    commit = COMMIT_MESSAGES if all(map(_is_plain, events)) else COMMIT_EVENTS
    members = _last_memberships(events)
    reads: dict[tuple[int, str], tuple[int, int]] = {}
    for ordinal, w in enumerate(events, 1):
        if w.read_by is not None and w.stored.thread_root is None:
            reads[w.room_nid, w.read_by] = ordinal, w.stored.main_count or 0
    rows: dict[str, object] = {
        # In one order for all processes, lest two of them wait for each other's rooms.
        "seen": [
            (
                r.room_nid, r.expected_version, array_literal(r.extremity_nids), r.state_id,
                r.main_count,
            )
            for _, r in sorted(batch.rooms.items())
            if r.expected_version is not None
        ],
        "taken": len(events) + extra_rows,
        "new": [_event_row(ordinal, w, key_nids) for ordinal, w in enumerate(events, 1)],
        "own": [(*key, *read) for key, read in reads.items() if key not in members],
        "pushes": [
            (
                p.user_id, w.room_nid, ordinal, w.stored.thread_root or "", p.notify_delta,
                p.highlight,
            )
            for ordinal, w in enumerate(events, 1)
            for p in w.pushes
        ],
    }  # fmt: skip
    if commit is COMMIT_EVENTS:
        rows |= _rows_of_effects(batch, key_nids, members, reads)
    try:
        row = await queries.fetchrow(commit.text, *commit.arguments(rows))
    except asyncpg.DivisionByZeroError:
        return None
    return None if row is None else row[0]


def _event_row(
    ordinal: int, write: EventWrite, key_nids: Mapping[StateKey, int]
) -> tuple[object, ...]:
    stored = write.stored
    event = stored.event
    return (
        ordinal, stored.event_nid, stored.event_id, write.room_nid, stored.status,
        key_nids[event.key] if event.is_state else None, stored.state_before, stored.state_after,
        stored.room_state_before, stored.room_state_after,
        None if write.auth_nids is None else array_literal(write.auth_nids), stored.main_count,
        stored.thread_root, stored.notifies, stored.sticky_until_ms, stored.device_nid,
        stored.txn_id, write.txn_scope, stored.redacted_by, stored.sent_ms,
        event.json.decode(),
    )  # fmt: skip


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


def _last_memberships(
    events: Sequence[EventWrite],
) -> dict[tuple[int, str], tuple[int, int, Membership]]:
    """Return the last membership of each user and room, its ordinal, and the room's main_count."""
    return {
        (w.room_nid, m.user_id): (ordinal, w.stored.main_count or 0, m)
        for ordinal, w in enumerate(events, 1)
        for m in w.memberships
    }


def _rows_of_effects(
    batch: EventBatch,
    key_nids: Mapping[StateKey, int],
    members: Mapping[tuple[int, str], tuple[int, int, Membership]],
    reads: Mapping[tuple[int, str], tuple[int, int]],
) -> dict[str, list[tuple[object, ...]]]:
    """Return what COMMIT_EVENTS is given beyond what COMMIT_MESSAGES is."""
    numbered = list(enumerate(batch.events, 1))
    new_nids = {w.stored.event_id: w.stored.event_nid for w in batch.events}
    states = [row for w in batch.events for row in w.states]
    rows_of_members: list[tuple[object, ...]] = []
    for (room_nid, user_id), (ordinal, main_count, m) in members.items():
        read_ordinal, read_count = reads.get((room_nid, user_id), (ordinal, main_count))
        rows_of_members.append(
            (
                room_nid, user_id, m.membership, m.event_id, m.sender, ordinal, m.local,
                m.forgotten, m.display_name, m.avatar_url, max(ordinal, read_ordinal), read_count,
            )
        )  # fmt: skip
    invites = {
        (w.stored.event.room_id, user_id): json
        for w in batch.events
        for user_id, json in w.invite_states.items()
    }
    threads = {
        (w.room_nid, w.read_by, w.stored.thread_root): ordinal
        for ordinal, w in numbered
        if w.read_by is not None and w.stored.thread_root is not None
    }
    return {
        "made": [
            (
                r.room_nid, r.room_id, r.room_version, array_literal(r.extremity_nids), r.state_id,
                r.main_count, r.published,
            )
            for r in batch.rooms.values()
            if r.expected_version is None
        ],
        "states": [(s.state_id, s.parent_id, s.chain, s.size) for s in states],
        "entries": [
            (s.state_id, key_nids[key], None if event is None else new_nids.get(event), event)
            for s in states
            for key, event in s.changes.items()
        ],
        "members": rows_of_members,
        "invites": [(*key, json) for key, json in invites.items()],
        "redactions": [
            (w.redacts, w.stored.event_id, w.room_nid)
            for w in batch.events
            if w.redacts is not None
        ],
        "threads": [(*key, ordinal) for key, ordinal in threads.items()],
        "aliases": [
            (r.alias[0], r.room_id, r.alias[1])
            for r in batch.rooms.values()
            if r.alias is not None
        ],
        "sticky": [
            (s.event_id, w.room_nid, s.sender, s.until_ms, ordinal, s.waits_for, s.instead_of)
            for ordinal, w in numbered
            if (s := w.sticky) is not None
        ],
        "outcomes": [
            (d.delay_id, d.due_ms, d.finalised_ms, w.stored.event_id)
            for w in batch.events
            if (d := w.delayed) is not None
        ],
    }  # fmt: skip


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
