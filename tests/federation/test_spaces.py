"""Spaces and summaries of rooms, as clients ask for them, of rooms here and on other servers."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from minihs.base.limits import SPACE_PAGE_MS, SUMMARY_KEPT_MS
from tests.federation.test_queries import space

if TYPE_CHECKING:
    from tests.helpers.homeserver import Homeserver, User
    from tests.helpers.network import EvilServer, Federation

V1 = "/_matrix/client/v1"
HIERARCHY = "/_matrix/federation/v1/hierarchy/{roomId}"


def hierarchy_of(room_id: str) -> str:
    return f"{V1}/rooms/{quote(room_id)}/hierarchy"


async def walked(user: User, room_id: str, **query: str) -> list[str]:
    """Return the rooms of a space, from all pages."""
    path, rooms = hierarchy_of(room_id), []
    page = await user.call("GET", path, **query)
    rooms += page["rooms"]
    while "next_batch" in page:
        page = await user.call("GET", path, **{**query, "from": page["next_batch"]})
        assert page["rooms"]
        rooms += page["rooms"]
    return [room["room_id"] for room in rooms]


async def link(user: User, parent: str, child: str, **content: object) -> None:
    await user.put_state(parent, "m.space.child", {"via": ["hs1"], **content}, child)


def told(room_id: str, **more: object) -> dict[str, object]:
    return {"room_id": room_id, "num_joined_members": 1, "join_rule": "public", **more}


def linked(child: str, *via: str) -> dict[str, object]:
    return {
        "type": "m.space.child",
        "state_key": child,
        "sender": "@m:evil",
        "content": {"via": list(via)},
        "origin_server_ts": 1,
    }


@pytest.mark.spec("client-server-api#get_matrixclientv1roomsroomidhierarchy")
async def test_a_space_is_walked_depth_first_in_the_order_of_its_links(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    last, first, leaf = [await alice.create_room(name=name) for name in ("Last", "First", "Leaf")]
    inner = await space(alice, leaf)
    top = await space(alice, last, inner)
    await link(alice, top, first, order="a")
    await link(alice, leaf, last)  # Not of a space: no link.
    await link(alice, inner, top)  # A loop.

    page = await alice.call("GET", hierarchy_of(top))

    assert [room["room_id"] for room in page["rooms"]] == [top, first, last, inner, leaf]
    rooms = {room["room_id"]: room for room in page["rooms"]}
    assert [event["state_key"] for event in rooms[top]["children_state"]] == [first, last, inner]
    assert rooms[top]["children_state"][0]["content"] == {"via": ["hs1"], "order": "a"}
    assert rooms[leaf]["children_state"] == []
    assert rooms[leaf]["name"] == "Leaf"
    assert "next_batch" not in page
    await alice.put_state(top, "m.space.child", {}, inner)
    assert await walked(alice, top) == [top, first, last]


async def test_how_deep_and_how_many_is_asked_for(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    leaf, other = await alice.create_room(), await alice.create_room()
    low = await space(alice, leaf)
    high = await space(alice, low)
    top = await space(alice, high, low, other, suggested=other)

    assert await walked(alice, top) == [top, high, low, leaf, other]
    for limit in "123456":
        assert await walked(alice, top, limit=limit) == [top, high, low, leaf, other]
    assert await walked(alice, top, max_depth="0", limit="2") == [top]
    # Met first where the walk ends, and again where it does not.
    assert await walked(alice, top, max_depth="2", limit="2") == [top, high, low, leaf, other]
    assert await walked(alice, top, suggested_only="true", limit="1") == [top, other]
    suggested = await alice.call("GET", hierarchy_of(top), suggested_only="true")
    assert [event["state_key"] for event in suggested["rooms"][0]["children_state"]] == [other]
    for query in ({"limit": "0"}, {"max_depth": "-1"}, {"from": "nonsense"}):
        assert (await alice.request("GET", hierarchy_of(top), **query)).status == 400
    page = await alice.call("GET", hierarchy_of(top), limit="1", max_depth="1")
    for change in ({"suggested_only": "true"}, {"max_depth": "2"}):
        query = {"from": page["next_batch"], **change}
        assert (await alice.request("GET", hierarchy_of(top), **query)).status == 400


async def test_only_what_a_user_may_look_at_is_shown(homeserver: Homeserver):
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    closed = await alice.create_room(preset="private_chat")
    public, knocked = await alice.create_room(), await alice.create_room()
    await alice.put_state(knocked, "m.room.join_rules", {"join_rule": "knock"})
    club = await alice.create_room(preset="private_chat")
    allow = [{"type": "m.room_membership", "room_id": club}]
    rule = {"join_rule": "restricted", "allow": allow}
    annex = await alice.create_room(
        initial_state=[{"type": "m.room.join_rules", "state_key": "", "content": rule}]
    )
    glass = await alice.create_room(
        preset="private_chat",
        initial_state=[
            {
                "type": "m.room.history_visibility",
                "state_key": "",
                "content": {"history_visibility": "world_readable"},
            }
        ],
    )
    top = await space(alice, closed, public, knocked, annex, glass)

    assert await walked(bob, top) == [top, public, knocked, glass]
    await alice.invite(closed, bob)
    await alice.invite(club, bob)
    assert await walked(bob, top) == [top, closed, public, knocked, glass]
    await bob.join(club)
    assert await walked(bob, top) == [top, closed, public, knocked, annex, glass]
    await alice.call("POST", f"/rooms/{quote(public)}/ban", {"user_id": bob.user_id})
    assert await walked(bob, top) == [top, closed, knocked, annex, glass]
    for room_id in ("!no:hs1", club):
        carol = await homeserver.register("carol" + room_id[1:3].lower())
        assert (await carol.request("GET", hierarchy_of(room_id))).status == 403


async def test_other_servers_are_asked_for_the_rooms_that_we_are_not_in(federation: Federation):
    hs1, hs2 = await federation.start("hs1"), await federation.start("hs2")
    alice, bob = await hs1.register("alice"), await hs2.register("bob")
    here, there = await alice.create_room(name="Here"), await bob.create_room(name="There")
    secret = await bob.create_room(preset="private_chat")
    below = await space(bob)
    await link(bob, below, here, order="a")
    await link(bob, below, there, order="b", via=["hs2"])
    top = await space(alice)
    await link(alice, top, below, order="a", via=["nowhere", "hs1", "hs2"])
    await link(alice, top, secret, order="b", via=["hs2"])

    assert await walked(alice, top) == [top, below, here, there]
    assert await walked(alice, top, limit="1") == [top, below, here, there]
    rooms = (await alice.call("GET", hierarchy_of(top)))["rooms"]
    assert [room.get("name") for room in rooms[2:]] == ["Here", "There"]
    await bob.invite(secret, alice)
    hs1.clock.advance_ms(1)  # type: ignore[attr-defined]  # a manual clock
    assert await walked(alice, top) == [top, below, here, there, secret]


async def test_what_was_told_is_kept_for_a_while_and_what_was_not_is_asked_again(
    hs1: Homeserver, alice: User, evil: EvilServer
):
    away, mute = "!away:evil", "!mute:evil"
    evil.on("GET", HIERARCHY, {"room": told(away), "children": []})
    top = await space(alice)
    for child in (away, mute):
        await alice.put_state(top, "m.space.child", {"via": ["evil"]}, child)

    def asked() -> int:
        return len(evil.asked("/hierarchy"))

    assert await walked(alice, top, limit="1") == [top, away]
    assert asked() == 2  # However many pages there were.
    hs1.clock.advance_ms(1)  # type: ignore[attr-defined]  # a manual clock
    assert await walked(alice, top) == [top, away]
    assert asked() == 3
    hs1.clock.advance_ms(SUMMARY_KEPT_MS + 1)  # type: ignore[attr-defined]  # a manual clock
    assert await walked(alice, top) == [top, away]
    assert asked() == 5


async def test_a_server_tells_only_of_the_room_and_its_children(
    hs1: Homeserver, alice: User, evil: EvilServer
):
    ours = await alice.create_room(name="Ours")
    closed = await alice.create_room(preset="private_chat", name="Closed")
    away, child, stranger = "!away:evil", "!child:evil", "!stranger:evil"
    links = [linked(child, "evil"), linked(ours, "evil"), {"type": "m.space.child"}, 7]
    evil.on(
        "GET",
        HIERARCHY,
        {
            "room": told(away, room_type="m.space", children_state=links, name=["no", "text"]),
            "children": [
                told(child, name="Child", room_version=11, extra="?"),
                told(ours, name="Mine now"),
                told(closed, name="Opened"),
                told(stranger),
                {"room_id": "nonsense"},
                None,
            ],
            "inaccessible_children": [ours, stranger, {}],
        },
    )
    top = await space(alice)
    await alice.put_state(top, "m.space.child", {"via": ["evil"]}, away)
    bob = await hs1.register("bob")

    rooms = (await bob.call("GET", hierarchy_of(top)))["rooms"]

    assert [room["room_id"] for room in rooms] == [top, away, child, ours]
    assert "name" not in rooms[1]
    assert [event["state_key"] for event in rooms[1]["children_state"]] == sorted([child, ours])
    assert set(rooms[2]) == {
        "room_id", "num_joined_members", "join_rule", "name", "world_readable", "guest_can_join",
        "children_state",
    }  # fmt: skip
    assert rooms[3]["name"] == "Ours"


async def test_lies_about_rooms_are_no_answers(hs1: Homeserver, alice: User, evil: EvilServer):
    top = await space(alice)
    await alice.put_state(top, "m.space.child", {"via": ["evil"]}, "!away:evil")
    for room in (told("!other:evil"), {}, told("!away:evil", num_joined_members="9")):
        evil.on("GET", HIERARCHY, {"room": room, "children": []})
        assert await walked(alice, top) == [top]
    for rule in ("invite", "private", "restricted"):
        evil.on("GET", HIERARCHY, {"room": told("!away:evil", join_rule=rule), "children": []})
        assert await walked(alice, top) == [top]


async def test_a_page_ends_before_its_reader_has_waited_long(
    hs1: Homeserver, alice: User, evil: EvilServer
):
    top = await space(alice)
    children = [f"!slow{number}:evil" for number in range(3)]
    for child in children:
        await alice.put_state(top, "m.space.child", {"via": ["evil"]}, child)

    def slow(room_id: str) -> dict[str, object]:
        hs1.clock.advance_ms(SPACE_PAGE_MS)  # type: ignore[attr-defined]  # a manual clock
        return {"room": told(room_id), "children": []}

    evil.on("GET", HIERARCHY, lambda request: slow(request.path["roomId"]))
    page = await alice.call("GET", hierarchy_of(top))
    assert [room["room_id"] for room in page["rooms"]] == [top, children[0]]
    assert await walked(alice, top) == [top, *children]


@pytest.mark.spec("client-server-api#get_matrixclientv1room_summaryroomidoralias")
async def test_the_summary_of_a_room_is_told_to_those_it_is_open_to(homeserver: Homeserver):
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room(
        name="Tea", room_alias_name="tea", room_version="11",
        initial_state=[
            {
                "type": "m.room.encryption",
                "state_key": "",
                "content": {"algorithm": "m.megolm.v1.aes-sha2"},
            }
        ],
    )  # fmt: skip
    closed = await alice.create_room(preset="private_chat")
    stranger = homeserver.stranger()

    def path(room: str) -> str:
        return f"{V1}/room_summary/{quote(room, safe='')}"

    by_id, by_alias = await bob.call("GET", path(room_id)), await bob.call("GET", path("#tea:hs1"))
    assert by_id == by_alias
    assert by_id["name"] == "Tea"
    assert by_id["membership"] == "leave"
    assert by_id["room_version"] == "11"
    assert by_id["encryption"] == "m.megolm.v1.aes-sha2"
    assert "allowed_room_ids" not in by_id
    assert (await alice.call("GET", path(room_id)))["membership"] == "join"
    del by_id["membership"]
    assert await stranger.call("GET", path(room_id)) == by_id
    for room in (closed, "!no:hs1", "#no:hs1"):
        for user in (bob, stranger):
            assert (await user.request("GET", path(room))).status == 404
    await alice.invite(closed, bob)
    assert (await bob.call("GET", path(closed)))["membership"] == "invite"
    assert (await bob.request("GET", path("tea"))).status == 400


async def test_the_summary_of_a_room_elsewhere_is_asked_for(federation: Federation):
    hs1, hs2 = await federation.start("hs1"), await federation.start("hs2")
    alice, bob = await hs1.register("alice"), await hs2.register("bob")
    room_id = await bob.create_room(name="There", room_alias_name="there", room_version="12")
    secret = await bob.create_room(name="Secret", preset="private_chat")

    def path(room: str) -> str:
        return f"{V1}/room_summary/{quote(room, safe='')}"

    assert (await alice.request("GET", path(room_id))).status == 404  # Its id names no server.
    assert (await alice.call("GET", path(room_id), via="hs2"))["name"] == "There"
    assert (await alice.call("GET", path("#there:hs2")))["room_id"] == room_id
    assert (await hs1.stranger().request("GET", path(room_id), via="hs2")).status == 404
    assert (await alice.request("GET", path(secret), via="hs2")).status == 404
    await bob.invite(secret, alice)
    shown = await alice.call("GET", path(secret))
    assert (shown["name"], shown["membership"]) == ("Secret", "invite")
