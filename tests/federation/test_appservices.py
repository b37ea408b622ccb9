"""What application services are told of what other servers do."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from minihs.protocol.events import Event
from minihs.services.rooms import sticky_events
from tests.helpers.appservices import Bridge, begin, make_ghost, running_bridge, settled
from tests.helpers.mirror import forge, push, refresh
from tests.helpers.rooms import MALLORY, Room

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from minihs.base.clock import ManualClock
    from tests.helpers.homeserver import Homeserver, User
    from tests.helpers.network import EvilServer, Federation


@pytest.fixture
async def bridge(tmp_path: Path) -> AsyncIterator[Bridge]:
    async with running_bridge(tmp_path) as service:
        yield service


@pytest.fixture
async def hs1(federation: Federation, bridge: Bridge) -> Homeserver:
    """The server under test, which has the bridge."""
    return await federation.start("hs1", appservice_files=str(bridge.file))


async def test_what_comes_from_other_servers_is_told(
    hs1: Homeserver, evil: EvilServer, room: Room, clock: ManualClock, bridge: Bridge
):
    delivery = await begin(hs1.services)
    ghost = await make_ghost(hs1, "_bridge_g")
    await ghost.join(room.room_id)
    await refresh(room, hs1)
    said = room.send(MALLORY, "m.room.message", {"body": "hi"}, origin_server_ts=clock.now_ms())
    await push(evil, hs1, [said])
    await settled(delivery)
    assert bridge.texts == ["hi"]


async def test_what_comes_beside_the_rooms_end_is_told_where_a_user_of_the_service_is(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, clock: ManualClock, bridge: Bridge
):
    """Forks are merged by state resolution: who is in the room does not follow from one event."""
    delivery = await begin(hs1.services)
    ghost = await make_ghost(hs1, "_bridge_g")
    before = list(room.ends)

    async def fork(body: str) -> None:
        for event_type, content, key in (
            ("m.room.member", {"membership": "join", "displayname": body}, MALLORY),
            ("m.room.message", {"body": body}, None),
        ):
            draft = room.draft(
                MALLORY, event_type, content, state_key=key, prev=before,
                origin_server_ts=clock.now_ms(),
            )  # fmt: skip
            event = Event.from_pdu(forge(draft, {}), room.room_version)
            await push(evil, hs1, [event])
        await alice.say(room.room_id, f"after {body}")
        await settled(delivery)

    await fork("before the ghost")
    assert bridge.texts == []
    await ghost.join(room.room_id)
    await fork("with the ghost")
    clock.advance_ms(1)  # In state resolution the later of two events wins.
    await ghost.leave(room.room_id)
    await settled(delivery)
    await fork("without the ghost")
    assert bridge.texts == ["with the ghost", "after with the ghost"]


@pytest.mark.spec("MSC4354#federation-behaviour")
@pytest.mark.parametrize("down", [False, True], ids=["up", "down"])
async def test_a_sticky_event_that_was_refused_is_told_when_it_is_accepted(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, clock: ManualClock,
    bridge: Bridge, down: bool,
):  # fmt: skip
    ghost = await make_ghost(hs1, "_bridge_g")
    await ghost.join(room.room_id)
    delivery = None if down else await begin(hs1.services)
    await refresh(room, hs1)
    before = list(room.ends)
    ban = f"/rooms/{quote(room.room_id)}/ban"
    await alice.call("POST", ban, {"user_id": MALLORY})
    await refresh(room, hs1)
    sticky = {"msc4354_sticky": {"duration_ms": 600_000}}
    draft = room.draft(MALLORY, "m.call", {}, prev=before, origin_server_ts=clock.now_ms())
    event = Event.from_pdu(forge(draft, sticky), room.room_version)
    room.accept(event)
    await push(evil, hs1, [event])
    if delivery is not None:
        await settled(delivery)
        assert event.event_id not in str(bridge.events)
    await alice.call("POST", ban.replace("/ban", "/unban"), {"user_id": MALLORY})
    await refresh(room, hs1)
    await push(evil, hs1, [room.join(MALLORY)])
    clock.advance_ms(60_000)
    await sticky_events.recheck_soft_failed(hs1.services)
    await alice.say(room.room_id, "afterwards")
    if delivery is None:
        delivery = await begin(hs1.services)
    else:
        await delivery.hold()
    await settled(delivery)
    told = [(e["event_id"], e["unsigned"]) for e in bridge.events if e["type"] == "m.call"]
    assert [event_id for event_id, _ in told] == [event.event_id]
    assert told[0][1]["msc4354_sticky_duration_ttl_ms"] == 540_000
    assert bridge.texts == ["afterwards"]
    assert bridge.events[-1]["type"] == "m.room.message", "in the order of the stream"
