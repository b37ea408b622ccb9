"""Sticky events between servers: one watched by a server of ours, then two and three of them.

MSC4354#federation-behaviour
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from minihs.protocol import unstable
from minihs.services.rooms import sticky_events
from tests.helpers.deliveries import HOLDER, Peer, begin, handed_out, pass_time, settled
from tests.helpers.network import Received, raw
from tests.helpers.remote_members import put_event, put_member
from tests.helpers.servers import join, quiet, room_of_two
from tests.helpers.servers import pass_time as pass_time_for
from tests.helpers.servers import start as start_servers
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from minihs.base.clock import ManualClock
    from tests.helpers.homeserver import Homeserver, User
    from tests.helpers.network import Federation

SECTION = unstable.STICKY_SYNC_SECTION.unstable
TTL = unstable.STICKY_TTL.unstable
DURATION = unstable.STICKY_DURATION_PARAMETER.unstable
MINUTE_MS = 60_000


@pytest.fixture
async def hs1(federation: Federation) -> Homeserver:
    server = await federation.start("hs1", default_room_version="11")
    await begin(server.services)
    return server


@pytest.fixture
async def peer(federation: Federation) -> Peer:
    return Peer(federation.evil("evil"))


async def stick(alice: User, room_id: str, body: str, ms: int = 10 * MINUTE_MS) -> str:
    path = f"/rooms/{quote(room_id)}/send/m.room.message/{body}"
    content = {"msgtype": "m.text", "body": body}
    return (await alice.call("PUT", path, content, **{DURATION: str(ms)}))["event_id"]


async def redact(user: User, room_id: str, event_id: str) -> str:
    path = f"/rooms/{quote(room_id)}/redact/{quote(event_id)}/{event_id[1:9]}"
    return (await user.call("PUT", path, {}))["event_id"]


async def stuck(user: User, room_id: str) -> dict[str, int]:
    """Return what is new and sticky for a user, with how long it stays so: all in the section."""
    found: dict[str, int] = {}
    while True:
        answer = await user.sync(filter='{"room":{"timeline":{"types":[]}}}')
        room = answer.get("rooms", {}).get("join", {}).get(room_id, {})
        events = room.get(SECTION, {"events": []})["events"]
        if not events:
            return found
        found |= {e["content"].get("body", e["type"]): e["unsigned"].get(TTL, 0) for e in events}


async def test_s_07_a_server_that_joins_is_pushed_what_is_still_sticky(
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


async def test_s_07_also_when_nothing_is_remembered_of_the_room(
    hs1: Homeserver, alice: User, peer: Peer
):
    """As after a restart; and the server joins through another one than us."""
    room_id = await alice.create_room()
    await stick(alice, room_id, "of before")
    await settled(hs1.services)
    recipients = hs1.services.delivery.outbox.recipients
    recipients.begin_at(recipients.position)
    await put_member(hs1.services, room_id, peer.user)
    await settled(hs1.services)
    assert peer.bodies == ["of before"]


async def test_s_07_a_second_user_of_a_server_brings_nothing_again(
    hs1: Homeserver, alice: User, peer: Peer
):
    room_id = await alice.create_room()
    await stick(alice, room_id, "once")
    await put_member(hs1.services, room_id, peer.user)
    await put_member(hs1.services, room_id, "@other:evil")
    await settled(hs1.services)
    assert peer.bodies == ["once"]


async def test_s_07_what_a_server_was_sent_as_it_left_is_sent_anew_when_it_is_back(
    hs1: Homeserver, alice: User, peer: Peer
):
    """In another transaction: one that it knows it would not look at."""
    room_id = await alice.create_room()
    await put_member(hs1.services, room_id, peer.user)
    await stick(alice, room_id, "sticky")
    await settled(hs1.services)
    await put_member(hs1.services, room_id, peer.user, "leave")
    await put_member(hs1.services, room_id, peer.user)
    await settled(hs1.services)
    assert peer.bodies == ["sticky", "sticky"]
    assert len({received.path["txnId"] for received in peer.taken}) == len(peer.taken)


async def test_s_07_a_server_that_joins_again_never_knew_that_it_had(
    hs1: Homeserver, alice: User, peer: Peer
):
    """The answer to its join was lost, and what it was sent then was of a room unknown to it."""
    room_id = await alice.create_room()
    await stick(alice, room_id, "sticky")
    renamed = {"membership": "join", "displayname": "Mallory"}
    for _ in range(2):
        await put_member(hs1.services, room_id, peer.user)
    await settled(hs1.services)
    assert peer.bodies == ["sticky", "sticky"]
    member = (peer.user, "m.room.member", renamed)
    await put_event(hs1.services, room_id, *member, state_key=peer.user)
    await settled(hs1.services)
    assert peer.bodies == ["sticky", "sticky"]


async def test_s_04_a_redacted_one_is_not_pushed(hs1: Homeserver, alice: User, peer: Peer):
    room_id = await alice.create_room()
    path = f"/rooms/{quote(room_id)}/send/m.room.message/x"
    content = {"msgtype": "m.text", "body": "x"}
    answer = await alice.call("PUT", path, content, **{DURATION: str(MINUTE_MS)})
    redact = f"/rooms/{quote(room_id)}/redact/{quote(answer['event_id'])}/r"
    await alice.call("PUT", redact, {})
    await put_member(hs1.services, room_id, peer.user)
    await settled(hs1.services)
    assert peer.bodies == []


async def test_s_06_after_an_outage_every_sticky_event_comes_that_still_is(
    hs1: Homeserver, alice: User, peer: Peer, clock: ManualClock
):
    room_id = await alice.create_room()
    await put_member(hs1.services, room_id, peer.user)
    await settled(hs1.services)
    peer.answer = lambda _: raw({"errcode": "M_UNKNOWN", "error": "down"}, 503)
    await stick(alice, room_id, "dies", MINUTE_MS)
    await settled(hs1.services)  # What failed is repeated: that is to be this one alone.
    for n in range(60):
        await stick(alice, room_id, f"sticky {n}")
        await alice.say(room_id, f"ordinary {n}")
    await settled(hs1.services)
    outbox = hs1.services.delivery.outbox
    outbox.fall_behind(outbox.destinations["evil"])  # As with a queue that has grown too long.
    clock.advance_ms(2 * MINUTE_MS)
    peer.answer = lambda _: None
    await hs1.services.delivery.hold_shards(hs1.services, HOLDER)
    await pass_time(hs1.services, clock, MINUTE_MS)
    sticky = [body for body in peer.bodies if body.startswith("sticky")]
    assert sticky == [f"sticky {n}" for n in range(60)]
    assert "ordinary 59" in peer.bodies
    assert "ordinary 3" not in peer.bodies  # Of ordinary ones the newest is enough.


async def test_s_06_what_a_server_is_owed_from_before_is_not_lost_while_it_is_caught_up(
    hs1: Homeserver, alice: User, peer: Peer, clock: ManualClock
):
    """It joins a room where something has long been sticky while a transaction is under way."""
    before = await alice.create_room()
    await stick(alice, before, "sticky")
    room_id = await alice.create_room(room_version="10")
    await put_member(hs1.services, room_id, peer.user)
    peer.answer = lambda _: raw({"errcode": "M_UNKNOWN", "error": "down"}, 503)
    await alice.say(room_id, "repeated")
    await settled(hs1.services)
    await alice.say(room_id, "caught up with")

    def take_one(_: Received) -> None:
        peer.open.clear()

    peer.answer = take_one
    clock.advance_ms(3_000)
    await hs1.services.delivery.hold_shards(hs1.services, HOLDER)
    await until(lambda: len(peer.attempts) == 3)
    await put_member(hs1.services, before, peer.user)
    await handed_out(hs1.services)
    assert peer.bodies == ["repeated"]
    peer.answer = lambda _: None
    peer.open.set()
    await pass_time(hs1.services, clock, 4_000)
    assert set(peer.bodies) == {"repeated", "caught up with", "sticky"}


async def test_s_06_an_outage_longer_than_it_is_sticky_ends_it(
    hs1: Homeserver, alice: User, peer: Peer, clock: ManualClock
):
    room_id = await alice.create_room()
    await put_member(hs1.services, room_id, peer.user)
    await settled(hs1.services)
    peer.answer = lambda _: raw({"errcode": "M_UNKNOWN", "error": "down"}, 503)
    await alice.say(room_id, "the one that failed is repeated")
    await settled(hs1.services)
    await stick(alice, room_id, "dies", MINUTE_MS)
    for n in range(3):
        await alice.say(room_id, f"ordinary {n}")
    await settled(hs1.services)
    clock.advance_ms(2 * MINUTE_MS)
    peer.answer = lambda _: None
    await hs1.services.delivery.hold_shards(hs1.services, HOLDER)
    await pass_time(hs1.services, clock, MINUTE_MS)
    assert "ordinary 2" in peer.bodies
    assert "dies" not in peer.bodies


async def test_s_06_a_redaction_of_what_is_sticky_is_not_lost_in_an_outage(
    hs1: Homeserver, alice: User, peer: Peer, clock: ManualClock
):
    room_id = await alice.create_room()
    await put_member(hs1.services, room_id, peer.user)
    sticky = await stick(alice, room_id, "sticky")
    await settled(hs1.services)
    peer.answer = lambda _: raw({"errcode": "M_UNKNOWN", "error": "down"}, 503)
    await alice.say(room_id, "the one that failed is repeated")
    await settled(hs1.services)
    redaction = await redact(alice, room_id, sticky)
    for n in range(3):
        await alice.say(room_id, f"ordinary {n}")
    await settled(hs1.services)
    peer.answer = lambda _: None
    await pass_time(hs1.services, clock, MINUTE_MS)
    assert [p["content"].get("redacts") for p in peer.pdus if p["type"] == "m.room.redaction"] == [
        sticky
    ], redaction


async def test_s_07_who_joins_while_we_cannot_reach_them_is_pushed_it_later(
    hs1: Homeserver, alice: User, peer: Peer, clock: ManualClock
):
    room_id = await alice.create_room()
    for n in range(60):
        await stick(alice, room_id, f"sticky {n}")
    peer.answer = lambda _: raw({"errcode": "M_UNKNOWN", "error": "down"}, 503)
    await put_member(hs1.services, room_id, peer.user)
    await settled(hs1.services)
    assert peer.bodies == []
    peer.answer = lambda _: None
    await pass_time(hs1.services, clock, MINUTE_MS)
    assert peer.bodies == [f"sticky {n}" for n in range(60)]


async def test_s_07_who_is_left_alone_for_failing_is_left_alone(
    hs1: Homeserver, alice: User, peer: Peer, clock: ManualClock
):
    room_id = await alice.create_room()
    await put_member(hs1.services, room_id, peer.user)
    await settled(hs1.services)
    peer.answer = lambda _: raw({"errcode": "M_UNKNOWN", "error": "down"}, 503)
    await stick(alice, room_id, "first")
    await settled(hs1.services)
    tried = len(peer.attempts)
    for n in range(5):
        await stick(alice, room_id, f"more {n}")
        await settled(hs1.services)
    assert len(peer.attempts) == tried
    peer.answer = lambda _: None
    await pass_time(hs1.services, clock, MINUTE_MS)
    assert peer.bodies == ["first", *(f"more {n}" for n in range(5))]


async def test_s_05_what_sticks_on_one_server_sticks_on_all(
    federation: Federation, clock: ManualClock
):
    servers = await start_servers(federation, "hs1", "hs2", "hs3")
    alice, bob, carol = [await server.register("user") for server in servers]
    room_id = await alice.create_room()
    for user in (bob, carol):
        await join(user, room_id, "hs1")
    await quiet(servers)
    for user in (alice, bob, carol):
        await user.sync()
    for user in (alice, bob, carol):
        await stick(user, room_id, user.user_id)
    await quiet(servers)
    clock.advance_ms(MINUTE_MS)
    expected = {user.user_id: 9 * MINUTE_MS for user in (alice, bob, carol)}
    for user in (alice, bob, carol):
        assert await stuck(user, room_id) == expected


async def test_s_07_each_server_brings_its_own_to_the_one_that_joins(
    federation: Federation, clock: ManualClock
):
    servers = await start_servers(federation, "hs1", "hs2", "hs3")
    alice, bob, carol = [await server.register("user") for server in servers]
    room_id = await alice.create_room()
    await join(bob, room_id, "hs1")
    await quiet(servers)
    await stick(alice, room_id, "hers")
    await stick(bob, room_id, "his")
    for n in range(30):  # It is far behind what a new server fetches.
        await alice.say(room_id, str(n))
    await pass_time_for(servers, clock, MINUTE_MS)
    await carol.sync()
    await join(carol, room_id, "hs1")
    await quiet(servers)
    since = carol.since
    shown = (await carol.sync())["rooms"]["join"][room_id]["timeline"]["events"]
    carol.since = since
    assert await stuck(carol, room_id) == {"hers": 9 * MINUTE_MS, "his": 9 * MINUTE_MS}
    assert not [e for e in shown if e["type"] == "m.room.message"], "they are of the past"
    for body in ("hers", "his"):
        path = f"/rooms/{quote(room_id)}/messages"
        assert body not in str(await carol.call("GET", path, dir="b", limit="3"))


async def test_s_07_however_far_apart_they_lie_all_are_delivered(
    federation: Federation, clock: ManualClock
):
    servers = await start_servers(federation, "hs1", "hs2")
    alice, bob = [await server.register("user") for server in servers]
    room_id = await alice.create_room()
    for n in range(60):
        await stick(alice, room_id, f"sticky {n}")
        for m in range(3):
            await alice.say(room_id, f"{n}, {m}")
    await join(bob, room_id, "hs1")
    asked = len(federation.network.log)
    await quiet(servers)
    assert set(await stuck(bob, room_id)) == {f"sticky {n}" for n in range(60)}
    requests = [
        d for d in federation.network.log[asked:] if d.origin == "hs2" and d.method != "PUT"
    ]
    assert requests == [], "nothing need be asked for it"
    await alice.say(room_id, "present")
    await bob.say(room_id, "they go on together")
    await quiet(servers)
    for user in (alice, bob):
        path = f"/rooms/{quote(room_id)}/messages"
        chunk = (await user.call("GET", path, dir="b", limit="2"))["chunk"]
        assert {e["content"]["body"] for e in chunk} == {"present", "they go on together"}


async def test_s_06_a_split_of_the_network_loses_nothing_that_lives(
    federation: Federation, clock: ManualClock
):
    servers, alice, bob, room_id = await room_of_two(federation)
    await bob.sync()
    federation.network.isolate("hs2")
    for n in range(60):
        await stick(alice, room_id, f"a{n}")
        await alice.say(room_id, f"ordinary {n}")
    await stick(bob, room_id, "b")
    await quiet(servers)
    federation.network.heal()
    await pass_time_for(servers, clock, MINUTE_MS)
    assert set(await stuck(bob, room_id)) == {"b", *(f"a{n}" for n in range(60))}
    assert "b" in await stuck(alice, room_id)


async def test_s_04_a_redaction_reaches_those_who_were_sent_it_on_the_other_server(
    federation: Federation, clock: ManualClock
):
    servers, alice, bob, room_id = await room_of_two(federation)
    sticky = await stick(alice, room_id, "sticky")
    await quiet(servers)
    assert "sticky" in await stuck(bob, room_id)
    await redact(alice, room_id, sticky)
    for n in range(12):
        await alice.say(room_id, str(n))
    await quiet(servers)
    assert await stuck(bob, room_id) == {"m.room.redaction": 0}


async def test_s_16_what_was_said_across_a_ban_is_heard_when_it_is_lifted(
    federation: Federation, clock: ManualClock
):
    servers, alice, bob, room_id = await room_of_two(federation)
    await alice.sync()
    federation.network.isolate("hs2")
    await alice.call("POST", f"/rooms/{quote(room_id)}/ban", {"user_id": bob.user_id})
    await stick(bob, room_id, "he does not know")
    await quiet(servers)
    federation.network.heal()
    await pass_time_for(servers, clock, MINUTE_MS)
    assert await stuck(alice, room_id) == {}
    await alice.call("POST", f"/rooms/{quote(room_id)}/unban", {"user_id": bob.user_id})
    await quiet(servers)
    await join(bob, room_id, "hs1")
    await quiet(servers)
    await sticky_events.recheck_soft_failed(servers[0].services)
    assert set(await stuck(alice, room_id)) == {"he does not know"}
