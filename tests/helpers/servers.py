"""Several servers that are all the code under test, and deliver to each other."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from minihs.services.federation.delivery import LEASE_MS
from tests.helpers.deliveries import HOLDER, begin, settled

if TYPE_CHECKING:
    from collections.abc import Iterable

    from minihs.base.clock import ManualClock
    from tests.helpers.homeserver import Homeserver, User
    from tests.helpers.network import Federation


async def start(federation: Federation, *names: str) -> list[Homeserver]:
    """Run servers that deliver."""
    servers = [await federation.start(name, default_room_version="11") for name in names]
    for server in servers:
        await begin(server.services)
    return servers


async def quiet(servers: Iterable[Homeserver]) -> None:
    """Return when no server has anything left for another that it may try now."""
    for _ in range(3):  # What is delivered may make others deliver.
        for server in servers:
            await settled(server.services)


async def pass_time(servers: Iterable[Homeserver], clock: ManualClock, duration_ms: int) -> None:
    """Let time pass for all servers."""
    for _ in range(-(-duration_ms // (LEASE_MS // 5))):
        await quiet(servers)
        clock.advance_ms(LEASE_MS // 5)
        for server in servers:
            await server.services.delivery.hold_shards(server.services, HOLDER)
    await quiet(servers)


async def join(user: User, room_id: str, via: str) -> None:
    """Join a room through another server."""
    await user.call("POST", f"/join/{quote(room_id)}", {}, server_name=via)


async def room_of_two(federation: Federation) -> tuple[list[Homeserver], User, User, str]:
    """Return two servers, Alice on the first, Bob on the second, and a room that both are in."""
    servers = await start(federation, "hs1", "hs2")
    alice, bob = await servers[0].register("alice"), await servers[1].register("bob")
    room_id = await alice.create_room()
    await join(bob, room_id, "hs1")
    await quiet(servers)
    return servers, alice, bob, room_id
