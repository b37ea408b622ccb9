"""Profile fields of this server's users; each value is the JSON that the user gave."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.protocol import canonical_json
from minihs.storage.sql import statement

if TYPE_CHECKING:
    from minihs.storage.database import Queries

# Primary key, all of them.
LIST = statement("profiles.list", "SELECT field, json FROM profiles WHERE user_id = $1")

UPSERT = statement(
    "profiles.upsert",
    """
    INSERT INTO profiles (user_id, field, json)
    VALUES ($1, $2, $3)
    ON CONFLICT (user_id, field) DO UPDATE SET json = excluded.json
    """,
)

DELETE = statement("profiles.delete", "DELETE FROM profiles WHERE user_id = $1 AND field = $2")

DELETE_ALL = statement("profiles.delete_all", "DELETE FROM profiles WHERE user_id = $1")


async def list_profile_fields(queries: Queries, user_id: str) -> dict[str, object]:
    """Return all fields of a profile; empty if there is none."""
    rows = await queries.fetch(LIST, user_id)
    return {row[0]: canonical_json.decode(row[1]) for row in rows}


async def upsert_profile_field(queries: Queries, user_id: str, field: str, value_json: str) -> None:
    """Store the value of a field."""
    await queries.execute(UPSERT, user_id, field, value_json)


async def delete_profile_field(queries: Queries, user_id: str, field: str) -> None:
    """Remove a field if it is there."""
    await queries.execute(DELETE, user_id, field)


async def delete_profile(queries: Queries, user_id: str) -> None:
    """Remove every field."""
    await queries.execute(DELETE_ALL, user_id)
