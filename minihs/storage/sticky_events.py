"""Sticky events (MSC4354): which are live in which room, and the end of those that are not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.storage.sql import statement

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from minihs.protocol.identifiers import EventId
    from minihs.storage.database import Queries


@dataclass(frozen=True, slots=True)
class LiveStickyEvent:
    """A deliverable sticky event. `room_nid` serves in sync tokens."""

    room_id: str
    room_nid: int
    event_id: EventId
    sender: str
    position: int


# Index sticky_events_room: of each room the oldest ones in a range of positions.
LIST_LIVE = statement(
    "sticky_events.list_live",
    """
    SELECT r.room_id, r.room_nid, s.event_id, s.sender, s.position
    FROM unnest($1::text[], $2::bigint[]) AS asked (room_id, after)
    JOIN rooms r ON r.room_id = asked.room_id
    CROSS JOIN LATERAL (
      SELECT n.event_id, n.sender, n.position
      FROM sticky_events n
      WHERE
        n.room_nid = r.room_nid AND n.position > asked.after AND n.position <= $3
        AND n.until_ms > $4 AND NOT n.sender = ANY($5::text[])
      ORDER BY n.position
      LIMIT $6
    ) s
    ORDER BY s.position
    """,
)

# Primary key of rooms.
LIST_ROOMS_BY_NID = statement(
    "sticky_events.list_rooms_by_nid",
    "SELECT room_nid, room_id FROM rooms WHERE room_nid = ANY($1::bigint[])",
)

# Index sticky_events_until.
DELETE_EXPIRED = statement(
    "sticky_events.delete_expired",
    """
    DELETE FROM sticky_events
    WHERE event_id IN (
      SELECT event_id FROM sticky_events WHERE until_ms <= $1 ORDER BY until_ms LIMIT $2
    )
    """,
)


async def list_live(
    queries: Queries,
    rooms: Sequence[tuple[str, int]],
    upto: int,
    now_ms: int,
    *,
    ignored: Collection[str],
    limit: int,
) -> list[LiveStickyEvent]:
    """Return the sticky events of each (room, after), oldest first, at most `limit` of a room."""
    rows = await queries.fetch(
        LIST_LIVE,
        [room_id for room_id, _ in rooms],
        [after for _, after in rooms],
        upto,
        now_ms,
        list(ignored),
        limit,
    )
    return [LiveStickyEvent(*row) for row in rows]


async def list_rooms_by_nid(queries: Queries, room_nids: Collection[int]) -> dict[int, str]:
    """Return the rooms that surrogate keys in a sync token stand for."""
    rows = await queries.fetch(LIST_ROOMS_BY_NID, list(room_nids))
    return {row[0]: row[1] for row in rows}


async def delete_expired(queries: Queries, now_ms: int, limit: int) -> int:
    """Forget up to `limit` events that are not sticky any more; return how many there were."""
    return int((await queries.execute(DELETE_EXPIRED, now_ms, limit)).split()[-1])
