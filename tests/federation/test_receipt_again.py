"""Events that are sent again, or that get their place only when they are: what became of them."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from minihs.remote.transport import RemoteError
from minihs.services.rooms.gap_filling import UNREACHED_PAUSE_MS, UNREACHED_TIMES_MAX
from tests.helpers.mirror import mirror, push, send_transaction, serve
from tests.helpers.network import raw
from tests.helpers.rooms import MALLORY

if TYPE_CHECKING:
    from minihs.base.clock import ManualClock
    from minihs.protocol.events import Event
    from tests.helpers.homeserver import Homeserver, User
    from tests.helpers.network import EvilServer, Federation, Received
    from tests.helpers.rooms import Room

API = "/_matrix/federation/v1"

pytestmark = pytest.mark.spec("server-server-api#checks-performed-on-receipt-of-a-pdu")


def say(room: Room, body: str) -> Event:
    return room.send(MALLORY, "m.room.message", {"body": body})


async def content_of(alice: User, room: Room, event: Event) -> object:
    path = f"/rooms/{quote(room.room_id)}/event/{quote(event.event_id)}"
    return (await alice.call("GET", path))["content"]


async def test_an_outlier_is_redacted_by_the_commit_that_gives_it_its_place(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    serve(evil, room, between=1)
    hidden, _, last = say(room, "hidden"), say(room, "between"), say(room, "last")
    await push(evil, hs1, [last])  # It brings the first as an outlier.
    stored = await hs1.services.events.get(hidden.event_id)
    assert stored is not None
    assert stored.order is None
    redaction = room.send(MALLORY, "m.room.redaction", {"redacts": hidden.event_id})
    pushed = [hidden, redaction]
    assert await push(evil, hs1, pushed) == {event.event_id: {} for event in pushed}
    for _ in range(2):  # From memory, and from the database.
        assert await content_of(alice, room, hidden) == {}
        hs1.services.events.forget(hidden.event_id)


async def test_what_an_event_follows_is_asked_for_again_when_its_server_was_not_well(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    answers = serve(evil, room)
    missed, last = say(room, "missed"), say(room, "last")
    evil.on("POST", API + "/get_missing_events/{roomId}", raw({"errcode": "M_UNKNOWN"}, 502))
    refused = await send_transaction(evil, hs1, [last])
    assert isinstance(refused, RemoteError)
    assert refused.status == 503
    evil.on("POST", API + "/get_missing_events/{roomId}", answers.missing_events)
    assert await push(evil, hs1, [last]) == {last.event_id: {}}
    assert await content_of(alice, room, missed) == missed.content
    assert await content_of(alice, room, last) == last.content


async def test_an_event_whose_server_is_never_well_is_dropped_in_the_end(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    """Else whoever cannot be reached could tell us of no room any more."""
    serve(evil, room)
    evil.on("POST", API + "/get_missing_events/{roomId}", raw({"errcode": "M_UNKNOWN"}, 502))
    evil.on("GET", API + "/state_ids/{roomId}", raw({"errcode": "M_UNKNOWN"}, 502))
    say(room, "missed")
    last = say(room, "last")
    for _ in range(UNREACHED_TIMES_MAX):
        assert isinstance(await send_transaction(evil, hs1, [last]), RemoteError)
    assert last.event_id in await push(evil, hs1, [last])
    assert await hs1.services.events.get(last.event_id) is None


async def test_a_server_that_is_never_reached_is_asked_only_now_and_then(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, clock: ManualClock
):
    answers = serve(evil, room)
    evil.on("POST", API + "/get_missing_events/{roomId}", raw({"errcode": "M_UNKNOWN"}, 502))
    refused = asked = 0
    for _ in range(5):
        say(room, "missed")
        last = say(room, "last")
        while isinstance(await send_transaction(evil, hs1, [last]), RemoteError):
            refused += 1
    asked = len(evil.asked("/get_missing_events/"))
    assert (refused, asked) == (UNREACHED_TIMES_MAX, UNREACHED_TIMES_MAX + 1)
    clock.advance_ms(UNREACHED_PAUSE_MS)
    evil.on("POST", API + "/get_missing_events/{roomId}", answers.missing_events)

    last = say(room, "last")

    assert await push(evil, hs1, [last]) == {last.event_id: {}}
    for event_id in room.events:  # Nothing is lost.
        assert await hs1.services.events.get(event_id) is not None


async def test_another_server_in_the_room_tells_what_events_of_one_that_is_not_reached_follow(
    federation: Federation, hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    serve(evil, room)
    other = federation.evil("other")
    join = room.join("@oscar:other")
    assert await push(other, hs1, [join]) == {join.event_id: {}}
    serve(other, room)
    evil.on("POST", API + "/get_missing_events/{roomId}", raw({"errcode": "M_UNKNOWN"}, 502))
    missed, last = say(room, "missed"), say(room, "last")

    assert await push(evil, hs1, [last]) == {last.event_id: {}}

    assert await content_of(alice, room, missed) == missed.content
    assert await content_of(alice, room, last) == last.content


async def test_nothing_is_dropped_when_its_server_is_well_again_while_others_are_asked(
    federation: Federation, hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    other_room = await mirror(hs1, await alice.create_room())
    for_other_room = other_room.join(MALLORY)
    assert await push(evil, hs1, [for_other_room]) == {for_other_room.event_id: {}}
    bystander = federation.evil("bystander")
    join = room.join("@oscar:bystander")
    assert await push(bystander, hs1, [join]) == {join.event_id: {}}
    serve(evil, room)
    evil.on("POST", API + "/get_missing_events/{roomId}", raw({"errcode": "M_UNKNOWN"}, 502))

    async def while_asked(_: Received) -> object:
        serve(evil, other_room)
        say(other_room, "missed")
        said = say(other_room, "said")
        assert await push(evil, hs1, [said]) == {said.event_id: {}}
        return raw({"errcode": "M_UNKNOWN"}, 502)

    bystander.on("POST", API + "/get_missing_events/{roomId}", while_asked)
    missed, last = say(room, "missed"), say(room, "last")

    assert isinstance(await send_transaction(evil, hs1, [last]), RemoteError)

    serve(evil, room)
    assert await push(evil, hs1, [last]) == {last.event_id: {}}
    assert await content_of(alice, room, missed) == missed.content


async def test_what_comes_after_its_followers_does_not_take_the_room_back(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    serve(evil, room, between=1)
    hidden = say(room, "hidden")
    say(room, "between")
    renamed = {"membership": "join", "displayname": "Mallory"}
    last = room.send(MALLORY, "m.room.member", renamed, state_key=MALLORY)
    path = f"/rooms/{quote(room.room_id)}/state/m.room.member/{quote(MALLORY)}"
    for event in (last, hidden):
        assert await push(evil, hs1, [event]) == {event.event_id: {}}
        assert await alice.call("GET", path) == renamed
