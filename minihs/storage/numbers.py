"""Surrogate keys, handed out in blocks so that a writer knows them before it writes.

A block that a process does not use up is lost: the numbers only have to be unique.
"""

from __future__ import annotations

from collections import deque
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
        self._blocks: deque[range] = deque()
        self._left = 0

    async def reserve(self, count: int) -> None:
        """Make sure that `count` numbers can be taken without waiting."""
        while self._left < count:
            start = int(str(await self._queries.fetchval(NEXT_BLOCK, self._sequence)))
            self._blocks.append(range(start, start + BLOCK))
            self._left += BLOCK

    def take(self) -> int:
        """Return a number that nobody else has."""
        if not self._left:
            raise LookupError("no number was reserved")
        block = self._blocks.popleft()
        if len(block) > 1:
            self._blocks.appendleft(block[1:])
        self._left -= 1
        return block[0]
