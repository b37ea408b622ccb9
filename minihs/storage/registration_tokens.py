"""Registration tokens: who holds one may register, as often as it allows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.storage.sql import statement

if TYPE_CHECKING:
    from minihs.storage.database import Queries, Transaction

INSERT = statement(
    "registration_tokens.insert",
    """
    INSERT INTO registration_tokens (token, uses_allowed, completed, expires_ms)
    VALUES ($1, $2, 0, $3)
    ON CONFLICT (token) DO NOTHING
    RETURNING true
    """,
)

# Primary key.
IS_VALID = statement(
    "registration_tokens.is_valid",
    """
    SELECT true
    FROM registration_tokens
    WHERE
      token = $1
      AND (uses_allowed IS NULL OR completed < uses_allowed)
      AND (expires_ms IS NULL OR expires_ms > $2)
    """,
)

# Primary key. The row's lock orders those who race for the last use: the condition is looked at
# again, with the count that the winner left.
USE = statement(
    "registration_tokens.use",
    """
    UPDATE registration_tokens
    SET completed = completed + 1
    WHERE
      token = $1
      AND (uses_allowed IS NULL OR completed < uses_allowed)
      AND (expires_ms IS NULL OR expires_ms > $2)
    RETURNING true
    """,
)


async def insert_registration_token(
    queries: Queries, token: str, uses_allowed: int | None, expires_ms: int | None
) -> bool:
    """Make a token; return whether it is new."""
    return await queries.fetchval(INSERT, token, uses_allowed, expires_ms) is True


async def is_registration_token_valid(queries: Queries, token: str, now_ms: int) -> bool:
    """Return whether a token would let somebody register now."""
    return await queries.fetchval(IS_VALID, token, now_ms) is True


async def mark_registration_token_used(tx: Transaction, token: str, now_ms: int) -> bool:
    """Count one registration; return whether the token allowed it."""
    return await tx.fetchval(USE, token, now_ms) is True
