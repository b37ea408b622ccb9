"""One's own account: who am I, another password, the end of it. Spec: client-server-api#login."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from minihs.services.accounts import deactivation, password_change

if TYPE_CHECKING:
    from minihs.api.requests import Request


class PasswordChange(msgspec.Struct):
    """Body of POST /account/password, without `auth`."""

    new_password: str | None = None
    logout_devices: bool = True


class Deactivation(msgspec.Struct):
    """Body of POST /account/deactivate, without `auth`."""

    erase: bool = False


async def get_token_owner(request: Request) -> object:
    """GET /_matrix/client/v3/account/whoami.

    Spec: client-server-api#get_matrixclientv3accountwhoami
    """
    requester = request.requester
    answer: dict[str, object] = {"user_id": requester.user_id}
    if requester.device_id:
        answer["device_id"] = requester.device_id
    if requester.guest:
        answer["is_guest"] = True
    return answer


async def change_password(request: Request) -> object:
    """POST /_matrix/client/v3/account/password.

    Spec: client-server-api#post_matrixclientv3accountpassword
    """
    change, body, auth = await request.json_and_auth(PasswordChange)
    await password_change.change_password(
        request.services,
        request.requester,
        body,
        auth,
        change.new_password,
        log_out_others=change.logout_devices,
    )
    return {}


async def deactivate_account(request: Request) -> object:
    """POST /_matrix/client/v3/account/deactivate.

    Spec: client-server-api#post_matrixclientv3accountdeactivate
    """
    wish, body, auth = await request.json_and_auth(Deactivation)
    await deactivation.deactivate_own_account(
        request.services, request.requester, body, auth, erase=wish.erase
    )
    return {"id_server_unbind_result": "success"}  # There is no third-party identifier to unbind.


async def get_account_3pids(request: Request) -> object:
    """GET /_matrix/client/v3/account/3pid: always empty, as none can be added.

    Spec: client-server-api#get_matrixclientv3account3pid
    """
    del request
    return {"threepids": []}
