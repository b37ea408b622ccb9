"""Making rooms, and replacing them. Spec: client-server-api#creation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.services.rooms import create

if TYPE_CHECKING:
    from minihs.api.requests import Request


async def create_room(request: Request) -> object:
    """POST /_matrix/client/v3/createRoom.

    Spec: client-server-api#post_matrixclientv3createroom
    """
    options = await request.json(create.RoomOptions)
    room_id = await create.create_room(request.services, request.requester.user_id, options)
    return {"room_id": room_id}
