"""A TCP proxy before a database, for networks that fail in ways in which a process does not."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class DatabaseProxy:
    """Passes everything on, but for what has been lost or frozen; `dsn` leads through it."""

    def __init__(self, dsn: str) -> None:
        parts = urlsplit(dsn)
        query = parse_qs(parts.query)
        self._path = f"{query['host'][0]}/.s.PGSQL.{query['port'][0]}"
        self._name = f"{parts.username}@127.0.0.1:%d{parts.path}"
        self._passing = asyncio.Event()
        self._passing.set()
        self._pairs: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def dsn(self) -> str:
        """What a server is to connect to."""
        assert self._server is not None
        return f"postgresql://{self._name % self._server.sockets[0].getsockname()[1]}"

    def lose(self) -> None:
        """Let nothing pass on the connections that there are; new ones are not concerned."""
        self._passing.clear()
        self._passing = asyncio.Event()
        self._passing.set()

    def freeze(self) -> None:
        """Let nothing pass at all, without closing anything."""
        self._passing.clear()

    async def open(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def close(self) -> None:
        """Cut every connection."""
        assert self._server is not None
        self._server.close()
        for pair in self._pairs:
            pair.cancel()
        await asyncio.gather(*self._pairs, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pairs.add(task)
        passing, writers = self._passing, [writer]
        try:
            await passing.wait()
            from_database, to_database = await asyncio.open_unix_connection(self._path)
            writers.append(to_database)
            ways = [
                asyncio.create_task(self._pass_on(passing, reader, to_database)),
                asyncio.create_task(self._pass_on(passing, from_database, writer)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._pairs.discard(task)
            for one in writers:
                one.transport.abort()

    @staticmethod
    async def _pass_on(
        passing: asyncio.Event, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(65_536):
            await passing.wait()
            writer.write(data)
            await writer.drain()


@contextlib.asynccontextmanager
async def proxied(dsn: str) -> AsyncIterator[DatabaseProxy]:
    """Run a proxy before a database until the block ends."""
    proxy = DatabaseProxy(dsn)
    await proxy.open()
    try:
        yield proxy
    finally:
        await proxy.close()
