"""Where a user stands in a room: their membership and their power, by its current state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.base.errors import Forbidden, NotFound
from minihs.protocol.membership import membership_of
from minihs.protocol.power_levels import PowerLevels
from minihs.protocol.state_keys import CREATE, POWER_LEVELS
from minihs.services.rooms.heads import load_head
from minihs.services.rooms.state import load_state_events

if TYPE_CHECKING:
    from minihs.protocol.events import Event
    from minihs.protocol.identifiers import StateKey
    from minihs.protocol.power_levels import Level
    from minihs.services.context import Services
    from minihs.services.rooms.heads import RoomHead


@dataclass(frozen=True, slots=True)
class Standing:
    """A user in a room. `membership` is None when the room's state does not name them."""

    user_id: str
    membership: str | None
    levels: PowerLevels

    @property
    def level(self) -> Level:
        """The user's power."""
        return self.levels.user_level(self.user_id)

    def may_send(self, event_type: str, *, is_state: bool) -> bool:
        """Return whether the user is in the room and has the power for an event of this type."""
        needed = self.levels.event_level(event_type, is_state=is_state)
        return self.membership == "join" and self.level >= needed


async def standing_of(services: Services, head: RoomHead, user_id: str) -> Standing:
    """Return where a user stands by the state of a head."""
    member = ("m.room.member", user_id)
    state = await current_events(services, head, [CREATE, POWER_LEVELS, member])
    levels = PowerLevels.of(state.get(POWER_LEVELS), state.get(CREATE), head.room_version)
    return Standing(user_id, membership_of(state.get(member)), levels)


async def current_events(
    services: Services, head: RoomHead, keys: list[StateKey]
) -> dict[StateKey, Event]:
    """Return the events that hold the given keys of a head's state."""
    stored = await load_state_events(services, head.state, keys)
    return {key: found.event for key, found in stored.items()}


async def load_known_room(services: Services, room_id: str) -> RoomHead:
    """Return the head of a room, freshly read.

    Raises:
        NotFound: this server does not know the room.
    """
    head = await load_head(services, room_id)  # type: ignore[arg-type]  # any text may be asked for
    if head is None or not head.extremities:
        raise NotFound("Unknown room.")
    return head


async def require_joined(
    services: Services, room_id: str, user_id: str
) -> tuple[RoomHead, Standing]:
    """Return a room's head and the standing of a user who is joined to it.

    Raises:
        Forbidden: they are not, or there is no such room: outsiders cannot tell which.
    """
    head = await load_head(services, room_id)  # type: ignore[arg-type]  # any text may be asked for
    standing = None if head is None else await standing_of(services, head, user_id)
    if head is None or standing is None or standing.membership != "join":
        raise Forbidden("You are not joined to the room.")
    return head, standing


def text_of(event: Event | None, key: str) -> str | None:
    """Return a text of an event's content; None where there is no event, or no such text."""
    value = None if event is None else event.content.get(key)
    return value if isinstance(value, str) else None
