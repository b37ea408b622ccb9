"""Rooms as their writers need them: version, forward extremities, current state, local members."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.storage.sql import statement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minihs.protocol.identifiers import RoomId
    from minihs.storage.database import Queries


@dataclass(frozen=True, slots=True)
class RoomRow:
    """A room at some version. `position`: the stream's end when it was read."""

    room_nid: int
    room_version: str
    version: int
    extremities: Sequence[tuple[str, int]]  # event_id and event_nid
    state_id: int
    main_count: int
    published: bool
    joined_count: int
    position: int


# Unique index rooms_room_id_key; primary keys of events and memberships.
FETCH_ROOM = statement(
    "rooms.fetch_room",
    """
    SELECT
      r.room_nid, r.room_version, r.version,
      (
        SELECT array_agg(ARRAY[e.event_id, e.event_nid::text] ORDER BY e.event_nid)
        FROM events e
        WHERE e.event_nid = ANY(r.extremities)
      ) AS extremities,
      r.state_id, r.main_count, r.published,
      (
        SELECT count(*) FROM memberships m WHERE m.room_nid = r.room_nid AND m.membership = 'join'
      ) AS joined_count,
      (SELECT position FROM stream) AS position
    FROM rooms r
    WHERE r.room_id = $1
    """,
)

# Unique index rooms_room_id_key.
FETCH_VERSION = statement("rooms.fetch_version", "SELECT version FROM rooms WHERE room_id = $1")

# Index memberships_local.
LIST_LOCAL_MEMBERS = statement(
    "rooms.list_local_members",
    """
    SELECT user_id, display_name
    FROM memberships
    WHERE room_nid = $1 AND local AND membership = 'join'
    """,
)

# Unique index rooms_room_id_key.
LIST_CURRENT_STATES = statement(
    "rooms.list_current_states",
    "SELECT room_id, state_id FROM rooms WHERE room_id = ANY($1::text[])",
)

# A scan of rooms, once in a while: an index would make every event write to it. Index
# memberships_local.
LIST_WITH_MANY_ENDS = statement(
    "rooms.list_with_many_ends",
    """
    SELECT r.room_id
    FROM rooms r
    WHERE
      cardinality(r.extremities) > $1
      AND EXISTS (
        SELECT FROM memberships m
        WHERE m.room_nid = r.room_nid AND m.local AND m.membership = 'join'
      )
    ORDER BY cardinality(r.extremities) DESC
    LIMIT $2
    """,
)


async def fetch_room(queries: Queries, room_id: RoomId) -> RoomRow | None:
    """Return a room as its writers need it, or None when this server does not know it."""
    row = await queries.fetchrow(FETCH_ROOM, room_id)
    if row is None:
        return None
    extremities = [(event_id, int(nid)) for event_id, nid in row[3] or ()]
    return RoomRow(row[0], row[1], row[2], extremities, row[4], row[5], row[6], row[7], row[8])


async def fetch_version(queries: Queries, room_id: RoomId) -> int | None:
    """Return the version of a room, or None when this server does not know it."""
    version = await queries.fetchval(FETCH_VERSION, room_id)
    return version if isinstance(version, int) else None


async def list_local_members(queries: Queries, room_nid: int) -> dict[str, str | None]:
    """Return the display name of each user of this server who is joined."""
    return {row[0]: row[1] for row in await queries.fetch(LIST_LOCAL_MEMBERS, room_nid)}


async def list_current_states(queries: Queries, room_ids: Sequence[str]) -> dict[str, int]:
    """Return the id of each room's current state."""
    return {row[0]: row[1] for row in await queries.fetch(LIST_CURRENT_STATES, room_ids)}


async def list_with_many_ends(queries: Queries, ends: int, limit: int) -> list[RoomId]:
    """Return rooms of ours whose graphs have more than so many ends, those with the most first."""
    return [row[0] for row in await queries.fetch(LIST_WITH_MANY_ENDS, ends, limit)]
