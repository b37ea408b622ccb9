"""MSC4354, sticky events: stories on one server. MSC4354#proposal, MSC4354#sync-api-changes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from minihs.base.clock import ManualClock
from minihs.protocol import unstable
from minihs.services.rooms import sticky_events
from tests.helpers.homeserver import running_homeserver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.helpers.homeserver import Homeserver, User

DURATION = unstable.STICKY_DURATION_PARAMETER.unstable
SECTION = unstable.STICKY_SYNC_SECTION.unstable
STICKY = unstable.STICKY.unstable
TTL = unstable.STICKY_TTL.unstable
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


async def stick(user: User, room_id: str, body: str = "sticky", ms: int = 600_000) -> str:
    path = f"/rooms/{quote(room_id)}/send/m.room.message/s{next(_txn)}"
    content = {"msgtype": "m.text", "body": body}
    return (await user.call("PUT", path, content, **{DURATION: str(ms)}))["event_id"]


def section(answer: dict, room_id: str) -> list[dict]:
    part = answer.get("rooms", {}).get("join", {}).get(room_id, {})
    return part.get(SECTION, {"events": []})["events"]


def timeline(answer: dict, room_id: str) -> list[dict]:
    part = answer.get("rooms", {}).get("join", {}).get(room_id, {})
    return part.get("timeline", {"events": []})["events"]


async def room_of_two(homeserver: Homeserver, **options: object) -> tuple[User, User, str]:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room(**options)
    await bob.join(room_id)
    return alice, bob, room_id


async def test_s_2_a_sticky_message_says_so_outside_its_content(homeserver: Homeserver) -> None:
    alice, _, room_id = await room_of_two(homeserver)
    event_id = await stick(alice, room_id, ms=300_000)
    event = await alice.call("GET", f"/rooms/{quote(room_id)}/event/{quote(event_id)}")
    assert event[STICKY] == {"duration_ms": 300_000}
    assert STICKY not in event["content"]
    assert event["unsigned"][TTL] == 300_000


async def test_s_2_state_can_be_sticky(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    path = f"/rooms/{quote(room_id)}/state/org.example/key"
    await alice.call("PUT", path, {"a": 1}, **{DURATION: "60000"})
    (event,) = timeline(await bob.sync(), room_id)
    assert event[STICKY] == {"duration_ms": 60_000}


@pytest.mark.parametrize("value", ["-1", "3600001", "", "1.5", "true", "9" * 30])
async def test_a_duration_that_is_none_is_refused_and_nothing_is_sent(
    homeserver: Homeserver, value: str
) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    path = f"/rooms/{quote(room_id)}/send/m.room.message/x{next(_txn)}"
    response = await alice.request("PUT", path, {"body": "x"}, **{DURATION: value})
    assert (response.status, response.json["errcode"]) == (400, "M_INVALID_PARAM")
    assert "rooms" not in await bob.sync()


async def test_s_3_its_time_runs_out_where_it_is_shown(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    event_id = await stick(alice, room_id, ms=60_000)
    advance_ms(homeserver, 20_000)
    (event,) = timeline(await bob.sync(), room_id)
    assert event["unsigned"][TTL] == 40_000
    advance_ms(homeserver, 40_000)
    event = await bob.call("GET", f"/rooms/{quote(room_id)}/event/{quote(event_id)}")
    assert TTL not in event["unsigned"]


async def test_s_9_what_the_timeline_leaves_out_comes_in_the_section(
    homeserver: Homeserver,
) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    sticky = await stick(alice, room_id)
    for n in range(12):
        await alice.say(room_id, str(n))
    answer = await bob.sync()
    assert sticky not in [e["event_id"] for e in timeline(answer, room_id)]
    (event,) = section(answer, room_id)
    assert event["event_id"] == sticky
    assert event["unsigned"][TTL] > 0
    assert section(await bob.sync(), room_id) == []  # S-12: once.


async def test_s_10_what_the_timeline_shows_is_not_repeated(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    sticky = await stick(alice, room_id)
    answer = await bob.sync()
    assert [e["event_id"] for e in timeline(answer, room_id)] == [sticky]
    assert section(answer, room_id) == []


async def test_s_11_the_timeline_filter_is_applied_first(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    sticky = await stick(alice, room_id)
    nothing = json.dumps({"room": {"timeline": {"types": []}}})
    answer = await bob.sync(filter=nothing)
    assert timeline(answer, room_id) == []
    assert [e["event_id"] for e in section(answer, room_id)] == [sticky]


async def test_s_12_more_than_fits_comes_in_pages_each_event_once(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    sent = [await stick(alice, room_id, str(n)) for n in range(230)]
    seen: list[str] = []
    for _ in range(4):
        answer = await bob.sync()
        assert len(section(answer, room_id)) <= 100
        seen += [e["event_id"] for e in (*timeline(answer, room_id), *section(answer, room_id))]
    assert sorted(seen) == sorted(sent)
    assert "rooms" not in await bob.sync()


async def test_s_12_a_flood_in_one_room_does_not_delay_another(homeserver: Homeserver) -> None:
    alice, bob, loud = await room_of_two(homeserver)
    quiet = await alice.create_room()
    await bob.join(quiet)
    await bob.sync()
    for n in range(150):
        await stick(alice, loud, str(n))
    call = await stick(alice, quiet)
    for n in range(12):
        await alice.say(quiet, str(n))
    answer = await bob.sync()
    assert [e["event_id"] for e in section(answer, quiet)] == [call]
    assert len(section(answer, loud)) == 50


@pytest.mark.parametrize("visibility", ["shared", "joined"])
async def test_s_14_and_15_whoever_joins_gets_all_that_is_live(
    homeserver: Homeserver, visibility: str
) -> None:
    alice, carol = await homeserver.register("alice"), await homeserver.register("carol")
    state = [
        {
            "type": "m.room.history_visibility",
            "state_key": "",
            "content": {"history_visibility": visibility},
        }
    ]
    room_id = await alice.create_room(initial_state=state)
    await carol.sync()
    live = await stick(alice, room_id, "live")
    await stick(alice, room_id, "dies", ms=1_000)
    advance_ms(homeserver, 2_000)
    for n in range(12):
        await alice.say(room_id, str(n))
    await carol.join(room_id)
    answer = await carol.sync()
    assert [e["event_id"] for e in section(answer, room_id)] == [live]
    event = await carol.call("GET", f"/rooms/{quote(room_id)}/event/{quote(live)}")
    assert event["event_id"] == live
    assert section(await carol.sync(), room_id) == []


async def test_s_14_who_leaves_and_returns_gets_them_again(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    sticky = await stick(alice, room_id)
    for n in range(12):
        await alice.say(room_id, str(n))
    await bob.sync()
    await bob.leave(room_id)
    assert section(await bob.sync(), room_id) == []
    await bob.join(room_id)
    assert [e["event_id"] for e in section(await bob.sync(), room_id)] == [sticky]


async def test_s_4_a_redacted_sticky_event_is_sticky_no_more(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    sticky = await stick(alice, room_id)
    path = f"/rooms/{quote(room_id)}/redact/{quote(sticky)}/r{next(_txn)}"
    await alice.call("PUT", path, {})
    for n in range(12):
        await alice.say(room_id, str(n))
    assert section(await bob.sync(), room_id) == []
    event = await bob.call("GET", f"/rooms/{quote(room_id)}/event/{quote(sticky)}")
    assert STICKY not in event
    assert TTL not in event["unsigned"]


async def test_s_6_an_ignored_flood_blocks_nobody(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    mallory = await homeserver.register("mallory")
    await mallory.join(room_id)
    for n in range(120):
        await stick(mallory, room_id, str(n))
    wanted = await stick(alice, room_id)
    for n in range(12):
        await alice.say(room_id, str(n))
    await bob.call(
        "PUT",
        f"/user/{quote(bob.user_id)}/account_data/m.ignored_user_list",
        {"ignored_users": {mallory.user_id: {}}},
    )
    assert [e["event_id"] for e in section(await bob.sync(), room_id)] == [wanted]


async def test_full_state_delivers_nothing_twice(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await stick(alice, room_id)
    await bob.sync()
    assert section(await bob.sync(full_state="true"), room_id) == []


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


async def test_lazy_loading_names_those_who_sent_sticky_events(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await bob.sync()
    await stick(alice, room_id)
    for n in range(12):
        await bob.say(room_id, str(n))
    lazy = json.dumps({"room": {"state": {"lazy_load_members": True}}})
    answer = await bob.sync(filter=lazy)
    events = answer["rooms"]["join"][room_id]["state"]["events"]
    assert alice.user_id in [e["state_key"] for e in events if e["type"] == "m.room.member"]
