"""Current memberships: who is in which room."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.storage.sql import statement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minihs.protocol.identifiers import EventId, RoomId, UserId
    from minihs.storage.database import Queries, Row

# Index memberships_user_id. The stream's position says as of when this is true.
LIST_ROOMS_IN_VIEW = statement(
    "membership.list_rooms_in_view",
    """
    SELECT s.position, r.room_id, m.membership, m.position, m.event_id, m.joined_position
    FROM stream s
    LEFT JOIN memberships m
      ON m.user_id = $1 AND m.membership = ANY(ARRAY['join', 'invite', 'knock'])
    LEFT JOIN rooms r ON r.room_nid = m.room_nid
    """,
)

# Primary key of memberships.
FETCH_MEMBERSHIP = statement(
    "membership.fetch_membership",
    """
    SELECT m.membership, m.event_id, m.sender, m.position, m.order_major, m.forgotten
    FROM rooms r
    JOIN memberships m ON m.room_nid = r.room_nid
    WHERE r.room_id = $1 AND m.user_id = $2
    """,
)

# Unique index rooms_room_id_key; primary key of memberships.
LIST_MEMBERSHIPS = statement(
    "membership.list_memberships",
    """
    SELECT r.room_id, m.membership
    FROM rooms r
    JOIN memberships m ON m.room_nid = r.room_nid AND m.user_id = $1
    WHERE r.room_id = ANY($2::text[])
    """,
)

# Index memberships_user_id.
LIST_ROOMS = statement(
    "membership.list_rooms",
    """
    SELECT r.room_id
    FROM memberships m
    JOIN rooms r ON r.room_nid = m.room_nid
    WHERE m.user_id = $1 AND m.membership = ANY($2::text[])
    ORDER BY m.position
    """,
)

# Unique index rooms_room_id_key; primary key of memberships and memberships_local. What we know of
# rooms that nobody here is in any more may be out of date.
IS_JOINED_TO_ANY = statement(
    "membership.is_joined_to_any",
    """
    SELECT EXISTS (
      SELECT 1
      FROM rooms r
      JOIN memberships m ON m.room_nid = r.room_nid AND m.user_id = $1
      WHERE r.room_id = ANY($2::text[]) AND m.membership = 'join'
        AND EXISTS (
          SELECT FROM memberships l
          WHERE l.room_nid = r.room_nid AND l.local AND l.membership = 'join'
        )
    )
    """,
)

# The same.
LIST_ROOMS_WITH_US = statement(
    "membership.list_rooms_with_us",
    """
    SELECT r.room_id
    FROM rooms r
    WHERE r.room_id = ANY($1::text[])
      AND EXISTS (
        SELECT FROM memberships l
        WHERE l.room_nid = r.room_nid AND l.local AND l.membership = 'join'
      )
    """,
)

# Unique index rooms_room_id_key; primary key of memberships. Only of rooms that nobody here is in.
WERE_WE_PUT_OUT = statement(
    "membership.were_we_put_out",
    """
    SELECT m.sender <> m.user_id AND m.membership = ANY(ARRAY['leave', 'ban'])
    FROM rooms r
    JOIN memberships m ON m.room_nid = r.room_nid AND m.local
    WHERE r.room_id = $1
    ORDER BY m.position DESC
    LIMIT 1
    """,
)

# Index memberships_local; primary key of accounts.
LIST_GUESTS = statement(
    "membership.list_guests",
    """
    SELECT m.user_id
    FROM rooms r
    JOIN memberships m ON m.room_nid = r.room_nid AND m.local AND m.membership = 'join'
    JOIN accounts a ON a.user_id = m.user_id AND a.guest
    WHERE r.room_id = $1
    """,
)

# Unique index rooms_room_id_key and primary key of memberships.
HAS_REMOTE_MEMBERS = statement(
    "membership.has_remote_members",
    """
    SELECT EXISTS (
      SELECT 1
      FROM rooms r
      JOIN memberships m ON m.room_nid = r.room_nid
      WHERE r.room_id = $1 AND m.membership = 'join' AND NOT m.local
    )
    """,
)

# Unique index rooms_room_id_key; memberships_servers_joined.
HAS_MEMBERS_OF_SERVER = statement(
    "membership.has_members_of_server",
    """
    SELECT EXISTS (
      SELECT 1
      FROM rooms r
      JOIN memberships m ON m.room_nid = r.room_nid
      WHERE r.room_id = $1 AND m.membership = ANY($3::text[]) AND NOT m.local
        AND substr(m.user_id, strpos(m.user_id, ':') + 1) = $2
    )
    """,
)

# Unique index rooms_room_id_key; primary key of memberships; unique index events_position_key.
FETCH_LAST_CHANGE = statement(
    "membership.fetch_last_change",
    """
    SELECT e.event_id
    FROM rooms r
    JOIN memberships m ON m.room_nid = r.room_nid
    JOIN events e ON e.position = m.position
    WHERE r.room_id = $1 AND NOT m.local
      AND m.membership = ANY(ARRAY['join', 'leave', 'ban'])
      AND substr(m.user_id, strpos(m.user_id, ':') + 1) = $2
    ORDER BY m.position DESC
    LIMIT 1
    """,
)

# Index memberships_user_id.
COUNT_INVITES = statement(
    "membership.count_invites",
    """
    SELECT
      count(*),
      count(*) FILTER (WHERE substr(sender, strpos(sender, ':') + 1) = $2)
    FROM memberships
    WHERE user_id = $1 AND membership = 'invite'
    """,
)

# Index memberships_user_id.
LIST_REMEMBERED_ROOMS = statement(
    "membership.list_remembered_rooms",
    """
    SELECT r.room_id
    FROM memberships m
    JOIN rooms r ON r.room_nid = m.room_nid
    WHERE
      m.user_id = $1 AND m.membership = ANY(ARRAY['leave', 'ban']) AND NOT m.forgotten
    """,
)

# Index memberships_user_id.
LIST_FORGOTTEN_ROOMS = statement(
    "membership.list_forgotten_rooms",
    """
    SELECT r.room_id
    FROM memberships m
    JOIN rooms r ON r.room_nid = m.room_nid
    WHERE
      m.user_id = $1 AND m.membership = ANY(ARRAY['leave', 'ban']) AND m.forgotten
      AND m.forgotten_position > $2 AND m.forgotten_position <= $3
    """,
)


@dataclass(frozen=True, slots=True)
class MembershipRow:
    """A user's current membership in a room. `order_major` is its member event's place there."""

    membership: str
    event_id: EventId
    sender: str
    position: int
    order_major: int
    forgotten: bool


async def list_rooms_in_view(
    queries: Queries, user_id: str
) -> tuple[int, Sequence[tuple[str, str, int, str, int]]]:
    """Return the stream's position, and the rooms that a user has to do with.

    Of each: the room, the membership, its position and event, and since when the user has been
    joined without a break.

    Only rooms that the user is joined to, is invited to, or knocks on.
    """
    rows: Sequence[Row] = await queries.fetch(LIST_ROOMS_IN_VIEW, user_id)
    found = [tuple(row)[1:] for row in rows if row[1] is not None]
    return rows[0][0], found


async def fetch_membership(queries: Queries, room_id: str, user_id: str) -> MembershipRow | None:
    """Return a user's membership in a room, or None when the room's state does not name them."""
    row = await queries.fetchrow(FETCH_MEMBERSHIP, room_id, user_id)
    return None if row is None else MembershipRow(*row)


async def list_memberships(
    queries: Queries, user_id: str, room_ids: Sequence[str]
) -> dict[str, str]:
    """Return what a user is in each of the rooms whose state names them."""
    rows = await queries.fetch(LIST_MEMBERSHIPS, user_id, list(room_ids))
    return {row[0]: row[1] for row in rows}


async def list_rooms(queries: Queries, user_id: str, memberships: Sequence[str]) -> list[RoomId]:
    """Return the rooms in which a user has one of these memberships, the oldest first."""
    return [row[0] for row in await queries.fetch(LIST_ROOMS, user_id, memberships)]


async def is_joined_to_any(queries: Queries, user_id: str, room_ids: Sequence[str]) -> bool:
    """Return whether a user is joined to at least one of these rooms."""
    return await queries.fetchval(IS_JOINED_TO_ANY, user_id, room_ids) is True


async def were_we_put_out(queries: Queries, room_id: str) -> bool:
    """Return whether the last thing that befell a user of this server in a room was a removal."""
    return await queries.fetchval(WERE_WE_PUT_OUT, room_id) is True


async def list_guests(queries: Queries, room_id: str) -> list[UserId]:
    """Return the guests of this server who are joined to a room."""
    return [row[0] for row in await queries.fetch(LIST_GUESTS, room_id)]


async def list_rooms_with_us(queries: Queries, room_ids: Sequence[str]) -> set[str]:
    """Return those of the rooms that somebody of this server is joined to."""
    return {row[0] for row in await queries.fetch(LIST_ROOMS_WITH_US, list(room_ids))}


async def has_remote_members(queries: Queries, room_id: str) -> bool:
    """Return whether users of other servers are joined to a room, as far as we know."""
    return await queries.fetchval(HAS_REMOTE_MEMBERS, room_id) is True


async def has_members_of_server(
    queries: Queries, room_id: str, server_name: str, among: Sequence[str] = ("join",)
) -> bool:
    """Return whether users of another server are joined to a room (or what `among` says)."""
    found = await queries.fetchval(HAS_MEMBERS_OF_SERVER, room_id, server_name, list(among))
    return found is True


async def fetch_last_change(queries: Queries, room_id: str, server_name: str) -> EventId | None:
    """Return the event that was the last to change what a server's users are in a room.

    It is a member event, or one that made state resolution change its mind.
    """
    row = await queries.fetchrow(FETCH_LAST_CHANGE, room_id, server_name)
    return None if row is None else row[0]


async def count_invites(queries: Queries, user_id: str, server_name: str) -> tuple[int, int]:
    """Return how many invites a user has open, and how many of them from users of a server."""
    row = await queries.fetchrow(COUNT_INVITES, user_id, server_name)
    return (0, 0) if row is None else (row[0], row[1])


async def list_remembered_rooms(queries: Queries, user_id: str) -> list[RoomId]:
    """Return the rooms that a user has left and not forgotten."""
    return [row[0] for row in await queries.fetch(LIST_REMEMBERED_ROOMS, user_id)]


async def list_forgotten_rooms(
    queries: Queries, user_id: str, after: int, upto: int
) -> list[RoomId]:
    """Return the rooms that a user forgot in (after, upto], and is not in."""
    rows = await queries.fetch(LIST_FORGOTTEN_ROOMS, user_id, after, upto)
    return [row[0] for row in rows]
