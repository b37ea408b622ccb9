"""WHAT WE LACK OF A ROOM, asked of a server that has it: events, and their auth events.

An event may arrive before what it follows or rests upon. The server that sent it is asked for
that: first for the events between (`fetch_events_between`); where those do not reach what we have,
for the state at the far end (`missing_state`). Auth events come one way or another
(`fetch_auth_events`).

Whatever is fetched is verified like any other event, and stored as an *outlier*: an event without a
place in the room, known to be allowed (or not) by its own auth events. Every list is bounded, and
every request is made outside transactions and outside the room's turn. When a server does not
answer or answers nonsense, nothing has changed but that we have more outliers.

Spec: server-server-api#backfilling-and-retrieving-missing-events
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

from minihs.base.tasks import give_way
from minihs.protocol.event_auth import (
    EventAuthError,
    check_state_dependent,
    check_state_independent,
)
from minihs.remote.transport import RemoteError
from minihs.services.rooms import history_commit
from minihs.services.rooms.heads import building
from minihs.services.rooms.verification import verify_pdus
from minihs.storage.event_store import ACCEPTED, REJECTED, StoredEvent
from minihs.storage.history_writes import HistoryWrite, Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from minihs.protocol.events import Event
    from minihs.protocol.identifiers import EventId, RoomId
    from minihs.protocol.room_versions import RoomVersion
    from minihs.remote.signed_requests import Answer
    from minihs.services.context import Services
    from minihs.services.rooms.heads import RoomHead

logger = logging.getLogger(__name__)

# What we ask for, and take, at most. Ours.
BETWEEN_EVENTS_MAX = 20  # of one request
BETWEEN_ROUNDS_MAX = 5
LATEST_MAX = BETWEEN_EVENTS_MAX // 2  # Dendrite counts them among what it answers.
EARLIEST_MAX = 20
AUTH_CHAIN_MAX = 5_000
AUTH_ROUNDS_MAX = 20
SINGLE_EVENTS_MAX = 50  # More than that, and a tenth of the state, are asked for in one go.
SINGLE_REQUESTS_AT_ONCE = 5
OUTLIERS_AT_ONCE = 500
CHECKS_AT_ONCE = 50


class NotReachedError(Exception):
    """The server that is to tell what we lack cannot be reached, or is not well."""


@dataclass(frozen=True, slots=True)
class Room:
    """What never changes of a room that we know."""

    room_id: RoomId
    room_nid: int
    room_version: RoomVersion
    create_id: EventId | None

    @classmethod
    def of(cls, head: RoomHead) -> Room:
        """Return the facts of the room that a head is of."""
        return cls(
            head.room_id, head.cursor.room_nid, head.room_version, head.state.get("m.room.create")
        )


async def list_with_state(
    services: Services, room_id: RoomId, event_ids: Iterable[EventId]
) -> dict[EventId, StoredEvent]:
    """Return those of the events after which we know the state of the room.

    That is every event but unknown ones, outliers, and those of other rooms: whatever names them as
    what it follows, no state of theirs is let in.
    """
    known = await services.events.get_many(event_ids)
    # Another process may have given an outlier its place since it was put into memory.
    doubtful = [event_id for event_id, stored in known.items() if stored.state_after is None]
    if doubtful:
        for event_id in doubtful:
            services.events.forget(event_id)
        known |= await services.events.get_many(doubtful)
    return {e: stored for e, stored in known.items() if is_placed(stored, room_id)}


def is_placed(stored: StoredEvent | None, room_id: RoomId) -> TypeGuard[StoredEvent]:
    """Return whether an event is one of the room after which we know its state."""
    return stored is not None and stored.state_after is not None and stored.event.room_id == room_id


def in_order(events: Iterable[Event], after: Callable[[Event], Iterable[EventId]]) -> list[Event]:
    """Return the events so that each comes after those of them that `after` names.

    Else their order stays. Events in a cycle are left out, with all that come after them.
    """
    by_id = {event.event_id: event for event in events}
    numbers = {event_id: number for number, event_id in enumerate(by_id)}
    waits_for: dict[EventId, set[EventId]] = {}
    followers: dict[EventId, list[EventId]] = {}
    for event_id, event in by_id.items():
        waits_for[event_id] = {e for e in after(event) if e in by_id}
        for named in waits_for[event_id]:
            followers.setdefault(named, []).append(event_id)
    ready = [(numbers[event_id], event_id) for event_id, others in waits_for.items() if not others]
    heapq.heapify(ready)
    ordered: list[Event] = []
    while ready:
        _, event_id = heapq.heappop(ready)
        ordered.append(by_id[event_id])
        for follower in followers.get(event_id, ()):
            waits_for[follower].discard(event_id)
            if not waits_for[follower]:
                heapq.heappush(ready, (numbers[follower], follower))
    return ordered


def ancestors(
    event_ids: Iterable[EventId],
    events: Mapping[EventId, Event],
    before: Callable[[Event], Iterable[EventId]],
) -> set[EventId]:
    """Return those of `events` that can be reached through `before`, the first ones included."""
    found: set[EventId] = set()
    queue = [event_id for event_id in event_ids if event_id in events]
    while queue:
        event_id = queue.pop()
        if event_id not in found:
            found.add(event_id)
            queue += (e for e in before(events[event_id]) if e in events)
    return found


async def fetch_events_between(
    services: Services,
    origin: str,
    room: Room,
    events: Sequence[Event],
    earliest: Sequence[EventId],
) -> list[Event]:
    """Return what lies between our `earliest` events and these, as far as the origin tells.

    All of it leads to `events`, and nothing of it is known; the order is the origin's.

    Raises:
        NotReachedError: the origin did not answer; it may do so another time.

    Spec: server-server-api#post_matrixfederationv1get_missing_eventsroomid
    """
    found: dict[EventId, Event] = {}
    given = {event.event_id: event for event in events}
    latest = list(given)
    settled: set[EventId] = set()
    for _ in range(BETWEEN_ROUNDS_MAX):
        latest = latest[:LATEST_MAX]
        answer = await services.remote.get_missing_events(
            origin,
            room.room_id,
            earliest=earliest[:EARLIEST_MAX],
            latest=latest,
            limit=BETWEEN_EVENTS_MAX,
        )
        if isinstance(answer, RemoteError) and not answer.server_is_up:
            raise NotReachedError(answer.describe())
        pdus = list_in(answer, "events")[:BETWEEN_EVENTS_MAX]
        fetched = await verify_fetched(services, room, pdus)
        known = await list_with_state(services, room.room_id, fetched)
        new = {e: event for e, event in fetched.items() if e not in known and e not in found}
        found = new | found
        reached = ancestors(given, found | given, _prev_event_ids)
        found = {e: event for e, event in found.items() if e in reached and e not in given}
        # Fewer than asked for: that is all that there is.
        if not new or len(pdus) + len(latest) < BETWEEN_EVENTS_MAX:
            settled.update(latest, new)
        every = given | found
        prev_ids = {e for event in every.values() for e in event.prev_event_ids} - every.keys()
        unknown = prev_ids - (await list_with_state(services, room.room_id, prev_ids)).keys()
        # Those that were pushed come first: they are what all this is for.
        latest = [
            event_id
            for event_id, event in every.items()
            if event_id not in settled and not unknown.isdisjoint(event.prev_event_ids)
        ]
        if not latest:
            break
    return list(found.values())


def _prev_event_ids(event: Event) -> Iterable[EventId]:
    return event.prev_event_ids


def _auth_event_ids(event: Event) -> Iterable[EventId]:
    return event.auth_event_ids


async def fetch_auth_events(
    services: Services, origin: str, room: Room, events: Iterable[Event]
) -> None:
    """Store the auth chains of these events as outliers, as far as the origin tells.

    Spec: server-server-api#get_matrixfederationv1event_authroomideventid
    """
    for event in events:
        if not await _unknown(services, event.auth_event_ids):
            continue
        answer = await services.remote.get_event_auth(origin, room.room_id, event.event_id)
        chain = await verify_fetched(services, room, list_in(answer, "auth_chain")[:AUTH_CHAIN_MAX])
        wanted = ancestors(event.auth_event_ids, chain, _auth_event_ids)
        await store_outliers(services, room, [chain[event_id] for event_id in wanted])
        if unknown := await _unknown(services, event.auth_event_ids):
            await _fetch_auth_chain(services, origin, room, unknown)


async def _fetch_auth_chain(
    services: Services, origin: str, room: Room, event_ids: Iterable[EventId]
) -> None:
    """Fetch events and what they rest upon one by one, down to what we have."""
    chain: dict[EventId, Event] = {}
    unknown = set(event_ids)
    for _ in range(AUTH_ROUNDS_MAX):
        if not unknown or len(chain) + len(unknown) > SINGLE_EVENTS_MAX:
            break
        fetched = await fetch_single_events(services, origin, room, unknown)
        chain |= fetched
        named = {e for event in fetched.values() for e in event.auth_event_ids} - chain.keys()
        unknown = await _unknown(services, named)
    await store_outliers(services, room, chain.values())


async def _unknown(services: Services, event_ids: Iterable[EventId]) -> set[EventId]:
    wanted = set(event_ids)
    return wanted - (await services.events.get_many(wanted)).keys()


async def store_outliers(services: Services, room: Room, events: Iterable[Event]) -> None:
    """Store verified events of a room that we do not have, if their auth events are known.

    What those do not allow is stored as rejected; where one is missing, nothing can be said, and
    the event is left out with all that rest upon it.

    Spec: server-server-api#checks-performed-on-receipt-of-a-pdu
    """
    ordered = in_order(events, _auth_event_ids)
    for start in range(0, len(ordered), OUTLIERS_AT_ONCE):
        some = ordered[start : start + OUTLIERS_AT_ONCE]
        # In the room's turn, so that no event gets two numbers.
        async with building(services, room.room_id):
            await _store_outliers(services, room, some)


async def _store_outliers(services: Services, room: Room, events: Sequence[Event]) -> None:
    wanted = {event.event_id for event in events}
    wanted.update(e for event in events for e in event.auth_event_ids)
    known = await services.events.get_many(wanted)
    await services.event_numbers.reserve(len(events))
    writes: list[HistoryWrite] = []
    for number, event in enumerate(events, 1):
        auth = [known[e] for e in event.auth_event_ids if e in known]
        if event.event_id in known or len(auth) < len(event.auth_event_ids):
            continue
        refusal = refusal_by_auth_events(event, auth)
        status = ACCEPTED if refusal is None else REJECTED
        stored = StoredEvent(event, services.event_numbers.take(), status=status)
        known[event.event_id] = stored
        auth_nids = [found.event_nid for found in auth] if event.is_state else None
        writes.append(HistoryWrite(stored, auth_nids, refusal=refusal))
        if number % CHECKS_AT_ONCE == 0:
            await give_way()
    if writes:
        await history_commit.store_history(services, room.room_nid, writes)


def refusal_by_auth_events(event: Event, auth: Sequence[StoredEvent]) -> Refusal | None:
    """Return why an event's own auth events do not allow it; None if they do."""
    auth_events = [stored.event for stored in auth]
    rejected = {stored.event_id for stored in auth if stored.status == REJECTED}
    try:
        check_state_independent(event, auth_events, rejected)
        check_state_dependent(event, {auth_event.key: auth_event for auth_event in auth_events})
    except EventAuthError as error:
        deciding = rejected or event.auth_event_ids
        return Refusal(error.rule, error.passage, error.message, sorted(deciding))
    return None


async def fetch_single_events(
    services: Services, origin: str, room: Room, event_ids: Collection[EventId]
) -> dict[EventId, Event]:
    """Return those of the events that the origin gives us, each by its own request."""
    turns = asyncio.Semaphore(SINGLE_REQUESTS_AT_ONCE)

    async def fetch(event_id: EventId) -> list[object]:
        async with turns:
            return list_in(await services.remote.get_event(origin, event_id), "pdus")[:1]

    answers = await asyncio.gather(*map(fetch, event_ids))
    fetched = await verify_fetched(services, room, [pdu for pdus in answers for pdu in pdus])
    return {event_id: fetched[event_id] for event_id in event_ids if event_id in fetched}


async def verify_fetched(
    services: Services, room: Room, pdus: Sequence[object]
) -> dict[EventId, Event]:
    """Return the events of this room among some PDUs, by id."""
    verified = await verify_pdus(services, pdus, room.room_version)
    return {
        event.event_id: event
        for event in verified
        if event is not None and event.room_id == room.room_id
    }


def list_in(answer: Answer, key: str) -> list[object]:
    """Return a list that was answered; empty if there was no such answer."""
    if isinstance(answer, RemoteError):
        logger.info("nothing is fetched from %s", answer.describe())
        return []
    value = answer.get(key)
    return value if isinstance(value, list) else []


def ids_in(values: Sequence[object]) -> list[EventId]:
    """Return what may be ids of events."""
    return [v for v in values if isinstance(v, str) and "\0" not in v]  # type: ignore[misc]
