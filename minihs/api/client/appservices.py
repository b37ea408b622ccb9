"""What only application services may ask.

Spec: application-service-api#client-server-api-extensions
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from minihs.base.errors import InvalidParam
from minihs.protocol.canonical_json import INTEGER_MAX
from minihs.services.appservices import directory, ping

if TYPE_CHECKING:
    from minihs.api.requests import Request


class Ping(msgspec.Struct):
    """Body of POST /appservice/{appserviceId}/ping."""

    transaction_id: str | None = None


class Visibility(msgspec.Struct):
    """Body of PUT /directory/list/appservice/{networkId}/{roomId}."""

    visibility: Literal["public", "private"]


def massaged_ts(request: Request) -> int | None:
    """Return when an application service wants an event to have been sent; None: now.

    Spec: application-service-api#timestamp-massaging

    Raises:
        InvalidParam: it is no time that an event can have.
    """
    text = request.query("ts")
    if text is None or request.requester.appservice_id is None:
        return None
    if not (text.isascii() and text.isdecimal()) or len(text) > 16 or int(text) > INTEGER_MAX:
        raise InvalidParam("ts must be a time in milliseconds.")
    return int(text)


async def ping_appservice(request: Request) -> object:
    """POST /_matrix/client/v1/appservice/{appserviceId}/ping.

    Spec: client-server-api#post_matrixclientv1appserviceappserviceidping
    """
    body = await request.json(Ping)
    duration_ms = await ping.ping(
        request.services, request.requester, request.path["appserviceId"], body.transaction_id
    )
    return {"duration_ms": duration_ms}


async def update_appservice_room_directory_visibility(request: Request) -> object:
    """PUT /_matrix/client/v3/directory/list/appservice/{networkId}/{roomId}.

    Spec: client-server-api#put_matrixclientv3directorylistappservicenetworkidroomid
    """
    body = await request.json(Visibility)
    await directory.set_visibility(
        request.services,
        request.requester,
        request.path["networkId"],
        request.path["roomId"],
        public=body.visibility == "public",
    )
    return {}
