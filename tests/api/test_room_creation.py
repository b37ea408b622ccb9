"""Making rooms. Spec: client-server-api#post_matrixclientv3createroom."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from minihs.base.clock import ManualClock
from tests.helpers.homeserver import running_homeserver

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.homeserver import Homeserver, User

V12 = {"room_version": "12"}


async def state_of(user: User, room_id: str) -> dict[tuple[str, str], dict]:
    """Return the content of each entry of a room's state."""
    events = await user.call("GET", f"/rooms/{quote(room_id)}/state")
    return {(event["type"], event["state_key"]): event["content"] for event in events}


async def timeline_of(user: User, room_id: str) -> list[dict]:
    """Return a room's events, the oldest first."""
    page = await user.call("GET", f"/rooms/{quote(room_id)}/messages", dir="f", limit="100")
    return page["chunk"]


async def refusal(user: User, **options: object) -> tuple[int, str]:
    """Return how making a room is refused."""
    response = await user.request("POST", "/createRoom", options)
    assert response.status >= 400, response.json
    return response.status, response.json["errcode"]


async def test_the_first_events_come_in_the_order_of_the_specification(homeserver: Homeserver):
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")

    room_id = await alice.create_room(
        preset="private_chat",
        room_alias_name="pub",
        name="The Pub",
        topic="Beer",
        initial_state=[
            {"type": "m.room.topic", "content": {"topic": "overridden"}},
            {"type": "m.room.encryption", "content": {"algorithm": "m.megolm.v1.aes-sha2"}},
            {"type": "com.example.stall", "state_key": "7", "content": {"beer": "stout"}},
            {"type": "m.room.join_rules", "content": {"join_rule": "knock"}},
        ],
        invite=[bob.user_id],
        is_direct=True,
    )

    events = await timeline_of(alice, room_id)
    assert [event["type"] for event in events] == [
        "m.room.create",
        "m.room.member",
        "m.room.power_levels",
        "m.room.canonical_alias",
        "m.room.history_visibility",
        "m.room.guest_access",
        "m.room.encryption",
        "com.example.stall",
        "m.room.join_rules",
        "m.room.name",
        "m.room.topic",
        "m.room.member",
    ]
    state = await state_of(alice, room_id)
    assert state["m.room.canonical_alias", ""] == {"alias": "#pub:hs1"}
    assert state["m.room.name", ""] == {"name": "The Pub"}
    assert state["m.room.topic", ""] == {
        "topic": "Beer",
        "m.topic": {"m.text": [{"body": "Beer"}]},
    }
    assert state["com.example.stall", "7"] == {"beer": "stout"}
    assert state["m.room.join_rules", ""] == {"join_rule": "knock"}
    assert state["m.room.member", bob.user_id] == {
        "membership": "invite",
        "is_direct": True,
    }


@pytest.mark.parametrize(
    ("options", "join_rule", "guest_access", "visibility"),
    [
        ({"preset": "private_chat"}, "invite", "can_join", "private"),
        ({"preset": "trusted_private_chat"}, "invite", "can_join", "private"),
        ({"preset": "public_chat"}, "public", "forbidden", "private"),
        ({"preset": None, "visibility": "public"}, "public", "forbidden", "public"),
        ({"preset": None, "visibility": "private"}, "invite", "can_join", "private"),
        ({"preset": None}, "invite", "can_join", "private"),
        ({"preset": "private_chat", "visibility": "public"}, "invite", "can_join", "public"),
    ],
)
async def test_presets(
    homeserver: Homeserver,
    options: dict,
    join_rule: str,
    guest_access: str,
    visibility: str,
):
    alice = await homeserver.register("alice")

    room_id = await alice.create_room(**options)

    state = await state_of(alice, room_id)
    assert state["m.room.join_rules", ""] == {"join_rule": join_rule}
    # Rooms without the event take no guests.
    set_access = state.get(("m.room.guest_access", ""), {"guest_access": "forbidden"})
    assert set_access == {"guest_access": guest_access}
    assert state["m.room.history_visibility", ""] == {"history_visibility": "shared"}
    listed = await alice.call("GET", f"/directory/list/room/{quote(room_id)}")
    assert listed == {"visibility": visibility}


@pytest.mark.parametrize("version", ["1", "2", "3", "6", "9", "10", "11", "12"])
async def test_every_room_version_can_be_made_and_used(homeserver: Homeserver, version: str):
    alice = await homeserver.register("alice")

    room_id = await alice.create_room(room_version=version)
    event_id = await alice.say(room_id)

    create = (await state_of(alice, room_id))["m.room.create", ""]
    assert create["room_version"] == version
    assert ("creator" in create) == (version not in ("11", "12"))
    events = await timeline_of(alice, room_id)
    assert events[-1]["event_id"] == event_id


async def test_power_levels_of_a_new_room(homeserver: Homeserver):
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")

    plain = await alice.create_room(power_level_content_override={"events_default": 10})
    trusted = await alice.create_room(preset="trusted_private_chat", invite=[bob.user_id])

    levels = (await state_of(alice, plain))["m.room.power_levels", ""]
    assert levels["users"] == {alice.user_id: 100}
    assert levels["events_default"] == 10
    assert levels["events"]["m.room.tombstone"] == 100
    assert (levels["state_default"], levels["invite"]) == (50, 50)
    levels = (await state_of(alice, trusted))["m.room.power_levels", ""]
    assert levels["users"] == {alice.user_id: 100, bob.user_id: 100}


async def test_since_version_12_creators_have_no_level_and_the_room_is_its_create_event(
    homeserver: Homeserver,
):
    alice, bob, carol = [await homeserver.register(name) for name in ("alice", "bob", "carol")]

    room_id = await alice.create_room(
        **V12,
        preset="trusted_private_chat",
        invite=[bob.user_id, carol.user_id],
        creation_content={"additional_creators": [carol.user_id], "m.federate": False},
    )

    events = await timeline_of(alice, room_id)
    assert room_id == "!" + events[0]["event_id"][1:]
    state = await state_of(alice, room_id)
    assert state["m.room.create", ""] == {
        "room_version": "12",
        "m.federate": False,
        "additional_creators": [carol.user_id, bob.user_id],
    }
    assert state["m.room.power_levels", ""]["users"] == {}
    assert state["m.room.power_levels", ""]["events"]["m.room.tombstone"] == 150


@pytest.mark.parametrize(
    "creators", ["@bob:hs1", [1], ["bob"], ["@invalid:dom$ain$.com"], {"@bob:hs1": 1}]
)
async def test_additional_creators_are_user_ids(homeserver: Homeserver, creators: object):
    alice = await homeserver.register("alice")

    refused = await refusal(alice, **V12, creation_content={"additional_creators": creators})

    assert refused == (400, "M_INVALID_PARAM")


@pytest.mark.parametrize("version", ["10", "11", "12"])
async def test_nobody_names_another_as_the_creator(homeserver: Homeserver, version: str):
    alice = await homeserver.register("alice")
    claims = {"creator": "@mallory:hs1", "room_version": "1"}
    room_id = await alice.create_room(room_version=version, creation_content=claims)
    content = await alice.call("GET", f"/rooms/{quote(room_id)}/state/m.room.create")
    assert content["room_version"] == version
    assert content.get("creator") == (alice.user_id if version == "10" else None)


async def test_what_is_wrong_is_refused_and_leaves_no_room(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    table: list[tuple[dict, tuple[int, str]]] = [
        ({"room_version": "nonsense"}, (400, "M_UNSUPPORTED_ROOM_VERSION")),
        ({"room_version": 1}, (400, "M_BAD_JSON")),
        ({"preset": "chat"}, (400, "M_BAD_JSON")),
        ({"name": 7}, (400, "M_BAD_JSON")),
        ({"initial_state": [{"content": {}}]}, (400, "M_BAD_JSON")),
        ({"invite": ["bob"]}, (400, "M_INVALID_PARAM")),
        ({"invite": ["@alice:hs1"]}, (403, "M_FORBIDDEN")),
        ({"invite_3pid": [{"medium": "email"}]}, (403, "M_THREEPID_DENIED")),
        ({"room_alias_name": "a:b"}, (400, "M_INVALID_PARAM")),
        ({"room_alias_name": ""}, (400, "M_INVALID_PARAM")),
        (
            {"initial_state": [{"type": "m.room.create", "content": {}}]},
            (400, "M_INVALID_ROOM_STATE"),
        ),
        (
            {"power_level_content_override": {"users": {"@alice:hs1": 0}}},
            (400, "M_INVALID_ROOM_STATE"),
        ),
        (
            {**V12, "power_level_content_override": {"users": {"@alice:hs1": 100}}},
            (400, "M_INVALID_ROOM_STATE"),
        ),
        ({"power_level_content_override": {"users": {"@b:hs1": 2**53}}}, (400, "M_BAD_JSON")),
        (
            {"initial_state": [{"type": "m.room.canonical_alias", "content": {"alias": "#x:hs1"}}]},
            (400, "M_BAD_ALIAS"),
        ),
        ({"name": "x" * 70_000}, (413, "M_TOO_LARGE")),
    ]

    for options, expected in table:
        assert await refusal(alice, **options) == expected, options

    assert await alice.call("GET", "/joined_rooms") == {"joined_rooms": []}


async def test_an_alias_belongs_to_the_room_that_was_first(homeserver: Homeserver):
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room(room_alias_name="pub")

    assert await refusal(bob, room_alias_name="pub") == (400, "M_ROOM_IN_USE")

    found = await bob.call("GET", f"/directory/room/{quote('#pub:hs1')}")
    assert found == {"room_id": room_id, "servers": ["hs1"]}


async def test_of_rooms_made_at_the_same_time_one_gets_the_alias(homeserver: Homeserver):
    people = [await homeserver.register(f"user{n}") for n in range(4)]

    answers = await asyncio.gather(
        *(user.request("POST", "/createRoom", {"room_alias_name": "pub"}) for user in people)
    )

    assert sorted(answer.status for answer in answers) == [200, 400, 400, 400]
    assert {a.json["errcode"] for a in answers if a.status == 400} == {"M_ROOM_IN_USE"}
    rooms = [(await user.call("GET", "/joined_rooms"))["joined_rooms"] for user in people]
    assert sum(map(len, rooms)) == 1


async def test_rooms_made_alike_in_one_millisecond_are_two_rooms(
    database_url: str, tmp_path: Path
) -> None:
    async with running_homeserver(
        database_url, tmp_path, clock=ManualClock(), default_room_version="12"
    ) as server:
        alice = await server.register("alice")
        assert len({await alice.create_room() for _ in range(3)}) == 3


async def test_rooms_made_alike_by_two_processes_at_once_are_two_rooms(
    database_url: str, tmp_path: Path
) -> None:
    async with running_homeserver(
        database_url, tmp_path, clock=ManualClock(), workers=2, default_room_version="12"
    ) as server:
        alice = await server.register("alice")
        made = await asyncio.gather(*(alice.create_room() for _ in range(8)))
        assert len(set(made)) == 8
        assert set((await alice.call("GET", "/joined_rooms"))["joined_rooms"]) == set(made)
