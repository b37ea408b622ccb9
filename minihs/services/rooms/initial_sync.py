"""A room at one glance, for clients that show it to somebody who has not joined it.

Spec: client-server-api#room-previews
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from minihs.services.rooms import directory, history, state_reading
from minihs.storage import account_data
from minihs.storage.membership import fetch_membership

if TYPE_CHECKING:
    from minihs.protocol.identifiers import RoomId
    from minihs.services.context import Services
    from minihs.services.rooms.access import Reader

MEMBERSHIPS = ("invite", "join", "leave", "ban")  # What an answer can say of the reader.


async def room_initial_sync(
    services: Services, reader: Reader, room_id: RoomId, limit: int
) -> dict[str, object]:
    """Return a room's state, its newest messages (oldest first), and what the reader noted of it.

    Raises:
        Forbidden: the reader may not look at the room.

    Spec: client-server-api#get_matrixclientv3roomsroomidinitialsync
    """
    page = await history.messages(
        services, reader, room_id, start=None, stop=None, backward=True, limit=limit
    )
    chunk = page["chunk"]
    messages = {
        "chunk": chunk[::-1] if isinstance(chunk, list) else chunk,
        "end": page["start"],
    }
    if "end" in page:  # Pages go backward: where this one ends, there is something before it.
        messages["start"] = page["end"]
    answer: dict[str, object] = {
        "room_id": room_id,
        "messages": messages,
        "state": await state_reading.state(services, reader, room_id),
        "visibility": await directory.get_visibility(services, room_id),
        "account_data": [
            {"type": data_type, "content": orjson.Fragment(json)}
            for _, data_type, json in await account_data.list_of_rooms(
                services.db, reader.user_id, [room_id]
            )
        ],
    }
    member = await fetch_membership(services.db, room_id, reader.user_id)
    if member is not None and member.membership in MEMBERSHIPS:
        answer["membership"] = member.membership
    return answer
