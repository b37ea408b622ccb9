"""Presence. Spec: client-server-api#presence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from minihs.base.errors import Forbidden, InvalidParam
from minihs.protocol.identifiers import parse_user_id
from minihs.services.ephemeral import presence

if TYPE_CHECKING:
    from minihs.api.requests import Request


class PresenceUpdate(msgspec.Struct):
    """Body of PUT /presence/{userId}/status."""

    presence: str
    status_msg: str | None = None


async def set_presence(request: Request) -> object:
    """PUT /_matrix/client/v3/presence/{userId}/status.

    Spec: client-server-api#put_matrixclientv3presenceuseridstatus
    """
    user_id = request.requester.user_id
    if request.path["userId"] != user_id:
        raise Forbidden("You cannot set the presence of others.")
    body = await request.json(PresenceUpdate)
    await presence.set_presence(request.services, user_id, body.presence, body.status_msg)
    return {}


async def get_presence(request: Request) -> object:
    """GET /_matrix/client/v3/presence/{userId}/status.

    Spec: client-server-api#get_matrixclientv3presenceuseridstatus
    """
    user_id = parse_user_id(request.path["userId"])
    if user_id is None:
        raise InvalidParam("This is not a user id.")
    return await presence.get_presence(request.services, request.requester.user_id, user_id)


def wished_presence(request: Request, wish: str | None = None) -> presence.Presence:
    """Return what a poll makes of its user: `set_presence` of the query, or else the body's.

    Raises:
        InvalidParam: it is no presence.
    """
    match request.query("set_presence") or wish:
        case None | "online":
            return "online"
        case "unavailable":
            return "unavailable"
        case "offline":
            return "offline"
        case _:
            raise InvalidParam("set_presence must be online, offline or unavailable.")
