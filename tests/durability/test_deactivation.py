"""Every leave of a deactivated user says why, though the server is killed in the middle of them."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

import aiohttp
import pytest

from tests.helpers.homeserver import PASSWORD
from tests.helpers.processes import running_server
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from collections.abc import Sequence
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
        asking = asyncio.create_task(server.request("POST", "/account/deactivate", wish, token=bob))
        await until(partial(has_left, server, alice, rooms[16:17], bob_id))
        await server.kill()
        with contextlib.suppress(aiohttp.ClientError):
            await asking

        await server.start()
        assert not await has_left(server, alice, rooms, bob_id), "it was in the middle of it"
        refused = await server.request("GET", "/account/whoami", token=bob)
        assert refused.status == 401
        await until(partial(has_left, server, alice, rooms, bob_id), within_s=90)
        assert [await member(server, alice, room, bob_id) for room in rooms] == [GONE] * ROOMS


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
