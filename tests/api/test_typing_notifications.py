"""Who types: told to those in the room, until they stop or their time runs out."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import pytest

from minihs.base.clock import ManualClock
from minihs.services.ephemeral import typing_notifications
from minihs.storage import typing_notifications as storage
from minihs.storage.typing_notifications import fetch_typing
from tests.api.test_history import at
from tests.helpers.homeserver import running_homeserver
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from minihs.storage.stream_rows import StreamRow
    from tests.helpers.homeserver import Homeserver, User


@pytest.fixture
async def timed(database_url: str, tmp_path: Path) -> AsyncIterator[Homeserver]:
    """A server whose clock the test moves."""
    async with running_homeserver(database_url, tmp_path, clock=ManualClock()) as server:
        yield server


async def types(user: User, room: str, timeout: int | None = 10_000, **body: object) -> int:
    body = {"typing": True, "timeout": timeout, **body} if timeout is not None else body
    return (await user.request("PUT", at(room, "typing", user.user_id), body)).status


def typing_in(answer: dict, room: str) -> list[str] | None:
    """Return who types, as told by a sync; None: nothing is said about it."""
    joined = answer.get("rooms", {}).get("join", {}).get(room, {})
    for event in joined.get("ephemeral", {}).get("events", []):
        if event["type"] == "m.typing":
            assert set(event) == {"type", "content"}
            return event["content"]["user_ids"]
    return None


async def test_bob_sees_alice_start_and_stop(timed: Homeserver) -> None:
    alice, bob = await timed.register("alice"), await timed.register("bob")
    room = await alice.create_room()
    await bob.join(room)
    before = (await bob.sync())["next_batch"]
    assert await types(alice, room) == 200
    assert typing_in(await bob.sync(), room) == [alice.user_id]
    assert await types(bob, room) == 200
    assert set(typing_in(await alice.sync(), room) or ()) == {alice.user_id, bob.user_id}
    assert await types(alice, room, None, typing=False) == 200
    assert await types(bob, room, None, typing=False) == 200
    assert typing_in(await bob.sync(since=before), room) == []
    await bob.sync()
    assert await types(alice, room, None, typing=False) == 200
    assert typing_in(await bob.sync(), room) is None, "nothing has changed"


@pytest.mark.parametrize("how", ["leave", "kick", "ban"])
async def test_who_goes_types_no_longer(timed: Homeserver, how: str) -> None:
    alice, bob = await timed.register("alice"), await timed.register("bob")
    carol = await timed.register("carol")
    room = await alice.create_room()
    await bob.join(room)
    await carol.join(room)
    assert await types(alice, room) == 200
    assert await types(bob, room) == 200
    assert set(typing_in(await carol.sync(), room) or ()) == {alice.user_id, bob.user_id}
    if how == "leave":
        await bob.leave(room)
    else:
        await alice.call("POST", at(room, how), {"user_id": bob.user_id})
    told = typing_in(await carol.sync(), room)
    while told is None:  # It is told after the membership.
        told = typing_in(await carol.sync(timeout="60000"), room)
    assert told == [alice.user_id]


async def test_typing_ends_when_its_time_runs_out(timed: Homeserver) -> None:
    alice, bob = await timed.register("alice"), await timed.register("bob")
    room = await alice.create_room()
    await bob.join(room)
    await bob.sync()
    assert await types(alice, room, 5_000) == 200
    assert await types(bob, room, 9_000) == 200
    assert await types(alice, room, 7_000) == 200
    services, clock = timed.services, timed.services.clock
    assert isinstance(clock, ManualClock)

    async def pass_ms(ms: int) -> None:
        planned = services.typing.timed[room]
        clock.advance_ms(ms)
        while services.typing.timed.get(room) == planned:
            await services.follower.fetch_position()  # Until the timer's task has begun,
        async with services.typing.turns.take(room):  # and has ended.
            pass

    async def told(users: set[str]) -> None:
        """Each process may write the same list: it is told with the last of them."""
        while typing_in(await bob.sync(timeout="60000"), room) != list(users):
            pass

    await bob.sync()
    await pass_ms(6_000)
    assert typing_in(await bob.sync(), room) is None, "Alice has typed on, and Bob too"
    await pass_ms(1_000)
    await told({bob.user_id})
    await pass_ms(2_000)
    await told(set())


async def test_another_process_ends_what_a_dead_one_left(timed: Homeserver) -> None:
    alice = await timed.register("alice")
    room = await alice.create_room()
    assert await types(alice, room, 5_000) == 200
    services, clock = timed.services, timed.services.clock
    assert isinstance(clock, ManualClock)
    services.typing.timed[room] = 0  # As if nobody here knew.
    clock.advance_ms(5_000)
    await typing_notifications.expire_overdue(services)
    assert typing_in(await alice.sync(), room) == [alice.user_id], "not yet overdue"
    clock.advance_ms(typing_notifications.OVERDUE_GRACE_MS)
    await typing_notifications.expire_overdue(services)
    assert typing_in(await alice.sync(), room) == []


async def test_who_leaves_while_it_is_written_that_they_type_does_not(
    timed: Homeserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = await timed.register("alice"), await timed.register("bob")
    room = await alice.create_room()
    await bob.join(room)
    committer = timed.services.committer
    writing, has_left, commit_rows = asyncio.Event(), asyncio.Event(), committer.commit_rows

    async def slowly(rows: Sequence[StreamRow]) -> int:
        writing.set()
        await has_left.wait()
        return await commit_rows(rows)

    with monkeypatch.context() as patch:
        patch.setattr(committer, "commit_rows", slowly)
        typing = asyncio.ensure_future(types(bob, room))
        await writing.wait()
    await bob.leave(room)
    has_left.set()
    assert await typing == 200

    async def is_over() -> bool:
        services = timed.services
        return not (await fetch_typing(services.db, room, alice.user_id))[1]

    await until(is_over)
    assert typing_in(await alice.sync(), room) in ([], None)


async def test_who_types_in_two_processes_at_once_is_not_lost(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_homeserver(database_url, tmp_path, workers=2) as server:
        users = [await server.register(name) for name in ("alice", "bob", "carol", "dave")]
        room = await users[0].create_room()
        for user in users[1:]:
            await user.join(room)
        both, fetched = asyncio.Barrier(2), itertools.count(1)

        async def fetch_at_once(*asked: Any) -> object:
            found = await fetch_typing(*asked)
            if next(fetched) <= both.parties:
                await both.wait()
            return found

        monkeypatch.setattr(storage, "fetch_typing", fetch_at_once)
        for pair in (users[:2], users[2:]):  # There is no list yet, and there is one.
            fetched = itertools.count(1)
            asking = (types(user, room, 120_000) for user in pair)
            assert await asyncio.gather(*asking) == [200, 200]
        typing = typing_in(await users[0].sync(), room)
        assert set(typing or ()) == {user.user_id for user in users}


async def test_only_members_type_and_only_for_themselves(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room = await alice.create_room()
    assert await types(bob, room) == 403
    assert await types(alice, "!nowhere:hs1") == 403
    answer = await alice.request("PUT", at(room, "typing", bob.user_id), {"typing": True})
    assert (answer.status, answer.json["errcode"]) == (403, "M_FORBIDDEN")
    assert await types(alice, room, -1) == 400
    assert await types(alice, room, 0) == 200
    assert await types(alice, room, None) == 400
    assert await types(alice, room, 10**15) == 200
