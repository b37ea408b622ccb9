"""The state section of a room: from what the client knows to what its timeline begins with.

Spec: client-server-api#syncing, client-server-api#lazy-loading-room-members
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.services.sync.streams.timeline import changes_between
from minihs.storage import redacted_stays
from minihs.storage.state import EMPTY_STATE, EMPTY_STATE_ID

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

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
    for span, timeline in rooms:
        ids.add(_known(request, span, timeline))
        ids.add(timeline.state_end if request.use_state_after else timeline.state_start)
    states = await services.states.get_many(ids)
    reasons = await _reasons(services, request, rooms)
    chosen: dict[str, list[EventId]] = {}
    for span, timeline in rooms:
        old = states[_known(request, span, timeline)]
        if span.joined_at is None and not await _was_joined(services, request.user_id, old):
            old = EMPTY_STATE  # Joined and left since: the client knows nothing of the room.
        new = states[timeline.state_end if request.use_state_after else timeline.state_start]
        selected = dict(_select(request, timeline, old, new))
        for user_id, because_id in reasons.get(span.room_id, ()):
            if new.get("m.room.member", user_id) == because_id:
                selected["m.room.member", user_id] = because_id
        chosen[span.room_id] = list(selected.values())
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


async def _reasons(
    services: Services, request: SyncRequest, rooms: Iterable[tuple[Span, Timeline]]
) -> Mapping[str, Sequence[tuple[str, EventId]]]:
    """Return the kicks and bans that redact something in gaps; else lazy loading would hide them.

    The client may hold events that it must redact. MSC4293#potential-issues
    """
    if not request.filter.room.state.lazy_load_members:
        return {}
    gaps = [(s.room_id, s.after) for s, timeline in rooms if timeline.limited and not s.is_new]
    return await redacted_stays.list_reasons(services.db, gaps) if gaps else {}


def _known(request: SyncRequest, span: Span, timeline: Timeline) -> int:
    """Return the state that the client has already."""
    if span.is_new or request.full_state:
        return EMPTY_STATE_ID
    return timeline.state_since


async def _was_joined(services: Services, user_id: str, state: State) -> bool:
    """Return whether a user was joined in a state."""
    event_id = state.get("m.room.member", user_id)
    stored = await services.events.get(event_id) if event_id is not None else None
    return stored is not None and stored.event.content.get("membership") == "join"


def _select(
    request: SyncRequest, timeline: Timeline, old: State, new: State
) -> Mapping[StateKey, EventId]:
    """Return the entries to send; with lazy loading, of the members those whom the client sees."""
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
    for user_id in seen:
        event_id = new.entries.get(("m.room.member", user_id))
        if event_id is not None and (request.use_state_after or event_id not in present):
            chosen["m.room.member", user_id] = event_id
    return chosen
