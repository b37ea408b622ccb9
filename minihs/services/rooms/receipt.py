"""Receipt: events of one room on their way in, and who may send them here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from minihs.protocol.state_keys import CREATE, SERVER_ACL
from minihs.protocol.stickiness import stickiness
from minihs.services.rooms import missing
from minihs.services.rooms.server_acls import is_allowed_by
from minihs.storage import membership as memberships

if TYPE_CHECKING:
    from minihs.protocol.events import Event
    from minihs.protocol.identifiers import EventId
    from minihs.services.context import Services
    from minihs.services.rooms.heads import RoomHead
    from minihs.services.rooms.missing import Room
    from minihs.storage.state import State


@dataclass(slots=True)
class Receipt:
    """Events of one room on their way in, and what is known only of this way.

    `pulled` were fetched because the pushed `events` follow them. `states` are those after events
    that we lack. `dropped` says why nothing is kept of an event. `source` is the server that is
    asked for what we lack: the one that pushed the events, or another that is in the room.
    """

    origin: str
    room: Room
    events: list[Event]
    received_ms: int
    pulled: list[Event] = field(default_factory=list)
    states: dict[EventId, State] = field(default_factory=dict)
    dropped: dict[EventId, str] = field(default_factory=dict)
    source: str = ""

    def __post_init__(self) -> None:
        self.source = self.source or self.origin

    def in_order(self) -> list[Event]:
        """Return all events, each after those that it follows or rests upon."""
        return missing.in_order(
            [*self.pulled, *self.events],
            lambda event: (*event.prev_event_ids, *event.auth_event_ids),
        )


async def is_followed(services: Services, head: RoomHead) -> bool:
    """Return whether what happens in a room is our business.

    It is if we are in it, and also if others have put us out of it: whether they could, servers may
    not have agreed about yet, and state resolution will tell.
    """
    return bool(head.local_members) or (
        bool(head.extremities) and await memberships.were_we_put_out(services.db, head.room_id)
    )


async def refusal_of_server(services: Services, head: RoomHead, origin: str) -> str | None:
    """Return why a room does not listen to a server, None if it does.

    Spec: server-server-api#server-access-control-lists-acls
    """
    if not await is_allowed_by(services, head.state.entries.get(SERVER_ACL), origin):
        return f"{origin} is denied access to the room by its server ACL"
    return None


def why_misplaced(room: Room, event: Event) -> str | None:
    """Return why an event has no business in this room."""
    if event.room_id != room.room_id:
        return "the event is of another room"
    if event.key == CREATE and event.event_id != room.create_id:
        return "the room has been created by another event"
    return None


def is_sticky_message(event: Event, now_ms: int) -> bool:
    """Return whether an event that comes now is sticky, and changes no state. MSC4354#proposal."""
    sticky = None if event.is_state else stickiness(event.pdu, now_ms)
    return sticky is not None and sticky.is_sticky(now_ms)
