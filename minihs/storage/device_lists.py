"""Whose lists of devices changed, and who shares rooms with whom because of whom they matter.

Changes are written through the stream (`stream_rows.DeviceListChange`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.storage.sql import statement

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from minihs.storage.database import Queries

# Index memberships_user_id; primary key of rooms.
LIST_JOINED_ROOMS = statement(
    "device_lists.list_joined_rooms",
    """
    SELECT asked.user_id, m.room_id, m.joined_position
    FROM unnest($1::text[]) AS asked (user_id)
    LEFT JOIN (
      SELECT m.user_id, r.room_id, m.joined_position
      FROM memberships m
      JOIN rooms r ON r.room_nid = m.room_nid
      WHERE m.user_id = ANY($1::text[]) AND m.membership = 'join'
    ) AS m ON m.user_id = asked.user_id
    """,
)

# Unique index rooms_room_id_key; primary key of memberships: all members of the rooms.
LIST_CHANGED_MEMBERS = statement(
    "device_lists.list_changed_members",
    """
    SELECT DISTINCT m.user_id
    FROM rooms r
    JOIN memberships m ON m.room_nid = r.room_nid
    WHERE r.room_id = ANY($1::text[]) AND m.position > $2 AND m.position <= $3
    """,
)

# Unique index rooms_room_id_key; primary key of memberships: all members of the rooms.
LIST_MEMBERS = statement(
    "device_lists.list_members",
    """
    SELECT DISTINCT m.user_id
    FROM rooms r
    JOIN memberships m ON m.room_nid = r.room_nid
    WHERE r.room_id = ANY($1::text[]) AND m.membership = 'join'
    LIMIT $2
    """,
)

# Index device_lists_position; primary key of memberships.
LIST_CHANGED = statement(
    "device_lists.list_changed",
    """
    SELECT d.user_id
    FROM device_lists d
    WHERE d.position > $2 AND d.position <= $3 AND EXISTS (
      SELECT
      FROM memberships mine
      JOIN memberships theirs ON theirs.room_nid = mine.room_nid
      WHERE mine.user_id = $1 AND mine.membership = 'join'
        AND theirs.user_id = d.user_id AND theirs.membership = 'join'
    )
    """,
)


async def list_joined_rooms(queries: Queries, user_ids: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return the rooms that users are joined to, and since which position each of them is."""
    found: dict[str, dict[str, int]] = {user_id: {} for user_id in user_ids}
    for user_id, room_id, position in await queries.fetch(LIST_JOINED_ROOMS, user_ids):
        if room_id is not None:
            found[user_id][room_id] = position
    return found


async def list_changed_members(
    queries: Queries, room_ids: Collection[str], after: int, upto: int
) -> set[str]:
    """Return the users whose membership of any of some rooms changed in (after, upto]."""
    rows = await queries.fetch(LIST_CHANGED_MEMBERS, list(room_ids), after, upto)
    return {row[0] for row in rows}


async def list_members(queries: Queries, room_ids: Collection[str], limit: int) -> set[str]:
    """Return the users who are joined to any of some rooms, not more than `limit`."""
    return {row[0] for row in await queries.fetch(LIST_MEMBERS, list(room_ids), limit)}


async def list_changed(queries: Queries, reader: str, after: int, upto: int) -> set[str]:
    """Return who shares a room with a user and changed their devices in (after, upto]."""
    return {row[0] for row in await queries.fetch(LIST_CHANGED, reader, after, upto)}
