"""State keys: the places of a room's state that have one holder.

Spec: client-server-api#room-events
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from minihs.protocol.identifiers import StateKey

AVATAR: Final[StateKey] = ("m.room.avatar", "")
CREATE: Final[StateKey] = ("m.room.create", "")
ENCRYPTION: Final[StateKey] = ("m.room.encryption", "")
GUEST_ACCESS: Final[StateKey] = ("m.room.guest_access", "")
HISTORY_VISIBILITY: Final[StateKey] = ("m.room.history_visibility", "")
JOIN_RULES: Final[StateKey] = ("m.room.join_rules", "")
NAME: Final[StateKey] = ("m.room.name", "")
POWER_LEVELS: Final[StateKey] = ("m.room.power_levels", "")
SERVER_ACL: Final[StateKey] = ("m.room.server_acl", "")
TOPIC: Final[StateKey] = ("m.room.topic", "")
