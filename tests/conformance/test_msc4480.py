"""MSC4480, sticky events over sliding sync: stories. MSC4480#proposal, MSC4480#pagination."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from minihs.base.clock import ManualClock
from minihs.protocol import unstable
from tests.helpers.homeserver import PASSWORD, User, running_homeserver
from tests.helpers.waiting import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.helpers.homeserver import Homeserver, Response

EXTENSION = unstable.STICKY_EXTENSION.unstable
DURATION = unstable.STICKY_DURATION_PARAMETER.unstable
STICKY = unstable.STICKY.unstable
TTL = unstable.STICKY_TTL.unstable
PATH = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
_txn = iter(range(1_000_000))


@pytest.fixture
async def homeserver(database_url: str, tmp_path: Path) -> AsyncIterator[Homeserver]:
    """A homeserver whose clock the test moves."""
    async with running_homeserver(database_url, tmp_path, clock=ManualClock()) as server:
        yield server


class Client:
    """A client that keeps its `pos` and the extension's `next_batch`."""

    def __init__(self, user: User) -> None:
        self.user = user
        self.pos: str | None = None
        self.since: str | None = None

    async def ask(self, extension: dict[str, Any], timeout: int = 0, **body: object) -> Response:
        query = {"timeout": str(timeout)}
        if self.pos is not None:
            query["pos"] = self.pos
        given = {"enabled": True, **extension}
        if self.since is not None:
            given.setdefault("since", self.since)
        whole = {"extensions": {EXTENSION: given}, **body}
        return await self.user.request("POST", PATH, whole, **query)

    async def sync(
        self, *, limit: int | None = None, timeout: int = 0, **body: object
    ) -> dict[str, Any]:
        if "lists" not in body and "room_subscriptions" not in body:
            body["lists"] = {"all": a_list()}
        response = await self.ask({} if limit is None else {"limit": limit}, timeout, **body)
        assert response.status == 200, response.json
        self.pos = response.json["pos"]
        self.since = response.json["extensions"].get(EXTENSION, {}).get("next_batch", self.since)
        return response.json


def a_list(first: int = 0, last: int = 99, limit: int = 1, **filters: object) -> dict[str, Any]:
    return {
        "ranges": [[first, last]],
        "timeline_limit": limit,
        "required_state": [],
        "filters": filters,
    }


def section(answer: dict, room_id: str) -> list[str]:
    rooms = answer["extensions"].get(EXTENSION, {}).get("rooms", {})
    return [e["event_id"] for e in rooms.get(room_id, {"events": []})["events"]]


async def stick(user: User, room_id: str, body: str = "sticky", ms: int = 600_000) -> str:
    path = f"/rooms/{quote(room_id)}/send/m.room.message/s{next(_txn)}"
    content = {"msgtype": "m.text", "body": body}
    return (await user.call("PUT", path, content, **{DURATION: str(ms)}))["event_id"]


async def room_of_two(homeserver: Homeserver, **options: object) -> tuple[User, User, str]:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room(**options)
    await bob.join(room_id)
    return alice, bob, room_id


async def ignore(user: User, *others: User) -> None:
    path = f"/user/{quote(user.user_id)}/account_data/m.ignored_user_list"
    await user.call("PUT", path, {"ignored_users": {other.user_id: {} for other in others}})


async def all_pages(client: Client, room_id: str, limit: int = 3) -> list[str]:
    """Return what the extension has, till nothing comes."""
    seen: list[str] = []
    while page := section(await client.sync(limit=limit), room_id):
        seen += page
    return seen


async def test_ss_02_what_is_sticky_comes_in_the_extension_once(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    client = Client(bob)
    await client.sync()
    event_id = await stick(alice, room_id)
    await alice.say(room_id, "the timeline has one event")
    answer = await client.sync()
    (event,) = answer["extensions"][EXTENSION]["rooms"][room_id]["events"]
    assert event["event_id"] == event_id
    assert event[STICKY] == {"duration_ms": 600_000}
    assert event["unsigned"][TTL] == 600_000
    assert section(await client.sync(), room_id) == []
    answer = await client.sync()  # Nothing at all is new, but it says up to where the client is.
    assert answer["extensions"] == {EXTENSION: {"next_batch": client.since}}
    assert section(await client.sync(), room_id) == []


async def test_ss_01_who_does_not_ask_gets_none(homeserver: Homeserver) -> None:
    alice, _, room_id = await room_of_two(homeserver)
    await stick(alice, room_id)
    response = await Client(alice).ask({"enabled": False}, lists={"all": a_list()})
    assert response.json["extensions"] == {}


async def test_ss_03_what_the_timeline_shows_is_not_repeated(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    client = Client(bob)
    await client.sync()
    event_id = await stick(alice, room_id)
    answer = await client.sync()
    assert [e["event_id"] for e in answer["rooms"][room_id]["timeline"]] == [event_id]
    assert section(answer, room_id) == []
    assert section(await client.sync(), room_id) == []


async def test_ss_04_pages_go_from_the_oldest_on_each_event_once(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    client = Client(bob)
    sent = [await stick(alice, room_id, str(n)) for n in range(25)]
    await alice.say(room_id)
    seen: list[str] = []
    for _ in range(3):
        found = section(await client.sync(limit=10), room_id)
        assert len(found) <= 10
        seen += found
    assert seen == sent
    assert section(await client.sync(limit=10), room_id) == []


async def test_ss_04_an_answer_that_was_lost_comes_again(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    client = Client(bob)
    sent = [await stick(alice, room_id, str(n)) for n in range(4)]
    await alice.say(room_id)
    await client.sync(limit=2)
    pos, since = client.pos, client.since
    first = section(await client.sync(limit=2), room_id)
    client.pos, client.since = pos, since
    assert section(await client.sync(limit=2), room_id) == first == sent[2:]


async def test_ss_04_at_most_a_hundred_come_at_once(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    sent = [await stick(alice, room_id, str(n)) for n in range(110)]
    await alice.say(room_id)
    client = Client(bob)
    first = section(await client.sync(limit=1_000), room_id)
    assert first == sent[:100]
    assert section(await client.sync(), room_id) == sent[100:]


async def test_ss_05_rooms_outside_the_window_count(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    event_id = await stick(alice, room_id)
    other = await bob.create_room()
    client = Client(bob)
    answer = await client.sync(lists={"top": a_list(0, 0)})
    assert set(answer["rooms"]) == {other}
    assert section(answer, room_id) == [event_id]


async def test_ss_05_rooms_that_nothing_matches_do_not_count(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await stick(alice, room_id)
    answer = await Client(bob).sync(lists={"dms": a_list(is_dm=True)})
    assert "rooms" not in answer["extensions"][EXTENSION]
    subscription = {room_id: {"timeline_limit": 0, "required_state": []}}
    answer = await Client(bob).sync(room_subscriptions=subscription)
    assert len(section(answer, room_id)) == 1


async def test_ss_06_ignored_users_are_skipped_before_counting(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    mallory = await homeserver.register("mallory")
    await mallory.join(room_id)
    for n in range(30):
        await stick(mallory, room_id, str(n))
    wanted = await stick(alice, room_id)
    await alice.say(room_id)
    path = f"/user/{quote(bob.user_id)}/account_data/m.ignored_user_list"
    await bob.call("PUT", path, {"ignored_users": {mallory.user_id: {}}})
    assert section(await Client(bob).sync(limit=5), room_id) == [wanted]


async def test_ss_07_whoever_joins_gets_all_that_is_live(homeserver: Homeserver) -> None:
    alice, carol = await homeserver.register("alice"), await homeserver.register("carol")
    hidden = {
        "type": "m.room.history_visibility",
        "state_key": "",
        "content": {"history_visibility": "joined"},
    }
    room_id = await alice.create_room(initial_state=[hidden])
    client = Client(carol)
    await client.sync()
    live = await stick(alice, room_id, "live")
    await stick(alice, room_id, "dies", ms=1_000)
    clock = homeserver.clock
    assert isinstance(clock, ManualClock)
    clock.advance_ms(2_000)
    await client.sync()
    await carol.join(room_id)
    assert section(await client.sync(), room_id) == [live]
    assert section(await client.sync(), room_id) == []


async def test_ss_07_whoever_returns_gets_what_was_shown_before_they_left(
    homeserver: Homeserver,
) -> None:
    """Also while there is something left of what was live when they left."""
    alice, bob, room_id = await room_of_two(homeserver)
    client = Client(bob)
    await client.sync()
    sent = [await stick(alice, room_id, str(n)) for n in range(4)]
    answer = await client.sync(limit=1)
    assert section(answer, room_id) == sent[:1]
    assert [e["event_id"] for e in answer["rooms"][room_id]["timeline"]] == sent[3:]
    await bob.call("POST", f"/rooms/{quote(room_id)}/leave", {})
    await bob.join(room_id)
    assert await all_pages(client, room_id) == sent


async def test_ss_08_a_room_that_starts_to_match_gives_all_it_has(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    sent = [await stick(alice, room_id, str(n)) for n in range(3)]
    await alice.say(room_id)
    client, dms = Client(bob), {"dms": a_list(is_dm=True)}
    for _ in range(2):
        await client.sync(lists=dms)
    sent.append(await stick(alice, room_id, "another"))
    await alice.say(room_id)
    await client.sync(lists=dms)
    client.pos = None  # What is owed is known without the connection.
    found = section(await client.sync(limit=3), room_id)
    found += section(await client.sync(limit=3), room_id)
    assert found == sent
    assert section(await client.sync(), room_id) == []


async def test_ss_08_a_room_that_matches_again_repeats_nothing(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    client, dms = Client(bob), {"dms": a_list(is_dm=True)}
    first = await stick(alice, room_id)
    await alice.say(room_id)
    assert section(await client.sync(), room_id) == [first]
    await client.sync(lists=dms)
    second = await stick(alice, room_id)
    await alice.say(room_id)
    await client.sync(lists=dms)
    assert section(await client.sync(), room_id) == [second]


async def test_ss_09_only_who_is_joined_gets_any(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    carol = await homeserver.register("carol")
    await alice.invite(room_id, carol)
    client = Client(bob)
    await client.sync()
    await stick(alice, room_id)
    await alice.say(room_id)
    await alice.call("POST", f"/rooms/{quote(room_id)}/kick", {"user_id": bob.user_id})
    wishes = {room_id: {"timeline_limit": 1, "required_state": []}}
    for reader in (client, Client(carol)):
        answer = await reader.sync(lists={"all": a_list()}, room_subscriptions=wishes)
        assert room_id in answer["rooms"]
        assert section(answer, room_id) == []


async def test_ss_10_something_sticky_ends_a_long_poll(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    other = await bob.create_room()
    client, top = Client(bob), {"top": a_list(0, 0)}
    await client.sync(lists=top)
    await bob.say(other, "the newest room")
    await client.sync(lists=top)
    waiting = asyncio.ensure_future(client.sync(timeout=300_000, lists=top))
    await alice.sync()
    event_id = await stick(alice, room_id)
    answer = await asyncio.wait_for(waiting, PATIENCE_S)
    shown = [e["event_id"] for e in answer["rooms"].get(room_id, {}).get("timeline", ())]
    assert [*shown, *section(answer, room_id)] == [event_id]


@pytest.mark.parametrize(
    "extension",
    [{"limit": 0}, {"limit": -1}, {"limit": "5"}, {"limit": True}, {"since": "x"}, {"since": 5}],
    ids=str,
)
async def test_ss_10_nonsense_is_refused(homeserver: Homeserver, extension: dict) -> None:
    alice = await homeserver.register("alice")
    response = await Client(alice).ask(extension, lists={})
    assert (response.status, response.json["errcode"]) == (400, "M_INVALID_PARAM")


async def test_ss_10_what_another_user_has_is_no_since_of_mine(homeserver: Homeserver) -> None:
    alice, bob, _ = await room_of_two(homeserver)
    client = Client(alice)
    await client.sync()
    assert client.since is not None
    for since in (client.since, client.since.partition("~")[0]):
        response = await Client(bob).ask({"since": since})
        assert (response.status, response.json["errcode"]) == (400, "M_INVALID_PARAM")
    login = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": "alice"},
        "password": PASSWORD,
    }
    session = await homeserver.stranger().call("POST", "/login", login)
    phone = Client(User(homeserver, alice.user_id, session["access_token"]))
    assert (await phone.ask({"since": client.since})).status == 200


async def test_ss_10_a_lost_connection_loses_no_position(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await stick(alice, room_id)
    await alice.say(room_id)
    client = Client(bob)
    await client.sync()
    missed = await stick(alice, room_id)
    await alice.say(room_id)
    client.pos = "s1_999.0123456789ab"
    response = await client.ask({}, lists={"all": a_list()})
    assert response.json["errcode"] == "M_UNKNOWN_POS"
    client.pos = None
    assert section(await client.sync(), room_id) == [missed]


async def test_ss_04_one_rooms_flood_does_not_delay_another(homeserver: Homeserver) -> None:
    alice, bob, loud = await room_of_two(homeserver)
    quiet = await alice.create_room()
    await bob.join(quiet)
    for n in range(20):
        await stick(alice, loud, str(n))
    call = await stick(alice, quiet)
    for room_id in (quiet, loud):
        await alice.say(room_id)
    answer = await Client(bob).sync(limit=10)
    assert section(answer, quiet) == [call]
    assert len(section(answer, loud)) == 9


async def test_ss_06_who_is_ignored_no_longer_is_made_up_for(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    carol = await homeserver.register("carol")
    await carol.join(room_id)
    path = f"/user/{quote(bob.user_id)}/account_data/m.ignored_user_list"
    await bob.call("PUT", path, {"ignored_users": {carol.user_id: {}}})
    client = Client(bob)
    await client.sync()
    sent = [await stick(carol, room_id, str(n)) for n in range(7)]
    await alice.say(room_id)
    assert section(await client.sync(), room_id) == []
    await bob.call("PUT", path, {"ignored_users": {}})
    seen: list[str] = []
    for _ in range(3):
        seen += section(await client.sync(limit=3), room_id)
    assert seen == sent
    assert section(await client.sync(), room_id) == []


async def test_ss_06_what_is_made_up_for_comes_once_among_what_had_to_wait(
    homeserver: Homeserver,
) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    carol = await homeserver.register("carol")
    await carol.join(room_id)
    await ignore(bob, carol)
    client = Client(bob)
    await client.sync()
    sent = [await stick(user, room_id) for _ in range(6) for user in (alice, carol)]
    await alice.say(room_id)
    seen = section(await client.sync(limit=2), room_id)
    await ignore(bob)
    seen += await all_pages(client, room_id)
    assert sorted(seen) == sorted(sent)


async def test_ss_06_whoever_joined_since_is_made_up_for_nothing(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    other = await alice.create_room()
    await ignore(bob, alice)
    client = Client(bob)
    await client.sync()
    sent = [await stick(alice, other) for _ in range(7)]
    here = [await stick(alice, room_id) for _ in range(3)]
    await alice.say(room_id)
    await client.sync()
    await ignore(bob)
    await bob.join(other)
    seen: list[str] = []
    for _ in range(9):
        answer = await client.sync(limit=2)
        seen += section(answer, room_id) + section(answer, other)
    assert sorted(seen) == sorted([*sent, *here])


async def test_ss_06_who_is_ignored_no_longer_is_made_up_for_where_nothing_matches_yet(
    homeserver: Homeserver,
) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    here = await alice.create_room()
    await bob.join(here)
    await ignore(bob, alice)
    client = Client(bob)
    await client.sync()
    sent = [await stick(alice, room_id, str(n)) for n in range(5)]
    sent_here = [await stick(alice, here, str(n)) for n in range(5)]
    for each in (room_id, here):
        await alice.say(each)
    assert section(await client.sync(), room_id) == []
    await ignore(bob)
    only_here = {here: {"timeline_limit": 1, "required_state": []}}
    seen: list[str] = []
    for _ in range(4):
        seen += section(await client.sync(limit=3, room_subscriptions=only_here), here)
    assert seen == sent_here
    assert await all_pages(client, room_id) == sent


async def test_ss_06_one_after_another_is_ignored_no_longer(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    others = [await homeserver.register(f"other{n}") for n in range(10)]
    for other in others:
        await other.join(room_id)
    await ignore(bob, *others)
    client = Client(bob)
    await client.sync()
    sent = [await stick(other, room_id) for other in others for _ in range(2)]
    await alice.say(room_id)
    assert section(await client.sync(), room_id) == []
    seen: list[str] = []
    for number in range(len(others)):
        await ignore(bob, *others[number + 1 :])
        sent += [await stick(other, room_id) for other in others[number + 1 :]]
        await alice.say(room_id)
        seen += section(await client.sync(limit=1), room_id)
    seen += await all_pages(client, room_id)
    assert sorted(seen) == sorted(sent)


async def test_ss_03_what_is_made_up_for_is_not_repeated_either(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    client = Client(bob)
    path = f"/user/{quote(bob.user_id)}/account_data/m.ignored_user_list"
    await bob.call("PUT", path, {"ignored_users": {alice.user_id: {}}})
    await client.sync()
    passed_over = [await stick(alice, room_id, str(n)) for n in range(3)]
    await client.sync()
    await bob.call("PUT", path, {"ignored_users": {}})
    client.pos = None  # A new connection: its timeline begins anew, the extension goes on.
    answer = await client.sync(lists={"all": a_list(limit=2)})
    shown = [event["event_id"] for event in answer["rooms"][room_id]["timeline"]]
    assert shown == passed_over[1:]
    assert section(answer, room_id) == passed_over[:1]


async def test_ss_02_whoever_was_sent_it_is_told_of_a_redaction(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    client = Client(bob)
    await client.sync()
    sticky = await stick(alice, room_id)
    await alice.say(room_id)
    assert section(await client.sync(), room_id) == [sticky]
    path = f"/rooms/{quote(room_id)}/redact/{quote(sticky)}/r1"
    redaction = (await alice.call("PUT", path, {}))["event_id"]
    await alice.say(room_id)
    assert section(await client.sync(), room_id) == [redaction]
    assert section(await client.sync(), room_id) == []


async def test_ss_07_a_joiners_timeline_and_pages_show_each_event_once(
    homeserver: Homeserver,
) -> None:
    alice, carol = await homeserver.register("alice"), await homeserver.register("carol")
    room_id = await alice.create_room()
    client = Client(carol)
    await client.sync()
    sent = [await stick(alice, room_id, str(n)) for n in range(25)]
    await carol.join(room_id)
    seen: list[str] = []
    for _ in range(4):
        answer = await client.sync(limit=10, lists={"all": a_list(limit=8)})
        events = answer["rooms"].get(room_id, {}).get("timeline", [])
        seen += [e["event_id"] for e in events if e["event_id"] in sent]
        seen += section(answer, room_id)
    assert sorted(seen) == sorted(sent)
