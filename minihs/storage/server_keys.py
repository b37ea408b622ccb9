"""Keys of other servers: each by server and key ID, and what a server published last."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.protocol.identifiers import ServerName
from minihs.protocol.server_keys import VerifyKey
from minihs.storage.sql import statement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minihs.protocol.server_keys import ServerKeys
    from minihs.storage.database import Queries

# Primary key of server_keys. A notary may be behind the server itself, so what it tells ($6) only
# adds to what is known.
UPSERT = statement(
    "server_keys.upsert",
    """
    INSERT INTO server_keys AS known (server_name, key_id, key, valid_until_ms, is_old)
    SELECT $1, key_id, key, valid_until_ms, is_old
    FROM unnest($2::text[], $3::bytea[], $4::bigint[], $5::boolean[])
      AS new (key_id, key, valid_until_ms, is_old)
    ON CONFLICT (server_name, key_id) DO UPDATE
    SET key = excluded.key, valid_until_ms = excluded.valid_until_ms, is_old = excluded.is_old
    WHERE
      NOT $6::boolean
      OR (
        known.key = excluded.key
        AND NOT known.is_old
        AND NOT excluded.is_old
        AND known.valid_until_ms < excluded.valid_until_ms
      )
    """,
)

# Primary key of server_key_objects.
UPSERT_OBJECT = statement(
    "server_keys.upsert_object",
    """
    INSERT INTO server_key_objects AS known (server_name, valid_until_ms, json)
    VALUES ($1, $2, $3)
    ON CONFLICT (server_name) DO UPDATE
    SET valid_until_ms = excluded.valid_until_ms, json = excluded.json
    WHERE known.valid_until_ms <= excluded.valid_until_ms OR NOT $4::boolean
    """,
)

# Primary key of server_keys, as the next.
FETCH = statement(
    "server_keys.fetch",
    """
    SELECT server_name, key_id, key, valid_until_ms, is_old
    FROM server_keys
    WHERE server_name = $1 AND key_id = ANY($2::text[])
    """,
)

LIST_CURRENT = statement(
    "server_keys.list_current",
    """
    SELECT server_name, key_id, key, valid_until_ms, is_old
    FROM server_keys
    WHERE server_name = $1 AND valid_until_ms >= $2 AND NOT is_old
    """,
)

# Primary key of server_key_objects.
FETCH_OBJECT = statement(
    "server_keys.fetch_object",
    "SELECT json, valid_until_ms FROM server_key_objects WHERE server_name = $1",
)


async def upsert_server_keys(
    queries: Queries, published: ServerKeys, *, from_notary: bool = False
) -> None:
    """Remember what a server published; through a notary it never takes anything back."""
    keys = published.keys
    await queries.execute(
        UPSERT,
        published.server_name,
        [key.key_id for key in keys],
        [key.key for key in keys],
        [key.valid_until_ms for key in keys],
        [key.is_old for key in keys],
        from_notary,
    )
    await queries.execute(
        UPSERT_OBJECT,
        published.server_name,
        published.valid_until_ms,
        published.json.decode(),
        from_notary,
    )


async def list_server_keys(
    queries: Queries, server_name: str, key_ids: Sequence[str]
) -> list[VerifyKey]:
    """Return those of a server's keys that are known, valid or not."""
    rows = await queries.fetch(FETCH, server_name, key_ids)
    return [VerifyKey(ServerName(row[0]), *row[1:]) for row in rows]


async def list_current_server_keys(
    queries: Queries, server_name: str, now_ms: int
) -> list[VerifyKey]:
    """Return the keys with which a server signs now, as far as known."""
    rows = await queries.fetch(LIST_CURRENT, server_name, now_ms)
    return [VerifyKey(ServerName(row[0]), *row[1:]) for row in rows]


async def fetch_key_object(queries: Queries, server_name: str) -> tuple[bytes, int] | None:
    """Return the newest key object of a server, and until when to believe it."""
    row = await queries.fetchrow(FETCH_OBJECT, server_name)
    return (row[0].encode(), row[1]) if row is not None else None
