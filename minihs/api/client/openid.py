"""OpenID tokens. Spec: client-server-api#openid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.services.accounts import openid

if TYPE_CHECKING:
    from minihs.api.requests import Request


async def request_open_id_token(request: Request) -> object:
    """POST /_matrix/client/v3/user/{userId}/openid/request_token.

    Spec: client-server-api#post_matrixclientv3useruseridopenidrequest_token
    """
    await request.json_object()  # Nothing is in it yet.
    return openid.request_token(request.services, request.requester.user_id, request.path["userId"])
