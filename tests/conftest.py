"""What every test may ask for; `database_url` is the door to PostgreSQL."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.helpers.homeserver import Homeserver, running_homeserver
from tests.helpers.postgres import TestServers, cluster_directory, requested_versions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the caller say how long the ledger test of tests/durability takes."""
    parser.addoption("--ledger-rounds", type=int, default=20, help="faults of the ledger test")
    parser.addoption("--ledger-seed", type=int, default=1, help="what fails in it, and when")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that needs a database once on each PostgreSQL that this run is about."""
    if "postgres_version" in metafunc.fixturenames:
        versions = requested_versions()
        ids = [f"pg{version}" for version in versions]
        metafunc.parametrize("postgres_version", versions, ids=ids, scope="function")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a database, so that `-m 'not database'` runs without one."""
    for item in items:
        if "postgres_version" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.database)


@pytest.fixture(scope="session")
def postgres_servers() -> Iterator[TestServers]:
    """The PostgreSQL servers of this run, started when first asked for."""
    with cluster_directory(in_memory=True) as fast, cluster_directory() as durable:
        servers = TestServers(fast, durable)
        yield servers
        asyncio.run(servers.stop())


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A data directory that a server may start an embedded PostgreSQL in, unlike `tmp_path`."""
    with cluster_directory() as directory:
        yield directory


@pytest.fixture
async def database_url(
    postgres_servers: TestServers, postgres_version: str, request: pytest.FixtureRequest
) -> AsyncIterator[str]:
    """The DSN of a migrated, empty database of this test's own."""
    durable = request.node.get_closest_marker("durable_database") is not None
    async with postgres_servers.database(postgres_version, durable=durable) as dsn:
        yield dsn


@pytest.fixture
async def homeserver(database_url: str, tmp_path: Path) -> AsyncIterator[Homeserver]:
    """A running homeserver `hs1` with open registration and no rate limits."""
    async with running_homeserver(database_url, tmp_path) as server:
        yield server
