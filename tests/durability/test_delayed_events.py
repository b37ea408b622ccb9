"""Delayed events are sent once each, though every process of the server is killed all the while."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from tests.helpers.processes import running_server
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.processes import Server

EVENT = "org.example.delayed"
EVENTS = 60
SPACING_MS = 100


@pytest.mark.durable_database
@pytest.mark.parametrize("workers", [1, 2])
async def test_each_is_sent_once_whoever_is_killed(
    database_url: str, tmp_path: Path, workers: int
) -> None:
    async with running_server(database_url, tmp_path, workers=workers) as server:
        _, token = await server.register("alice")
        made = await server.request("POST", "/createRoom", {"preset": "public_chat"}, token=token)
        room = f"/rooms/{quote(made.json['room_id'])}"
        # One after the other: none is sent before one that is due earlier has been scheduled.
        ids = [await schedule(server, room, token, n) for n in range(EVENTS)]

        for kills in range(1, 4):  # In the middle of sending, each time.
            await until(partial(has_at_least, server, room, token, kills * EVENTS // 5))
            await server.kill()
            await server.start()
        await until(partial(has_at_least, server, room, token, EVENTS))

        events = await sent(server, room, token)
        told = {}
        for delay_id in ids:
            path = f"/_matrix/client/v1/delayed_events/{delay_id}"
            told[delay_id] = (await server.request("GET", path, token=token)).json

        def due(delay_id: str) -> tuple[int, int, str]:
            since_ms = told[delay_id]["delayed_since_ts"]
            return since_ms + told[delay_id]["delay_ms"], since_ms, delay_id

        in_order = sorted(ids, key=due)
        assert [event["unsigned"]["delay_id"] for event in events] == in_order
        for event, delay_id in zip(events, in_order, strict=True):
            of = told[delay_id]
            assert event["content"] == of["content"]
            assert event["event_id"] == of["finalised"]["event_id"]
            assert event["origin_server_ts"] >= of["delayed_since_ts"] + of["delay_ms"], "early"


async def schedule(server: Server, room: str, token: str, n: int) -> str:
    """Schedule the n-th event; return its delay id."""
    body = {"delay_ms": 1_500 + n * SPACING_MS, "content": {"n": n}}
    answer = await server.request("PUT", f"{room}/delayed_event/{EVENT}/t{n}", body, token=token)
    return str(answer.json["delay_id"])


async def sent(server: Server, room: str, token: str) -> list[dict]:
    """Return the delayed events that have been sent, oldest first."""
    page = await server.request("GET", f"{room}/messages", token=token, dir="f", limit="1000")
    return [event for event in page.json["chunk"] if event["type"] == EVENT]


async def has_at_least(server: Server, room: str, token: str, count: int) -> bool:
    """Return whether so many have been sent."""
    return len(await sent(server, room, token)) >= count
