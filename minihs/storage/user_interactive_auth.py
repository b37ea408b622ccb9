"""Sessions of user-interactive authentication. Neither a password nor a session id is in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.storage.sql import statement

if TYPE_CHECKING:
    from minihs.storage.database import Queries


@dataclass(frozen=True, slots=True)
class AuthSession:
    """What a session has come to. `binding` says which request it is for.

    `proved_user_id` is whose password was shown outside of that request, None: nobody's.
    """

    binding: str
    completed: tuple[str, ...]
    registration_token: str | None
    created_ms: int
    proved_user_id: str | None


# Index user_interactive_sessions_created_ms: each new session clears away up to ten that have
# expired, so that the table holds little more than what is under way.
INSERT = statement(
    "user_interactive_auth.insert",
    """
    WITH expired AS (
      DELETE FROM user_interactive_sessions
      WHERE session_hash IN (
        SELECT session_hash
        FROM user_interactive_sessions
        WHERE created_ms < $4
        ORDER BY created_ms
        LIMIT 10
        FOR UPDATE SKIP LOCKED
      )
    )
    INSERT INTO user_interactive_sessions (session_hash, binding, completed, created_ms)
    VALUES ($1, $2, '{}', $3)
    """,
)

# Primary key, as the others.
FETCH = statement(
    "user_interactive_auth.fetch",
    """
    SELECT binding, completed, registration_token, created_ms, proved_user_id
    FROM user_interactive_sessions
    WHERE session_hash = $1
    """,
)

COMPLETE = statement(
    "user_interactive_auth.complete",
    """
    UPDATE user_interactive_sessions
    SET
      completed = array_append(completed, $2),
      registration_token = coalesce($3, registration_token),
      proved_user_id = coalesce($4, proved_user_id)
    WHERE session_hash = $1 AND NOT $2 = ANY(completed)
    """,
)

DELETE = statement(
    "user_interactive_auth.delete",
    "DELETE FROM user_interactive_sessions WHERE session_hash = $1 RETURNING true",
)


async def insert_auth_session(
    queries: Queries, session_hash: str, binding: str, now_ms: int, expired_before_ms: int
) -> None:
    """Begin a session, and clear away old ones."""
    await queries.execute(INSERT, session_hash, binding, now_ms, expired_before_ms)


async def fetch_auth_session(queries: Queries, session_hash: str) -> AuthSession | None:
    """Return a session."""
    row = await queries.fetchrow(FETCH, session_hash)
    return AuthSession(row[0], tuple(row[1]), row[2], row[3], row[4]) if row is not None else None


async def mark_stage_completed(
    queries: Queries,
    session_hash: str,
    stage: str,
    registration_token: str | None,
    proved_user_id: str | None = None,
) -> None:
    """Add a stage to those that a session has completed."""
    await queries.execute(COMPLETE, session_hash, stage, registration_token, proved_user_id)


async def delete_auth_session(queries: Queries, session_hash: str) -> bool:
    """Use a session up; return whether it was still there."""
    return await queries.fetchval(DELETE, session_hash) is True
