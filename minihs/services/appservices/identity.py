"""Acting as somebody: requests that carry an application service's token.

Spec: application-service-api#identity-assertion
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from minihs.base.errors import (
    Exclusive,
    Forbidden,
    MatrixError,
    MissingParam,
    MissingToken,
    UnknownToken,
    UserDeactivated,
    UserInUse,
)
from minihs.protocol import canonical_json
from minihs.protocol.identifiers import localpart_of
from minihs.services.accounts import credentials, sessions
from minihs.services.accounts.authentication import Requester
from minihs.services.accounts.registration import choose_user_id
from minihs.storage import accounts, profiles

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minihs.protocol.identifiers import UserId
    from minihs.services.accounts.sessions import ClientDevice, Session
    from minihs.services.appservices.registration import Registration
    from minihs.services.context import Services


class UnknownDevice(MatrixError):
    """The device is not one of the user's."""

    errcode = "M_UNKNOWN_DEVICE"


async def act_as(
    services: Services, service: Registration, user_id: str | None, device_id: str | None
) -> Requester:
    """Return who an application service acts as: a user of its own, or else its sender.

    Raises:
        Forbidden: that is not one of its users, or there is no such user.
        UnknownDevice: the user has no such device.

    Spec: application-service-api#identity-assertion
    """
    user_id = user_id or service.sender
    if service not in services.appservices.of_user(user_id):
        raise Forbidden(f"The application service has no user {user_id}.")
    mask = await services.appservices.masks.load((user_id, device_id or ""))
    if mask is None:
        raise Forbidden(f"The application service has not registered {user_id}.")
    if mask.deactivated:
        raise Forbidden(f"{user_id} has been deactivated.")
    if device_id and mask.device_nid is None:
        raise UnknownDevice(f"{user_id} has no such device.")
    return Requester(
        user_id,  # type: ignore[arg-type]  # of an account
        device_id or "",
        mask.device_nid or _session_of(service, user_id),
        mask.admin,
        mask.guest,
        service.id,
        mask.position,
        rate_limited=service.rate_limited and user_id != service.sender,
    )


def _session_of(service: Registration, user_id: str) -> int:
    """Return what stands for a device where there is none, as that by which requests are known.

    It is no number of any device: those are positive.
    """
    digest = hashlib.sha256(f"{service.id}\0{user_id}".encode()).digest()
    return -1 - (int.from_bytes(digest[:8], "big") >> 1)


def required_service(services: Services, token: str | None) -> Registration:
    """Return the application service that a token belongs to.

    Raises:
        MissingToken, UnknownToken: it is none.
    """
    if token is None:
        raise MissingToken("An application service says who it is by its token.")
    service = services.appservices.of_token(token)
    if service is None:
        raise UnknownToken("This is no application service's token.", soft_logout=False)
    return service


async def register(
    services: Services, service: Registration, username: str | None, device: ClientDevice | None
) -> tuple[UserId, Session | None]:
    """Return a user whom a service has just made, and a session of theirs unless `device` is None.

    They are called as their localpart until the service names them: libraries of bridges ask for
    the name before they change it, and give up on 404.

    Raises:
        MissingParam: no name is given.
        Exclusive: the name is not in one of the service's namespaces, or reserved by another.
        InvalidUsername, UserInUse: the name cannot be had.

    Spec: application-service-api#server-admin-style-permissions
    """
    if username is None:
        raise MissingParam("username is missing.")
    if device is not None:
        sessions.check_device(device)
    user_id = await choose_user_id(services, username)
    services.appservices.check_user(user_id, service.id)
    now_ms = services.clock.now_ms()
    async with services.db.transaction() as tx:
        if not await accounts.insert_account(tx, user_id, None, now_ms, appservice_id=service.id):
            raise UserInUse("This user name is taken.")
        name_json = canonical_json.encode(localpart_of(user_id)).decode()
        await profiles.upsert_profile_field(tx, user_id, "displayname", name_json)
        session = None
        if device is not None:
            session = await sessions.begin_session(services, tx, user_id, device)
    return user_id, session


async def log_in(
    services: Services, service: Registration, fields: Mapping[str, object], device: ClientDevice
) -> tuple[UserId, Session]:
    """Return the user whom `fields` identify, one of the service's, and a new session of theirs.

    Raises:
        Exclusive: it is not a user of the service's.
        Forbidden, UserDeactivated: there is no such user, or no longer.

    Spec: application-service-api#server-admin-style-permissions
    """
    sessions.check_device(device)
    user_id = credentials.claimed_user(services, fields)
    if user_id is None or not service.has_user(user_id):
        raise Exclusive("This user is in no namespace of the application service.")
    async with services.db.transaction() as tx:
        await accounts.lock_account(tx, user_id)
        account = await accounts.fetch_account(tx, user_id)
        if account is None:
            raise Forbidden("There is no such user.")
        if account.deactivated:
            raise UserDeactivated("This account has been deactivated.")
        return user_id, await sessions.begin_session(services, tx, user_id, device)
