"""The stream with several writers and readers: no position is skipped, and none seen twice (D1).

Two workers share one database here, as processes do: each has its own connections, committer and
follower.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import TYPE_CHECKING

import asyncpg
import pytest

from minihs.base.clock import ManualClock
from minihs.base.errors import Unavailable
from minihs.protocol.identifiers import EventId, RoomId, UserId
from minihs.services.rooms.membership import MembershipChange, change_membership
from minihs.storage import missing_events, streams
from minihs.storage import rooms as room_reads
from minihs.storage.event_store import StoredEvent
from minihs.storage.events import list_range
from minihs.storage.stream_rows import AccountDataWrite
from tests.helpers.homeserver import Homeserver, running_homeserver
from tests.helpers.messages import send_at
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path

    from minihs.services.context import Services
    from minihs.storage.stream_reads import Positioned

COMMIT = "INSERT INTO events"


@pytest.fixture
async def pair(database_url: str, tmp_path: Path) -> AsyncIterator[Homeserver]:
    """A homeserver of two workers."""
    async with running_homeserver(database_url, tmp_path, workers=2) as homeserver:
        yield homeserver


@pytest.fixture
async def observer(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the homeserver's database."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


class Record:
    """What a worker's follower has handed out: the head after each run of items, and the items."""

    def __init__(self, services: Services) -> None:
        self.follower = services.follower
        self.start = self.follower.head
        self.positions: list[int] = []
        self.event_ids: list[str] = []
        self.resets = 0
        self.follower.subscribe(self._follow, self._reset)

    def _follow(self, items: Sequence[Positioned]) -> None:
        for position, item in items:
            self.positions.append(position)
            if isinstance(item, StoredEvent):
                self.event_ids.append(item.event_id)

    def _reset(self) -> None:
        self.resets += 1

    def assert_complete(self, end: int) -> None:
        """Every position from the start of the record to `end` was seen, in order, none twice."""
        seen = [position for position, _ in itertools.groupby(self.positions)]
        assert seen == list(range(self.start + 1, end + 1))
        assert self.follower.head == end
        assert self.resets == 0


class StallingConnection:
    """A committer's connection that stops between the allocation of positions and the commit."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self.stalled = asyncio.Event()
        self.go_on = asyncio.Event()

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)

    async def fetchrow(self, query: str, *args: object) -> asyncpg.Record | None:
        if COMMIT not in query or self.go_on.is_set():
            return await self._connection.fetchrow(query, *args)
        async with self._connection.transaction():
            row = await self._connection.fetchrow(query, *args)
            self.stalled.set()
            await self.go_on.wait()
        return row


@contextlib.contextmanager
def stalling(services: Services) -> Iterator[StallingConnection]:
    """Let a worker's committer, which must have committed before, stall in its next commit."""
    committer = services.committer
    real = committer._connection
    assert real is not None
    committer._connection = stall = StallingConnection(real)
    try:
        yield stall
    finally:
        stall.go_on.set()
        committer._connection = real


async def waits_for_lock(observer: asyncpg.Connection) -> bool:
    """Return whether some connection to this database waits for another's lock."""
    return bool(
        await observer.fetchval(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
    )


async def test_no_reader_skips_a_position_when_a_writer_stalls_before_its_commit(
    pair: Homeserver, observer: asyncpg.Connection
):
    slow, quick = pair.workers
    alice, bob = await pair.register("alice"), await pair.register("bob")
    slow_room, quick_room = await alice.create_room(), await bob.create_room()
    await put_note(slow, alice.user_id, 0)
    await put_note(quick, bob.user_id, 0)
    head = await slow.follower.fetch_position()
    await asyncio.gather(*(w.follower.wait_for(head) for w in pair.workers))
    records = [Record(worker) for worker in pair.workers]

    with stalling(slow) as stall:
        first = asyncio.create_task(send_at(slow, slow_room, alice.user_id, "first"))
        await stall.stalled.wait()
        second = asyncio.create_task(send_at(quick, quick_room, bob.user_id, "second"))
        await until(lambda: waits_for_lock(observer))

        assert not first.done()
        assert not second.done()
        assert await observer.fetchval("SELECT position FROM stream") == head
        assert [worker.follower.head for worker in pair.workers] == [head, head]

        stall.go_on.set()
        ids = [await first, await second]

    for worker in pair.workers:
        await worker.follower.wait_for(head + 2)
    for record in records:
        record.assert_complete(head + 2)
        assert record.event_ids == ids


async def test_a_hot_room_with_writers_at_two_workers_loses_nothing(
    pair: Homeserver, observer: asyncpg.Connection
):
    people = [await pair.register(f"user{n}") for n in range(8)]
    room_id = await people[0].create_room()
    for user in people[1:]:
        await user.join(room_id)
    start = await pair.services.follower.fetch_position()
    for worker in pair.workers:
        await worker.follower.wait_for(start)
    records = [Record(worker) for worker in pair.workers]

    async def chat(user: str, worker: Services) -> list[str]:
        return [await send_at(worker, room_id, user, f"{user} {n}") for n in range(15)]

    sent = await asyncio.gather(
        *(chat(user.user_id, pair.workers[n % 2]) for n, user in enumerate(people))
    )

    acknowledged = list(itertools.chain(*sent))
    end = await pair.services.follower.fetch_position()
    for worker in pair.workers:
        await worker.follower.wait_for(end)
    stored = await observer.fetch(
        "SELECT event_id, json::json FROM events WHERE position > $1 ORDER BY position", start
    )
    in_order = [row[0] for row in stored]
    assert len(acknowledged) == len(set(acknowledged)) == 8 * 15
    assert set(in_order) == set(acknowledged)
    assert end == start + len(acknowledged)
    for record in records:
        record.assert_complete(end)
        assert record.event_ids == in_order
    for ids in sent:  # Each sender's own messages stay in the order in which they were sent.
        assert [event_id for event_id in in_order if event_id in ids] == ids
    await assert_chain(observer, room_id)


async def assert_chain(observer: asyncpg.Connection, room_id: str) -> None:
    """Every event of a room names the one before it, and the last one is the room's only end."""
    rows = await observer.fetch(
        """
        SELECT
          e.event_id, e.event_nid, (e.json::json -> 'prev_events' ->> 0) AS previous,
          json_array_length(e.json::json -> 'prev_events') AS count,
          (e.json::json ->> 'depth')::bigint AS depth, r.extremities
        FROM events e
        JOIN rooms r ON r.room_nid = e.room_nid
        WHERE r.room_id = $1
        ORDER BY e.position
        """,
        room_id,
    )
    for before, after in itertools.pairwise(rows):
        assert (after["previous"], after["count"]) == (before["event_id"], 1)
        assert after["depth"] == before["depth"] + 1
    assert rows[-1]["extremities"] == [rows[-1]["event_nid"]]


async def put_note(worker: Services, user_id: str, number: int) -> int:
    """Write account data through one of the workers; return its position."""
    return await worker.committer.commit_rows(
        [AccountDataWrite(UserId(user_id), "", "com.example.note", f'{{"n":{number}}}')]
    )


async def test_a_lost_notification_is_made_up_for_by_the_poll(
    database_url: str, tmp_path: Path, observer: asyncpg.Connection
):
    clock = ManualClock()
    async with running_homeserver(database_url, tmp_path, workers=2, clock=clock) as pair:
        alice = await pair.register("alice")
        await alice.sync()
        records = [Record(worker) for worker in pair.workers]

        # A commit of a third writer, whose notification nobody hears.
        position = await observer.fetchval(
            """
            WITH last AS (UPDATE stream SET position = position + 1 RETURNING position)
            INSERT INTO account_data (user_id, room_id, type, json, position)
            SELECT $1, '', 'com.example.note', '{"n":1}', position FROM last
            RETURNING position
            """,
            alice.user_id,
        )
        assert [worker.follower.head for worker in pair.workers] == [position - 1] * 2

        def polled() -> bool:
            clock.advance_ms(2_000)
            return all(worker.follower.head == position for worker in pair.workers)

        await until(polled)

        for record in records:
            record.assert_complete(position)
        for _ in pair.workers:
            news = await alice.sync(since=f"s{position - 1}")
            assert [e["type"] for e in news["account_data"]["events"]] == ["com.example.note"]


@pytest.mark.spec("client-server-api#room-history-visibility")
async def test_who_was_away_between_two_looks_at_the_stream_sees_nothing_of_it(
    pair: Homeserver, database_url: str
):
    """The second worker finds the table of memberships as it is now, not as it was in between."""
    first, second = pair.workers
    alice, bob = await pair.register("alice"), await pair.register("bob")
    joined_only = {"type": "m.room.history_visibility", "content": {"history_visibility": "joined"}}
    room_id = await alice.create_room(initial_state=[joined_only])
    await bob.join(room_id)
    since = (await bob.sync())["next_batch"]
    await second.views.get(UserId(bob.user_id))
    await second.follower.wait_for(await first.follower.fetch_position())
    catching_up = second.follower._catch_up

    async def later() -> None:
        """Look away."""

    second.follower._catch_up = later  # type: ignore[method-assign]
    await change_membership(first, membership_change(room_id, bob.user_id, "leave"))
    secret = await send_at(first, room_id, alice.user_id, "secret")
    await change_membership(first, membership_change(room_id, bob.user_id, "join"))
    public = await send_at(first, room_id, alice.user_id, "public")
    second.follower._catch_up = catching_up  # type: ignore[method-assign]
    await second.follower.wait_for(await first.follower.fetch_position())

    for _ in pair.workers:
        sync = await bob.sync(since=since)
        ids = [e["event_id"] for e in sync["rooms"]["join"][room_id]["timeline"]["events"]]
        assert public in ids
        assert secret not in ids


def membership_change(room_id: str, user_id: str, membership: str) -> MembershipChange:
    """Return somebody's own change of membership."""
    return MembershipChange(RoomId(room_id), UserId(user_id), UserId(user_id), membership)


async def test_leaving_and_joining_in_one_breath_is_told_apart_from_staying(pair: Homeserver):
    """Both commits wait while a third is flushed, so they could go into one batch."""
    worker = pair.workers[0]
    alice, bob = await pair.register("alice"), await pair.register("bob")
    room_id = await alice.create_room()
    await bob.join(room_id)
    await send_at(worker, room_id, alice.user_id, "hello")  # It knows the room as it is now.
    with stalling(worker) as stall:
        stalled = asyncio.create_task(send_at(worker, room_id, alice.user_id, "stall"))
        await stall.stalled.wait()
        changes = []
        for waiting, membership in enumerate(("leave", "join"), 1):
            change = membership_change(room_id, bob.user_id, membership)
            changes.append(asyncio.create_task(change_membership(worker, change)))
            await until(lambda n=waiting: worker.committer.waiting == n)
        stall.go_on.set()
        await asyncio.gather(stalled, *changes)

    since = {}
    for services in pair.workers:
        services.views.reset()  # As after a restart: what the table says.
        view = await services.views.get(UserId(bob.user_id))
        since[services] = view.rooms[room_id].joined_at
    join = await worker.follower.fetch_position()
    assert set(since.values()) == {join}


async def test_a_reader_who_fails_begins_anew_and_stops_nobody(homeserver: Homeserver):
    services = homeserver.services
    alice = await homeserver.register("alice")
    room_id = await alice.create_room()
    began_anew = []

    def fail(_items: Sequence[Positioned]) -> None:
        raise ValueError("a reader with a mistake in it")

    services.follower.subscribe(fail, lambda: began_anew.append(True))
    record = Record(services)

    await alice.say(room_id, "one")
    await alice.say(room_id, "two")

    assert len(began_anew) == 2
    assert services.tasks.down == []
    record.assert_complete(await services.follower.fetch_position())


async def test_what_history_redacts_that_one_worker_has_fetched_is_redacted_for_the_other(
    pair: Homeserver,
):
    """Fetched history has no position, so the stream does not tell of it."""
    alice = await pair.register("alice")
    room_id = RoomId(await alice.create_room())
    event_id = EventId(await alice.say(room_id, "secret"))
    first, second = pair.workers
    stored, theirs = [await worker.events.get(event_id) for worker in pair.workers]
    assert stored is not None
    assert theirs is not None
    redaction_id = EventId("$redaction")
    await missing_events.mark_redacted(first.db, stored.event_nid, redaction_id)

    row = await room_reads.fetch_room(second.db, room_id)
    assert row is not None
    await list_range(
        second.db, second.events, row.room_nid, (0, 0), (2**62, 0), backward=False, limit=100
    )

    assert theirs.redacted_by == redaction_id


async def test_what_cannot_be_read_of_the_stream_holds_up_nobody(
    pair: Homeserver, monkeypatch: pytest.MonkeyPatch
):
    first, second = pair.workers
    alice = await pair.register("alice")
    room_id = await alice.create_room()
    await second.follower.wait_for(await first.follower.fetch_position())
    record = Record(second)
    read = second.follower._read

    async def fail(after: int, upto: int) -> list:
        raise ValueError("a row that nobody understands")

    monkeypatch.setattr(second.follower, "_read", fail)
    await put_note(first, alice.user_id, 1)
    await until(lambda: record.resets > 0)
    monkeypatch.setattr(second.follower, "_read", read)
    event_id = await send_at(first, room_id, alice.user_id, "hello")
    await second.follower.wait_for(await first.follower.fetch_position())
    assert record.event_ids[-1] == event_id
    assert second.tasks.down == []


async def test_who_waits_for_what_is_never_seen_is_told_so(
    homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(streams, "SEEN_S_MAX", 0.01)
    with pytest.raises(Unavailable):
        await homeserver.services.follower.wait_for(2**62)
