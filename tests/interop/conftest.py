"""One minihs and one Synapse for all stories; each story has people and rooms of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
import trustme

from tests.helpers.postgres import EMBEDDED_VERSION
from tests.interop.peers import Account, Certificate, MinihsPeer, SynapsePeer, synapse_python

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.helpers.postgres import TestServers

VERSIONS = ("10", "11", "12")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let all stories share one event loop: that of the servers."""
    for item in items:
        if "/interop/" in str(item.path):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@dataclass(frozen=True, slots=True)
class Peers:
    """The two servers."""

    minihs: MinihsPeer
    synapse: SynapsePeer


@pytest_asyncio.fixture(scope="session", loop_scope="session", name="peers")
async def _peers(
    postgres_servers: TestServers, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Peers]:
    python = synapse_python()
    if python is None:
        pytest.skip("Synapse is not installed: `make interop` installs and runs it")
    authority = trustme.CA()
    directory: Path = tmp_path_factory.mktemp("interop")
    (directory / "minihs").mkdir()
    certificate = Certificate.issue(authority, directory)
    async with postgres_servers.database(EMBEDDED_VERSION) as dsn:
        minihs = MinihsPeer(dsn, directory / "minihs", certificate)
        synapse = SynapsePeer(python, directory, certificate)
        try:
            await minihs.start()
            await synapse.start()
            yield Peers(minihs, synapse)
        finally:
            await minihs.stop()
            await synapse.stop()
            await minihs.session.close()
            await synapse.session.close()


@dataclass(frozen=True, slots=True)
class Pair:
    """Somebody in whose server a room is made, and somebody of the other server."""

    host: Account
    guest: Account
    version: str

    async def shared_room(self, **options: object) -> str:
        """Return a room of the host that the guest has joined."""
        room_id = await self.host.create_room(self.version, **options)
        await self.guest.enter(room_id, self.host)
        await self.host.sees_member(room_id, self.guest, "join")
        return room_id


@pytest.fixture(params=VERSIONS, ids=[f"v{version}" for version in VERSIONS])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest_asyncio.fixture(loop_scope="session", params=["minihs-hosts", "synapse-hosts"])
async def pair(request: pytest.FixtureRequest, peers: Peers, version: str) -> Pair:
    """Two people; each story is told with the room on either side."""
    ours, theirs = (
        await Account.make(peers.minihs, "alice"),
        await Account.make(peers.synapse, "bob"),
    )
    if request.param == "minihs-hosts":
        return Pair(ours, theirs, version)
    return Pair(theirs, ours, version)
