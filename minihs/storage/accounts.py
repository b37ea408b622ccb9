"""Accounts: the users of this server, their password hashes, and whether they are deactivated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.storage.sql import statement

if TYPE_CHECKING:
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
      erased = erased OR $3,
      parting_due_ms = $4
    WHERE user_id = $1
    """,
)

# Index accounts_parting_due.
CLAIM_PARTING = statement(
    "accounts.claim_parting",
    """
    UPDATE accounts
    SET parting_due_ms = $2
    WHERE user_id = (
      SELECT user_id
      FROM accounts
      WHERE parting_due_ms <= $1 OR parting_due_ms > $3
      ORDER BY parting_due_ms
      LIMIT 1
      FOR UPDATE SKIP LOCKED
    )
    RETURNING user_id, erased, deactivated_ms
    """,
)

# Primary key, here and in what follows.
SET_PARTING_DUE = statement(
    "accounts.set_parting_due",
    """
    UPDATE accounts SET parting_due_ms = $2 WHERE user_id = $1 AND parting_due_ms IS NOT NULL
    """,
)

FETCH_PARTING = statement(
    "accounts.fetch_parting",
    """
    SELECT user_id, erased, deactivated_ms, parting_due_ms
    FROM accounts
    WHERE user_id = $1 AND deactivated_ms IS NOT NULL
    """,
)


@dataclass(frozen=True, slots=True)
class Parting:
    """A deactivated user, who leaves their rooms; `due_ms` is None once that is done."""

    user_id: UserId
    erased: bool
    deactivated_ms: int
    due_ms: int | None


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


async def mark_deactivated(
    queries: Queries, user_id: str, now_ms: int, *, erase: bool, parting_due_ms: int
) -> None:
    """Deactivate an account and forget its password; note when to look after the rest."""
    await queries.execute(DEACTIVATE, user_id, now_ms, erase, parting_due_ms)


async def claim_parting(
    queries: Queries, now_ms: int, until_ms: int, latest_ms: int
) -> Parting | None:
    """Return a deactivated user whose rest is due, for whoever asks alone until a moment.

    None waits until after `latest_ms`: if it says so, the clock has been put back.
    """
    row = await queries.fetchrow(CLAIM_PARTING, now_ms, until_ms, latest_ms)
    return None if row is None else Parting(row[0], row[1], row[2], until_ms)


async def mark_parting_due(queries: Queries, user_id: str, due_ms: int | None) -> None:
    """Note when to go on with a deactivation that is not done; None: it is."""
    await queries.execute(SET_PARTING_DUE, user_id, due_ms)


async def fetch_parting(queries: Queries, user_id: str) -> Parting | None:
    """Return a user who has been deactivated, or None."""
    row = await queries.fetchrow(FETCH_PARTING, user_id)
    return None if row is None else Parting(*row)
