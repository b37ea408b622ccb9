"""READING STATE: of a room now, when its reader left, or at a place of its history.

State is that of the moment, and is shown whole to whoever may look at the room.

Spec: client-server-api#getting-events-for-a-room
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.base.errors import Forbidden, NotFound
from minihs.services.rooms.access import Access, Reader, open_room
from minihs.services.rooms.client_events import shown
from minihs.services.rooms.tokens import START, Place, parse_place
from minihs.storage import events as event_reads
from minihs.storage import state_reads

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import orjson

    from minihs.protocol.identifiers import EventId, RoomId, StateKey
    from minihs.services.context import Services
    from minihs.storage.event_store import StoredEvent

FIRST_EVENTS = 10


async def state(services: Services, reader: Reader, room_id: RoomId) -> list[orjson.Fragment]:
    """Return every state event of a room, now or when the reader left.

    Raises:
        Forbidden: the reader may not look at the room.

    Spec: client-server-api#get_matrixclientv3roomsroomidstate
    """
    access = await open_room(services, reader, room_id)
    entries = await _current_state(services, access)
    return await show_state(services, reader, entries.values())


async def state_event(
    services: Services, reader: Reader, room_id: RoomId, key: StateKey
) -> StoredEvent:
    """Return the event that holds a key of the room's state, now or when the reader left.

    Raises:
        Forbidden: the reader may not look at the room.
        NotFound: nothing holds the key.

    Spec: client-server-api#get_matrixclientv3roomsroomidstateeventtypestatekey
    """
    access = await open_room(services, reader, room_id)
    event_id = (await _current_state(services, access)).get(key)
    stored = await services.events.get(event_id) if event_id is not None else None
    if stored is None:
        raise NotFound("The room has no such state.")
    return stored


async def members(
    services: Services,
    reader: Reader,
    room_id: RoomId,
    *,
    at: str | None,
    membership: str | None,
    not_membership: str | None,
) -> list[orjson.Fragment]:
    """Return the member events of a room, now, at a token's place, or when the reader left.

    With both `membership` and `not_membership`, either is enough.

    Raises:
        Forbidden: the reader may not look at the room.
        InvalidParam: `at` is no token of ours.

    Spec: client-server-api#get_matrixclientv3roomsroomidmembers
    """
    access = await open_room(services, reader, room_id)
    if at is None:
        entries = await _current_state(services, access)
    else:
        newest = max(reader.position, access.upto.major)
        entries = await _state_at(
            services, access, min(parse_place(at, newest=newest), access.upto)
        )
    ids = [event_id for (kind, _), event_id in entries.items() if kind == "m.room.member"]
    known = await services.events.get_many(ids)
    chosen = [
        stored
        for event_id in ids
        if (stored := known.get(event_id)) is not None
        and _is_asked_for(stored.event.content.get("membership"), membership, not_membership)
    ]
    return await shown(services, chosen, reader=reader)


async def joined_members(
    services: Services, reader: Reader, room_id: RoomId
) -> dict[str, dict[str, str | None]]:
    """Return the names and avatars of a room's members, by user id; only for members.

    Who has no name or no avatar has `None` there. The specification's schema leaves the key out;
    Complement looks for both keys, Synapse sends null, and clients take either.

    Raises:
        Forbidden: the reader is not joined.

    Spec: client-server-api#get_matrixclientv3roomsroomidjoined_members
    """
    access = await open_room(services, reader, room_id)
    if not access.joined:
        raise Forbidden("You are not in this room.")
    return {
        user_id: {"display_name": name, "avatar_url": avatar}
        for user_id, name, avatar in await event_reads.list_joined_members(
            services.db, access.room_nid
        )
    }


def _is_asked_for(value: object, membership: str | None, not_membership: str | None) -> bool:
    if membership is None and not_membership is None:
        return True
    return (membership is not None and value == membership) or (
        not_membership is not None and value != not_membership
    )


async def _current_state(services: Services, access: Access) -> Mapping[StateKey, EventId]:
    """Return the room's state now, or as it was when the reader left."""
    if access.left is None:
        return (await services.states.get(access.state_id)).entries
    return await _room_state_after(services, access.left)


async def _state_at(services: Services, access: Access, place: Place) -> Mapping[StateKey, EventId]:
    """Return the room's state at a place.

    A token from before anybody was in the room, such as the `prev_batch` of a timeline that begins
    with its creation, stands for the moment at which the first member was there.
    """
    before = await event_reads.list_range(
        services.db, services.events, access.room_nid, place, START, backward=True, limit=1
    )
    entries = await _room_state_after(services, before[0]) if before else None
    if entries is not None and any(kind == "m.room.member" for kind, _ in entries):
        return entries
    first = await event_reads.list_range(
        services.db, services.events, access.room_nid, START, access.upto,
        backward=False, limit=FIRST_EVENTS,
    )  # fmt: skip
    for stored in first:
        if stored.event.type == "m.room.member" and stored.event.is_state:
            return await _room_state_after(services, stored)
    return entries if entries is not None else {}


async def _room_state_after(services: Services, stored: StoredEvent) -> Mapping[StateKey, EventId]:
    """Return what the room's current state was once an event had come in."""
    if stored.room_state_after is not None:
        return (await services.states.get(stored.room_state_after)).entries
    return await state_after(services, stored)


async def state_after(services: Services, stored: StoredEvent) -> Mapping[StateKey, EventId]:
    """Return the state after an event of the room's history."""
    before = (await services.states.get(stored.state_before or 0)).entries
    if stored.event.is_state:
        return before.set(stored.event.key, stored.event_id)
    return before


async def members_after(
    services: Services, reader: Reader, newest: StoredEvent, user_ids: Iterable[str]
) -> list[orjson.Fragment]:
    """Return the member events of users in the state after an event.

    Spec: client-server-api#lazy-loading-room-members
    """
    keys = [("m.room.member", user_id) for user_id in sorted(user_ids)]
    state_id = newest.state_before or 0
    entries = (await state_reads.load_entries(services.states, services.db, [state_id], keys))[
        state_id
    ]
    if newest.event.is_state and newest.event.key in keys:
        entries[newest.event.key] = newest.event_id
    return await show_state(services, reader, entries.values())


async def show_state(
    services: Services, reader: Reader, event_ids: Iterable[EventId]
) -> list[orjson.Fragment]:
    """Return state events as they are shown, in the order of their ids here."""
    ids = list(event_ids)
    known = await services.events.get_many(ids)
    events = [known[event_id] for event_id in ids if event_id in known]
    return await shown(services, events, reader=reader)
