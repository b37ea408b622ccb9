"""The servers of a room: which are in it at an event, and how an event changes that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.protocol.identifiers import server_name_of
from minihs.protocol.membership import AUTHORISING_USER, membership_of
from minihs.storage import state_reads
from minihs.storage.state import EMPTY_STATE_ID

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from minihs.protocol.identifiers import EventId, StateKey
    from minihs.services.context import Services
    from minihs.storage.event_store import StoredEvent

CHANGES_MAX = 1_000  # More changes of membership than these by one event: read the room anew.
MEMBER = "m.room.member"
OUT = "leave"  # What somebody is of whom a room's state says nothing.


@dataclass(frozen=True, slots=True)
class Change:
    """What an event made of a user's membership.

    `is_again`: they were joined before, and the event says nothing else of them. So a server joins
    that does not know that it has, as it never got the answer to its last join.
    """

    user_id: str
    before: str
    after: str
    is_again: bool = False


async def membership_changes(services: Services, stored: StoredEvent) -> Sequence[Change] | None:
    """Return how an event changed who is in its room; None if everything is different since it."""
    before, after = stored.room_state_before, stored.room_state_after
    if before == after or before is None or after is None:
        return ()
    event = stored.event
    keys: Iterable[StateKey]
    if stored.state_before == before and stored.state_after == after:
        if event.type != MEMBER:
            return ()
        old = await state_reads.load_entries(services.states, services.db, [before], [event.key])
        old_entries, new_entries = old[before], {event.key: event.event_id}
        keys = [event.key]
    elif before == EMPTY_STATE_ID:
        return None
    else:
        states = await services.states.get_many([before, after])
        old_map, new_map = states[before].entries, states[after].entries
        keys = {k for k, e in new_map.items() if k[0] == MEMBER and old_map.get(k) != e}
        keys |= {k for k in old_map if k[0] == MEMBER and k not in new_map}
        if len(keys) > CHANGES_MAX:
            return None
        old_entries = {k: e for k in keys if (e := old_map.get(k)) is not None}
        new_entries = {k: e for k in keys if (e := new_map.get(k)) is not None}
    ids = {*old_entries.values(), *new_entries.values()} - {event.event_id}
    events = await services.events.get_many(ids) if ids else {}
    events[event.event_id] = stored
    return [
        Change(
            key[1],
            _membership(events, old_entries.get(key)),
            _membership(events, new_entries.get(key)),
            _is_again(events, old_entries.get(key), new_entries.get(key)),
        )
        for key in keys
    ]


def _membership(events: dict[EventId, StoredEvent], event_id: EventId | None) -> str:
    stored = events.get(event_id) if event_id is not None else None
    return (membership_of(stored.event) if stored is not None else None) or OUT


def _is_again(
    events: dict[EventId, StoredEvent], before_id: EventId | None, after_id: EventId | None
) -> bool:
    """Return whether a join is like the one before, but for who vouches for it."""
    if before_id is None or after_id is None or not {before_id, after_id} <= events.keys():
        return False
    before, after = events[before_id].event.content, events[after_id].event.content
    if before.get("membership") != "join":
        return False
    return {**before, AUTHORISING_USER: None} == {**after, AUTHORISING_USER: None}


def steps_of(changes: Iterable[Change]) -> dict[str, int]:
    """Return by how many more users each server is joined after some changes."""
    steps: dict[str, int] = {}
    for change in changes:
        step = (change.after == "join") - (change.before == "join")
        if step:
            server = server_name_of(change.user_id)
            steps[server] = steps.get(server, 0) + step
    return steps


def difference(joined: dict[str, int], steps: dict[str, int]) -> tuple[set[str], set[str]]:
    """Return the servers that steps would take out of a room, and those that they bring in."""
    gone = {s for s, n in steps.items() if s in joined and joined[s] + n <= 0}
    come = {s for s, n in steps.items() if s not in joined and n > 0}
    return gone, come


def apply_steps(joined: dict[str, int], steps: dict[str, int], sign: int = 1) -> None:
    """Take steps, or with `sign` -1 take them back."""
    for server, step in steps.items():
        count = joined.get(server, 0) + sign * step
        if count > 0:
            joined[server] = count
        else:
            joined.pop(server, None)


async def was_joined(services: Services, stored: StoredEvent, server_name: str) -> bool:
    """Return whether a server had a joined user in the room when an event was accepted.

    Spec: server-server-api#pdus
    """
    after = stored.room_state_after
    return after is not None and server_name in await joined_among(services, after, {server_name})


async def joined_among(
    services: Services, state_id: int, server_names: Collection[str]
) -> set[str]:
    """Return those of the servers that have a joined user in a state."""
    state = await services.states.get(state_id)
    ids = [
        event_id
        for (kind, user_id), event_id in state.entries.items()
        if kind == MEMBER and server_name_of(user_id) in server_names
    ]
    events = (await services.events.get_many(ids)).values()
    joined = (member.event for member in events if membership_of(member.event) == "join")
    return {server_name_of(event.state_key or "") for event in joined}


async def unknown_to_sender(
    services: Services, stored: StoredEvent, servers: Collection[str]
) -> set[str]:
    """Return those of the servers that an event's sender took for not being in the room.

    It does not tell them of the event, by which others find that they are not: what they did
    meanwhile to come in, or to stay, the state resolution has undone.
    """
    if not servers or stored.state_before is None:
        return set()
    known = await joined_among(services, stored.state_before, servers)
    return {*servers} - known - {server_name_of(stored.event.sender)}


async def was_removed(services: Services, stored: StoredEvent) -> bool:
    """Return whether a member event put somebody out who was in the room, or on the way in."""
    changes = await membership_changes(services, stored)
    return any(c.before in ("join", "invite", "knock") for c in changes or ())
