"""Sticky events of other servers: what we take for sticky, check again, and hold back.

MSC4354#proposal, MSC4354#rate-limits, MSC4354#federation-behaviour
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote

import pytest

from minihs.protocol import unstable
from minihs.protocol.events import Event
from minihs.protocol.redaction import redact
from minihs.remote.transport import RemoteError
from minihs.services.rooms import sticky_events, sticky_limits
from minihs.storage import history_writes
from minihs.storage.appservices import list_late_sticky
from tests.federation.test_events import told
from tests.helpers.mirror import forge, mirror, push, refresh, send_transaction, serve
from tests.helpers.rooms import MALLORY, Room

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minihs.base.clock import ManualClock
    from tests.helpers.homeserver import Homeserver, User
    from tests.helpers.network import EvilServer, Federation

STICKY = unstable.STICKY.unstable
SECTION = unstable.STICKY_SYNC_SECTION.unstable
TTL = unstable.STICKY_TTL.unstable
MINUTE_MS = 60_000
HOUR_MS = 3_600_000


def stuck(
    room: Room,
    now_ms: int,
    body: str = "sticky",
    *,
    sticky: object = None,
    sender: str = MALLORY,
    prev: Sequence[Event] | None = None,
) -> Event:
    """Add an event with `sticky` at its top level (ten minutes, unless given) to a room."""
    draft = room.draft(sender, "m.room.message", {"body": body}, prev=prev, origin_server_ts=now_ms)
    value = {"duration_ms": 10 * MINUTE_MS} if sticky is None else sticky
    event = Event.from_pdu(forge(draft, {STICKY: value}), room.room_version)
    room.accept(event)
    return event


def talk(room: Room, now_ms: int) -> list[Event]:
    """Push what came before out of timelines."""
    return [
        room.send(MALLORY, "m.room.message", {"body": str(n)}, origin_server_ts=now_ms)
        for n in range(12)
    ]


def section(answer: dict, room_id: str) -> list[dict]:
    joined = answer.get("rooms", {}).get("join", {}).get(room_id, {})
    return joined.get(SECTION, {"events": []})["events"]


def timeline(answer: dict, room_id: str) -> list[str]:
    joined = answer.get("rooms", {}).get("join", {}).get(room_id, {})
    return [e["event_id"] for e in joined.get("timeline", {"events": []})["events"]]


def ids(events: list[dict]) -> list[str]:
    return [event["event_id"] for event in events]


async def event_of(user: User, room: Room, event: Event) -> dict:
    return await user.call("GET", f"/rooms/{quote(room.room_id)}/event/{quote(event.event_id)}")


# --- what is sticky -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sticky",
    [
        {"duration_ms": True}, {"duration_ms": "300000"}, {"duration_ms": -1},
        {"duration_ms": None}, {}, {"duration": 300_000}, 300_000, "yes", [], True,
    ],
    ids=str,
)  # fmt: skip
async def test_s_01_what_is_no_duration_makes_an_ordinary_event(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, clock: ManualClock, sticky: object
):
    event = stuck(room, clock.now_ms(), sticky=sticky)
    await push(evil, hs1, [event, *talk(room, clock.now_ms())])
    assert section(await alice.sync(), room.room_id) == []
    assert TTL not in (await event_of(alice, room, event))["unsigned"]


@pytest.mark.parametrize("version", ["5"], indirect=True)
async def test_s_01_nor_does_a_fraction_where_there_may_be_one(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, clock: ManualClock
):
    event = stuck(room, clock.now_ms(), sticky={"duration_ms": 3000.5})
    await push(evil, hs1, [event, *talk(room, clock.now_ms())])
    assert section(await alice.sync(), room.room_id) == []
    assert (await event_of(alice, room, event))["event_id"] == event.event_id


async def test_s_01_more_than_an_hour_counts_as_an_hour(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, clock: ManualClock
):
    event = stuck(room, clock.now_ms(), sticky={"duration_ms": 2 * HOUR_MS})
    await push(evil, hs1, [event, *talk(room, clock.now_ms())])
    (shown,) = section(await alice.sync(), room.room_id)
    assert shown["unsigned"][TTL] == HOUR_MS
    assert shown[STICKY] == {"duration_ms": 2 * HOUR_MS}, "it is shown as it was signed"


async def test_s_02_what_is_added_on_the_way_makes_nothing_sticky(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, clock: ManualClock
):
    event = room.send(MALLORY, "m.room.message", {"body": "plain"}, origin_server_ts=clock.now_ms())
    tampered = {**event.pdu, STICKY: {"duration_ms": HOUR_MS}}
    await push(evil, hs1, [tampered])
    shown = await event_of(alice, room, event)
    assert STICKY not in shown, "the content hash tells: it is redacted"
    assert shown["content"] == {}


async def test_s_03_a_clock_ahead_gains_nothing(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, clock: ManualClock
):
    event = stuck(room, clock.now_ms() + HOUR_MS)
    await push(evil, hs1, [event])
    assert (await event_of(alice, room, event))["unsigned"][TTL] == 10 * MINUTE_MS
    clock.advance_ms(MINUTE_MS)
    assert (await event_of(alice, room, event))["unsigned"][TTL] == 9 * MINUTE_MS


async def test_s_03_what_was_sent_long_ago_has_expired(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, clock: ManualClock
):
    expired = stuck(room, clock.now_ms() - 10 * MINUTE_MS, "expired")
    nearly = stuck(room, clock.now_ms() - 9 * MINUTE_MS, "nearly")
    await push(evil, hs1, [expired, nearly, *talk(room, clock.now_ms())])
    (shown,) = section(await alice.sync(), room.room_id)
    assert (shown["event_id"], shown["unsigned"][TTL]) == (nearly.event_id, MINUTE_MS)


async def test_s_04_a_redaction_that_came_first_unsticks(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, clock: ManualClock
):
    before = room.ends
    event = stuck(room, clock.now_ms())
    redaction = room.send(
        MALLORY, "m.room.redaction", {"redacts": event.event_id}, prev=before,
        redacts=event.event_id, origin_server_ts=clock.now_ms(),
    )  # fmt: skip
    await push(evil, hs1, [redaction])
    await push(evil, hs1, [event, *talk(room, clock.now_ms())])
    assert section(await alice.sync(), room.room_id) == []


async def test_s_13_what_other_servers_say_is_left_is_not_believed(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, clock: ManualClock
):
    event = stuck(room, clock.now_ms())
    await push(evil, hs1, [{**event.pdu, "unsigned": {TTL: 99 * HOUR_MS}}])
    assert (await event_of(alice, room, event))["unsigned"][TTL] == 10 * MINUTE_MS
    path = f"/_matrix/federation/v1/event/{quote(event.event_id)}"
    answer = await evil.request(hs1.name, "GET", path)
    assert not isinstance(answer, RemoteError)
    assert TTL not in str(answer)


# --- soft failure -------------------------------------------------------------------------------


async def banned(hs1: Homeserver, alice: User, room: Room) -> Sequence[Event]:
    """Let alice ban mallory; return what mallory's server takes for the end of the room."""
    before = list(room.ends)
    path = f"/rooms/{quote(room.room_id)}/ban"
    await alice.call("POST", path, {"user_id": MALLORY})
    await refresh(room, hs1)
    return before


async def held_back(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, now_ms: int
) -> Event:
    """Return a sticky event that was sent as if its sender was not banned."""
    before = await banned(hs1, alice, room)
    event = stuck(room, now_ms, prev=before)
    await push(evil, hs1, [event])
    await alice.sync()
    await sticky_events.recheck_soft_failed(hs1.services)
    assert event.event_id not in str(await alice.sync())
    return event


async def test_s_16_it_is_tried_again_when_its_sender_may_speak_again(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, clock: ManualClock
):
    event = await held_back(hs1, alice, evil, room, clock.now_ms())
    bob = await hs1.register("bob")
    await bob.join(room.room_id)
    await bob.sync()
    response = await alice.request(
        "GET", f"/rooms/{quote(room.room_id)}/event/{quote(event.event_id)}"
    )
    assert response.status == 404
    await alice.call("POST", f"/rooms/{quote(room.room_id)}/unban", {"user_id": MALLORY})
    await sticky_events.recheck_soft_failed(hs1.services)
    assert section(await alice.sync(), room.room_id) == [], "who has left may not speak either"
    await refresh(room, hs1)
    await push(evil, hs1, [room.join(MALLORY)])
    clock.advance_ms(MINUTE_MS)
    await sticky_events.recheck_soft_failed(hs1.services)
    for user in (alice, bob):
        answer = await user.sync()
        (shown,) = section(answer, room.room_id)
        assert shown["event_id"] == event.event_id
        assert shown["unsigned"][TTL] == 9 * MINUTE_MS, "its time went on"
        assert event.event_id not in timeline(answer, room.room_id)
    assert section(await alice.sync(), room.room_id) == []
    assert (await event_of(alice, room, event))["event_id"] == event.event_id
    context = f"/rooms/{quote(room.room_id)}/context/{quote(event.event_id)}"
    assert (await alice.call("GET", context))["event"]["event_id"] == event.event_id
    unread = await bob.sync(full_state="true")
    counts = unread["rooms"]["join"][room.room_id]["unread_notifications"]
    assert counts["notification_count"] == 0, "late bells are wrong"


async def test_s_16_it_is_tried_again_though_the_process_died_when_it_was_stored(
    hs1: Homeserver,
    alice: User,
    evil: EvilServer,
    room: Room,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
):
    write_history = history_writes.write_history

    async def write_and_die(*args: Any) -> NoReturn:
        await write_history(*args)
        raise RuntimeError("killed")

    before = await banned(hs1, alice, room)
    event = stuck(room, clock.now_ms(), prev=before)
    monkeypatch.setattr(history_writes, "write_history", write_and_die)
    assert "error" in (await push(evil, hs1, [event]))[event.event_id]
    monkeypatch.undo()
    assert await push(evil, hs1, [event]) == {event.event_id: {}}
    await alice.call("POST", f"/rooms/{quote(room.room_id)}/unban", {"user_id": MALLORY})
    await refresh(room, hs1)
    await push(evil, hs1, [room.join(MALLORY)])
    await sticky_events.recheck_soft_failed(hs1.services)
    assert ids(section(await alice.sync(), room.room_id)) == [event.event_id]


async def test_s_16_a_first_sync_has_it_in_the_section(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, clock: ManualClock
):
    event = await held_back(hs1, alice, evil, room, clock.now_ms())
    await alice.call("POST", f"/rooms/{quote(room.room_id)}/unban", {"user_id": MALLORY})
    await refresh(room, hs1)
    await push(evil, hs1, [room.join(MALLORY)])
    await sticky_events.recheck_soft_failed(hs1.services)
    alice.since = None
    answer = await alice.sync()
    assert ids(section(answer, room.room_id)) == [event.event_id]
    assert event.event_id not in timeline(answer, room.room_id)


async def test_s_16_it_is_tried_again_when_the_power_levels_change(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, clock: ManualClock
):
    before = list(room.ends)
    levels = {"users": {}, "events_default": 50}
    await alice.put_state(room.room_id, "m.room.power_levels", levels)
    await refresh(room, hs1)
    event = stuck(room, clock.now_ms(), prev=before)
    await push(evil, hs1, [event])
    await sticky_events.recheck_soft_failed(hs1.services)
    assert section(await alice.sync(), room.room_id) == []
    await alice.put_state(room.room_id, "m.room.power_levels", levels | {"events_default": 0})
    await sticky_events.recheck_soft_failed(hs1.services)
    assert ids(section(await alice.sync(), room.room_id)) == [event.event_id]


async def test_s_16_it_is_tried_again_when_the_state_is_rolled_back(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, clock: ManualClock
):
    """The proposal's own example: Bob kicks Charlie while, elsewhere, Alice kicks Bob."""
    moderator, bob, charlie = "@alice:evil", "@bob:evil", "@charlie:evil"
    await push(evil, hs1, [room.join(user) for user in (moderator, bob, charlie)])
    levels = {"users": {moderator: 90, bob: 50}}
    await alice.put_state(room.room_id, "m.room.power_levels", levels)
    await refresh(room, hs1)
    before, now_ms = list(room.ends), clock.now_ms()

    def kick(sender: str, target: str) -> Event:
        return room.send(
            sender, "m.room.member", {"membership": "leave"}, state_key=target, prev=before,
            origin_server_ts=now_ms,
        )  # fmt: skip

    event = stuck(room, now_ms, sender=charlie, prev=before)
    await push(evil, hs1, [kick(bob, charlie)])
    await push(evil, hs1, [event])
    await sticky_events.recheck_soft_failed(hs1.services)
    assert event.event_id not in str(await alice.sync())
    await push(evil, hs1, [kick(moderator, bob)])
    await sticky_events.recheck_soft_failed(hs1.services)
    answer = await alice.sync()
    assert ids(section(answer, room.room_id)) == [event.event_id]
    assert event.event_id not in timeline(answer, room.room_id)


async def test_s_16_it_is_tried_again_when_the_join_rules_change(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, clock: ManualClock
):
    before = list(room.ends)
    await alice.put_state(room.room_id, "m.room.join_rules", {"join_rule": "invite"})
    await refresh(room, hs1)
    draft = room.draft(
        "@other:evil", "m.room.member", {"membership": "join"}, state_key="@other:evil",
        prev=before, origin_server_ts=clock.now_ms(),
    )  # fmt: skip
    pdu = forge(draft, {STICKY: {"duration_ms": MINUTE_MS}})
    join = Event.from_pdu(pdu, room.room_version)
    await push(evil, hs1, [join])
    await sticky_events.recheck_soft_failed(hs1.services)
    assert section(await alice.sync(), room.room_id) == []
    await alice.put_state(room.room_id, "m.room.join_rules", {"join_rule": "public"})
    await sticky_events.recheck_soft_failed(hs1.services)
    assert ids(section(await alice.sync(), room.room_id)) == [join.event_id]


async def test_s_16_nothing_is_tried_again_that_has_expired_or_was_redacted(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, clock: ManualClock
):
    before = await banned(hs1, alice, room)
    brief = stuck(room, clock.now_ms(), "brief", prev=before, sticky={"duration_ms": MINUTE_MS})
    gone = stuck(room, clock.now_ms(), "redacted", prev=before)
    await push(evil, hs1, [brief, gone])
    path = f"/rooms/{quote(room.room_id)}/redact/{quote(gone.event_id)}/r1"
    await alice.call("PUT", path, {})
    clock.advance_ms(MINUTE_MS)
    await alice.call("POST", f"/rooms/{quote(room.room_id)}/unban", {"user_id": MALLORY})
    await refresh(room, hs1)
    await push(evil, hs1, [room.join(MALLORY)])
    await sticky_events.recheck_soft_failed(hs1.services)
    assert section(await alice.sync(), room.room_id) == []


async def test_s_16_who_took_it_back_while_nobody_listened_is_not_heard_either(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, clock: ManualClock
):
    """Both were soft-failed: where nobody banned them, others saw the redaction."""
    before = await banned(hs1, alice, room)
    now_ms = clock.now_ms()
    said = stuck(room, now_ms, "taken back", prev=before)
    kept = stuck(room, now_ms, "said", prev=before)
    redaction = room.send(
        MALLORY, "m.room.redaction", {"redacts": said.event_id}, prev=before,
        redacts=said.event_id, origin_server_ts=now_ms,
    )  # fmt: skip
    await push(evil, hs1, [said, kept, redaction])
    await alice.call("POST", f"/rooms/{quote(room.room_id)}/unban", {"user_id": MALLORY})
    await refresh(room, hs1)
    await push(evil, hs1, [room.join(MALLORY)])
    await sticky_events.recheck_soft_failed(hs1.services)
    assert ids(section(await alice.sync(), room.room_id)) == [kept.event_id]
    path = f"/rooms/{quote(room.room_id)}/event/{quote(said.event_id)}"
    assert (await alice.request("GET", path)).status == 404


async def test_s_16_a_ban_that_redacts_keeps_them_back_for_good(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, clock: ManualClock
):
    before = list(room.ends)
    ban = {"user_id": MALLORY, unstable.REDACT_EVENTS.unstable: True}
    await alice.call("POST", f"/rooms/{quote(room.room_id)}/ban", ban)
    await refresh(room, hs1)
    event = stuck(room, clock.now_ms(), prev=before)
    await push(evil, hs1, [event])
    await alice.call("POST", f"/rooms/{quote(room.room_id)}/unban", {"user_id": MALLORY})
    await refresh(room, hs1)
    await push(evil, hs1, [room.join(MALLORY)])
    await sticky_events.recheck_soft_failed(hs1.services)
    assert section(await alice.sync(), room.room_id) == []


async def test_s_16_of_one_sender_only_so_many_are_kept(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, clock: ManualClock
):
    before = await banned(hs1, alice, room)
    events = [stuck(room, clock.now_ms() + n, str(n), prev=before) for n in range(-120, 0)]
    for n in range(0, 120, 40):
        await push(evil, hs1, events[n : n + 40])
    held = await hs1.services.db.fetch("SELECT event_id FROM sticky_events")
    assert {row[0] for row in held} == {event.event_id for event in events[20:]}


@pytest.mark.parametrize("version", ["11"], indirect=True)
async def test_s_18_what_a_check_refuses_never_sticks(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, clock: ManualClock
):
    draft = room.draft(
        MALLORY, "m.room.power_levels", {"users": {MALLORY: 100}}, state_key="",
        origin_server_ts=clock.now_ms(),
    )  # fmt: skip
    pdu = forge(draft, {STICKY: {"duration_ms": MINUTE_MS}})
    await push(evil, hs1, [pdu])
    assert section(await alice.sync(), room.room_id) == []
    assert await hs1.services.db.fetchval("SELECT count(*) FROM sticky_events") == 0


# --- rate limits --------------------------------------------------------------------------------


async def shared_room(server: Homeserver, evil: EvilServer) -> tuple[User, Room]:
    """Return somebody at the server, and their room that mallory has joined."""
    user = await server.register("alice")
    room = await mirror(server, await user.create_room(room_version="12"))
    await push(evil, server, [room.join(MALLORY)])
    return user, room


async def flood(
    evil: EvilServer, server: Homeserver, room: Room, count: int, now_ms: int
) -> list[Event]:
    events = [stuck(room, now_ms, str(n)) for n in range(count)]
    for n in range(0, count, 50):
        answered = await push(evil, server, events[n : n + 50])
        assert all(result == {} for result in answered.values())
    return events


async def collect(user: User, room: Room) -> list[str]:
    """Return the sticky events that a user is sent, in as many answers as there are."""
    seen: list[str] = []
    while True:
        answer = await user.sync(filter='{"room":{"timeline":{"types":[]}}}')
        found = ids(section(answer, room.room_id))
        if not found:
            return seen
        seen += found


async def test_s_20_a_flood_waits_its_turn_and_none_of_it_is_lost(
    federation: Federation, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        sticky_limits, "OF_SERVER_AND_ROOM", sticky_limits.Limit(interval_ms=1_000, burst=20)
    )
    limited, evil = await federation.start("limited", rate_limits="on"), federation.evil()
    alice, room = await shared_room(limited, evil)
    await alice.sync()
    events = await flood(evil, limited, room, 50, clock.now_ms())
    everything = [event.event_id for event in events]
    at_once = await collect(alice, room)
    assert at_once == everything[:20]
    seen = list(at_once)
    for _ in range(3):
        clock.advance_ms(1_000)
        await sticky_limits.release_waiting(limited.services)
        found = await collect(alice, room)
        assert len(found) == sticky_limits.RELEASED_AT_ONCE
        seen += found
    assert sorted(seen) == sorted(everything)
    assert await collect(alice, room) == []


async def test_s_20_what_ends_soonest_goes_first_and_what_has_ended_never(
    federation: Federation, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sticky_limits, "OF_SERVER_AND_ROOM", sticky_limits.Limit(10**9, 1))
    monkeypatch.setattr(sticky_limits, "RELEASED_AT_ONCE", 1)
    limited, evil = await federation.start("limited", rate_limits="on"), federation.evil()
    alice, room = await shared_room(limited, evil)
    await alice.sync()
    minutes = [9, 3, 1, 2]  # The first does not wait; the third ends before its turn.
    events = [
        stuck(room, clock.now_ms(), str(n), sticky={"duration_ms": n * MINUTE_MS}) for n in minutes
    ]
    await push(evil, limited, events)
    assert await collect(alice, room) == [events[0].event_id]
    clock.advance_ms(MINUTE_MS)
    for expected in (events[3], events[1]):
        await sticky_limits.release_waiting(limited.services)
        assert await collect(alice, room) == [expected.event_id]
    await sticky_limits.release_waiting(limited.services)
    assert await collect(alice, room) == []


async def test_s_20_one_server_or_room_keeps_no_other_waiting(
    federation: Federation, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sticky_limits, "OF_SERVER_AND_ROOM", sticky_limits.Limit(10**9, 5))
    limited, evil = await federation.start("limited", rate_limits="on"), federation.evil()
    good = federation.evil("good")
    alice, room = await shared_room(limited, evil)
    await push(good, limited, [room.join("@bob:good")])
    await alice.sync()
    await flood(evil, limited, room, 10, clock.now_ms())
    call = stuck(room, clock.now_ms(), "call", sender="@bob:good")
    await push(good, limited, [call])
    assert call.event_id in await collect(alice, room)
    await alice.say(room.room_id)
    assert (await collect(alice, room)) == []


async def test_s_20_a_redacted_one_never_gets_its_turn(
    federation: Federation, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sticky_limits, "OF_SERVER_AND_ROOM", sticky_limits.Limit(10**9, 1))
    limited, evil = await federation.start("limited", rate_limits="on"), federation.evil()
    alice, room = await shared_room(limited, evil)
    await alice.sync()
    first, waits = await flood(evil, limited, room, 2, clock.now_ms())
    assert await collect(alice, room) == [first.event_id]
    path = f"/rooms/{quote(room.room_id)}/redact/{quote(waits.event_id)}/r1"
    await alice.call("PUT", path, {})
    await sticky_limits.release_waiting(limited.services)
    assert await collect(alice, room) == []


async def test_s_21_when_too_much_waits_the_server_is_told_to_come_again(
    federation: Federation, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sticky_limits, "OF_SERVER_AND_ROOM", sticky_limits.Limit(10**9, 1))
    monkeypatch.setattr(sticky_limits, "WAITING_MAX", 3)
    limited, evil = await federation.start("limited", rate_limits="on"), federation.evil()
    alice, room = await shared_room(limited, evil)
    await alice.sync()
    await flood(evil, limited, room, 4, clock.now_ms())
    more = stuck(room, clock.now_ms(), "more")
    answer = await send_transaction(evil, limited, [more], txn_id="again")
    assert isinstance(answer, RemoteError)
    assert answer.status == 429
    assert answer.retry_after_ms == sticky_limits.REFUSED_MS
    missing = await alice.request(
        "GET", f"/rooms/{quote(room.room_id)}/event/{quote(more.event_id)}"
    )
    assert missing.status == 404, "nothing of it was kept"
    for _ in range(2):
        await sticky_limits.release_waiting(limited.services)
    assert await push(evil, limited, [more], txn_id="again") == {more.event_id: {}}
    await sticky_limits.release_waiting(limited.services)
    assert more.event_id in await collect(alice, room)


async def test_s_21_what_it_follows_need_not_be_had(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, clock: ManualClock
):
    hidden = room.send(MALLORY, "m.room.message", {"body": "x"}, origin_server_ts=clock.now_ms())
    event = stuck(room, clock.now_ms())
    assert await push(evil, hs1, [event]) == {event.event_id: {}}
    answer = await alice.sync()
    assert ids(section(answer, room.room_id)) == [event.event_id]
    assert timeline(answer, room.room_id) == [], "it has no place yet"
    late = await list_late_sticky(hs1.services.db, [event.event_id])
    assert late == {event.event_id}, "application services are told of it by itself, too"
    assert (await event_of(alice, room, event))["unsigned"][TTL] == 10 * MINUTE_MS
    await push(evil, hs1, [hidden])
    assert await push(evil, hs1, [event]) == {event.event_id: {}}
    answer = await alice.sync()
    assert timeline(answer, room.room_id) == [hidden.event_id, event.event_id]
    assert section(answer, room.room_id) == []
    alice.since = None
    await push(evil, hs1, talk(room, clock.now_ms()))
    assert ids(section(await alice.sync(), room.room_id)) == [event.event_id]


async def test_s_21_out_of_its_place_it_is_checked_against_the_present(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, clock: ManualClock
):
    before = await banned(hs1, alice, room)
    hidden = room.send(
        MALLORY, "m.room.message", {"body": "x"}, prev=before, origin_server_ts=clock.now_ms()
    )
    event = stuck(room, clock.now_ms(), prev=[hidden])
    await push(evil, hs1, [event])
    assert section(await alice.sync(), room.room_id) == []
    await alice.call("POST", f"/rooms/{quote(room.room_id)}/unban", {"user_id": MALLORY})
    await refresh(room, hs1)
    await push(evil, hs1, [room.send(
        MALLORY, "m.room.member", {"membership": "join"}, state_key=MALLORY,
        prev=[room.current("m.room.member", MALLORY)],  # type: ignore[list-item]  # it is there
    )])  # fmt: skip
    await sticky_events.recheck_soft_failed(hs1.services)
    assert ids(section(await alice.sync(), room.room_id)) == [event.event_id]


async def test_s_21_what_was_delivered_out_of_its_place_keeps_its_content_and_end_there(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, clock: ManualClock
):
    """What it follows comes with a copy of it that its server redacted, as we were not there."""
    talk(room, clock.now_ms())
    event = stuck(room, clock.now_ms() + HOUR_MS)  # Its clock is ahead.
    later = talk(room, clock.now_ms())
    await push(evil, hs1, [event])
    assert ids(section(await alice.sync(), room.room_id)) == [event.event_id]

    clock.advance_ms(2 * MINUTE_MS)
    whole = room.events[event.event_id]
    room.events[event.event_id] = Event.from_pdu(
        redact(event.pdu, room.room_version), room.room_version
    )
    serve(evil, room)
    await push(evil, hs1, later)
    stored = await hs1.services.events.get(event.event_id)
    assert stored is not None
    assert stored.order is not None, "it has its place now"
    shown = await event_of(alice, room, event)
    assert shown["content"] == whole.content
    assert shown["unsigned"][TTL] == 8 * MINUTE_MS
    bob = await hs1.register("bob")
    await bob.join(room.room_id)
    (to_bob,) = section(await bob.sync(), room.room_id)
    assert to_bob["content"] == whole.content
    assert to_bob["unsigned"][TTL] == 8 * MINUTE_MS


@pytest.mark.parametrize("visibility", ["joined", "shared"])
async def test_s_21_out_of_its_place_it_is_shown_to_servers_as_long_as_it_is_sticky(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, clock: ManualClock, visibility: str
):
    """Who was there when it was sent cannot be told: then nobody was, where that counts."""
    room.send(MALLORY, "m.room.message", {"body": "x"}, origin_server_ts=clock.now_ms())
    event = stuck(room, clock.now_ms())
    await alice.put_state(
        room.room_id, "m.room.history_visibility", {"history_visibility": visibility}
    )
    await push(evil, hs1, [event])
    path = f"/event/{quote(event.event_id)}"
    (live,) = (await told(evil, path))["pdus"]
    assert live["content"] == {"body": "sticky"}
    clock.advance_ms(10 * MINUTE_MS)
    (expired,) = (await told(evil, path))["pdus"]
    assert expired["content"] == ({} if visibility == "joined" else {"body": "sticky"})


async def test_s_21_what_it_rests_upon_must_be_had_else_its_sender_is_told(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, clock: ManualClock
):
    join = room.join("@other:evil")
    event = stuck(room, clock.now_ms(), sender="@other:evil")
    answered = await push(evil, hs1, [event])
    assert "error" in answered[event.event_id]
    await push(evil, hs1, [join])
    assert await push(evil, hs1, [event]) == {event.event_id: {}}
    assert event.event_id in timeline(await alice.sync(), room.room_id)


async def test_s_21_an_old_one_whose_past_we_lack_is_delivered(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, clock: ManualClock
):
    talk(room, clock.now_ms())
    event = stuck(room, clock.now_ms())
    later = talk(room, clock.now_ms())
    serve(evil, room, between=1)  # It gives only the last of what lies between.
    await push(evil, hs1, [event])
    await push(evil, hs1, later)
    assert ids(section(await alice.sync(), room.room_id)) == [event.event_id]
