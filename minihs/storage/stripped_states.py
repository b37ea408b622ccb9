"""The stripped state of invites and knocks, with the member event that each came with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.storage.sql import statement

if TYPE_CHECKING:
    from collections.abc import Collection

    from minihs.protocol.identifiers import EventId
    from minihs.storage.database import Queries


@dataclass(frozen=True, slots=True)
class StrippedState:
    """What a user is shown of a room, and their present member event.

    `is_over`: they are neither invited any more nor knocking.
    """

    room_id: str
    user_id: str
    json: str
    member_id: EventId
    is_over: bool


_COLUMNS = "i.room_id, i.user_id, i.json, m.event_id, m.membership NOT IN ('invite', 'knock')"

# Primary key of invite_states, unique index rooms_room_id_key, primary key of memberships.
LIST_OF_USER = statement(
    "stripped_states.list_of_user",
    f"""
    SELECT {_COLUMNS}
    FROM invite_states i
    JOIN rooms r ON r.room_id = i.room_id
    JOIN memberships m ON m.room_nid = r.room_nid AND m.user_id = i.user_id
    WHERE i.user_id = $1 AND i.room_id = ANY($2::text[])
    """,  # noqa: S608  # a constant
)

# The same; of invite_states by its first column, in the order of the second.
LIST_BY_SENDER = statement(
    "stripped_states.list_by_sender",
    f"""
    SELECT {_COLUMNS}
    FROM rooms r
    JOIN invite_states i ON i.room_id = r.room_id
    JOIN memberships m ON m.room_nid = r.room_nid AND m.user_id = i.user_id
    WHERE r.room_nid = $1 AND strpos(i.json, $2) > 0 AND i.user_id > $3
    ORDER BY i.user_id
    LIMIT $4
    """,  # noqa: S608  # a constant
)

# Primary key of both. Another invite may have come since.
REPLACE = statement(
    "stripped_states.replace",
    "UPDATE invite_states SET json = $4 WHERE room_id = $1 AND user_id = $2 AND json = $3",
)

DELETE = statement(
    "stripped_states.delete",
    "DELETE FROM invite_states WHERE room_id = $1 AND user_id = $2 AND json = $3",
)


async def list_of_user(
    queries: Queries, user_id: str, room_ids: Collection[str]
) -> list[StrippedState]:
    """Return what a user is shown of some rooms."""
    rows = await queries.fetch(LIST_OF_USER, user_id, list(room_ids))
    return [StrippedState(*row) for row in rows]


async def list_by_sender(
    queries: Queries, room_nid: int, sender_json: str, after: str, limit: int
) -> list[StrippedState]:
    """Return what users after one are shown of a room with an event of somebody in it.

    `sender_json` is what the JSON of that sender's events contains.
    """
    rows = await queries.fetch(LIST_BY_SENDER, room_nid, sender_json, after, limit)
    return [StrippedState(*row) for row in rows]


async def replace(queries: Queries, row: StrippedState, json: str | None) -> None:
    """Let a user be shown something else, or nothing any more, unless that has changed already."""
    if json is None:
        await queries.execute(DELETE, row.room_id, row.user_id, row.json)
    else:
        await queries.execute(REPLACE, row.room_id, row.user_id, row.json, json)
