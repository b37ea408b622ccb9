"""The room directory: aliases of this server, and the rooms that are published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.storage.sql import statement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minihs.protocol.identifiers import RoomAlias, RoomId, ServerName, UserId
    from minihs.storage.database import Queries

# Primary key.
FETCH_ALIAS = statement(
    "directory.fetch_alias", "SELECT room_id, creator FROM room_aliases WHERE alias = $1"
)

# Primary key.
LIST_TAKEN_ALIASES = statement(
    "directory.list_taken_aliases",
    "SELECT alias, room_id FROM room_aliases WHERE alias = ANY($1::text[])",
)

# Index room_aliases_room_id.
LIST_ALIASES = statement(
    "directory.list_aliases", "SELECT alias FROM room_aliases WHERE room_id = $1 ORDER BY alias"
)

INSERT_ALIAS = statement(
    "directory.insert_alias",
    """
    INSERT INTO room_aliases (alias, room_id, creator)
    VALUES ($1, $2, $3)
    ON CONFLICT DO NOTHING
    """,
)

# Index room_aliases_room_id.
COUNT_ALIASES = statement(
    "directory.count_aliases", "SELECT count(*) FROM room_aliases WHERE room_id = $1"
)

# Primary key.
DELETE_ALIAS = statement(
    "directory.delete_alias", "DELETE FROM room_aliases WHERE alias = $1 AND room_id = $2"
)

# Index room_aliases_room_id; unique index rooms_room_id_key. A replacement is published instead of
# the room that it replaces.
MOVE_TO_REPLACEMENT = statement(
    "directory.move_to_replacement",
    """
    WITH moved AS (
      UPDATE room_aliases SET room_id = $2 WHERE room_id = $1
    ), old AS (
      SELECT published FROM rooms WHERE room_id = $1 FOR UPDATE
    )
    UPDATE rooms
    SET published = CASE WHEN room_id = $2 THEN (SELECT published FROM old) ELSE false END
    WHERE room_id = ANY(ARRAY[$1, $2]) AND (SELECT published FROM old)
    """,
)

# Unique index rooms_room_id_key.
UPDATE_PUBLISHED = statement(
    "directory.update_published", "UPDATE rooms SET published = $2 WHERE room_id = $1"
)

# Unique index rooms_room_id_key.
FETCH_PUBLISHED = statement(
    "directory.fetch_published", "SELECT published FROM rooms WHERE room_id = $1"
)

# Index rooms_published; primary key of memberships; a scan of appservice_rooms, if it is about any.
# Counting takes some 50 ms for 250,000 members.
LIST_PUBLISHED_ROOMS = statement(
    "directory.list_published_rooms",
    """
    WITH listed AS (
      SELECT room_nid FROM rooms WHERE published AND $1::text IS NULL
      UNION
      SELECT room_nid
      FROM appservice_rooms
      WHERE $2::boolean OR service_id || '|' || network_id = $1
    )
    SELECT r.room_id, r.state_id, counted.joined_count
    FROM rooms r
    JOIN (
      SELECT m.room_nid, count(*) AS joined_count
      FROM memberships m
      JOIN listed l ON l.room_nid = m.room_nid
      WHERE m.membership = 'join'
      GROUP BY m.room_nid
    ) AS counted ON counted.room_nid = r.room_nid
    ORDER BY counted.joined_count DESC, r.room_id
    """,
)

# Unique index rooms_room_id_key, memberships_local, primary key of memberships.
LIST_OUR_ROOMS = statement(
    "directory.list_our_rooms",
    """
    SELECT
      r.room_id, r.state_id,
      (
        SELECT count(*) FROM memberships m WHERE m.room_nid = r.room_nid AND m.membership = 'join'
      ) AS joined_count,
      r.room_version
    FROM rooms r
    WHERE
      r.room_id = ANY($1::text[])
      AND EXISTS (
        SELECT FROM memberships l
        WHERE l.room_nid = r.room_nid AND l.local AND l.membership = 'join'
      )
    """,
)

# Unique index rooms_room_id_key, primary key of memberships.
LIST_SERVERS_IN_ROOM = statement(
    "directory.list_servers_in_room",
    """
    SELECT DISTINCT substr(m.user_id, strpos(m.user_id, ':') + 1) AS server_name
    FROM rooms r
    JOIN memberships m ON m.room_nid = r.room_nid AND m.membership = 'join'
    WHERE r.room_id = $1
    ORDER BY server_name
    """,
)


@dataclass(frozen=True, slots=True)
class PublishedRoom:
    """A room of the directory. `state_id` is its current state."""

    room_id: RoomId
    state_id: int
    joined_count: int


async def fetch_alias(queries: Queries, alias: str) -> tuple[RoomId, UserId] | None:
    """Return the room that an alias of this server points to, and who made the alias."""
    row = await queries.fetchrow(FETCH_ALIAS, alias)
    return None if row is None else (row[0], row[1])


async def list_taken_aliases(queries: Queries, aliases: Sequence[str]) -> dict[str, RoomId]:
    """Return those of the aliases that exist, each with its room."""
    return {row[0]: row[1] for row in await queries.fetch(LIST_TAKEN_ALIASES, aliases)}


async def list_aliases(queries: Queries, room_id: str) -> list[RoomAlias]:
    """Return the aliases of this server that point to a room."""
    return [row[0] for row in await queries.fetch(LIST_ALIASES, room_id)]


async def insert_alias(queries: Queries, alias: str, room_id: str, creator: str) -> bool:
    """Make an alias; False when it exists already."""
    return await queries.execute(INSERT_ALIAS, alias, room_id, creator) == "INSERT 0 1"


async def count_aliases(queries: Queries, room_id: str) -> int:
    """Return how many aliases point to a room."""
    return int(str(await queries.fetchval(COUNT_ALIASES, room_id)))


async def delete_alias(queries: Queries, alias: str, room_id: str) -> None:
    """Remove an alias, if it still points to this room."""
    await queries.execute(DELETE_ALIAS, alias, room_id)


async def move_to_replacement(queries: Queries, old_room_id: str, new_room_id: str) -> None:
    """Let the aliases of a room, and its place in the directory, pass to its replacement."""
    await queries.execute(MOVE_TO_REPLACEMENT, old_room_id, new_room_id)


async def update_published(queries: Queries, room_id: str, *, published: bool) -> None:
    """Put a room into the directory, or take it out."""
    await queries.execute(UPDATE_PUBLISHED, room_id, published)


async def fetch_published(queries: Queries, room_id: str) -> bool | None:
    """Return whether a room is in the directory; None when this server does not know the room."""
    published = await queries.fetchval(FETCH_PUBLISHED, room_id)
    return published if isinstance(published, bool) else None


async def list_published_rooms(
    queries: Queries, network: str | None = None, *, all_networks: bool = False
) -> list[PublishedRoom]:
    """Return the rooms of the directory that somebody is in, those with most members first.

    `network` is an instance of a network that an application service bridges to, None: none of
    them; `all_networks`: those of all come in addition.
    """
    rows = await queries.fetch(LIST_PUBLISHED_ROOMS, network, all_networks)
    return [PublishedRoom(*row) for row in rows]


async def list_our_rooms(
    queries: Queries, room_ids: Sequence[str]
) -> list[tuple[PublishedRoom, str]]:
    """Return those of the rooms that somebody here is in, published or not, and their versions."""
    rows = await queries.fetch(LIST_OUR_ROOMS, list(room_ids))
    return [(PublishedRoom(*row[:3]), row[3]) for row in rows]


async def list_servers_in_room(queries: Queries, room_id: str) -> list[ServerName]:
    """Return the servers whose users are joined to a room."""
    return [row[0] for row in await queries.fetch(LIST_SERVERS_IN_ROOM, room_id)]
