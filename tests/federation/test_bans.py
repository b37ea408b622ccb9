"""Bans that reach the banned user's server, but not the one through which they then join.

Alice is on hs1, Bob on hs2, Carol on hs3, which is cut off for a while.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from minihs.services.rooms.remote_membership import LEAVE_KNOWN_AFTER_MS
from tests.helpers.servers import join, pass_time, quiet, start

if TYPE_CHECKING:
    from minihs.base.clock import ManualClock
    from tests.helpers.homeserver import Homeserver, User
    from tests.helpers.network import Federation

pytestmark = pytest.mark.spec("server-server-api#joining-rooms")


@dataclass(frozen=True, slots=True)
class Town:
    """Three servers, and a room that Alice and Carol are in."""

    federation: Federation
    servers: list[Homeserver]
    alice: User
    bob: User
    carol: User
    room_id: str

    async def ban_unheard_of_by_carol(self) -> None:
        """Let Alice ban Bob while Carol's server is cut off."""
        self.federation.network.isolate("hs3")
        await self.alice.call(
            "POST", f"/rooms/{quote(self.room_id)}/ban", {"user_id": self.bob.user_id}
        )
        await quiet(self.servers[:2])

    async def is_bob(self, user: User) -> str:
        """Return what Bob is in the room, as a user sees it."""
        path = f"/rooms/{quote(self.room_id)}/state/m.room.member/{self.bob.user_id}"
        return (await user.call("GET", path))["membership"]


@pytest.fixture
async def town(federation: Federation) -> Town:
    servers = await start(federation, "hs1", "hs2", "hs3")
    alice, bob, carol = [
        await server.register(name)
        for server, name in zip(servers, ("alice", "bob", "carol"), strict=True)
    ]
    room_id = await alice.create_room()
    await join(carol, room_id, "hs1")
    return Town(federation, servers, alice, bob, carol, room_id)


@pytest.mark.parametrize("was", ["join", "invite"])
async def test_a_server_that_has_yet_to_hear_of_bobs_ban_does_not_let_him_in(town: Town, was: str):
    if was == "join":
        await join(town.bob, town.room_id, "hs1")
    else:
        await town.alice.call(
            "POST", f"/rooms/{quote(town.room_id)}/invite", {"user_id": town.bob.user_id}
        )
    await quiet(town.servers)
    assert await town.is_bob(town.carol) == was
    await town.ban_unheard_of_by_carol()
    town.federation.network.heal()

    path = f"/join/{quote(town.room_id)}"
    answer = await town.bob.request("POST", path, {}, server_name="hs3")

    assert answer.status == 502
    assert await town.is_bob(town.carol) == was


async def test_bob_who_joins_where_his_ban_is_unknown_turns_out_to_be_banned(
    town: Town, clock: ManualClock
):
    """His server knows of the ban, and the join does not rest upon it: it must not forget it."""
    await join(town.bob, town.room_id, "hs1")
    await quiet(town.servers)
    await town.ban_unheard_of_by_carol()
    clock.advance_ms(LEAVE_KNOWN_AFTER_MS + 1)  # The join is not refused any more.
    await quiet(town.servers[:2])
    town.federation.network.heal()

    await join(town.bob, town.room_id, "hs3")

    assert await town.is_bob(town.carol) == "join"
    assert town.room_id not in (await town.bob.sync()).get("rooms", {}).get("join", {})
    await pass_time(town.servers, clock, 20_000)
    assert [await town.is_bob(user) for user in (town.alice, town.carol)] == ["ban", "ban"]
    message = {"msgtype": "m.text", "body": "Hello?"}
    path = f"/rooms/{quote(town.room_id)}/send/m.room.message/1"
    assert (await town.bob.request("PUT", path, message)).status == 403


async def test_bob_who_was_pardoned_comes_back(town: Town):
    await join(town.bob, town.room_id, "hs1")
    await quiet(town.servers)
    await town.ban_unheard_of_by_carol()
    town.federation.network.heal()
    await town.alice.call(
        "POST", f"/rooms/{quote(town.room_id)}/unban", {"user_id": town.bob.user_id}
    )

    await join(town.bob, town.room_id, "hs1")

    assert await town.is_bob(town.bob) == await town.is_bob(town.alice) == "join"
    await town.bob.say(town.room_id)
