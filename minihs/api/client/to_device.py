"""Messages to devices. Spec: client-server-api#send-to-device-messaging."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from minihs.services.encryption import to_device
from minihs.services.rooms.origins import ClientTransaction

if TYPE_CHECKING:
    from minihs.api.requests import Request


class DeviceMessages(msgspec.Struct):
    """Body of /sendToDevice: user -> device, or `*` -> content."""

    messages: dict[str, dict[str, dict[str, object]]]


async def send_to_device(request: Request) -> object:
    """PUT /_matrix/client/v3/sendToDevice/{eventType}/{txnId}.

    Spec: client-server-api#put_matrixclientv3sendtodeviceeventtypetxnid
    """
    path, requester = request.path, request.requester
    event_type = path["eventType"]
    await to_device.send_to_devices(
        request.services,
        requester.user_id,
        event_type,
        ClientTransaction(requester.device_nid, path["txnId"], f"sendToDevice/{event_type}"),
        (await request.json(DeviceMessages)).messages,
    )
    return {}
