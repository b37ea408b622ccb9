"""Sending events to rooms. Spec: client-server-api#sending-events-to-a-room."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.base.errors import InvalidParam
from minihs.protocol import unstable
from minihs.protocol.stickiness import read_sticky_duration
from minihs.services.rooms import room_events
from minihs.services.rooms.commit import ClientTransaction

if TYPE_CHECKING:
    from minihs.api.requests import Request
    from minihs.protocol.identifiers import RoomId


async def send_message(request: Request) -> object:
    """PUT /_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}.

    Spec: client-server-api#put_matrixclientv3roomsroomidsendeventtypetxnid
    """
    path, requester = request.path, request.requester
    event_type = path["eventType"]
    event_id = await room_events.send_message(
        request.services,
        requester.user_id,
        _room_id(request),
        event_type,
        await request.json_object(),
        ClientTransaction(requester.device_nid, path["txnId"], f"send/{event_type}"),
        sticky_ms=_sticky_duration_ms(request),
    )
    return {"event_id": event_id}


async def redact_event(request: Request) -> object:
    """PUT /_matrix/client/v3/rooms/{roomId}/redact/{eventId}/{txnId}.

    Spec: client-server-api#put_matrixclientv3roomsroomidredacteventidtxnid
    """
    path, requester = request.path, request.requester
    target = path["eventId"]
    event_id = await room_events.redact_event(
        request.services,
        requester.user_id,
        _room_id(request),
        target,
        await request.json_object(),
        ClientTransaction(requester.device_nid, path["txnId"], f"redact/{target}"),
    )
    return {"event_id": event_id}


async def set_room_state_with_key(request: Request) -> object:
    """PUT /_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}.

    Without a state key, or with an empty one, the state key is empty.
    Spec: client-server-api#put_matrixclientv3roomsroomidstateeventtypestatekey
    """
    path, requester = request.path, request.requester
    event_id = await room_events.set_room_state(
        request.services,
        requester.user_id,
        _room_id(request),
        path["eventType"],
        path.get("stateKey", ""),
        await request.json_object(),
        guest=requester.guest,
        sticky_ms=_sticky_duration_ms(request),
    )
    return {"event_id": event_id}


def _sticky_duration_ms(request: Request) -> int | None:
    """Return for how long the event is to be sticky; None: it is an ordinary event.

    MSC4354#proposal

    Raises:
        InvalidParam: the duration is no number from 0 to an hour, or two are given that differ.
    """
    given = unstable.read(request.http.query, unstable.STICKY_DURATION_PARAMETER)
    if given is None:
        return None
    if isinstance(given, unstable.Disagreement):
        raise InvalidParam(given.message)
    duration_ms = read_sticky_duration(str(given))
    if duration_ms is None:
        name = unstable.STICKY_DURATION_PARAMETER.stable
        raise InvalidParam(f"{name} must be a number of milliseconds, of an hour at the most.")
    return duration_ms


def _room_id(request: Request) -> RoomId:
    return request.path["roomId"]  # type: ignore[return-value]  # (an unknown one is not found)
