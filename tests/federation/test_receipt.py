"""Events of other servers on their way in: what is accepted, refused, redacted, or dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from minihs.protocol.identifiers import EventId
from tests.helpers.mirror import push, refresh
from tests.helpers.rooms import MALLORY

if TYPE_CHECKING:
    from tests.helpers.homeserver import Homeserver, User
    from tests.helpers.network import EvilServer
    from tests.helpers.rooms import Room

pytestmark = pytest.mark.spec("server-server-api#checks-performed-on-receipt-of-a-pdu")


async def timeline(user: User, room: Room) -> list[str]:
    """Return the ids of the room's events that are new in a sync."""
    joined = (await user.sync())["rooms"]["join"]
    events = joined.get(room.room_id, {"timeline": {"events": []}})["timeline"]["events"]
    return [event["event_id"] for event in events]


async def test_events_are_accepted_in_order_and_shown(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    events = [room.send(MALLORY, "m.room.message", {"body": f"{n}"}) for n in range(50)]
    assert await push(evil, hs1, events) == {event.event_id: {} for event in events}
    answer = await alice.call("GET", f"/rooms/{quote(room.room_id)}/messages", dir="b", limit="50")
    shown = [event["event_id"] for event in answer["chunk"]]
    assert shown == [event.event_id for event in reversed(events)]
    assert await timeline(alice, room) == [event.event_id for event in events[-10:]]


async def test_we_answer_upon_what_we_received(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    event = room.send(MALLORY, "m.room.message", {"body": "hello"})
    await push(evil, hs1, [event])
    answer = await alice.say(room.room_id)
    await refresh(room, hs1)
    assert room.events[EventId(answer)].prev_event_ids == (event.event_id,)
