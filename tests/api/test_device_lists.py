"""Whose devices a client must look at again, because of who shares a room with whom."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.helpers.homeserver import Homeserver, User

pytestmark = pytest.mark.spec("client-server-api#tracking-the-device-list-for-a-user")

ENCRYPTED = {
    "initial_state": [
        {"type": "m.room.encryption", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}
    ]
}


async def lists(user: User, **query: str) -> tuple[list[str], list[str]]:
    """Sync; return who changed and who left."""
    section = (await user.sync(**query)).get("device_lists", {})
    return section.get("changed", []), section.get("left", [])


def from_the_database(homeserver: Homeserver) -> None:
    for services in homeserver.workers:
        services.follower.floor = services.follower.head


@pytest.mark.parametrize("in_memory", [True, False])
async def test_who_joins_and_leaves_is_told_of(homeserver: Homeserver, *, in_memory: bool) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room = await alice.create_room()
    assert await lists(alice) == ([], [])
    await bob.join(room)
    before = alice.since
    if not in_memory:
        from_the_database(homeserver)
    assert await lists(alice) == ([bob.user_id], [])
    await bob.say(room)
    assert await lists(alice) == ([], [])
    await bob.leave(room)
    if not in_memory:
        from_the_database(homeserver)
    assert await lists(alice) == ([], [bob.user_id])
    assert await lists(alice, since=str(before)) == ([], [bob.user_id]), "as it is now"


async def test_who_shares_another_room_neither_comes_nor_goes(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    first, second = await alice.create_room(), await alice.create_room()
    await bob.join(first)
    await alice.sync()
    await bob.join(second)
    assert await lists(alice) == ([], [])
    await bob.leave(first)
    assert await lists(alice) == ([], [])
    await bob.leave(second)
    assert await lists(alice) == ([], [bob.user_id])


async def test_a_new_name_is_no_new_device(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room = await alice.create_room()
    await bob.join(room)
    await alice.sync()
    await bob.put_state(
        room, "m.room.member", {"membership": "join", "displayname": "B"}, bob.user_id
    )
    assert await lists(alice) == ([], [])


async def test_who_comes_into_an_encrypted_room_looks_at_everybody(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    carol = await homeserver.register("carol")
    room, plain = await alice.create_room(**ENCRYPTED), await alice.create_room()
    await bob.join(room)
    await carol.sync()
    await carol.join(plain)
    assert await lists(carol) == ([], []), "nothing is encrypted there"
    await carol.join(room)
    assert await lists(carol) == ([bob.user_id], []), "she shares a room with Alice already"
    await carol.leave(room)
    assert await lists(carol) == ([], [bob.user_id])


async def test_an_invitation_is_not_enough(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room = await alice.create_room(**ENCRYPTED)
    await alice.sync()
    await alice.invite(room, bob)
    assert (await lists(alice))[0] == []
    await bob.sync()
    await bob.join(room)
    assert await lists(bob) == ([alice.user_id], [])


@pytest.mark.spec("MSC4186#extensions")
async def test_sliding_sync_tells_it_too(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room = await alice.create_room()
    body = {"extensions": {"e2ee": {"enabled": True}}}
    first = await alice.call("POST", "/_matrix/client/v4/sync", body, timeout="0")
    assert "device_lists" not in first["extensions"]["e2ee"]
    await bob.join(room)
    query = {"pos": first["pos"], "timeout": "60000"}
    answer = await alice.call("POST", "/_matrix/client/v4/sync", body, **query)
    assert answer["extensions"]["e2ee"]["device_lists"] == {"changed": [bob.user_id]}
