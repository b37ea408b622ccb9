"""Reading account data. It is written through the stream (`stream_rows.AccountDataWrite`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.storage.sql import statement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minihs.storage.database import Queries

# Primary key, all of them.
FETCH = statement(
    "account_data.fetch",
    "SELECT json FROM account_data WHERE user_id = $1 AND room_id = $2 AND type = $3",
)

# Primary key.
LIST_OF_TYPE = statement(
    "account_data.list_of_type",
    """
    SELECT user_id, json
    FROM account_data
    WHERE user_id = ANY($1::text[]) AND room_id = '' AND type = $2
    """,
)

# Primary key, by its first columns.
LIST_OF_ROOMS = statement(
    "account_data.list_of_rooms",
    """
    SELECT room_id, type, json
    FROM account_data
    WHERE user_id = $1 AND room_id = ANY($2::text[])
    ORDER BY room_id, type
    """,
)

# Primary key, by its first column.
SUM_OTHERS = statement(
    "account_data.sum_others",
    """
    SELECT count(*), coalesce(sum(octet_length(json)), 0)::bigint
    FROM account_data
    WHERE user_id = $1 AND (room_id, type) <> ($2, $3)
    """,
)

DELETE_ALL = statement("account_data.delete_all", "DELETE FROM account_data WHERE user_id = $1")


async def fetch_account_data(
    queries: Queries, user_id: str, room_id: str, data_type: str
) -> str | None:
    """Return the content, as JSON; `room_id` is empty for global account data."""
    content = await queries.fetchval(FETCH, user_id, room_id, data_type)
    return content if isinstance(content, str) else None


async def list_of_type(queries: Queries, user_ids: Sequence[str], data_type: str) -> dict[str, str]:
    """Return the global account data of one type, as JSON, of those users who have it."""
    return {row[0]: row[1] for row in await queries.fetch(LIST_OF_TYPE, user_ids, data_type)}


async def list_of_rooms(
    queries: Queries, user_id: str, room_ids: Sequence[str]
) -> Sequence[tuple[str, str, str]]:
    """Return room, type and JSON of what a user noted of rooms."""
    rows = await queries.fetch(LIST_OF_ROOMS, user_id, room_ids)
    return [(row[0], row[1], row[2]) for row in rows]


async def sum_others(
    queries: Queries, user_id: str, room_id: str, data_type: str
) -> tuple[int, int]:
    """Return how many contents a user has stored beside one, and how many bytes they have."""
    row = await queries.fetchrow(SUM_OTHERS, user_id, room_id, data_type)
    return (int(row[0]), int(row[1])) if row is not None else (0, 0)


async def delete_all_account_data(queries: Queries, user_id: str) -> None:
    """Remove everything that a user stored, of an account that nobody reads any more."""
    await queries.execute(DELETE_ALL, user_id)
