"""What other servers say of their users' devices and keys: told to those who share a room."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.api.test_device_lists import lists
from tests.helpers.mirror import push
from tests.helpers.rooms import ALICE, MALLORY

if TYPE_CHECKING:
    from tests.helpers.homeserver import Homeserver, User
    from tests.helpers.network import EvilServer
    from tests.helpers.rooms import Room

pytestmark = pytest.mark.spec("server-server-api#device-management")


def edu(user_id: object = MALLORY, **content: object) -> dict:
    update = {"user_id": user_id, "device_id": "D", "stream_id": 1, "prev_id": [], **content}
    return {"edu_type": "m.device_list_update", "content": update}


@pytest.mark.parametrize("in_memory", [True, False])
async def test_changes_are_told_to_those_who_share_a_room(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, *, in_memory: bool
):
    bob = await hs1.register("bob")
    await bob.sync()
    await push(evil, hs1, [], [edu(), edu(stream_id=2)])
    if not in_memory:
        hs1.services.follower.floor = hs1.services.follower.head
    assert await lists(alice) == ([MALLORY], [])
    assert await lists(alice) == ([], [])
    assert await lists(bob) == ([], [])
    keys = {"edu_type": "m.signing_key_update", "content": {"user_id": MALLORY, "master_key": {}}}
    await push(evil, hs1, [], [keys])
    assert await lists(alice) == ([MALLORY], [])


@pytest.mark.parametrize("user_id", [ALICE, "@bob:hs1", "@eve:other", "mallory", "", 1, None])
async def test_F07_nobody_changes_the_devices_of_the_users_of_others(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, user_id: object
):
    await push(evil, hs1, [], [edu(user_id)])
    assert await lists(alice) == ([], [])
    await push(evil, hs1, [], [edu(user_id), edu()])
    assert await lists(alice) == ([MALLORY], [])


async def test_F07_nor_of_users_who_share_no_room(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    await push(evil, hs1, [], [edu(f"@user{n}:evil") for n in range(20)])
    assert await hs1.services.db.fetch("SELECT FROM device_lists") == []


@pytest.mark.parametrize(
    "odd", [{"stream_id": 2**53 - 1}, {"stream_id": -1}, {"prev_id": [7]}, {"prev_id": "x"}]
)
async def test_whatever_numbers_it_has_nobody_is_asked(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, odd: dict
):
    evil.received.clear()
    await push(evil, hs1, [], [edu(**odd)] * 5)
    assert await lists(alice) == ([MALLORY], [])
    assert evil.asked("/devices/") == []
