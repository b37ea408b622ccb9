"""Knocking on rooms of other servers."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from tests.federation.test_invites import invite, shown
from tests.federation.test_joins import Resident, enter, members, two
from tests.helpers.rooms import ALICE

if TYPE_CHECKING:
    from tests.helpers.homeserver import User
    from tests.helpers.network import Federation, Received

RULE = {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}


async def knock(user: User, room: str, *via: str, reason: str = "please") -> tuple[int, str | None]:
    """Knock; return status and error code."""
    path = f"/knock/{quote(room, safe='')}?" + "&".join(f"via={server}" for server in via)
    response = await user.request("POST", path, {"reason": reason})
    return response.status, response.json.get("errcode")


@pytest.mark.parametrize("version", ["7", "11", "12"])
async def test_bob_knocks_is_invited_and_comes_in(federation: Federation, version: str):
    hs1, hs2 = await two(federation)
    alice, bob = await hs1.register("alice"), await hs2.register("bob")
    room_id = await alice.create_room(name="Tea", initial_state=[RULE], room_version=version)

    assert await knock(bob, room_id, "hs1") == (200, None)

    events = {(e["type"], e["state_key"]): e for e in shown(await bob.sync(), room_id, "knock")}
    assert events["m.room.name", ""]["content"] == {"name": "Tea"}
    assert events["m.room.member", bob.user_id]["content"]["reason"] == "please"
    assert (await members(alice, room_id))[bob.user_id] == "knock"
    assert await invite(alice, room_id, bob.user_id) == (200, None)
    answer = (await bob.sync())["rooms"]
    assert room_id in answer["invite"]
    await enter(bob, room_id)
    assert (await members(alice, room_id))[bob.user_id] == "join"


async def test_a_knock_is_retracted(federation: Federation):
    hs1, hs2 = await two(federation)
    alice, bob = await hs1.register("alice"), await hs2.register("bob")
    room_id = await alice.create_room(initial_state=[RULE])
    await knock(bob, room_id, "hs1")
    assert room_id in (await bob.sync())["rooms"]["knock"]

    await bob.leave(room_id)

    answer = (await bob.sync())["rooms"]
    assert room_id in answer["leave"]
    assert "knock" not in answer
    assert (await members(alice, room_id))[bob.user_id] == "leave"


async def test_only_rooms_that_want_it_are_knocked_on(federation: Federation):
    hs1, hs2 = await two(federation)
    alice, bob = await hs1.register("alice"), await hs2.register("bob")
    closed = await alice.create_room(preset="private_chat", room_version="11")
    old = await alice.create_room(room_version="6")

    assert await knock(bob, closed, "hs1") == (403, "M_FORBIDDEN")
    assert await knock(bob, old, "hs1") == (400, "M_INCOMPATIBLE_ROOM_VERSION")
    assert await knock(bob, "!nothing:hs1", "hs1") == (404, "M_NOT_FOUND")
    assert (await bob.sync()).get("rooms") is None


async def test_what_tells_of_a_room_may_be_junk(federation: Federation):
    hs2 = await federation.start("hs2")
    bob = await hs2.register("bob")
    resident = Resident(federation)
    room = resident.room
    room.send(ALICE, "m.room.join_rules", {"join_rule": "knock"}, state_key="")

    def template(received: Received) -> object:
        user_id = received.path["userId"]
        draft = room.draft(user_id, "m.room.member", {"membership": "knock"}, state_key=user_id)
        return {"room_version": "11", "event": draft.pdu}

    resident.server.on("GET", "/_matrix/federation/v1/make_knock/{roomId}/{userId}", template)
    resident.server.on(
        "PUT", "/_matrix/federation/v1/send_knock/{roomId}/{eventId}",
        {"knock_room_state": [None, 1, {"type": "x"}, *resident.current()]},
    )  # fmt: skip

    assert await knock(bob, room.room_id, "hs1") == (200, None)

    kinds = {event["type"] for event in shown(await bob.sync(), room.room_id, "knock")}
    assert "m.room.create" in kinds
    assert "x" not in kinds
