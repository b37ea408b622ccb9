"""How far users have read: receipts, threads, read markers, and the counts that follow."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from tests.api.test_history import at

if TYPE_CHECKING:
    from tests.helpers.homeserver import Homeserver, User


async def read(user: User, room: str, event_id: str, kind: str = "m.read", **body: object) -> int:
    path = at(room, "receipt", kind, event_id)
    return (await user.request("POST", path, body)).status


async def receipts(user: User, room: str) -> dict:
    """Return the receipts that an initial sync shows."""
    user.since = None
    joined = (await user.sync())["rooms"]["join"][room]
    for event in joined["ephemeral"]["events"]:
        if event["type"] == "m.receipt":
            return event["content"]
    return {}


async def test_a_receipt_is_seen_by_everyone_and_a_private_one_by_its_owner(
    homeserver: Homeserver,
) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room = await alice.create_room()
    await bob.join(room)
    first, second = await alice.say(room), await alice.say(room)
    assert await read(bob, room, first) == 200
    assert await read(bob, room, second, "m.read.private") == 200
    assert set(await receipts(alice, room)) == {first}
    own = await receipts(bob, room)
    assert set(own[first]["m.read"][bob.user_id]) == {"ts"}
    assert bob.user_id in own[second]["m.read.private"]


async def test_markers_never_move_back(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room = await alice.create_room()
    await bob.join(room)
    ids = [await alice.say(room, f"m{n}") for n in range(3)]
    assert await read(bob, room, ids[1]) == 200
    await bob.sync()
    assert await read(bob, room, ids[0]) == 200
    assert await read(bob, room, ids[1]) == 200
    assert room not in (await bob.sync()).get("rooms", {}).get("join", {})
    assert set(await receipts(alice, room)) == {ids[1]}
    marker = f"/user/{bob.user_id}/rooms/{quote(room)}/account_data/m.fully_read"
    for event_id, expected in ((ids[1], ids[1]), (ids[0], ids[1]), (ids[2], ids[2])):
        await bob.call("POST", at(room, "read_markers"), {"m.fully_read": event_id})
        assert (await bob.call("GET", marker))["event_id"] == expected


async def test_read_markers_set_all_three_at_once(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room = await alice.create_room()
    await bob.join(room)
    ids = [await alice.say(room, f"m{n}") for n in range(3)]
    await bob.sync()
    markers = {"m.fully_read": ids[0], "m.read": ids[1], "m.read.private": ids[2]}
    await bob.call("POST", at(room, "read_markers"), markers)
    joined = (await bob.sync())["rooms"]["join"][room]
    assert joined["account_data"]["events"] == [
        {"type": "m.fully_read", "content": {"event_id": ids[0]}}
    ]
    assert set(joined["ephemeral"]["events"][0]["content"]) == {ids[1], ids[2]}
    assert joined["unread_notifications"]["notification_count"] == 0
    await bob.call("POST", at(room, "receipt", "m.fully_read", ids[2]), {})
    marker = f"/user/{bob.user_id}/rooms/{quote(room)}/account_data/m.fully_read"
    assert (await bob.call("GET", marker))["event_id"] == ids[2]
    await bob.call("POST", at(room, "read_markers"), {})


async def test_a_receipt_lowers_the_count_and_an_old_one_does_not_raise_it(
    homeserver: Homeserver,
) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room = await alice.create_room()
    await bob.join(room)
    ids = [await alice.say(room, f"m{n}") for n in range(4)]

    async def unread() -> int:
        bob.since = None
        joined = (await bob.sync())["rooms"]["join"][room]
        return joined["unread_notifications"]["notification_count"]

    assert await unread() == 4
    for event_id, expected in ((ids[1], 2), (ids[0], 2), (ids[3], 0)):
        assert await read(bob, room, event_id) == 200
        assert await unread() == expected


@pytest.mark.spec("client-server-api#threaded-read-receipts")
async def test_threaded_receipts_must_fit_their_thread(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room = await alice.create_room()
    await bob.join(room)

    def related(rel_type: str, event_id: str) -> dict:
        return {"m.relates_to": {"rel_type": rel_type, "event_id": event_id}}

    root = await alice.say(room, "root")
    reply = await alice.say(room, "reply", **related("m.thread", root))
    plain = await alice.say(room, "plain")
    reference = await alice.say(room, "ref", **related("m.reference", root))
    reaction = await alice.send(room, "m.reaction", related("m.annotation", reference))
    edit = await alice.say(room, "edit", **related("m.replace", reply))
    other = await alice.say(room, "other root")

    for event_id, thread, status in (
        (root, "main", 200),
        (root, root, 200),
        (reply, root, 200),
        (reply, "main", 400),
        (reply, other, 400),
        (edit, root, 200),
        (edit, "main", 400),
        (plain, "main", 200),
        (plain, root, 400),
        (reaction, root, 200),
        (reaction, "main", 200),
    ):
        assert await read(bob, room, event_id, thread_id=thread) == status, (event_id, thread)
    for wrong in ("", "\0", 1, None):
        path = at(room, "receipt", "m.read", plain)
        answer = await bob.request("POST", path, {"thread_id": wrong})
        assert (answer.status, answer.json["errcode"]) == (400, "M_INVALID_PARAM")
    assert await read(bob, room, plain, "m.fully_read", thread_id="main") == 400
    assert await read(bob, room, plain, "m.unknown") == 400
    shown = await receipts(alice, room)
    assert shown[reaction]["m.read"][bob.user_id]["thread_id"] in ("main", root)


async def test_receipts_are_for_members_and_events_of_the_room(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room, other = await alice.create_room(), await alice.create_room()
    event_id, elsewhere = await alice.say(room), await alice.say(other)
    assert await read(bob, room, event_id) == 403
    assert await read(alice, room, elsewhere) == 404
    assert await read(alice, room, "$nothing") == 404
    assert await read(alice, "!nowhere:hs1", event_id) == 403
    assert (
        await bob.request("POST", at(room, "read_markers"), {"m.fully_read": event_id})
    ).status == 403
