"""Accounts: the users of this server, their password hashes, and whether they are deactivated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.storage.sql import statement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minihs.protocol.identifiers import UserId
    from minihs.storage.database import Queries, Transaction


@dataclass(frozen=True, slots=True, repr=False)  # no repr: the hash belongs in no log
class Account:
    """One account. `password_hash` is None for accounts without a password."""

    user_id: UserId
    password_hash: str | None
    admin: bool
    guest: bool
    appservice_id: str | None
    deactivated: bool


INSERT = statement(
    "accounts.insert",
    """
    INSERT INTO accounts (user_id, password_hash, created_ms, admin, guest, appservice_id)
    VALUES ($1, $2, $3, $4, $5, $6)
    ON CONFLICT (user_id) DO NOTHING
    RETURNING true
    """,
)

# Primary key, as all of the following.
FETCH = statement(
    "accounts.fetch",
    """
    SELECT user_id, password_hash, admin, guest, appservice_id, deactivated_ms IS NOT NULL
    FROM accounts
    WHERE user_id = $1
    """,
)

LOCK = statement("accounts.lock", "SELECT true FROM accounts WHERE user_id = $1 FOR UPDATE")

SET_PASSWORD_HASH = statement(
    "accounts.set_password_hash",
    "UPDATE accounts SET password_hash = $2 WHERE user_id = $1 AND deactivated_ms IS NULL",
)

# Only while the old hash is still the one that was verified: a password change may come between.
REPLACE_PASSWORD_HASH = statement(
    "accounts.replace_password_hash",
    "UPDATE accounts SET password_hash = $3 WHERE user_id = $1 AND password_hash = $2",
)

DEACTIVATE = statement(
    "accounts.deactivate",
    """
    UPDATE accounts
    SET
      deactivated_ms = coalesce(deactivated_ms, $2),
      password_hash = NULL,
      erased = erased OR $3
    WHERE user_id = $1
    """,
)

# A scan of accounts, every few minutes in one process. Then memberships_user_id.
UNFINISHED_DEACTIVATIONS = statement(
    "accounts.unfinished_deactivations",
    """
    SELECT a.user_id, a.erased
    FROM accounts a
    WHERE
      a.deactivated_ms IS NOT NULL
      AND EXISTS (
        SELECT FROM memberships m
        WHERE
          m.user_id = a.user_id
          AND (m.membership IN ('join', 'invite', 'knock') OR NOT m.forgotten)
      )
    """,
)


async def insert_account(
    queries: Queries,
    user_id: UserId,
    password_hash: str | None,
    now_ms: int,
    *,
    admin: bool = False,
    guest: bool = False,
    appservice_id: str | None = None,
) -> bool:
    """Make an account; return whether the name was free."""
    made = await queries.fetchval(
        INSERT, user_id, password_hash, now_ms, admin, guest, appservice_id
    )
    return made is True


async def fetch_account(queries: Queries, user_id: str) -> Account | None:
    """Return the account of a user, deactivated or not."""
    row = await queries.fetchrow(FETCH, user_id)
    return Account(*row) if row is not None else None


async def lock_account(tx: Transaction, user_id: str) -> None:
    """Make other transactions that lock the same account wait for the end of this one."""
    await tx.execute(LOCK, user_id)


async def mark_password_hash(queries: Queries, user_id: str, password_hash: str) -> None:
    """Give an account that is not deactivated another password."""
    await queries.execute(SET_PASSWORD_HASH, user_id, password_hash)


async def mark_rehashed(queries: Queries, user_id: str, old_hash: str, new_hash: str) -> None:
    """Store another hash of the same password."""
    await queries.execute(REPLACE_PASSWORD_HASH, user_id, old_hash, new_hash)


async def mark_deactivated(queries: Queries, user_id: str, now_ms: int, *, erase: bool) -> None:
    """Deactivate an account and forget its password."""
    await queries.execute(DEACTIVATE, user_id, now_ms, erase)


async def list_unfinished_deactivations(queries: Queries) -> Sequence[tuple[UserId, bool]]:
    """Return deactivated users who are still in rooms, and whether they asked for erasure.

    Or who have left rooms and not forgotten them.
    """
    return [(row[0], row[1]) for row in await queries.fetch(UNFINISHED_DEACTIVATIONS)]
