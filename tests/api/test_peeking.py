"""Rooms that are followed by somebody who is not in them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from minihs.services.rooms import history
from tests.api.test_history import at, set_visibility
from tests.api.test_typing_notifications import types
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from tests.helpers.homeserver import Homeserver, User

pytestmark = pytest.mark.spec("client-server-api#peeking_get_matrixclientv3events")

LONG = "60000"


async def open_room(alice: User) -> str:
    """Return a room of Alice's that everybody may read."""
    room = await alice.create_room()
    await set_visibility(alice, room, "world_readable")
    return room


def bodies(answer: dict) -> list[str]:
    assert set(answer) == {"chunk", "start", "end"}
    return [event["content"]["body"] for event in answer["chunk"]]


async def poll(user: User, room: str, start: str | None, timeout: str = "0") -> dict:
    query = {"from": start} if start is not None else {}
    return await user.call("GET", "/events", room_id=room, timeout=timeout, **query)


async def begin_to_wait(
    homeserver: Homeserver, user: User, room: str, start: str
) -> asyncio.Task[dict]:
    """Return a poll that waits."""
    waiting = asyncio.create_task(poll(user, room, start, LONG))
    await until(lambda: sum(services.views.waiting for services in homeserver.workers) == 1)
    return waiting


async def test_a_room_is_followed_from_its_preview_on(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room = await open_room(alice)
    start = (await bob.call("GET", at(room, "initialSync")))["messages"]["end"]
    for n in range(120):
        await alice.say(room, f"{n}")
    first = await poll(bob, room, start, LONG)
    assert first["start"] == start
    second = await poll(bob, room, first["end"], LONG)
    assert bodies(first) + bodies(second) == [f"{n}" for n in range(120)]
    assert {event["room_id"] for event in first["chunk"]} == {room}
    third = await poll(bob, room, second["end"])
    assert bodies(third) == []

    waiting = await begin_to_wait(homeserver, bob, room, third["end"])
    assert await types(alice, room) == 200
    await alice.say(await open_room(alice), "elsewhere")
    assert not waiting.done()
    await alice.say(room, "at last")
    assert bodies(await waiting) == ["at last"]


async def test_without_a_token_it_begins_now(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room = await open_room(alice)
    await alice.say(room, "before")
    now = await poll(bob, room, None)
    assert bodies(now) == []
    assert now["start"] == now["end"]
    await alice.say(room, "after")
    assert bodies(await poll(bob, room, now["end"])) == ["after"]


async def test_who_follows_a_room_hears_no_more_than_those_outside_may(
    homeserver: Homeserver,
) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room = await open_room(alice)
    start = (await poll(bob, room, None))["end"]
    waiting = await begin_to_wait(homeserver, bob, room, start)
    await set_visibility(alice, room, "shared")
    with pytest.raises(AssertionError, match="403"):
        await waiting
    answer = await bob.request("GET", "/events", room_id=room)
    assert (answer.status, answer.json["errcode"]) == (403, "M_FORBIDDEN")
    answer = await alice.request("GET", "/events")
    assert (answer.status, answer.json["errcode"]) == (400, "M_MISSING_PARAM")
    answer = await alice.request("GET", "/events", room_id=room, **{"from": "nonsense"})
    assert (answer.status, answer.json["errcode"]) == (400, "M_INVALID_PARAM")


async def test_nothing_is_missed_while_the_stream_is_begun_anew(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room = await open_room(alice)
    waiting = await begin_to_wait(homeserver, bob, room, (await poll(bob, room, None))["end"])
    for services in homeserver.workers:
        services.follower.begin_anew()
    await alice.say(room, "here")
    assert bodies(await waiting) == ["here"]


async def test_who_waits_is_answered_when_the_server_stops(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room = await open_room(alice)
    waiting = await begin_to_wait(homeserver, bob, room, (await poll(bob, room, None))["end"])
    for services in homeserver.workers:
        services.views.close()
    assert bodies(await waiting) == []


async def test_who_has_left_may_follow_as_far_as_they_may_look(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room = await open_room(alice)
    await bob.join(room)
    await bob.leave(room)
    waiting = await begin_to_wait(homeserver, bob, room, (await poll(bob, room, None))["end"])
    await alice.say(room, "not for who left")
    for services in homeserver.workers:
        services.views.close()
    assert bodies(await waiting) == []


async def test_what_is_not_for_who_follows_is_passed_over_in_many_answers(
    homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "SCANNED_EVENTS_MAX", 10)
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room = await alice.create_room()
    await set_visibility(alice, room, "joined")
    begin = (await alice.call("GET", at(room, "messages"), dir="b", limit="1"))["start"]
    for n in range(250):
        await alice.say(room, f"hidden {n}")
    await set_visibility(alice, room, "world_readable")
    await alice.say(room, "for everybody")
    first = await poll(bob, room, begin)
    assert first["chunk"] == []
    second = await poll(bob, room, first["end"])
    assert (second["start"], second["chunk"]) == (first["end"], [])
    third = await poll(bob, room, second["end"])
    assert third["chunk"][-1]["content"]["body"] == "for everybody"
    at_once = await poll(bob, room, begin, LONG)
    assert at_once["chunk"][-1]["event_id"] == third["chunk"][-1]["event_id"]
