"""A room in which there is something to inspect: four servers, stickiness, a ban, a fork.

`tea.example` is under test and delivers. `books.example` takes what it is sent, `attic.example`
does not, and users of `garden.example` send what is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from minihs.protocol import unstable
from minihs.services.rooms.sticky_events import recheck_soft_failed
from tests.helpers.deliveries import HOLDER, Peer, begin, settled
from tests.helpers.mirror import forge, id_of, mirror, push, refresh
from tests.helpers.network import raw
from tests.helpers.remote_members import put_member

if TYPE_CHECKING:
    from minihs.base.clock import ManualClock
    from minihs.protocol.events import Event
    from tests.helpers.homeserver import Homeserver, User
    from tests.helpers.network import Federation
    from tests.helpers.rooms import Room

SERVER, TAKES, REFUSES, GARDEN = "tea.example", "books.example", "attic.example", "garden.example"
MALLORY, ERIN = f"@mallory:{GARDEN}", f"@erin:{GARDEN}"
CALL = "org.example.call.member"
DURATION = unstable.STICKY_DURATION_PARAMETER.unstable
STICKY = unstable.STICKY.unstable
STICKY_KEY = unstable.STICKY_KEY.unstable
REDACT_EVENTS = unstable.REDACT_EVENTS.unstable
MINUTE_MS = 60_000
NAME = "Tea and Matrix"


@dataclass(frozen=True, slots=True)
class InspectedRoom:
    """The room, who administers its server, and the events that are inspected."""

    homeserver: Homeserver
    admin: User
    room_id: str
    own_sticky_id: str
    remote_sticky_id: str
    held_id: str
    join_id: str
    spam_ids: list[str]
    spared_id: str
    ban_id: str
    late_spam_id: str
    rejected_id: str
    ends: list[str]


async def make_admin(homeserver: Homeserver, localpart: str) -> User:
    """Register an administrator."""
    user = await homeserver.register(localpart)
    await homeserver.services.db.execute(
        "UPDATE accounts SET admin = true WHERE user_id = $1", user.user_id
    )
    return user


async def stick(user: User, room_id: str, key: str, duration_ms: int) -> str:
    """Send a sticky event; return its id."""
    path = f"/rooms/{quote(room_id)}/send/{CALL}/{key}"
    answer = await user.call("PUT", path, {STICKY_KEY: key}, **{DURATION: str(duration_ms)})
    return answer["event_id"]


async def make_inspected_room(federation: Federation, clock: ManualClock) -> InspectedRoom:
    """Let all of that happen, over some minutes."""
    server = await federation.start(SERVER, inspector=True)
    services = server.services
    await begin(services)
    garden = federation.evil(GARDEN)
    Peer(garden)
    Peer(federation.evil(TAKES))
    Peer(federation.evil(REFUSES)).answer = lambda _: raw({"errcode": "M_UNKNOWN"}, 503)

    async def later(minutes: int) -> None:
        await settled(services)
        clock.advance_ms(minutes * MINUTE_MS)
        await services.delivery.hold_shards(services, HOLDER)

    def says(copy: Room, sender: str, body: str, *prev: Event) -> Event:
        content = {"msgtype": "m.text", "body": body}
        return copy.draft(
            sender, "m.room.message", content, prev=prev or None, origin_server_ts=clock.now_ms()
        )

    async def arrive(copy: Room, *events: Event) -> None:
        assert await push(garden, server, events) == {e.event_id: {} for e in events}
        await refresh(copy, server)

    alice, bob = await make_admin(server, "alice"), await server.register("bob")
    room_id = await alice.create_room(name=NAME, room_version="12")
    await bob.join(room_id)
    await put_member(services, room_id, f"@carol:{TAKES}")
    await put_member(services, room_id, f"@dave:{REFUSES}")
    await alice.put_state(
        room_id, "m.room.power_levels", {"users": {MALLORY: 50}, "state_default": 50}
    )
    copy = await mirror(server, room_id)

    await later(1)
    now_ms, membership = clock.now_ms(), {"membership": "join"}
    join, acl, erin = (
        copy.send(sender, kind, content, state_key=key, origin_server_ts=now_ms)
        for sender, kind, content, key in (
            (MALLORY, "m.room.member", membership, MALLORY),
            (MALLORY, "m.room.server_acl", {"allow": ["*"]}, ""),
            (ERIN, "m.room.member", membership, ERIN),
        )
    )
    await arrive(copy, join, acl, erin)
    sticky_id = await stick(alice, room_id, "alice-phone", 50 * MINUTE_MS)
    await refresh(copy, server)

    await later(2)
    spam = []
    for n in range(3):
        spam.append(says(copy, MALLORY, f"spam {n}"))
        await arrive(copy, spam[-1])
    remote_id, pdu = sticky_pdu(copy, ERIN, "erin-desk", 20, clock.now_ms(), copy.ends)
    assert await push(garden, server, [pdu]) == {remote_id: {}}
    await refresh(copy, server)
    before_ban = copy.ends[-1]
    ban = {"user_id": MALLORY, "reason": "spam", REDACT_EVENTS: True}
    await alice.call("POST", f"/rooms/{quote(room_id)}/ban", ban)
    await refresh(copy, server)
    banned = copy.current("m.room.member", MALLORY)
    assert banned is not None
    late = says(copy, MALLORY, "spam that comes late", before_ban)
    await arrive(copy, late)

    await later(1)
    before_change = copy.ends[-1]
    await alice.put_state(
        room_id, "m.room.power_levels", {"state_default": 50, "events": {CALL: 50}}
    )
    held_id, held = sticky_pdu(copy, ERIN, "erin-phone", 30, clock.now_ms(), [before_change])
    assert await push(garden, server, [held]) == {held_id: {}}
    await refresh(copy, server)
    rejected = copy.draft(
        ERIN, "m.room.topic", {"topic": "mine"}, state_key="", origin_server_ts=clock.now_ms()
    )
    await arrive(copy, rejected)
    fork_at = copy.ends[-1]
    await bob.say(room_id, "The kettle is on.")
    await later(1)
    await arrive(copy, says(copy, ERIN, "On my way.", fork_at))
    await bob.say(room_id, "Milk?")
    await refresh(copy, server)
    asked = copy.ends[-1]
    await alice.say(room_id, "Yes, please.")
    await stick(alice, room_id, "alice-desk", 10 * MINUTE_MS)
    await later(1)
    await arrive(copy, says(copy, ERIN, "No, thanks.", asked))
    await recheck_soft_failed(services)
    await later(2)
    await settled(services)
    return InspectedRoom(
        homeserver=server,
        admin=alice,
        room_id=room_id,
        own_sticky_id=sticky_id,
        remote_sticky_id=remote_id,
        held_id=held_id,
        join_id=join.event_id,
        spam_ids=[event.event_id for event in spam],
        spared_id=acl.event_id,
        ban_id=banned.event_id,
        late_spam_id=late.event_id,
        rejected_id=rejected.event_id,
        ends=[event.event_id for event in copy.ends],
    )


def sticky_pdu(
    copy: Room, sender: str, key: str, minutes: int, sent_ms: int, prev: list[Event]
) -> tuple[str, dict]:
    """Return the id and the PDU of a sticky event of another server's user."""
    draft = copy.draft(sender, CALL, {STICKY_KEY: key}, prev=prev, origin_server_ts=sent_ms)
    pdu = forge(draft, {STICKY: {"duration_ms": minutes * MINUTE_MS}})
    return id_of(pdu, draft), pdu
