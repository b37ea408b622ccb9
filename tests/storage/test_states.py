"""States as deltas (D3): a change costs a few rows, however many there are, and none is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import asyncpg
import pytest

from minihs.protocol.event_assembly import EventDraft
from minihs.protocol.identifiers import RoomId, UserId
from minihs.services.rooms.send import send_event
from minihs.storage import state as state_module
from minihs.storage.state import StateStore
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from tests.helpers.homeserver import Homeserver

CHANGES, KEYS = 300, 40


async def test_a_change_of_state_costs_few_rows_and_short_chains(
    homeserver: Homeserver, database_url: str
):
    alice = await homeserver.register("alice")
    room_id = RoomId(await alice.create_room())
    services = homeserver.services
    for number in range(CHANGES):
        draft = EventDraft(
            room_id=room_id,
            sender=UserId(alice.user_id),
            type="com.example.state",
            state_key=f"key {number % KEYS}",
            content={"n": number},
            origin_server_ts=services.clock.now_ms(),
        )
        await send_event(services, draft)

    connection = await asyncpg.connect(database_url)
    try:
        await until(lambda: not any(t.get_name() == "rebase-state" for t in services.tasks._tasks))
        rows = await connection.fetchval("SELECT count(*) FROM state_entries")
        longest = await connection.fetchval(
            """
            WITH RECURSIVE chain AS (
              SELECT state_id, parent_id, 0 AS length FROM states
              UNION ALL
              SELECT c.state_id, s.parent_id, c.length + 1
              FROM chain c
              JOIN states s ON s.state_id = c.parent_id
            )
            SELECT max(length) FROM chain
            """
        )
        newest = await connection.fetchval("SELECT state_id FROM rooms WHERE room_id = $1", room_id)
        fresh = await StateStore(services.db, services.states.numbers).get(newest)
    finally:
        await connection.close()
    size = len(fresh.entries)
    assert KEYS < size < KEYS + 12
    assert rows < 3 * CHANGES
    assert longest <= 2 * size
    page = await alice.call("GET", f"/rooms/{room_id}/state")
    values = {e["state_key"]: e["content"]["n"] for e in page if e["type"] == "com.example.state"}
    assert values == {f"key {n % KEYS}": n for n in range(CHANGES - KEYS, CHANGES)}
    assert {e["event_id"] for e in page} == set(fresh.entries.values())


async def test_states_that_are_loaded_fill_no_more_memory_than_they_may(
    homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch
):
    """A server asks for the state at one event after the other of a room with many members."""
    alice = await homeserver.register("alice")
    room_id = await alice.create_room()
    for number in range(20):
        await alice.call("PUT", f"/rooms/{room_id}/state/com.example.state/{number}", {})
    monkeypatch.setattr(state_module, "ENTRIES_LOADED_MAX", 60)
    services = homeserver.services
    fresh = StateStore(services.db, services.states.numbers)
    ids = [r[0] for r in await services.db.fetch("SELECT state_id FROM states ORDER BY state_id")]

    for state_id in ids:
        loaded = await fresh.get(state_id)
        assert loaded.entries == (await services.states.get(state_id)).entries

    assert fresh.cached(ids[0]) is None
    kept = [state for state_id in ids if (state := fresh.cached(state_id)) is not None]
    assert 0 < sum(len(state.entries) for state in kept) <= 60


async def test_a_state_that_is_not_there_is_not_an_empty_one(homeserver: Homeserver):
    with pytest.raises(LookupError):
        await homeserver.services.states.get(10**12)
