"""Messages to devices: each is received once, though every process is killed all the while."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import aiohttp
import pytest

from tests.helpers.processes import running_server
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.homeserver import Response
    from tests.helpers.processes import Server

MESSAGES = 300
KILLS = 2


@pytest.mark.durable_database
@pytest.mark.parametrize("workers", [1, 2])
async def test_each_is_received_once_whoever_is_killed(
    database_url: str, tmp_path: Path, workers: int
) -> None:
    async with running_server(database_url, tmp_path, workers=workers) as server:
        _, alice = await server.register("alice")
        bob_id, bob = await server.register("bob")
        got: list[int] = []
        async with asyncio.TaskGroup() as group:
            group.create_task(send_all(server, alice, bob_id))
            group.create_task(receive_all(server, bob, got))
            for kills in range(1, KILLS + 1):
                enough = kills * MESSAGES // (KILLS + 1)
                await until(lambda enough=enough: len(got) >= enough)
                await server.kill()
                await server.start()
        assert got == list(range(MESSAGES))


async def insist(
    server: Server, method: str, path: str, body: object = None, *, token: str, **query: str
) -> Response:
    """Repeat a request, as clients do, until it is answered."""
    answers: list[Response] = []

    async def is_answered() -> bool:
        try:
            answers.append(await server.request(method, path, body, token=token, **query))
        except (aiohttp.ClientError, TimeoutError):
            return False
        return answers[-1].status == 200

    await until(is_answered)
    return answers[-1]


async def send_all(server: Server, token: str, user_id: str) -> None:
    for n in range(MESSAGES):
        body = {"messages": {user_id: {"*": {"n": n}}}}
        await insist(server, "PUT", f"/sendToDevice/m.test/t{n}", body, token=token)


async def receive_all(server: Server, token: str, got: list[int]) -> None:
    query = {"timeout": "1000"}
    while len(got) < MESSAGES:
        answer = (await insist(server, "GET", "/sync", token=token, **query)).json
        query["since"] = answer["next_batch"]
        events = answer.get("to_device", {}).get("events", [])
        got += [event["content"]["n"] for event in events]
