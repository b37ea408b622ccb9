"""Devices. Spec: client-server-api#device-management."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from minihs.api.requests import Answer
from minihs.services.accounts import devices

if TYPE_CHECKING:
    from minihs.api.requests import Request
    from minihs.services.accounts.devices import Device


class DeviceUpdate(msgspec.Struct):
    """Body of PUT /devices/{deviceId}."""

    display_name: str | None = None


class DevicesToDelete(msgspec.Struct):
    """Body of POST /delete_devices, without `auth`."""

    devices: list[str]


async def get_devices(request: Request) -> object:
    """GET /_matrix/client/v3/devices.

    Spec: client-server-api#get_matrixclientv3devices
    """
    found = await devices.list_devices(request.services, request.requester)
    return {"devices": [_describe(device) for device in found]}


async def get_device(request: Request) -> object:
    """GET /_matrix/client/v3/devices/{deviceId}.

    Spec: client-server-api#get_matrixclientv3devicesdeviceid
    """
    device_id = request.path["deviceId"]
    return _describe(await devices.get_device(request.services, request.requester, device_id))


async def update_device(request: Request) -> object:
    """PUT /_matrix/client/v3/devices/{deviceId}.

    Spec: client-server-api#put_matrixclientv3devicesdeviceid
    """
    body = await request.json(DeviceUpdate)
    is_new = await devices.rename_device(
        request.services, request.requester, request.path["deviceId"], body.display_name
    )
    return Answer({}, 201 if is_new else 200)


async def delete_device(request: Request) -> object:
    """DELETE /_matrix/client/v3/devices/{deviceId}.

    Spec: client-server-api#delete_matrixclientv3devicesdeviceid
    """
    body = await request.json_object()
    auth = body.pop("auth", None)
    await devices.delete_devices(
        request.services, request.requester, [request.path["deviceId"]], body, auth
    )
    return {}


async def delete_devices(request: Request) -> object:
    """POST /_matrix/client/v3/delete_devices.

    Spec: client-server-api#post_matrixclientv3delete_devices
    """
    wish, body, auth = await request.json_and_auth(DevicesToDelete)
    await devices.delete_devices(request.services, request.requester, wish.devices, body, auth)
    return {}


def _describe(device: Device) -> dict[str, object]:
    """Return a device as clients see it; what is not known is left out, but for the name.

    matrix-nio refuses a list in which a device has none.
    """
    known = {
        "device_id": device.device_id,
        "display_name": device.display_name or "",
        "last_seen_ip": device.last_seen_ip,
        "last_seen_ts": device.last_seen_ms,
    }
    return {key: value for key, value in known.items() if value is not None}
