"""Transactions of other servers that have been answered, so that a repetition changes nothing.

An answer is written without waiting for the disk: should it be lost in a crash, the repetition is
carried out again, and finds that what it brings is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.storage.sql import statement

if TYPE_CHECKING:
    from minihs.storage.database import Queries

# Primary key.
FETCH_ANSWER = statement(
    "federation_transactions.fetch_answer",
    "SELECT answer FROM federation_transactions WHERE origin = $1 AND txn_id = $2",
)

# Primary key. The first answer stays; it is what comes back.
INSERT_ANSWER = statement(
    "federation_transactions.insert_answer",
    """
    INSERT INTO federation_transactions AS old (origin, txn_id, received_ms, answer)
    SELECT $1, $2, $3, $4
    WHERE set_config('synchronous_commit', 'off', true) = 'off'
    ON CONFLICT (origin, txn_id) DO UPDATE SET answer = old.answer
    RETURNING answer
    """,
)

# Index federation_transactions_received_ms.
DELETE_BEFORE = statement(
    "federation_transactions.delete_before",
    "DELETE FROM federation_transactions WHERE received_ms < $1",
)


async def fetch_answer(queries: Queries, origin: str, txn_id: str) -> bytes | None:
    """Return the JSON that a transaction was answered with, or None if it is new."""
    answer = await queries.fetchval(FETCH_ANSWER, origin, txn_id)
    return None if answer is None else str(answer).encode()


async def insert_answer(
    queries: Queries, origin: str, txn_id: str, received_ms: int, answer: bytes
) -> bytes:
    """Keep the answer to a transaction; return the one that was kept first."""
    kept = await queries.fetchval(INSERT_ANSWER, origin, txn_id, received_ms, answer.decode())
    return str(kept).encode()


async def delete_before(queries: Queries, received_ms: int) -> None:
    """Forget the transactions that came before a moment."""
    await queries.execute(DELETE_BEFORE, received_ms)
