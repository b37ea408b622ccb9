"""The count of a user's sticky events follows the stream; the table is asked but seldom."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import quote

from minihs.protocol import unstable
from minihs.storage import sticky_events

if TYPE_CHECKING:
    import pytest

    from minihs.storage.database import Queries
    from tests.helpers.homeserver import Homeserver, User


async def test_the_table_is_asked_once_for_each_sender_though_many_send_at_once(
    homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each send finds events in the room's head that still wait for their commit."""
    users = [await homeserver.register(f"user{n}") for n in range(4)]
    room_id = await users[0].create_room()
    for user in users[1:]:
        await user.join(room_id)
    count_live = sticky_events.count_live
    asked: list[str] = []

    async def note(queries: Queries, room_id: str, sender: str, now_ms: int) -> tuple[int, int]:
        asked.append(sender)
        return await count_live(queries, room_id, sender, now_ms)

    monkeypatch.setattr(sticky_events, "count_live", note)

    duration = unstable.STICKY_DURATION_PARAMETER.unstable

    async def send(user: User) -> None:
        for n in range(5):
            path = f"/rooms/{quote(room_id)}/send/org.x/{n}"
            await user.call("PUT", path, {}, **{duration: "60000"})

    await asyncio.gather(*map(send, users))
    assert sorted(asked) == sorted(user.user_id for user in users)
