"""What every test may ask for; `database_url` is the door to PostgreSQL."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import hypothesis
import orjson
import pytest

from minihs.remote.transport import RawAnswer
from tests.helpers import openapi
from tests.helpers.homeserver import CLIENT, Homeserver, running_homeserver
from tests.helpers.network import InMemoryNetwork
from tests.helpers.postgres import TestServers, cluster_directory, requested_versions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from pathlib import Path

    from minihs.remote.transport import OutgoingRequest, RemoteError
    from tests.helpers.homeserver import Response

# A run fails for what somebody has changed, not for what chance or a busy machine does: examples
# are drawn from the test's own text, and none is timed. `--hypothesis-profile=default` draws anew.
hypothesis.settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("repeatable")


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
    """The PostgreSQL servers of this run, started when first asked for.

    They are nobody's children: whoever ends the run by SIGTERM ends it as by Ctrl-C.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    with cluster_directory(in_memory=True) as fast, cluster_directory() as durable:
        servers = TestServers(fast, durable)
        yield servers
        asyncio.run(servers.stop())
    signal.signal(signal.SIGTERM, before)


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


@pytest.fixture(autouse=True)
def traffic_follows_the_schemas(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[None]:
    """Fail a test at its end when traffic broke its schema (where the schemas are at hand).

    These are the answers to clients, and what servers under test ask and answer each other. A test
    marked `shapes_events` asks for events of another shape than the schemas'.
    """
    if not openapi.available():
        yield
        return
    faults: list[str] = []
    answer_to_client = Homeserver.request
    carry = InMemoryNetwork.carry

    async def checked_request(
        self: Homeserver,
        method: str,
        path: str,
        body: object = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        response = await answer_to_client(self, method, path, body, query, headers)
        full = path if path.startswith(("/_", "/.well-known")) else CLIENT + path
        faults.extend(openapi.answer_faults("client", method, full, response.status, response.json))
        return response

    async def checked_carry(
        self: InMemoryNetwork, origin: str, request: OutgoingRequest
    ) -> RawAnswer | RemoteError:
        outcome = await carry(self, origin, request)
        path = request.target.partition("?")[0]
        if self.is_under_test(origin):
            body = None if request.body is None else orjson.loads(request.body)
            faults.extend(openapi.request_faults("federation", request.method, path, body))
        if isinstance(outcome, RawAnswer) and self.is_under_test(request.destination):
            body = orjson.loads(outcome.body) if outcome.body else None
            faults.extend(
                openapi.answer_faults("federation", request.method, path, outcome.status, body)
            )
        return outcome

    monkeypatch.setattr(Homeserver, "request", checked_request)
    monkeypatch.setattr(InMemoryNetwork, "carry", checked_carry)
    yield
    if request.node.get_closest_marker("shapes_events") is None:
        assert faults == []
