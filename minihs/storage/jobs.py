"""Leases of loops that run in one process at a time (D4).

Whoever holds a lease renews it before it runs out; when they die, the next to ask takes over. One
that lasts longer than any is given has outlived a clock that was put back: it does not count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.storage.sql import statement

if TYPE_CHECKING:
    from minihs.storage.database import Queries

# Primary key of jobs. The row lock makes one of several who ask the winner.
TAKE_LEASE = statement(
    "jobs.take_lease",
    """
    INSERT INTO jobs AS old (name, holder, until_ms)
    VALUES ($1, $2, $4)
    ON CONFLICT (name) DO UPDATE
    SET holder = excluded.holder, until_ms = excluded.until_ms
    WHERE
      old.holder = excluded.holder OR old.until_ms <= $3 OR old.until_ms - 60000 > $4
    RETURNING true
    """,
)

# A scan: one small row for each loop and process.
LIST_HOLDERS = statement(
    "jobs.list_holders",
    """
    SELECT holder
    FROM jobs
    WHERE starts_with(name, $1) AND until_ms > $2 AND until_ms - 120000 <= $2
    """,
)

DELETE_EXPIRED = statement(
    "jobs.delete_expired", "DELETE FROM jobs WHERE starts_with(name, $1) AND until_ms <= $2"
)

DELETE_LEASE = statement("jobs.delete_lease", "DELETE FROM jobs WHERE name = $1 AND holder = $2")


async def take_lease(queries: Queries, name: str, holder: str, now_ms: int, until_ms: int) -> bool:
    """Take or renew the lease of a loop till `until_ms`; return whether `holder` has it now."""
    return await queries.fetchval(TAKE_LEASE, name, holder, now_ms, until_ms) is True


async def list_holders(queries: Queries, prefix: str, now_ms: int) -> list[str]:
    """Return who holds leases of which the names begin so; those that have run out are deleted."""
    await queries.execute(DELETE_EXPIRED, prefix, now_ms)
    return [row[0] for row in await queries.fetch(LIST_HOLDERS, prefix, now_ms)]


async def delete_lease(queries: Queries, name: str, holder: str) -> None:
    """Give a lease back, if `holder` has it."""
    await queries.execute(DELETE_LEASE, name, holder)
