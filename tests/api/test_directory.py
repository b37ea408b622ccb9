"""Aliases and the room directory. Spec: client-server-api#published-room-directory."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

if TYPE_CHECKING:
    from tests.helpers.homeserver import Homeserver, User


def path_of(alias: str) -> str:
    """Return the path of an alias in the directory."""
    return f"/directory/room/{quote(alias, safe='')}"


async def ask(user: User, method: str, path: str, body: object = None) -> tuple[int, str | None]:
    """Make a request; return status and errcode."""
    response = await user.request(method, path, body)
    return response.status, response.json.get("errcode")


async def search(user: User, **body: object) -> list[str]:
    """Return the names of the published rooms that are found."""
    answer = await user.call("POST", "/publicRooms", body)
    return [entry["name"] for entry in answer["chunk"]]


async def canonical(user: User, room_id: str) -> object:
    """Return the content of a room's canonical alias event."""
    return await user.call("GET", f"/rooms/{quote(room_id)}/state/m.room.canonical_alias")


async def test_an_alias_is_made_found_listed_and_deleted(homeserver: Homeserver):
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room()
    alias = "#老虎Â£я🤨👉ඞ/a:hs1"
    body = {"room_id": room_id}
    aliases = f"/rooms/{quote(room_id)}/aliases"
    assert await alice.call("GET", aliases) == {"aliases": []}

    assert await ask(bob, "PUT", path_of(alias), body) == (403, "M_FORBIDDEN")
    assert await ask(alice, "PUT", path_of(alias), {"room_id": "!no:hs1"}) == (403, "M_FORBIDDEN")
    assert await ask(alice, "PUT", path_of(alias), body) == (200, None)
    assert await ask(alice, "PUT", path_of(alias), body) == (409, "M_UNKNOWN")
    assert await ask(alice, "PUT", path_of("#a:elsewhere"), body) == (400, "M_INVALID_PARAM")
    assert await ask(alice, "PUT", path_of("alias"), body) == (400, "M_INVALID_PARAM")
    assert await ask(alice, "PUT", path_of("#b:hs1"), {}) == (400, "M_BAD_JSON")

    stranger = homeserver.stranger()
    found = await stranger.call("GET", path_of(alias))
    assert found == {"room_id": room_id, "servers": ["hs1"]}
    assert await ask(stranger, "GET", path_of("#b:hs1")) == (404, "M_NOT_FOUND")
    assert await ask(stranger, "GET", path_of("#b:elsewhere")) == (404, "M_NOT_FOUND")
    assert await ask(stranger, "GET", path_of("b")) == (400, "M_INVALID_PARAM")
    assert await alice.call("GET", aliases) == {"aliases": [alias]}
    assert await ask(bob, "GET", aliases) == (403, "M_FORBIDDEN")
    assert await ask(bob, "GET", "/rooms/!no:hs1/aliases") == (403, "M_FORBIDDEN")
    world = {"history_visibility": "world_readable"}
    await alice.put_state(room_id, "m.room.history_visibility", world)
    assert await bob.call("GET", aliases) == {"aliases": [alias]}

    assert await ask(bob, "DELETE", path_of(alias)) == (403, "M_FORBIDDEN")
    assert await ask(alice, "DELETE", path_of(alias)) == (200, None)
    assert await ask(alice, "DELETE", path_of(alias)) == (404, "M_NOT_FOUND")
    assert await ask(stranger, "GET", path_of(alias)) == (404, "M_NOT_FOUND")


async def test_who_deletes_an_alias_cleans_up_the_canonical_alias_if_they_may(
    homeserver: Homeserver,
):
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room()
    await bob.join(room_id)
    for user, alias in ((alice, "#a:hs1"), (bob, "#b:hs1"), (bob, "#c:hs1")):
        await user.call("PUT", path_of(alias), {"room_id": room_id})
    named = {"alias": "#b:hs1", "alt_aliases": ["#a:hs1", "#c:hs1"], "com.example": 1}
    await alice.put_state(room_id, "m.room.canonical_alias", named)

    assert await ask(bob, "DELETE", path_of("#a:hs1")) == (403, "M_FORBIDDEN")
    assert await ask(bob, "DELETE", path_of("#b:hs1")) == (200, None)  # bob made it
    assert await canonical(alice, room_id) == named
    assert await ask(alice, "DELETE", path_of("#a:hs1")) == (200, None)
    assert await canonical(alice, room_id) == named | {"alt_aliases": ["#c:hs1"]}
    assert await ask(alice, "DELETE", path_of("#c:hs1")) == (200, None)  # alice has the power
    assert await canonical(alice, room_id) == {"alias": "#b:hs1", "com.example": 1}

    only = await alice.create_room(room_alias_name="only")
    await alice.call("DELETE", path_of("#only:hs1"))
    assert await canonical(alice, only) == {}


async def test_rooms_are_published_by_those_who_may_name_them(homeserver: Homeserver):
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room(name="Pub")
    await bob.join(room_id)
    path = f"/directory/list/room/{quote(room_id)}"

    assert await ask(bob, "PUT", path, {"visibility": "public"}) == (403, "M_FORBIDDEN")
    assert await ask(alice, "PUT", path, {"visibility": "secret"}) == (400, "M_BAD_JSON")
    assert await search(bob) == []
    assert await ask(alice, "PUT", path, {}) == (200, None)  # public by default
    assert await homeserver.stranger().call("GET", path) == {"visibility": "public"}
    assert await search(bob) == ["Pub"]
    assert await ask(alice, "PUT", path, {"visibility": "private"}) == (200, None)
    assert await search(bob) == []
    unknown = "/directory/list/room/!no:hs1"
    assert await ask(alice, "GET", unknown) == (404, "M_NOT_FOUND")
    assert await ask(alice, "PUT", unknown, {}) == (404, "M_NOT_FOUND")


async def test_what_the_directory_tells_of_a_room(homeserver: Homeserver):
    alice, bob, carol = [await homeserver.register(name) for name in ("alice", "bob", "carol")]
    plain = await alice.create_room(visibility="public", initial_state=[])
    full = await alice.create_room(
        visibility="public",
        preset="private_chat",
        room_alias_name="full",
        name="Full",
        topic="All about Wombles",
        creation_content={"type": "m.space"},
        initial_state=[
            {"type": "m.room.avatar", "content": {"url": "mxc://hs1/a"}},
            {"type": "m.room.join_rules", "content": {"join_rule": "knock"}},
            {
                "type": "m.room.history_visibility",
                "content": {"history_visibility": "world_readable"},
            },
        ],
        invite=[bob.user_id],
    )
    await bob.join(full)
    await carol.join(plain)
    await carol.leave(plain)

    answer = await homeserver.stranger().call("GET", "/publicRooms")

    assert answer == {
        "total_room_count_estimate": 2,
        "chunk": [
            {
                "room_id": full,
                "num_joined_members": 2,
                "world_readable": True,
                "guest_can_join": True,
                "join_rule": "knock",
                "name": "Full",
                "topic": "All about Wombles",
                "canonical_alias": "#full:hs1",
                "avatar_url": "mxc://hs1/a",
                "room_type": "m.space",
            },
            {
                "room_id": plain,
                "num_joined_members": 1,
                "world_readable": False,
                "guest_can_join": False,
                "join_rule": "public",
            },
        ],
    }


async def test_rooms_are_searched_and_filtered(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    rooms: dict[str, dict[str, object]] = {
        "Alpha": {"topic": "Test Topic Wombles"},
        "Beta wombles": {"creation_content": {"type": "m.space"}},
        "Gamma": {"room_alias_name": "womblesfan"},
        "Delta": {"creation_content": {"type": "m.game"}},
    }
    for name, options in rooms.items():
        await alice.create_room(visibility="public", name=name, **options)

    async def found(**wanted: object) -> list[str]:
        return sorted(await search(alice, filter=wanted))

    assert await found() == ["Alpha", "Beta wombles", "Delta", "Gamma"]
    assert await found(generic_search_term="wombles") == ["Alpha", "Beta wombles", "Gamma"]
    assert await found(generic_search_term="TEST TOPIC") == ["Alpha"]
    assert await found(generic_search_term="nothing") == []
    assert await found(room_types=[None]) == ["Alpha", "Gamma"]
    assert await found(room_types=["m.space", None], generic_search_term="wombles") == [
        "Alpha",
        "Beta wombles",
        "Gamma",
    ]
    assert await found(room_types=["m.space", "m.game"]) == ["Beta wombles", "Delta"]
    assert await found(room_types=[]) == []
    assert await search(alice, third_party_instance_id="irc") == []


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 6])
async def test_pages_of_the_directory_go_there_and_back(homeserver: Homeserver, limit: int):
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    rooms = [await alice.create_room(visibility="public", name=f"Room {n}") for n in range(5)]
    await asyncio.gather(bob.join(rooms[2]), bob.join(rooms[4]))
    everything = await search(alice)
    assert set(everything[:2]) == {"Room 2", "Room 4"}  # most members first

    pages: list[dict] = [await alice.call("POST", "/publicRooms", {"limit": limit})]
    assert "prev_batch" not in pages[0]
    while "next_batch" in pages[-1]:
        since = pages[-1]["next_batch"]
        pages.append(await alice.call("GET", "/publicRooms", limit=str(limit), since=since))

    names = [[entry["name"] for entry in page["chunk"]] for page in pages]
    assert list(itertools.chain.from_iterable(names)) == everything
    assert all(len(page) == limit for page in names[:-1])
    for before, page in itertools.pairwise(pages):
        body = {"limit": limit, "since": page["prev_batch"]}
        back = await alice.call("POST", "/publicRooms", body)
        assert back["chunk"] == before["chunk"]
        assert ("prev_batch" in back) == (before is not pages[0])
        assert "next_batch" in back


async def test_what_the_directory_cannot_do(homeserver: Homeserver):
    alice = await homeserver.register("alice")

    elsewhere = await alice.request("GET", "/publicRooms", server="elsewhere")
    assert (elsewhere.status, elsewhere.json["errcode"]) == (404, "M_NOT_FOUND")
    here = await alice.call("POST", "/publicRooms", {}, server="hs1")
    assert here["chunk"] == []
    endless = {"since": f"f{'9' * 5_000}_!a"}
    for body in ({"since": "nonsense"}, endless, {"limit": 0}, {"limit": -1}):
        assert await ask(alice, "POST", "/publicRooms", body) == (400, "M_INVALID_PARAM")
    assert await ask(alice, "POST", "/publicRooms", {"limit": "x"}) == (400, "M_BAD_JSON")
    assert (await homeserver.stranger().request("POST", "/publicRooms", {})).status == 401
