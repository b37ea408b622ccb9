"""Surrogate keys, handed out in blocks so that a writer knows them before it writes.

A block that a process does not use up is lost: the numbers only have to be unique.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.storage.sql import statement

if TYPE_CHECKING:
    from minihs.storage.database import Queries

BLOCK = 1_000

# The sequences are made by the first migration.
NEXT_BLOCK = statement("numbers.next_block", "SELECT nextval($1::text::regclass)")


class Numbers:
    """Hands out numbers of one sequence; as many as are taken must have been reserved before."""

    def __init__(self, queries: Queries, sequence: str) -> None:
        self._queries = queries
        self._sequence = sequence
        self._next = 0
        self._end = 0

    async def reserve(self, count: int) -> None:
        """Make sure that `count` numbers can be taken without waiting."""
        while self._end - self._next < count:
            start = int(str(await self._queries.fetchval(NEXT_BLOCK, self._sequence)))
            self._next, self._end = start, start + BLOCK

    def take(self) -> int:
        """Return a number that nobody else has."""
        if self._next >= self._end:
            raise LookupError("no number was reserved")
        self._next += 1
        return self._next - 1
