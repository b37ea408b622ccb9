"""What a resident server gives us when we join a room: checked, stored, and made ours.

The answer to /send_join is the state of the room before our join, and all that it rests upon. None
of it is believed: every event must be well formed, of this room, signed by whom it must be, and
allowed by its own auth events. Whatever is not is left out, with all that rests upon it. What is
left must be a room: created in the version that we were told, by the event that its id names, and
one that lets our user in.

The events of the answer are outliers, stored before the join is committed; the join is then the
only end of the room's graph that we have, and what came before it is a gap in our history. Unless
the server has yet to hear what became of our user in an earlier stay: then the ends of that stay
remain ends, and state resolution decides about the join as it does on every other server.

Spec: server-server-api#joining-rooms
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.base.errors import Unavailable
from minihs.protocol.event_auth import (
    EventAuthError,
    check_against_auth_events,
    check_state_dependent,
    check_state_independent,
    select_auth_keys_of,
)
from minihs.protocol.state_keys import CREATE
from minihs.protocol.state_resolution import MissingEventsError
from minihs.services.rooms import commit, history_commit, missing, state
from minihs.services.rooms.commit import Plan, PlannedEvent
from minihs.services.rooms.heads import building
from minihs.services.rooms.verification import verify_pdus
from minihs.storage.event_store import REJECTED, StoredEvent
from minihs.storage.group_commit import Conflict
from minihs.storage.missing_events import insert_gaps

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence, Set

    from minihs.protocol.events import Event
    from minihs.protocol.identifiers import EventId, RoomId, StateKey
    from minihs.protocol.room_versions import RoomVersion
    from minihs.services.context import Services
    from minihs.services.rooms.heads import RoomHead

ATTEMPTS = 20


class BadRoomError(ValueError):
    """What a resident server answered is not a room that our user is in."""


@dataclass(frozen=True, slots=True)
class GivenRoom:
    """A room as a resident server gave it to us, checked and stored.

    `auth` are the auth events of our join, `entries` is the state before it; `told` is all that the
    server told us of, which is what the join rests upon.
    """

    room: missing.Room
    join: Event
    auth: Mapping[StateKey, StoredEvent]
    entries: Mapping[StateKey, EventId]
    told: Set[EventId]


async def read_given_room(
    services: Services,
    room_version: RoomVersion,
    join: Event,
    state_pdus: Sequence[object],
    chain_pdus: Sequence[object],
) -> GivenRoom:
    """Return the room of an answer to /send_join; its events are stored then.

    Cost: a signature to verify for each event; other requests are served in between.

    Raises:
        BadRoomError: it is no such room.
    """
    verified = await verify_pdus(services, [*state_pdus, *chain_pdus], room_version)
    ours = [event if _is_state_of(event, join.room_id) else None for event in verified]
    given = {event.event_id: event for event in ours if event is not None}
    create = _create_event(given.values(), room_version)
    room_nid = await history_commit.ensure_room(services, join.room_id, room_version)
    room = missing.Room(join.room_id, room_nid, room_version, create.event_id)
    await missing.store_outliers(services, room, given.values())

    named = [event.event_id for event in ours[: len(state_pdus)] if event is not None]
    stored = await services.events.get_many([*named, *join.auth_event_ids])
    entries: dict[StateKey, EventId] = {}
    for event_id in named:
        found = stored.get(event_id)
        if found is None or found.event.room_id != join.room_id or found.status == REJECTED:
            continue
        if entries.setdefault(found.event.key, event_id) != event_id:
            raise BadRoomError(f"two events of the state are {found.event.key}")
    if entries.get(CREATE) != create.event_id:
        raise BadRoomError("the state has no create event")
    _check_join(join, entries, stored)
    auth = {stored[e].event.key: stored[e] for e in join.auth_event_ids}
    return GivenRoom(room, join, auth, entries, given.keys())


def _is_state_of(event: Event | None, room_id: RoomId) -> bool:
    return event is not None and event.is_state and event.room_id == room_id


def _create_event(events: Iterable[Event], room_version: RoomVersion) -> Event:
    """Return the event that created the room: in this version, by the owner of the room's id.

    Nothing is stored before this is certain: it decides by which rules the rest is read.
    """
    for event in events:
        if event.key != CREATE:
            continue
        try:
            check_state_independent(event, ())
        except EventAuthError as error:
            raise BadRoomError(f"the create event is none: {error.message}") from error
        if event.content.get("room_version", "1") != room_version.identifier:
            raise BadRoomError("the room is of another version than was said")
        return event
    raise BadRoomError("there is no create event")


def _check_join(
    join: Event, entries: Mapping[StateKey, EventId], stored: Mapping[EventId, StoredEvent]
) -> None:
    """Refuse a room that, by its own rules, did not let our user in.

    Raises:
        BadRoomError: so it is.
    """
    rejected = {event_id for event_id, found in stored.items() if found.status == REJECTED}
    deciding = {
        key: stored[entries[key]].event
        for key in (CREATE, *select_auth_keys_of(join))
        if key in entries
    }
    auth_events = [stored[e].event for e in join.auth_event_ids if e in stored]
    try:
        check_against_auth_events(join, auth_events, rejected)
        check_state_dependent(join, deciding)
    except EventAuthError as error:
        raise BadRoomError(f"the room does not let us in: {error.message}") from error


async def commit_join(services: Services, given: GivenRoom) -> EventId:
    """Make a given room ours by committing our user's join; return the join's id.

    Raises:
        BadRoomError: we know the room in another version, or cannot tell who is right about it.
        Unavailable: other processes were faster, time after time.
    """
    join, room_nid = given.join, given.room.room_nid
    await services.event_numbers.reserve(1)
    number = services.event_numbers.take()
    for _ in range(ATTEMPTS):
        async with building(services, join.room_id) as head:
            if head is None or head.room_version is not given.room.room_version:
                raise BadRoomError("we know the room in another version")
            known = await services.events.get(join.event_id)
            if known is not None and known.order is not None:
                return join.event_id  # It came by another way, too.
            stored = known or StoredEvent(join, number)
            prev_ids = join.prev_event_ids
            if len(await missing.list_with_state(services, join.room_id, prev_ids)) < len(prev_ids):
                await insert_gaps(services.db, room_nid, [stored.event_nid])
            before, rows = await state.record(services, [head.state], given.entries)
            if rows:
                await history_commit.store_history(services, room_nid, (), rows)
            plan = _plan(head, given)
            planned = PlannedEvent(join, given.auth, state_before=before, stored=stored)
            try:
                await commit.add_event(services, plan, planned)
            except (MissingEventsError, state.TooManyLoadsError) as error:
                services.events.forget(join.event_id)
                if head.was_overtaken:
                    continue  # It stumbled over what is not there any more.
                raise BadRoomError(f"its state cannot be resolved with ours: {error}") from error
            durable = plan.submit(services)
        try:
            await durable
        except Conflict:
            continue
        return join.event_id
    raise Unavailable("The room is too busy; try again.")


def _plan(head: RoomHead, given: GivenRoom) -> Plan:
    """Return the plan of a join: what we knew from an earlier stay, if anything, is overtaken.

    It is not if our user was put out of the room (or left it) and the join does not rest upon that:
    had we forgotten a ban, nobody would ever tell us of it again.
    """
    member_id = head.state.entries.get(("m.room.member", given.join.sender))
    if not head.local_members and (member_id is None or member_id in given.told):
        head.unsubmitted, head.extremities = True, []
    return Plan(head)
