"""Processes of one server that do the same thing at the same time, on one database."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from minihs.protocol.identifiers import RoomId
from minihs.services.rooms import backfill
from minihs.storage import events, history_writes, rooms
from minihs.storage.event_store import StoredEvent
from minihs.storage.history_writes import HistoryWrite, write_history
from minihs.storage.missing_events import list_gaps
from tests.federation.test_joins import enter, members
from tests.helpers.network import node_of

if TYPE_CHECKING:
    from minihs.protocol.identifiers import EventId
    from minihs.remote.transport import OutgoingRequest, RawAnswer
    from minihs.services.context import Services
    from minihs.storage.database import Database, Queries
    from tests.helpers.homeserver import Homeserver, User
    from tests.helpers.network import Federation

# Of the events that rest upon others, those that name a number that no event has.
LOST = """
    SELECT e.event_id
    FROM events e
    CROSS JOIN LATERAL unnest(e.auth_nids) AS named (event_nid)
    WHERE NOT EXISTS (SELECT FROM events a WHERE a.event_nid = named.event_nid)
    UNION ALL
    SELECT s.state_id::text
    FROM state_entries s
    WHERE
      s.event_nid IS NOT NULL
      AND NOT EXISTS (SELECT FROM events a WHERE a.event_nid = s.event_nid)
"""


async def known_numbers(server: Homeserver, event_ids: list[str]) -> list[dict[str, int]]:
    """Return the numbers that each process knows events by."""
    return [
        {e: found.event_nid for e, found in (await worker.events.get_many(event_ids)).items()}
        for worker in server.workers
    ]


async def joined_late(federation: Federation) -> tuple[Homeserver, User, str, list[str]]:
    """Let bob join through two processes; return them, him, the room, and what was said before."""
    hs1 = await federation.start("hs1")
    hs2 = await federation.start("hs2", workers=2)
    alice, bob = await hs1.register("alice"), await hs2.register("bob")
    room_id = await alice.create_room()
    said = [await alice.say(room_id, f"number {number}") for number in range(150)]
    await enter(bob, room_id, "hs1")
    return hs2, bob, room_id, said


async def state_ids(user: User, room_id: str) -> list[str]:
    events = await user.call("GET", f"/rooms/{quote(room_id)}/state")
    return [event["event_id"] for event in events]  # type: ignore[index]  # a list


@pytest.mark.parametrize("version", ["11", "12"])
async def test_two_processes_that_join_a_room_at_once_know_it_by_the_same_numbers(
    federation: Federation, version: str
):
    hs1 = await federation.start("hs1")
    hs2 = await federation.start("hs2", workers=2)
    alice = await hs1.register("alice")
    guests = [await hs2.register(name) for name in ("bob", "carol")]
    for _ in range(5):
        room_id = await alice.create_room(room_version=version)
        for number in range(10):
            await alice.put_state(room_id, "a.state", {"number": number}, str(number))

        await asyncio.gather(*(enter(guest, room_id, "hs1") for guest in guests))

        for guest in guests:
            joined = await members(guest, room_id)
            assert set(joined.values()) == {"join"}
            assert set(joined) == {alice.user_id, *(guest.user_id for guest in guests)}
        ids = await state_ids(guests[0], room_id)
        assert sorted(ids) == sorted(await state_ids(guests[1], room_id))
        first, second = await known_numbers(hs2, ids)
        assert first == second
        assert await hs2.services.db.fetch(LOST) == []
        for guest in guests:
            await guest.say(room_id)


async def test_a_user_who_joins_by_two_processes_at_once_is_in(federation: Federation):
    hs1 = await federation.start("hs1")
    hs2 = await federation.start("hs2", workers=2)
    alice, bob = await hs1.register("alice"), await hs2.register("bob")
    for _ in range(5):
        room_id = await alice.create_room()
        await asyncio.gather(*(enter(bob, room_id, "hs1") for _ in range(2)))
        assert await members(bob, room_id) == {alice.user_id: "join", bob.user_id: "join"}
        assert sorted(await state_ids(bob, room_id)) == sorted(await state_ids(bob, room_id))
        await bob.say(room_id)


async def paged(reader: User, room_id: str) -> list[str]:
    """Return a room's messages, the newest first."""
    found: list[str] = []
    query = {"dir": "b", "limit": "30"}
    while True:
        page = await reader.call("GET", f"/rooms/{quote(room_id)}/messages", **query)
        found += [e["event_id"] for e in page["chunk"] if e["type"] == "m.room.message"]
        if "end" not in page:
            return found
        query["from"] = page["end"]


async def test_two_processes_that_fetch_the_same_history_have_it_in_one_order(
    federation: Federation,
):
    hs1 = await federation.start("hs1")
    hs2 = await federation.start("hs2", workers=2)
    alice = await hs1.register("alice")
    guests = [await hs2.register(name) for name in ("bob", "carol")]
    room_id = await alice.create_room()
    said = [await alice.say(room_id, f"number {number}") for number in range(150)]
    for guest in guests:
        await enter(guest, room_id, "hs1")

    for _ in range(2):  # The second time it is all here.
        first, second = await asyncio.gather(*(paged(guest, room_id) for guest in guests))
        assert first == second == said[::-1]
    first_orders, second_orders = [
        {e: found.order for e, found in (await worker.events.get_many(said)).items()}
        for worker in hs2.workers
    ]
    assert first_orders == second_orders
    assert await hs2.services.db.fetch(LOST) == []


async def test_history_that_another_process_stores_while_it_is_fetched_is_read(
    federation: Federation,
):
    hs1 = await federation.start("hs1")
    hs2 = await federation.start("hs2", workers=2)
    alice = await hs1.register("alice")
    bob, carol = [await hs2.register(name) for name in ("bob", "carol")]
    room_id = await alice.create_room()
    said = [await alice.say(room_id, f"number {number}") for number in range(3)]
    for guest in (bob, carol):
        await enter(guest, room_id, "hs1")

    async def read(guest: User) -> list[str]:
        page = await guest.call("GET", f"/rooms/{quote(room_id)}/messages", dir="b", limit="60")
        return [e["event_id"] for e in page["chunk"] if e["type"] == "m.room.message"]

    answer, of_carol = node_of(hs1.services), []

    async def answer_late(request: OutgoingRequest) -> RawAnswer:
        if "/backfill/" in request.target and not of_carol:
            of_carol.append("asked")
            of_carol[:] = await read(carol)  # By the other process, from first to last.
        return await answer(request)

    federation.network.add("hs1", answer_late)
    of_bob = await read(bob)
    assert of_bob == of_carol == said[::-1]


async def fill_gaps(services: Services, room_id: str) -> None:
    """Fetch all the history that is lacking."""
    room = await rooms.fetch_room(services.db, room_id)
    assert room is not None
    until_ms = services.clock.monotonic_ms() + 1_000
    while gaps := await list_gaps(services.db, room.room_nid, 0, 2**62):
        assert await backfill.fill(services, RoomId(room_id), gaps[0], until_ms)


@pytest.mark.parametrize("look", [1, 2, 3])
async def test_history_that_another_process_fetches_between_two_looks_is_not_passed_over(
    federation: Federation, monkeypatch: pytest.MonkeyPatch, look: int
):
    hs2, bob, room_id, said = await joined_late(federation)
    looks, list_range = itertools.count(1), events.list_range

    async def look_away(queries: Queries, *where: Any, **options: Any) -> list[StoredEvent]:
        found = await list_range(queries, *where, **options)
        if next(looks) == look:
            (other,) = (worker for worker in hs2.workers if worker.db is not queries)
            await fill_gaps(other, room_id)
        return found

    monkeypatch.setattr(events, "list_range", look_away)
    assert await paged(bob, room_id) == said[::-1]


async def test_what_lies_behind_fetched_history_is_not_forgotten_if_its_reader_goes(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
):
    hs2, bob, room_id, said = await joined_late(federation)
    reader, other = hs2.workers

    async def write_and_go(
        db: Database, room_nid: int, writes: list[HistoryWrite], *more: Any
    ) -> set[EventId]:
        if not writes or writes[0].stored.order is None:  # What history rests upon comes first.
            return await write_history(db, room_nid, writes, *more)
        far = writes[0].stored
        await other.event_numbers.reserve(1)
        stored = StoredEvent(far.event, other.event_numbers.take())
        assert await write_history(other.db, room_nid, [HistoryWrite(stored)], {})
        assert await write_history(db, room_nid, writes, *more)
        assert far.event_nid == stored.event_nid, "the other process was faster"
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr(history_writes, "write_history", write_and_go)
        with pytest.raises(asyncio.CancelledError):
            await fill_gaps(reader, room_id)
    assert await paged(bob, room_id) == said[::-1]
