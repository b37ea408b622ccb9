"""The group committer: nobody's failure is anybody else's, and nothing ends it (D2)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import TYPE_CHECKING
from urllib.parse import quote

import asyncpg
import pytest

from minihs.base.errors import Unavailable
from minihs.base.tasks import give_way
from minihs.protocol.identifiers import UserId
from minihs.storage.stream_rows import AccountDataWrite
from tests.helpers.homeserver import Homeserver, User, running_homeserver
from tests.helpers.messages import send_at
from tests.helpers.waiting import PATIENCE_S, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture(params=[1, 2])
async def homeserver(
    database_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Homeserver]:
    """A homeserver of one worker, and one of two."""
    async with running_homeserver(database_url, tmp_path, workers=request.param) as server:
        yield server


async def texts(reader: User, room_id: str) -> list[str]:
    """Return the bodies of a room's messages, oldest first."""
    page = await reader.call("GET", f"/rooms/{quote(room_id)}/messages", dir="f", limit="1000")
    return [e["content"]["body"] for e in page["chunk"] if e["type"] == "m.room.message"]


@pytest.mark.spec("client-server-api#transaction-identifiers")
async def test_a_request_repeated_before_it_was_answered_makes_one_event(homeserver: Homeserver):
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room()
    await bob.join(room_id)

    async def put(txn_id: str) -> str:
        path = f"/rooms/{quote(room_id)}/send/m.room.message/{txn_id}"
        return (await alice.call("PUT", path, {"msgtype": "m.text", "body": txn_id}))["event_id"]

    for attempt in range(5):
        repeated, others = await asyncio.gather(
            asyncio.gather(*(put(f"txn{attempt}") for _ in range(6))),
            asyncio.gather(*(bob.say(room_id, "meanwhile") for _ in range(4))),
        )
        assert len(set(repeated)) == 1
        assert len(set(others)) == 4

    bodies = await texts(alice, room_id)
    assert [b for b in bodies if b != "meanwhile"] == [f"txn{n}" for n in range(5)]
    assert bodies.count("meanwhile") == 20


async def test_what_the_database_refuses_fails_alone(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    committer = homeserver.services.committer
    notes = [note(alice.user_id, f"com.example.{n}") for n in range(4)]
    notes[1] = note(alice.user_id, "a\x00b")  # PostgreSQL has no such text.

    outcomes = await asyncio.gather(
        *(committer.commit_rows([n]) for n in notes), return_exceptions=True
    )

    assert isinstance(outcomes[1], asyncpg.CharacterNotInRepertoireError)
    positions = [outcome for n, outcome in enumerate(outcomes) if n != 1]
    assert positions == sorted(set(positions))  # type: ignore[type-var]  # all of them integers
    sync = await alice.sync()
    types = [e["type"] for e in sync["account_data"]["events"]]
    assert [t for t in types if t.startswith("com.")] == [f"com.example.{n}" for n in (0, 2, 3)]


async def test_writers_who_left_before_their_turn_do_not_end_it(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    committer = homeserver.services.committer
    room_id = await alice.create_room()

    leaving = [
        asyncio.create_task(committer.commit_rows([note(alice.user_id, "com.example.left")])),
        asyncio.create_task(send_at(homeserver.services, room_id, alice.user_id, "left")),
    ]
    await give_way()
    for task in leaving:
        task.cancel()
    await asyncio.gather(*leaving, return_exceptions=True)

    assert await committer.commit_rows([note(alice.user_id, "com.example.stayed")]) > 0
    await alice.say(room_id, "stayed")
    assert (await texts(alice, room_id))[-1] == "stayed"


async def test_rooms_locked_crosswise_by_another_process_are_written_all_the_same(
    homeserver: Homeserver, database_url: str
):
    """Somebody holds one room of a batch and wants the other: PostgreSQL ends one of the two."""
    alice = await homeserver.register("alice")
    rooms = [await alice.create_room() for _ in range(2)]
    other = await asyncpg.connect(database_url)
    observer = await asyncpg.connect(database_url)
    lock = "SELECT 1 FROM rooms WHERE room_id = $1 FOR UPDATE"
    try:
        transaction = other.transaction()
        await transaction.start()
        # Whose wait has lasted that long when both wait is the victim: the batch, not we.
        committing = homeserver.services.committer._connection
        assert committing is not None
        await committing.execute("SET deadlock_timeout = '4s'")
        await other.execute("SET LOCAL deadlock_timeout = '30s'")
        # Rooms are locked in the order of their numbers, so the later one first makes it crosswise.
        await other.execute(lock, rooms[1])
        sending = asyncio.gather(
            *(send_at(homeserver.services, room, alice.user_id, "hello") for room in rooms)
        )
        await until(
            lambda: observer.fetchval(
                "SELECT count(*) > 0 FROM pg_stat_activity "
                "WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
        )
        with contextlib.suppress(asyncpg.DeadlockDetectedError):  # We waited too late to be spared.
            await other.execute(lock, rooms[0])
        await transaction.rollback()
        await sending
    finally:
        await other.close()
        await observer.close()

    for room_id in rooms:
        assert await texts(alice, room_id) == ["hello"]


async def test_a_connection_lost_in_the_middle_of_a_commit_is_answered_503_and_replaced(
    homeserver: Homeserver, database_url: str
):
    alice = await homeserver.register("alice")
    room_id = await alice.create_room()
    path = f"/rooms/{quote(room_id)}/send/m.room.message/txn"
    message = {"msgtype": "m.text", "body": "hello"}
    others = await asyncpg.connect(database_url)
    observer = await asyncpg.connect(database_url)
    try:
        async with others.transaction():
            await others.execute("UPDATE stream SET position = position")  # Nobody can commit now.
            sending = asyncio.create_task(alice.request("PUT", path, message))
            waiting = (
                "SELECT pid FROM pg_stat_activity "
                "WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            await until(lambda: observer.fetchval(waiting))
            await observer.execute(
                "SELECT pg_terminate_backend($1)", await observer.fetchval(waiting)
            )
            answer = await sending
    finally:
        await others.close()
        await observer.close()
    assert (answer.status, answer.json["errcode"]) == (503, "M_UNKNOWN")

    again = [await alice.call("PUT", path, message) for _ in homeserver.workers]

    assert len({answer["event_id"] for answer in again}) == 1
    assert await texts(alice, room_id) == ["hello"]


async def test_a_database_that_cannot_write_is_answered_503(
    homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch
):
    from minihs.storage import group_commit

    alice = await homeserver.register("alice")
    failures = itertools.repeat(asyncpg.DiskFullError("no space left on device"), 1)

    async def full(*_args: object) -> int:
        raise next(failures)

    with monkeypatch.context() as patch:
        patch.setattr(group_commit, "_write_all", full)
        with pytest.raises(Unavailable):
            await homeserver.services.committer.commit_rows([note(alice.user_id, "com.example.n")])
    assert await homeserver.services.committer.commit_rows([note(alice.user_id, "com.example.n")])


def note(user_id: str, data_type: str) -> AccountDataWrite:
    """Return a row of global account data."""
    return AccountDataWrite(UserId(user_id), "", data_type, "{}")


async def test_a_room_that_has_moved_does_no_harm_to_others_of_its_batch(
    database_url: str, tmp_path: Path
):
    async with running_homeserver(database_url, tmp_path, workers=2) as homeserver:
        alice = await homeserver.register("alice")
        still, moved = await alice.create_room(), await alice.create_room()
        first, second = homeserver.workers
        for room_id in (still, moved):  # The first worker has the heads of both rooms.
            await send_at(first, room_id, alice.user_id, "first")
        await send_at(second, moved, alice.user_id, "second")

        await asyncio.gather(
            *(send_at(first, room_id, alice.user_id, "together") for room_id in (still, moved))
        )

        assert await texts(alice, still) == ["first", "together"]
        assert await texts(alice, moved) == ["first", "second", "together"]


async def test_nothing_is_committed_over_a_connection_that_somebody_may_hold_meanwhile(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Those who change tags hold a connection until that is committed: they may hold all of them.

    The state of a new type, committed together with them, needs a number for its type.
    """
    async with (
        running_homeserver(database_url, tmp_path, workers=1, database_connections=4) as homeserver,
        contextlib.AsyncExitStack() as held,
    ):
        alice = await homeserver.register("alice")
        room_id = await alice.create_room()
        services = homeserver.services
        handed_in: asyncio.Future[tuple] = asyncio.get_running_loop().create_future()
        committed: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def keep_waiting(*given: object) -> asyncio.Future[int]:
            handed_in.set_result(given)
            return committed

        with monkeypatch.context() as patch:
            patch.setattr(services.committer, "commit_events", keep_waiting)
            path = f"/rooms/{quote(room_id)}/state/com.example.new"
            sending = asyncio.create_task(alice.call("PUT", path, {}))
            given = await handed_in
        for _ in range(4):
            await held.enter_async_context(services.db.transaction())

        committing = services.committer.commit_events(*given)
        position = await asyncio.wait_for(committing, PATIENCE_S)

        await held.aclose()
        committed.set_result(position)
        await sending
        assert await alice.call("GET", path) == {}


async def test_what_fails_after_a_commit_loses_nothing_and_stops_nobody(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The events are in the database, but not all that is in memory knows: it is read anew."""
    async with running_homeserver(database_url, tmp_path, workers=1) as homeserver:
        alice = await homeserver.register("alice")
        room_id = await alice.create_room()
        since = (await alice.sync())["next_batch"]
        path = f"/rooms/{quote(room_id)}/send/m.room.message/txn"
        message = {"msgtype": "m.text", "body": "hello"}

        def fail(*_given: object) -> None:
            raise RuntimeError("a mistake of ours")

        with monkeypatch.context() as patch:
            patch.setattr(homeserver.services.committer, "_take_place", fail)
            answer = await asyncio.wait_for(alice.request("PUT", path, message), PATIENCE_S)
        assert (answer.status, answer.json["errcode"]) == (503, "M_UNKNOWN")

        again = await alice.call("PUT", path, message)
        second = await alice.say(room_id, "world")

        assert homeserver.services.tasks.failures["group committer"] == 0
        assert await texts(alice, room_id) == ["hello", "world"]
        news = (await alice.sync(since=since))["rooms"]["join"][room_id]["timeline"]["events"]
        assert [e["event_id"] for e in news] == [again["event_id"], second]
