"""Messages to devices of other servers' users: each arrives, once, whatever happens on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from minihs.services.encryption import to_device
from minihs.services.federation.delivery import LEASE_MS
from tests.api.test_to_device import log_in, received, send
from tests.federation.test_delivery_restart import House, at
from tests.helpers.deliveries import Peer, begin, handed_out, settled
from tests.helpers.mirror import push
from tests.helpers.network import raw
from tests.helpers.rooms import ALICE, MALLORY
from tests.helpers.servers import pass_time, quiet, room_of_two, start
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    from minihs.base.clock import ManualClock
    from tests.helpers.homeserver import Homeserver, User
    from tests.helpers.network import EvilServer, Federation, Received

pytestmark = pytest.mark.spec("server-server-api#send-to-device-messaging")

SENT = {"@mallory:evil": {"D": {"n": 1}, "*": {"n": 2}}}


@pytest.fixture
def house(database_url: str, tmp_path: Path, federation: Federation) -> House:
    return House(database_url, tmp_path, federation)


def message(message_id: str = "1", messages: object = None, **content: object) -> dict:
    whole = {
        "sender": MALLORY,
        "type": "m.test",
        "message_id": message_id,
        "messages": {ALICE: {"*": {"n": message_id}}} if messages is None else messages,
        **content,
    }
    return {"edu_type": "m.direct_to_device", "content": whole}


# --- between servers ---------------------------------------------------------------------------


async def test_devices_of_another_server_get_what_they_are_sent(federation: Federation):
    servers = await start(federation, "hs1", "hs2")
    alice, bob = await servers[0].register("alice"), await servers[1].register("bob")
    other = await log_in(bob)
    await bob.sync()
    messages = {bob.user_id: {bob.device_id: {"n": 1}}, alice.user_id: {"*": {"n": 2}}}
    for _ in range(2):
        assert await send(alice, messages, "same") == 200
    await send(alice, {bob.user_id: {"*": {"n": 3}}})
    await quiet(servers)
    answer = await bob.sync()
    assert answer["to_device"]["events"][0] == {
        "type": "m.test", "sender": alice.user_id, "content": {"n": 1},
    }  # fmt: skip
    assert received(answer) == [{"n": 1}, {"n": 3}]
    assert received(await other.sync()) == [{"n": 3}]
    assert received(await alice.sync()) == [{"n": 2}]


async def test_after_an_outage_every_message_is_there(federation: Federation, clock: ManualClock):
    servers, alice, bob, room_id = await room_of_two(federation)
    await bob.sync()
    federation.network.isolate("hs2")
    for n in range(130):
        await send(alice, {bob.user_id: {bob.device_id: {"n": n}}}, f"t{n}")
        if n % 50 == 0:
            await alice.say(room_id, str(n))
    await quiet(servers)
    await pass_time(servers, clock, 10_000)
    federation.network.heal()
    await pass_time(servers, clock, 20_000)
    got = received(await bob.sync()) + received(await bob.sync())
    assert got == [{"n": n} for n in range(130)]
    outbox = await servers[0].services.db.fetch("SELECT FROM to_device_outbox")
    assert outbox == []


async def test_lost_answers_and_doubled_requests_deliver_once(
    federation: Federation, clock: ManualClock
):
    servers = await start(federation, "hs1", "hs2")
    alice, bob = await servers[0].register("alice"), await servers[1].register("bob")
    await bob.sync()
    federation.network.faults.unanswered = 400
    federation.network.faults.doubled = 400
    for n in range(40):
        await send(alice, {bob.user_id: {bob.device_id: {"n": n}}}, f"t{n}")
        await pass_time(servers, clock, 2_000)
    federation.network.heal()
    await pass_time(servers, clock, 60_000)
    assert received(await bob.sync()) == [{"n": n} for n in range(40)]


async def test_what_waits_survives_a_restart(
    house: House, federation: Federation, clock: ManualClock
):
    peer = Peer(federation.evil("evil"))
    async with house.running() as server:
        await begin(server.services, "first")
        alice = await server.register("alice")
        peer.answer = lambda _: raw({}, 500)
        await send(alice, {peer.user: {"D": {"n": 1}}})
        await until(lambda: peer.attempts)
        await settled(server.services)
        await server.services.delivery.hold_shards(server.services, "first")
        await server.services.delivery.give_back_shards(server.services, "first")
    peer.answer = lambda _: None
    async with house.running() as server:
        alice = at(server, alice)
        await begin(server.services, "second")
        clock.advance_ms(LEASE_MS // 2)
        await server.services.delivery.hold_shards(server.services, "second")
        await until(lambda: peer.edus("m.direct_to_device"))
        assert await send(alice, {peer.user: {"D": {"n": 2}}}, "t") == 200, "a repetition"
        await send(alice, {peer.user: {"D": {"n": 3}}}, "u")
        await until(lambda: len(peer.edus("m.direct_to_device")) == 2)
        await settled(server.services)
    contents = [edu["messages"] for edu in peer.edus("m.direct_to_device")]
    assert contents == [{peer.user: {"D": {"n": n}}} for n in (1, 3)]


async def test_another_process_delivers_it(house: House, federation: Federation):
    peer = Peer(federation.evil("evil"))
    async with house.running(workers=2) as server:
        one, other = server.workers
        await begin(other, "delivers")
        alice = await server.register("alice")
        for n in range(3):
            await send(alice, {peer.user: {"D": {"n": n}}}, f"t{n}")
        await until(lambda: len(peer.edus("m.direct_to_device")) == 3)
        await handed_out(other)
        assert one.delivery._sender._edus_sent == 0


# --- what another server gets ------------------------------------------------------------------


async def test_the_edu_names_sender_type_and_an_id(federation: Federation):
    (server,) = await start(federation, "hs1")
    peer, alice = Peer(federation.evil("evil")), await server.register("alice")
    await send(alice, SENT, kind="m.test.type")
    await until(lambda: peer.edus("m.direct_to_device"))
    (edu,) = peer.edus("m.direct_to_device")
    assert len(edu.pop("message_id")) <= 32
    assert edu == {"sender": alice.user_id, "type": "m.test.type", "messages": SENT}


async def test_a_transaction_has_a_hundred_edus_at_most(federation: Federation, clock: ManualClock):
    servers = await start(federation, "hs1")
    peer, alice = Peer(federation.evil("evil")), await servers[0].register("alice")
    peer.open.clear()
    for n in range(230):
        await send(alice, {peer.user: {"D": {"n": n}}}, f"t{n}")
    await handed_out(servers[0].services)
    peer.open.set()
    await pass_time(servers, clock, 10_000)
    edus = peer.edus("m.direct_to_device")
    assert [edu["messages"][peer.user]["D"]["n"] for edu in edus] == list(range(230))
    assert max(len(r.content["edus"]) for r in peer.taken) <= 100  # type: ignore[index]


async def test_F11_one_message_that_is_never_taken_keeps_nothing_back(
    federation: Federation, clock: ManualClock
):
    servers = await start(federation, "hs1")
    peer, alice = Peer(federation.evil("evil")), await servers[0].register("alice")

    def refuses_one(request: Received) -> object:
        return raw({"errcode": "M_BAD_JSON"}, 400) if "poison" in str(request.content) else None

    peer.answer = refuses_one
    peer.open.clear()
    for n in range(10):
        content = {"n": n, "poison": 1} if n == 4 else {"n": n}
        await send(alice, {peer.user: {"D": content}}, f"t{n}")
    await handed_out(servers[0].services)
    peer.open.set()
    await pass_time(servers, clock, 10_000)
    got = [edu["messages"][peer.user]["D"]["n"] for edu in peer.edus("m.direct_to_device")]
    assert got == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert await servers[0].services.db.fetch("SELECT FROM to_device_outbox") == []


async def test_what_waits_for_a_server_is_bounded(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(to_device, "WAITING_MAX", 3)
    (server,) = await start(federation, "hs1")
    alice = await server.register("alice")
    for n in range(5):
        assert await send(alice, {"@bob:gone": {"D": {"n": n}}}, f"t{n}") == 200
    assert len(await server.services.db.fetch("SELECT FROM to_device_outbox")) == 3


# --- what another server sends -----------------------------------------------------------------


async def test_messages_of_another_server_are_delivered_once(
    hs1: Homeserver, alice: User, evil: EvilServer
):
    await alice.sync()
    await push(evil, hs1, [], [message("1"), message("2"), message("1")])
    await push(evil, hs1, [], [message("2"), message("3")])
    answer = await alice.sync()
    assert received(answer) == [{"n": "1"}, {"n": "2"}, {"n": "3"}]
    assert answer["to_device"]["events"][0]["sender"] == MALLORY
    await push(evil, hs1, [], [message("1")])
    assert received(await alice.sync()) == [], "also after they have been received"


async def test_ids_are_of_one_server(
    hs1: Homeserver, alice: User, evil: EvilServer, federation: Federation
):
    await alice.sync()
    await push(evil, hs1, [], [message("same")])
    other = federation.evil("other")
    await push(other, hs1, [], [message("same", sender="@eve:other")])
    assert len(received(await alice.sync())) == 2


@pytest.mark.parametrize("sender", [ALICE, "@bob:hs1", "@eve:other", "mallory", "", 1, None])
async def test_F07_nobody_sends_in_the_name_of_others(
    hs1: Homeserver, alice: User, evil: EvilServer, sender: object
):
    await push(evil, hs1, [], [message("1", sender=sender), message("2")])
    assert received(await alice.sync()) == [{"n": "2"}]


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": None},
        {"type": "m.\0"},
        {"message_id": None},
        {"message_id": 7},
        {"message_id": "x" * 256},
        {"messages": []},
        {"messages": {ALICE: []}},
        {"messages": {ALICE: {"*": "x"}}},
        {"messages": {ALICE: {"*": {"x": "y" * 70_000}}}},
    ],
)
async def test_what_is_no_message_is_ignored(
    hs1: Homeserver, alice: User, evil: EvilServer, wrong: dict
):
    await push(evil, hs1, [], [message("1") | {"content": message("1")["content"] | wrong}])
    await push(evil, hs1, [], [message("2")])
    assert received(await alice.sync()) == [{"n": "2"}]


async def test_F09_unknown_users_and_devices_get_nothing(
    hs1: Homeserver, alice: User, evil: EvilServer
):
    nobody = {"@nobody:hs1": {"*": {}}, "@bob:elsewhere": {"*": {}}, ALICE: {"GONE": {}}}
    await push(evil, hs1, [], [message("1", nobody)])
    assert received(await alice.sync()) == []
    assert await hs1.services.db.fetch("SELECT FROM to_device_messages") == []
    assert await hs1.services.db.fetch("SELECT FROM to_device_outbox") == []


async def test_F09_a_flood_of_one_server_leaves_room_for_others(
    hs1: Homeserver, alice: User, evil: EvilServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(to_device, "WAITING_MAX", 20)
    for batch in range(10):
        await push(evil, hs1, [], [message(f"{batch} {n}") for n in range(5)])
    bob = await hs1.register("bob")
    await send(bob, {ALICE: {"*": {"n": "bob"}}})
    got = received(await alice.sync())
    assert len(got) == 11, "half for evil, and then bob's"
    assert got[-1] == {"n": "bob"}
