"""Joining a restricted room: who may, and who vouches for them.

Spec: client-server-api#restricted-rooms, rooms/v8#authorisation-rules
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.base.errors import Forbidden, UnableToAuthoriseJoin, UnableToGrantJoin
from minihs.protocol.identifiers import parse_room_id
from minihs.protocol.power_levels import PowerLevels
from minihs.protocol.state_keys import CREATE, JOIN_RULES, POWER_LEVELS
from minihs.services.rooms.standing import current_events
from minihs.storage.membership import is_joined_to_any, list_rooms_with_us

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minihs.services.context import Services
    from minihs.services.rooms.heads import RoomHead


async def find_authorising_user(services: Services, head: RoomHead, user_id: str) -> str | None:
    """Return a local member who vouches for a join; None where the join rule asks for nobody.

    Asked of users who are neither in the room nor invited to it.

    Raises:
        Forbidden: the user meets no condition of the room.
        UnableToAuthoriseJoin: nor any that can be told from here; it may be that they meet others.
        UnableToGrantJoin: nobody here may invite.

    Spec: server-server-api#restricted-rooms
    """
    state = await current_events(services, head, [CREATE, POWER_LEVELS, JOIN_RULES])
    rules = state.get(JOIN_RULES)
    rule = None if rules is None else rules.content.get("join_rule")
    version = head.room_version
    if rules is None or not (
        (rule == "restricted" and version.knows_restricted_joins)
        or (rule == "knock_restricted" and version.knows_knock_restricted)
    ):
        return None
    allowed = allowed_rooms(rules.content)
    if not allowed or not await is_joined_to_any(services.db, user_id, allowed):
        # Of our own users we know every room that they are in.
        if not services.is_local(user_id) and (
            set(allowed) - await list_rooms_with_us(services.db, allowed)
        ):
            raise UnableToAuthoriseJoin("This server is not in all rooms whose members may join.")
        raise Forbidden("You are in none of the rooms whose members may join.")
    levels = PowerLevels.of(state.get(POWER_LEVELS), state.get(CREATE), version)
    return _local_inviter(head, levels)


def allowed_rooms(join_rules: Mapping[str, object]) -> list[str]:
    """Return the rooms whose members may join; what is malformed allows nobody."""
    allow = join_rules.get("allow")
    rooms: list[str] = []
    for condition in allow if isinstance(allow, list) else ():
        match condition:
            case {"type": "m.room_membership", "room_id": named}:
                room_id = parse_room_id(named)
                if room_id is not None:
                    rooms.append(room_id)
            case _:
                pass
    return rooms


def _local_inviter(head: RoomHead, levels: PowerLevels) -> str:
    """Return a local member who may invite: those with a level of their own come first."""
    named = (*levels.creators, *levels.section("users"))
    for user_id in (*named, *head.local_members):
        if user_id in head.local_members and levels.user_level(user_id) >= levels.invite:
            return user_id
    raise UnableToGrantJoin("Nobody of this server may let you into the room.")
