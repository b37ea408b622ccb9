"""What administrators and their tools may do, on the paths that such tools know."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from minihs.api.client.registration import session_answer
from minihs.base.errors import Forbidden
from minihs.services.accounts import admin, deactivation
from minihs.services.accounts.admin import VouchedRegistration
from minihs.services.accounts.sessions import ClientDevice

if TYPE_CHECKING:
    from minihs.api.requests import Request


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


def _require_admin(request: Request) -> None:
    if not request.requester.admin:
        raise Forbidden("Only administrators may do this.")
