"""Messages sent through a worker of the test's choice, without HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.protocol.event_assembly import EventDraft
from minihs.protocol.identifiers import RoomId, UserId
from minihs.services.rooms.send import send_event

if TYPE_CHECKING:
    from minihs.services.context import Services


async def send_at(worker: Services, room_id: str, user_id: str, body: str) -> str:
    """Send a text through one of the workers; return its id."""
    draft = EventDraft(
        room_id=RoomId(room_id),
        sender=UserId(user_id),
        type="m.room.message",
        content={"msgtype": "m.text", "body": body},
        origin_server_ts=worker.clock.now_ms(),
    )
    return await send_event(worker, draft)
