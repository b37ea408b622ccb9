"""State resolution v2 (room versions 2 to 11) and v2.1 (since room version 12).

The idea: of the events that the states do not agree on, those that take power from somebody are
authorized first, in an order in which nobody outruns them. What is left is then tried against the
result, in the order of the power levels it was based on. So a moderator's ban beats whatever the
banned user did beside it, and nobody gains by claiming an early timestamp.

v2.1 starts from nothing, where v2 starts from what the states agree on, and looks at more events:
all between those in conflict. Both take away ways in which an old state could come back.

Spec: rooms/v2#algorithm, rooms/v12#algorithm
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.protocol.event_auth.errors import EventAuthError, rejection
from minihs.protocol.event_auth.selection import select_auth_keys_of
from minihs.protocol.event_auth.state_dependent import check_state_dependent
from minihs.protocol.state_keys import CREATE, JOIN_RULES, POWER_LEVELS
from minihs.protocol.state_resolution.orderings import (
    mainline_ordering,
    reverse_topological_power_ordering,
)
from minihs.protocol.state_resolution.state_maps import (
    Check,
    Events,
    Resolution,
    auth_chain,
    auth_difference,
    conflicted_state_subgraph,
    separate,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from minihs.protocol.events import Event
    from minihs.protocol.identifiers import EventId, StateKey
    from minihs.protocol.state_resolution.state_maps import StateMap


def resolve(
    state_maps: Sequence[StateMap],
    event_map: Mapping[EventId, Event],
    *,
    is_v2_1: bool,
    rejected: Collection[EventId] = frozenset(),
    difference: Collection[EventId] | None = None,
) -> Resolution:
    """Return the resolution of a set of states. Arguments: see `state_resolution.resolve`."""
    events = Events(event_map)
    result = Resolution(*separate(state_maps))
    full_conflicted_set = _full_conflicted_set(
        result, state_maps, events, difference=difference, is_v2_1=is_v2_1
    )

    # Select the power events, enlarge by their auth chains, sort.
    power_events = {e for e in full_conflicted_set if is_power_event(events[e])}
    selected = _with_auth_chain_inside(power_events, full_conflicted_set, events)
    ordering = reverse_topological_power_ordering(selected, events)
    result.orderings["reverse topological power ordering"] = ordering

    # Authorize them one by one. Since v12 from an empty state.
    state = {} if is_v2_1 else dict(result.unconflicted)
    result.checks += iterative_auth_checks("power events", ordering, state, events, rejected)

    # Order the remaining events by the power levels in the partially resolved state.
    remaining = full_conflicted_set - selected
    ordering = mainline_ordering(remaining, state.get(POWER_LEVELS), events)
    result.orderings["mainline ordering"] = ordering

    # Authorize them, too.
    result.checks += iterative_auth_checks("remaining", ordering, state, events, rejected)

    # What the states agree on stays.
    state.update(result.unconflicted)
    result.resolved = state
    return result


def _full_conflicted_set(
    result: Resolution,
    state_maps: Sequence[StateMap],
    events: Events,
    *,
    difference: Collection[EventId] | None,
    is_v2_1: bool,
) -> set[EventId]:
    """Return the full conflicted set; its parts are noted in the result."""
    conflicted_state_set: set[EventId] = set().union(*result.conflicted.values())
    if difference is None:
        events.require(e for state_map in state_maps for e in state_map.values())
        difference = auth_difference(state_maps, events.auth_events_of)
    else:
        events.require(conflicted_state_set.union(difference))
    result.sets["conflicted state set"] = conflicted_state_set
    result.sets["auth difference"] = set(difference)
    full_conflicted_set = conflicted_state_set.union(difference)
    if is_v2_1:  # Since v12.
        subgraph = conflicted_state_subgraph(conflicted_state_set, events.auth_events_of)
        result.sets["conflicted state subgraph"] = subgraph
        full_conflicted_set |= subgraph
    result.sets["full conflicted set"] = full_conflicted_set
    return full_conflicted_set


def is_power_event(event: Event) -> bool:
    """Return whether the event might remove somebody's ability to do something in the room.

    Where Synapse and the text differ: for Synapse power levels and join rules are power events only
    with an empty state key. So it is here.
    """
    if event.type == "m.room.member":
        return (
            event.content.get("membership") in ("leave", "ban") and event.sender != event.state_key
        )
    return event.is_state and event.key in (CREATE, POWER_LEVELS, JOIN_RULES)


def _with_auth_chain_inside(
    power_events: Collection[EventId], full_conflicted_set: set[EventId], events: Events
) -> set[EventId]:
    """Return the power events with what of the full conflicted set authorizes them.

    Where Synapse and the text differ: Synapse follows auth events only inside the full conflicted
    set; the text takes the whole auth chain and then what of it is in the set. So it is here.
    """
    return auth_chain(
        power_events,
        lambda event_id: (e for e in events.auth_events_of(event_id) if e in full_conflicted_set),
    )


def iterative_auth_checks(
    step: str,
    ordering: Iterable[EventId],
    state: dict[StateKey, EventId],
    events: Events,
    rejected: Collection[EventId],
) -> list[Check]:
    """Add to `state` the events that it allows, one after the other; return each verdict.

    Where Synapse and the text differ: by the text an event that was rejected for the state before
    it may come in here. Synapse never lets it, and neither do we.
    """
    checks = []
    for event_id in ordering:
        event = events[event_id]
        error: EventAuthError | None = None
        try:
            if event_id in rejected:
                raise rejection(event, "rejected", "the event was rejected before")
            check_state_dependent(event, _auth_state(event, state, events, rejected))
            state[event.key] = event_id
        except EventAuthError as found:
            error = found
        checks.append(Check(step, event_id, error))
    return checks


def _auth_state(
    event: Event, state: Mapping[StateKey, EventId], events: Events, rejected: Collection[EventId]
) -> dict[StateKey, Event]:
    """Return what an event is checked against.

    The state where it has the needed key; else the event's own auth events.
    """
    auth_state = {
        auth_event.key: auth_event
        for auth_event in map(events.__getitem__, event.auth_event_ids)
        if auth_event.event_id not in rejected
    }
    for key in select_auth_keys_of(event):
        event_id = state.get(key)
        if event_id is not None and event_id not in rejected:
            auth_state[key] = events[event_id]
    return auth_state
