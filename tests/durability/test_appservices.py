"""An application service gets everything, in order, though the server is killed meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING
from urllib.parse import quote

import aiohttp
import pytest

from tests.helpers.appservices import AS_TOKEN, Asked, running_bridge
from tests.helpers.processes import running_server
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.processes import Server

ROUNDS, MESSAGES = 2, 20


@pytest.mark.spec("application-service-api#pushing-events")
@pytest.mark.durable_database
async def test_nothing_is_lost_and_what_comes_again_is_the_same(
    database_url: str, tmp_path: Path
) -> None:
    async with running_bridge(tmp_path) as bridge:
        taken, answers = asyncio.Event(), asyncio.Event()
        answers.set()

        async def answer(_asked: Asked) -> tuple[int, dict]:
            taken.set()
            await answers.wait()
            return (500, {}) if len(bridge.asked) % 9 == 0 else (200, {})

        bridge.answer = answer
        async with running_server(
            database_url, tmp_path, workers=2, appservice_files=str(bridge.file)
        ) as server:
            made = await server.request("POST", "/createRoom", {}, token=AS_TOKEN)
            room = f"/rooms/{quote(made.json['room_id'])}"
            for number in range(ROUNDS * MESSAGES):
                if number % MESSAGES == MESSAGES // 2:
                    await until(lambda number=number: str(number - 1) in bridge.texts)
                    taken.clear()
                    answers.clear()
                    saying = asyncio.create_task(say(server, room, number))
                    await taken.wait()
                    await server.kill()  # Nobody lives to hear that the transaction was taken.
                    answers.set()
                    with contextlib.suppress(aiohttp.ClientError):
                        await saying
                    await server.start()
                await say(server, room, number)
            await until(lambda: str(ROUNDS * MESSAGES - 1) in bridge.texts)

        once: dict[str, object] = {}
        told: list[str] = []
        for asked in bridge.transactions:
            if asked.path not in once:
                told += [e["content"].get("body", "") for e in asked.body["events"]]
            assert once.setdefault(asked.path, asked.body) == asked.body
        assert [body for body in told if body] == [str(n) for n in range(ROUNDS * MESSAGES)]
        assert len(bridge.transactions) >= len(once) + ROUNDS, "some came again"


async def say(server: Server, room: str, number: int) -> None:
    """Send a message; twice is the same as once."""
    path = f"{room}/send/m.room.message/t{number}"
    answer = await server.request("PUT", path, {"body": str(number)}, token=AS_TOKEN)
    assert answer.status == 200, answer.json
