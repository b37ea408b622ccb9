"""The room state as the authorization rules look at it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.protocol.identifiers import server_name_of
from minihs.protocol.membership import membership_of
from minihs.protocol.power_levels import PowerLevels
from minihs.protocol.state_keys import CREATE, JOIN_RULES, POWER_LEVELS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minihs.protocol.events import Event
    from minihs.protocol.identifiers import StateKey
    from minihs.protocol.room_versions import RoomVersion


class AuthState:
    """A state of the room, and the words in which the rules speak of it."""

    __slots__ = ("create", "power_levels", "power_levels_event", "state")

    def __init__(self, state: Mapping[StateKey, Event], room_version: RoomVersion) -> None:
        self.state = state
        self.create = state.get(CREATE)
        self.power_levels_event = state.get(POWER_LEVELS)
        self.power_levels = PowerLevels.of(self.power_levels_event, self.create, room_version)

    def membership(self, user_id: str | None) -> str | None:
        """Return the current membership of a user, None if there never was one."""
        return membership_of(self.state.get(("m.room.member", user_id or "")))

    @property
    def join_rule(self) -> object:
        """The join rule; `invite` unless the room says otherwise."""
        event = self.state.get(JOIN_RULES)
        return "invite" if event is None else event.content.get("join_rule", "invite")

    def lets_in(self, user_id: str) -> bool:
        """Return whether the room federates with the user's server, or is of it."""
        create = self.create
        if create is None or create.content.get("m.federate", True) is not False:
            return True
        return server_name_of(user_id) == server_name_of(create.sender)

    def level(self, user_id: str | None) -> float:
        """Return the power of a user."""
        return self.power_levels.user_level(user_id or "")
