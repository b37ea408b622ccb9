"""Presence between servers: told to those who share a room, believed of one's own users only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from minihs.services.ephemeral import presence
from minihs.services.federation.recipients import NEWCOMERS_PAUSE_MS
from tests.api.test_presence import hears, says, status, told
from tests.helpers.deliveries import Peer, handed_out, settled
from tests.helpers.mirror import push
from tests.helpers.remote_members import put_member
from tests.helpers.rooms import ALICE, MALLORY
from tests.helpers.servers import join, pass_time, quiet, room_of_two, start
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from minihs.base.clock import ManualClock
    from tests.helpers.homeserver import Homeserver, User
    from tests.helpers.network import EvilServer, Federation
    from tests.helpers.rooms import Room

pytestmark = pytest.mark.spec("server-server-api#presence")


def update(user_id: object = MALLORY, state: object = "online", **more: object) -> dict:
    return {"user_id": user_id, "presence": state, "last_active_ago": 5_000, **more}


def edu(*updates: object) -> dict:
    return {"edu_type": "m.presence", "content": {"push": list(updates)}}


def told_of_mallory(answer: dict) -> dict | None:
    return told(answer).get(MALLORY)


async def test_presence_is_told_to_the_other_server(federation: Federation):
    servers, alice, bob, _ = await room_of_two(federation)
    await bob.sync()
    await says(alice, "online", "at work")
    await quiet(servers)
    content = told(await bob.sync())[alice.user_id]
    assert content.pop("last_active_ago") >= 0
    assert content == {"presence": "online", "status_msg": "at work", "currently_active": True}
    await says(alice, "unavailable")
    await quiet(servers)
    assert told(await bob.sync())[alice.user_id]["presence"] == "unavailable"
    assert (await status(bob, alice))["presence"] == "unavailable"


async def test_a_server_that_joins_is_told_who_is_there(federation: Federation, clock: ManualClock):
    servers = await start(federation, "hs1", "hs2")
    alice, bob = await servers[0].register("alice"), await servers[1].register("bob")
    room_id = await alice.create_room()
    await says(alice, "online", "here")
    await says(bob, "online", "there")
    await join(bob, room_id, "hs1")
    assert (await hears(alice, bob, "online"))["status_msg"] == "there"
    await pass_time(servers, clock, NEWCOMERS_PAUSE_MS)
    assert (await hears(bob, alice, "online"))["status_msg"] == "here"


async def test_the_edu_has_everybody_in_one_list(federation: Federation):
    (server,) = await start(federation, "hs1")
    peer = Peer(federation.evil("evil"))
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await alice.create_room()
    await bob.join(room_id)
    stranger = await server.register("stranger")
    await put_member(server.services, room_id, peer.user)
    await settled(server.services)
    peer.open.clear()
    await alice.say(room_id)
    await until(lambda: peer.attempts)
    await says(alice, "online")
    await says(alice, "unavailable", "soon")
    await says(bob, "online")
    await says(stranger, "online")
    await handed_out(server.services)
    peer.open.set()
    await until(lambda: peer.edus("m.presence"))
    (content,) = peer.edus("m.presence")
    updates = {one.pop("user_id"): one for one in content["push"]}
    assert updates == {
        alice.user_id: {
            "presence": "unavailable", "status_msg": "soon", "last_active_ago": 0,
            "currently_active": False,
        },
        bob.user_id: {"presence": "online", "last_active_ago": 0, "currently_active": True},
    }  # fmt: skip


async def test_who_stays_is_told_of_again_and_silence_means_gone(
    federation: Federation, clock: ManualClock
):
    servers, alice, bob, _ = await room_of_two(federation)
    await says(alice, "unavailable")
    await quiet(servers)

    async def go_on(duration_ms: int) -> None:
        for _ in range(duration_ms // 60_000):
            clock.advance_ms(60_000)
            sign = services.presence._sign(services, alice.user_id)
            sign.until_ms = clock.now_ms() + 120_000  # She is there.
            for server in servers:
                await server.services.presence.renew(server.services)
                await server.services.delivery.hold_shards(server.services, "the only one")
                await presence.expire(server.services)
            await quiet(servers)

    services = servers[0].services
    await go_on(4_800_000)
    assert (await status(bob, alice))["presence"] == "unavailable", "told of every 25 minutes"
    federation.network.isolate("hs2")
    await go_on(2_400_000)
    assert (await status(bob, alice))["presence"] == "offline", "nothing was heard of her"


async def test_presence_of_another_server_is_told_to_those_in_the_room(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    bob = await hs1.register("bob")
    await bob.sync()
    wish = update(status_msg="plotting", currently_active=True)
    await push(evil, hs1, [], [edu(update(state="unavailable")), edu(wish)])
    assert told_of_mallory(await alice.sync()) == {
        "presence": "online", "status_msg": "plotting", "last_active_ago": 5_000,
        "currently_active": True,
    }  # fmt: skip
    assert told(await bob.sync()) == {}
    await push(evil, hs1, [], [edu(wish)])
    assert told_of_mallory(await alice.sync()) is None, "no news"
    await push(evil, hs1, [], [edu(update(state="offline"))])
    content = told_of_mallory(await alice.sync())
    assert content is not None
    assert content["presence"] == "offline"


@pytest.mark.parametrize("user_id", [ALICE, "@bob:hs1", "@eve:other", "mallory", "", 1, None])
async def test_F07_nobody_tells_the_presence_of_the_users_of_others(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, user_id: object
):
    await push(evil, hs1, [], [edu(update(user_id, status_msg="a lie"), update())])
    answer = told(await alice.sync())
    assert MALLORY in answer
    assert [c for c in answer.values() if "status_msg" in c] == []
    assert "status_msg" not in await status(alice, alice)


async def test_F07_nor_of_users_who_share_no_room(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    users = [f"@user{n}:evil" for n in range(20)]
    await push(evil, hs1, [], [edu(*map(update, users))])
    rows = await hs1.services.db.fetch("SELECT user_id FROM presence WHERE NOT local")
    assert rows == []


@pytest.mark.parametrize(
    "wrong",
    [None, {}, update(state="busy"), update(state=1), {"user_id": MALLORY}],
)
async def test_what_is_no_presence_is_ignored(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, wrong: object
):
    await push(evil, hs1, [], [edu(wrong), {"edu_type": "m.presence", "content": {"push": 1}}])
    assert told_of_mallory(await alice.sync()) is None


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"status_msg": 7}, {}),
        ({"status_msg": "x" * 1_001}, {}),
        ({"status_msg": "a\0b"}, {"status_msg": "ab"}),
        ({"last_active_ago": -1}, {"last_active_ago": None}),
        ({"last_active_ago": "x"}, {"last_active_ago": None}),
        ({"last_active_ago": 2**53 - 1}, {"last_active_ago": None}),
        ({"currently_active": "yes"}, {}),
    ],
)
async def test_odd_members_are_left_out(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, more: dict, expected: dict
):
    await push(evil, hs1, [], [edu(update(**more))])
    plain = {"presence": "online", "last_active_ago": 5_000, "currently_active": False}
    wanted = {key: value for key, value in (plain | expected).items() if value is not None}
    assert told_of_mallory(await alice.sync()) == wanted


async def test_without_presence_nothing_is_taken_or_told(federation: Federation):
    server = await federation.start("hs1", presence_enabled=False)
    evil, alice = federation.evil(), await server.register("alice")
    room_id = await alice.create_room()
    await put_member(server.services, room_id, MALLORY)
    await push(evil, server, [], [edu(update())])
    assert await server.services.db.fetch("SELECT FROM presence") == []
