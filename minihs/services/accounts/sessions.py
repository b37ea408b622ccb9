"""Sessions: a device with its access token and, if the client can use one, a refresh token.

Spec: client-server-api#client-authentication
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.base.errors import InvalidParam, QuotaExceeded, UnknownToken
from minihs.base.limits import DEVICE_NAME_CHARS_MAX, DEVICES_OF_USER_MAX
from minihs.protocol.identifiers import IDENTIFIER_BYTES_MAX
from minihs.services.accounts.authentication import ACCESS_TOKEN_LIFETIME_MS, hash_token
from minihs.storage import devices, sessions

if TYPE_CHECKING:
    from minihs.protocol.identifiers import UserId
    from minihs.services.accounts.authentication import Requester
    from minihs.services.context import Services
    from minihs.storage.database import Queries, Transaction

TOKEN_LENGTH = 43  # letters and digits: 256 bits
DEVICE_ID_LENGTH = 10


@dataclass(frozen=True, slots=True)
class ClientDevice:
    """What a client says of the device that it logs in, and where it connects from."""

    device_id: str | None = None
    display_name: str | None = None
    refreshable: bool = False
    ip: str = ""


@dataclass(frozen=True, slots=True, repr=False)  # no repr: tokens belong in no log
class Session:
    """Tokens just issued. Those that cannot be refreshed do not expire."""

    access_token: str
    device_id: str
    refresh_token: str | None = None
    expires_in_ms: int | None = None


def check_device(device: ClientDevice) -> None:
    """Refuse a device ID that cannot be stored.

    Raises:
        InvalidParam: it is empty, too long, or has a NUL in it.
    """
    if device.device_id is not None:
        size = len(device.device_id.encode())
        if not 0 < size <= IDENTIFIER_BYTES_MAX or "\0" in device.device_id:
            raise InvalidParam("This device_id is empty, too long, or has a NUL in it.")


async def begin_session(
    services: Services, tx: Transaction, user_id: UserId, device: ClientDevice
) -> Session:
    """Log a device in; whoever was logged in with the same device ID is so no more.

    Raises:
        QuotaExceeded: the user has too many devices.

    Spec: client-server-api#relationship-between-access-tokens-and-devices
    """
    now_ms = services.clock.now_ms()
    device_id = device.device_id or services.randomness.letters(DEVICE_ID_LENGTH)
    name = device.display_name
    if name is not None:  # What is shown to people may be cut, rather than refuse them a login.
        name = name.replace("\0", "")[:DEVICE_NAME_CHARS_MAX]
    device_nid = await use_device(tx, user_id, device_id, name, now_ms, device.ip)
    await sessions.delete_tokens_of_device(tx, device_nid)
    access_token = _new_token(services)
    if not device.refreshable:
        await sessions.insert_access_token(tx, hash_token(access_token), device_nid, None)
        return Session(access_token, device_id)
    refresh_token = _new_token(services)
    expires_ms = now_ms + ACCESS_TOKEN_LIFETIME_MS
    await sessions.insert_access_token(tx, hash_token(access_token), device_nid, expires_ms)
    await sessions.insert_refresh_token(tx, hash_token(refresh_token), device_nid, now_ms)
    return Session(access_token, device_id, refresh_token, ACCESS_TOKEN_LIFETIME_MS)


async def use_device(
    queries: Queries, user_id: UserId, device_id: str, name: str | None, now_ms: int, ip: str
) -> int:
    """Return the surrogate key of a device, made if it is not there.

    Raises:
        QuotaExceeded: the user has too many.
    """
    device_nid = await devices.upsert_device(
        queries, user_id, device_id, name, now_ms, ip, DEVICES_OF_USER_MAX
    )
    if device_nid is None:
        raise QuotaExceeded("You have too many devices: log one out.")
    return device_nid


async def refresh_session(services: Services, refresh_token: str) -> tuple[str, str, int]:
    """Return the next access token, the next refresh token, and the lifetime of the first in ms.

    The old ones stay good until one of the new ones is used, as the answer may be lost on its way.

    Spec: client-server-api#refreshing-access-tokens

    Raises:
        UnknownToken: the refresh token is not known, or its successor has been used.
    """
    now_ms = services.clock.now_ms()
    old_hash = hash_token(refresh_token)
    next_access, next_refresh = _new_token(services), _new_token(services)
    async with services.db.transaction() as tx:
        device_nid = await sessions.use_refresh_token(tx, old_hash, hash_token(next_refresh))
        if device_nid is None:
            raise UnknownToken("Unrecognised refresh token.", soft_logout=False)
        expires_ms = now_ms + ACCESS_TOKEN_LIFETIME_MS
        await sessions.insert_refresh_token(tx, hash_token(next_refresh), device_nid, now_ms)
        await sessions.insert_access_token(
            tx, hash_token(next_access), device_nid, expires_ms, retires=old_hash
        )
    return next_access, next_refresh, ACCESS_TOKEN_LIFETIME_MS


async def log_out(services: Services, requester: Requester) -> None:
    """End the requester's session; the device goes with it."""
    await devices.delete_devices(services.db, requester.user_id, [requester.device_id])


async def log_out_everywhere(services: Services, requester: Requester) -> None:
    """End every session of the requester's user."""
    await devices.delete_devices_except(services.db, requester.user_id, None)


def _new_token(services: Services) -> str:
    return services.randomness.token(TOKEN_LENGTH)
