"""Stored filters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.storage.sql import statement

if TYPE_CHECKING:
    from minihs.storage.database import Queries

ATTEMPTS_MAX = 10

# Index filters_user_id_json_key.
FIND = statement(
    "filters.find",
    "SELECT filter_id FROM filters WHERE user_id = $1 AND md5(json) = md5($2) AND json = $2",
)

# Primary key, read backwards for the last id. Two at once may choose the same id: one returns
# nothing, and its caller tries again.
INSERT = statement(
    "filters.insert",
    """
    INSERT INTO filters (user_id, filter_id, json)
    SELECT $1, coalesce(max(filter_id) + 1, 0), $2
    FROM filters
    WHERE user_id = $1
    HAVING coalesce(max(filter_id) + 1, 0) < $3
    ON CONFLICT DO NOTHING
    RETURNING filter_id
    """,
)

# Primary key.
FETCH = statement("filters.fetch", "SELECT json FROM filters WHERE user_id = $1 AND filter_id = $2")

DELETE_ALL = statement("filters.delete_all", "DELETE FROM filters WHERE user_id = $1")


async def upsert_filter(
    queries: Queries, user_id: str, filter_json: str, count_max: int
) -> int | None:
    """Return the id of a filter, stored if it was not yet; None if the user has too many."""
    for _ in range(ATTEMPTS_MAX):
        filter_id = await queries.fetchval(FIND, user_id, filter_json)
        if filter_id is None:
            filter_id = await queries.fetchval(INSERT, user_id, filter_json, count_max)
        if isinstance(filter_id, int):
            return filter_id
    return None


async def fetch_filter(queries: Queries, user_id: str, filter_id: int) -> str | None:
    """Return a stored filter, as JSON."""
    found = await queries.fetchval(FETCH, user_id, filter_id)
    return found if isinstance(found, str) else None


async def delete_all_filters(queries: Queries, user_id: str) -> None:
    """Remove every filter of a user."""
    await queries.execute(DELETE_ALL, user_id)
