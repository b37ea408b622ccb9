"""Spaces, as other servers ask for them: a room, and those rooms below it that they may look into.

Spec: server-server-api#spaces
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.base.errors import NotFound
from minihs.protocol.spaces import anybody_may_ask, rooms_let_in
from minihs.services.rooms.summaries import chosen, load_summaries
from minihs.storage import membership as memberships

if TYPE_CHECKING:
    from minihs.protocol.identifiers import RoomId, ServerName
    from minihs.services.context import Services
    from minihs.services.rooms.summaries import Json, Summary


async def get_space_hierarchy(
    services: Services, origin: ServerName, room_id: RoomId, *, suggested_only: bool
) -> Json:
    """Return what a room is, with its children; and of those what can be told to a server.

    Children of which this server knows nothing are in neither list.

    Raises:
        NotFound: there is no such room here, or the other server may not look into it.

    Spec: server-server-api#get_matrixfederationv1hierarchyroomid
    """
    room = (await load_summaries(services, [room_id])).get(room_id)
    if room is None or not await _may_look(services, origin, room):
        raise NotFound("Unknown room.")
    links = chosen(room.links, suggested_only=suggested_only)
    known = await load_summaries(services, [link.child for link in links])
    told: list[Json] = []
    inaccessible: list[str] = []
    for child in (known[link.child] for link in links if link.child in known):
        if await _may_look(services, origin, child):
            told.append(child.json)
        else:
            inaccessible.append(child.room_id)
    return {
        "room": room.with_links(suggested_only=suggested_only),
        "children": told,
        "inaccessible_children": inaccessible,
    }


async def _may_look(services: Services, origin: ServerName, room: Summary) -> bool:
    """Return whether users of a server may join a room, or read it.

    Spec: server-server-api#get_matrixfederationv1hierarchyroomid
    """
    if room.json["world_readable"] is True or anybody_may_ask(room.json):
        return True
    if await memberships.has_members_of_server(
        services.db, room.room_id, origin, ("join", "invite")
    ):
        return True
    for other in rooms_let_in(room.json):
        if await memberships.has_members_of_server(services.db, other, origin):
            return True
    return False
