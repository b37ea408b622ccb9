"""Making rooms, and replacing them. Spec: client-server-api#creation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from minihs.services.rooms import create, upgrade

if TYPE_CHECKING:
    from minihs.api.requests import Request


class Upgrade(msgspec.Struct):
    """Body of POST /rooms/{roomId}/upgrade."""

    new_version: str
    additional_creators: list[str] | None = None


async def create_room(request: Request) -> object:
    """POST /_matrix/client/v3/createRoom.

    Spec: client-server-api#post_matrixclientv3createroom
    """
    options = await request.json(create.RoomOptions)
    requester = request.requester
    room_id = await create.create_room(
        request.services, requester.user_id, options, by_service=requester.appservice_id
    )
    return {"room_id": room_id}


async def upgrade_room(request: Request) -> object:
    """POST /_matrix/client/v3/rooms/{roomId}/upgrade.

    Spec: client-server-api#post_matrixclientv3roomsroomidupgrade
    """
    body = await request.json(Upgrade)
    room_id = await upgrade.upgrade_room(
        request.services,
        request.requester.user_id,
        request.path["roomId"],
        body.new_version,
        body.additional_creators,
    )
    return {"replacement_room": room_id}
