"""State maps, and the sets of events that resolution is defined on.

A *state map* is a room state: (event type, state key) -> event ID. These functions compare state
maps and walk auth chains; they know nothing of what events say.

Spec: rooms/v2#definitions, rooms/v12#definitions
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from minihs.protocol.event_auth.errors import EventAuthError
    from minihs.protocol.events import Event
    from minihs.protocol.identifiers import EventId, StateKey

StateMap: TypeAlias = "Mapping[StateKey, EventId]"


class MissingEventsError(LookupError):
    """Resolution needs these events, best with their auth chains, to go on."""

    def __init__(self, event_ids: Collection[EventId]) -> None:
        super().__init__(f"{len(event_ids)} events are needed: {sorted(event_ids)[:5]} …")
        self.event_ids = frozenset(event_ids)


@dataclass(frozen=True, slots=True)
class Check:
    """An event was tried against the state resolved so far, and got in, or the error says why not.

    `step` is the paragraph of the algorithm.
    """

    step: str
    event_id: EventId
    error: EventAuthError | None


@dataclass(slots=True)
class Resolution:
    """A resolved state and how it came about."""

    unconflicted: dict[StateKey, EventId]
    conflicted: dict[StateKey, set[EventId]]
    sets: dict[str, set[EventId]] = field(default_factory=dict)
    """Sets of the algorithm by the name the specification gives them."""
    orderings: dict[str, list[EventId]] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    resolved: dict[StateKey, EventId] = field(default_factory=dict)


def conflicted(state_maps: Sequence[StateMap]) -> set[EventId]:
    """Return the conflicted state set: what to load first, with its auth chains."""
    _, conflicts = separate(state_maps)
    return set().union(*conflicts.values())


def separate(
    state_maps: Sequence[StateMap],
) -> tuple[dict[StateKey, EventId], dict[StateKey, set[EventId]]]:
    """Return the unconflicted state map, and the conflicted state set by key.

    A key that is missing in any of the states is in conflict.
    """
    first, *others = state_maps
    unconflicted = dict(first)
    conflicts: dict[StateKey, set[EventId]] = {}
    for key in set().union(*state_maps):
        event_id = first.get(key)
        if event_id is None or any(other.get(key) != event_id for other in others):
            unconflicted.pop(key, None)
            conflicts[key] = {state_map[key] for state_map in state_maps if key in state_map}
    return unconflicted, conflicts


def auth_chain(
    event_ids: Iterable[EventId], auth_events_of: Callable[[EventId], Iterable[EventId]]
) -> set[EventId]:
    """Return the events, and all that their `auth_events` lead to."""
    chain = set(event_ids)
    queue = list(chain)
    while queue:
        for auth_event_id in auth_events_of(queue.pop()):
            if auth_event_id not in chain:
                chain.add(auth_event_id)
                queue.append(auth_event_id)
    return chain


def auth_difference(
    state_maps: Sequence[StateMap], auth_events_of: Callable[[EventId], Iterable[EventId]]
) -> set[EventId]:
    """Return the auth difference: events in the full auth chain of some, but not all, states.

    Where Synapse and the text differ: the text leaves a state's own events out of its auth chain,
    unless they authorize others of it. Synapse counts them in, and rooms only work if servers
    agree, so we do the same.
    """
    # What all states share is in every chain, and so is all that it leads to: one walk for it.
    shared = set(state_maps[0].values()).intersection(*(m.values() for m in state_maps[1:]))
    in_all = auth_chain(shared, auth_events_of)

    def not_in_all(event_id: EventId) -> Iterable[EventId]:
        return (other for other in auth_events_of(event_id) if other not in in_all)

    chains = [
        auth_chain((e for e in state_map.values() if e not in in_all), not_in_all)
        for state_map in state_maps
    ]
    return set().union(*chains) - set(chains[0]).intersection(*chains[1:])


def conflicted_state_subgraph(
    conflicted_state_set: Collection[EventId],
    auth_events_of: Callable[[EventId], Iterable[EventId]],
) -> set[EventId]:
    """Return the events on any path of `auth_events` from one conflicted event to another.

    Both ends are included. Spec: rooms/v12#definitions
    """
    # An event is on a path if it is in the auth chain of a conflicted event, and a conflicted event
    # is in its own. Walk down once to turn the edges round, then up from the conflicted events.
    chain = auth_chain(conflicted_state_set, auth_events_of)
    authorized_by: dict[EventId, list[EventId]] = {}
    for event_id in chain:
        for auth_event_id in auth_events_of(event_id):
            authorized_by.setdefault(auth_event_id, []).append(event_id)
    return auth_chain(conflicted_state_set, lambda event_id: authorized_by.get(event_id, ()))


class Events:
    """The events given to `resolve`, with an error that says which are missing."""

    __slots__ = ("_events",)

    def __init__(self, events: Mapping[EventId, Event]) -> None:
        self._events = events

    def __getitem__(self, event_id: EventId) -> Event:
        try:
            return self._events[event_id]
        except KeyError:
            raise MissingEventsError([event_id]) from None

    def auth_events_of(self, event_id: EventId) -> tuple[EventId, ...]:
        """Return the IDs of the auth events of an event."""
        return self[event_id].auth_event_ids

    def require(self, event_ids: Iterable[EventId]) -> None:
        """Raise unless all of these events and their auth chains are there.

        Raises:
            MissingEventsError: With all at once that a walk can find.
        """
        events, missing = self._events, set()

        def known_auth_events(event_id: EventId) -> Iterable[EventId]:
            if event_id in events:
                return events[event_id].auth_event_ids
            missing.add(event_id)
            return ()

        auth_chain(event_ids, known_auth_events)
        if missing:
            raise MissingEventsError(missing)
