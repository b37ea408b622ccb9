"""Spaces, as other servers ask for them: a room, and those rooms below it that they may look into.

Spec: server-server-api#spaces
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.base.errors import NotFound
from minihs.protocol.client_format import stripped_state
from minihs.protocol.history_visibility import HistoryVisibility, history_visibility
from minihs.protocol.identifiers import parse_room_id
from minihs.services.rooms.directory import describe_rooms
from minihs.services.rooms.heads import load_head
from minihs.services.rooms.restricted_joins import JOIN_RULES, allowed_rooms
from minihs.services.rooms.standing import current_events
from minihs.storage import membership as memberships

if TYPE_CHECKING:
    from minihs.protocol.events import Event
    from minihs.protocol.identifiers import RoomId, ServerName, StateKey
    from minihs.services.context import Services
    from minihs.services.rooms.heads import RoomHead

CREATE: StateKey = ("m.room.create", "")
ENCRYPTION: StateKey = ("m.room.encryption", "")
VISIBILITY: StateKey = ("m.room.history_visibility", "")
CHILDREN_MAX = 1_000
OPEN_TO_ALL = ("public", "knock", "knock_restricted")
Json = dict[str, object]


async def get_space_hierarchy(
    services: Services, origin: ServerName, room_id: RoomId, *, suggested_only: bool
) -> Json:
    """Return what a room is, with its children; and of those what can be told to a server.

    Children of which this server knows nothing are in neither list.

    Raises:
        NotFound: there is no such room here, or the other server may not look into it.

    Spec: server-server-api#get_matrixfederationv1hierarchyroomid
    """
    head = await _open(services, room_id)
    room = None if head is None else await _describe(services, origin, head)
    if head is None or room is None:
        raise NotFound("Unknown room.")
    links = await _children(services, head, suggested_only=suggested_only)
    told: list[Json] = []
    inaccessible: list[str] = []
    for link in links:
        child_id = parse_room_id(link.state_key)
        child = None if child_id is None else await _open(services, child_id)
        if child is None:
            continue
        described = await _describe(services, origin, child)
        if described is None:
            inaccessible.append(child.room_id)
        else:
            told.append(described)
    children_state = [
        {**stripped_state(link), "origin_server_ts": link.origin_server_ts} for link in links
    ]
    return {
        "room": {**room, "children_state": children_state},
        "children": told,
        "inaccessible_children": inaccessible,
    }


async def _open(services: Services, room_id: RoomId) -> RoomHead | None:
    """Return the head of a room that somebody here is in."""
    head = await load_head(services, room_id)
    return head if head is not None and head.local_members else None


async def _children(services: Services, head: RoomHead, *, suggested_only: bool) -> list[Event]:
    """Return the links from a space to its children. Spec: client-server-api#mspacechild."""
    create = (await current_events(services, head, [CREATE])).get(CREATE)
    if create is None or create.content.get("type") != "m.space":
        return []
    keys = [key for key in head.state.entries if key[0] == "m.space.child"]
    links = (await current_events(services, head, keys)).values()
    return [
        link
        for link in links
        if isinstance(link.content.get("via"), list)
        and link.content["via"]
        and (not suggested_only or link.content.get("suggested") is True)
    ][:CHILDREN_MAX]


async def _describe(services: Services, origin: ServerName, head: RoomHead) -> Json | None:
    """Return what a server is told of a room; None where its users may neither join nor look.

    Spec: server-server-api#get_matrixfederationv1hierarchyroomid
    """
    state = await current_events(services, head, [JOIN_RULES, VISIBILITY, ENCRYPTION])
    rules, setting = state.get(JOIN_RULES), state.get(VISIBILITY)
    join_rule = "invite" if rules is None else rules.content.get("join_rule")
    allowed = allowed_rooms(rules.content) if rules is not None else []
    is_restricted = join_rule in ("restricted", "knock_restricted")
    visibility = history_visibility(None if setting is None else setting.content)
    may_look = (
        join_rule in OPEN_TO_ALL
        or visibility is HistoryVisibility.WORLD_READABLE
        or await memberships.has_members_of_server(
            services.db, head.room_id, origin, ("join", "invite")
        )
    )
    if not may_look and is_restricted:
        may_look = any(
            [
                await memberships.has_members_of_server(services.db, other, origin)
                for other in allowed
            ]
        )
    if not may_look:
        return None
    described = (await describe_rooms(services, [head.room_id]))[head.room_id]
    described["room_version"] = head.room_version.identifier
    encryption = state.get(ENCRYPTION)
    if encryption is not None and isinstance(encryption.content.get("algorithm"), str):
        described["encryption"] = encryption.content["algorithm"]
    if is_restricted:
        described["allowed_room_ids"] = allowed
    return described
