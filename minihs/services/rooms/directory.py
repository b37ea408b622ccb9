"""Finding rooms: aliases of this server, and the directory of published rooms.

Spec: client-server-api#room-aliases, client-server-api#published-room-directory
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.base.errors import Forbidden, InvalidParam, MatrixError, NotFound, QuotaExceeded
from minihs.base.limits import ALIASES_OF_ROOM_MAX, PAGE_LIMIT_MAX
from minihs.protocol.identifiers import (
    parse_room_alias,
    parse_room_id,
    parse_server_name,
    server_name_of,
)
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
from minihs.services.rooms.heads import load_head
from minihs.services.rooms.room_events import CANONICAL_ALIAS, set_room_state
from minihs.services.rooms.standing import (
    current_events,
    load_known_room,
    require_joined,
    standing_of,
    text_of,
)
from minihs.storage import directory
from minihs.storage.state_reads import load_entries

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minihs.protocol.events import Event
    from minihs.protocol.identifiers import RoomAlias, RoomId, ServerName, StateKey, UserId
    from minihs.services.context import Services
    from minihs.storage.directory import PublishedRoom

logger = logging.getLogger(__name__)

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


# --- aliases ---------------------------------------------------------------------------------


async def find_room(
    services: Services, room_id_or_alias: str
) -> tuple[RoomId, Sequence[ServerName]]:
    """Return the room that an id or an alias names, and servers that an alias says are in it.

    Raises:
        InvalidParam: it is neither.
        NotFound: there is no such alias.
    """
    room_id = parse_room_id(room_id_or_alias)
    if room_id is not None:
        return room_id, ()
    return await resolve_alias(services, room_id_or_alias)


async def resolve_alias(services: Services, text: str) -> tuple[RoomId, list[ServerName]]:
    """Return the room that an alias points to, and servers to join it through, ours first.

    If it is not there an application service may make it.
    Spec: client-server-api#get_matrixclientv3directoryroomroomalias
    Spec: application-service-api#querying

    Raises:
        InvalidParam: it is no alias.
        NotFound: it points nowhere, or its server cannot be asked.
    """
    alias = _parse_alias(text)
    if not services.is_local(alias):
        return await _resolve_remote_alias(services, alias)
    found = await directory.fetch_alias(services.db, alias)
    if found is None and await services.appservices.make_alias(alias):
        found = await directory.fetch_alias(services.db, alias)
    if found is None:
        raise NotFound(f"Room alias {alias} not found.")
    servers = await directory.list_servers_in_room(services.db, found[0])
    return found[0], sorted(servers, key=lambda name: name != services.server_name)


async def _resolve_remote_alias(
    services: Services, alias: RoomAlias
) -> tuple[RoomId, list[ServerName]]:
    """Return what the server of an alias says of it.

    Spec: server-server-api#get_matrixfederationv1querydirectory
    """
    server = server_name_of(alias)
    answer = await services.remote.query_directory(server, alias)
    if isinstance(answer, RemoteError):
        logger.info("cannot resolve %s: %s", alias, answer.describe())
        raise NotFound(f"Room alias {alias} not found.")
    room_id, named = parse_room_id(answer["room_id"]), answer["servers"]
    if room_id is None:
        raise NotFound(f"Room alias {alias} points to no room.")
    servers = [parse_server_name(name) for name in (named if isinstance(named, list) else ())]
    known = [name for name in servers if name is not None]
    return room_id, list(dict.fromkeys(known or [server]))


async def set_alias(
    services: Services, user_id: UserId, text: str, room_id: str, *, by_service: str | None = None
) -> None:
    """Let an alias of this server point to a room that the user is in.

    `by_service` is the application service that asks for it: it need not be in the room.
    Spec: client-server-api#put_matrixclientv3directoryroomroomalias

    Raises:
        InvalidParam: it is no alias of this server.
        Exclusive: it is reserved by an application service, or not in a namespace of the one that
            asks.
        Forbidden: the user is not in the room.
        MatrixError: 409: it exists already.
        QuotaExceeded: the room has too many.
    """
    alias = _parse_alias(text)
    if not services.is_local(alias):
        raise InvalidParam(f"Aliases of {server_name_of(alias)} are not made here.")
    if parse_room_id(room_id) is None:
        raise InvalidParam("room_id is not a room id.")
    services.appservices.check_alias(alias, by_service)
    if by_service is None:
        await require_joined(services, room_id, user_id)
    else:
        await load_known_room(services, room_id)
    if await directory.count_aliases(services.db, room_id) >= ALIASES_OF_ROOM_MAX:
        raise QuotaExceeded("The room has too many aliases.")
    if not await directory.insert_alias(services.db, alias, room_id, user_id):
        raise MatrixError(f"Room alias {alias} already exists.", status=409)


async def delete_alias(
    services: Services,
    user_id: UserId,
    text: str,
    *,
    admin: bool,
    by_service: str | None = None,
) -> None:
    """Remove an alias, and its mention in the room's canonical alias event where the user may.

    Its creator may, administrators may, and whoever may change the canonical alias of the room;
    and an application service whose it is.
    Spec: client-server-api#delete_matrixclientv3directoryroomroomalias

    Raises:
        NotFound: there is no such alias.
        Exclusive, Forbidden: the user may not.
    """
    alias = _parse_alias(text)
    found = await directory.fetch_alias(services.db, alias) if services.is_local(alias) else None
    if found is None:
        raise NotFound(f"Room alias {alias} not found.")
    room_id, creator = found
    if not admin:
        services.appservices.check_alias(alias, by_service)
    head = await load_head(services, room_id)
    may_rename = head is not None and (await standing_of(services, head, user_id)).may_send(
        CANONICAL_ALIAS, is_state=True
    )
    if not (may_rename or admin or by_service is not None or creator == user_id):
        raise Forbidden("You may not delete this alias.")
    await directory.delete_alias(services.db, alias, room_id)
    if head is None or not may_rename:
        return
    key = (CANONICAL_ALIAS, "")
    event = (await current_events(services, head, [key])).get(key)
    if event is not None:
        content = without_aliases(event.content, {alias})
        if content != event.content:
            await set_room_state(services, user_id, room_id, CANONICAL_ALIAS, "", content)


def without_aliases(content: Mapping[str, object], gone: set[str]) -> dict[str, object]:
    """Return the content of a canonical alias event without some aliases; empty keys go, too."""
    rest = dict(content)
    if rest.get("alias") in gone:
        del rest["alias"]
    others = rest.get("alt_aliases")
    if isinstance(others, list):
        kept = [alias for alias in others if alias not in gone]
        if kept:
            rest["alt_aliases"] = kept
        else:
            del rest["alt_aliases"]
    return rest


async def list_local_aliases(services: Services, user_id: UserId, room_id: str) -> list[RoomAlias]:
    """Return this server's aliases of a room that the user is in, or that everybody may read.

    Spec: client-server-api#get_matrixclientv3roomsroomidaliases

    Raises:
        Forbidden: neither is the case.
    """
    head = await load_head(services, room_id)  # type: ignore[arg-type]  # (any text may be asked for)
    if head is not None:
        visibility = (await current_events(services, head, [HISTORY_VISIBILITY])).get(
            HISTORY_VISIBILITY
        )
        if text_of(visibility, "history_visibility") == "world_readable":
            return await directory.list_aliases(services.db, room_id)
    await require_joined(services, room_id, user_id)
    return await directory.list_aliases(services.db, room_id)


def _parse_alias(text: str) -> RoomAlias:
    alias = parse_room_alias(text)
    if alias is None:
        raise InvalidParam(f"{text!r} is not a room alias.")
    return alias


# --- the directory ---------------------------------------------------------------------------


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
