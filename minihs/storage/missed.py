"""What servers that are behind are owed: the newest of each room, and what nothing makes up for.

A server is its users' part of a room: found by the end of their ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.storage.sql import statement
from minihs.storage.stream_rows import ReceiptWrite

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minihs.protocol.identifiers import EventId
    from minihs.storage.database import Queries

# Unique index rooms_room_id_key; primary key of sent_rooms.
UPSERT_SENT_ROOMS = statement(
    "missed.upsert_sent_rooms",
    """
    INSERT INTO sent_rooms AS old (room_nid, position)
    SELECT r.room_nid, new.position
    FROM unnest($1::text[], $2::bigint[]) AS new (room_id, position)
    JOIN rooms r ON r.room_id = new.room_id
    WHERE set_config('synchronous_commit', 'off', true) = 'off'
    ORDER BY r.room_nid
    ON CONFLICT (room_nid) DO UPDATE
    SET position = excluded.position
    WHERE old.position < excluded.position
    """,
)
# Index memberships_servers_joined, skipping from room to room; primary key of sent_rooms; unique
# index events_position_key. A server of which somebody has been joined since before the event is
# owed it; of others the event's own state must say.
LIST_NEWEST_SENT = statement(
    "missed.list_newest_sent",
    """
    WITH RECURSIVE shared AS (
      (
        SELECT m.room_nid
        FROM memberships m
        WHERE substr(m.user_id, strpos(m.user_id, ':') + 1) = $1
          AND m.membership = 'join' AND NOT m.local
        ORDER BY m.room_nid
        LIMIT 1
      )
      UNION ALL
      SELECT (
        SELECT m.room_nid
        FROM memberships m
        WHERE substr(m.user_id, strpos(m.user_id, ':') + 1) = $1
          AND m.membership = 'join' AND NOT m.local AND m.room_nid > s.room_nid
        ORDER BY m.room_nid
        LIMIT 1
      )
      FROM shared s
      WHERE s.room_nid IS NOT NULL
    )
    SELECT
      e.event_id, e.position,
      EXISTS (
        SELECT
        FROM memberships m
        WHERE m.room_nid = s.room_nid
          AND substr(m.user_id, strpos(m.user_id, ':') + 1) = $1
          AND m.membership = 'join' AND NOT m.local AND m.joined_position <= e.position
      ) AS certain
    FROM shared s
    JOIN sent_rooms n ON n.room_nid = s.room_nid
    JOIN events e ON e.position = n.position AND e.room_nid = n.room_nid
    WHERE n.position > $2 AND n.position <= $3
    ORDER BY n.position
    LIMIT $4
    """,
)
# Index sticky_events_position; memberships_servers_joined says whether the server is in the room.
LIST_STICKY_MISSED = statement(
    "missed.list_sticky_missed",
    """
    SELECT s.event_id, s.position
    FROM sticky_events s
    WHERE s.position > $2 AND s.position <= $3 AND s.until_ms > $5
      AND substr(s.sender, strpos(s.sender, ':') + 1) = $4
      AND EXISTS (
        SELECT
        FROM memberships m
        WHERE m.room_nid = s.room_nid
          AND substr(m.user_id, strpos(m.user_id, ':') + 1) = $1
          AND m.membership = 'join' AND NOT m.local
      )
    ORDER BY s.position
    LIMIT $6
    """,
)
# Index memberships_servers_left; unique index events_position_key. State resolution puts users out
# by an event that meets a room whose state is not what its sender took it for.
LIST_REMOVALS = statement(
    "missed.list_removals",
    """
    SELECT e.event_id, m.position
    FROM memberships m
    JOIN events e ON e.position = m.position
    WHERE substr(m.user_id, strpos(m.user_id, ':') + 1) = $1
      AND m.membership <> 'join' AND NOT m.local
      AND m.position > $2 AND m.position <= $3
      AND (
        substr(m.sender, strpos(m.sender, ':') + 1) = $4 OR e.state_before <> e.room_state_before
      )
    ORDER BY m.position
    LIMIT $5
    """,
)
# Index receipts_position; index memberships_servers_joined.
LIST_RECEIPTS = statement(
    "missed.list_receipts",
    """
    SELECT t.position, r.room_id, t.user_id, t.receipt_type, t.thread_id, t.event_id, t.ts_ms
    FROM receipts t
    JOIN rooms r ON r.room_nid = t.room_nid
    WHERE t.position > $2 AND t.position <= $3
      AND t.receipt_type = 'm.read'
      AND substr(t.user_id, strpos(t.user_id, ':') + 1) = $4
      AND EXISTS (
        SELECT
        FROM memberships m
        WHERE m.room_nid = t.room_nid
          AND substr(m.user_id, strpos(m.user_id, ':') + 1) = $1
          AND m.membership = 'join' AND NOT m.local
      )
    ORDER BY t.position DESC
    LIMIT $5
    """,
)
# Unique index events_position_key.
LIST_AT_POSITIONS = statement(
    "missed.list_at_positions",
    "SELECT event_id FROM events WHERE position = ANY($1::bigint[]) ORDER BY position",
)
# Unique index events_position_key, a range of it; for those rare times when so much has happened
# that nobody looks at it event by event.
LIST_ROOMS_WITH_EVENTS = statement(
    "missed.list_rooms_with_events",
    """
    SELECT r.room_id, max(e.position)
    FROM events e
    JOIN rooms r ON r.room_nid = e.room_nid
    WHERE e.position > $1 AND e.position <= $2 AND e.status = 0
    GROUP BY r.room_id
    """,
)
# A scan of the memberships of those rooms, and of the destinations.
LIST_SERVERS_OF_ROOMS = statement(
    "missed.list_servers_of_rooms",
    """
    SELECT DISTINCT substr(m.user_id, strpos(m.user_id, ':') + 1)
    FROM sent_rooms n
    JOIN memberships m ON m.room_nid = n.room_nid AND NOT m.local
    WHERE n.position > $1 AND (m.membership = 'join' OR m.position > $1)
    """,
)


async def upsert_sent_rooms(queries: Queries, newest: Mapping[str, int]) -> None:
    """Note the position of the newest event in rooms that somebody who is behind is owed."""
    await queries.execute(UPSERT_SENT_ROOMS, list(newest), list(newest.values()))


async def list_newest_sent(
    queries: Queries, server_name: str, after: int, upto: int, limit: int
) -> list[tuple[EventId, int, bool]]:
    """Return the newest event that a server is owed of each room that it is in, oldest first.

    With each its position, and whether the server is certain to have been in the room then.
    """
    rows = await queries.fetch(LIST_NEWEST_SENT, server_name, after, upto, limit)
    return [(row[0], row[1], row[2]) for row in rows]


async def list_removals(
    queries: Queries, server_name: str, after: int, upto: int, by_server: str, limit: int
) -> list[tuple[EventId, int]]:
    """Return the events, with positions, that put another server's users out of rooms.

    Those that a server sent, and others that made state resolution do so.
    """
    rows = await queries.fetch(LIST_REMOVALS, server_name, after, upto, by_server, limit)
    return [(row[0], row[1]) for row in rows]


async def list_sticky_missed(
    queries: Queries,
    server_name: str,
    after: int,
    upto: int,
    of_server: str,
    now_ms: int,
    limit: int,
) -> list[tuple[EventId, int]]:
    """Return a server's live sticky events, with positions, in rooms that another is in."""
    rows = await queries.fetch(
        LIST_STICKY_MISSED, server_name, after, upto, of_server, now_ms, limit
    )
    return [(row[0], row[1]) for row in rows]


async def list_receipts(
    queries: Queries, server_name: str, after: int, upto: int, of_server: str, limit: int
) -> list[tuple[int, ReceiptWrite]]:
    """Return the newest read receipts of a server's users in rooms that another is in."""
    rows = await queries.fetch(LIST_RECEIPTS, server_name, after, upto, of_server, limit)
    return [(row[0], ReceiptWrite(*row[1:])) for row in rows]


async def list_at_positions(queries: Queries, positions: Sequence[int]) -> list[EventId]:
    """Return the events at some positions of the stream, in their order."""
    return [row[0] for row in await queries.fetch(LIST_AT_POSITIONS, list(positions))]


async def list_rooms_with_events(queries: Queries, after: int, upto: int) -> dict[str, int]:
    """Return the rooms with events in a range of the stream, and the newest one's position."""
    return {row[0]: row[1] for row in await queries.fetch(LIST_ROOMS_WITH_EVENTS, after, upto)}


async def list_servers_of_rooms(queries: Queries, after: int) -> list[str]:
    """Return the other servers that are, or just were, in rooms with something sent since."""
    return [row[0] for row in await queries.fetch(LIST_SERVERS_OF_ROOMS, after)]
