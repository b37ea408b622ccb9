"""Questions that are not about a room's graph: aliases, profiles, the directory, spaces, devices.

Spec: server-server-api#querying-for-information, server-server-api#published-room-directory
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.api.client import directory as client_directory
from minihs.base.errors import InvalidParam, NotFound
from minihs.protocol.identifiers import parse_user_id
from minihs.services.accounts import openid, profile
from minihs.services.federation import hierarchy
from minihs.services.rooms import aliases

if TYPE_CHECKING:
    from minihs.api.requests import Request
    from minihs.protocol.identifiers import UserId


async def query_room_directory(request: Request) -> object:
    """GET /_matrix/federation/v1/query/directory.

    Spec: server-server-api#get_matrixfederationv1querydirectory
    """
    alias = request.required_query("room_alias")
    if not request.services.is_local(alias):
        raise NotFound("That alias is not of this server.")
    room_id, servers = await aliases.resolve_alias(request.services, alias)
    return {"room_id": room_id, "servers": servers}


async def query_profile(request: Request) -> object:
    """GET /_matrix/federation/v1/query/profile.

    Spec: server-server-api#get_matrixfederationv1queryprofile
    """
    user_id = _local_user(request, request.required_query("user_id"))
    fields = await profile.get_profile(request.services, user_id)
    field = request.query("field")
    if field is None:
        return fields
    return {field: fields[field]} if field in fields else {}


async def get_public_rooms(request: Request) -> object:
    """GET /_matrix/federation/v1/publicRooms.

    Spec: server-server-api#get_matrixfederationv1publicrooms
    """
    search = client_directory.PublicRooms(
        limit=request.query_integer("limit", 0) or None,  # 0: no limit
        since=request.query("since"),
        include_all_networks=request.query_flag("include_all_networks"),
        third_party_instance_id=request.query("third_party_instance_id") or None,
    )
    return await client_directory.list_local_public_rooms(request, search)


async def query_public_rooms(request: Request) -> object:
    """POST /_matrix/federation/v1/publicRooms.

    Spec: server-server-api#post_matrixfederationv1publicrooms
    """
    body = await request.json(client_directory.PublicRooms)
    return await client_directory.list_local_public_rooms(request, body)


async def get_space_hierarchy(request: Request) -> object:
    """GET /_matrix/federation/v1/hierarchy/{roomId}.

    Spec: server-server-api#get_matrixfederationv1hierarchyroomid
    """
    return await hierarchy.get_space_hierarchy(
        request.services,
        request.origin,
        request.room_id(),
        suggested_only=request.query_flag("suggested_only"),
    )


async def get_user_devices(request: Request) -> object:
    """GET /_matrix/federation/v1/user/devices/{userId}.

    Listed are devices with identity keys; no device has any here.

    Spec: server-server-api#get_matrixfederationv1userdevicesuserid
    """
    user_id = _local_user(request, request.path["userId"])
    await profile.get_profile(request.services, user_id)
    return {"user_id": user_id, "stream_id": 0, "devices": []}


async def query_user_encryption_keys(request: Request) -> object:
    """POST /_matrix/federation/v1/user/keys/query: no device has any.

    Spec: server-server-api#post_matrixfederationv1userkeysquery
    """
    await request.json_object()
    return {"device_keys": {}}


async def claim_user_encryption_keys(request: Request) -> object:
    """POST /_matrix/federation/v1/user/keys/claim: there are none to claim.

    Spec: server-server-api#post_matrixfederationv1userkeysclaim
    """
    await request.json_object()
    return {"one_time_keys": {}}


async def exchange_open_id_token(request: Request) -> object:
    """GET /_matrix/federation/v1/openid/userinfo: anybody may ask.

    Spec: server-server-api#get_matrixfederationv1openiduserinfo
    """
    return await openid.find_user(request.services, request.required_query("access_token"))


def _local_user(request: Request, text: str) -> UserId:
    user_id = parse_user_id(text)
    if user_id is None:
        raise InvalidParam("This is not a user id.")
    if not request.services.is_local(user_id):
        raise NotFound("That user is not of this server.")
    return user_id
