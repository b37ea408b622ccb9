"""What the proposals mean for one another: no MSC says it, so this page does. One row, one story.

4293: redaction by a kick or ban. 4354: sticky events. 4267: forgetting by leaving. 4140: delayed
events. 3759: leaves of deactivated users. 4186, 4480: sliding sync, and its sticky extension.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from minihs.base.clock import ManualClock
from minihs.protocol import unstable
from minihs.protocol.events import Event
from minihs.services.rooms import sticky_events
from tests.conformance.test_msc3759 import GONE, deactivate, member
from tests.conformance.test_msc4140 import delay, fire, look_up, outcome, sent
from tests.conformance.test_msc4186 import Client, a_list
from tests.conformance.test_msc4267 import pass_days, rows_of
from tests.conformance.test_msc4293 import FLAG, FLAGGED, by_ban
from tests.helpers import deliveries
from tests.helpers.appservices import begin, make_ghost, running_bridge, settled
from tests.helpers.deliveries import Peer
from tests.helpers.mirror import forge, mirror, push, refresh
from tests.helpers.remote_members import put_member
from tests.helpers.rooms import MALLORY

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.homeserver import Homeserver, User
    from tests.helpers.network import EvilServer, Federation
    from tests.helpers.rooms import Room

pytestmark = pytest.mark.spec(
    "MSC4293#proposal",
    "MSC4354#proposal",
    "MSC4267#proposal",
    "MSC4140#proposal",
    "MSC3759#proposal",
)

SECTION = unstable.STICKY_SYNC_SECTION.unstable
DURATION = unstable.STICKY_DURATION_PARAMETER.unstable
TTL = unstable.STICKY_TTL.unstable
EXTENSION = unstable.STICKY_EXTENSION.unstable
NO_TIMELINE = '{"room":{"timeline":{"types":[]}}}'
HOUR_MS = 3_600_000
NOW_MS = ManualClock().now_ms()  # Where the clocks of these stories stand still.


@pytest.fixture
async def bob(hs1: Homeserver) -> User:
    return await hs1.register("bob")


def path_of(room_id: str, *more: str) -> str:
    return "/".join(["/rooms", quote(room_id), *map(quote, more)])


async def stick(user: User, room_id: str, body: str, ms: int = HOUR_MS) -> str:
    """Send something sticky."""
    path = path_of(room_id, "send", "m.room.message", body)
    content = {"msgtype": "m.text", "body": body}
    return (await user.call("PUT", path, content, **{DURATION: str(ms)}))["event_id"]


async def stuck(user: User, room_id: str) -> list[str]:
    """Return what the sticky section of the user's next syncs has."""
    found: list[str] = []
    while True:
        answer = await user.sync(filter=NO_TIMELINE)
        room = answer.get("rooms", {}).get("join", {}).get(room_id, {})
        events = room.get(SECTION, {}).get("events", [])
        if not events:
            return found
        found += [e["content"]["body"] for e in events if e["type"] == "m.room.message"]


async def remove(moderator: User, room_id: str, how: str, user_id: str, **more: object) -> None:
    await moderator.call("POST", path_of(room_id, how), {"user_id": user_id, **more})


# --- 4293 x 4354 --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["kick", "ban"])
async def test_4293_with_4354_a_flagged_removal_ends_what_was_sticky_at_once(
    hs1: Homeserver, alice: User, bob: User, how: str
):
    mallory = await hs1.register("mallory")
    room_id = await alice.create_room()
    for user in (bob, mallory):
        await user.join(room_id)
    await bob.sync()
    spam = await stick(mallory, room_id, "spam")
    await stick(alice, room_id, "call")
    await remove(alice, room_id, how, mallory.user_id, **FLAGGED)
    assert await stuck(bob, room_id) == ["call"]
    shown = await bob.call("GET", path_of(room_id, "event", spam))
    assert by_ban(shown)
    assert TTL not in shown["unsigned"]
    carol = await hs1.register("carol")
    await carol.join(room_id)
    assert await stuck(carol, room_id) == ["call"]


async def test_4293_with_4354_what_is_sticky_and_comes_late_is_not_sticky(
    hs1: Homeserver, alice: User, bob: User, evil: EvilServer, room: Room
):
    """Neither when it comes, nor when its sender is let in again: it stays soft-failed."""
    await bob.join(room.room_id)
    await refresh(room, hs1)
    before = list(room.ends)
    await remove(alice, room.room_id, "ban", MALLORY, **FLAGGED)
    await refresh(room, hs1)
    late = sticky_pdu(room, "late", before, NOW_MS)
    await push(evil, hs1, [late])
    await stuck(bob, room.room_id)
    await remove(alice, room.room_id, "unban", MALLORY)
    await refresh(room, hs1)
    await push(evil, hs1, [room.join(MALLORY)])
    await sticky_events.recheck_soft_failed(hs1.services)
    assert await stuck(bob, room.room_id) == []
    assert await hs1.services.db.fetchval("SELECT count(*) FROM sticky_events") == 0


async def test_4293_with_4354_without_the_flag_what_was_sticky_lives_on(
    hs1: Homeserver, alice: User, bob: User, evil: EvilServer, room: Room
):
    """And what comes late becomes sticky once its sender may speak again."""
    await bob.join(room.room_id)
    await refresh(room, hs1)
    before = list(room.ends)
    await push(evil, hs1, [sticky_pdu(room, "accepted", before, NOW_MS)])
    await remove(alice, room.room_id, "ban", MALLORY)
    await refresh(room, hs1)
    await push(evil, hs1, [sticky_pdu(room, "late", before, NOW_MS)])
    assert await stuck(bob, room.room_id) == ["accepted"]
    await remove(alice, room.room_id, "unban", MALLORY)
    await refresh(room, hs1)
    await push(evil, hs1, [room.join(MALLORY)])
    await sticky_events.recheck_soft_failed(hs1.services)
    assert await stuck(bob, room.room_id) == ["late"]


def sticky_pdu(room: Room, body: str, prev: list[Event], now_ms: int) -> Event:
    """Return a sticky message of Mallory's after some events."""
    draft = room.draft(
        MALLORY, "m.room.message", {"body": body}, prev=prev, origin_server_ts=now_ms
    )
    pdu = forge(draft, {unstable.STICKY.unstable: {"duration_ms": HOUR_MS}})
    return Event.from_pdu(pdu, room.room_version)


async def test_4293_with_4354_servers_that_join_later_are_not_pushed_what_was_redacted(
    federation: Federation, hs1: Homeserver, alice: User
):
    await deliveries.begin(hs1.services)
    mallory, plain = await hs1.register("mallory"), await hs1.register("plain")
    room_id = await alice.create_room()
    for user in (mallory, plain):
        await user.join(room_id)
        await stick(user, room_id, f"of {user.user_id}")
    await remove(alice, room_id, "ban", mallory.user_id, **FLAGGED)
    await remove(alice, room_id, "ban", plain.user_id)
    peer = Peer(federation.evil("late"))
    await put_member(hs1.services, room_id, peer.user)
    await deliveries.settled(hs1.services)
    assert peer.bodies == [f"of {plain.user_id}"]


# --- 4354 x 4267 --------------------------------------------------------------------------------


@pytest.mark.parametrize("forgetful", [False, True])
async def test_4354_with_4267_who_has_left_gets_nothing_sticky_and_who_returns_all(
    federation: Federation, forgetful: bool
):
    server = await federation.start("hs1", forget_rooms_on_leave=forgetful)
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await alice.create_room()
    await bob.join(room_id)
    await stick(alice, room_id, "1")
    assert await stuck(bob, room_id) == ["1"]
    await bob.leave(room_id)
    await stick(alice, room_id, "2")
    answer = await bob.sync(filter=NO_TIMELINE)
    assert SECTION not in answer["rooms"]["leave"][room_id]
    await bob.join(room_id)
    assert sorted(await stuck(bob, room_id)) == ["1", "2"]


async def test_4354_with_4267_a_deleted_room_leaves_nothing_sticky_behind(
    federation: Federation, clock: ManualClock
):
    """Nothing is owed any more to servers that were down, nor to those that come."""
    server = await federation.start(
        "hs1", forget_rooms_on_leave=True, forgotten_room_retention_seconds=60
    )
    await deliveries.begin(server.services)
    alice = await server.register("alice")
    room_id = await alice.create_room()
    peer = Peer(federation.evil("down"))
    await put_member(server.services, room_id, peer.user)
    await deliveries.settled(server.services)
    federation.network.isolate("down")
    await stick(alice, room_id, "owed")
    await alice.leave(room_id)
    await deliveries.settled(server.services)
    count = "SELECT count(*) FROM sticky_events"
    assert await server.services.db.fetchval(count) == 1
    await pass_days(server, clock, 1)
    assert await rows_of(server, room_id) == 0
    assert await server.services.db.fetchval(count) == 0
    federation.network.heal()
    await deliveries.pass_time(server.services, clock, 60_000)
    assert "owed" not in peer.bodies


# --- 4354 x 4140 --------------------------------------------------------------------------------


async def test_4354_with_4140_life_begins_when_it_is_sent_and_only_its_sender_knows_the_delay_id(
    hs1: Homeserver, alice: User, bob: User
):
    room_id = await alice.create_room()
    await bob.join(room_id)
    delay_id = await delay(alice, room_id, HOUR_MS, {"n": 1}, **{DURATION: "600000"})
    assert await hs1.services.db.fetchval("SELECT count(*) FROM sticky_events") == 0
    await fire(hs1, HOUR_MS)
    for user, expected in ((alice, delay_id), (bob, None)):
        (event,) = await sent(user, room_id)
        assert event["unsigned"][TTL] == 600_000
        for name in unstable.DELAY_ID.spellings:
            assert event["unsigned"].get(name) == expected


# --- 4140 x 3759 --------------------------------------------------------------------------------


async def test_4140_with_3759_deactivation_cancels_what_is_scheduled_before_it_leaves(
    hs1: Homeserver, alice: User, bob: User
):
    """Were the leave first, a join that is due then would revive him."""
    room_id = await alice.create_room()
    await bob.join(room_id)
    joins = {"event_type": "m.room.member", "state_key": bob.user_id}
    ids = [
        await delay(bob, room_id, 1, {"membership": "join", "again": True}, **joins),
        await delay(bob, room_id, 60_000),
    ]
    hs1.clock.advance_ms(1)  # type: ignore[attr-defined]  # due, and not yet sent
    await deactivate(bob)
    await fire(hs1, 60_000)
    assert await member(alice, room_id, bob) == GONE
    assert await sent(alice, room_id) == []
    rows = await hs1.services.db.fetch(
        "SELECT event_id, error, finalised_ms IS NULL FROM delayed_events"
    )
    assert [tuple(row) for row in rows] == [(None, None, False)] * len(ids)


# --- 4140 x 4267 --------------------------------------------------------------------------------


async def test_4140_with_4267_a_scheduled_event_keeps_no_forgotten_room(
    federation: Federation, clock: ManualClock
):
    """It fails when it is due, with what anybody would hear who is not in the room."""
    server = await federation.start(
        "hs1", forget_rooms_on_leave=True, forgotten_room_retention_seconds=3_600
    )
    alice = await server.register("alice")
    room_id = await alice.create_room()
    in_time, late = [await delay(alice, room_id, hours * HOUR_MS) for hours in (1, 24)]
    await alice.leave(room_id)
    assert (await look_up(alice, late))["room_id"] == room_id
    await fire(server, HOUR_MS)
    assert (await outcome(alice, in_time) or {})["error"]["errcode"] == "M_FORBIDDEN"
    await pass_days(server, clock, 1)
    assert await rows_of(server, room_id) == 0
    await fire(server)
    assert (await outcome(alice, late) or {})["error"]["errcode"] == "M_FORBIDDEN"


# --- 4140 x 4293 --------------------------------------------------------------------------------


@pytest.mark.parametrize("membership", ["leave", "ban"])
@pytest.mark.parametrize("is_powerful", [True, False])
async def test_4140_with_4293_a_delayed_removal_redacts_if_its_sender_may_then(
    hs1: Homeserver, alice: User, bob: User, membership: str, is_powerful: bool
):
    """Bob could when he scheduled it, or could not; what counts is when it is sent."""
    mallory = await hs1.register("mallory")
    room_id = await alice.create_room()
    for user in (bob, mallory):
        await user.join(room_id)
    spam = await mallory.say(room_id, "spam")
    may_not = {"users": {bob.user_id: 50}, "kick": 50, "ban": 50, "redact": 60}
    may = {**may_not, "redact": 50}
    first, then = (may_not, may) if is_powerful else (may, may_not)
    await alice.put_state(room_id, "m.room.power_levels", first)
    target = {"event_type": "m.room.member", "state_key": mallory.user_id}
    removal = await delay(bob, room_id, 1_000, {"membership": membership, FLAG: True}, **target)
    await alice.put_state(room_id, "m.room.power_levels", then)
    own = await delay(mallory, room_id, 2_000)
    assert not by_ban(await alice.call("GET", path_of(room_id, "event", spam)))
    await fire(hs1, 1_000)
    assert "event_id" in (await outcome(bob, removal) or {})
    assert (await member(alice, room_id, mallory))["membership"] == membership
    assert by_ban(await alice.call("GET", path_of(room_id, "event", spam))) is is_powerful
    await fire(hs1, 1_000)
    assert (await outcome(mallory, own) or {})["error"]["errcode"] == "M_FORBIDDEN"


# --- 3759 x 4293 --------------------------------------------------------------------------------


async def test_3759_with_4293_a_deactivation_ends_the_stay_and_a_later_ban_redacts_nothing(
    hs1: Homeserver, alice: User, bob: User
):
    """What is left is to ask for it: MSC4194."""
    room_id = await alice.create_room()
    await bob.join(room_id)
    said = await bob.say(room_id, "spam")
    await deactivate(bob)
    assert await member(alice, room_id, bob) == GONE
    await remove(alice, room_id, "ban", bob.user_id, **FLAGGED)
    assert (await alice.call("GET", path_of(room_id, "event", said)))["content"]["body"] == "spam"
    path = f"/_matrix/client/v1{path_of(room_id, 'redact', 'user', bob.user_id)}"
    done = await alice.call("POST", path, {})
    assert done["redacted_events"]["total"] >= 1
    assert (await alice.call("GET", path_of(room_id, "event", said)))["content"] == {}


# --- 3759 x 4354 --------------------------------------------------------------------------------


@pytest.mark.parametrize("erase", [False, True])
async def test_3759_with_4354_erasure_ends_what_is_sticky_and_deactivation_alone_does_not(
    hs1: Homeserver, alice: User, bob: User, erase: bool
):
    room_id = await alice.create_room()
    await bob.join(room_id)
    await alice.sync()
    await stick(bob, room_id, "still here")
    await deactivate(bob, erase=erase)
    assert await stuck(alice, room_id) == ([] if erase else ["still here"])
    carol = await hs1.register("carol")
    await carol.join(room_id)
    assert await stuck(carol, room_id) == ([] if erase else ["still here"])


# --- 4267 x 4186, 4480 --------------------------------------------------------------------------


async def test_4267_with_4186_a_forgotten_room_is_in_no_list_and_has_nothing_sticky(
    federation: Federation,
):
    server = await federation.start("hs1", forget_rooms_on_leave=True)
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await alice.create_room()
    await bob.join(room_id)
    wish = {EXTENSION: {"enabled": True}}
    client = Client(bob)
    await client.sync(extensions=wish)
    await bob.leave(room_id)
    await stick(alice, room_id, "not for bob")
    told = await client.sync(extensions=wish)
    assert told["rooms"][room_id]["membership"] == "leave", "once more"
    assert EXTENSION not in told["extensions"] or not told["extensions"][EXTENSION].get("rooms")
    for other in (client, Client(bob, conn_id="new")):
        answer = await other.sync(extensions=wish, lists={"all": a_list()})
        assert answer["lists"]["all"]["count"] == 0
        assert room_id not in answer["rooms"]
        assert not answer["extensions"].get(EXTENSION, {}).get("rooms")
    await bob.join(room_id)
    back = await client.sync(extensions=wish)
    assert back["lists"]["all"]["count"] == 1
    shown = back["rooms"][room_id]["timeline"]
    rooms = back["extensions"].get(EXTENSION, {}).get("rooms", {})
    shown += rooms.get(room_id, {}).get("events", [])
    assert "not for bob" in [e["content"].get("body") for e in shown]


# --- all x application services -----------------------------------------------------------------


async def test_all_with_application_services_a_bridge_is_told_of_everything(
    federation: Federation, tmp_path: Path, clock: ManualClock
):
    """Leaves with their reason, flagged bans, sticky events, and delayed ones that were sent."""
    async with running_bridge(tmp_path) as bridge:
        server = await federation.start("hs1", appservice_files=str(bridge.file))
        alice, bob = await server.register("alice"), await server.register("bob")
        mallory, ghost = await server.register("mallory"), await make_ghost(server, "_bridge_g")
        room_id = await alice.create_room()
        for user in (bob, mallory, ghost):
            await user.join(room_id)
        spam = await mallory.say(room_id, "spam")
        sticky = await stick(alice, room_id, "sticky")
        delay_id = await delay(ghost, room_id, 1_000, {"n": 1})
        await fire(server, 1_000)
        await remove(alice, room_id, "ban", mallory.user_id, **FLAGGED)
        await deactivate(bob)
        await settled(await begin(server.services))
        told = {event["event_id"]: event for event in bridge.events}
        assert told[spam]["content"] == {}, "it was redacted by then"
        assert told[spam]["unsigned"]["redacted_because"]["content"][FLAG] is True
        assert told[sticky]["unsigned"][TTL] == HOUR_MS - 1_000
        members = [e for e in bridge.events if e["type"] == "m.room.member"]
        bans = [e for e in members if e["content"]["membership"] == "ban"]
        assert [e["content"][FLAG] for e in bans] == [True]
        leaves = [e["content"] for e in members if e["state_key"] == bob.user_id]
        assert leaves[-1] == GONE
        (delayed,) = [e for e in bridge.events if e["type"] == "org.example.event"]
        assert delayed["sender"] == ghost.user_id
        name = unstable.DELAYED_EVENT_OUTCOMES.unstable
        outcomes = [o for one in bridge.transactions for o in one.body.get(name, ())]
        assert [o["delay_id"] for o in outcomes] == [delay_id]
        assert outcomes[0]["finalised"]["event_id"] == delayed["event_id"]


async def test_all_with_application_services_what_becomes_sticky_later_is_told_then(
    federation: Federation, tmp_path: Path
):
    """It was soft-failed when it came: its sender was banned."""
    async with running_bridge(tmp_path) as bridge:
        server = await federation.start("hs1", appservice_files=str(bridge.file))
        alice, ghost = await server.register("alice"), await make_ghost(server, "_bridge_g")
        evil = federation.evil()
        room_id = await alice.create_room()

        room = await mirror(server, room_id)
        await push(evil, server, [room.join(MALLORY)])
        await ghost.join(room_id)
        await refresh(room, server)
        before = list(room.ends)
        delivery = await begin(server.services)
        await remove(alice, room_id, "ban", MALLORY)
        await refresh(room, server)
        await push(evil, server, [sticky_pdu(room, "late", before, NOW_MS)])
        await settled(delivery)
        assert bridge.texts == []
        await remove(alice, room_id, "unban", MALLORY)
        await refresh(room, server)
        await push(evil, server, [room.join(MALLORY)])
        await sticky_events.recheck_soft_failed(server.services)
        await settled(delivery)
        assert bridge.texts == ["late"]
