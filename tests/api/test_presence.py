"""Presence: who is there, who is idle, and who is told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import quote

import orjson
import pytest

from minihs.base.clock import ManualClock
from minihs.base.errors import DatabaseAway
from minihs.base.limits import SYNC_TIMEOUT_MAX_MS
from minihs.services.ephemeral import presence
from tests.helpers.homeserver import running_homeserver
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.helpers.homeserver import Homeserver, User

pytestmark = pytest.mark.spec("client-server-api#presence")


@pytest.fixture
async def timed(database_url: str, tmp_path: Path) -> AsyncIterator[Homeserver]:
    """A server whose clock the test moves."""
    async with running_homeserver(database_url, tmp_path, clock=ManualClock()) as server:
        yield server


async def says(user: User, state: str, message: str | None = None) -> None:
    """Let a user say what they are."""
    body = {"presence": state} | ({} if message is None else {"status_msg": message})
    await user.call("PUT", f"/presence/{quote(user.user_id)}/status", body)


async def polls(user: User, state: str = "online", **query: str) -> dict:
    """Sync as clients do whose users are to be seen."""
    return await user.sync(set_presence=state, **query)


async def status(reader: User, user: User) -> dict:
    return await reader.call("GET", f"/presence/{quote(user.user_id)}/status")


def told(answer: dict) -> dict[str, dict]:
    """Return the contents of the presence events of a sync, by user."""
    events = answer.get("presence", {}).get("events", [])
    assert all(event["type"] == "m.presence" for event in events)
    return {event["sender"]: event["content"] for event in events}


async def hears(reader: User, user: User, state: str) -> dict:
    """Sync until the reader is told that a user is so; return the content."""
    found: dict = {}

    async def is_told() -> bool:
        found.update(told(await reader.sync()))
        return found.get(user.user_id, {}).get("presence") == state

    await until(is_told)
    return found[user.user_id]


async def pair(homeserver: Homeserver) -> tuple[User, User, str]:
    """Return two users in one room, of whom the second has seen everything."""
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room = await alice.create_room()
    await bob.join(room)
    await bob.sync()
    return alice, bob, room


async def test_what_alice_says_is_told_to_those_in_her_rooms(homeserver: Homeserver) -> None:
    alice, bob, _ = await pair(homeserver)
    carol = await homeserver.register("carol")
    await carol.sync()
    await says(alice, "online", "at work")
    content = told(await bob.sync())[alice.user_id]
    assert content.pop("last_active_ago") >= 0
    assert content == {"presence": "online", "status_msg": "at work", "currently_active": True}
    assert told(await carol.sync()) == {}
    assert told(await bob.sync()) == {}, "told once"
    await says(alice, "unavailable")
    content = told(await bob.sync())[alice.user_id]
    assert (content["presence"], content["currently_active"]) == ("unavailable", False)
    assert "status_msg" not in content
    assert told(await alice.sync())[alice.user_id]["presence"] == "unavailable"


async def test_saying_the_same_again_is_no_news(homeserver: Homeserver) -> None:
    alice, bob, _ = await pair(homeserver)
    await says(alice, "online", "here")
    await bob.sync()
    await says(alice, "online", "here")
    assert told(await bob.sync()) == {}


async def test_who_waits_is_woken_by_a_change(homeserver: Homeserver) -> None:
    alice, bob, _ = await pair(homeserver)
    waiting = asyncio.ensure_future(bob.sync(timeout="60000"))
    await says(alice, "online")
    assert alice.user_id in told(await waiting)


async def test_a_client_that_polls_makes_its_user_online(homeserver: Homeserver) -> None:
    alice, bob, _ = await pair(homeserver)
    await alice.sync()
    assert told(await bob.sync()) == {}
    await polls(alice)
    await hears(bob, alice, "online")
    await polls(alice, "unavailable")
    await hears(bob, alice, "unavailable")
    await polls(alice)
    await hears(bob, alice, "online")


async def test_what_a_user_says_outlasts_a_poll(homeserver: Homeserver) -> None:
    alice, bob, room = await pair(homeserver)
    await polls(alice)
    await hears(bob, alice, "online")
    await says(alice, "unavailable", "asleep")
    await polls(alice)
    assert (await status(bob, alice))["presence"] == "unavailable"
    await alice.say(room)
    content = await hears(bob, alice, "online")
    assert content["status_msg"] == "asleep", "doing something makes one online"


async def test_an_initial_sync_tells_who_is_there(homeserver: Homeserver) -> None:
    alice, bob, room = await pair(homeserver)
    carol = await homeserver.register("carol")
    await carol.join(room)
    await says(alice, "online")
    await says(carol, "offline")
    bob.since = None
    assert told(await bob.sync()).keys() == {alice.user_id}


async def test_who_joins_is_told_and_told_of(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room = await alice.create_room()
    await says(alice, "online")
    await says(bob, "unavailable")
    await alice.sync()
    await bob.sync()
    await bob.join(room)
    assert alice.user_id in told(await bob.sync())
    await hears(alice, bob, "unavailable")


async def test_from_far_back_changes_are_read_from_the_database(homeserver: Homeserver) -> None:
    alice, bob, _ = await pair(homeserver)
    await says(alice, "online", "one")
    for services in homeserver.workers:
        follower = services.follower
        follower.floor = follower.head
    assert told(await bob.sync())[alice.user_id]["status_msg"] == "one"


async def test_presence_is_read_by_those_who_share_a_room(homeserver: Homeserver) -> None:
    alice, bob, _ = await pair(homeserver)
    carol = await homeserver.register("carol")
    assert await status(bob, alice) == {"presence": "offline"}
    await says(alice, "unavailable", "soon")
    found = await status(bob, alice)
    assert (found["presence"], found["status_msg"]) == ("unavailable", "soon")
    assert (await status(alice, alice))["presence"] == "unavailable"
    response = await carol.request("GET", f"/presence/{quote(alice.user_id)}/status")
    assert (response.status, response.json["errcode"]) == (403, "M_FORBIDDEN")
    assert (await carol.request("GET", "/presence/nobody/status")).status == 400


async def test_nobody_speaks_for_others_or_nonsense(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    path = f"/presence/{quote(alice.user_id)}/status"
    assert (await bob.request("PUT", path, {"presence": "online"})).status == 403
    for body in ({}, {"presence": "busy"}, {"presence": 1}):
        assert (await alice.request("PUT", path, body)).status == 400
    for message in ("x" * 1_001, "\0"):
        body = {"presence": "online", "status_msg": message}
        assert (await alice.request("PUT", path, body)).status == 400
    assert (await alice.request("GET", "/sync", set_presence="busy")).status == 400


async def test_filters_choose_presence(homeserver: Homeserver) -> None:
    alice, bob, _ = await pair(homeserver)
    await says(alice, "online")
    for part in ({"types": []}, {"not_types": ["m.*"]}, {"not_senders": [alice.user_id]}):
        bob.since = None
        answer = await bob.sync(filter=orjson.dumps({"presence": part}).decode())
        assert told(answer) == {}, part


async def test_ignored_users_are_not_told_of(homeserver: Homeserver) -> None:
    alice, bob, _ = await pair(homeserver)
    path = f"/user/{quote(bob.user_id)}/account_data/m.ignored_user_list"
    await bob.call("PUT", path, {"ignored_users": {alice.user_id: {}}})
    await says(alice, "online")
    assert told(await bob.sync()) == {}


# --- time ---------------------------------------------------------------------------------------


async def pass_time(homeserver: Homeserver, duration_ms: int) -> None:
    """Let time pass as far as presence is concerned."""
    clock = homeserver.clock
    assert isinstance(clock, ManualClock)
    clock.advance_ms(duration_ms)
    for services in homeserver.workers:
        await services.presence.renew(services)
    await presence.expire(homeserver.services)


async def test_who_polls_no_more_is_offline(timed: Homeserver) -> None:
    alice, bob, _ = await pair(timed)
    await polls(alice)
    await hears(bob, alice, "online")
    await pass_time(timed, 20_000)
    await polls(alice)
    await pass_time(timed, 30_000)
    assert told(await bob.sync()) == {}
    await pass_time(timed, 30_000)
    content = told(await bob.sync())[alice.user_id]
    assert (content["presence"], content["currently_active"]) == ("offline", False)
    assert content["last_active_ago"] == 80_000


async def test_a_long_poll_is_a_sign_of_life_to_its_end(timed: Homeserver) -> None:
    alice, bob, _ = await pair(timed)
    await polls(alice)
    await hears(bob, alice, "online")
    await polls(alice)  # Now she has seen her own.
    waiting = asyncio.ensure_future(polls(alice, timeout="120000"))
    await until(lambda: any(s.views.waiting for s in timed.workers))
    await pass_time(timed, 110_000)
    assert (await status(bob, alice))["presence"] == "online"
    await pass_time(timed, 20_000)
    await waiting
    await pass_time(timed, 60_000)
    assert (await status(bob, alice))["presence"] == "offline"


@pytest.mark.parametrize("timeout", [2**62, 10**40])
async def test_nobody_is_there_for_as_long_as_they_claim_to_wait(
    timed: Homeserver, timeout: int
) -> None:
    alice, bob, _ = await pair(timed)
    body = b'{"timeout": %d}' % timeout  # Larger than what orjson writes.
    await alice.call("POST", "/_matrix/client/v4/sync", body)
    await hears(bob, alice, "online")
    await pass_time(timed, SYNC_TIMEOUT_MAX_MS + presence.POLL_GRACE_MS + 1)
    await pass_time(timed, 60_000)
    assert (await status(bob, alice))["presence"] == "offline"


async def test_who_does_nothing_becomes_idle(timed: Homeserver) -> None:
    alice, bob, room = await pair(timed)
    await polls(alice)
    await hears(bob, alice, "online")

    async def poll_for(duration_ms: int) -> None:
        for _ in range(duration_ms // 20_000):
            await polls(alice)
            await pass_time(timed, 20_000)

    await poll_for(200_000)
    await alice.say(room)
    await poll_for(300_000)
    assert told(await bob.sync()) == {}, "she said something"
    await poll_for(40_000)
    assert told(await bob.sync())[alice.user_id]["presence"] == "unavailable"
    await polls(alice)
    assert (await status(bob, alice))["presence"] == "unavailable", "a poll is no activity"
    await alice.say(room)
    await hears(bob, alice, "online")


async def test_many_who_come_at_once_are_told_of_together(timed: Homeserver) -> None:
    alice, bob, room = await pair(timed)
    others = [await timed.register(f"user{n}") for n in range(6)]
    for user in others:
        await user.join(room)
    await bob.sync()
    commits = [services.committer.counts.rows for services in timed.workers]
    await asyncio.gather(*(polls(user) for user in (alice, *others)))
    first = told(await bob.sync(timeout="10000"))
    timed.clock.advance_ms(presence.GATHER_MS)  # type: ignore[attr-defined]  # a ManualClock
    rest: dict = {}

    async def all_told() -> bool:
        rest.update(told(await bob.sync()))
        return len(first.keys() | rest.keys()) == 7

    await until(all_told)
    written = sum(s.committer.counts.rows for s in timed.workers) - sum(commits)
    assert written == 7, "one row a user"


async def test_other_processes_know_who_is_there(database_url: str, tmp_path: Path) -> None:
    async with running_homeserver(database_url, tmp_path, workers=2) as server:
        alice, bob, _ = await pair(server)
        await polls(alice)
        await hears(bob, alice, "online")
        await until(lambda: all(alice.user_id in s.presence.known for s in server.workers))
    async with running_homeserver(database_url, tmp_path, workers=1) as server:
        assert alice.user_id in server.services.presence.known, "also after a restart"


async def test_what_a_crash_of_the_database_forgot_is_told_again(homeserver: Homeserver) -> None:
    alice, bob, _ = await pair(homeserver)
    await polls(alice)
    await hears(bob, alice, "online")
    await homeserver.services.db.execute("TRUNCATE presence")  # It is not logged.
    for services in homeserver.workers:
        await services.presence.renew(services)
    await polls(alice)
    assert (await hears(bob, alice, "online"))["presence"] == "online"


async def test_presence_can_be_switched_off(database_url: str, tmp_path: Path) -> None:
    async with running_homeserver(database_url, tmp_path, presence_enabled=False) as server:
        alice, bob, _ = await pair(server)
        await says(alice, "online", "here")
        await polls(alice)
        assert told(await bob.sync()) == {}
        assert await status(bob, alice) == {"presence": "offline"}
        assert await server.services.db.fetch("SELECT FROM presence") == []


async def test_polls_of_somebody_who_is_there_write_nothing(homeserver: Homeserver) -> None:
    alice, bob, _ = await pair(homeserver)
    await polls(alice)
    await hears(bob, alice, "online")
    before = [services.committer.counts.rows for services in homeserver.workers]
    for _ in range(5):
        await polls(alice)
    assert [services.committer.counts.rows for services in homeserver.workers] == before
    assert told(await bob.sync()) == {}


async def test_what_the_database_did_not_take_is_told_when_it_does(
    timed: Homeserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob, _ = await pair(timed)
    clock = timed.clock
    assert isinstance(clock, ManualClock)

    tried: list[bool] = []

    async def away(*_given: object) -> None:
        tried.append(True)
        raise DatabaseAway

    with monkeypatch.context() as patch:
        for services in timed.workers:
            patch.setattr(services.committer, "commit_rows", away)
        since = (await bob.sync(set_presence="offline"))["next_batch"]
        await polls(alice)
        await until(lambda: bool(tried))
    clock.advance_ms(presence.GATHER_MS)
    await until(lambda: any(alice.user_id in s.presence.known for s in timed.workers))
    news = told(await bob.sync(since=since, set_presence="offline"))
    assert news[alice.user_id]["presence"] == "online"

    clock.advance_ms(40_000)
    await polls(alice)  # A sign of life that the database does not take at first.
    with monkeypatch.context() as patch:
        patch.setattr("minihs.storage.presence.renew", away)
        for services in timed.workers:
            await services.presence.renew(services)
    for services in timed.workers:
        await services.presence.renew(services)
    await presence.expire(timed.services)
    assert alice.user_id not in told(await bob.sync(set_presence="offline"))
