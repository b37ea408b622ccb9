"""Stays that a kick or ban redacted (MSC4293), and the purge of what was said in them.

A row says what is redacted at once, however much that is. Every process knows these rows and
redacts what it reads (`event_store`), until the purge has gone through the room: then the events
themselves say so, and their content is gone from the database.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.storage.event_store import COLUMNS
from minihs.storage.sql import statement
from minihs.storage.stream_rows import StayRedaction

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from minihs.protocol.identifiers import EventId
    from minihs.storage.database import Queries, Transaction
    from minihs.storage.event_store import EventStore, StoredEvent


@dataclass(frozen=True, slots=True)
class Purge:
    """A stay whose purge has not come to its end, and where it goes on."""

    stay: StayRedaction
    room_nid: int
    room_version: str
    next_major: int
    next_minor: int
    next_nid: int | None


@dataclass(frozen=True, slots=True)
class Purgeable:
    """An event's place in its room (None: it has none), and its JSON if its sender is the one."""

    event_nid: int
    event_id: EventId
    order_major: int | None
    order_minor: int
    json: str | None


_STAY = """
      r.room_id, s.user_id, s.first_join_id, s.because_id, s.join_ids, s.spared_ids,
      s.replaces, s.created_ms, s.upto, s.purged
"""

# Primary key of redacted_stays.
LIST_STAYS = statement(
    "redacted_stays.list_stays",
    f"""
    SELECT {_STAY}
    FROM redacted_stays s
    JOIN rooms r ON r.room_nid = s.room_nid
    WHERE s.room_nid = $1 AND s.user_id = ANY($2::text[])
    """,  # noqa: S608  # a constant
)

# Primary key of memberships.
LIST_MEMBER_IDS = statement(
    "redacted_stays.list_member_ids",
    """
    SELECT user_id, event_id
    FROM memberships
    WHERE room_nid = $1 AND user_id = ANY($2::text[])
    """,
)

# Unique index state_keys_type_state_key_key, then events_state_key.
LIST_MEMBER_EVENTS = statement(
    "redacted_stays.list_member_events",
    f"""
    SELECT {COLUMNS}
    FROM state_keys k
    JOIN events e ON e.room_nid = $1 AND e.key_nid = k.key_nid
    JOIN rooms r ON r.room_nid = e.room_nid
    WHERE k.type = 'm.room.member' AND k.state_key = ANY($2::text[]) AND e.status <> 2
    """,  # noqa: S608  # a constant
)

# Index sticky_events_room.
LIST_STICKY = statement(
    "redacted_stays.list_sticky",
    "SELECT event_id FROM sticky_events WHERE room_nid = $1 AND sender = $2",
)

# Index redacted_stays_unpurged.
LIST_UNPURGED = statement(
    "redacted_stays.list_unpurged",
    f"""
    SELECT s.room_nid, r.room_version, s.next_major, s.next_minor, s.next_nid, {_STAY}
    FROM redacted_stays s
    JOIN rooms r ON r.room_nid = s.room_nid
    WHERE NOT s.purged AND (s.created_ms <= $1 OR s.created_ms > $2)
    ORDER BY s.created_ms
    LIMIT $3
    """,  # noqa: S608  # a constant
)

# Index events_order, from a place backwards. A sender stands in the JSON only.
LIST_PLACED = statement(
    "redacted_stays.list_placed",
    """
    SELECT
      event_nid, event_id, order_major, order_minor,
      CASE WHEN strpos(json, $2) > 0 THEN json END
    FROM events
    WHERE
      room_nid = $1 AND (order_major, order_minor) < ($3::bigint, $4::integer)
      AND (position IS NULL OR position <= $5)
    ORDER BY order_major DESC, order_minor DESC
    LIMIT $6
    """,
)

# Index events_order: the room's events without a place.
LIST_UNPLACED = statement(
    "redacted_stays.list_unplaced",
    """
    SELECT event_nid, event_id, order_major, order_minor, json
    FROM events
    WHERE room_nid = $1 AND order_major IS NULL AND strpos(json, $2) > 0 AND event_nid > $3
    ORDER BY event_nid
    LIMIT $4
    """,
)

# Primary key of events.
LOCK_EVENTS = statement(
    "redacted_stays.lock_events",
    """
    SELECT position, notifies, thread_root IS NULL
    FROM events
    WHERE event_nid = ANY($1::bigint[])
    ORDER BY event_nid
    FOR UPDATE
    """,
)

# The same.
PURGE_EVENTS = statement(
    "redacted_stays.purge_events",
    """
    UPDATE events e
    SET
      json = new.json, notifies = false, thread_root = NULL, sticky_until_ms = NULL,
      redacted_by = CASE
        WHEN e.redacted_by IS NULL OR e.redacted_by IN (
          SELECT s.because_id
          FROM redacted_stays s
          WHERE s.room_nid = $4 AND s.user_id = $5 AND s.because_id > $3
        ) THEN $3
        ELSE e.redacted_by
      END
    FROM unnest($1::bigint[], $2::text[]) AS new (event_nid, json)
    WHERE e.event_nid = new.event_nid
    """,
)

# Primary keys of memberships and event_pushes: of each local member the rows of these positions.
# Where an event does not notify, a purge has been there before (two kicks redact one event): what
# it took back stands in a row of less than nothing, and stays.
DELETE_PUSHES = statement(
    "redacted_stays.delete_pushes",
    """
    DELETE FROM event_pushes p
    USING memberships m
    WHERE
      m.room_nid = $1 AND m.local AND p.user_id = m.user_id AND p.room_nid = m.room_nid
      AND p.position = ANY($2::bigint[])
      AND (p.notify_delta >= 0 OR p.position = ANY($3::bigint[]))
    """,
)

# The same. What counted for everybody is taken back from whoever has not read it: in one row of
# each member, at the newest of the events.
TAKE_BACK_COUNTS = statement(
    "redacted_stays.take_back_counts",
    """
    INSERT INTO event_pushes (user_id, room_nid, position, thread_root, notify_delta, highlight)
    SELECT m.user_id, m.room_nid, max(counted.position), '', -count(*), false
    FROM memberships m
    JOIN unnest($2::bigint[]) AS counted (position) ON counted.position > m.read_main_position
    WHERE m.room_nid = $1 AND m.local AND m.membership = 'join'
    GROUP BY m.user_id, m.room_nid
    """,
)

# Primary key of sticky_events.
DELETE_STICKY = statement(
    "redacted_stays.delete_sticky",
    "DELETE FROM sticky_events WHERE event_id = ANY($1::text[])",
)

# Primary key of redacted_stays. If it was redacted anew meanwhile, the purge has to begin anew.
MARK_PROGRESS = statement(
    "redacted_stays.mark_progress",
    """
    UPDATE redacted_stays
    SET next_major = $5, next_minor = $6, next_nid = $7
    WHERE room_nid = $1 AND user_id = $2 AND because_id = $3 AND upto = $4
    """,
)


async def list_stays(
    queries: Queries, room_nid: int, user_ids: Collection[str]
) -> list[StayRedaction]:
    """Return the redacted stays of some users in a room."""
    rows = await queries.fetch(LIST_STAYS, room_nid, list(user_ids))
    return [StayRedaction.of_row(*row) for row in rows]


async def list_member_ids(
    queries: Queries, room_nid: int, user_ids: Collection[str]
) -> dict[str, EventId]:
    """Return the current member events of some users in a room."""
    return {
        row[0]: row[1] for row in await queries.fetch(LIST_MEMBER_IDS, room_nid, list(user_ids))
    }


async def list_member_events(
    queries: Queries, store: EventStore, room_nid: int, user_ids: Collection[str]
) -> list[StoredEvent]:
    """Return every member event of some users in a room but the rejected ones."""
    return store.from_rows(await queries.fetch(LIST_MEMBER_EVENTS, room_nid, list(user_ids)))


async def list_sticky(queries: Queries, room_nid: int, sender: str) -> list[EventId]:
    """Return a user's sticky events in a room, soft-failed ones included."""
    return [row[0] for row in await queries.fetch(LIST_STICKY, room_nid, sender)]


async def list_unpurged(
    queries: Queries, created_ms: int, ahead_ms: int, limit: int
) -> list[Purge]:
    """Return stays redacted at a moment or before it whose purge is not done, the oldest first.

    Also those that are of after `ahead_ms`: the clock has been put back.
    """
    rows = await queries.fetch(LIST_UNPURGED, created_ms, ahead_ms, limit)
    return [Purge(StayRedaction.of_row(*row[5:]), *row[:5]) for row in rows]


async def list_placed(
    queries: Queries, purge: Purge, sender_json: str, limit: int
) -> list[Purgeable]:
    """Return the events before the place where the purge goes on, newest first.

    `sender_json` is what the JSON of their sender's events contains.
    """
    rows = await queries.fetch(
        LIST_PLACED, purge.room_nid, sender_json, purge.next_major, purge.next_minor,
        purge.stay.upto, limit,
    )  # fmt: skip
    return [Purgeable(*row) for row in rows]


async def list_unplaced(
    queries: Queries, purge: Purge, sender_json: str, limit: int
) -> list[Purgeable]:
    """Return events of the room without a place in it, from where the purge goes on."""
    rows = await queries.fetch(
        LIST_UNPLACED, purge.room_nid, sender_json, purge.next_nid or 0, limit
    )
    return [Purgeable(*row) for row in rows]


async def purge_events(
    tx: Transaction, purge: Purge, redacted: Sequence[tuple[Purgeable, str]]
) -> None:
    """Replace the JSON of events by redacted JSON, and take back what else they left behind."""
    nids = [event.event_nid for event, _ in redacted]
    rows = await tx.fetch(LOCK_EVENTS, nids)
    stay = purge.stay
    await tx.execute(
        PURGE_EVENTS,
        nids,
        [json for _, json in redacted],
        stay.because_id,
        purge.room_nid,
        stay.user_id,
    )
    positions = [position for position, _, _ in rows if position is not None]
    if positions:
        notifying = [row[0] for row in rows if row[0] is not None and row[1]]
        await tx.execute(DELETE_PUSHES, purge.room_nid, positions, notifying)
    counted = [row[0] for row in rows if row[0] is not None and row[1] and row[2]]
    if counted:
        await tx.execute(TAKE_BACK_COUNTS, purge.room_nid, counted)
    await tx.execute(DELETE_STICKY, [event.event_id for event, _ in redacted])


async def mark_progress(
    queries: Queries, purge: Purge, place: tuple[int, int], next_nid: int | None
) -> None:
    """Note where a purge goes on."""
    stay = purge.stay
    await queries.execute(
        MARK_PROGRESS, purge.room_nid, stay.user_id, stay.because_id, stay.upto, *place, next_nid
    )
