"""Reading `m.room.power_levels`: how much power a user has, and how much something takes.

Levels are read leniently and only when asked for: a level that is malformed reads like one that is
absent. Until v9 a level may be a string, and a boolean or float counts as the integer that Python,
and with it every existing room, made of it. Since v12 the room's creators have infinite power.

Spec: client-server-api#mroompower_levels,
rooms/v1#mroompower_levels-events-accept-values-as-strings
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minihs.protocol.events import Event
    from minihs.protocol.room_versions import RoomVersion

Level = float
"""A power level: an integer, or INFINITE."""

INFINITE: Final[Level] = math.inf
"""The level of creators since v12: above every integer, and equal to itself."""

_NUMERAL = re.compile(r"\s*[+-]?[0-9]+\s*")


@dataclass(frozen=True, slots=True)
class PowerLevels:
    """The power levels in force in a room. Made by `of`."""

    content: Mapping[str, object]
    """Content of the power levels event; empty if there is none."""
    room_version: RoomVersion
    creators: frozenset[str]
    has_event: bool

    @classmethod
    def of(
        cls, power_levels: Event | None, create: Event | None, room_version: RoomVersion
    ) -> PowerLevels:
        """Return the levels that an event sets, or those of a room that has none yet."""
        creators = creators_of(create) if create is not None else frozenset()
        if power_levels is None:
            return cls({}, room_version, creators, has_event=False)
        return cls(power_levels.content, room_version, creators, has_event=True)

    def user_level(self, user_id: str) -> Level:
        """Return the power of a user."""
        if user_id in self.creators:
            if self.room_version.creators_are_privileged:  # Since v12.
                return INFINITE
            if not self.has_event:
                return 100
        level = self._level(self.section("users").get(user_id))
        return self.users_default if level is None else level

    def event_level(self, event_type: str, *, is_state: bool) -> Level:
        """Return the power that it takes to send an event of this type."""
        level = self._level(self.section("events").get(event_type))
        if level is not None:
            return level
        return self.state_default if is_state else self.events_default

    def notification_level(self, key: str) -> Level:
        """Return the power that it takes to notify, for instance with `@room` (key `room`)."""
        level = self._level(self.section("notifications").get(key))
        return 50 if level is None else level

    @property
    def users_default(self) -> Level:
        """The power of users who are not listed."""
        return self._named("users_default", 0)

    @property
    def events_default(self) -> Level:
        """What it takes to send a message event of a type that is not listed."""
        return self._named("events_default", 0)

    @property
    def state_default(self) -> Level:
        """What it takes to send a state event of a type that is not listed."""
        return self._named("state_default", 50)

    @property
    def invite(self) -> Level:
        """What it takes to invite a user."""
        return self._named("invite", 0)

    @property
    def kick(self) -> Level:
        """What it takes to remove a user of less power."""
        return self._named("kick", 50)

    @property
    def ban(self) -> Level:
        """What it takes to ban a user of less power, or to lift a ban."""
        return self._named("ban", 50)

    @property
    def redact(self) -> Level:
        """What it takes to redact the events of others."""
        return self._named("redact", 50)

    def section(self, name: str) -> Mapping[str, object]:
        """Return `users`, `events` or `notifications`; empty when absent or malformed."""
        section = self.content.get(name)
        return section if isinstance(section, dict) else {}

    def _named(self, name: str, default: Level) -> Level:
        level = self._level(self.content.get(name))
        return default if level is None else level

    def _level(self, value: object) -> Level | None:
        return read_level(value, self.room_version)


def read_level(value: object, room_version: RoomVersion) -> int | None:
    """Return the level that a value stands for, or None if for none.

    Since v10 only integers do. Spec: rooms/v10#values-in-mroompower_levels-events-must-be-integers
    """
    if type(value) is int:  # By far the most, and the only ones since v10. Booleans are not.
        return value
    if value is None or room_version.requires_integer_levels:
        return None
    try:
        match value:
            case bool() | float():
                return int(value)  # Towards zero; infinity has no integer.
            case str() if _NUMERAL.fullmatch(value):
                return int(value)  # Python refuses thousands of digits.
    except (ValueError, OverflowError):
        return None
    return None


def creators_of(create: Event) -> frozenset[str]:
    """Return the users who created the room, by its create event.

    v1–v10: `content.creator`; since v11 the sender, and since v12 also `additional_creators`.
    """
    room_version = create.room_version
    if room_version.creator_is_in_content:
        creator = create.content.get("creator")
        return frozenset({creator} if isinstance(creator, str) else ())
    if not room_version.creators_are_privileged:
        return frozenset({create.sender})
    others = create.content.get("additional_creators")
    named = others if isinstance(others, list) else ()
    return frozenset({create.sender, *(user_id for user_id in named if isinstance(user_id, str))})
