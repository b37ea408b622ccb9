"""Profiles. Spec: client-server-api#profiles."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.helpers.homeserver import Homeserver, User


async def test_anybody_sees_what_alice_tells_of_herself(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    profile = f"/profile/{alice.user_id}"
    fields = {
        "displayname": "Alice \0 Liddell",
        "avatar_url": "LemurLover",
        "m.tz": "Europe/London",
        "org.example.job-title": {"title": None, "since": [1, 2.5]},
        "org.example.nothing": None,
    }

    for field, value in fields.items():
        assert await alice.call("PUT", f"{profile}/{field}", {field: value, "other": 1}) == {}

    stranger = homeserver.stranger()
    assert await stranger.call("GET", profile) == fields
    for field, value in fields.items():
        assert await stranger.call("GET", f"{profile}/{field}") == {field: value}


@pytest.mark.parametrize("value", ["", None], ids=repr)
@pytest.mark.parametrize("field", ["displayname", "avatar_url"])
async def test_an_empty_name_or_avatar_is_none(homeserver: Homeserver, field: str, value: object):
    alice = await homeserver.register("alice")
    path = f"/profile/{alice.user_id}/{field}"
    await alice.call("PUT", path, {field: "something"})

    await alice.call("PUT", path, {field: value})

    response = await alice.request("GET", path)
    assert (response.status, response.json["errcode"]) == (404, "M_NOT_FOUND")


async def test_a_field_is_deleted_once_or_twice(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    path = f"/profile/{alice.user_id}/m.tz"
    await alice.call("PUT", path, {"m.tz": "Europe/London"})

    for _ in range(2):
        assert await alice.call("DELETE", path) == {}

    assert (await alice.request("GET", path)).status == 404
    assert await alice.call("GET", f"/profile/{alice.user_id}") == {}


@pytest.mark.parametrize("path", ["", "/displayname", "/avatar_url"])
async def test_who_does_not_exist_has_no_profile(homeserver: Homeserver, path: str):
    await homeserver.register("alice")

    for user_id in ("@nobody:hs1", "@alice:elsewhere", "alice", "%00"):
        response = await homeserver.request("GET", f"/profile/{user_id}{path}")
        assert response.status in (400, 404)


async def test_a_profile_is_changed_by_its_owner_only(homeserver: Homeserver):
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    path = f"/profile/{alice.user_id}/displayname"

    answers = [
        await bob.request("PUT", path, {"displayname": "Bob's"}),
        await bob.request("DELETE", path),
    ]
    unknown = await homeserver.request("PUT", path, {"displayname": "Mallory's"})

    assert [(a.status, a.json["errcode"]) for a in answers] == [(403, "M_FORBIDDEN")] * 2
    assert unknown.status == 401


@pytest.mark.parametrize(
    ("field", "body", "errcode"),
    [
        ("displayname", {}, "M_MISSING_PARAM"),
        ("displayname", {"displayname": 1}, "M_INVALID_PARAM"),
        ("displayname", {"displayname": "x" * 257}, "M_INVALID_PARAM"),
        ("avatar_url", {"avatar_url": "x" * 1001}, "M_INVALID_PARAM"),
        ("m.tz", {"m.tz": []}, "M_INVALID_PARAM"),
        ("Capital.letter", {"Capital.letter": 1}, "M_INVALID_PARAM"),
        ("no_namespace", {"no_namespace": 1}, "M_INVALID_PARAM"),
        ("x." + "y" * 254, {"x." + "y" * 254: 1}, "M_KEY_TOO_LARGE"),
        ("org.example.big", {"org.example.big": "x" * 65_536}, "M_PROFILE_TOO_LARGE"),
        ("displayname", b"[]", "M_BAD_JSON"),
        ("displayname", b"{", "M_NOT_JSON"),
    ],
    ids=lambda value: repr(value)[:30],
)
async def test_what_is_no_field_is_refused(
    homeserver: Homeserver, field: str, body: object, errcode: str
):
    alice = await homeserver.register("alice")

    response = await alice.request("PUT", f"/profile/{alice.user_id}/{field}", body)

    assert (response.status, response.json["errcode"]) == (400, errcode)
    assert await alice.call("GET", f"/profile/{alice.user_id}") == {}


async def test_two_writers_do_not_exceed_the_limit_together(homeserver: Homeserver):
    alice = await homeserver.register("alice")

    answers = await asyncio.gather(
        *(
            alice.request("PUT", f"/profile/{alice.user_id}/org.f{n}", {f"org.f{n}": "x" * 30_000})
            for n in range(4)
        )
    )

    assert sorted(a.status for a in answers) == [200, 200, 400, 400]


@pytest.mark.spec("client-server-api#events-on-change-of-profile-information")
async def test_a_new_name_is_in_the_member_events_of_alices_rooms(homeserver: Homeserver):
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    rooms = [await alice.create_room(), await bob.create_room()]
    await alice.join(rooms[1])
    elsewhere = await bob.create_room()

    path = f"/profile/{alice.user_id}"
    await alice.call("PUT", f"{path}/displayname", {"displayname": "Alice"})
    await alice.call("PUT", f"{path}/avatar_url", {"avatar_url": "mxc://hs1/a"})
    named = [await member_of(bob if n else alice, room, alice) for n, room in enumerate(rooms)]
    await alice.call("DELETE", f"{path}/displayname")
    nameless = await member_of(bob, rooms[1], alice)

    for member in named:
        assert member == {
            "membership": "join",
            "displayname": "Alice",
            "avatar_url": "mxc://hs1/a",
        }
    assert nameless == {"membership": "join", "avatar_url": "mxc://hs1/a"}
    assert (await bob.request("GET", member_path(elsewhere, alice))).status == 404


def member_path(room_id: str, user: User) -> str:
    """Return the path of somebody's member event."""
    return f"/rooms/{room_id}/state/m.room.member/{user.user_id}"


async def member_of(reader: User, room_id: str, user: User) -> dict[str, object]:
    """Return the content of a user's member event."""
    return await reader.call("GET", member_path(room_id, user))
