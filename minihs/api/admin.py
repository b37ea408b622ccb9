"""What administrators and their tools may do, on the paths that such tools know."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from minihs.api.client.registration import session_answer
from minihs.base.errors import Forbidden
from minihs.services.accounts import admin, deactivation, registration_tokens
from minihs.services.accounts.admin import VouchedRegistration
from minihs.services.accounts.sessions import ClientDevice

if TYPE_CHECKING:
    from minihs.api.requests import Request
    from minihs.services.accounts.registration_tokens import RegistrationToken


class SharedSecretRegistration(msgspec.Struct):
    """Body of POST /_synapse/admin/v1/register."""

    nonce: str
    username: str
    password: str
    mac: str
    admin: bool = False
    user_type: str | None = None
    displayname: str | None = None
    inhibit_login: bool = False


class Deactivation(msgspec.Struct):
    """Body of POST /_synapse/admin/v1/deactivate/{userId}."""

    erase: bool = False


class NewRegistrationToken(msgspec.Struct):
    """Body of POST /_synapse/admin/v1/registration_tokens/new."""

    token: str | None = None
    length: int = registration_tokens.TOKEN_LENGTH
    uses_allowed: int | None = None
    expiry_time: int | None = None


class RegistrationTokenChange(msgspec.Struct):
    """Body of PUT /_synapse/admin/v1/registration_tokens/{token}; null takes a limit away."""

    uses_allowed: int | msgspec.UnsetType | None = msgspec.UNSET
    expiry_time: int | msgspec.UnsetType | None = msgspec.UNSET


async def get_registration_nonce(request: Request) -> object:
    """GET /_synapse/admin/v1/register."""
    return {"nonce": await admin.make_nonce(request.services)}


async def register_with_shared_secret(request: Request) -> object:
    """POST /_synapse/admin/v1/register."""
    body = await request.json(SharedSecretRegistration)
    wish = VouchedRegistration(
        body.nonce,
        body.username,
        body.password,
        body.mac,
        body.admin,
        body.user_type,
        body.displayname,
    )
    device = None if body.inhibit_login else ClientDevice(ip=request.ip)
    user_id, session = await admin.register_with_secret(request.services, wish, device)
    return {**session_answer(user_id, session), "home_server": request.services.server_name}


async def get_deactivation(request: Request) -> object:
    """GET /_synapse/admin/v1/deactivate/{userId}: ours, how far a deactivation has come."""
    _require_admin(request)
    return await deactivation.deactivation_progress(request.services, request.path["userId"])


async def deactivate_account(request: Request) -> object:
    """POST /_synapse/admin/v1/deactivate/{userId}."""
    _require_admin(request)
    body = await request.json(Deactivation)
    await deactivation.deactivate_by_admin(
        request.services, request.path["userId"], erase=body.erase
    )
    return {"id_server_unbind_result": "success"}


async def get_registration_tokens(request: Request) -> object:
    """GET /_synapse/admin/v1/registration_tokens: all; with `valid` those that are, or are not."""
    _require_admin(request)
    valid = None if request.query("valid") is None else request.query_flag("valid")
    found = await registration_tokens.list_tokens(request.services, valid=valid)
    return {"registration_tokens": [_shown(token) for token in found]}


async def create_registration_token(request: Request) -> object:
    """POST /_synapse/admin/v1/registration_tokens/new."""
    _require_admin(request)
    body = await request.json(NewRegistrationToken)
    made = await registration_tokens.make_token(
        request.services,
        body.token,
        length=body.length,
        uses_allowed=body.uses_allowed,
        expires_ms=body.expiry_time,
    )
    return _shown(made)


async def get_registration_token(request: Request) -> object:
    """GET /_synapse/admin/v1/registration_tokens/{token}."""
    _require_admin(request)
    return _shown(await registration_tokens.get_token(request.services, request.path["token"]))


async def update_registration_token(request: Request) -> object:
    """PUT /_synapse/admin/v1/registration_tokens/{token}."""
    _require_admin(request)
    body = await request.json(RegistrationTokenChange)
    uses, end = body.uses_allowed, body.expiry_time
    changed = await registration_tokens.change_token(
        request.services,
        request.path["token"],
        uses_allowed=None if isinstance(uses, msgspec.UnsetType) else (uses,),
        expires_ms=None if isinstance(end, msgspec.UnsetType) else (end,),
    )
    return _shown(changed)


async def delete_registration_token(request: Request) -> object:
    """DELETE /_synapse/admin/v1/registration_tokens/{token}."""
    _require_admin(request)
    await registration_tokens.delete_token(request.services, request.path["token"])
    return {}


def _shown(token: RegistrationToken) -> dict[str, object]:
    """Return a token as tools know it. None is ever pending: a use is counted when it is done."""
    return {
        "token": token.token,
        "uses_allowed": token.uses_allowed,
        "pending": 0,
        "completed": token.completed,
        "expiry_time": token.expires_ms,
    }


def _require_admin(request: Request) -> None:
    if not request.requester.admin:
        raise Forbidden("Only administrators may do this.")
