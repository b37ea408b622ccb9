"""Seeing, naming and deleting one's devices. Spec: client-server-api#device-management."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.base.errors import InvalidParam, NotFound
from minihs.base.limits import DEVICE_NAME_CHARS_MAX
from minihs.services.accounts import sessions
from minihs.services.accounts.user_interactive_auth import PASSWORD, Operation, authorize
from minihs.storage import devices
from minihs.storage.devices import Device

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minihs.services.accounts.authentication import Requester
    from minihs.services.context import Services

__all__ = ["Device", "delete_devices", "get_device", "list_devices", "rename_device"]


async def list_devices(services: Services, requester: Requester) -> Sequence[Device]:
    """Return the requester's devices, the oldest first."""
    return await devices.list_devices(services.db, requester.user_id)


async def get_device(services: Services, requester: Requester, device_id: str) -> Device:
    """Return one of the requester's devices.

    Raises:
        NotFound: they have no such device.
    """
    device = await devices.fetch_device(services.db, requester.user_id, device_id)
    if device is None:
        raise NotFound("You have no such device.")
    return device


async def rename_device(
    services: Services, requester: Requester, device_id: str, display_name: str | None
) -> bool:
    """Give a device another name; None leaves it as it is. Return whether it had to be made.

    Only application services can make devices like this.
    Spec: client-server-api#put_matrixclientv3devicesdeviceid

    Raises:
        NotFound: the requester has no such device.
        QuotaExceeded: there are too many.
        InvalidParam: the name or the device id is too long, or has a NUL in it.
    """
    if display_name is not None and (
        len(display_name) > DEVICE_NAME_CHARS_MAX or "\0" in display_name
    ):
        raise InvalidParam(f"A device's name may have {DEVICE_NAME_CHARS_MAX} characters, no NUL.")
    if await devices.mark_device_name(services.db, requester.user_id, device_id, display_name):
        return False
    if requester.appservice_id is None:
        raise NotFound("You have no such device.")
    sessions.check_device(sessions.ClientDevice(device_id))
    now_ms = services.clock.now_ms()
    await sessions.use_device(services.db, requester.user_id, device_id, display_name, now_ms, "")
    return True


async def delete_devices(
    services: Services,
    requester: Requester,
    device_ids: Sequence[str],
    body: Mapping[str, object],
    auth: object,
) -> None:
    """Delete devices of the requester's, with their sessions. Those that are gone are no error.

    Application services need not prove anything more: their users have no passwords.
    Spec: client-server-api#post_matrixclientv3delete_devices
    Spec: application-service-api#device-management

    Raises:
        UserInteractiveAuthRequired, Forbidden: see `authorize`.
    """
    request = {**body, "devices": list(device_ids)}
    operation = Operation("delete devices", [(PASSWORD,)], requester.user_id, request)
    if requester.appservice_id is None:
        await authorize(services, operation, auth)
    await devices.delete_devices(services.db, requester.user_id, device_ids)
