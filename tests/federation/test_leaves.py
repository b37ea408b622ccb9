"""Rejecting invites and retracting knocks of rooms of other servers."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from tests.federation.test_invites import MallorysRoom, invite, invited, send
from tests.federation.test_joins import enter, members, two
from tests.helpers.rooms import MALLORY

if TYPE_CHECKING:
    from tests.helpers.network import Federation


async def test_bob_rejects_an_invite_and_alice_sees_it(federation: Federation):
    hs1, hs2 = await two(federation)
    alice, bob = await hs1.register("alice"), await hs2.register("bob")
    room_id = await alice.create_room(preset="private_chat")
    for _ in range(3):
        assert await invite(alice, room_id, bob.user_id) == (200, None)
        assert room_id in (await bob.sync())["rooms"]["invite"]

        await bob.leave(room_id)

        answer = (await bob.sync())["rooms"]
        (left,) = answer["leave"][room_id]["timeline"]["events"]
        assert left["content"]["membership"] == "leave"
        assert "invite" not in answer
        assert (await members(alice, room_id))[bob.user_id] == "leave"
    await bob.leave(room_id)  # Once more is as good as once.


async def test_where_nobody_helps_bob_is_rid_of_the_invite_all_the_same(federation: Federation):
    hs1, hs2 = await two(federation)
    alice, bob = await hs1.register("alice"), await hs2.register("bob")
    room_id = await alice.create_room(preset="private_chat")
    await invite(alice, room_id, bob.user_id)
    await bob.sync()
    federation.network.isolate("hs2")

    await bob.leave(room_id)

    answer = (await bob.sync())["rooms"]
    assert room_id in answer["leave"]
    bob.since = None
    assert (await bob.sync()).get("rooms") is None


async def test_an_invite_to_a_room_that_everybody_left_is_rejected(federation: Federation):
    hs1, hs2 = await two(federation)
    alice, bob = await hs1.register("alice"), await hs2.register("bob")
    room_id = await alice.create_room(preset="private_chat", invite=[bob.user_id])
    await alice.leave(room_id)

    await bob.leave(room_id)

    assert "invite" not in (await bob.sync()).get("rooms", {})


async def test_a_forged_invite_can_be_rejected(federation: Federation):
    hs1 = await federation.start("hs1")
    alice = await hs1.register("alice")
    evil = federation.evil()
    event = invited(MallorysRoom(), alice.user_id)
    assert await send(evil, event) == (200, "")
    assert event.room_id in (await alice.sync())["rooms"]["invite"]

    await alice.leave(event.room_id)

    assert event.room_id in (await alice.sync())["rooms"]["leave"]
    assert evil.asked("/make_leave/")


async def test_bob_leaves_for_good_when_he_had_joined(federation: Federation):
    hs1, hs2 = await two(federation)
    alice, bob = await hs1.register("alice"), await hs2.register("bob")
    room_id = await alice.create_room()
    await enter(bob, room_id, "hs1")

    await bob.leave(room_id)

    await bob.leave(room_id)
    response = await bob.request("PUT", f"/rooms/{quote(room_id)}/send/m.room.message/1", {})
    assert response.status == 403


async def test_whoever_made_an_invite_and_nobody_else_takes_it_back(federation: Federation):
    hs1 = await federation.start("hs1")
    alice = await hs1.register("alice")
    evil = federation.evil()
    room = MallorysRoom()
    event = invited(room, alice.user_id)
    room.join("@dora:evil")
    assert await send(evil, event) == (200, "")

    async def push(sender: str, membership: str = "leave", **changes: object) -> None:
        leave = room.draft(
            sender, "m.room.member", {"membership": membership}, state_key=alice.user_id
        )
        answer = await evil.request(
            "hs1", "PUT", f"/_matrix/federation/v1/send/{leave.event_id[1:12]}{len(changes)}",
            {"origin": "evil", "origin_server_ts": 1, "pdus": [{**leave.pdu, **changes}]},
        )  # fmt: skip
        assert isinstance(answer, dict)

    await push("@dora:evil")
    await push(str(MALLORY), signatures={"evil": {}})
    assert event.room_id in (await alice.sync())["rooms"]["invite"]
    await push(str(MALLORY))
    answer = (await alice.sync())["rooms"]
    assert event.room_id in answer["leave"]
    assert "invite" not in answer
