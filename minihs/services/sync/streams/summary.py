"""Room summaries: how many are in a room, and whom to name it after.

Spec: client-server-api#calculating-the-display-name-for-a-room
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.storage import timelines

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minihs.services.context import Services
    from minihs.storage.state import State

HEROES_MAX = 5


async def summaries(
    services: Services, user_id: str, rooms: Mapping[str, State]
) -> dict[str, dict[str, object]]:
    """Return the summary of each room, as `user_id` sees it; `rooms` are their current states."""
    if not rooms:
        return {}
    counts = await timelines.list_summaries(services.db, list(rooms))
    nameless = [room_id for room_id, state in rooms.items() if not await _is_named(services, state)]
    heroes = await timelines.list_heroes(services.db, nameless, HEROES_MAX + 1) if nameless else {}
    found: dict[str, dict[str, object]] = {}
    for room_id, (joined, invited) in counts.items():
        summary: dict[str, object] = {
            "m.joined_member_count": joined,
            "m.invited_member_count": invited,
        }
        if room_id in heroes:
            others = [hero for hero in heroes[room_id] if hero != user_id]
            summary["m.heroes"] = others[:HEROES_MAX]
        found[room_id] = summary
    return found


async def _is_named(services: Services, state: State) -> bool:
    """Return whether a room has a name or a canonical alias, so that it needs no heroes."""
    for event_type, key in (("m.room.name", "name"), ("m.room.canonical_alias", "alias")):
        event_id = state.get(event_type)
        stored = await services.events.get(event_id) if event_id is not None else None
        if stored is not None and stored.redacted_by is None and stored.event.content.get(key):
            return True
    return False
