"""Room summaries: how many are in a room, and whom to name it after.

Spec: client-server-api#calculating-the-display-name-for-a-room
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.storage import timelines

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minihs.services.context import Services
    from minihs.storage.state import State

HEROES_MAX = 5


@dataclass(frozen=True, slots=True)
class Summary:
    """How many are in a room, and whom to name it after (None: it has a name)."""

    joined: int
    invited: int
    heroes: list[str] | None

    def json(self) -> dict[str, object]:
        """Return it as clients get it."""
        counts: dict[str, object] = {
            "m.joined_member_count": self.joined,
            "m.invited_member_count": self.invited,
        }
        return counts if self.heroes is None else {**counts, "m.heroes": self.heroes}


async def summaries(
    services: Services, user_id: str, rooms: Mapping[str, State]
) -> dict[str, Summary]:
    """Return the summary of each room, as `user_id` sees it; `rooms` are their current states."""
    if not rooms:
        return {}
    counts = await timelines.list_summaries(services.db, list(rooms))
    nameless = [room_id for room_id, state in rooms.items() if not await _is_named(services, state)]
    heroes = await timelines.list_heroes(services.db, nameless, HEROES_MAX + 1) if nameless else {}
    return {
        room_id: Summary(joined, invited, _chosen(heroes.get(room_id), user_id))
        for room_id, (joined, invited) in counts.items()
    }


def _chosen(candidates: list[tuple[str, str]] | None, user_id: str) -> list[str] | None:
    """Return the heroes; those who have gone are some only where nobody else is left."""
    if candidates is None:
        return None
    others = [(hero, membership) for hero, membership in candidates if hero != user_id]
    present = [hero for hero, membership in others if membership in ("join", "invite")]
    return (present or [hero for hero, _ in others])[:HEROES_MAX]


async def _is_named(services: Services, state: State) -> bool:
    """Return whether a room has a name or a canonical alias, so that it needs no heroes."""
    for event_type, key in (("m.room.name", "name"), ("m.room.canonical_alias", "alias")):
        event_id = state.get(event_type)
        stored = await services.events.get(event_id) if event_id is not None else None
        if stored is not None and stored.redacted_by is None and stored.event.content.get(key):
            return True
    return False
