"""Fetching the state at an event from a server that has it: all of it, or what we lack of it.

Spec: server-server-api#backfilling-and-retrieving-missing-events
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from minihs.protocol.state_keys import CREATE
from minihs.remote.transport import RemoteError
from minihs.services.rooms import history_commit, state
from minihs.services.rooms.missing import (
    SINGLE_EVENTS_MAX,
    Room,
    fetch_single_events,
    ids_in,
    list_in,
    store_outliers,
    verify_fetched,
)
from minihs.storage import missing_events
from minihs.storage.event_store import REJECTED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minihs.protocol.events import Event
    from minihs.protocol.identifiers import EventId, StateKey
    from minihs.services.context import Services
    from minihs.storage.state import State

logger = logging.getLogger(__name__)

STATE_EVENTS_MAX = 150_000


class UntoldError(Exception):
    """The server that is to tell the state at an event says nothing of it."""


async def fetch_state_after(
    services: Services, origin: str, room: Room, event_id: EventId, near: State
) -> State | None:
    """Return the state after an event that we lack, as the origin tells it; None if it cannot.

    The state is recorded, as what it changes on `near`. Events of it that cannot be had, or that
    must not be believed, are left out of it.

    Raises:
        UntoldError: the origin says nothing of it.

    Spec: server-server-api#get_matrixfederationv1state_idsroomid
    """
    before = await _fetch_entries_before(services, origin, room, event_id)
    if before is None:
        return None
    stored = await services.events.get(event_id)
    if stored is None or stored.event.room_id != room.room_id:
        return None
    entries = before
    if stored.event.is_state and stored.status != REJECTED:
        entries = {**before, stored.event.key: event_id}
    return await _record(services, room, entries, near)


async def fetch_state_before(
    services: Services, origin: str, room: Room, event: Event, near: State
) -> State | None:
    """Return the state before an event, as the origin tells it; None if it cannot."""
    try:
        entries = await _fetch_entries_before(services, origin, room, event.event_id, itself=False)
    except UntoldError:
        return None
    return None if entries is None else await _record(services, room, entries, near)


async def _record(
    services: Services, room: Room, entries: Mapping[StateKey, EventId], near: State
) -> State:
    found, rows = await state.record(services, [near], entries)
    if rows:
        await history_commit.store_history(services, room.room_nid, (), rows)
    return found


async def _fetch_entries_before(
    services: Services, origin: str, room: Room, event_id: EventId, *, itself: bool = True
) -> dict[StateKey, EventId] | None:
    """Return the state before an event; what it consists of is stored, with the event `itself`.

    None if what was told is no state.
    """
    answer = await services.remote.get_state_ids(origin, room.room_id, event_id)
    if isinstance(answer, RemoteError):
        raise UntoldError(answer.describe())
    state_ids = ids_in(list_in(answer, "pdu_ids"))
    chain_ids = ids_in(list_in(answer, "auth_chain_ids"))
    wanted = {*state_ids, *chain_ids, *([event_id] if itself else ())}
    if not state_ids or len(wanted) > STATE_EVENTS_MAX:
        return None
    known = await missing_events.list_known(services.db, wanted)
    unknown = wanted - known.keys()
    if unknown:
        if len(unknown) > SINGLE_EVENTS_MAX and len(unknown) * 10 > len(wanted):
            fetched = await _fetch_whole_state(services, origin, room, event_id)
            if itself and event_id in unknown:
                fetched |= await fetch_single_events(services, origin, room, [event_id])
        else:
            some = sorted(unknown)[: 4 * SINGLE_EVENTS_MAX]
            fetched = await fetch_single_events(services, origin, room, some)
        await store_outliers(
            services, room, [event for e, event in fetched.items() if e in unknown]
        )
        known |= await missing_events.list_known(services.db, unknown)
    entries: dict[StateKey, EventId] = {}
    for state_id in state_ids:
        found = known.get(state_id)
        if found is None or found.room_nid != room.room_nid or found.status == REJECTED:
            continue
        if found.key is None or entries.setdefault(found.key, state_id) != state_id:
            logger.info("%s gives a state of %s that is none", origin, room.room_id)
            return None
    if CREATE not in entries or entries[CREATE] != (room.create_id or entries[CREATE]):
        logger.info("%s gives a state of %s without its create event", origin, room.room_id)
        return None
    return entries


async def _fetch_whole_state(
    services: Services, origin: str, room: Room, event_id: EventId
) -> dict[EventId, Event]:
    answer = await services.remote.get_state(origin, room.room_id, event_id)
    pdus = [*list_in(answer, "pdus"), *list_in(answer, "auth_chain")]
    return await verify_fetched(services, room, pdus[:STATE_EVENTS_MAX])
