"""Room directories that application services keep for the networks they bridge to.

Spec: application-service-api#published-room-directories
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.base.errors import Forbidden, InvalidParam
from minihs.services.rooms.standing import load_known_room
from minihs.storage import appservices

if TYPE_CHECKING:
    from minihs.services.accounts.authentication import Requester
    from minihs.services.context import Services

NETWORK_ID_CHARS_MAX = 255


async def set_visibility(
    services: Services, requester: Requester, network_id: str, room_id: str, *, public: bool
) -> None:
    """Put a room into the directory of one of a service's networks, or take it out.

    Spec: client-server-api#put_matrixclientv3directorylistappservicenetworkidroomid

    Raises:
        Forbidden: it is no application service that asks.
        InvalidParam: the id of the network is too long.
        NotFound: this server does not know the room.
    """
    service_id = requester.appservice_id
    if service_id is None:
        raise Forbidden("Only application services have directories of their own.")
    if len(network_id) > NETWORK_ID_CHARS_MAX:
        raise InvalidParam("The network id is too long.")
    await load_known_room(services, room_id)
    await appservices.update_listed(services.db, service_id, network_id, room_id, listed=public)
