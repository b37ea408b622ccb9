"""Login, refresh and logout. Spec: client-server-api#login."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from minihs.api.client.registration import APPLICATION_SERVICE, session_answer
from minihs.api.client.well_known import client_information
from minihs.base.errors import BadJson, MatrixError, MissingParam
from minihs.services.accounts import login as logins
from minihs.services.accounts import sessions
from minihs.services.accounts.sessions import ClientDevice
from minihs.services.appservices import identity

if TYPE_CHECKING:
    from minihs.api.requests import Request


class Login(msgspec.Struct):
    """Body of POST /login, but for who logs in."""

    type: str
    password: str | None = None
    device_id: str | None = None
    initial_device_display_name: str | None = None
    refresh_token: bool | None = None


class Refresh(msgspec.Struct):
    """Body of POST /refresh."""

    refresh_token: str


async def get_login_flows(request: Request) -> object:
    """GET /_matrix/client/v3/login.

    Spec: client-server-api#get_matrixclientv3login
    """
    types = ["m.login.password"]
    if request.services.appservices:
        types.append(APPLICATION_SERVICE)
    return {"flows": [{"type": name} for name in types]}


async def login(request: Request) -> object:
    """POST /_matrix/client/v3/login.

    Spec: client-server-api#post_matrixclientv3login
    """
    fields = await request.json_object()
    try:
        body = msgspec.convert(fields, Login)
    except msgspec.ValidationError as error:
        raise BadJson(str(error)) from None
    device = ClientDevice(
        body.device_id, body.initial_device_display_name, body.refresh_token is True, request.ip
    )
    if body.type == APPLICATION_SERVICE:
        service = identity.required_service(request.services, request.access_token)
        user_id, session = await identity.log_in(request.services, service, fields, device)
    elif body.type != "m.login.password":
        raise MatrixError("This server knows no such login type.")
    elif body.password is None:
        raise MissingParam("password is missing.")
    else:
        user_id, session = await logins.log_in_with_password(
            request.services, fields, body.password, device
        )
    answer = session_answer(user_id, session)
    well_known = client_information(request.services.config)
    if well_known is not None:
        answer["well_known"] = well_known
    return answer


async def refresh(request: Request) -> object:
    """POST /_matrix/client/v3/refresh.

    Spec: client-server-api#post_matrixclientv3refresh
    """
    body = await request.json(Refresh)
    access_token, refresh_token, expires_in_ms = await sessions.refresh_session(
        request.services, body.refresh_token
    )
    return {
        "access_token": access_token,
        "refresh_token": refresh_token,
        "expires_in_ms": expires_in_ms,
    }


async def logout(request: Request) -> object:
    """POST /_matrix/client/v3/logout.

    Spec: client-server-api#post_matrixclientv3logout
    """
    await sessions.log_out(request.services, request.requester)
    return {}


async def logout_all(request: Request) -> object:
    """POST /_matrix/client/v3/logout/all.

    Spec: client-server-api#post_matrixclientv3logoutall
    """
    await sessions.log_out_everywhere(request.services, request.requester)
    return {}
