"""States as deltas (D3): a change costs a few rows, however many there are, and none is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import asyncpg

from minihs.protocol.event_assembly import EventDraft
from minihs.protocol.identifiers import RoomId, UserId
from minihs.services.rooms.send import send_event
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
