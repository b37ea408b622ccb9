"""Access tokens and refresh tokens; each belongs to a device, with which it disappears.

Only hashes of tokens are stored, so that whoever reads the database (or a backup) cannot log in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.storage.sql import statement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minihs.storage.database import Queries, Transaction


@dataclass(frozen=True, slots=True)
class TokenOwner:
    """Whose an access token is, and how far the stream had come when that was read."""

    user_id: str
    device_id: str
    device_nid: int
    admin: bool
    guest: bool
    deactivated: bool
    expires_ms: int | None
    last_seen_ms: int | None
    retires: str | None
    position: int


LOGOUT_CHANNEL = "minihs_logouts"

# Every process is told, with the commit, on which devices of whom sessions have ended (rows of
# `gone`). That an older token makes room for a newer one is no such end.
ANNOUNCE_LOGOUT = (
    f"SELECT pg_notify('{LOGOUT_CHANNEL}', device_nid || ' ' || user_id) "  # noqa: S608  # a constant
    "FROM (SELECT DISTINCT device_nid, user_id FROM gone) AS ended"
)

# Primary key of access_tokens, then of devices and accounts. The stream's position comes along, so
# that a reader can wait for whatever was committed before the request came (read your writes,
# whichever process wrote).
AUTHENTICATE = statement(
    "sessions.authenticate",
    """
    SELECT
      t.token_hash, d.user_id, d.device_id, d.device_nid, a.admin, a.guest,
      a.deactivated_ms IS NOT NULL AS deactivated, t.expires_ms, d.last_seen_ms, t.retires,
      s.position
    FROM stream s
    CROSS JOIN unnest($1::text[]) AS asked (token_hash)
    JOIN access_tokens t ON t.token_hash = asked.token_hash
    JOIN devices d ON d.device_nid = t.device_nid
    JOIN accounts a ON a.user_id = d.user_id
    """,
)

INSERT_ACCESS_TOKEN = statement(
    "sessions.insert_access_token",
    """
    INSERT INTO access_tokens (token_hash, device_nid, expires_ms, retires)
    VALUES ($1, $2, $3, $4)
    """,
)

INSERT_REFRESH_TOKEN = statement(
    "sessions.insert_refresh_token",
    "INSERT INTO refresh_tokens (token_hash, device_nid, created_ms) VALUES ($1, $2, $3)",
)

# Primary key. The lock makes two refreshes with one token follow each other.
LOCK_REFRESH_TOKEN = statement(
    "sessions.lock_refresh_token",
    "SELECT device_nid, next_hash FROM refresh_tokens WHERE token_hash = $1 FOR UPDATE",
)

SUCCEED_REFRESH_TOKEN = statement(
    "sessions.succeed_refresh_token",
    "UPDATE refresh_tokens SET next_hash = $2 WHERE token_hash = $1",
)

DELETE_REFRESH_TOKEN = statement(
    "sessions.delete_refresh_token", "DELETE FROM refresh_tokens WHERE token_hash = $1"
)

# Index refresh_tokens_device_nid: a device has one or two of them.
DELETE_PREDECESSOR = statement(
    "sessions.delete_predecessor",
    "DELETE FROM refresh_tokens WHERE device_nid = $1 AND next_hash = $2",
)

# Index access_tokens_device_nid, as the two after it.
DELETE_UNUSED_ACCESS_TOKENS = statement(
    "sessions.delete_unused_access_tokens",
    "DELETE FROM access_tokens WHERE device_nid = $1 AND retires = $2",
)

DELETE_OTHER_ACCESS_TOKENS = statement(
    "sessions.delete_other_access_tokens",
    "DELETE FROM access_tokens WHERE device_nid = $1 AND token_hash <> $2",
)

MARK_ACCESS_TOKEN_USED = statement(
    "sessions.mark_access_token_used",
    "UPDATE access_tokens SET retires = NULL WHERE token_hash = $1",
)

DELETE_TOKENS_OF_DEVICE = statement(
    "sessions.delete_tokens_of_device",
    f"""
    WITH refreshing AS (DELETE FROM refresh_tokens WHERE device_nid = $1),
    tokens AS (DELETE FROM access_tokens WHERE device_nid = $1 RETURNING device_nid),
    gone AS (
      SELECT d.device_nid, d.user_id FROM tokens t JOIN devices d ON d.device_nid = t.device_nid
    )
    {ANNOUNCE_LOGOUT}
    """,  # noqa: S608  # a constant
)


async def fetch_token_owners(
    queries: Queries, token_hashes: Sequence[str]
) -> dict[str, TokenOwner]:
    """Return the owner of each token that exists, by the token's hash."""
    rows = await queries.fetch(AUTHENTICATE, token_hashes)
    return {row[0]: TokenOwner(*row[1:]) for row in rows}


async def insert_access_token(
    queries: Queries,
    token_hash: str,
    device_nid: int,
    expires_ms: int | None,
    retires: str | None = None,
) -> None:
    """Store an access token; its first use ends the refresh token whose hash is `retires`."""
    await queries.execute(INSERT_ACCESS_TOKEN, token_hash, device_nid, expires_ms, retires)


async def insert_refresh_token(
    queries: Queries, token_hash: str, device_nid: int, now_ms: int
) -> None:
    """Store a refresh token."""
    await queries.execute(INSERT_REFRESH_TOKEN, token_hash, device_nid, now_ms)


async def use_refresh_token(tx: Transaction, token_hash: str, next_hash: str) -> int | None:
    """Let `next_hash` follow a refresh token; return the device, or None if it is unknown.

    A token that already had a successor was refreshed by a client that never saw the answer: that
    successor, and the access token that came with it, were not used, and are replaced.
    """
    row = await tx.fetchrow(LOCK_REFRESH_TOKEN, token_hash)
    if row is None:
        return None
    device_nid: int = row["device_nid"]
    if row["next_hash"] is None:
        await tx.execute(DELETE_PREDECESSOR, device_nid, token_hash)
    else:
        await tx.execute(DELETE_REFRESH_TOKEN, row["next_hash"])
        await tx.execute(DELETE_UNUSED_ACCESS_TOKENS, device_nid, token_hash)
    await tx.execute(SUCCEED_REFRESH_TOKEN, token_hash, next_hash)
    return device_nid


async def mark_access_token_used(
    tx: Transaction, token_hash: str, device_nid: int, retires: str
) -> None:
    """End the refresh token that led to an access token, and the device's older access tokens."""
    await tx.execute(DELETE_REFRESH_TOKEN, retires)
    await tx.execute(DELETE_OTHER_ACCESS_TOKENS, device_nid, token_hash)
    await tx.execute(MARK_ACCESS_TOKEN_USED, token_hash)


async def delete_tokens_of_device(queries: Queries, device_nid: int) -> None:
    """Log a device out; the device stays."""
    await queries.execute(DELETE_TOKENS_OF_DEVICE, device_nid)
