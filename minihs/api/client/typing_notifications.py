"""Typing notifications."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from minihs.base.errors import BadJson, Forbidden
from minihs.protocol.identifiers import RoomId
from minihs.services.ephemeral import typing_notifications

if TYPE_CHECKING:
    from minihs.api.requests import Request


class Typing(msgspec.Struct):
    """Body of /typing; `timeout` in milliseconds."""

    typing: bool
    timeout: int | None = None


async def set_typing(request: Request) -> object:
    """PUT /_matrix/client/v3/rooms/{roomId}/typing/{userId}.

    Spec: client-server-api#put_matrixclientv3roomsroomidtypinguserid
    """
    if request.path["userId"] != request.requester.user_id:
        raise Forbidden("Only you know whether you type.")
    body = await request.json(Typing)
    timeout_ms: int | None = None
    if body.typing:
        timeout_ms = body.timeout
        if timeout_ms is None:
            timeout_ms = typing_notifications.TIMEOUT_DEFAULT_MS
        if timeout_ms < 0:
            raise BadJson("timeout must not be negative.")
    await typing_notifications.set_typing(
        request.services,
        request.requester.user_id,
        RoomId(request.path["roomId"]),
        timeout_ms=timeout_ms,
    )
    return {}
