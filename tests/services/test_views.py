"""Views: what they say of a user is true as of the stream's head, in every process."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from tests.helpers.homeserver import running_homeserver

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.homeserver import User


async def ignore(user: User, *others: User) -> None:
    path = f"/user/{quote(user.user_id)}/account_data/m.ignored_user_list"
    await user.call("PUT", path, {"ignored_users": {other.user_id: {} for other in others}})


def bodies(answer: dict, room_id: str) -> list[str]:
    room = answer.get("rooms", {}).get("join", {}).get(room_id, {})
    return [e["content"]["body"] for e in room.get("timeline", {"events": []})["events"]]


async def test_every_process_knows_at_once_whom_a_user_ignores(
    database_url: str, tmp_path: Path
) -> None:
    async with running_homeserver(database_url, tmp_path, workers=2) as homeserver:
        alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
        room_id = await alice.create_room()
        await bob.join(room_id)
        for _ in range(2):  # Both processes have asked whom she ignores.
            await alice.sync()
        for n in range(3):
            await ignore(alice, bob)
            await bob.say(room_id, f"unheard {n}")
            for _ in range(2):
                assert bodies(await alice.sync(), room_id) == []
            await ignore(alice)
            await bob.say(room_id, f"heard {n}")
            said = [bodies(await alice.sync(), room_id) for _ in range(2)]
            assert said == [[f"heard {n}"], []]
