"""The state of a room where its graph has several ends: state sets loaded, resolved, and stored.

Resolution is a pure function of the states after some events, so its result is kept by their ids.
What it needs to see (the conflicted events, their auth chains) is loaded in a few statements.

Spec: server-server-api#room-state-resolution
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.protocol import state_resolution
from minihs.protocol.state_resolution import MissingEventsError, conflicted
from minihs.storage import auth_chains
from minihs.storage.event_store import REJECTED
from minihs.storage.state import EMPTY_STATE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from minihs.protocol.identifiers import EventId, StateKey
    from minihs.protocol.room_versions import RoomVersion
    from minihs.services.context import Services
    from minihs.storage.event_store import StoredEvent
    from minihs.storage.state import State, StateRow

LOADS_MAX = 20


class TooManyLoadsError(RuntimeError):
    """State resolution does not come to an end of what it needs to see."""


async def resolve(
    services: Services, room_version: RoomVersion, after: Sequence[StoredEvent]
) -> tuple[State, list[StateRow]]:
    """Return the state after several events, resolved, and the rows that record it if it is new."""
    state_ids = {stored.state_after for stored in after if stored.state_after is not None}
    return await resolve_states(services, room_version, state_ids)


async def resolve_states(
    services: Services, room_version: RoomVersion, state_ids: Iterable[int]
) -> tuple[State, list[StateRow]]:
    """Return the resolution of several states, and the rows that record it if it is new."""
    ids = frozenset(state_ids)
    if not ids:
        return EMPTY_STATE, []
    if len(ids) == 1:
        return await services.states.get(next(iter(ids))), []
    known = services.states.resolutions.get(ids)
    if known is not None:
        return await services.states.get(known), []
    states = list((await services.states.get_many(ids)).values())
    state, rows = await record(services, states, await _resolve(services, room_version, states))
    if not rows:
        services.states.resolutions.put(ids, state.state_id)
    return state, rows


async def load_state_events(
    services: Services, state: State, keys: Sequence[StateKey]
) -> dict[StateKey, StoredEvent]:
    """Return the events that hold the given keys of a state."""
    entries, cached = state.entries, services.events.cached
    ids = {key: entry for key in keys if (entry := entries.get(key)) is not None}
    found: dict[StateKey, StoredEvent] = {}
    missing: list[EventId] = []
    for key, event_id in ids.items():
        stored = cached(event_id)
        if stored is None:
            missing.append(event_id)
        else:
            found[key] = stored
    if missing:
        loaded = await services.events.get_many(missing)
        found |= {key: loaded[event_id] for key, event_id in ids.items() if event_id in loaded}
    return found


async def record(
    services: Services, near: Sequence[State], entries: Mapping[StateKey, EventId]
) -> tuple[State, list[StateRow]]:
    """Return the state that has these entries, and the row that records it if it is new.

    It is written down as what it changes on the nearest of some known states: few rows to write.
    """
    changes = [_changes(state, entries) for state in near]
    parent, fewest = min(zip(near, changes, strict=True), key=lambda pair: len(pair[1]))
    if not fewest:
        return parent, []
    await services.states.numbers.reserve(1)
    state, row = services.states.derive(parent, fewest)
    services.states.remember(state)
    return state, [row]


def _changes(state: State, entries: Mapping[StateKey, EventId]) -> dict[StateKey, EventId | None]:
    """Return what makes `entries` of a state."""
    changes: dict[StateKey, EventId | None] = {
        key: event_id for key, event_id in entries.items() if state.entries.get(key) != event_id
    }
    changes |= {key: None for key in state.entries if key not in entries}
    return changes


async def _resolve(
    services: Services, room_version: RoomVersion, states: Sequence[State]
) -> dict[tuple[str, str], EventId]:
    maps = [state.entries for state in states]
    wanted: set[EventId] = set(conflicted(maps))
    for _ in range(LOADS_MAX):
        chain = await auth_chains.list_auth_chain(services.db, wanted)
        stored = await services.events.get_many(chain | wanted)
        events = {event_id: s.event for event_id, s in stored.items()}
        rejected = {event_id for event_id, s in stored.items() if s.status == REJECTED}
        try:
            return state_resolution.resolve(room_version, maps, events, rejected=rejected)
        except MissingEventsError as error:
            unknown = error.event_ids - wanted
            if not unknown:
                raise
            wanted |= unknown
    raise TooManyLoadsError("state resolution asks for ever more events")
