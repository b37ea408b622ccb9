"""A database that is away in other ways than by being stopped: 503, and it comes back by itself."""

from __future__ import annotations

import contextlib
import re
import socket
from logging import INFO
from typing import TYPE_CHECKING
from urllib.parse import quote

import asyncpg
import pytest

from minihs.base.errors import DatabaseAway, DatabaseBusy
from minihs.storage.database import Database
from tests.helpers.homeserver import running_homeserver
from tests.helpers.proxy import proxied
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1"


@pytest.fixture
async def administrator(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to another database of the same server."""
    connection = await asyncpg.connect(re.sub(r"/\w+\?", "/postgres?", database_url))
    yield connection
    await connection.close()


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    """The test's database."""
    found = await Database.connect(database_url, connections=2)
    yield found
    await found.close()


async def test_a_database_that_cannot_be_connected_to_is_away(
    database_url: str,
    tmp_path: Path,
    administrator: asyncpg.Connection,
    caplog: pytest.LogCaptureFixture,
):
    match = re.search(r"/(\w+)\?", database_url)
    assert match is not None
    name = match[1]
    async with running_homeserver(database_url, tmp_path, workers=1) as homeserver:
        alice = await homeserver.register("alice")
        room_id = await alice.create_room()
        await administrator.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await administrator.execute(TERMINATE, name)
        say = f"/rooms/{quote(room_id)}/send/m.room.message/txn"
        for method, path in (("PUT", say), ("GET", "/joined_rooms"), ("GET", "/sync")):
            answer = await alice.request(method, path, {} if method == "PUT" else None)
            assert (answer.status, answer.json["errcode"]) == (503, "M_UNKNOWN")
            assert answer.headers["Retry-After"] == "1"
        await administrator.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")

        async def sends() -> bool:
            return (await alice.request("PUT", say, {})).status == 200

        await until(sends)
        of_ours = [r for r in caplog.records if r.name.startswith("minihs") and r.levelno > INFO]
        told = [record.getMessage() for record in of_ours]
        assert len(told) == 2, told
        assert "the database is not available" in told[0]
        assert told[1] == "the database answers again"
        assert all(record.exc_info is None for record in of_ours)


async def test_connections_that_were_lost_silently_are_all_replaced_with_the_first(
    database_url: str,
):
    async with proxied(database_url) as proxy, contextlib.AsyncExitStack() as held:
        db = await Database.connect(proxy.dsn, connections=8)
        try:
            for _ in range(8):
                connection = (await held.enter_async_context(db.transaction())).connection
                # Not of the connections that come later: these must answer, if it takes a while.
                impatient = connection._config._replace(command_timeout=0.2)
                connection._con._config = impatient
            await held.aclose()
            proxy.lose()
            with pytest.raises(DatabaseAway):
                await db.fetchval("SELECT 1")
            for _ in range(16):
                assert await db.fetchval("SELECT 1") == 1
        finally:
            await db.close()


@pytest.mark.skipif(
    not hasattr(socket, "TCP_USER_TIMEOUT"), reason="TCP_USER_TIMEOUT is an option of Linux"
)
async def test_the_system_ends_connections_to_a_machine_that_has_vanished(database_url: str):
    async with proxied(database_url) as proxy:
        db = await Database.connect(proxy.dsn, connections=2)
        try:
            async with db.transaction() as tx:
                assert _limits(tx.connection) == (1, 15_000)
            listener = await db.dedicated()
            assert _limits(listener) == (1, 15_000)
            await listener.close()
        finally:
            await db.close()


def _limits(connection: asyncpg.Connection) -> tuple[int, int]:
    peer = connection._transport.get_extra_info("socket")
    return (
        peer.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
    )


@pytest.mark.parametrize(
    ("sqlstate", "expected"),
    [
        ("40001", DatabaseBusy),  # Serialization failure.
        ("40P01", DatabaseBusy),  # Deadlock.
        ("53100", DatabaseAway),  # Disk full.
        ("57014", DatabaseAway),  # Statement timeout.
        ("55P03", DatabaseAway),  # Lock timeout.
        ("58030", DatabaseAway),  # Input or output error.
        ("25006", DatabaseAway),  # Read-only.
        ("28000", DatabaseAway),  # The role may not log in.
        ("22012", asyncpg.DivisionByZeroError),  # Ours.
        ("23505", asyncpg.UniqueViolationError),
    ],
)
async def test_what_passes_by_itself_is_told_from_mistakes(
    db: Database, sqlstate: str, expected: type[Exception]
):
    raising = f"DO $$ BEGIN RAISE EXCEPTION 'no luck' USING ERRCODE = '{sqlstate}'; END $$"
    with pytest.raises(expected):
        await db.execute(raising)
    with pytest.raises(expected):
        async with db.transaction() as tx:
            await tx.execute(raising)
    assert await db.fetchval("SELECT 1") == 1
