"""Servers that take every request and never answer: nobody waits for them for long.

A client gives up after a minute or so; what a user asks for must have been answered by then.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from minihs.base.clock import ManualClock
from minihs.services.federation import sending
from tests.federation.test_backfill import Past, join
from tests.federation.test_joins import enter, members, two
from tests.helpers.deliveries import Peer, begin
from tests.helpers.remote_members import put_member
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from tests.helpers.homeserver import Homeserver, User
    from tests.helpers.network import EvilServer, Federation

A_CLIENT_WAITS_MS = 60_000
STEP_MS = 250


async def waited_ms(federation: Federation, work: Coroutine[object, object, object]) -> int:
    """Let time pass until something is done, while silent servers are waited for; return it."""
    clock = federation.network.clock
    assert isinstance(clock, ManualClock)
    began_ms, task = clock.monotonic_ms(), asyncio.ensure_future(work)

    def is_done() -> bool:
        if not task.done() and federation.network.unanswered:
            clock.advance_ms(STEP_MS)
        return task.done()

    await until(is_done)
    task.result()
    return clock.monotonic_ms() - began_ms


async def test_who_joins_is_let_in_by_the_third_server_if_two_are_silent(federation: Federation):
    hs1, hs2 = await two(federation)
    alice, bob = await hs1.register("alice"), await hs2.register("bob")
    room_id = await alice.create_room()
    for name in ("silent1", "silent2"):
        federation.evil(name)
    federation.network.silence("silent1", "silent2")

    waited = await waited_ms(federation, enter(bob, room_id, "silent1", "silent2", "hs1"))

    assert waited < A_CLIENT_WAITS_MS
    assert (await members(alice, room_id))["@bob:hs2"] == "join"


@pytest.mark.parametrize("what", ["join", "knock"])
async def test_who_asks_silent_servers_to_be_let_in_is_answered(
    federation: Federation, alice: User, what: str
):
    names = [f"silent{n}" for n in range(8)]
    for name in names:
        federation.evil(name)
    federation.network.silence(*names)
    room_id = f"!somewhere:{names[0]}"
    path = f"/{what}/{quote(room_id)}?" + "&".join(f"via={name}" for name in names)

    async def ask() -> None:
        assert (await alice.request("POST", path, {})).status == 502

    assert await waited_ms(federation, ask()) < A_CLIENT_WAITS_MS


@pytest.mark.parametrize(
    "path",
    [
        "/profile/@mallory:evil",
        "/directory/room/%23tea:evil",
        "/publicRooms?server=evil",
        "/join/%23tea:evil",
    ],
)
async def test_who_asks_of_what_is_on_a_silent_server_is_answered(
    federation: Federation, alice: User, evil: EvilServer, path: str
):
    federation.network.silence(evil.name)

    async def ask() -> None:
        method = "POST" if path.startswith("/join") else "GET"
        assert (await alice.request(method, path, {} if method == "POST" else None)).status > 400

    assert await waited_ms(federation, ask()) <= A_CLIENT_WAITS_MS // 2 + 1_000


@pytest.mark.parametrize("path", ["messages?dir=b&limit=100", "timestamp_to_event?ts=1&dir=f"])
async def test_history_of_silent_servers_is_not_waited_for(
    federation: Federation, hs1: Homeserver, alice: User, path: str
):
    evil = federation.evil()
    past = Past(evil, "12")
    await join(alice, evil, past)
    for n in range(3):
        name = federation.evil(f"silent{n}").name
        await put_member(hs1.services, past.room.room_id, f"@mallory:{name}")
    federation.network.silence("evil", "silent0", "silent1", "silent2")
    version = "v1" if path.startswith("timestamp") else "v3"

    async def ask() -> None:
        answer = await alice.request(
            "GET", f"/_matrix/client/{version}/rooms/{quote(past.room.room_id)}/{path}"
        )
        assert answer.status in (200, 404)

    assert await waited_ms(federation, ask()) < A_CLIENT_WAITS_MS


async def test_a_room_is_made_before_silent_servers_have_taken_its_invites(
    federation: Federation, alice: User, clock: ManualClock
):
    names = [f"silent{n}" for n in range(25)]
    for name in names:
        federation.evil(name)
    federation.network.silence(*names)

    waited = await waited_ms(federation, alice.create_room(invite=[f"@u:{name}" for name in names]))

    assert waited < A_CLIENT_WAITS_MS

    def all_are_asked() -> bool:
        clock.advance_ms(1_000)
        asked = {d.destination for d in federation.network.log if "/invite/" in d.target}
        return asked == set(names)

    await until(all_are_asked)


async def test_a_silent_server_has_a_minute_for_a_transaction(
    federation: Federation, hs1: Homeserver, alice: User, clock: ManualClock
):
    await begin(hs1.services)
    silent, other = Peer(federation.evil("silent")), Peer(federation.evil("other"))
    federation.network.silence("silent")
    room_id = await alice.create_room()
    for peer in (silent, other):
        await put_member(hs1.services, room_id, peer.user)
    began_ms = clock.monotonic_ms()

    await alice.say(room_id, "hello")
    await until(lambda: other.bodies == ["hello"] and federation.network.unanswered)
    assert clock.monotonic_ms() == began_ms

    def is_given_up() -> bool:
        if federation.network.unanswered:
            clock.advance_ms(STEP_MS)
        return any(d.destination == "silent" for d in federation.network.log)

    await until(is_given_up)
    assert clock.monotonic_ms() - began_ms <= 61_000


async def test_silent_servers_never_have_all_places(
    federation: Federation,
    hs1: Homeserver,
    alice: User,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(sending, "UNDER_WAY_MAX", 4)
    monkeypatch.setattr(sending, "DOUBTFUL_MAX", 3)
    await begin(hs1.services)
    good = Peer(federation.evil("good"))
    silent = [Peer(federation.evil(f"silent{n}")) for n in range(6)]
    room_id = await alice.create_room()
    await put_member(hs1.services, room_id, good.user)
    await alice.say(room_id, "before")
    await until(lambda: good.bodies == ["before"])
    for peer in silent:
        peer.open.clear()
        await put_member(hs1.services, room_id, peer.user)
    await alice.say(room_id, "to all")
    await until(lambda: sum(bool(peer.attempts) for peer in silent) >= 3)

    await alice.say(room_id, "hello")

    await until(lambda: good.bodies == ["before", "to all", "hello"])
    assert sum(bool(peer.attempts) for peer in silent) == 3
    for peer in silent:
        peer.open.set()
    await until(lambda: all(peer.bodies == ["to all", "hello"] for peer in silent))
