"""Rooms seen from outside: their summaries, and the rooms of a space."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.base.limits import SPACE_DEPTH_MAX, SPACE_PAGE_LIMIT_DEFAULT, SPACE_PAGE_LIMIT_MAX
from minihs.protocol.identifiers import RoomId
from minihs.services.rooms import spaces, summaries
from minihs.services.rooms.spaces import SpaceQuery

if TYPE_CHECKING:
    from minihs.api.requests import Request


async def get_space_hierarchy(request: Request) -> object:
    """GET /_matrix/client/v1/rooms/{roomId}/hierarchy.

    Spec: client-server-api#get_matrixclientv1roomsroomidhierarchy
    """
    query = SpaceQuery(
        limit=request.query_integer(
            "limit", SPACE_PAGE_LIMIT_DEFAULT, low=1, high=SPACE_PAGE_LIMIT_MAX
        ),
        suggested_only=(
            request.query_flag("suggested_only") if request.query("suggested_only") else None
        ),
        max_depth=(
            request.query_integer("max_depth", 0, high=SPACE_DEPTH_MAX)
            if request.query("max_depth")
            else None
        ),
        token=request.query("from"),
    )
    return await spaces.get_space_hierarchy(
        request.services, request.requester.user_id, RoomId(request.path["roomId"]), query
    )


async def get_room_summary(request: Request) -> object:
    """GET /_matrix/client/v1/room_summary/{roomIdOrAlias}.

    Spec: client-server-api#get_matrixclientv1room_summaryroomidoralias
    """
    requester = request.maybe_requester
    return await summaries.get_room_summary(
        request.services,
        None if requester is None else requester.user_id,
        request.path["roomIdOrAlias"],
        request.query_all("via"),
    )
