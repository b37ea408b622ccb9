"""Sending events to rooms. Spec: client-server-api#sending-events-to-a-room."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.api.client import delayed_events
from minihs.api.client.appservices import massaged_ts
from minihs.api.client.sticky_events import sticky_duration_ms
from minihs.base.errors import BadJson
from minihs.protocol import unstable
from minihs.services.rooms import room_events
from minihs.services.rooms.origins import ClientTransaction

if TYPE_CHECKING:
    from minihs.api.requests import Request
    from minihs.protocol.identifiers import RoomId


async def send_message(request: Request) -> object:
    """PUT /_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}.

    Spec: client-server-api#put_matrixclientv3roomsroomidsendeventtypetxnid
    """
    path, requester = request.path, request.requester
    event_type = path["eventType"]
    transaction = ClientTransaction(requester.device_nid, path["txnId"], f"send/{event_type}")
    if unstable.DELAY_PARAMETER in request.http.query:
        return await delayed_events.schedule_by_parameter(request, None, transaction)
    event_id = await room_events.send_message(
        request.services,
        requester.user_id,
        _room_id(request),
        event_type,
        await request.content(),
        transaction,
        sticky_ms=sticky_duration_ms(request),
        sent_ms=massaged_ts(request),
    )
    request.services.presence.note_active(request.services, requester.user_id)
    return {"event_id": event_id}


async def redact_event(request: Request) -> object:
    """PUT /_matrix/client/v3/rooms/{roomId}/redact/{eventId}/{txnId}.

    Spec: client-server-api#put_matrixclientv3roomsroomidredacteventidtxnid
    """
    path, requester = request.path, request.requester
    target = path["eventId"]
    content = await request.json_object()
    if not isinstance(content.get("reason"), str | None):
        raise BadJson("reason must be a string.")
    event_id = await room_events.redact_event(
        request.services,
        requester.user_id,
        _room_id(request),
        target,
        content,
        ClientTransaction(requester.device_nid, path["txnId"], f"redact/{target}"),
    )
    return {"event_id": event_id}


async def set_room_state_with_key(request: Request) -> object:
    """PUT /_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}.

    Without a state key, or with an empty one, the state key is empty.
    Spec: client-server-api#put_matrixclientv3roomsroomidstateeventtypestatekey
    """
    path, requester = request.path, request.requester
    state_key = path.get("stateKey", "")
    if unstable.DELAY_PARAMETER in request.http.query:
        return await delayed_events.schedule_by_parameter(request, state_key, None)
    event_id = await room_events.set_room_state(
        request.services,
        requester.user_id,
        _room_id(request),
        path["eventType"],
        state_key,
        await request.content(),
        guest=requester.guest,
        sticky_ms=sticky_duration_ms(request),
        sent_ms=massaged_ts(request),
    )
    return {"event_id": event_id}


def _room_id(request: Request) -> RoomId:
    return request.path["roomId"]  # type: ignore[return-value]  # (an unknown one is not found)
