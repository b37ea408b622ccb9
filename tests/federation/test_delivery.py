"""Delivery: what other servers get from us, when, and how often."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from minihs.protocol.event_assembly import EventDraft
from minihs.services.federation import catch_up, sending
from minihs.services.federation import delivery as delivery_module
from minihs.services.rooms.send import send_event
from minihs.storage import destinations
from tests.helpers.deliveries import HOLDER, Peer, begin, handed_out, pass_time, settled
from tests.helpers.network import Received, raw
from tests.helpers.remote_members import put_event, put_member
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from minihs.base.clock import ManualClock
    from minihs.services.context import Services
    from tests.helpers.homeserver import Homeserver, User
    from tests.helpers.network import Federation

pytestmark = pytest.mark.spec("server-server-api#transactions")


@pytest.fixture
async def hs1(federation: Federation) -> Homeserver:
    server = await federation.start("hs1", default_room_version="11")
    await begin(server.services)
    return server


@pytest.fixture
async def evil(federation: Federation) -> Peer:
    return Peer(federation.evil("evil"))


async def test_messages_arrive_in_order_one_transaction_at_a_time(
    hs1: Homeserver, alice: User, evil: Peer
):
    room_id = await alice.create_room()
    await put_member(hs1.services, room_id, evil.user)
    evil.open.clear()
    await alice.say(room_id, "0")
    await until(lambda: evil.attempts)
    for n in range(1, 121):
        await alice.say(room_id, str(n))
    await handed_out(hs1.services)
    evil.open.set()
    await until(lambda: len(evil.bodies) == 121)
    assert evil.bodies == [str(n) for n in range(121)]
    assert [len(r.content["pdus"]) for r in evil.taken] == [1, 50, 50, 20]  # type: ignore[index]
    assert evil.at_once == 1
    assert len({r.path["txnId"] for r in evil.taken}) == 4
    content = evil.taken[0].content
    assert isinstance(content, dict)
    assert content["origin"] == "hs1"
    assert content["origin_server_ts"] == hs1.clock.now_ms()
    assert evil.taken[0].origin == "hs1"


async def test_in_a_flood_events_gather_and_go_together(
    hs1: Homeserver, alice: User, evil: Peer, clock: ManualClock
):
    room_id = await alice.create_room()
    await put_member(hs1.services, room_id, evil.user)
    for n in range(sending.UNPACED + 1):
        await alice.say(room_id, str(n))
        await until(lambda n=n: len(evil.bodies) == n + 1)
    before = len(evil.taken)
    for text in ("these", "go", "together"):
        await alice.say(room_id, text)
    await settled(hs1.services)
    assert len(evil.taken) == before
    clock.advance_ms(sending.PACE_MS * len(evil.taken))
    await settled(hs1.services)
    assert len(evil.taken) == before + 1
    assert evil.bodies[-3:] == ["these", "go", "together"]


async def test_rooms_are_merged_in_the_order_in_which_things_happened(
    hs1: Homeserver, alice: User, evil: Peer
):
    rooms = [await alice.create_room() for _ in range(2)]
    for room_id in rooms:
        await put_member(hs1.services, room_id, evil.user)
    evil.open.clear()
    for n in range(10):
        await alice.say(rooms[n % 2], str(n))
    evil.open.set()
    await until(lambda: len(evil.bodies) == 10)
    assert evil.bodies == [str(n) for n in range(10)]


async def test_nothing_is_sent_where_nobody_else_is(hs1: Homeserver, alice: User, evil: Peer):
    local = await alice.create_room()
    await alice.say(local)
    shared = await alice.create_room()
    await put_member(hs1.services, shared, evil.user)
    await alice.say(shared, "hello")
    await until(lambda: evil.bodies)
    await settled(hs1.services)
    assert [pdu["room_id"] for pdu in evil.pdus] == [shared]
    await hs1.services.delivery.hold_shards(hs1.services, HOLDER)
    assert await hs1.services.db.fetchval("SELECT count(*) FROM destinations") == 1


async def test_who_comes_in_is_told_of_nothing_before(hs1: Homeserver, alice: User, evil: Peer):
    room_id, other = await alice.create_room(), await alice.create_room()
    await put_member(hs1.services, other, evil.user)
    await alice.say(other, "elsewhere")
    await alice.say(room_id, "before")
    await put_member(hs1.services, room_id, evil.user)
    await alice.say(room_id, "after")
    await until(lambda: "after" in evil.bodies)
    assert evil.bodies == ["elsewhere", "after"]


@pytest.mark.spec("server-server-api#pdus")
async def test_who_is_kicked_is_told_and_then_nothing_more(
    hs1: Homeserver, alice: User, evil: Peer, federation: Federation
):
    witness = Peer(federation.evil("witness"))
    room_id = await alice.create_room()
    for peer in (evil, witness):
        await put_member(hs1.services, room_id, peer.user)
    path = f"/rooms/{quote(room_id)}/kick"
    await alice.call("POST", path, {"user_id": evil.user})
    await alice.say(room_id, "at last")
    await until(lambda: witness.bodies)
    await settled(hs1.services)
    assert [pdu["type"] for pdu in evil.pdus] == ["m.room.member"]
    assert evil.pdus[0]["state_key"] == evil.user
    assert evil.pdus[0]["content"]["membership"] == "leave"
    assert [pdu["type"] for pdu in witness.pdus] == ["m.room.member", "m.room.message"]


async def test_as_long_as_one_of_its_users_is_there_a_server_is_told(
    hs1: Homeserver, alice: User, evil: Peer
):
    room_id = await alice.create_room()
    await put_member(hs1.services, room_id, evil.user)
    await put_member(hs1.services, room_id, "@trudy:evil")
    await put_member(hs1.services, room_id, "@trudy:evil", displayname="Trudy")
    await alice.say(room_id, "two")
    await put_member(hs1.services, room_id, evil.user, "leave")
    await alice.say(room_id, "one")
    await put_member(hs1.services, room_id, "@trudy:evil", "leave")
    await alice.say(room_id, "none")
    await settled(hs1.services)
    assert evil.bodies == ["two", "one"]


async def test_a_withdrawn_invite_reaches_the_server_that_got_it(
    hs1: Homeserver, alice: User, evil: Peer
):
    room_id = await alice.create_room(preset="private_chat")
    evil.server.on(
        "PUT",
        "/_matrix/federation/v2/invite/{roomId}/{eventId}",
        lambda r: {"event": r.content["event"]},
    )
    await alice.put_state(room_id, "m.room.topic", {"topic": "secret"})
    draft = await _invite(hs1.services, alice, room_id, evil.user)
    await settled(hs1.services)
    assert evil.pdus == []
    path = f"/rooms/{quote(room_id)}/kick"
    await alice.call("POST", path, {"user_id": evil.user})
    await alice.say(room_id, "gone")
    await until(lambda: evil.pdus)
    await settled(hs1.services)
    assert [pdu["content"]["membership"] for pdu in evil.pdus] == ["leave"]
    assert draft in evil.pdus[0]["auth_events"]


async def _invite(services: Services, alice: User, room_id: str, user_id: str) -> str:
    """Commit an invite, as after its server has agreed."""
    return await send_event(
        services,
        EventDraft(
            room_id=room_id,  # type: ignore[arg-type]
            sender=alice.user_id,  # type: ignore[arg-type]
            type="m.room.member",
            content={"membership": "invite"},
            origin_server_ts=services.clock.now_ms(),
            state_key=user_id,
        ),
    )


@pytest.mark.spec("server-server-api#joining-rooms", "server-server-api#knocking-rooms")
async def test_what_came_from_outside_is_passed_on_but_not_back(
    hs1: Homeserver, alice: User, evil: Peer, federation: Federation
):
    newcomer = Peer(federation.evil("newcomer"))
    room_id = await alice.create_room()
    await put_member(hs1.services, room_id, evil.user)
    await put_member(hs1.services, room_id, newcomer.user, resident=True)
    message = {"msgtype": "m.text", "body": "mine"}
    await put_event(hs1.services, room_id, newcomer.user, "m.room.message", message)
    await put_member(hs1.services, room_id, newcomer.user, displayname="N")
    await alice.say(room_id, "hello")
    await until(lambda: evil.bodies and newcomer.bodies)
    assert [pdu["type"] for pdu in newcomer.pdus] == ["m.room.message"]
    assert [pdu["type"] for pdu in evil.pdus] == ["m.room.member", "m.room.message"]
    assert {"hs1", "newcomer"} == set(evil.pdus[0]["signatures"])
    assert evil.pdus[0]["content"] == {"membership": "join"}
    assert evil.bodies == ["hello"]


async def test_a_failed_transaction_is_repeated_before_any_other(
    hs1: Homeserver, alice: User, evil: Peer, clock: ManualClock
):
    room_id = await alice.create_room()
    await put_member(hs1.services, room_id, evil.user)
    evil.answer = lambda _: raw({"errcode": "M_UNKNOWN", "error": "no"}, 500)
    await alice.say(room_id, "first")
    await until(lambda: evil.attempts)
    await settled(hs1.services)
    for n in range(5):
        await alice.say(room_id, f"later {n}")
    await settled(hs1.services)
    assert len(evil.attempts) == 1, "it is left alone for a while"

    evil.answer = lambda _: None
    await pass_time(hs1.services, clock, 4_000)

    assert {r.path["txnId"] for r in evil.attempts[:2]} == {evil.attempts[0].path["txnId"]}
    first, second = evil.attempts[:2]
    assert first.content["pdus"] == second.content["pdus"]  # type: ignore[index]
    assert evil.bodies == ["first", "later 4"], "it asks for the rest itself"
    await alice.say(room_id, "live again")
    await until(lambda: evil.bodies[-1] == "live again")


async def test_a_lost_answer_makes_the_same_transaction_come_twice(
    hs1: Homeserver, alice: User, evil: Peer, clock: ManualClock, federation: Federation
):
    room_id = await alice.create_room()
    await put_member(hs1.services, room_id, evil.user)
    federation.network.faults.unanswered = 1_000
    await alice.say(room_id, "hello")
    await until(lambda: evil.taken)
    await settled(hs1.services)
    federation.network.heal()
    await pass_time(hs1.services, clock, 4_000)
    assert len(evil.taken) == 2
    assert evil.taken[0].path == evil.taken[1].path
    assert evil.taken[0].content["pdus"] == evil.taken[1].content["pdus"]  # type: ignore[index]


async def test_pauses_grow_and_end_with_a_success(
    hs1: Homeserver, alice: User, evil: Peer, clock: ManualClock, federation: Federation
):
    room_id = await alice.create_room()
    await put_member(hs1.services, room_id, evil.user)
    federation.network.isolate("evil")
    attempts = []
    await alice.say(room_id, "hello")
    await settled(hs1.services)
    log = federation.network.log
    while clock.now_ms() < 1_750_000_000_000 + 300_000:
        await pass_time(hs1.services, clock, 2_000)
        attempts.append(sum(d.destination == "evil" for d in log))
    assert 6 <= attempts[-1] <= 10, "2, 4, 8 … seconds: few attempts in five minutes"
    assert hs1.services.delivery.is_backing_off("evil")
    assert hs1.services.remote.requests.is_backing_off("evil")
    federation.network.heal()
    await pass_time(hs1.services, clock, 400_000)
    assert evil.bodies == ["hello"]
    row = await hs1.services.db.fetchrow("SELECT * FROM destinations")
    assert row is not None
    assert (row["failures"], row["behind"], row["is_down"]) == (0, False, False)
    assert row["last_success_ms"] is not None
    assert not hs1.services.delivery.is_backing_off("evil")


async def test_the_longest_pause_is_an_option(federation: Federation, clock: ManualClock):
    server = await federation.start("hs1", federation_max_backoff_seconds=5)
    await begin(server.services)
    alice, peer = await server.register("alice"), Peer(federation.evil("evil"))
    room_id = await alice.create_room()
    await put_member(server.services, room_id, peer.user)
    federation.network.isolate("evil")
    await alice.say(room_id)
    await pass_time(server.services, clock, 60_000)
    assert sum(d.destination == "evil" for d in federation.network.log) >= 9
    row = await server.services.db.fetchrow("SELECT retry_at_ms FROM destinations")
    assert row is not None
    assert row[0] <= clock.now_ms() + 5_000


async def test_who_fails_while_the_leases_are_renewed_is_left_alone_for_the_longest_pause(
    federation: Federation,
    hs1: Homeserver,
    alice: User,
    clock: ManualClock,
    evil: Peer,
    monkeypatch: pytest.MonkeyPatch,
):
    services = hs1.services
    monkeypatch.setattr(services.randomness, "between", lambda _, high: high)
    room_id = await alice.create_room()
    await put_member(services, room_id, evil.user)
    federation.network.isolate("evil")
    await alice.say(room_id, "hello")
    await settled(services)
    destination = services.delivery.outbox.destinations["evil"]
    destination.failures = 40
    take_shards, save_positions = destinations.take_shards, destinations.save_positions

    async def time_passes(*arguments: Any) -> dict[int, int]:
        clock.advance_ms(5)
        return await take_shards(*arguments)

    async def it_fails(*arguments: Any) -> None:
        await settled(services)
        await save_positions(*arguments)

    monkeypatch.setattr(destinations, "take_shards", time_passes)
    monkeypatch.setattr(destinations, "save_positions", it_fails)
    clock.advance_ms(1_000 * services.config.federation_max_backoff_seconds)
    await services.delivery.hold_shards(services, HOLDER)
    await settled(services)
    assert destination.failures == 41


async def test_a_request_from_a_server_ends_its_pause(
    hs1: Homeserver, alice: User, evil: Peer, clock: ManualClock, federation: Federation
):
    room_id = await alice.create_room()
    await put_member(hs1.services, room_id, evil.user)
    federation.network.isolate("evil")
    await alice.say(room_id, "hello")
    await pass_time(hs1.services, clock, 120_000)
    assert hs1.services.delivery.is_backing_off("evil")
    federation.network.heal()
    await settled(hs1.services)
    assert evil.taken == []

    asked = [("user_id", alice.user_id)]
    await evil.server.request("hs1", "GET", "/_matrix/federation/v1/query/profile", query=asked)

    await until(lambda: evil.bodies == ["hello"])
    assert not hs1.services.delivery.is_backing_off("evil")


async def test_a_server_that_hangs_keeps_nobody_waiting(
    hs1: Homeserver,
    alice: User,
    clock: ManualClock,
    federation: Federation,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(sending, "AT_ONCE_MAX", 2)
    peers = [Peer(federation.evil(f"peer{n}")) for n in range(8)]
    room_id = await alice.create_room()
    for peer in peers:
        await put_member(hs1.services, room_id, peer.user)
    for peer in peers[:5]:
        peer.open.clear()
    await alice.say(room_id, "hello")

    def all_others_have_it() -> bool:
        hanging = sum(peer.under_way for peer in peers[:5])
        if hanging and hanging == hs1.services.delivery._sender._under_way:
            clock.advance_ms(1_000)
        return all(peer.bodies == ["hello"] for peer in peers[5:])

    await until(all_others_have_it)
    assert clock.now_ms() < 1_750_000_000_000 + 60_000
    assert not any(peer.taken for peer in peers[:5])
    for peer in peers[:5]:
        peer.open.set()
    await until(lambda: all(peer.bodies == ["hello"] for peer in peers))


async def test_no_more_than_so_many_are_served_at_once(
    hs1: Homeserver, alice: User, federation: Federation, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sending, "AT_ONCE_MAX", 3)
    peers = [Peer(federation.evil(f"peer{n}")) for n in range(10)]
    room_id = await alice.create_room()
    for peer in peers:
        await put_member(hs1.services, room_id, peer.user)
        peer.open.clear()
    await alice.say(room_id, "hello")
    await until(lambda: sum(bool(peer.attempts) for peer in peers) == 3)
    await handed_out(hs1.services)
    assert sum(bool(peer.attempts) for peer in peers) == 3
    for peer in peers:
        peer.open.set()
    await until(lambda: all(peer.bodies == ["hello"] for peer in peers))


async def test_after_an_outage_the_newest_of_each_room_is_sent(
    hs1: Homeserver, alice: User, evil: Peer, clock: ManualClock, federation: Federation
):
    rooms = [await alice.create_room() for _ in range(60)]
    left, entered = await alice.create_room(), await alice.create_room()
    for room_id in (*rooms, left):
        await put_member(hs1.services, room_id, evil.user)
    federation.network.isolate("evil")
    await alice.say(rooms[0], "first")
    await settled(hs1.services)
    for room_id in rooms:
        for n in range(3):
            await alice.say(room_id, f"{n}")
    await alice.call("POST", f"/rooms/{quote(left)}/kick", {"user_id": evil.user})
    await alice.say(left, "among us")
    await alice.say(entered, "before")
    await put_member(hs1.services, entered, evil.user)
    await settled(hs1.services)
    federation.network.heal()
    await pass_time(hs1.services, clock, 8_000)

    sizes = [len(r.content["pdus"]) for r in evil.taken]  # type: ignore[index]
    assert sizes == [1, 50, 11], "the one that failed, and then room by room"
    assert evil.bodies == ["first"] + ["2"] * 60
    by_room = {pdu["room_id"]: pdu for pdu in evil.pdus}
    assert set(by_room) == {*rooms, left}
    assert by_room[left]["content"]["membership"] == "leave"
    row = await hs1.services.db.fetchrow("SELECT * FROM destinations")
    assert row is not None
    assert not row["behind"]


async def test_who_changed_their_name_meanwhile_is_caught_up_all_the_same(
    hs1: Homeserver, alice: User, evil: Peer, clock: ManualClock, federation: Federation
):
    room_id, other = await alice.create_room(), await alice.create_room()
    for r in (room_id, other):
        await put_member(hs1.services, r, evil.user)
    federation.network.isolate("evil")
    await alice.say(other, "first")
    await settled(hs1.services)
    await alice.say(room_id, "hello")
    await put_member(hs1.services, room_id, evil.user, displayname="Mal")
    await settled(hs1.services)
    federation.network.heal()
    await pass_time(hs1.services, clock, 8_000)
    assert evil.bodies == ["first", "hello"]


async def test_a_queue_that_grows_too_long_is_given_up_for_a_catch_up(
    hs1: Homeserver, alice: User, evil: Peer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(delivery_module, "QUEUE_PDUS_MAX", 10)
    room_id = await alice.create_room()
    await put_member(hs1.services, room_id, evil.user)
    evil.open.clear()
    await alice.say(room_id, "0")
    await until(lambda: evil.attempts)
    for n in range(1, 30):
        await alice.say(room_id, str(n))
    await handed_out(hs1.services)
    evil.open.set()
    await until(lambda: "29" in evil.bodies)
    assert evil.bodies == ["0", "29"]


@pytest.mark.spec("server-server-api#transactions")
async def test_one_bad_edu_or_pdu_does_not_stop_the_rest(hs1: Homeserver, alice: User, evil: Peer):
    room_id = await alice.create_room()
    await put_member(hs1.services, room_id, evil.user)

    def picky(received: Received) -> object:
        content = received.content
        assert isinstance(content, dict)
        bad = content["edus"] or any("bad" in str(pdu["content"]) for pdu in content["pdus"])
        return raw({"errcode": "M_BAD_JSON", "error": "no"}, 400) if bad else None

    evil.answer = picky
    evil.open.clear()
    await alice.say(room_id, "0")
    await until(lambda: evil.attempts)
    for body in ("1", "bad", "2", "3"):
        await alice.say(room_id, body)
    path = f"/rooms/{quote(room_id)}/typing/{quote(alice.user_id)}"
    await alice.call("PUT", path, {"typing": True, "timeout": 30_000})
    await handed_out(hs1.services)
    evil.open.set()
    await until(lambda: "3" in evil.bodies)
    assert evil.bodies == ["0", "1", "2", "3"]
    await alice.say(room_id, "4")
    await until(lambda: "4" in evil.bodies)


async def test_a_message_redacted_before_it_is_sent_is_sent_redacted(
    hs1: Homeserver, alice: User, evil: Peer
):
    room_id = await alice.create_room()
    await put_member(hs1.services, room_id, evil.user)
    evil.open.clear()
    await alice.say(room_id, "first")
    await until(lambda: evil.attempts)
    event_id = await alice.say(room_id, "secret")
    await alice.call("PUT", f"/rooms/{quote(room_id)}/redact/{quote(event_id)}/r1", {})
    await handed_out(hs1.services)
    evil.open.set()
    await until(lambda: len(evil.pdus) == 3)
    assert [pdu["content"] for pdu in evil.pdus[1:]] == [{}, {"redacts": event_id}]


# --- EDUs -----------------------------------------------------------------------------------------


@pytest.mark.spec("server-server-api#typing-notifications")
async def test_typing_is_told_to_servers_in_the_room(
    hs1: Homeserver, alice: User, evil: Peer, clock: ManualClock
):
    room_id = await alice.create_room()
    await put_member(hs1.services, room_id, evil.user)
    path = f"/rooms/{quote(room_id)}/typing/{quote(alice.user_id)}"
    await alice.call("PUT", path, {"typing": True, "timeout": 30_000})
    await until(lambda: len(evil.edus("m.typing")) == 1)
    await alice.call("PUT", path, {"typing": True, "timeout": 30_000})
    await settled(hs1.services)
    assert len(evil.edus("m.typing")) == 1, "nothing has changed"
    await pass_time(hs1.services, clock, 10_000)
    await alice.call("PUT", path, {"typing": True, "timeout": 30_000})
    await until(lambda: len(evil.edus("m.typing")) == 2)
    await alice.call("PUT", path, {"typing": False})
    await until(lambda: len(evil.edus("m.typing")) == 3)
    assert evil.edus("m.typing") == [
        {"room_id": room_id, "user_id": alice.user_id, "typing": typing}
        for typing in (True, True, False)
    ]
    assert evil.pdus == []


@pytest.mark.spec("server-server-api#receipts")
async def test_receipts_are_told_to_servers_in_the_room(
    hs1: Homeserver, alice: User, evil: Peer, clock: ManualClock
):
    room_id = await alice.create_room()
    await put_member(hs1.services, room_id, evil.user)
    ids = [
        await put_event(
            hs1.services, room_id, evil.user, "m.room.message", {"msgtype": "m.text", "body": "hi"}
        )
        for _ in range(3)
    ]
    base = f"/rooms/{quote(room_id)}/receipt"
    await alice.call("POST", f"{base}/m.read/{quote(ids[0])}", {})
    await alice.call("POST", f"{base}/m.read/{quote(ids[1])}", {})
    await alice.call("POST", f"{base}/m.read.private/{quote(ids[2])}", {})
    await alice.call("POST", f"{base}/m.read/{quote(ids[0])}", {"thread_id": "main"})
    await pass_time(hs1.services, clock, 2_000)
    now_ms = clock.now_ms() - 2_000
    merged: dict = {}
    for content in evil.edus("m.receipt"):
        for user_id, entry in content[room_id]["m.read"].items():
            merged.setdefault(user_id, []).append(entry)
    assert merged == {
        alice.user_id: [
            {"event_ids": [ids[1]], "data": {"ts": now_ms}},
            {"event_ids": [ids[0]], "data": {"ts": now_ms, "thread_id": "main"}},
        ]
    }


async def test_receipts_are_caught_up_but_typing_is_not(
    hs1: Homeserver, alice: User, evil: Peer, clock: ManualClock, federation: Federation
):
    room_id = await alice.create_room()
    await put_member(hs1.services, room_id, evil.user)
    message = {"msgtype": "m.text", "body": "hi"}
    event_id = await put_event(hs1.services, room_id, evil.user, "m.room.message", message)
    federation.network.isolate("evil")
    await alice.say(room_id, "hello")
    await settled(hs1.services)
    await alice.call("POST", f"/rooms/{quote(room_id)}/receipt/m.read/{quote(event_id)}", {})
    path = f"/rooms/{quote(room_id)}/typing/{quote(alice.user_id)}"
    await alice.call("PUT", path, {"typing": True, "timeout": 30_000})
    await settled(hs1.services)
    federation.network.heal()
    await pass_time(hs1.services, clock, 8_000)
    assert evil.bodies == ["hello"]
    assert [list(content) for content in evil.edus("m.receipt")] == [[room_id]]
    assert evil.edus("m.typing") == []


@pytest.mark.spec("server-server-api#receipts")
async def test_a_receipt_that_failed_beside_a_message_is_repeated_with_it(
    hs1: Homeserver, alice: User, evil: Peer, clock: ManualClock
):
    room_id = await alice.create_room()
    await put_member(hs1.services, room_id, evil.user)
    message = {"msgtype": "m.text", "body": "hi"}
    event_id = await put_event(hs1.services, room_id, evil.user, "m.room.message", message)
    evil.open.clear()
    await alice.say(room_id, "holds up the next transaction")
    await until(lambda: evil.attempts)
    await alice.call("POST", f"/rooms/{quote(room_id)}/receipt/m.read/{quote(event_id)}", {})
    await handed_out(hs1.services)
    clock.advance_ms(1_000)
    await until(lambda: hs1.services.delivery.outbox.destinations["evil"].edus)
    await alice.say(room_id, "beside it")
    await handed_out(hs1.services)
    answers = iter([None, raw({"errcode": "M_UNKNOWN", "error": "no"}, 500)])
    evil.answer = lambda _: next(answers, None)
    evil.open.set()
    await pass_time(hs1.services, clock, 4_000)
    _, failed, repeated = evil.attempts
    assert failed.path == repeated.path
    for key in ("pdus", "edus"):
        assert failed.content[key] == repeated.content[key] != []  # type: ignore[index]
    assert [list(content) for content in evil.edus("m.receipt")] == [[room_id]]


@pytest.mark.spec("server-server-api#receipts")
@pytest.mark.parametrize("speaks", [False, True])
async def test_the_receipt_by_which_we_find_that_a_server_is_down_is_caught_up(
    hs1: Homeserver,
    alice: User,
    evil: Peer,
    clock: ManualClock,
    federation: Federation,
    speaks: bool,
):
    """Also if it has waited while messages have overtaken it."""
    room_id = await alice.create_room()
    await put_member(hs1.services, room_id, evil.user)
    message = {"msgtype": "m.text", "body": "hi"}
    event_id = await put_event(hs1.services, room_id, evil.user, "m.room.message", message)
    await alice.call("POST", f"/rooms/{quote(room_id)}/receipt/m.read/{quote(event_id)}", {})
    if speaks:
        await alice.say(room_id, "hello")
    await settled(hs1.services)
    federation.network.isolate("evil")
    clock.advance_ms(1_000)
    await until(lambda: hs1.services.delivery.is_backing_off("evil"))
    await settled(hs1.services)
    federation.network.heal()
    await pass_time(hs1.services, clock, 4_000)
    assert [list(content) for content in evil.edus("m.receipt")] == [[room_id]]


@pytest.mark.spec("server-server-api#receipts")
async def test_receipts_are_caught_up_with_in_every_step(
    hs1: Homeserver,
    alice: User,
    evil: Peer,
    clock: ManualClock,
    federation: Federation,
    monkeypatch: pytest.MonkeyPatch,
):
    """There are more rooms with something new than a transaction has events."""
    monkeypatch.setattr(catch_up, "PDUS_MAX", 1)
    federation.network.isolate("evil")
    message = {"msgtype": "m.text", "body": "hi"}
    rooms = [await alice.create_room() for _ in range(3)]
    for room_id in rooms:
        await put_member(hs1.services, room_id, evil.user)
        event_id = await put_event(hs1.services, room_id, evil.user, "m.room.message", message)
        await alice.call("POST", f"/rooms/{quote(room_id)}/receipt/m.read/{quote(event_id)}", {})
        await alice.say(room_id, "hello")
        await settled(hs1.services)
    federation.network.heal()
    await pass_time(hs1.services, clock, 16_000)
    assert evil.bodies == ["hello"] * 3
    told = [room_id for content in evil.edus("m.receipt") for room_id in content]
    assert sorted(told) == sorted(rooms)


@pytest.mark.parametrize("status", [403, 404, 429, 503])
async def test_whatever_a_server_answers_instead_it_is_tried_again(
    hs1: Homeserver, alice: User, evil: Peer, clock: ManualClock, status: int
):
    room_id = await alice.create_room()
    await put_member(hs1.services, room_id, evil.user)
    body = {"errcode": "M_UNKNOWN", "error": "not now", "retry_after_ms": 10**15}
    evil.answer = lambda _: raw(body if status == 503 else {"errcode": "M_UNKNOWN"}, status)
    await alice.say(room_id, "hello")
    await settled(hs1.services)
    assert len(evil.attempts) == 1
    assert hs1.services.delivery.is_backing_off("evil") == (status in (429, 503))
    evil.answer = lambda _: None
    asked = [("user_id", alice.user_id)]
    await evil.server.request("hs1", "GET", "/_matrix/federation/v1/query/profile", query=asked)
    await until(lambda: evil.bodies == ["hello"])
    await settled(hs1.services)
    assert not hs1.services.delivery._pauses._paused
