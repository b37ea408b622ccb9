"""Which rooms are being joined through other servers, in whatever process.

A room's servers push to us as soon as they have taken our join, which is before we know of it, and
not to the process that waits for their answer. So a join is marked while it is under way: by an
advisory lock, which ends with the process that holds it.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from minihs.base.errors import Unavailable
from minihs.storage.database import close
from minihs.storage.sql import statement

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg

    from minihs.storage.database import Database, Queries

# No table. Rooms that share a number wait for one another's joins, which does no harm.
MARK = statement("join_marks.mark", "SELECT pg_advisory_lock_shared(4354, hashtext($1::text))")

# No table.
UNMARK = statement(
    "join_marks.unmark", "SELECT pg_advisory_unlock_shared(4354, hashtext($1::text))"
)

# The locks that the server holds in memory. To list them takes all locks of its own: that is only
# done where a lock cannot be had beside which there is no mark. It is let go of at once.
IS_MARKED = statement(
    "join_marks.is_marked",
    """
    SELECT CASE
      WHEN pg_try_advisory_xact_lock(4354, hashtext($1::text)) THEN false
      ELSE EXISTS (
        SELECT FROM pg_locks l
        JOIN pg_database d ON d.oid = l.database
        WHERE
          d.datname = current_database() AND l.locktype = 'advisory' AND l.classid = 4354
          AND l.objid::bigint = hashtext($1::text)::bigint & 4294967295
          AND l.mode = 'ShareLock'
      )
    END
    """,
)


class JoinMarks:
    """Marks of the joins of one process. They need a connection of their own, from the first on."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._turn = asyncio.Lock()
        self._connection: asyncpg.Connection | None = None

    @contextlib.asynccontextmanager
    async def marked(self, room_id: str) -> AsyncIterator[None]:
        """Mark that a room is being joined, meanwhile."""
        await self._execute(MARK, room_id)
        try:
            yield
        finally:
            with contextlib.suppress(Unavailable):  # Then the mark has ended with the connection.
                await self._execute(UNMARK, room_id)

    async def _execute(self, text: str, room_id: str) -> None:
        async with self._turn:
            if self._connection is None or self._connection.is_closed():
                self._connection = await self._db.dedicated()
            connection = self._connection
            try:
                with self._db.errors_told():
                    await connection.execute(text, room_id)
            except BaseException:
                connection.terminate()  # Better no marks than one of a join that has ended.
                raise

    async def close(self) -> None:
        """End all marks of this process."""
        if self._connection is not None:
            await close(self._connection)


async def is_marked(queries: Queries, room_id: str) -> bool:
    """Return whether some process is joining a room."""
    return bool(await queries.fetchval(IS_MARKED, room_id))
