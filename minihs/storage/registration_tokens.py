"""Registration tokens: who holds one may register, as often as it allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.storage.sql import statement

if TYPE_CHECKING:
    from minihs.storage.database import Queries, Transaction


@dataclass(frozen=True, slots=True)
class RegistrationToken:
    """A token. `uses_allowed` None: without end; `expires_ms` None: for ever."""

    token: str
    uses_allowed: int | None
    completed: int
    expires_ms: int | None


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

# Primary key, as the others.
FETCH = statement(
    "registration_tokens.fetch",
    """
    SELECT token, uses_allowed, completed, expires_ms
    FROM registration_tokens
    WHERE token = $1
    """,
)

LIST = statement(
    "registration_tokens.list",
    "SELECT token, uses_allowed, completed, expires_ms FROM registration_tokens ORDER BY token",
)

UPDATE = statement(
    "registration_tokens.update",
    """
    UPDATE registration_tokens
    SET
      uses_allowed = CASE WHEN $2 THEN $3::bigint ELSE uses_allowed END,
      expires_ms = CASE WHEN $4 THEN $5::bigint ELSE expires_ms END
    WHERE token = $1
    """,
)

DELETE = statement(
    "registration_tokens.delete",
    "DELETE FROM registration_tokens WHERE token = $1 RETURNING true",
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


async def fetch_registration_token(queries: Queries, token: str) -> RegistrationToken | None:
    """Return a token."""
    row = await queries.fetchrow(FETCH, token)
    return None if row is None else RegistrationToken(*row)


async def list_registration_tokens(queries: Queries) -> list[RegistrationToken]:
    """Return every token."""
    return [RegistrationToken(*row) for row in await queries.fetch(LIST)]


async def update_registration_token(
    queries: Queries,
    token: str,
    *,
    uses_allowed: tuple[int | None] | None,
    expires_ms: tuple[int | None] | None,
) -> None:
    """Change a token: of what is None nothing, else to what the tuple holds."""
    await queries.execute(
        UPDATE,
        token,
        uses_allowed is not None,
        uses_allowed[0] if uses_allowed is not None else None,
        expires_ms is not None,
        expires_ms[0] if expires_ms is not None else None,
    )


async def delete_registration_token(queries: Queries, token: str) -> bool:
    """Delete a token; return whether there was one."""
    return await queries.fetchval(DELETE, token) is True
