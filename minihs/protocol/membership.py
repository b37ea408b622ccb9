"""Reading `m.room.member`: who is in the room, and how they came to be or ceased to be.

Spec: client-server-api#mroommember
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from minihs.protocol.unstable import DEACTIVATED

if TYPE_CHECKING:
    from minihs.protocol.events import Event

MEMBERSHIPS: Final = frozenset({"join", "invite", "leave", "ban", "knock"})
"""Everything that `membership` may say. `knock` needs room version 7."""


INSIDE: Final = frozenset({"join", "invite", "knock"})
"""Memberships of somebody who is in the room, or on their way."""


@dataclass(frozen=True, slots=True)
class Member:
    """What a membership event says about its user; wrong types read as absent."""

    user_id: str
    sender: str
    membership: str
    displayname: str | None
    avatar_url: str | None
    reason: str | None
    is_direct: bool
    authorising_user: str | None
    """Who vouched for a restricted join (since v8)."""

    @classmethod
    def of(cls, event: Event) -> Member | None:
        """Return what the event says, or None if it is not a membership of anybody."""
        membership = membership_of(event)
        if event.type != "m.room.member" or event.state_key is None or membership is None:
            return None
        content = event.content
        return cls(
            user_id=event.state_key,
            sender=event.sender,
            membership=membership,
            displayname=_text(content.get("displayname")),
            avatar_url=_text(content.get("avatar_url")),
            reason=_text(content.get("reason")),
            is_direct=content.get("is_direct") is True,
            authorising_user=_text(content.get("join_authorised_via_users_server")),
        )

    @property
    def is_own_doing(self) -> bool:
        """Whether the user, and nobody else, brought this about."""
        return self.sender == self.user_id

    @property
    def is_kick(self) -> bool:
        """Whether somebody else made the user leave; also an unban or a retracted invite."""
        return self.membership == "leave" and not self.is_own_doing


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
