"""Aliases of rooms: ours, and those of other servers, which are asked.

Spec: client-server-api#room-aliases
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from minihs.base.errors import Forbidden, InvalidParam, MatrixError, NotFound, QuotaExceeded
from minihs.base.limits import ALIASES_OF_ROOM_MAX
from minihs.protocol.identifiers import (
    parse_room_alias,
    parse_room_id,
    parse_server_name,
    server_name_of,
)
from minihs.protocol.state_keys import HISTORY_VISIBILITY
from minihs.remote.transport import RemoteError
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

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minihs.protocol.identifiers import RoomAlias, RoomId, ServerName, UserId
    from minihs.services.context import Services


logger = logging.getLogger(__name__)


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
