"""What a resident server gives us when we join a room: checked, stored, and made ours.

The answer to /send_join is the state of the room before our join, and all that it rests upon. None
of it is believed: every event must be well formed, of this room, signed by whom it must be, and
allowed by its own auth events. Whatever is not is left out, with all that rests upon it. What is
left must be a room: created in the version that we were told, by the event that its id names, and
one that lets our user in.

Events of the answer are outliers, stored before the join is committed; the join is then the only
end of the room's graph that we have.

Spec: server-server-api#joining-rooms
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.base.errors import Unavailable
from minihs.base.tasks import give_way
from minihs.protocol.event_auth import (
    EventAuthError,
    check_against_auth_events,
    check_state_dependent,
    select_auth_keys_of,
)
from minihs.services.rooms import commit
from minihs.services.rooms.commit import HistoryWrite, Plan, PlannedEvent
from minihs.services.rooms.heads import building
from minihs.services.rooms.verification import verify_pdus
from minihs.storage.event_store import REJECTED, StoredEvent
from minihs.storage.group_commit import Conflict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from minihs.protocol.events import Event
    from minihs.protocol.identifiers import EventId, StateKey
    from minihs.protocol.room_versions import RoomVersion
    from minihs.services.context import Services
    from minihs.services.rooms.heads import RoomHead
    from minihs.storage.state import State

CREATE: StateKey = ("m.room.create", "")
ATTEMPTS = 20
EVENTS_AT_ONCE = 500
AUTH_CHECKS_AT_ONCE = 50


class BadRoomError(ValueError):
    """What a resident server answered is not a room that our user is in."""


@dataclass(frozen=True, slots=True)
class GivenRoom:
    """A room as a resident server gave it to us, checked.

    `events` are the accepted events, whatever they rest upon before them; `state` is the state
    before our join.
    """

    room_version: RoomVersion
    join: Event
    events: Mapping[EventId, Event]
    state: Mapping[StateKey, EventId]

    @property
    def create(self) -> Event:
        """The room's create event."""
        return self.events[self.state[CREATE]]


async def read_given_room(
    services: Services,
    room_version: RoomVersion,
    join: Event,
    state_pdus: Sequence[object],
    chain_pdus: Sequence[object],
) -> GivenRoom:
    """Return the room of an answer to /send_join.

    Cost: a signature to verify for each event; other requests are served in between.

    Raises:
        BadRoomError: it is no such room.
    """
    checked = await verify_pdus(services, [*state_pdus, *chain_pdus], room_version)
    ours = [event if _is_state_of(event, join.room_id) else None for event in checked]
    given = {event.event_id: event for event in ours if event is not None}
    accepted = await _authorised(services, given)
    state: dict[StateKey, EventId] = {}
    for event in ours[: len(state_pdus)]:
        if event is not None and event.event_id in accepted:
            if state.setdefault(event.key, event.event_id) != event.event_id:
                raise BadRoomError(f"two events of the state are {event.key}")
    if CREATE not in state:
        raise BadRoomError("the state has no create event")
    create = accepted[state[CREATE]]
    if create.content.get("room_version", "1") != room_version.identifier:
        raise BadRoomError("the room is of another version than was said")
    entries = {key: accepted[state[key]] for key in select_auth_keys_of(join) if key in state}
    try:
        check_against_auth_events(join, [accepted[e] for e in join.auth_event_ids if e in accepted])
        check_state_dependent(join, {**entries, CREATE: create})
    except EventAuthError as error:
        raise BadRoomError(f"the room does not let us in: {error.message}") from error
    return GivenRoom(room_version, join, accepted, state)


def _is_state_of(event: Event | None, room_id: str) -> bool:
    return event is not None and event.is_state and event.room_id == room_id


async def _authorised(services: Services, given: Mapping[EventId, Event]) -> dict[EventId, Event]:
    """Return those of the events that their auth events allow, and known ones they rest upon.

    Each comes after everything that it rests upon.
    """
    named = {auth_id for event in given.values() for auth_id in event.auth_event_ids}
    known = await services.events.get_many(named | given.keys())
    accepted = {
        event_id: stored.event
        for event_id, stored in known.items()
        if stored.status != REJECTED and event_id not in given
    }
    refused = {event_id for event_id, stored in known.items() if stored.status == REJECTED}
    for count, event in enumerate(in_auth_order(given)):
        if count % AUTH_CHECKS_AT_ONCE == 0:
            await give_way()
        if event.event_id in refused:
            continue
        auth_events = [accepted[e] for e in event.auth_event_ids if e in accepted]
        try:
            check_against_auth_events(event, auth_events)
        except EventAuthError:
            continue  # And so will be all that rest upon it.
        accepted[event.event_id] = event
    return accepted


def in_auth_order(events: Mapping[EventId, Event]) -> Iterable[Event]:
    """Return the events so that each comes after its auth events; those in a cycle are left out."""
    waits_for = {
        event_id: {e for e in event.auth_event_ids if e in events}
        for event_id, event in events.items()
    }
    named_by: dict[EventId, list[EventId]] = {}
    for event_id, auth_ids in waits_for.items():
        for auth_id in auth_ids:
            named_by.setdefault(auth_id, []).append(event_id)
    ready = [event_id for event_id, auth_ids in waits_for.items() if not auth_ids]
    while ready:
        event_id = ready.pop()
        yield events[event_id]
        for waiting in named_by.get(event_id, ()):
            waits_for[waiting].discard(event_id)
            if not waits_for[waiting]:
                ready.append(waiting)


async def commit_join(services: Services, room: GivenRoom) -> EventId:
    """Make a given room ours: store it, then commit our user's join; return the join's id.

    Raises:
        Unavailable: other processes were faster, time after time.
    """
    join = room.join
    room_nid = await commit.ensure_room(services, join.room_id, room.room_version)
    stored = await _store(services, room_nid, room)
    for _ in range(ATTEMPTS):
        async with building(services, join.room_id) as head:
            if head is None:
                raise RuntimeError(f"{join.room_id} has just been made")
            known = await services.events.get(join.event_id)
            if known is not None and known.order is not None:
                return join.event_id  # It came by another way, too.
            before = await _state_before(services, room_nid, head, room)
            if not head.local_members:
                # What we knew from an earlier stay, if anything, has been overtaken.
                head.unsubmitted, head.extremities = True, []
            plan = Plan(head)
            auth = {stored[auth_id].event.key: stored[auth_id] for auth_id in join.auth_event_ids}
            planned = PlannedEvent(join, auth, state_before=before, stored=known)
            await commit.add_event(services, plan, planned)
            durable = plan.submit(services)
        try:
            await durable
        except Conflict:
            continue
        return join.event_id
    raise Unavailable("The room is too busy; try again.")


async def _store(services: Services, room_nid: int, room: GivenRoom) -> dict[EventId, StoredEvent]:
    """Store the events of a given room that we do not have; return all of them."""
    stored = await services.events.get_many(room.events)
    new = [event for event in room.events.values() if event.event_id not in stored]
    for start in range(0, len(new), EVENTS_AT_ONCE):
        some = new[start : start + EVENTS_AT_ONCE]
        await services.event_numbers.reserve(len(some))
        stored |= {e.event_id: StoredEvent(e, services.event_numbers.take()) for e in some}
        await commit.store_history(
            services,
            room_nid,
            [
                HistoryWrite(
                    stored[event.event_id], [stored[e].event_nid for e in event.auth_event_ids]
                )
                for event in some
            ],
        )
    return stored


async def _state_before(
    services: Services, room_nid: int, head: RoomHead, room: GivenRoom
) -> State:
    """Return the state before our join, stored as what it changes on what we knew."""
    old = head.state.entries
    changes: dict[StateKey, EventId | None] = {
        key: event_id for key, event_id in room.state.items() if old.get(key) != event_id
    }
    changes |= {key: None for key in old if key not in room.state}
    if not changes:
        return head.state
    await services.states.numbers.reserve(1)
    before, row = services.states.derive(head.state, changes)
    await commit.store_history(services, room_nid, (), [row])
    services.states.remember(before)
    return before
