"""What tests of several servers may ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from minihs.base.clock import ManualClock
from tests.helpers.mirror import mirror, push
from tests.helpers.network import Federation, running_federation
from tests.helpers.rooms import MALLORY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.helpers.homeserver import Homeserver, User
    from tests.helpers.network import EvilServer
    from tests.helpers.postgres import TestServers
    from tests.helpers.rooms import Room


@pytest.fixture
def clock() -> ManualClock:
    """The time of all servers of a test, which stands still unless it is moved."""
    return ManualClock()


@pytest.fixture
async def federation(
    postgres_servers: TestServers, postgres_version: str, tmp_path: Path, clock: ManualClock
) -> AsyncIterator[Federation]:
    """A network without servers; `await federation.start("hs1")` runs one."""
    async with running_federation(
        lambda: postgres_servers.database(postgres_version), tmp_path, clock=clock
    ) as running:
        yield running


# --- hs1, where alice made a room that a server of our own making has joined --------------------


@pytest.fixture
async def hs1(federation: Federation) -> Homeserver:
    """The server under test."""
    return await federation.start("hs1")


@pytest.fixture
def evil(federation: Federation, hs1: Homeserver) -> EvilServer:
    """A server that signs what the test likes."""
    return federation.evil()


@pytest.fixture
async def alice(hs1: Homeserver) -> User:
    """Who watches, at hs1."""
    return await hs1.register("alice")


@pytest.fixture(params=["12"])
def version(request: pytest.FixtureRequest) -> str:
    """The version of the room."""
    return request.param


@pytest.fixture
async def room(hs1: Homeserver, alice: User, evil: EvilServer, version: str) -> Room:
    """Alice's public room, which @mallory:evil has joined, as evil sees it."""
    room_id = await alice.create_room(room_version=version)
    copy = await mirror(hs1, room_id)
    join = copy.join(MALLORY)
    assert await push(evil, hs1, [join]) == {join.event_id: {}}
    await alice.sync()
    return copy
