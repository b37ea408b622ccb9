"""Read receipts and read markers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from minihs.base.errors import InvalidParam
from minihs.protocol.identifiers import EventId, RoomId
from minihs.services.ephemeral import receipts

if TYPE_CHECKING:
    from minihs.api.requests import Request


class ReadMarkers(msgspec.Struct):
    """Body of /read_markers."""

    fully_read: str | None = msgspec.field(default=None, name="m.fully_read")
    read: str | None = msgspec.field(default=None, name="m.read")
    read_private: str | None = msgspec.field(default=None, name="m.read.private")


async def post_receipt(request: Request) -> object:
    """POST /_matrix/client/v3/rooms/{roomId}/receipt/{receiptType}/{eventId}.

    Spec: client-server-api#post_matrixclientv3roomsroomidreceiptreceipttypeeventid
    """
    kind = request.path["receiptType"]
    if kind not in receipts.MARKER_TYPES:
        raise InvalidParam(f"The receipt type must be one of {', '.join(receipts.MARKER_TYPES)}.")
    body = await request.json_object()
    thread_id = receipts.UNTHREADED
    if "thread_id" in body:
        given = body["thread_id"]
        if not isinstance(given, str) or not given or "\0" in given:
            raise InvalidParam("thread_id must be a string that is not empty, without a NUL.")
        if kind == receipts.FULLY_READ:
            raise InvalidParam("The fully read marker has no threads.")
        thread_id = given
    await receipts.mark_read(
        request.services,
        request.requester.user_id,
        RoomId(request.path["roomId"]),
        {kind: EventId(request.path["eventId"])},
        thread_id=thread_id,
    )
    return {}


async def set_read_marker(request: Request) -> object:
    """POST /_matrix/client/v3/rooms/{roomId}/read_markers.

    Spec: client-server-api#post_matrixclientv3roomsroomidread_markers
    """
    body = await request.json(ReadMarkers)
    given = {
        "m.read": body.read,
        "m.read.private": body.read_private,
        receipts.FULLY_READ: body.fully_read,
    }
    await receipts.mark_read(
        request.services,
        request.requester.user_id,
        RoomId(request.path["roomId"]),
        {kind: EventId(event_id) for kind, event_id in given.items() if event_id is not None},
    )
    return {}
