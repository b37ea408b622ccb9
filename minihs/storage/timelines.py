"""Reading ranges of the stream for `/sync`: many rooms with one statement."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.storage.event_store import COLUMNS
from minihs.storage.sql import statement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minihs.storage.database import Queries, Row
    from minihs.storage.event_store import EventStore, StoredEvent

# Index events_order: for each room the newest events of a range, walked backwards.
LIST_NEWEST = statement(
    "timelines.list_newest",
    f"""
    SELECT asked.ordinal, {COLUMNS}
    FROM unnest($1::text[], $2::bigint[], $3::bigint[])
      WITH ORDINALITY AS asked (room_id, after, upto, ordinal)
    JOIN rooms r ON r.room_id = asked.room_id
    CROSS JOIN LATERAL (
      SELECT *
      FROM events n
      WHERE
        n.room_nid = r.room_nid AND n.order_major > asked.after AND n.order_major <= asked.upto
        AND n.status = 0
      ORDER BY n.order_major DESC, n.order_minor DESC
      LIMIT $4
    ) e
    ORDER BY asked.ordinal, e.order_major, e.order_minor
    """,  # noqa: S608  # a constant
)

# Index events_order: the room's current state as of a position.
LIST_STATES_AT = statement(
    "timelines.list_states_at",
    """
    SELECT asked.room_id, e.room_state_after
    FROM unnest($1::text[], $2::bigint[]) AS asked (room_id, position)
    JOIN rooms r ON r.room_id = asked.room_id
    CROSS JOIN LATERAL (
      SELECT n.room_state_after
      FROM events n
      WHERE
        n.room_nid = r.room_nid AND n.order_major <= asked.position
        AND n.room_state_after IS NOT NULL
      ORDER BY n.order_major DESC, n.order_minor DESC
      LIMIT 1
    ) e
    """,
)

# Indexes memberships_user_id, events_order, receipts_room_position; primary key of typing.
LIST_CHANGED_ROOMS = statement(
    "timelines.list_changed_rooms",
    """
    SELECT r.room_id
    FROM memberships m
    JOIN rooms r ON r.room_nid = m.room_nid
    WHERE
      m.user_id = $1 AND m.membership = 'join'
      AND (
        EXISTS (
          SELECT FROM events e
          WHERE e.room_nid = m.room_nid AND e.order_major > $2 AND e.order_major <= $3
        )
        OR EXISTS (
          SELECT FROM receipts c
          WHERE c.room_nid = m.room_nid AND c.position > $2 AND c.position <= $3
        )
        OR EXISTS (
          SELECT FROM typing t
          WHERE t.room_nid = m.room_nid AND t.position > $2 AND t.position <= $3
        )
      )
    """,
)

# Index memberships_user_position.
LIST_LEFT_ROOMS = statement(
    "timelines.list_left_rooms",
    """
    SELECT
      r.room_id, m.position, m.event_id, m.membership, m.sender,
      CASE WHEN m.forgotten THEN coalesce(m.forgotten_position, 0) END
    FROM memberships m
    JOIN rooms r ON r.room_nid = m.room_nid
    WHERE
      m.user_id = $1 AND m.position > $2 AND m.position <= $3
      AND m.membership IN ('leave', 'ban')
    """,
)

# Index receipts_room_position. Private receipts are for their owner alone.
LIST_RECEIPTS = statement(
    "timelines.list_receipts",
    """
    SELECT asked.room_id, c.event_id, c.receipt_type, c.user_id, c.thread_id, c.ts_ms
    FROM unnest($1::text[], $2::bigint[]) AS asked (room_id, after)
    JOIN rooms r ON r.room_id = asked.room_id
    JOIN receipts c ON c.room_nid = r.room_nid
    WHERE
      c.position > asked.after AND c.position <= $3
      AND (c.receipt_type = 'm.read' OR c.user_id = $4)
    """,
)

# Primary key of typing.
LIST_TYPING = statement(
    "timelines.list_typing",
    """
    SELECT asked.room_id, t.user_ids
    FROM unnest($1::text[], $2::bigint[]) AS asked (room_id, after)
    JOIN rooms r ON r.room_id = asked.room_id
    JOIN typing t ON t.room_nid = r.room_nid
    WHERE t.position > asked.after AND t.position <= $3
      AND (asked.after > 0 OR cardinality(t.user_ids) > 0)
    """,
)

# Index account_data_user_position.
LIST_ACCOUNT_DATA = statement(
    "timelines.list_account_data",
    """
    SELECT room_id, type, json
    FROM account_data
    WHERE user_id = $1 AND position > $2 AND position <= $3
    """,
)

# Index memberships_user_id and the primary key: those others that the summary of a room names.
LIST_SUMMARIES = statement(
    "timelines.list_summaries",
    """
    SELECT
      r.room_id,
      count(*) FILTER (WHERE m.membership = 'join') AS joined,
      count(*) FILTER (WHERE m.membership = 'invite') AS invited
    FROM rooms r
    JOIN memberships m ON m.room_nid = r.room_nid
    WHERE r.room_id = ANY($1::text[])
    GROUP BY r.room_id
    """,
)

# Primary key of memberships. Joined and invited members first, in the order in which they came.
LIST_HEROES = statement(
    "timelines.list_heroes",
    """
    SELECT r.room_id, h.user_id, h.membership
    FROM unnest($1::text[]) AS asked (room_id)
    JOIN rooms r ON r.room_id = asked.room_id
    CROSS JOIN LATERAL (
      SELECT m.user_id, m.membership
      FROM memberships m
      WHERE m.room_nid = r.room_nid AND m.membership <> 'knock'
      ORDER BY m.membership NOT IN ('join', 'invite'), m.order_major, m.user_id
      LIMIT $2
    ) h
    """,
)


# Primary key of gaps.
LIST_AFTER_GAPS = statement(
    "timelines.list_after_gaps",
    "SELECT event_nid FROM gaps WHERE event_nid = ANY($1::bigint[])",
)


async def list_after_gaps(queries: Queries, event_nids: Sequence[int]) -> set[int]:
    """Return those of the events before which something is missing."""
    return {row[0] for row in await queries.fetch(LIST_AFTER_GAPS, event_nids)}


async def list_newest(
    queries: Queries,
    store: EventStore,
    ranges: Sequence[tuple[str, int, int]],
    limit: int,
) -> list[list[StoredEvent]]:
    """Return the newest `limit` accepted events of each (room, after, upto], oldest first."""
    rows = await queries.fetch(
        LIST_NEWEST, [r[0] for r in ranges], [r[1] for r in ranges], [r[2] for r in ranges], limit
    )
    found: list[list[StoredEvent]] = [[] for _ in ranges]
    for row in rows:
        found[row[0] - 1].append(store.from_row(row, 1))
    return found


async def list_states_at(queries: Queries, places: Sequence[tuple[str, int]]) -> dict[str, int]:
    """Return the id of each room's current state as of a position, if it was there then."""
    rows = await queries.fetch(LIST_STATES_AT, [p[0] for p in places], [p[1] for p in places])
    return {row[0]: row[1] for row in rows}


async def list_changed_rooms(queries: Queries, user_id: str, after: int, upto: int) -> list[str]:
    """Return the rooms a user is joined to in which something happened in (after, upto]."""
    return [row[0] for row in await queries.fetch(LIST_CHANGED_ROOMS, user_id, after, upto)]


async def list_left_rooms(queries: Queries, user_id: str, after: int, upto: int) -> Sequence[Row]:
    """Return room, position, event, membership, sender, when forgotten, of rooms left since."""
    return await queries.fetch(LIST_LEFT_ROOMS, user_id, after, upto)


async def list_receipts(
    queries: Queries, places: Sequence[tuple[str, int]], upto: int, user_id: str
) -> Sequence[Row]:
    """Return room, event, type, user, thread and time of receipts that a user may see."""
    return await queries.fetch(
        LIST_RECEIPTS, [p[0] for p in places], [p[1] for p in places], upto, user_id
    )


async def list_typing(
    queries: Queries, places: Sequence[tuple[str, int]], upto: int
) -> dict[str, list[str]]:
    """Return who types in those rooms where that changed after the given positions."""
    rows = await queries.fetch(LIST_TYPING, [p[0] for p in places], [p[1] for p in places], upto)
    return {row[0]: row[1] for row in rows}


async def list_account_data(queries: Queries, user_id: str, after: int, upto: int) -> Sequence[Row]:
    """Return room (empty: global), type and JSON of a user's account data set in (after, upto]."""
    return await queries.fetch(LIST_ACCOUNT_DATA, user_id, after, upto)


async def list_summaries(queries: Queries, room_ids: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return how many are joined and how many invited."""
    rows = await queries.fetch(LIST_SUMMARIES, room_ids)
    return {row[0]: (row[1], row[2]) for row in rows}


async def list_heroes(
    queries: Queries, room_ids: Sequence[str], limit: int
) -> dict[str, list[tuple[str, str]]]:
    """Return up to `limit` users of each room with their membership, those present first."""
    found: dict[str, list[tuple[str, str]]] = {room_id: [] for room_id in room_ids}
    for row in await queries.fetch(LIST_HEROES, room_ids, limit):
        found[row[0]].append((row[1], row[2]))
    return found
