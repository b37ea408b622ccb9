"""What is the state of a room, when its history forks and the branches disagree?

Every server answers from the events alone, and all must come to the same answer. `resolve` does it
by the algorithm of the room version: `v1`, `v2`, or `v2.1`, which mends two ways in which state
could be reset.

The caller need not know which events the answer depends on. It gives the ones it has; if more are
needed, `resolve` raises `MissingEventsError` that lists them, and is called again:

    events = load(conflicted(state_maps))
    while True:
        try:
            return resolve(room_version, state_maps, events)
        except MissingEventsError as missing:
            events |= load(missing.event_ids)

Loading each event together with its whole auth chain makes this two rounds at most.

Spec: rooms/v1#state-resolution, rooms/v2#state-resolution, rooms/v12#state-resolution
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.protocol.state_resolution import v1, v2
from minihs.protocol.state_resolution.state_maps import (
    Check,
    MissingEventsError,
    Resolution,
    auth_difference,
    conflicted,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from minihs.protocol.events import Event
    from minihs.protocol.identifiers import EventId, StateKey
    from minihs.protocol.room_versions import RoomVersion

__all__ = [
    "Check",
    "MissingEventsError",
    "Resolution",
    "auth_difference",
    "conflicted",
    "explain",
    "resolve",
]


def resolve(
    room_version: RoomVersion,
    state_maps: Sequence[Mapping[StateKey, EventId]],
    events: Mapping[EventId, Event],
    *,
    rejected: Collection[EventId] = frozenset(),
    difference: Collection[EventId] | None = None,
) -> dict[StateKey, EventId]:
    """Return the resolution of a set of states; their order does not matter.

    Args:
        room_version: Says which algorithm.
        state_maps: One or more states, each (type, state key) -> event ID.
        events: The events that resolution looks at: those in conflict, their auth chains, and of
            the rest of the state what authorizes them.
        rejected: Events of these that were rejected. They get into no state.
        difference: The auth difference, if the caller has a quicker way to it. Without it `events`
            must also hold the auth chains of what is not in conflict (v2 and v2.1).

    Raises:
        MissingEventsError: If `events` lacks some that are needed.

    Cost: about 50 µs for each event in conflict, and a step over every entry of every state.
    """
    if all(state_map == state_maps[0] for state_map in state_maps):
        return dict(state_maps[0])
    return explain(
        room_version, state_maps, events, rejected=rejected, difference=difference
    ).resolved


def explain(
    room_version: RoomVersion,
    state_maps: Sequence[Mapping[StateKey, EventId]],
    events: Mapping[EventId, Event],
    *,
    rejected: Collection[EventId] = frozenset(),
    difference: Collection[EventId] | None = None,
) -> Resolution:
    """Return the resolution with every set, ordering and check that led to it.

    Arguments and exceptions are those of `resolve`.
    """
    if room_version.state_resolution == "v1":
        return v1.resolve(state_maps, events)
    return v2.resolve(
        state_maps,
        events,
        rejected=rejected,
        difference=difference,
        is_v2_1=room_version.state_resolution == "v2.1",
    )
