"""Reading `m.room.member`: who is in the room, and how they came to be or ceased to be.

Spec: client-server-api#mroommember
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from minihs.protocol.unstable import DEACTIVATED

if TYPE_CHECKING:
    from minihs.protocol.events import Event

AUTHORISING_USER: Final = "join_authorised_via_users_server"
"""The key of a restricted join that names who vouches for it."""

MEMBERSHIPS: Final = frozenset({"join", "invite", "leave", "ban", "knock"})
"""Everything that `membership` may say. `knock` needs room version 7."""


INSIDE: Final = frozenset({"join", "invite", "knock"})
"""Memberships of somebody who is in the room, or on their way."""


def membership_of(event: Event | None) -> str | None:
    """Return the `membership` of an event; None without an event or without a membership."""
    return None if event is None else _text(event.content.get("membership"))


def is_deactivation_leave(event: Event) -> bool:
    """Return whether the user left because their account was deactivated. MSC3759#proposal.

    Only users themselves can say so: the flag on somebody else's leave (a kick) means nothing.
    """
    return (
        event.type == "m.room.member"
        and event.content.get("membership") == "leave"
        and event.sender == event.state_key
        and DEACTIVATED.either(event.content) is True
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
