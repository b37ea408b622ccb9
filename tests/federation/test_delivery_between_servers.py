"""Delivery between servers that are all the code under test: what one's users do, others' see."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from tests.helpers.servers import join, pass_time, quiet, room_of_two, start
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from minihs.base.clock import ManualClock
    from tests.helpers.homeserver import User
    from tests.helpers.network import Federation

pytestmark = pytest.mark.spec("server-server-api#transactions")


async def texts(user: User, room_id: str) -> list[str]:
    """Return the newest messages of a room as a user sees them, oldest first."""
    path = f"/rooms/{quote(room_id)}/messages"
    chunk = (await user.call("GET", path, dir="b", limit="100"))["chunk"]
    return [e["content"]["body"] for e in reversed(chunk) if e["type"] == "m.room.message"]


async def members(user: User, room_id: str) -> set[str]:
    """Return who is joined, as a user's server has it."""
    path = f"/rooms/{quote(room_id)}/joined_members"
    return set((await user.call("GET", path))["joined"])


async def test_what_is_said_on_one_server_is_heard_on_all(federation: Federation):
    servers = await start(federation, "hs1", "hs2", "hs3")
    alice, bob, carol = [
        await server.register(name)
        for server, name in zip(servers, ("alice", "bob", "carol"), strict=True)
    ]
    room_id = await alice.create_room()
    await join(bob, room_id, "hs1")
    await join(carol, room_id, "hs1")
    everybody = {alice.user_id, bob.user_id, carol.user_id}
    await quiet(servers)
    for user in (alice, bob, carol):
        assert await members(user, room_id) == everybody, "the resident tells the others"
    said = []
    for n in range(10):
        for user in (alice, bob, carol):
            said.append(f"{user.user_id} {n}")
            await user.say(room_id, said[-1])
        await quiet(servers)
    for user in (alice, bob, carol):
        assert sorted(await texts(user, room_id)) == sorted(said)

    await alice.call("POST", f"/rooms/{quote(room_id)}/kick", {"user_id": carol.user_id})
    await quiet(servers)
    gone = await carol.request("GET", f"/rooms/{quote(room_id)}/joined_members")
    assert gone.status == 403
    assert await members(bob, room_id) == {alice.user_id, bob.user_id}
    await bob.leave(room_id)
    await quiet(servers)
    assert await members(alice, room_id) == {alice.user_id}
    to_itself = [d for d in federation.network.log if d.origin == d.destination]
    assert to_itself == []


async def test_who_types_and_who_has_read_is_seen_on_the_other_server(federation: Federation):
    servers, alice, bob, room_id = await room_of_two(federation)
    event_id = await alice.say(room_id)
    await quiet(servers)
    await alice.sync()

    path = f"/rooms/{quote(room_id)}"
    typing = {"typing": True, "timeout": 30_000}
    await bob.call("PUT", f"{path}/typing/{quote(bob.user_id)}", typing)
    await bob.call("POST", f"{path}/receipt/m.read/{quote(event_id)}", {})
    seen: dict[str, object] = {}

    async def both_seen() -> bool:
        servers[1].clock.advance_ms(10)  # type: ignore[attr-defined]  # a ManualClock
        room = (await alice.sync()).get("rooms", {}).get("join", {}).get(room_id, {})
        for event in room.get("ephemeral", {}).get("events", []):
            seen[event["type"]] = event["content"]
        return {"m.typing", "m.receipt"} <= seen.keys()

    await until(both_seen)
    assert seen["m.typing"] == {"user_ids": [bob.user_id]}
    receipts = seen["m.receipt"]
    assert isinstance(receipts, dict)
    assert list(receipts[event_id]["m.read"]) == [bob.user_id]


async def test_after_an_outage_everything_is_there(federation: Federation, clock: ManualClock):
    servers = await start(federation, "hs1", "hs2")
    alice, bob = await servers[0].register("alice"), await servers[1].register("bob")
    rooms = [await alice.create_room() for _ in range(3)]
    for room_id in rooms:
        await join(bob, room_id, "hs1")
    await quiet(servers)
    federation.network.isolate("hs2")
    for n in range(8):
        for room_id in rooms:
            await alice.say(room_id, f"alice {n}")
            await bob.say(room_id, f"bob {n}")
    await quiet(servers)
    assert len(await texts(bob, rooms[0])) == 8
    federation.network.heal()
    await pass_time(servers, clock, 20_000)
    expected = sorted(f"{who} {n}" for who in ("alice", "bob") for n in range(8))
    for room_id in rooms:
        for user in (alice, bob):
            assert sorted(await texts(user, room_id)) == expected


async def test_a_server_that_is_back_is_served_at_its_first_request(
    federation: Federation, clock: ManualClock
):
    servers, alice, bob, room_id = await room_of_two(federation)
    federation.network.isolate("hs2")
    await alice.say(room_id, "hello")
    await pass_time(servers, clock, 600_000)
    assert servers[0].services.delivery.is_backing_off("hs2")
    federation.network.heal()
    await bob.say(room_id, "I am back")
    await quiet(servers)
    assert sorted(await texts(bob, room_id)) == ["I am back", "hello"]
    assert sorted(await texts(alice, room_id)) == ["I am back", "hello"]
