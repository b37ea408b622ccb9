"""The directory of published rooms.

Spec: client-server-api#published-room-directory
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.base.errors import Forbidden, InvalidParam, NotFound
from minihs.base.limits import PAGE_LIMIT_MAX
from minihs.protocol.identifiers import parse_server_name
from minihs.protocol.state_keys import (
    AVATAR,
    CREATE,
    GUEST_ACCESS,
    HISTORY_VISIBILITY,
    JOIN_RULES,
    NAME,
    TOPIC,
)
from minihs.remote.transport import RemoteError
from minihs.services.rooms.candidates import refusal_of
from minihs.services.rooms.room_events import CANONICAL_ALIAS
from minihs.services.rooms.standing import load_known_room, standing_of, text_of
from minihs.storage import directory
from minihs.storage.state_reads import load_entries

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minihs.protocol.events import Event
    from minihs.protocol.identifiers import RoomId, StateKey, UserId
    from minihs.services.context import Services
    from minihs.storage.directory import PublishedRoom


ROOMS_AT_ONCE = 200
_TOKEN = re.compile(r"([fb])([0-9]{1,18})_(.*)", re.DOTALL)

# What the directory tells of a room.
LISTED_KEYS: tuple[StateKey, ...] = (
    CREATE,
    NAME,
    TOPIC,
    AVATAR,
    (CANONICAL_ALIAS, ""),
    JOIN_RULES,
    HISTORY_VISIBILITY,
    GUEST_ACCESS,
)


@dataclass(frozen=True, slots=True)
class DirectoryQuery:
    """Which rooms of the directory are asked for.

    `search_term` is looked for in name, topic and canonical alias; `room_types` (None: all) may
    list None for rooms without a type. `network`, `all_networks`: see `list_published_rooms`.
    """

    limit: int | None = None
    since: str | None = None
    search_term: str = ""
    room_types: Sequence[str | None] | None = None
    network: str | None = None
    all_networks: bool = False


async def get_visibility(services: Services, room_id: str) -> str:
    """Return whether a room is `public` or `private`: in the directory, or not.

    Raises:
        NotFound: this server does not know the room.
    """
    published = await directory.fetch_published(services.db, room_id)
    if published is None:
        raise NotFound("Room not found.")
    return "public" if published else "private"


async def set_visibility(
    services: Services, user_id: UserId, room_id: str, *, public: bool, admin: bool
) -> None:
    """Put a room into the directory, or take it out: for those who may give it its alias.

    Spec: client-server-api#put_matrixclientv3directorylistroomroomid

    Raises:
        NotFound: this server does not know the room.
        Forbidden: the user may not.
    """
    head = await load_known_room(services, room_id)
    standing = await standing_of(services, head, user_id)
    if not (admin or standing.may_send(CANONICAL_ALIAS, is_state=True)):
        raise Forbidden("You may not change whether the room is in the directory.")
    await directory.update_published(services.db, room_id, published=public)


async def list_public_rooms(services: Services, query: DirectoryQuery) -> dict[str, object]:
    """Return a page of the directory, those rooms first that have most members.

    Pages are cut by member count and room id, so rooms that come or go do not shift them.
    Spec: client-server-api#post_matrixclientv3publicrooms

    Raises:
        InvalidParam: `since` is no token of ours, or `limit` is not positive.
    """
    limit = PAGE_LIMIT_MAX if query.limit is None else min(query.limit, PAGE_LIMIT_MAX)
    if limit < 1:
        raise InvalidParam("limit must be positive.")
    rooms = await directory.list_published_rooms(
        services.db, query.network, all_networks=query.all_networks
    )
    total = len(rooms)
    backwards, edge = _read_token(query.since)
    if edge is not None:
        rooms = [
            room for room in rooms if (_place(room) < edge if backwards else _place(room) > edge)
        ]
    if backwards:
        rooms.reverse()
    page: list[tuple[PublishedRoom, dict[str, object]]] = []
    for start in range(0, len(rooms), ROOMS_AT_ONCE):
        for room, entry in await _describe(services, rooms[start : start + ROOMS_AT_ONCE]):
            if _is_wanted(entry, query):
                page.append((room, entry))
        if len(page) > limit:
            break
    more = len(page) > limit
    del page[limit:]
    if backwards:
        page.reverse()
    answer: dict[str, object] = {
        "chunk": [entry for _, entry in page],
        "total_room_count_estimate": total,
    }
    if page and (more or backwards):
        answer["next_batch"] = _token("f", page[-1][0])
    if page and (more if backwards else edge is not None):
        answer["prev_batch"] = _token("b", page[0][0])
    return answer


async def list_public_rooms_of(
    services: Services, server: str, search: Mapping[str, object]
) -> dict[str, object]:
    """Return a page of another server's directory. `search` is the body of the client's request.

    Spec: server-server-api#published-room-directory

    Raises:
        InvalidParam: that is no server name.
        NotFound, MatrixError: the server does not answer, or refuses.
    """
    if parse_server_name(server) is None:
        raise InvalidParam("That is not a server name.")
    answer = await services.remote.get_public_rooms(server, search)
    if isinstance(answer, RemoteError):
        raise refusal_of(answer)
    return answer


async def _describe(
    services: Services, rooms: Sequence[PublishedRoom]
) -> list[tuple[PublishedRoom, dict[str, object]]]:
    """Return what the directory says of each of some rooms, from their current states."""
    states = await load_listed_state(services, rooms, LISTED_KEYS)
    return [(room, listed_entry(room, states[room.room_id])) for room in rooms]


async def load_listed_state(
    services: Services, rooms: Sequence[PublishedRoom], keys: Sequence[StateKey]
) -> dict[RoomId, dict[StateKey, Event]]:
    """Return what holds the keys of each room's current state, without what is redacted."""
    states = await load_entries(
        services.states, services.db, [room.state_id for room in rooms], keys
    )
    wanted = [event_id for entries in states.values() for event_id in entries.values()]
    events = await services.events.get_many(wanted)
    return {
        room.room_id: {
            key: events[event_id].event
            for key, event_id in states.get(room.state_id, {}).items()
            if event_id in events and events[event_id].redacted_by is None
        }
        for room in rooms
    }


def listed_entry(room: PublishedRoom, state: Mapping[StateKey, Event]) -> dict[str, object]:
    """Return a room of the directory as clients see it."""

    def text(event_type: str, key: str) -> str | None:
        return text_of(state.get((event_type, "")), key) or None

    entry: dict[str, object] = {
        "room_id": room.room_id,
        "num_joined_members": room.joined_count,
        "world_readable": text("m.room.history_visibility", "history_visibility")
        == "world_readable",
        "guest_can_join": text("m.room.guest_access", "guest_access") == "can_join",
        "join_rule": text("m.room.join_rules", "join_rule") or "invite",
    }
    optional = {
        "name": text("m.room.name", "name"),
        "topic": text("m.room.topic", "topic"),
        "canonical_alias": text(CANONICAL_ALIAS, "alias"),
        "avatar_url": text("m.room.avatar", "url"),
        "room_type": text("m.room.create", "type"),
    }
    return entry | {key: value for key, value in optional.items() if value is not None}


def _is_wanted(entry: Mapping[str, object], query: DirectoryQuery) -> bool:
    if query.room_types is not None and entry.get("room_type") not in query.room_types:
        return False
    term = query.search_term.casefold()
    return not term or any(
        term in str(entry.get(key, "")).casefold() for key in ("name", "topic", "canonical_alias")
    )


def _place(room: PublishedRoom) -> tuple[int, str]:
    """Return what the directory is ordered by."""
    return -room.joined_count, room.room_id


def _token(direction: str, room: PublishedRoom) -> str:
    return f"{direction}{room.joined_count}_{room.room_id}"


def _read_token(token: str | None) -> tuple[bool, tuple[int, str] | None]:
    """Return whether a page goes backwards, and the place that it begins after (None: anywhere)."""
    if not token:
        return False, None
    found = _TOKEN.fullmatch(token)
    if found is None:
        raise InvalidParam("This is not a token of the room directory.")
    return found[1] == "b", (-int(found[2]), found[3])
