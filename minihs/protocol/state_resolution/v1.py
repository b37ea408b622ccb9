"""State resolution of room version 1.

Conflicts are settled type by type: power levels, join rules, memberships, and then the rest, each
against the result of those before. It can fall back to older states, which is why it was replaced.

Spec: rooms/v1#state-resolution
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from minihs.protocol.event_auth.errors import EventAuthError
from minihs.protocol.event_auth.selection import select_auth_keys_of
from minihs.protocol.event_auth.state_dependent import check_state_dependent
from minihs.protocol.state_keys import POWER_LEVELS
from minihs.protocol.state_resolution.state_maps import Check, MissingEventsError, Resolution

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from minihs.protocol.events import Event
    from minihs.protocol.identifiers import EventId, StateKey
    from minihs.protocol.state_resolution.state_maps import StateMap


def resolve(state_maps: Sequence[StateMap], events: Mapping[EventId, Event]) -> Resolution:
    """Return the resolution of a set of states. Arguments: see `state_resolution.resolve`."""
    result = Resolution(*_separate(state_maps))
    _require(set().union(*result.conflicted.values()), events)
    conflicts = {
        key: sorted((events[event_id] for event_id in event_ids), key=_depth_then_sha1)
        for key, event_ids in result.conflicted.items()
    }
    state = _authorizing_state(result.unconflicted, conflicts, events)

    # Power levels, then join rules, then memberships: each kind sees what the ones before gave.
    for step, keys in (
        ("power levels", [key for key in conflicts if key == POWER_LEVELS]),
        ("join rules", [key for key in conflicts if key[0] == "m.room.join_rules"]),
        ("memberships", [key for key in conflicts if key[0] == "m.room.member"]),
    ):
        winners = {
            key: _last_of_unbroken_row(step, conflicts.pop(key), state, result) for key in keys
        }
        state.update(winners)
        result.resolved.update({key: event.event_id for key, event in winners.items()})

    # No other events affect the authorization rules.
    for key, candidates in conflicts.items():
        result.resolved[key] = _first_authorized(candidates, state, result).event_id
    result.resolved.update(result.unconflicted)
    return result


def _separate(
    state_maps: Sequence[StateMap],
) -> tuple[dict[StateKey, EventId], dict[StateKey, set[EventId]]]:
    """Return what is not in conflict, and the conflicting events by key.

    In this version a key that a state does not have conflicts with nothing.
    """
    found: dict[StateKey, set[EventId]] = {}
    for state_map in state_maps:
        for key, event_id in state_map.items():
            found.setdefault(key, set()).add(event_id)
    unconflicted = {key: next(iter(ids)) for key, ids in found.items() if len(ids) == 1}
    return unconflicted, {key: ids for key, ids in found.items() if len(ids) > 1}


def _depth_then_sha1(event: Event) -> tuple[int, str]:
    """Sort from the greatest depth to the least, and at the same depth by SHA-1 of the event ID."""
    # SHA-1 protects nothing here: it shuffles events of the same depth alike on every server.
    digest = hashlib.sha1(event.event_id.encode(), usedforsecurity=False)
    return (-event.depth, digest.hexdigest())


def _authorizing_state(
    unconflicted: Mapping[StateKey, EventId],
    conflicts: Mapping[StateKey, Sequence[Event]],
    events: Mapping[EventId, Event],
) -> dict[StateKey, Event]:
    """Return the events not in conflict that the authorization rules will ask for."""
    keys = {
        key
        for candidates in conflicts.values()
        for event in candidates
        for key in select_auth_keys_of(event)
    }
    wanted = {key: unconflicted[key] for key in keys if key in unconflicted}
    _require(wanted.values(), events)
    return {key: events[event_id] for key, event_id in wanted.items()}


def _last_of_unbroken_row(
    step: str, candidates: Sequence[Event], state: Mapping[StateKey, Event], result: Resolution
) -> Event:
    """Return the last of the events, oldest first, of which each is allowed by the one before."""
    winner, *others = reversed(candidates)
    needed = {key for event in candidates for key in select_auth_keys_of(event)}
    auth_state = {key: event for key, event in state.items() if key in needed}
    for event in others:
        auth_state[winner.key] = winner
        if not _is_authorized(step, event, auth_state, result):
            break
        winner = event
    return winner


def _first_authorized(
    candidates: Sequence[Event], state: Mapping[StateKey, Event], result: Resolution
) -> Event:
    """Return the event of the greatest depth that is allowed; if none is, that of the least."""
    for event in candidates:
        if _is_authorized("other events", event, state, result):
            return event
    return candidates[-1]


def _is_authorized(
    step: str, event: Event, state: Mapping[StateKey, Event], result: Resolution
) -> bool:
    error: EventAuthError | None = None
    try:
        check_state_dependent(event, state)
    except EventAuthError as found:
        error = found
    result.checks.append(Check(step, event.event_id, error))
    return error is None


def _require(event_ids: Iterable[EventId], events: Mapping[EventId, Event]) -> None:
    if missing := [event_id for event_id in event_ids if event_id not in events]:
        raise MissingEventsError(missing)
