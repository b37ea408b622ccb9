"""Profiles. Spec: client-server-api#profiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.services.accounts import profile

if TYPE_CHECKING:
    from minihs.api.requests import Request


async def get_user_profile(request: Request) -> object:
    """GET /_matrix/client/v3/profile/{userId}.

    Spec: client-server-api#get_matrixclientv3profileuserid
    """
    return await profile.get_profile(request.services, request.path["userId"])


async def get_profile_field(request: Request) -> object:
    """GET /_matrix/client/v3/profile/{userId}/{keyName}.

    Spec: client-server-api#get_matrixclientv3profileuseridkeyname
    """
    field = request.path["keyName"]
    value = await profile.get_profile_field(request.services, request.path["userId"], field)
    return {field: value}


async def set_profile_field(request: Request) -> object:
    """PUT /_matrix/client/v3/profile/{userId}/{keyName}.

    Spec: client-server-api#put_matrixclientv3profileuseridkeyname
    """
    body = await request.json_object()
    await profile.set_profile_field(
        request.services, request.requester, request.path["userId"], request.path["keyName"], body
    )
    return {}


async def delete_profile_field(request: Request) -> object:
    """DELETE /_matrix/client/v3/profile/{userId}/{keyName}.

    Spec: client-server-api#delete_matrixclientv3profileuseridkeyname
    """
    await profile.delete_profile_field(
        request.services, request.requester, request.path["userId"], request.path["keyName"]
    )
    return {}
