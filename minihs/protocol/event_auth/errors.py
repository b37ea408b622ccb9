"""The rejection of an event: which rule, which passage, and a sentence for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minihs.protocol.events import Event


class EventAuthError(Exception):
    """The event is not authorized.

    `rule` names the rule, from its place in the rules to its point (`member.join.banned`); the name
    is the same in all room versions, though they number rules differently. `passage` is where the
    event's room version states it.
    """

    def __init__(self, rule: str, passage: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule
        self.passage = passage
        self.message = message


def rejection(event: Event, rule: str, message: str) -> EventAuthError:
    """Return the rejection of an event by a rule of its room version."""
    return EventAuthError(rule, f"{event.room_version.page}#authorisation-rules", message)
