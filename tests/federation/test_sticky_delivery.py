"""Sticky events between servers. MSC4354#federation-behaviour."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from minihs.protocol import unstable
from tests.helpers.deliveries import HOLDER, Peer, begin, pass_time, settled
from tests.helpers.network import raw
from tests.helpers.remote_members import put_member

if TYPE_CHECKING:
    from minihs.base.clock import ManualClock
    from tests.helpers.homeserver import Homeserver, User
    from tests.helpers.network import Federation

DURATION = unstable.STICKY_DURATION_PARAMETER.unstable
MINUTE_MS = 60_000


@pytest.fixture
async def hs1(federation: Federation) -> Homeserver:
    server = await federation.start("hs1", default_room_version="11")
    await begin(server.services)
    return server


@pytest.fixture
async def alice(hs1: Homeserver) -> User:
    return await hs1.register("alice")


@pytest.fixture
async def peer(federation: Federation) -> Peer:
    return Peer(federation.evil("evil"))


async def stick(alice: User, room_id: str, body: str, ms: int = 10 * MINUTE_MS) -> None:
    path = f"/rooms/{quote(room_id)}/send/m.room.message/{body}"
    await alice.call("PUT", path, {"msgtype": "m.text", "body": body}, **{DURATION: str(ms)})


async def test_s_7_a_server_that_joins_is_pushed_what_is_still_sticky(
    hs1: Homeserver, alice: User, peer: Peer, clock: ManualClock
):
    room_id = await alice.create_room()
    await stick(alice, room_id, "dead", MINUTE_MS)
    await pass_time(hs1.services, clock, MINUTE_MS)
    await stick(alice, room_id, "first")
    await alice.say(room_id, "ordinary")
    await stick(alice, room_id, "second")
    await put_member(hs1.services, room_id, peer.user)
    await settled(hs1.services)
    assert peer.bodies == ["first", "second"]
    await alice.say(room_id, "later")
    await settled(hs1.services)
    assert peer.bodies == ["first", "second", "later"]


async def test_s_7_a_second_user_of_a_server_brings_nothing_again(
    hs1: Homeserver, alice: User, peer: Peer
):
    room_id = await alice.create_room()
    await stick(alice, room_id, "once")
    await put_member(hs1.services, room_id, peer.user)
    await put_member(hs1.services, room_id, "@other:evil")
    await settled(hs1.services)
    assert peer.bodies == ["once"]


async def test_s_4_a_redacted_one_is_not_pushed(hs1: Homeserver, alice: User, peer: Peer):
    room_id = await alice.create_room()
    path = f"/rooms/{quote(room_id)}/send/m.room.message/x"
    content = {"msgtype": "m.text", "body": "x"}
    answer = await alice.call("PUT", path, content, **{DURATION: str(MINUTE_MS)})
    redact = f"/rooms/{quote(room_id)}/redact/{quote(answer['event_id'])}/r"
    await alice.call("PUT", redact, {})
    await put_member(hs1.services, room_id, peer.user)
    await settled(hs1.services)
    assert peer.bodies == []


async def test_s_6_after_an_outage_every_sticky_event_comes_that_still_is(
    hs1: Homeserver, alice: User, peer: Peer, clock: ManualClock
):
    room_id = await alice.create_room()
    await put_member(hs1.services, room_id, peer.user)
    await settled(hs1.services)
    peer.answer = lambda _: raw({"errcode": "M_UNKNOWN", "error": "down"}, 503)
    await stick(alice, room_id, "dies", MINUTE_MS)
    for n in range(60):
        await stick(alice, room_id, f"sticky {n}")
        await alice.say(room_id, f"ordinary {n}")
    await settled(hs1.services)
    destination = hs1.services.delivery._destinations["evil"]
    hs1.services.delivery._fall_behind(destination)  # As with a queue that has grown too long.
    clock.advance_ms(2 * MINUTE_MS)
    peer.answer = lambda _: None
    await hs1.services.delivery.hold_shards(hs1.services, HOLDER)
    await pass_time(hs1.services, clock, MINUTE_MS)
    sticky = [body for body in peer.bodies if body.startswith("sticky")]
    assert sticky == [f"sticky {n}" for n in range(60)]
    assert "ordinary 59" in peer.bodies
    assert "ordinary 3" not in peer.bodies  # Of ordinary ones the newest is enough.
