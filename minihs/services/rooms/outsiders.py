"""What somebody outside is shown of a room: its stripped state, made by us or by another server.

Spec: client-server-api#stripped-state
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.protocol.canonical_json import CanonicalJsonError, encode_strict
from minihs.protocol.client_format import strip_state, stripped_state
from minihs.protocol.state_keys import AVATAR, CREATE, ENCRYPTION, JOIN_RULES, NAME, TOPIC

if TYPE_CHECKING:
    from minihs.protocol.events import Event
    from minihs.protocol.identifiers import EventId, StateKey
    from minihs.services.context import Services
    from minihs.services.rooms.heads import RoomHead

ROOM_STATE_MAX = 50  # Entries of stripped state that we keep of what another server sent.
ROOM_STATE_BYTES_MAX = 65_536

# What an invited user is shown of the room.
STRIPPED_STATE_KEYS: tuple[StateKey, ...] = (
    CREATE,
    NAME,
    AVATAR,
    TOPIC,
    JOIN_RULES,
    ("m.room.canonical_alias", ""),
    ENCRYPTION,
)


async def stripped_room_state(
    services: Services, head: RoomHead, member_event: Event
) -> list[dict[str, object]]:
    """Return what somebody outside is shown of a room, with the member event that concerns them.

    Each event has its `event_id`, by which it is found when it is redacted; clients do not see it.
    """
    shown = await room_state_for_outsiders(services, head, member_event)
    return [
        {**stripped_state(event), "event_id": event.event_id} for event in (*shown, member_event)
    ]


async def room_state_for_outsiders(
    services: Services, head: RoomHead, member_event: Event
) -> list[Event]:
    """Return the state events that tell somebody outside what a room is, and who invites them.

    `member_event`, by which they are invited or knock, is not among them.
    """
    ids: list[EventId] = [
        event_id
        for key in (*STRIPPED_STATE_KEYS, ("m.room.member", member_event.sender))
        if (event_id := head.state.entries.get(key)) is not None
        and event_id != member_event.event_id
    ]
    events = await services.events.get_many(ids)
    return [events[event_id].event for event_id in ids if event_id in events]


def read_room_state(given: object) -> list[dict[str, object]] | None:
    """Return the stripped state that came with an invite or a knock; None if it is no list.

    What is no state event is left out, and so is what exceeds our limits, in size or in kind:
    clients are shown it unverified. Spec: client-server-api#stripped-state
    """
    if not isinstance(given, list):
        return None
    shown: list[dict[str, object]] = []
    bytes_left = ROOM_STATE_BYTES_MAX
    for entry in given[:ROOM_STATE_MAX]:
        stripped = strip_state(entry)
        try:
            size = 0 if stripped is None else len(encode_strict(stripped))
        except CanonicalJsonError:
            continue
        if stripped is not None and size <= bytes_left:
            bytes_left -= size
            shown.append(stripped)
    return shown
