"""Every leave of a deactivated user says why, though the server is killed in the middle of them."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

import aiohttp
import asyncpg
import pytest

from tests.helpers.homeserver import PASSWORD
from tests.helpers.processes import running_server
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from tests.helpers.processes import Server

ROOMS = 150
GONE = {"membership": "leave", "org.matrix.msc3759.deactivated": True}


@pytest.mark.durable_database
@pytest.mark.parametrize("workers", [2])
async def test_every_leave_says_why_whenever_the_server_is_killed(
    database_url: str, tmp_path: Path, workers: int
) -> None:
    async with running_server(database_url, tmp_path, workers=workers) as server:
        _, alice = await server.register("alice")
        bob_id, bob = await server.register("bob")
        rooms = [await make_room(server, alice, bob) for _ in range(ROOMS)]
        wish = {
            "auth": {
                "type": "m.login.password",
                "identifier": {"type": "m.id.user", "user": bob_id},
                "password": PASSWORD,
            }
        }
        async with held(database_url, bob_id, ROOMS // 2):
            request = server.request("POST", "/account/deactivate", wish, token=bob)
            asking = asyncio.create_task(request)
            await until(partial(has_left, server, alice, rooms[16:17], bob_id))
            await server.kill()
        with contextlib.suppress(aiohttp.ClientError):
            await asking

        assert await rooms_of(database_url, bob_id) > 0, "it was in the middle of it"
        await server.start()
        refused = await server.request("GET", "/account/whoami", token=bob)
        assert refused.status == 401
        await until(partial(has_left, server, alice, rooms, bob_id))
        assert [await member(server, alice, room, bob_id) for room in rooms] == [GONE] * ROOMS


@contextlib.asynccontextmanager
async def held(dsn: str, user_id: str, number: int) -> AsyncIterator[None]:
    """Let nobody write anything into one of a user's rooms until the block ends."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("BEGIN")
        rooms = "SELECT room_nid FROM memberships WHERE user_id = $1 ORDER BY position OFFSET $2"
        room_nid = await connection.fetchval(rooms, user_id, number)
        await connection.execute("SELECT FROM rooms WHERE room_nid = $1 FOR UPDATE", room_nid)
        yield
    finally:
        await connection.close()


async def rooms_of(dsn: str, user_id: str) -> int:
    """Return how many rooms a user is in, when what has been begun in the database is done."""
    connection = await asyncpg.connect(dsn)
    others = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name = 'minihs'"
    )

    async def is_quiet() -> bool:
        return await connection.fetchval(others) == 0

    try:
        await until(is_quiet)
        joined = "SELECT count(*) FROM memberships WHERE user_id = $1 AND membership = 'join'"
        return int(await connection.fetchval(joined, user_id))
    finally:
        await connection.close()


async def make_room(server: Server, alice: str, bob: str) -> str:
    """Return the path of a room of Alice's that Bob has joined."""
    made = await server.request("POST", "/createRoom", {"preset": "public_chat"}, token=alice)
    room = f"/rooms/{quote(made.json['room_id'])}"
    assert (await server.request("POST", f"{room}/join", {}, token=bob)).status == 200
    return room


async def member(server: Server, alice: str, room: str, user_id: str) -> dict:
    path = f"{room}/state/m.room.member/{quote(user_id)}"
    return (await server.request("GET", path, token=alice)).json


async def has_left(server: Server, alice: str, rooms: Sequence[str], user_id: str) -> bool:
    """Return whether somebody has left all of these rooms."""
    for room in reversed(rooms):
        if (await member(server, alice, room, user_id))["membership"] != "leave":
            return False
    return True
