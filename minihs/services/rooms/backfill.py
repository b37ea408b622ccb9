"""HISTORY THAT WE WERE NOT THERE FOR: fetched when somebody reads that far back.

A gap is an event whose prev_events we lack: our first join, or the far end of what was fetched when
we had been away. `fill` asks servers of the room for what came before it, checks it like any event
where it stands (only the current state is not asked: it says nothing about the past), and gives it
its place: before all that is there, after all that will be fetched. Rejected events have a place,
too, lest history ends at one; nobody is shown them.

Spec: server-server-api#backfilling-and-retrieving-missing-events
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.base.clock import time_limit
from minihs.base.tasks import give_way
from minihs.protocol.event_auth import EventAuthError, check_state_dependent, select_auth_keys_of
from minihs.protocol.identifiers import server_name_of
from minihs.protocol.state_keys import CREATE
from minihs.protocol.state_resolution import MissingEventsError
from minihs.remote.transport import RemoteError
from minihs.services.rooms import early_redactions, history_commit, missing, missing_state, state
from minihs.services.rooms.heads import building
from minihs.services.rooms.missing import Room
from minihs.services.rooms.verification import verify_pdus, whole_of
from minihs.storage import missing_events
from minihs.storage.event_store import ACCEPTED, REJECTED, StoredEvent
from minihs.storage.history_writes import HistoryWrite, Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minihs.protocol.events import Event
    from minihs.protocol.identifiers import EventId, RoomId
    from minihs.services.context import Services
    from minihs.storage.missing_events import Gap
    from minihs.storage.state import State, StateRow

logger = logging.getLogger(__name__)

EVENTS_MAX = 100  # of one request
SERVERS_MAX = 3
TIMEOUT_S = 20  # for each of them: somebody waits
FAR_ENDS_MAX = 5
AUTH_REQUESTS_MAX = 10
JUDGED_AT_ONCE = 20


async def fill(services: Services, room_id: RoomId, gap: Gap, until_ms: int) -> int:
    """Fetch what came before a gap; return how many events have been given a place there.

    Somebody else may have filled it meanwhile. Servers that cannot help are passed over. `until_ms`
    is how long somebody waits, by the clock that never steps: then it is given up.
    """
    try:
        async with time_limit(services.clock, until_ms - services.clock.monotonic_ms()):
            return await _fill(services, room_id, gap)
    except TimeoutError:
        logger.info("nobody gives history of %s in time", room_id)
        return 0


async def _fill(services: Services, room_id: RoomId, gap: Gap) -> int:
    async with services.heads.fetching.take((room_id, "history")):
        async with building(services, room_id) as head:
            if head is None:
                return 0
            room, near = Room.of(head), head.state
        now = await missing_events.list_gaps(
            services.db, room.room_nid, gap.order_major, gap.order_major
        )
        left = next((found for found in now if found.event_id == gap.event_id), None)
        stored = await services.events.get(gap.event_id)
        if left is None or stored is None:
            return 1  # It has been filled: what was looked for can be read.
        for server in await _servers(services, room, stored):
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    count = await _fill_from(services, server, Past(room, left, near), stored.event)
            except TimeoutError:
                logger.info("%s takes too long to give history of %s", server, room_id)
                continue
            if count:
                return count
    return 0


@dataclass(frozen=True, slots=True)
class Past:
    """A room, a gap in it, and a known state to which what we find may be compared."""

    room: Room
    gap: Gap
    near: State


async def _servers(services: Services, room: Room, stored: StoredEvent) -> list[str]:
    """Return whom to ask: who sent what follows the gap, then who has most users there."""
    servers: list[str] = [server_name_of(stored.event.sender)]
    servers += await missing_events.list_servers(services.db, room.room_nid, SERVERS_MAX)
    others = [server for server in servers if server != services.server_name]
    return list(dict.fromkeys(others))[:SERVERS_MAX]


async def _fill_from(services: Services, server: str, past: Past, after: Event) -> int:
    """Return how many events of the past a server has helped us to."""
    room = past.room
    known = await missing.list_with_state(services, room.room_id, after.prev_event_ids)
    wanted = [event_id for event_id in after.prev_event_ids if event_id not in known]
    if not wanted:
        await missing_events.delete_gaps(services.db, [past.gap.event_nid])
        return 1
    answer = await services.remote.backfill(server, room.room_id, wanted, EVENTS_MAX)
    pdus = [] if isinstance(answer, RemoteError) else answer.get("pdus")
    verified = await verify_pdus(
        services, pdus[:EVENTS_MAX] if isinstance(pdus, list) else [], room.room_version
    )
    given = {e.event_id: e for e in verified if e is not None and e.room_id == room.room_id}
    known = await missing.list_with_state(services, room.room_id, given)
    new = {event_id: event for event_id, event in given.items() if event_id not in known}
    reached = missing.ancestors(wanted, new, lambda event: event.prev_event_ids)
    events = missing.in_order(
        reversed([event for event_id, event in new.items() if event_id in reached]),
        lambda event: (*event.prev_event_ids, *event.auth_event_ids),
    )
    if not events:
        if not known.keys().isdisjoint(wanted):
            return 1  # Another process has stored it meanwhile.
        logger.info("%s has no history of %s for us", server, room.room_id)
        return 0
    states = await _far_states(services, server, past, events)
    await _fetch_auth_events(services, server, room, events)
    writing = Writing(services, past)
    try:
        await writing.load(events, states)
        await writing.judge(events)
        return await writing.store(after)
    except BaseException:
        for write in writing.writes:  # They are not stored after all.
            services.events.forget(write.stored.event_id)
        raise


async def _far_states(
    services: Services, server: str, past: Past, events: Sequence[Event]
) -> dict[EventId, State]:
    """Return the states before those events whose prev_events we lack."""
    here = {event.event_id for event in events}
    named = {e for event in events for e in event.prev_event_ids} - here
    known = await missing.list_with_state(services, past.room.room_id, named)
    unknown = named - known.keys()
    states: dict[EventId, State] = {}
    for event in [e for e in events if not unknown.isdisjoint(e.prev_event_ids)][:FAR_ENDS_MAX]:
        before = await missing_state.fetch_state_before(
            services, server, past.room, event, past.near
        )
        if before is not None:
            states[event.event_id] = before
    return states


async def _fetch_auth_events(
    services: Services, server: str, room: Room, events: Sequence[Event]
) -> None:
    here = {event.event_id for event in events}
    named = {e for event in events for e in event.auth_event_ids} - here
    unknown = named - (await services.events.get_many(named)).keys()
    lacking = [event for event in events if not unknown.isdisjoint(event.auth_event_ids)]
    await missing.fetch_auth_events(services, server, room, lacking[:AUTH_REQUESTS_MAX])


class Writing:
    """Events of the past on their way into the database: judged oldest first, written together."""

    def __init__(self, services: Services, past: Past) -> None:
        self.services = services
        self.past = past
        self.known: dict[EventId, StoredEvent] = {}
        self.far: Mapping[EventId, State] = {}
        self.writes: list[HistoryWrite] = []

    async def load(self, events: Sequence[Event], far: Mapping[EventId, State]) -> None:
        """Read what the events name; `far` are states before some of them that were given."""
        ids = {event.event_id for event in events}
        for event in events:
            ids.update(event.prev_event_ids, event.auth_event_ids)
        self.known = await self.services.events.get_many(ids)
        self.far = far

    async def judge(self, events: Sequence[Event]) -> None:
        """Judge the events, each after those that it follows; what cannot be judged is left out."""
        redacted = await early_redactions.find_applying(
            self.services, {event.event_id: event for event in events}
        )
        await self.services.event_numbers.reserve(len(events))
        for number, event in enumerate(events, 1):
            before = await self._state_before(event)
            auth = [self.known[e] for e in event.auth_event_ids if e in self.known]
            if before is None or len(auth) < len(event.auth_event_ids):
                continue
            old = self.known.get(event.event_id)
            if old is not None and old.event.room_id != event.room_id:
                continue  # In room versions 1 and 2 its server has named it so.
            stored = StoredEvent(
                whole_of(event, old),
                self.services.event_numbers.take() if old is None else old.event_nid,
                redacted_by=redacted.get(event.event_id),
                sticky_until_ms=None if old is None else old.sticky_until_ms,
            )
            await self._add(stored, auth, *before)
            if number % JUDGED_AT_ONCE == 0:
                await give_way()

    async def _state_before(self, event: Event) -> tuple[State, list[StateRow]] | None:
        if event.event_id in self.far:
            return self.far[event.event_id], []
        if event.key == CREATE and event.event_id != self.past.room.create_id:
            return None
        if event.key != CREATE and not event.prev_event_ids:
            return None
        if any(self._is_missing(prev_id) for prev_id in event.prev_event_ids):
            return None
        ids = {self.known[prev_id].state_after or 0 for prev_id in event.prev_event_ids}
        try:
            return await state.resolve_states(self.services, self.past.room.room_version, ids)
        except (MissingEventsError, state.TooManyLoadsError):
            return None

    async def _add(
        self, stored: StoredEvent, auth: Sequence[StoredEvent], before: State, rows: list[StateRow]
    ) -> None:
        services, event = self.services, stored.event
        refusal = missing.refusal_by_auth_events(event, auth)
        if refusal is None:
            refusal = await self._refusal_by_state(event, before)
        after = before
        if refusal is None and event.is_state:
            await services.states.numbers.reserve(1)
            after, row = services.states.derive(before, {event.key: event.event_id})
            services.states.remember(after)
            rows = [*rows, row]
        stored.status = ACCEPTED if refusal is None else REJECTED
        stored.state_before, stored.state_after = before.state_id, after.state_id
        auth_nids = [found.event_nid for found in auth] if event.is_state else None
        is_gap = any(self._is_missing(prev_id) for prev_id in event.prev_event_ids)
        self.writes.append(HistoryWrite(stored, auth_nids, rows, refusal, is_gap))
        self.known[event.event_id] = stored
        services.events.remember(stored)  # State resolution may have to see it.
        if refusal is None and event.type == "m.room.redaction":
            await self._redact(event, before)

    def _is_missing(self, event_id: EventId) -> bool:
        return not missing.is_placed(self.known.get(event_id), self.past.room.room_id)

    async def _refusal_by_state(self, event: Event, before: State) -> Refusal | None:
        keys = [*select_auth_keys_of(event), CREATE]
        found = await state.load_state_events(self.services, before, keys)
        try:
            check_state_dependent(event, {key: stored.event for key, stored in found.items()})
        except EventAuthError as error:
            deciding = sorted(stored.event_id for stored in found.values())
            return Refusal(error.rule, error.passage, error.message, deciding)
        return None

    async def _redact(self, redaction: Event, before: State) -> None:
        """Let a redaction of the past apply to what we have, or will come to have."""
        services, target_id = self.services, redaction.redacts
        if target_id is None or "\0" in target_id:
            return
        target = self.known.get(target_id) or await services.events.get(target_id)
        if target is None:
            await missing_events.insert_early_redactions(
                services.db, [(target_id, redaction.event_id)]
            )
        elif target.redacted_by is None and await early_redactions.applies(
            services, redaction, before, target.event
        ):
            if any(write.stored is target for write in self.writes):
                target.redacted_by = redaction.event_id
            else:
                await missing_events.mark_redacted(
                    services.db, target.event_nid, redaction.event_id
                )
                services.events.note_redaction(target_id, redaction.event_id)

    async def store(self, after: Event) -> int:
        """Write what has been judged, in its order before the gap; return how many events."""
        services, gap, room = self.services, self.past.gap, self.past.room
        first = gap.lowest_minor - len(self.writes)
        for number, write in enumerate(self.writes):
            write.stored.order = gap.order_major, first + number
        if self.writes:
            await history_commit.store_history(services, room.room_nid, self.writes)
        if not any(self._is_missing(prev_id) for prev_id in after.prev_event_ids):
            await missing_events.delete_gaps(services.db, [gap.event_nid])
        return len(self.writes)
