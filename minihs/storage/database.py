"""Connections, transactions and snapshots: the only door to PostgreSQL.

`Database` runs single statements; `transaction()` and `snapshot()` yield a `Transaction`
with the same methods. While one is open, no request may be made to the outside:
`is_transaction_open` is what `remote` asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol, TypeAlias

import asyncpg

from minihs.base.clock import SystemClock
from minihs.base.config import StartError, without_password
from minihs.base.errors import DatabaseAway, DatabaseBusy, InvalidParam

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    Row: TypeAlias = asyncpg.Record

logger = logging.getLogger(__name__)

_open: ContextVar[bool] = ContextVar("transaction_open", default=False)

STATEMENT_CACHE_SIZE = 1_000
COMMAND_TIMEOUT_S = 60
CONNECT_TIMEOUT_S = 10
READY_PAUSE_MS = 100
CLOSE_S_MAX = 3
TOLD_MS = 10_000  # That the database is away is in the log no more often.
# Of a peer that has vanished (a machine that lost its power, a firewall that forgot a connection)
# nothing is heard: unanswered segments and probes end the connection after so many seconds.
SILENCE_S_MAX = 15
PROBE_S = 5
# Every statement is one that a generic plan serves well: planning it anew would cost more than
# running it.
SETTINGS = {
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
    "application_name": "minihs",
    # Plans are made when tables are still empty and without statistics, and kept. Every statement
    # has its index; without this the planner would rather read a small table whole, or collect a
    # bitmap of a whole room and sort it, than walk the index that has the order.
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    # A process that hangs inside a transaction must not hold the stream's lock for ever.
    "idle_in_transaction_session_timeout": "60s",
}


class Queries(Protocol):
    """What runs SQL: a `Database` (each statement by itself) or a `Transaction`."""

    async def fetch(self, query: str, *args: object) -> Sequence[Row]:
        """Return all rows."""
        ...

    async def fetchrow(self, query: str, *args: object) -> Row | None:
        """Return the first row, or None."""
        ...

    async def fetchval(self, query: str, *args: object) -> object:
        """Return the first column of the first row, or None."""
        ...

    async def execute(self, query: str, *args: object) -> str:
        """Run a statement; return PostgreSQL's command tag, such as `UPDATE 1`."""
        ...


# Lost or refused connections, shutdowns, roles and databases that are being looked after, and a
# server that cannot write: what passes by itself, or when somebody mends it.
AWAY = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # A connection that is lost at the wrong moment says this.
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.ObjectNotInPrerequisiteStateError,  # Locks that cannot be had, and the like.
    asyncpg.PostgresSystemError,
)


def is_away(error: Exception) -> bool:
    """Return whether an error says that the database is away, not that we asked for nonsense."""
    return isinstance(error, AWAY) and not isinstance(error, asyncpg.DataError)


class Transaction:
    """One open transaction; hand it along, never keep it."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection
        self.fetch = connection.fetch
        self.fetchrow = connection.fetchrow
        self.fetchval = connection.fetchval
        self.execute = connection.execute


def is_transaction_open() -> bool:
    """Return whether the calling task is inside a transaction."""
    return _open.get()


async def _keep(_connection: object) -> None:
    """Leave a returned connection as it is: no session state is ever set on one."""


async def _end_when_silent(connection: asyncpg.Connection) -> None:
    """Let a connection end when its peer has vanished, not when a statement has taken a minute."""
    peer: socket.socket | None = connection._transport.get_extra_info("socket")  # noqa: SLF001
    if peer is None or peer.family not in (socket.AF_INET, socket.AF_INET6):
        return
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", PROBE_S),
        ("TCP_KEEPINTVL", PROBE_S),
        ("TCP_KEEPCNT", SILENCE_S_MAX // PROBE_S),
        ("TCP_USER_TIMEOUT", SILENCE_S_MAX * 1000),
    ):
        if hasattr(socket, option):  # Not every system has each of them.
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


class Database:
    """A pool of connections to one PostgreSQL database."""

    def __init__(self, pool: asyncpg.Pool, dsn: str) -> None:
        self._pool = pool
        self.dsn = dsn
        self._clock = SystemClock()
        self._is_away = False
        self._told_ms = -TOLD_MS

    @classmethod
    async def connect(cls, dsn: str, *, connections: int = 10) -> Database:
        """Open the pool.

        Raises:
            OSError, asyncpg.PostgresError: the database cannot be reached.
        """
        pool = await asyncpg.create_pool(
            dsn,
            min_size=min(2, connections),
            max_size=connections,
            statement_cache_size=STATEMENT_CACHE_SIZE,
            max_cached_statement_lifetime=0,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=COMMAND_TIMEOUT_S,
            reset=_keep,
            init=_end_when_silent,
            server_settings=SETTINGS,
        )
        return cls(pool, dsn)

    async def close(self) -> None:
        """Close every connection; wait a while for statements under way."""
        try:
            async with asyncio.timeout(CLOSE_S_MAX):
                await self._pool.close()
        except TimeoutError:
            logger.warning("the database does not end its statements: cutting the connections")

    def note_away(self, error: Exception) -> None:
        """Take notice that the database failed somebody: the log tells it, now and then."""
        if isinstance(error, TimeoutError):
            for holder in self._pool._holders:  # noqa: SLF001
                if holder.is_idle():  # What one connection lost, others may have lost, too.
                    holder.terminate()
        now_ms = self._clock.monotonic_ms()
        if now_ms - self._told_ms >= TOLD_MS:
            self._is_away, self._told_ms = True, now_ms
            reason = str(error) or "it does not answer"
            logger.warning("the database is not available: %s; trying again", reason)

    def note_answer(self) -> None:
        """Take notice of an answer."""
        if self._is_away:
            self._is_away = False
            logger.warning("the database answers again")

    @contextlib.contextmanager
    def errors_told(self) -> Iterator[None]:
        """Turn a lost connection into the 503 that a client can retry, and a NUL into a 400.

        PostgreSQL's text has no NUL, and no name of anything has one.
        """
        try:
            yield
        except asyncpg.CharacterNotInRepertoireError as error:
            raise InvalidParam("There is a NUL in the request.") from error
        except asyncpg.TransactionRollbackError as error:
            raise DatabaseBusy from error
        except AWAY as error:
            if not is_away(error):
                raise
            self.note_away(error)
            raise DatabaseAway from error
        if self._is_away:
            self.note_answer()

    async def fetch(self, query: str, *args: object) -> Sequence[Row]:
        """Return all rows of one statement."""
        with self.errors_told():
            async with self._pool.acquire() as connection:
                rows: Sequence[Row] = await connection.fetch(query, *args)
                return rows

    async def fetchrow(self, query: str, *args: object) -> Row | None:
        """Return the first row of one statement, or None."""
        with self.errors_told():
            async with self._pool.acquire() as connection:
                return await connection.fetchrow(query, *args)

    async def fetchval(self, query: str, *args: object) -> object:
        """Return the first value of one statement, or None."""
        with self.errors_told():
            async with self._pool.acquire() as connection:
                value: object = await connection.fetchval(query, *args)
                return value

    async def execute(self, query: str, *args: object) -> str:
        """Run one statement, which commits by itself."""
        with self.errors_told():
            async with self._pool.acquire() as connection:
                return str(await connection.execute(query, *args))

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Open a READ COMMITTED transaction; it commits when the block ends without an error."""
        with self.errors_told():
            async with self._pool.acquire() as connection, connection.transaction():
                token = _open.set(True)
                try:
                    yield Transaction(connection)
                finally:
                    _open.reset(token)

    @contextlib.asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Transaction]:
        """Open a read-only transaction in which every statement sees the same data."""
        with self.errors_told():
            async with (
                self._pool.acquire() as connection,
                connection.transaction(isolation="repeatable_read", readonly=True),
            ):
                token = _open.set(True)
                try:
                    yield Transaction(connection)
                finally:
                    _open.reset(token)

    async def dedicated(self) -> asyncpg.Connection:
        """Open a connection outside the pool: for LISTEN, and for the committer."""
        with self.errors_told():
            connection = await asyncpg.connect(
                self.dsn,
                timeout=CONNECT_TIMEOUT_S,
                command_timeout=COMMAND_TIMEOUT_S,
                statement_cache_size=STATEMENT_CACHE_SIZE,
                max_cached_statement_lifetime=0,
                server_settings=SETTINGS,
            )
            await _end_when_silent(connection)
            return connection


async def close(connection: asyncpg.Connection) -> None:
    """Close a connection outside the pool. One that is lost is closed."""
    with contextlib.suppress(*AWAY):
        await connection.close(timeout=CLOSE_S_MAX)


async def connect_when_ready(dsn: str, within_s: int) -> asyncpg.Connection:
    """Return a connection once the database accepts them: it may be starting beside us.

    Raises:
        StartError: it did not in that time, or it refuses us.
    """
    clock = SystemClock()
    deadline_ms = clock.monotonic_ms() + within_s * 1000
    name, is_told = without_password(dsn), False
    while True:
        try:
            return await asyncpg.connect(dsn, timeout=CONNECT_TIMEOUT_S)
        except (OSError, asyncpg.CannotConnectNowError) as error:
            reason = str(error) or "it does not answer"
            if clock.monotonic_ms() >= deadline_ms:
                raise StartError(f"the database {name} cannot be reached: {reason}") from error
            if not is_told:
                logger.warning("waiting for the database %s: %s", name, reason)
            is_told = True
            await clock.sleep_ms(READY_PAUSE_MS)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
            raise StartError(f"the database {name} refuses us: {error}") from error
