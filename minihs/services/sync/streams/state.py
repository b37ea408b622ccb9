"""The state section of a room: from what the client knows to what its timeline begins with.

Spec: client-server-api#syncing, client-server-api#lazy-loading-room-members
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.services.sync.streams.timeline import changes_between
from minihs.storage.state import EMPTY_STATE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from minihs.protocol.identifiers import EventId, StateKey
    from minihs.services.context import Services
    from minihs.services.sync.spans import Span, SyncRequest
    from minihs.services.sync.streams.timeline import Timeline
    from minihs.storage.event_store import StoredEvent
    from minihs.storage.state import State


async def state_sections(
    services: Services,
    request: SyncRequest,
    rooms: Iterable[tuple[Span, Timeline]],
) -> dict[str, list[StoredEvent]]:
    """Return the events of each room's state section, by room.

    With `use_state_after` that is the state at the end of the timeline, else at its beginning.
    """
    rooms = list(rooms)
    ids: set[int] = set()
    for _, timeline in rooms:
        ids.add(timeline.state_since)
        ids.add(timeline.state_end if request.use_state_after else timeline.state_start)
    states = await services.states.get_many(ids)
    chosen: dict[str, list[EventId]] = {}
    for span, timeline in rooms:
        known = EMPTY_STATE if span.is_new else states[timeline.state_since]
        if span.joined_at is None and not await _was_joined(services, request.user_id, known):
            known = EMPTY_STATE  # Joined and left since: the client knows nothing of the room.
        new = states[timeline.state_end if request.use_state_after else timeline.state_start]
        entries = {**_select(request, timeline, known, new), **_of_outsider(request, timeline)}
        chosen[span.room_id] = list(entries.values())
    events = await services.events.get_many({e for entries in chosen.values() for e in entries})
    filter_ = request.filter.room.state
    return {
        room_id: [
            stored
            for event_id in entries
            if (stored := events.get(event_id)) is not None
            and (
                filter_.matches_all
                or filter_.matches(
                    event_type=stored.event.type,
                    sender=stored.event.sender,
                    room_id=stored.event.room_id,
                    content=stored.event.content,
                )
            )
        ]
        for room_id, entries in chosen.items()
    }


async def _was_joined(services: Services, user_id: str, state: State) -> bool:
    """Return whether a user was joined in a state."""
    event_id = state.get("m.room.member", user_id)
    stored = await services.events.get(event_id) if event_id is not None else None
    return stored is not None and stored.event.content.get("membership") == "join"


def _of_outsider(request: SyncRequest, timeline: Timeline) -> Mapping[StateKey, EventId]:
    """Return the membership of a reader who is outside, where the timeline does not tell it.

    They are shown the state as they left the room, if any; they may have been banned since.
    """
    outside = timeline.outside
    if outside is None or outside.event.key != ("m.room.member", request.user_id):
        return {}
    shown = {stored.event_id for stored in timeline.events}
    if outside.event_id in shown and not request.use_state_after:
        return {}
    return {outside.event.key: outside.event_id}


def _select(
    request: SyncRequest, timeline: Timeline, known: State, new: State
) -> Mapping[StateKey, EventId]:
    """Return the entries to send to whom `known` is known.

    With lazy loading, of the members those whom the client sees, and those whom it would not see
    change, as that happened in a gap.
    """
    old = EMPTY_STATE if request.full_state else known
    changes = changes_between(old, new)
    if not request.filter.room.state.lazy_load_members:
        return changes
    present = {stored.event_id for stored in timeline.events}
    seen = {stored.event.sender for stored in timeline.events}
    if not old.entries:
        seen.add(request.user_id)
    chosen = {key: event for key, event in changes.items() if key[0] != "m.room.member"}
    if request.use_state_after or request.full_state:
        # Nothing else tells the client of members that changed in the timeline.
        chosen |= {
            stored.event.key: stored.event_id
            for stored in timeline.events
            if stored.event.type == "m.room.member"
            and new.entries.get(stored.event.key) == stored.event_id
        }
    if timeline.limited and known.entries:
        changed = changes_between(known, new)
        chosen |= {key: event for key, event in changed.items() if key[0] == "m.room.member"}
    for user_id in seen:
        event_id = new.entries.get(("m.room.member", user_id))
        if event_id is not None and (request.use_state_after or event_id not in present):
            chosen["m.room.member", user_id] = event_id
    return chosen
