"""MSC4354, sticky events: what clients of one server see, in the proposal's order.

What servers owe one another is told in tests/federation/test_sticky_delivery.py and
tests/federation/test_sticky_receipt.py, sliding sync in test_msc4480.py.

MSC4354#proposal, MSC4354#sync-api-changes
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from minihs.base.clock import ManualClock
from minihs.protocol import unstable
from minihs.services.rooms import delayed_sending, sticky_events
from minihs.storage.delayed_events import Busy
from tests.helpers.homeserver import running_homeserver
from tests.helpers.waiting import PATIENCE_S, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.helpers.homeserver import Homeserver, User

DURATION = unstable.STICKY_DURATION_PARAMETER.unstable
SECTION = unstable.STICKY_SYNC_SECTION.unstable
STICKY = unstable.STICKY.unstable
TTL = unstable.STICKY_TTL.unstable
HOUR_MS = 3_600_000
FAR = 12  # So many messages push what came before out of a timeline.
_txn = iter(range(1_000_000))


@pytest.fixture
async def homeserver(database_url: str, tmp_path: Path) -> AsyncIterator[Homeserver]:
    """A homeserver whose clock the test moves."""
    async with running_homeserver(database_url, tmp_path, clock=ManualClock()) as server:
        yield server


def advance_ms(homeserver: Homeserver, duration_ms: int) -> None:
    clock = homeserver.clock
    assert isinstance(clock, ManualClock)
    clock.advance_ms(duration_ms)


def at(room_id: str, *parts: str) -> str:
    return "/".join(["/rooms", quote(room_id), *(quote(part, safe="") for part in parts)])


async def stick(user: User, room_id: str, body: str = "sticky", ms: int = 600_000) -> str:
    content = {"msgtype": "m.text", "body": body}
    path = at(room_id, "send", "m.room.message", f"s{next(_txn)}")
    return (await user.call("PUT", path, content, **{DURATION: str(ms)}))["event_id"]


async def redact(user: User, room_id: str, event_id: str) -> str:
    path = at(room_id, "redact", event_id, f"r{next(_txn)}")
    return (await user.call("PUT", path, {}))["event_id"]


async def talk(user: User, room_id: str, count: int = FAR) -> None:
    """Push what came before out of everybody's timeline."""
    for n in range(count):
        await user.say(room_id, str(n))


async def ignore(user: User, *others: User) -> None:
    path = f"/user/{quote(user.user_id)}/account_data/m.ignored_user_list"
    await user.call("PUT", path, {"ignored_users": {other.user_id: {} for other in others}})


def joined(answer: dict, room_id: str) -> dict:
    return answer.get("rooms", {}).get("join", {}).get(room_id, {})


def section(answer: dict, room_id: str) -> list[dict]:
    return joined(answer, room_id).get(SECTION, {"events": []})["events"]


def timeline(answer: dict, room_id: str) -> list[dict]:
    return joined(answer, room_id).get("timeline", {"events": []})["events"]


def ids(events: list[dict]) -> list[str]:
    return [event["event_id"] for event in events]


async def room_of_two(homeserver: Homeserver, **options: object) -> tuple[User, User, str]:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room(**options)
    await bob.join(room_id)
    return alice, bob, room_id


async def room_of_two_and_one_ignored(
    homeserver: Homeserver,
) -> tuple[User, User, User, str]:
    """Return alice, bob, carol, whom bob ignores, and the room that all are in; bob has synced."""
    alice, bob, room_id = await room_of_two(homeserver)
    carol = await homeserver.register("carol")
    await carol.join(room_id)
    await ignore(bob, carol)
    await bob.sync()
    return alice, bob, carol, room_id


def visible_to(visibility: str) -> dict[str, object]:
    """Return options of a room with a history visibility."""
    content = {"history_visibility": visibility}
    event = {"type": "m.room.history_visibility", "state_key": "", "content": content}
    return {"initial_state": [event]}


# --- what is sticky, and how long ---------------------------------------------------------------


async def test_s_01_no_time_at_all_is_a_duration_but_nothing_sticks(
    homeserver: Homeserver,
) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    event_id = await stick(alice, room_id, ms=0)
    await talk(alice, room_id)
    assert section(await bob.sync(), room_id) == []
    event = await bob.call("GET", at(room_id, "event", event_id))
    assert event[STICKY] == {"duration_ms": 0}
    assert TTL not in event["unsigned"]


async def test_s_01_an_hour_is_the_longest(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    event_id = await stick(alice, room_id, ms=HOUR_MS)
    event = await bob.call("GET", at(room_id, "event", event_id))
    assert event["unsigned"][TTL] == HOUR_MS


async def test_s_02_a_sticky_message_says_so_outside_its_content(homeserver: Homeserver) -> None:
    alice, _, room_id = await room_of_two(homeserver)
    event_id = await stick(alice, room_id, ms=300_000)
    event = await alice.call("GET", at(room_id, "event", event_id))
    assert event[STICKY] == {"duration_ms": 300_000}
    assert STICKY not in event["content"]
    assert event["unsigned"][TTL] == 300_000


async def test_s_02_what_is_encrypted_can_be_sticky(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    content = {"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "AwgAEn…"}
    path = at(room_id, "send", "m.room.encrypted", f"e{next(_txn)}")
    await alice.call("PUT", path, content, **{DURATION: "60000"})
    await talk(alice, room_id)
    (event,) = section(await bob.sync(), room_id)
    assert (event["type"], event["content"]) == ("m.room.encrypted", content)


async def test_s_02_state_can_be_sticky(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    path = at(room_id, "state", "org.example", "key")
    await alice.call("PUT", path, {"a": 1}, **{DURATION: "60000"})
    (event,) = timeline(await bob.sync(), room_id)
    assert event[STICKY] == {"duration_ms": 60_000}
    await alice.call("PUT", path, {"a": 1}, **{DURATION: "60000"})
    await talk(alice, room_id)
    (event,) = section(await bob.sync(), room_id)
    assert event["state_key"] == "key", "what says the same again is sticky again"


async def test_s_02_a_redaction_that_is_sent_like_a_message_can_be_sticky(
    homeserver: Homeserver,
) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    target = await alice.say(room_id, "gone")
    path = at(room_id, "send", "m.room.redaction", "r1")
    redaction = await alice.call("PUT", path, {"redacts": target}, **{DURATION: "60000"})
    await talk(alice, room_id)
    (event,) = section(await bob.sync(), room_id)
    assert event["event_id"] == redaction["event_id"]
    assert event[STICKY] == {"duration_ms": 60_000}
    shown = (await bob.call("GET", at(room_id, "event", target)))["unsigned"]["redacted_because"]
    assert shown[STICKY] == {"duration_ms": 60_000}


async def test_s_02_memberships_can_be_sticky(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    path = at(room_id, "state", "m.room.member", alice.user_id)
    content = {"membership": "join", "displayname": "Alice"}
    await alice.call("PUT", path, content, **{DURATION: "60000"})
    (event,) = timeline(await bob.sync(), room_id)
    assert event[STICKY] == {"duration_ms": 60_000}
    assert event["unsigned"][TTL] == 60_000


@pytest.mark.parametrize("name", [DURATION, unstable.STICKY_DURATION_PARAMETER.stable])
@pytest.mark.parametrize("value", ["-1", "3600001", "", "1.5", "true", "9" * 30])
@pytest.mark.parametrize("endpoint", ["send", "state"])
async def test_s_02_a_duration_that_is_none_is_refused_and_nothing_is_sent(
    homeserver: Homeserver, endpoint: str, value: str, name: str
) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    path = at(room_id, endpoint, "m.room.message", f"x{next(_txn)}")
    response = await alice.request("PUT", path, {"body": "x"}, **{name: value})
    assert (response.status, response.json["errcode"]) == (400, "M_INVALID_PARAM")
    assert "rooms" not in await bob.sync()


async def test_s_02_both_names_are_understood_but_not_at_odds(homeserver: Homeserver) -> None:
    alice, _, room_id = await room_of_two(homeserver)
    stable = unstable.STICKY_DURATION_PARAMETER.stable
    path = at(room_id, "send", "m.room.message", f"x{next(_txn)}")
    response = await alice.request("PUT", path, {}, **{DURATION: "1000", stable: "2000"})
    assert (response.status, response.json["errcode"]) == (400, "M_INVALID_PARAM")
    event_id = (await alice.call("PUT", path, {"body": "x"}, **{stable: "2000"}))["event_id"]
    event = await alice.call("GET", at(room_id, "event", event_id))
    assert event[STICKY] == {"duration_ms": 2_000}
    assert unstable.STICKY.stable not in event, "it is signed: no name that may yet change"


async def test_s_02_a_repeated_request_has_its_first_answer(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    path = at(room_id, "send", "m.room.message", "once")
    first = await alice.call("PUT", path, {"body": "x"}, **{DURATION: "60000"})
    assert await alice.call("PUT", path, {"body": "x"}, **{DURATION: "90000"}) == first
    (event,) = timeline(await bob.sync(), room_id)
    assert event[STICKY] == {"duration_ms": 60_000}


async def test_s_03_its_time_runs_out_where_it_is_shown(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    event_id = await stick(alice, room_id, ms=60_000)
    advance_ms(homeserver, 20_000)
    (event,) = timeline(await bob.sync(), room_id)
    assert event["unsigned"][TTL] == 40_000
    advance_ms(homeserver, 40_000)
    event = await bob.call("GET", at(room_id, "event", event_id))
    assert TTL not in event["unsigned"]


async def test_s_03_a_clock_that_is_put_back_lengthens_nothing(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    event_id = await stick(alice, room_id, ms=60_000)
    clock = homeserver.clock
    assert isinstance(clock, ManualClock)
    clock._now_ms -= 30_000  # Clocks do this; `advance_ms` does not.
    event = await bob.call("GET", at(room_id, "event", event_id))
    assert event["unsigned"][TTL] == 60_000


async def test_s_03_a_restart_changes_no_end(database_url: str, tmp_path: Path) -> None:
    clock = ManualClock()
    async with running_homeserver(database_url, tmp_path, clock=clock) as before:
        alice, bob, room_id = await room_of_two(before)
        await bob.sync()
        await stick(alice, room_id, "dies while we are down", ms=60_000)
        lives = await stick(alice, room_id, "lives", ms=120_000)
        await talk(alice, room_id)
    clock.advance_ms(90_000)
    async with running_homeserver(database_url, tmp_path, clock=clock) as after:
        bob.homeserver = after
        (event,) = section(await bob.sync(), room_id)
    assert (event["event_id"], event["unsigned"][TTL]) == (lives, 30_000)


# --- redaction ----------------------------------------------------------------------------------


async def test_s_04_a_redacted_sticky_event_is_sticky_no_more(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    sticky = await stick(alice, room_id)
    await redact(alice, room_id, sticky)
    await talk(alice, room_id)
    assert section(await bob.sync(), room_id) == []
    event = await bob.call("GET", at(room_id, "event", sticky))
    assert STICKY not in event
    assert TTL not in event["unsigned"]


async def test_s_04_whoever_was_sent_it_is_told_of_the_redaction(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    carol = await homeserver.register("carol")
    await carol.join(room_id)
    for user in (bob, carol):
        await user.sync()
    sticky = await stick(alice, room_id)
    await talk(alice, room_id)
    assert ids(section(await bob.sync(), room_id)) == [sticky]
    redaction = await redact(alice, room_id, sticky)
    await talk(alice, room_id)
    (event,) = section(await bob.sync(), room_id)
    assert (event["event_id"], event["redacts"]) == (redaction, sticky)
    assert section(await bob.sync(), room_id) == [], "once"
    assert section(await carol.sync(), room_id) == [], "she never had it"


async def test_s_04_a_redaction_in_the_timeline_is_not_repeated(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    sticky = await stick(alice, room_id)
    await bob.sync()
    redaction = await redact(alice, room_id, sticky)
    answer = await bob.sync()
    assert ids(timeline(answer, room_id)) == [redaction]
    assert section(answer, room_id) == []


async def test_s_04_nobody_is_told_once_the_event_would_have_ended(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    sticky = await stick(alice, room_id, ms=60_000)
    await bob.sync()
    await redact(alice, room_id, sticky)
    await talk(alice, room_id)
    advance_ms(homeserver, 60_000)
    assert section(await bob.sync(), room_id) == []


async def test_s_04_who_joins_after_the_redaction_is_told_nothing(homeserver: Homeserver) -> None:
    alice, _, room_id = await room_of_two(homeserver)
    await redact(alice, room_id, await stick(alice, room_id))
    await talk(alice, room_id)
    carol = await homeserver.register("carol")
    await carol.sync()
    await carol.join(room_id)
    assert section(await carol.sync(), room_id) == []


async def test_s_04_a_ban_that_redacts_unsticks(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    mallory = await homeserver.register("mallory")
    await mallory.join(room_id)
    await bob.sync()
    await stick(mallory, room_id)
    ban = {"user_id": mallory.user_id, unstable.REDACT_EVENTS.unstable: True}
    await alice.call("POST", at(room_id, "ban"), ban)
    await talk(alice, room_id)
    assert section(await bob.sync(), room_id) == []


async def test_s_04_a_plain_ban_unsticks_nothing(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    mallory = await homeserver.register("mallory")
    await mallory.join(room_id)
    await bob.sync()
    sticky = await stick(mallory, room_id)
    await alice.call("POST", at(room_id, "ban"), {"user_id": mallory.user_id})
    await talk(alice, room_id)
    assert ids(section(await bob.sync(), room_id)) == [sticky]


# --- /sync --------------------------------------------------------------------------------------


async def test_s_09_what_the_timeline_leaves_out_comes_in_the_section(
    homeserver: Homeserver,
) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    sticky = await stick(alice, room_id)
    await talk(alice, room_id)
    answer = await bob.sync()
    assert sticky not in ids(timeline(answer, room_id))
    (event,) = section(answer, room_id)
    assert event["event_id"] == sticky
    assert event["unsigned"][TTL] > 0
    assert section(await bob.sync(), room_id) == []  # S-12: once.


async def test_s_09_more_than_fits_comes_in_later_answers(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    sent = [await stick(alice, room_id, str(n)) for n in range(230)]
    seen: list[str] = []
    for _ in range(4):
        answer = await bob.sync()
        assert len(section(answer, room_id)) <= 100
        seen += ids(timeline(answer, room_id)) + ids(section(answer, room_id))
    assert sorted(seen) == sorted(sent)
    assert "rooms" not in await bob.sync()


async def test_s_09_a_backlog_is_answered_at_once(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    for n in range(120):
        await stick(alice, room_id, str(n))
    await bob.sync()
    answer = await bob.sync(timeout="30000")  # The clock stands still: it would never end.
    assert section(answer, room_id) != []


async def test_s_09_a_new_sticky_event_ends_a_long_poll(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    nothing = json.dumps({"room": {"timeline": {"types": []}}})
    waiting = asyncio.ensure_future(bob.sync(timeout="300000", filter=nothing))
    await until(lambda: any(services.views.waiting for services in homeserver.workers))
    sticky = await stick(alice, room_id)
    answer = await asyncio.wait_for(waiting, PATIENCE_S)
    assert ids(section(answer, room_id)) == [sticky]


async def test_s_09_a_filter_of_nothing_ephemeral_hides_none(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    sticky = await stick(alice, room_id)
    await talk(alice, room_id)
    quiet = {"room": {"ephemeral": {"limit": 0, "types": []}, "timeline": {"limit": 1}}}
    assert ids(section(await bob.sync(filter=json.dumps(quiet)), room_id)) == [sticky]


async def test_s_10_what_the_timeline_shows_is_not_repeated(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    sticky = await stick(alice, room_id)
    answer = await bob.sync()
    assert ids(timeline(answer, room_id)) == [sticky]
    assert section(answer, room_id) == []


async def test_s_11_the_timeline_filter_is_applied_first(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    sticky = await stick(alice, room_id)
    nothing = json.dumps({"room": {"timeline": {"types": []}}})
    answer = await bob.sync(filter=nothing)
    assert timeline(answer, room_id) == []
    assert ids(section(answer, room_id)) == [sticky]


@pytest.mark.parametrize("of_room", [{"state": {"types": []}}, {"ephemeral": {"types": []}}])
async def test_s_11_no_filter_of_events_applies(homeserver: Homeserver, of_room: dict) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    sticky = await stick(alice, room_id)
    await talk(alice, room_id)
    of_room["timeline"] = {"not_senders": [alice.user_id]}
    answer = await bob.sync(filter=json.dumps({"room": of_room}))
    assert ids(section(answer, room_id)) == [sticky]


async def test_s_11_a_room_that_is_filtered_out_has_no_section(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    await stick(alice, room_id)
    await talk(alice, room_id)
    answer = await bob.sync(filter=json.dumps({"room": {"not_rooms": [room_id]}}))
    assert room_id not in answer.get("rooms", {}).get("join", {})


async def test_s_11_a_room_that_is_filtered_out_between_pages_keeps_its_rest(
    homeserver: Homeserver,
) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    sent = [await stick(alice, room_id, str(n)) for n in range(110)]
    await talk(alice, room_id)
    seen = ids(section(await bob.sync(), room_id))
    answer = await bob.sync(filter=json.dumps({"room": {"not_rooms": [room_id]}}))
    assert room_id not in answer.get("rooms", {}).get("join", {})
    seen += ids(section(await bob.sync(), room_id))
    assert seen == sent
    assert section(await bob.sync(), room_id) == []


@pytest.mark.shapes_events
async def test_s_11_whoever_asks_for_few_fields_can_let_it_expire(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    await stick(alice, room_id, ms=60_000)
    await talk(alice, room_id)
    answer = await bob.sync(filter=json.dumps({"event_fields": ["event_id"]}))
    (event,) = section(answer, room_id)
    assert set(event) == {"event_id", STICKY, "unsigned"}
    assert event["unsigned"] == {TTL: 60_000}


async def test_s_12_full_state_delivers_nothing_twice(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await stick(alice, room_id)
    await bob.sync()
    assert section(await bob.sync(full_state="true"), room_id) == []


async def test_s_12_an_answer_that_was_lost_comes_again(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    since = bob.since
    sticky = await stick(alice, room_id, ms=60_000)
    await talk(alice, room_id)
    assert ids(section(await bob.sync(), room_id)) == [sticky]
    advance_ms(homeserver, 20_000)
    (event,) = section(await bob.sync(since=since), room_id)
    assert (event["event_id"], event["unsigned"][TTL]) == (sticky, 40_000)


async def test_s_12_pages_and_timelines_show_each_event_once(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    seen: list[str] = []
    sent = [await stick(alice, room_id, str(n)) for n in range(130)]
    for _ in range(6):  # A backlog remains while more comes in.
        sent.append(await stick(alice, room_id, "meanwhile"))
        answer = await bob.sync()
        seen += ids(timeline(answer, room_id)) + ids(section(answer, room_id))
    assert sorted(seen) == sorted(sent)


async def all_pages(user: User, room_id: str, *filters: dict) -> list[str]:
    """Return what timeline and section show till nothing comes; the last filter stays."""
    seen: list[str] = []
    for number in range(20):
        of_page = filters[min(number, len(filters) - 1)]
        answer = await user.sync(filter=json.dumps({"room": {"timeline": of_page}}))
        if not joined(answer, room_id):
            break
        seen += ids(timeline(answer, room_id)) + ids(section(answer, room_id))
    return seen


async def test_s_09_more_that_comes_between_pages_is_not_lost(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    sent = [await stick(alice, room_id, str(n)) for n in range(160)]
    answer = await bob.sync(filter=json.dumps({"room": {"timeline": {"limit": 50}}}))
    seen = ids(timeline(answer, room_id)) + ids(section(answer, room_id))
    # The next page begins with ten, and then come fifty that the timeline has shown.
    sent += [await stick(alice, room_id, str(n)) for n in range(60)]
    seen += await all_pages(bob, room_id, {"limit": 0})
    assert sorted(seen) == sorted(sent)


async def test_s_11_what_a_filter_keeps_out_is_not_lost_behind_what_it_lets_in(
    homeserver: Homeserver,
) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    sent = [
        (await alice.call("PUT", at(room_id, "send", "m.bar", f"b{n}"), {}, **{DURATION: "60000"}))
        for n in range(30)
    ]
    sent += [{"event_id": await stick(alice, room_id, str(n))} for n in range(100)]
    seen = await all_pages(bob, room_id, {"types": ["m.bar"], "limit": 100})
    assert sorted(seen) == sorted(ids(sent))


async def test_s_11_another_filter_between_pages_loses_nothing(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    sent = [await stick(alice, room_id, str(n)) for n in range(100)]
    await alice.call("PUT", at(room_id, "send", "m.bar", "1"), {})
    sent += [await stick(alice, room_id, str(n)) for n in range(5)]
    await alice.call("PUT", at(room_id, "send", "m.bar", "2"), {})
    seen = await all_pages(bob, room_id, {"types": ["m.bar"]}, {})
    assert set(sent) <= set(seen), "the first timeline showed none of the last five"


async def test_s_09_what_is_left_of_many_rooms_comes_at_once(
    homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that names every room of a great many would not fit into a URL."""
    monkeypatch.setattr("minihs.services.sync.streams.sticky_events.ROOMS_LEFT_MAX", 3)
    alice, bob, first = await room_of_two(homeserver)
    rooms = [first, *[await alice.create_room() for _ in range(7)]]
    for room_id in rooms[1:]:
        await bob.join(room_id)
    await bob.sync()
    sent = [await stick(alice, room_id, str(n)) for room_id in rooms for n in range(15)]
    nothing = json.dumps({"room": {"timeline": {"limit": 0}}})
    answer = await bob.sync(filter=nothing)
    counts = sorted(len(section(answer, room_id)) for room_id in rooms)
    assert counts == [12, 12, 12, 15, 15, 15, 15, 15]
    rest = await bob.sync(filter=nothing)
    seen = [e for page in (answer, rest) for room_id in rooms for e in ids(section(page, room_id))]
    assert sorted(seen) == sorted(sent)


async def test_s_12_a_flood_in_one_room_does_not_delay_another(homeserver: Homeserver) -> None:
    alice, bob, loud = await room_of_two(homeserver)
    quiet = await alice.create_room()
    await bob.join(quiet)
    await bob.sync()
    for n in range(150):
        await stick(alice, loud, str(n))
    call = await stick(alice, quiet)
    await talk(alice, quiet)
    answer = await bob.sync()
    assert ids(section(answer, quiet)) == [call]
    assert len(section(answer, loud)) == 50


@pytest.mark.shapes_events
async def test_s_13_wherever_it_is_shown_it_says_what_is_left(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    root = await alice.say(room_id, "root")
    sticky = await stick(alice, room_id, ms=60_000)
    advance_ms(homeserver, 10_000)

    def left(events: list[dict]) -> list[int]:
        return [e["unsigned"][TTL] for e in events if e["event_id"] == sticky]

    answer = await bob.sync()
    assert left(timeline(answer, room_id)) == [50_000]
    page = await bob.call("GET", at(room_id, "messages"), dir="b")
    assert left(page["chunk"]) == [50_000]
    assert left([await bob.call("GET", at(room_id, "event", sticky))]) == [50_000]
    around = await bob.call("GET", at(room_id, "context", root))
    assert left(around["events_after"]) == [50_000]
    assert left([(await bob.call("GET", at(room_id, "context", sticky)))["event"]]) == [50_000]
    raw = json.dumps({"event_format": "federation"})
    (event,) = (await carol_sync(homeserver, room_id, filter=raw))[-1:]
    assert event["unsigned"][TTL] == 50_000


async def carol_sync(homeserver: Homeserver, room_id: str, **query: str) -> list[dict]:
    """Return a timeline as somebody new sees it."""
    carol = await homeserver.register("carol")
    await carol.join(room_id)
    events = timeline(await carol.sync(**query), room_id)
    return [event for event in events if event["type"] == "m.room.message"]


@pytest.mark.parametrize("visibility", ["shared", "joined"])
async def test_s_14_whoever_joins_gets_all_that_is_live(
    homeserver: Homeserver, visibility: str
) -> None:
    alice, carol = await homeserver.register("alice"), await homeserver.register("carol")
    room_id = await alice.create_room(**visible_to(visibility))
    await carol.sync()
    live = [await stick(alice, room_id, f"live {n}") for n in range(3)]
    await stick(alice, room_id, "dies", ms=1_000)
    advance_ms(homeserver, 2_000)
    await talk(alice, room_id)
    await carol.sync()
    await carol.join(room_id)
    answer = await carol.sync()
    assert ids(section(answer, room_id)) == live
    assert section(await carol.sync(), room_id) == []


async def test_s_14_a_first_sync_has_all_that_is_live(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    live = [await stick(alice, room_id, f"live {n}") for n in range(3)]
    await talk(alice, room_id)
    assert ids(section(await bob.sync(), room_id)) == live


async def test_s_14_who_joins_gets_more_than_fits_in_pages(homeserver: Homeserver) -> None:
    alice, carol = await homeserver.register("alice"), await homeserver.register("carol")
    room_id = await alice.create_room()
    await carol.sync()
    live = [await stick(alice, room_id, str(n)) for n in range(130)]
    await carol.join(room_id)
    seen: list[str] = []
    for _ in range(3):
        answer = await carol.sync()
        shown = [e for e in ids(timeline(answer, room_id)) if e in live]
        seen += shown + ids(section(answer, room_id))
    assert sorted(seen) == sorted(live)


async def test_s_14_who_leaves_and_returns_gets_them_again(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    sticky = await stick(alice, room_id)
    await talk(alice, room_id)
    await bob.sync()
    await bob.leave(room_id)
    assert section(await bob.sync(), room_id) == []
    await bob.join(room_id)
    assert ids(section(await bob.sync(), room_id)) == [sticky]


@pytest.mark.parametrize("visibility", ["invited", "joined"])
async def test_s_15_a_member_may_see_what_is_sticky_whatever_came_before_them(
    homeserver: Homeserver, visibility: str
) -> None:
    alice, carol = await homeserver.register("alice"), await homeserver.register("carol")
    room_id = await alice.create_room(**visible_to(visibility))
    sticky = await stick(alice, room_id, ms=60_000)
    path = at(room_id, "event", sticky)
    assert (await carol.request("GET", path)).status in (403, 404)
    await carol.join(room_id)
    assert (await carol.call("GET", path))["event_id"] == sticky
    history = (await carol.call("GET", at(room_id, "messages"), dir="b", limit="50"))["chunk"]
    assert sticky not in ids(history), "pages of history are as they were"
    advance_ms(homeserver, 60_000)
    assert (await carol.request("GET", path)).status == 404


@pytest.mark.parametrize("standing", ["invited", "left", "kicked", "banned", "outside"])
async def test_s_15_only_who_is_joined_may(homeserver: Homeserver, standing: str) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room(**visible_to("world_readable"))
    if standing == "invited":
        await alice.invite(room_id, bob)
    elif standing != "outside":
        await bob.join(room_id)
        await bob.sync()
        if standing == "left":
            await bob.leave(room_id)
        else:
            action = standing.removesuffix("ed").removesuffix("n")
            await alice.call("POST", at(room_id, action), {"user_id": bob.user_id})
    sticky = await stick(alice, room_id)
    for answer in (await bob.sync(), await bob.sync(full_state="true")):
        assert sticky not in json.dumps(answer)


async def test_s_15_whoever_sent_it_is_told_of_where_members_are_loaded_lazily(
    homeserver: Homeserver,
) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    await stick(alice, room_id)
    await talk(bob, room_id)
    lazy = json.dumps({"room": {"state": {"lazy_load_members": True}}})
    answer = await bob.sync(filter=lazy)
    events = joined(answer, room_id)["state"]["events"]
    assert alice.user_id in [e["state_key"] for e in events if e["type"] == "m.room.member"]


# --- the end ------------------------------------------------------------------------------------


async def test_s_17_what_has_expired_is_not_delivered(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    sticky = await stick(alice, room_id, ms=60_000)
    advance_ms(homeserver, 60_000)
    (event,) = timeline(await bob.sync(), room_id)
    assert event["event_id"] == sticky, "in the timeline it stays"
    assert TTL not in event["unsigned"]
    await stick(alice, room_id, ms=60_000)
    await talk(alice, room_id)
    advance_ms(homeserver, 60_000)
    assert section(await bob.sync(), room_id) == []


async def test_s_17_expired_events_are_forgotten_by_the_housekeeping(
    homeserver: Homeserver,
) -> None:
    alice, _, room_id = await room_of_two(homeserver)
    for n in range(3):
        await stick(alice, room_id, str(n), ms=1_000 * (n + 1))
    advance_ms(homeserver, 2_000)
    await sticky_events.forget_expired(homeserver.services)
    left = await homeserver.services.db.fetchval("SELECT count(*) FROM sticky_events")
    assert left == 1


async def test_s_17_a_hundred_thousand_end_in_steps_that_keep_nobody_waiting(
    homeserver: Homeserver,
) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    db = homeserver.services.db
    await db.execute(
        """
        INSERT INTO sticky_events (event_id, room_nid, sender, until_ms, position)
        SELECT '$' || n, 1, '@alice:hs1', $1, n FROM generate_series(1, 100000) n
        """,
        homeserver.clock.now_ms(),
    )
    steps: list[int] = []
    said = 0
    original = sticky_events.sticky_events.delete_expired

    async def counted(*arguments: object) -> int:
        steps.append(await original(*arguments))  # type: ignore[arg-type]
        if len(steps) == 1:
            await until(lambda: said > 1)  # Everything else goes on.
        return steps[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sticky_events.sticky_events, "delete_expired", counted)
        ending = asyncio.ensure_future(sticky_events.forget_expired(homeserver.services))
        while not ending.done():
            await alice.say(room_id, str(said))
            said += 1
        await ending
    assert sum(steps) == 100_000
    assert max(steps) <= sticky_events.EXPIRED_AT_ONCE
    assert timeline(await bob.sync(), room_id) != []


# --- whose, and how many ------------------------------------------------------------------------


async def test_s_18_ignored_users_flood_blocks_nobody(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    mallory = await homeserver.register("mallory")
    await mallory.join(room_id)
    for n in range(120):
        await stick(mallory, room_id, str(n))
    wanted = await stick(alice, room_id)
    await talk(alice, room_id)
    await ignore(bob, mallory)
    assert ids(section(await bob.sync(), room_id)) == [wanted]


async def test_s_18_who_is_ignored_no_longer_is_made_up_for(homeserver: Homeserver) -> None:
    alice, bob, carol, room_id = await room_of_two_and_one_ignored(homeserver)
    passed_over = [await stick(carol, room_id, str(n)) for n in range(3)]
    had = await stick(alice, room_id)
    await talk(alice, room_id)
    assert ids(section(await bob.sync(), room_id)) == [had]
    await ignore(bob)
    assert ids(section(await bob.sync(), room_id)) == passed_over
    assert section(await bob.sync(), room_id) == [], "once"


async def test_s_18_a_flood_of_whom_is_ignored_no_longer_comes_in_pages(
    homeserver: Homeserver,
) -> None:
    alice, bob, carol, room_id = await room_of_two_and_one_ignored(homeserver)
    passed_over = [await stick(carol, room_id, str(n)) for n in range(130)]
    await talk(alice, room_id)
    await bob.sync()
    await ignore(bob)
    seen: list[str] = []
    for _ in range(3):
        found = ids(section(await bob.sync(), room_id))
        assert len(found) <= 100
        seen += found
    assert seen == passed_over


async def test_s_18_who_is_ignored_no_longer_is_made_up_for_between_pages(
    homeserver: Homeserver,
) -> None:
    alice, bob, carol, room_id = await room_of_two_and_one_ignored(homeserver)
    sent = [await stick(alice, room_id, str(n)) for n in range(110)]
    # These lie among what the first timeline shows, which leaves them out.
    sent += [await stick(carol, room_id, str(n)) for n in range(2)]
    sent.append(await stick(alice, room_id))
    answer = await bob.sync()
    seen = ids(timeline(answer, room_id)) + ids(section(answer, room_id))
    await ignore(bob)
    seen += await all_pages(bob, room_id, {})
    assert sorted(seen) == sorted(sent)


async def test_s_19_whoever_may_not_send_may_not_stick(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    await alice.put_state(
        room_id, "m.room.power_levels", {"users": {alice.user_id: 100}, "events_default": 50}
    )
    path = at(room_id, "send", "m.room.message", "no")
    response = await bob.request("PUT", path, {"body": "x"}, **{DURATION: "60000"})
    assert (response.status, response.json["errcode"]) == (403, "M_FORBIDDEN")


async def test_s_20_a_user_may_have_so_many_in_a_room(database_url: str, tmp_path: Path) -> None:
    clock = ManualClock()
    async with running_homeserver(
        database_url, tmp_path, clock=clock, sticky_events_per_user_max=3
    ) as homeserver:
        alice, bob, room_id = await room_of_two(homeserver)
        await stick(alice, room_id, ms=30_000)
        clock.advance_ms(10_000)
        path = at(room_id, "send", "m.room.message", "replayed")
        kept = await alice.call("PUT", path, {"body": "x"}, **{DURATION: "60000"})
        await alice.call("PUT", at(room_id, "state", "org.x", ""), {}, **{DURATION: "60000"})

        more = at(room_id, "send", "org.x", "more")
        for path_of_more in (more, at(room_id, "state", "org.x", "more")):
            refused = await alice.request("PUT", path_of_more, {"body": "x"}, **{DURATION: "60000"})
            assert (refused.status, refused.json["errcode"]) == (429, "M_LIMIT_EXCEEDED")
            assert refused.json["retry_after_ms"] == 20_000
        again = await alice.call("PUT", path, {"body": "x"}, **{DURATION: "60000"})
        assert again == kept, "a repeated request has its first answer"
        await alice.say(room_id, "ordinary ones may be sent")
        await stick(bob, room_id, "others may, too")
        other = await alice.create_room()
        await stick(alice, other, "and elsewhere")

        clock.advance_ms(20_000)
        await stick(alice, room_id, "there is room again")
        refused = await alice.request("PUT", more, {"body": "x"}, **{DURATION: "60000"})
        assert refused.status == 429
        await redact(alice, room_id, kept["event_id"])
        await stick(alice, room_id, "and again")


@pytest.mark.parametrize(("workers", "limit"), [(1, 6), (2, 6), (3, 1), (3, 2)])
async def test_s_20_nor_may_they_have_more_by_sending_all_at_once(
    database_url: str, tmp_path: Path, workers: int, limit: int
) -> None:
    """Each process takes a user's sends in turn, and the commit lets but one process be first."""
    async with running_homeserver(
        database_url,
        tmp_path,
        clock=ManualClock(),
        workers=workers,
        sticky_events_per_user_max=limit,
    ) as homeserver:
        alice, _, room_id = await room_of_two(homeserver)
        paths = [
            *(at(room_id, "send", "m.room.message", f"m{n}") for n in range(6)),
            *(at(room_id, "send", "m.room.redaction", f"r{n}") for n in range(6)),
            *(at(room_id, "state", "org.x", f"s{n}") for n in range(6)),
        ]
        content = {"body": "x", "redacts": await alice.say(room_id, "gone")}
        answers = await asyncio.gather(
            *(alice.request("PUT", path, content, **{DURATION: "60000"}) for path in paths)
        )
        assert sorted(answer.status for answer in answers) == [200] * limit + [429] * (18 - limit)


# --- for applications ---------------------------------------------------------------------------


async def test_s_23_short_durations_are_the_senders_business(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    event_id = await stick(alice, room_id, ms=1)
    event = await bob.call("GET", at(room_id, "event", event_id))
    assert event["unsigned"][TTL] == 1


async def test_s_24_a_sticky_key_means_nothing_to_the_server(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    sent = []
    for n in range(2):
        path = at(room_id, "send", "m.rtc.member", f"k{n}")
        content = {unstable.STICKY_KEY.unstable: "the same", "n": n}
        sent.append((await alice.call("PUT", path, content, **{DURATION: "60000"}))["event_id"])
    await talk(alice, room_id)
    assert ids(section(await bob.sync(), room_id)) == sent


@pytest.mark.parametrize("generation", ["parameter", "endpoint"])
async def test_s_25_a_delayed_event_is_sticky_from_when_it_is_sent(
    homeserver: Homeserver, generation: str
) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    if generation == "parameter":
        path = at(room_id, "send", "m.rtc.member", "later")
        query = {DURATION: "60000", unstable.DELAY_PARAMETER: "600000"}
        await alice.call("PUT", path, {"n": 1}, **query)
    else:
        path = f"{unstable.PATH_DELAYED_EVENT.unstable}".replace("{roomId}", quote(room_id))
        path = path.replace("{eventType}", "m.rtc.member").replace("{txnId}", "later")
        body = {"delay_ms": 600_000, "content": {"n": 1}}
        await alice.call("PUT", path, body, **{DURATION: "60000"})
    assert "rooms" not in await bob.sync()
    advance_ms(homeserver, 700_000)  # The server was busy, or down: it is late.
    (due,) = await delayed_sending.list_due(homeserver.services, Busy(), 10)
    assert await delayed_sending.send_due(homeserver.services, due, 0)
    await talk(alice, room_id)
    (event,) = section(await bob.sync(), room_id)
    assert event[STICKY] == {"duration_ms": 60_000}
    assert event["unsigned"][TTL] == 60_000
    assert unstable.DELAY_ID.unstable not in event["unsigned"], "that is for its sender"


async def test_s_26_clients_are_told_that_it_works(homeserver: Homeserver) -> None:
    answer = await homeserver.stranger().call("GET", "/_matrix/client/versions")
    assert answer["unstable_features"]["org.matrix.msc4354"] is True
