"""Room aliases and the room directory. Spec: client-server-api#published-room-directory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from minihs.services.rooms import aliases, directory
from minihs.services.rooms.directory import DirectoryQuery

if TYPE_CHECKING:
    from minihs.api.requests import Request


class AliasTarget(msgspec.Struct):
    """Body of PUT /directory/room/{roomAlias}."""

    room_id: str


class Visibility(msgspec.Struct):
    """Body of PUT /directory/list/room/{roomId}."""

    visibility: Literal["public", "private"] = "public"


class RoomFilter(msgspec.Struct, omit_defaults=True):
    """`filter` of POST /publicRooms."""

    generic_search_term: str | None = None
    room_types: list[str | None] | None = None


class PublicRooms(msgspec.Struct):
    """Body of POST /publicRooms."""

    limit: int | None = None
    since: str | None = None
    filter: RoomFilter | None = None
    include_all_networks: bool | None = None
    third_party_instance_id: str | None = None


async def set_room_alias(request: Request) -> object:
    """PUT /_matrix/client/v3/directory/room/{roomAlias}.

    Spec: client-server-api#put_matrixclientv3directoryroomroomalias
    """
    body = await request.json(AliasTarget)
    requester = request.requester
    await aliases.set_alias(
        request.services,
        requester.user_id,
        request.path["roomAlias"],
        body.room_id,
        by_service=requester.appservice_id,
    )
    return {}


async def get_room_id_by_alias(request: Request) -> object:
    """GET /_matrix/client/v3/directory/room/{roomAlias}.

    Spec: client-server-api#get_matrixclientv3directoryroomroomalias
    """
    room_id, servers = await aliases.resolve_alias(request.services, request.path["roomAlias"])
    return {"room_id": room_id, "servers": servers}


async def delete_room_alias(request: Request) -> object:
    """DELETE /_matrix/client/v3/directory/room/{roomAlias}.

    Spec: client-server-api#delete_matrixclientv3directoryroomroomalias
    """
    requester = request.requester
    await aliases.delete_alias(
        request.services,
        requester.user_id,
        request.path["roomAlias"],
        admin=requester.admin,
        by_service=requester.appservice_id,
    )
    return {}


async def get_local_aliases(request: Request) -> object:
    """GET /_matrix/client/v3/rooms/{roomId}/aliases.

    Spec: client-server-api#get_matrixclientv3roomsroomidaliases
    """
    of_room = await aliases.list_local_aliases(
        request.services, request.requester.user_id, request.path["roomId"]
    )
    return {"aliases": of_room}


async def get_room_visibility_on_directory(request: Request) -> object:
    """GET /_matrix/client/v3/directory/list/room/{roomId}.

    Spec: client-server-api#get_matrixclientv3directorylistroomroomid
    """
    return {"visibility": await directory.get_visibility(request.services, request.path["roomId"])}


async def set_room_visibility_on_directory(request: Request) -> object:
    """PUT /_matrix/client/v3/directory/list/room/{roomId}.

    Spec: client-server-api#put_matrixclientv3directorylistroomroomid
    """
    body = await request.json(Visibility)
    requester = request.requester
    await directory.set_visibility(
        request.services,
        requester.user_id,
        request.path["roomId"],
        public=body.visibility == "public",
        admin=requester.admin,
    )
    return {}


async def get_public_rooms(request: Request) -> object:
    """GET /_matrix/client/v3/publicRooms.

    Spec: client-server-api#get_matrixclientv3publicrooms
    """
    limit = request.query_integer("limit", 0) if request.query("limit") is not None else None
    return await _list_public_rooms(request, PublicRooms(limit=limit, since=request.query("since")))


async def query_public_rooms(request: Request) -> object:
    """POST /_matrix/client/v3/publicRooms.

    Spec: client-server-api#post_matrixclientv3publicrooms
    """
    return await _list_public_rooms(request, await request.json(PublicRooms))


async def _list_public_rooms(request: Request, search: PublicRooms) -> object:
    """Return a page of the directory of the server that the query names, or else of ours."""
    server = request.query("server")
    if server is None or server == request.services.server_name:
        return await list_local_public_rooms(request, search)
    body = {name: value for name, value in msgspec.to_builtins(search).items() if value is not None}
    return await directory.list_public_rooms_of(request.services, server, body)


async def list_local_public_rooms(request: Request, search: PublicRooms) -> object:
    """Return a page of this server's directory, whoever asks."""
    all_networks = search.include_all_networks is True
    wanted = search.filter or RoomFilter()
    query = DirectoryQuery(
        limit=search.limit,
        since=search.since,
        search_term=wanted.generic_search_term or "",
        room_types=wanted.room_types,
        network=None if all_networks else search.third_party_instance_id,
        all_networks=all_networks,
    )
    return await directory.list_public_rooms(request.services, query)
