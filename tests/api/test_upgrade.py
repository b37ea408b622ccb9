"""Replacing rooms. Spec: client-server-api#room-upgrades."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from minihs.protocol.events import Event
from minihs.protocol.power_levels import PowerLevels
from minihs.protocol.room_versions import ROOM_VERSIONS
from minihs.services.rooms.upgrade import replacement_levels

if TYPE_CHECKING:
    from tests.helpers.homeserver import Homeserver, User


async def state_of(user: User, room_id: str) -> dict[tuple[str, str], dict]:
    """Return the content of each entry of a room's state."""
    events = await user.call("GET", f"/rooms/{quote(room_id)}/state")
    return {(event["type"], event["state_key"]): event["content"] for event in events}


async def upgrade(user: User, room_id: str, version: str, **body: object) -> str:
    """Upgrade a room; return its replacement."""
    path = f"/rooms/{quote(room_id)}/upgrade"
    return (await user.call("POST", path, {"new_version": version, **body}))["replacement_room"]


@pytest.mark.parametrize(
    ("old", "new"), [("9", "10"), ("10", "11"), ("11", "12"), ("12", "12"), ("12", "11")]
)
async def test_a_room_is_replaced(homeserver: Homeserver, old: str, new: str):
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room(
        room_version=old,
        visibility="public",
        room_alias_name="pub",
        name="Pub",
        topic="Beer",
        creation_content={"type": "m.space", "m.federate": False, "com.example": 1},
        initial_state=[
            {"type": "m.room.encryption", "content": {"algorithm": "a"}},
            {"type": "m.room.guest_access", "content": {"guest_access": "forbidden"}},
            {"type": "m.space.child", "state_key": "!a:hs1", "content": {"via": ["hs1"]}},
            {"type": "m.space.child", "state_key": "!b:hs1", "content": {}},
            {"type": "com.example.state", "content": {"a": 1}},
        ],
    )
    ban = {"user_id": "@mallory:hs1", "reason": "spam"}
    await alice.call("POST", f"/rooms/{quote(room_id)}/ban", ban)
    last = await alice.say(room_id)

    replacement = await upgrade(alice, room_id, new)

    before, after = await state_of(alice, room_id), await state_of(alice, replacement)
    predecessor = {"room_id": room_id} | ({"event_id": last} if new != "12" else {})
    expected = {
        "room_version": new,
        "predecessor": predecessor,
        "type": "m.space",
        "m.federate": False,
    }
    if new == "10":
        expected["creator"] = alice.user_id
    assert after["m.room.create", ""] == expected
    for kind in ("name", "topic", "encryption", "join_rules", "history_visibility", "guest_access"):
        assert after[f"m.room.{kind}", ""] == before[f"m.room.{kind}", ""]
    assert after["m.space.child", "!a:hs1"] == {"via": ["hs1"]}
    assert ("m.space.child", "!b:hs1") not in after
    assert ("com.example.state", "") not in after
    assert after["m.room.member", "@mallory:hs1"] == {"membership": "ban", "reason": "spam"}
    assert before["m.room.tombstone", ""]["replacement_room"] == replacement

    found = await bob.call("GET", f"/directory/room/{quote('#pub:hs1')}")
    assert found["room_id"] == replacement
    assert after["m.room.canonical_alias", ""] == {"alias": "#pub:hs1"}
    assert before["m.room.canonical_alias", ""] == {}
    listed = (await bob.call("GET", "/publicRooms"))["chunk"]
    assert [entry["room_id"] for entry in listed] == [replacement]

    levels = before["m.room.power_levels", ""]
    assert (levels["events_default"], levels["invite"]) == (50, 50)
    assert after["m.room.power_levels", ""]["events_default"] == 0
    await bob.join(replacement)
    await bob.join(room_id)
    path = f"/rooms/{quote(room_id)}/send/m.room.message/1"
    assert (await bob.request("PUT", path, {"body": "x"})).status == 403


async def test_who_may_not_and_what_cannot(homeserver: Homeserver):
    alice, bob, carol = [await homeserver.register(name) for name in ("alice", "bob", "carol")]
    room_id = await alice.create_room()
    await bob.join(room_id)

    async def refusal(user: User, room: str, body: object) -> tuple[int, str]:
        response = await user.request("POST", f"/rooms/{quote(room)}/upgrade", body)
        return response.status, response.json["errcode"]

    to_11 = {"new_version": "11"}
    assert await refusal(bob, room_id, to_11) == (403, "M_FORBIDDEN")
    assert await refusal(carol, room_id, to_11) == (403, "M_FORBIDDEN")
    assert await refusal(alice, "!no:hs1", to_11) == (404, "M_NOT_FOUND")
    unsupported = await refusal(alice, room_id, {"new_version": "x"})
    assert unsupported == (400, "M_UNSUPPORTED_ROOM_VERSION")
    assert await refusal(alice, room_id, {}) == (400, "M_BAD_JSON")
    creators = {"new_version": "12", "additional_creators": ["bob"]}
    assert await refusal(alice, room_id, creators) == (400, "M_INVALID_PARAM")
    assert (await alice.call("GET", "/joined_rooms"))["joined_rooms"] == [room_id]


A, B, C = "@alice:hs1", "@bob:hs1", "@carol:hs1"


@pytest.mark.parametrize(
    ("old", "old_users", "creators", "new", "expected"),
    [
        ("11", {A: 100, B: 100}, {B}, "12", {A: 100}),
        ("11", {A: 100, B: 100, C: 50}, {A, B}, "12", {C: 50}),
        ("12", {B: 150, C: 50}, {B, C}, "12", {}),
        ("12", {B: 150}, {A}, "11", {A: 150, B: 150}),
        ("10", {A: 100, B: 50}, {A}, "11", {A: 100, B: 50}),
        ("9", {A: "100", B: " 50 ", C: "x"}, {A}, "10", {A: 100, B: 50}),
    ],
)
def test_levels_pass_to_the_replacement(
    old: str, old_users: dict[str, object], creators: set[str], new: str, expected: dict[str, int]
):
    version = ROOM_VERSIONS[old]
    create = {"type": "m.room.create", "state_key": "", "sender": A, "content": {"creator": A}}
    content = {"users": old_users, "events": {"m.room.tombstone": 100}, "ban": 70}
    event = {"type": "m.room.power_levels", "state_key": "", "sender": A, "content": content}
    levels = PowerLevels.of(
        Event.from_pdu(event, version, "$1"),  # type: ignore[arg-type]
        Event.from_pdu(create, version, "$2"),  # type: ignore[arg-type]
        version,
    )

    result = replacement_levels(levels, ROOM_VERSIONS[new], creators)

    assert result["users"] == expected
    assert result["events"] == {"m.room.tombstone": 150 if new == "12" else 100}
    assert result["ban"] == 70


async def test_push_rules_tags_and_direct_chats_follow(homeserver: Homeserver):
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room()
    await bob.join(room_id)
    for user in (alice, bob):
        rule = f"/pushrules/global/room/{quote(room_id)}"
        await user.call("PUT", rule, {"actions": ["dont_notify"]})
        own = f"/user/{quote(user.user_id)}"
        await user.call("PUT", f"{own}/rooms/{quote(room_id)}/tags/m.favourite", {"order": 0.5})
        await user.call("PUT", f"{own}/account_data/m.direct", {"@x:hs1": [room_id], "@y:hs1": []})

    replacement = await upgrade(alice, room_id, "12")
    await bob.join(replacement)

    for user in (alice, bob):
        rules = (await user.call("GET", "/pushrules/"))["global"]["room"]
        assert {rule["rule_id"] for rule in rules} == {room_id, replacement}
        assert all(rule["actions"] == ["dont_notify"] for rule in rules)
        own = f"/user/{quote(user.user_id)}"
        tags = await user.call("GET", f"{own}/rooms/{quote(replacement)}/tags")
        assert tags == {"tags": {"m.favourite": {"order": 0.5}}}
        direct = await user.call("GET", f"{own}/account_data/m.direct")
        assert direct == {"@x:hs1": [room_id, replacement], "@y:hs1": []}


async def test_rules_follow_into_a_room_that_somebody_made_by_hand(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    room_id = await alice.create_room()
    await alice.call("PUT", f"/pushrules/global/room/{quote(room_id)}", {"actions": ["notify"]})

    replacement = await alice.create_room(creation_content={"predecessor": {"room_id": room_id}})

    rules = (await alice.call("GET", "/pushrules/"))["global"]["room"]
    assert {rule["rule_id"] for rule in rules} == {room_id, replacement}
