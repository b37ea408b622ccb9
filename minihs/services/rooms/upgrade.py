"""Replacing a room by one of another version.

The replacement is made whole, in one commit, before anything happens to the old room: whoever is
told of it finds it. What comes afterwards in the old room is one event each.

Spec: client-server-api#room-upgrades
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.base.errors import Forbidden, InvalidParam, UnsupportedRoomVersion
from minihs.protocol.canonical_json import INTEGER_MAX
from minihs.protocol.identifiers import parse_user_id
from minihs.protocol.power_levels import read_level
from minihs.protocol.room_versions import ROOM_VERSIONS
from minihs.protocol.state_keys import CREATE, POWER_LEVELS
from minihs.services.rooms.aliases import without_aliases
from minihs.services.rooms.create import RoomPlan, StateEvent, make_room
from minihs.services.rooms.profile import member_profile
from minihs.services.rooms.room_events import CANONICAL_ALIAS, aliases_of, set_room_state
from minihs.services.rooms.standing import load_known_room, standing_of
from minihs.services.rooms.state import load_state_events
from minihs.storage import directory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minihs.protocol.events import Event
    from minihs.protocol.identifiers import RoomId, StateKey, UserId
    from minihs.protocol.power_levels import PowerLevels
    from minihs.protocol.room_versions import RoomVersion
    from minihs.services.context import Services
    from minihs.services.rooms.create import Content

TOMBSTONE = "m.room.tombstone"
TOMBSTONE_LEVEL = 150  # Since v12. Spec: client-server-api#post_matrixclientv3createroom

# What passes to the replacement as it is; power levels, aliases and bans need a closer look.
TRANSFERRED = frozenset(
    {
        "m.room.server_acl",
        "m.room.encryption",
        "m.room.name",
        "m.room.avatar",
        "m.room.topic",
        "m.room.guest_access",
        "m.room.history_visibility",
        "m.room.join_rules",
    }
)


async def upgrade_room(
    services: Services,
    user_id: UserId,
    room_id: str,
    new_version: str,
    additional_creators: Sequence[str] | None,
) -> RoomId:
    """Replace a room; return the replacement.

    Spec: client-server-api#post_matrixclientv3roomsroomidupgrade

    Raises:
        UnsupportedRoomVersion: this server does not know the version.
        InvalidParam: `additional_creators` are not user ids.
        NotFound, Forbidden: there is no such room, or the user may not close it.
    """
    version = ROOM_VERSIONS.get(new_version)
    if version is None:
        raise UnsupportedRoomVersion(f"Room version {new_version} is not supported.")
    if any(parse_user_id(creator) is None for creator in additional_creators or ()):
        raise InvalidParam("additional_creators is a list of user ids.")
    head = await load_known_room(services, room_id)
    standing = await standing_of(services, head, user_id)
    if not standing.may_send(TOMBSTONE, is_state=True):
        raise Forbidden("You may not upgrade this room.")
    keys = [key for key in head.state.entries if _matters(key)]
    stored = await load_state_events(services, head.state, keys)
    state = {key: s.event for key, s in stored.items() if s.redacted_by is None}
    state[CREATE] = stored[CREATE].event
    creation = replacement_creation(
        state[CREATE], version, user_id, head.extremities[-1].event_id, additional_creators or ()
    )
    replacement = await make_room(
        services,
        RoomPlan(
            creator=user_id,
            room_version=version,
            creation_content=creation,
            events=replacement_events(state, version, user_id, creation, standing.levels),
            profile=await member_profile(services, user_id),
        ),
    )
    await _close(services, user_id, head.room_id, replacement, state)
    return replacement


def replacement_creation(
    create: Event,
    version: RoomVersion,
    user_id: str,
    last_event_id: str,
    additional_creators: Sequence[str],
) -> Content:
    """Return the content of the replacement's create event."""
    predecessor: Content = {"room_id": create.room_id}
    if not version.room_id_is_create_event_id:  # v1–v11; since v12 it may be omitted.
        predecessor["event_id"] = last_event_id
    content: Content = {"room_version": version.identifier, "predecessor": predecessor}
    content |= {key: create.content[key] for key in ("type", "m.federate") if key in create.content}
    if version.creator_is_in_content:  # v1–v10
        content["creator"] = user_id
    if version.creators_are_privileged and additional_creators:
        content["additional_creators"] = list(dict.fromkeys(additional_creators))
    return content


def replacement_events(
    state: Mapping[StateKey, Event],
    version: RoomVersion,
    user_id: str,
    creation: Mapping[str, object],
    levels: PowerLevels,
) -> list[StateEvent]:
    """Return the events of the replacement after its creator's join.

    Power levels come last: until then its creator may do everything, whatever power they will have.
    """
    is_space = creation.get("type") == "m.space"
    others = creation.get("additional_creators")
    creators = {user_id, *(others if isinstance(others, list) else ())}
    events: list[StateEvent] = []
    for (kind, key), event in state.items():
        content = dict(event.content)
        child = is_space and kind == "m.space.child" and bool(content)
        banned = kind == "m.room.member" and content.get("membership") == "ban"
        plain = not key and (kind in TRANSFERRED or kind == CANONICAL_ALIAS)
        if child or plain or (banned and key not in creators):
            events.append(StateEvent(kind, content, key))
    power_levels = replacement_levels(levels, version, creators)
    return [*events, StateEvent("m.room.power_levels", power_levels)]


def replacement_levels(levels: PowerLevels, version: RoomVersion, creators: set[str]) -> Content:
    """Return the power levels of the replacement: those of the old room, for other creators.

    Since v12 creators have no level, and closing the room again takes more than the power of an
    administrator. Creators of an old room of that kind get a level in one of the kind before.
    """
    content: Content = {}
    for name, value in levels.content.items():
        if isinstance(value, dict):
            read = {key: read_level(level, levels.room_version) for key, level in value.items()}
            content[name] = {key: level for key, level in read.items() if level is not None}
        elif (level := read_level(value, levels.room_version)) is not None:
            content[name] = level
    users, events = content.get("users"), content.get("events")
    users = dict(users) if isinstance(users, dict) else {}
    events = dict(events) if isinstance(events, dict) else {}
    if version.creators_are_privileged:
        users = {user_id: level for user_id, level in users.items() if user_id not in creators}
        events[TOMBSTONE] = max(events.get(TOMBSTONE, 0), TOMBSTONE_LEVEL)
    else:
        given = [100, *events.values(), *users.values()]
        if not levels.has_event or levels.room_version.creators_are_privileged:
            users |= dict.fromkeys(levels.creators, min(max(given), INTEGER_MAX))
    return content | {"users": users, "events": events}


async def _close(
    services: Services,
    user_id: UserId,
    room_id: RoomId,
    replacement: RoomId,
    state: Mapping[StateKey, Event],
) -> None:
    """Point from the old room to its replacement, and leave the old one quiet."""
    tombstone = {"body": "This room has been replaced", "replacement_room": replacement}
    await set_room_state(services, user_id, room_id, TOMBSTONE, "", tombstone)
    old_aliases: set[str] = set(await directory.list_aliases(services.db, room_id))
    await directory.move_to_replacement(services.db, room_id, replacement)
    alias_event = state.get((CANONICAL_ALIAS, ""))
    if alias_event is not None and not old_aliases.isdisjoint(aliases_of(alias_event)):
        rest = without_aliases(alias_event.content, old_aliases)
        await _set_if_allowed(services, user_id, room_id, CANONICAL_ALIAS, rest)
    levels = state.get(POWER_LEVELS)
    if levels is not None:
        default = read_level(levels.content.get("users_default", 0), levels.room_version) or 0
        quiet = max(50, default + 1)
        content = {
            **levels.content,
            "events_default": max(quiet, _level(levels, "events_default")),
            "invite": max(quiet, _level(levels, "invite")),
        }
        await _set_if_allowed(services, user_id, room_id, "m.room.power_levels", content)


async def _set_if_allowed(
    services: Services, user_id: UserId, room_id: RoomId, event_type: str, content: Content
) -> None:
    """Set an entry of the old room's state; the room is closed also where that is not allowed."""
    try:
        await set_room_state(services, user_id, room_id, event_type, "", content)
    except Forbidden:
        return


def _level(levels: Event, name: str) -> int:
    return read_level(levels.content.get(name), levels.room_version) or 0


def _matters(key: StateKey) -> bool:
    """Return whether an entry of the old room's state is looked at."""
    kind, state_key = key
    return (
        (not state_key and (kind in TRANSFERRED or key in (CREATE, POWER_LEVELS)))
        or key == (CANONICAL_ALIAS, "")
        or kind in ("m.room.member", "m.space.child")
    )
