"""Registration. Spec: client-server-api#account-registration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from minihs.base.errors import InvalidParam
from minihs.services.accounts import registration
from minihs.services.accounts.sessions import ClientDevice
from minihs.services.appservices import identity

if TYPE_CHECKING:
    from minihs.api.requests import Request
    from minihs.protocol.identifiers import UserId
    from minihs.services.accounts.sessions import Session


APPLICATION_SERVICE = "m.login.application_service"


class Registration(msgspec.Struct):
    """Body of POST /register, without `auth`. `type` is given by application services only."""

    type: str | None = None
    username: str | None = None
    password: str | None = None
    device_id: str | None = None
    initial_device_display_name: str | None = None
    inhibit_login: bool | None = None
    refresh_token: bool | None = None


async def register(request: Request) -> object:
    """POST /_matrix/client/v3/register.

    Spec: client-server-api#post_matrixclientv3register
    """
    kind = request.query("kind") or "user"
    if kind not in ("user", "guest"):
        raise InvalidParam("kind must be user or guest.")
    body, _, auth = await request.json_and_auth(Registration)
    device = ClientDevice(
        body.device_id, body.initial_device_display_name, body.refresh_token is True, request.ip
    )
    session: Session | None
    if body.type == APPLICATION_SERVICE:
        user_id, session = await identity.register(
            request.services,
            identity.required_service(request.services, request.access_token),
            body.username,
            None if body.inhibit_login else device,
        )
        return session_answer(user_id, session)
    if kind == "guest":
        user_id, session = await registration.register_guest(request.services, device)
        return session_answer(user_id, session)
    user_id, session = await registration.register_user(
        request.services,
        body.username,
        body.password,
        auth,
        None if body.inhibit_login else device,
    )
    return session_answer(user_id, session)


async def check_username_availability(request: Request) -> object:
    """GET /_matrix/client/v3/register/available.

    Spec: client-server-api#get_matrixclientv3registeravailable
    """
    await registration.check_name_available(request.services, request.required_query("username"))
    return {"available": True}


async def registration_token_validity(request: Request) -> object:
    """GET /_matrix/client/v1/register/m.login.registration_token/validity.

    Spec: client-server-api#get_matrixclientv1registermloginregistration_tokenvalidity
    """
    token = request.required_query("token")
    return {"valid": await registration.is_registration_token_valid(request.services, token)}


def session_answer(user_id: UserId, session: Session | None) -> dict[str, object]:
    """Return what a registration or a login is answered."""
    answer: dict[str, object] = {"user_id": user_id}
    if session is not None:
        answer |= {"access_token": session.access_token, "device_id": session.device_id}
        if session.refresh_token is not None:
            answer["refresh_token"] = session.refresh_token
        if session.expires_in_ms is not None:
            answer["expires_in_ms"] = session.expires_in_ms
    return answer
