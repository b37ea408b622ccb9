"""Current memberships: who is in which room."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.storage.sql import statement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minihs.storage.database import Queries, Row

# Index memberships_user_id. The stream's position says as of when this is true.
LIST_ROOMS_IN_VIEW = statement(
    "membership.list_rooms_in_view",
    """
    SELECT s.position, r.room_id, m.membership, m.position, m.event_id
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


@dataclass(frozen=True, slots=True)
class MembershipRow:
    """A user's current membership in a room. `order_major` is its member event's place there."""

    membership: str
    event_id: str
    sender: str
    position: int
    order_major: int
    forgotten: bool


async def list_rooms_in_view(
    queries: Queries, user_id: str
) -> tuple[int, Sequence[tuple[str, str, int, str]]]:
    """Return the stream's position, and room, membership, position and event of a user's rooms.

    Only rooms that the user is joined to, is invited to, or knocks on.
    """
    rows: Sequence[Row] = await queries.fetch(LIST_ROOMS_IN_VIEW, user_id)
    found = [(row[1], row[2], row[3], row[4]) for row in rows if row[1] is not None]
    return rows[0][0], found


async def fetch_membership(queries: Queries, room_id: str, user_id: str) -> MembershipRow | None:
    """Return a user's membership in a room, or None when the room's state does not name them."""
    row = await queries.fetchrow(FETCH_MEMBERSHIP, room_id, user_id)
    return None if row is None else MembershipRow(*row)
