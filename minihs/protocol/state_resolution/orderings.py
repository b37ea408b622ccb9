"""The two orderings of state resolution v2.

Spec: rooms/v2#definitions ("Reverse topological power ordering", "Mainline ordering")
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from minihs.protocol.power_levels import PowerLevels
from minihs.protocol.state_keys import CREATE, POWER_LEVELS

if TYPE_CHECKING:
    from collections.abc import Collection

    from minihs.protocol.events import Event
    from minihs.protocol.identifiers import EventId, StateKey
    from minihs.protocol.state_resolution.state_maps import Events


def reverse_topological_power_ordering(
    event_ids: Collection[EventId], events: Events
) -> list[EventId]:
    """Return the events so that each follows its auth events among them; power decides the rest.

    Kahn's algorithm: of the events whose predecessors are all placed, the smallest is next.
    """
    waiting_for: dict[EventId, int] = {}
    needed_by: dict[EventId, list[EventId]] = {event_id: [] for event_id in event_ids}
    for event_id in needed_by:
        predecessors = [e for e in set(events.auth_events_of(event_id)) if e in needed_by]
        waiting_for[event_id] = len(predecessors)
        for predecessor in predecessors:
            needed_by[predecessor].append(event_id)

    def rank(event_id: EventId) -> tuple[float, int, EventId]:
        # Greater power first, then the earlier timestamp, then the lesser event ID.
        event = events[event_id]
        return (-sender_level(event, events), event.origin_server_ts, event_id)

    candidates = [rank(event_id) for event_id, count in waiting_for.items() if count == 0]
    heapq.heapify(candidates)
    ordering = []
    while candidates:
        event_id = heapq.heappop(candidates)[-1]
        ordering.append(event_id)
        for successor in needed_by[event_id]:
            waiting_for[successor] -= 1
            if waiting_for[successor] == 0:
                heapq.heappush(candidates, rank(successor))
    return ordering


def sender_level(event: Event, events: Events) -> float:
    """Return the power of the event's sender by the event's own auth events."""
    create = auth_event(event, CREATE, events)
    power_levels = auth_event(event, POWER_LEVELS, events)
    return PowerLevels.of(power_levels, create, event.room_version).user_level(event.sender)


def mainline_ordering(
    event_ids: Collection[EventId], power_levels_id: EventId | None, events: Events
) -> list[EventId]:
    """Return the events in the mainline ordering based on a power levels event.

    Without a power levels event all positions are the same.
    """
    position = _mainline_positions(power_levels_id, events)

    def rank(event_id: EventId) -> tuple[float, int, EventId]:
        # Events based on an older part of the mainline come first.
        place = _mainline_position(events[event_id], position, events)
        return (-place, events[event_id].origin_server_ts, event_id)

    return sorted(event_ids, key=rank)


def _mainline_positions(power_levels_id: EventId | None, events: Events) -> dict[EventId, float]:
    """Return the mainline of a power levels event: the place of each event of it, 0 the newest."""
    positions: dict[EventId, float] = {}
    while power_levels_id is not None:
        positions[power_levels_id] = len(positions)
        previous = auth_event(events[power_levels_id], POWER_LEVELS, events)
        power_levels_id = None if previous is None else previous.event_id
    return positions


def _mainline_position(event: Event, positions: dict[EventId, float], events: Events) -> float:
    """Return where the power levels that an event is based on meet the mainline; else infinity.

    Events passed on the way are added to `positions`, so that each is passed only once.
    """
    passed: list[EventId] = []
    found = float("inf")
    current = auth_event(event, POWER_LEVELS, events)
    while current is not None:
        if current.event_id in positions:
            found = positions[current.event_id]
            break
        passed.append(current.event_id)
        current = auth_event(current, POWER_LEVELS, events)
    positions.update(dict.fromkeys(passed, found))
    return found


def auth_event(event: Event, key: StateKey, events: Events) -> Event | None:
    """Return the auth event of this type and state key, if the event names one."""
    for event_id in event.auth_event_ids:
        candidate = events[event_id]
        if candidate.key == key and candidate.is_state:
            return candidate
    return None
