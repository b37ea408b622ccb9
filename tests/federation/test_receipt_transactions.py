"""Transactions as a whole, and EDUs: F01-F08 and F18 of the list of attacks."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from minihs.base.errors import InvalidParam, Unavailable
from minihs.base.randomness import Randomness
from minihs.protocol.server_acl import compile_server_acl
from minihs.remote.transport import RemoteError
from minihs.services.ephemeral import typing_notifications
from minihs.services.federation import transactions
from minihs.storage import auth_chains
from minihs.storage.event_store import ACCEPTED
from tests.helpers.homeserver import running_homeserver
from tests.helpers.mirror import forge, id_of, mirror, push, refresh, send_transaction, serve
from tests.helpers.network import node_of, raw
from tests.helpers.rooms import ALICE, MALLORY, Room
from tests.helpers.waiting import PATIENCE_S, until

if TYPE_CHECKING:
    from pathlib import Path

    from minihs.base.clock import ManualClock
    from minihs.protocol.identifiers import EventId, RoomId, UserId
    from minihs.remote.transport import OutgoingRequest, RawAnswer
    from minihs.services.context import Services
    from minihs.services.rooms.heads import RoomHead
    from tests.helpers.homeserver import Homeserver, User
    from tests.helpers.network import EvilServer, Federation

pytestmark = pytest.mark.spec("server-server-api#transactions")

YEAR_MS = 365 * 86_400_000


async def bodies(user: User, room: Room) -> list[object]:
    """Return the bodies of the room's messages, oldest first."""
    page = await user.call("GET", f"/rooms/{quote(room.room_id)}/messages", dir="f", limit="1000")
    return [e["content"].get("body") for e in page["chunk"] if e["type"] == "m.room.message"]


async def another_room(hs1: Homeserver, alice: User) -> Room:
    hs1.clock.advance_ms(1)  # type: ignore[attr-defined]  # a manual one; else it were the same room
    return await mirror(hs1, await alice.create_room(room_version="12"))


def messages(room: Room, count: int) -> list:
    return [room.send(MALLORY, "m.room.message", {"body": f"{n}"}) for n in range(count)]


# --- size, repetition, order --------------------------------------------------------------------


async def test_F01_too_many_pdus_are_refused_as_a_whole(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    events = messages(room, 51)
    answer = await send_transaction(evil, hs1, events)
    assert isinstance(answer, RemoteError)
    assert (answer.status, answer.errcode) == (400, "M_BAD_JSON")
    assert await bodies(alice, room) == []
    assert len(await push(evil, hs1, events[:50])) == 50


async def test_F01_so_are_too_many_edus(hs1: Homeserver, alice: User, evil: EvilServer, room: Room):
    answer = await send_transaction(evil, hs1, messages(room, 1), [typing(room)] * 101)
    assert isinstance(answer, RemoteError)
    assert (answer.status, answer.errcode) == (400, "M_BAD_JSON")
    assert await bodies(alice, room) == []
    assert await who_types(alice, room) == []
    await push(evil, hs1, [], [typing(room)] * 100)
    assert await who_types(alice, room) == [MALLORY]


@pytest.mark.parametrize("content", [{"pdus": {}}, {"pdus": 1}, {"pdus": [], "edus": "m.typing"}])
async def test_what_is_no_transaction_is_refused(hs1: Homeserver, evil: EvilServer, content: dict):
    answer = await evil.request("hs1", "PUT", "/_matrix/federation/v1/send/t", content)
    assert isinstance(answer, RemoteError)
    assert (answer.status, answer.errcode) == (400, "M_BAD_JSON")


async def test_F02_a_repeated_transaction_gets_its_first_answer(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    first, second = messages(room, 2)
    bad = forge(room.draft(MALLORY, "m.room.message", {}), depth=-1)
    answers = [
        await push(evil, hs1, pdus, txn_id="same")
        for pdus in ([first, bad], [first, bad], [second], [])
    ]
    assert len(answers[0]) == 2
    assert answers == [answers[0]] * 4
    assert await bodies(alice, room) == ["0"]


async def test_F02_while_the_first_is_under_way_it_waits(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    events = messages(room, 10)
    first, *others = await asyncio.gather(
        *(push(evil, hs1, events, txn_id="same") for _ in range(5)),
        *(push(evil, hs1, [], txn_id="same") for _ in range(5)),
    )
    assert first == {event.event_id: {} for event in events}
    assert others == [first] * 9
    assert await bodies(alice, room) == [f"{n}" for n in range(10)]


async def test_F02_the_ids_of_different_servers_are_different(
    federation: Federation, hs1: Homeserver, evil: EvilServer, room: Room
):
    event = messages(room, 1)[0]
    other = federation.evil("other")
    assert await push(other, hs1, [], txn_id="same") == {}
    assert await push(evil, hs1, [event], txn_id="same") == {event.event_id: {}}


async def test_F02_old_transactions_are_forgotten(
    hs1: Homeserver, evil: EvilServer, room: Room, clock: ManualClock
):
    first, second = messages(room, 2)
    await push(evil, hs1, [first], txn_id="same")
    await transactions.forget_old(hs1.services)
    assert await push(evil, hs1, [second], txn_id="same") == {first.event_id: {}}
    clock.advance_ms(transactions.KEPT_MS + 1)
    evil.on("GET", "/_matrix/key/v2/server", evil.key_object())
    await transactions.forget_old(hs1.services)
    assert await push(evil, hs1, [second], txn_id="same") == {second.event_id: {}}


async def test_F02_F03_several_processes_take_the_same_events_at_once(
    federation: Federation, tmp_path: Path, clock: ManualClock
):
    network = federation.network
    (tmp_path / "several").mkdir()
    async with federation._database() as dsn, running_homeserver(
        dsn, tmp_path / "several", clock=clock, workers=2, transport=network.transport("hs1"),
        server_name="hs1", default_room_version="12",
    ) as hs1:  # fmt: skip
        turns = itertools.cycle([node_of(worker) for worker in hs1.workers])

        async def any_of_them(request: OutgoingRequest) -> RawAnswer:
            return await next(turns)(request)

        network.add("hs1", any_of_them)
        evil = federation.evil()
        alice = await hs1.register("alice")
        room = await mirror(hs1, await alice.create_room())
        await push(evil, hs1, [room.join(MALLORY)])
        base = list(room.ends)
        events = []
        for n in range(30):
            names = {"membership": "join", "displayname": f"{n}"}
            prev = base if n % 3 == 0 else None
            events.append(room.send(MALLORY, "m.room.member", names, state_key=MALLORY, prev=prev))
            events.append(room.send(MALLORY, "m.room.message", {"body": f"{n}"}))
        parts = [events[start : start + 20] for start in range(0, len(events), 10)]
        results, *_ = await asyncio.gather(
            asyncio.gather(*(push(evil, hs1, part) for part in [*parts, *parts])),
            *(alice.say(room.room_id, f"meanwhile {n}") for n in range(10)),
        )
        assert not any(result for part in results for result in part.values())
        for part in parts:
            await push(evil, hs1, part)
        for worker in hs1.workers:
            await worker.follower.wait_for(await worker.follower.fetch_position())
        found = await bodies(alice, room)
        assert len(found) == len(set(found)) == 40
        await refresh(room, hs1)  # It holds every event against the rules, and the graph.
        fetch = hs1.services.db.fetch
        ends = {row[0] for row in await fetch("SELECT unnest(extremities) FROM rooms")}
        assert ends <= {row[0] for row in await fetch("SELECT event_nid FROM events")}
        path = f"/rooms/{quote(room.room_id)}/state/m.room.member/{quote(MALLORY)}"
        current = room.current("m.room.member", MALLORY)
        assert current is not None
        assert await alice.call("GET", path) == current.content


@pytest.mark.parametrize("stands", ["beside it", "behind it"])
async def test_F02_F03_what_rests_upon_what_was_not_committed_after_all_is_judged_again(
    hs1: Homeserver, evil: EvilServer, room: Room, monkeypatch: pytest.MonkeyPatch, stands: str
):
    """Another process is faster than a commit upon which the next event is being built."""
    services, base = hs1.services, list(room.ends)
    early, first, second = [
        room.send(MALLORY, "m.room.member", {"membership": "join", "displayname": name},
                  state_key=MALLORY, prev=base)
        for name in ("early", "first", "second")
    ]  # fmt: skip
    end = room.send(MALLORY, "m.room.message", {"body": "another end"}, prev=base)
    if stands == "behind it":
        await push(evil, hs1, [early, end])
        second = room.send(MALLORY, "m.room.message", {"body": "behind"}, prev=[first, early])
    may_fail, commit = asyncio.Event(), services.committer._commit
    list_auth_chain = auth_chains.list_auth_chain

    def head() -> RoomHead:
        found = services.heads.slot(room.room_id).head
        assert found is not None
        return found

    async def commit_late(units: Any) -> None:
        await may_fail.wait()
        await commit(units)

    async def look_late(*asked: Any) -> set[EventId]:
        built_upon = head()
        if not may_fail.is_set() and built_upon.cursor.pending is not None:
            may_fail.set()
            await until(lambda: built_upon.was_overtaken)
        return await list_auth_chain(*asked)

    monkeypatch.setattr(services.committer, "_commit", commit_late)
    monkeypatch.setattr(auth_chains, "list_auth_chain", look_late)
    pushing = asyncio.ensure_future(push(evil, hs1, [first]))
    await until(lambda: head().cursor.pending is not None)
    await services.db.execute("UPDATE rooms SET version = version + 1")

    assert await push(evil, hs1, [second]) == {second.event_id: {}}
    assert await pushing == {first.event_id: {}}
    assert may_fail.is_set()
    stored = await services.events.get_many([first.event_id, second.event_id])
    assert [one.status for one in stored.values()] == [ACCEPTED] * 2


async def test_F03_in_whatever_order_and_however_often_events_come_the_room_is_the_same(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    randomness = Randomness(3)
    base = list(room.ends)
    left, right = base, base
    events = []
    for n in range(10):
        names = [{"membership": "join", "displayname": f"{side} {n}"} for side in "ab"]
        left = [room.send(MALLORY, "m.room.member", names[0], state_key=MALLORY, prev=left)]
        right = [room.send(MALLORY, "m.room.member", names[1], state_key=MALLORY, prev=right)]
        events += [*left, *right]
    events.append(room.send(MALLORY, "m.room.message", {"body": "merged"}, prev=[*left, *right]))
    for _ in events:
        shuffled = sorted(events, key=lambda _: randomness.between(0, 2**30))
        for start in range(0, len(events), 5):
            some = shuffled[start : start + 5]
            assert await push(evil, hs1, some) == {event.event_id: {} for event in some}
    assert (await bodies(alice, room)) == ["merged"]
    state = await alice.call(
        "GET", f"/rooms/{quote(room.room_id)}/state/m.room.member/{quote(MALLORY)}"
    )
    current = room.current("m.room.member", MALLORY)
    assert current is not None
    assert state == current.content


async def test_pdus_of_rooms_that_we_are_not_in_are_left_alone(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    (event,) = messages(room, 1)
    await alice.leave(room.room_id)
    assert await push(evil, hs1, [event]) == {event.event_id: {}}
    assert await hs1.services.events.get(event.event_id) is None


@pytest.mark.spec("server-server-api#inviting-to-a-room")
@pytest.mark.parametrize(("sender", "is_believed"), [(MALLORY, True), ("@eve:evil", False)])
async def test_an_invite_is_taken_back_by_who_made_it(
    hs1: Homeserver, alice: User, evil: EvilServer, sender: str, *, is_believed: bool
):
    room = Room("12", creator=MALLORY)
    room.join("@eve:evil")
    invite = room.send(MALLORY, "m.room.member", {"membership": "invite"}, state_key=ALICE)
    path = f"/_matrix/federation/v2/invite/{quote(room.room_id, safe='')}/{quote(invite.event_id)}"
    create = {**room.create.pdu, "room_id": room.room_id}
    content = {"event": invite.pdu, "room_version": "12", "invite_room_state": [create]}
    answer = await evil.request("hs1", "PUT", path, content)
    assert not isinstance(answer, RemoteError), answer.describe()
    assert room.room_id in (await alice.sync())["rooms"]["invite"]
    taken_back = room.draft(MALLORY, "m.room.member", {"membership": "leave"}, state_key=ALICE)
    pdu = forge(taken_back, sender=sender)
    assert await push(evil, hs1, [pdu]) == {id_of(pdu, taken_back): {}}
    news = (await alice.sync()).get("rooms", {})
    assert (room.room_id in news.get("leave", {})) == is_believed


async def test_one_room_does_not_wait_for_another(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    other = await another_room(hs1, alice)
    await push(evil, hs1, [other.join(MALLORY)])
    asked, answered = asyncio.Event(), asyncio.Event()

    async def slow(_request: object) -> object:
        asked.set()
        await answered.wait()
        return {"events": []}

    evil.on("POST", "/_matrix/federation/v1/get_missing_events/{roomId}", slow)
    lost, found = messages(room, 2)
    there = other.send(MALLORY, "m.room.message", {"body": "there"})
    sending = asyncio.ensure_future(push(evil, hs1, [found, there]))
    await asked.wait()

    async def has_come() -> bool:
        return await bodies(alice, other) == ["there"]

    await until(has_come)
    answered.set()
    assert await sending == {there.event_id: {}, found.event_id: {}}
    assert await bodies(alice, room) == []
    assert await push(evil, hs1, [lost, found]) == {lost.event_id: {}, found.event_id: {}}


@pytest.mark.parametrize("at", ["get_missing_events", "event_auth", "state_ids", "server"])
async def test_F19_who_keeps_us_waiting_keeps_nobody_else_waiting(
    federation: Federation, hs1: Homeserver, alice: User, evil: EvilServer, room: Room, at: str
):
    """Evil pushes many events of one room, and answers no question about them."""
    carol = "@carol:hs2"
    hs2 = federation.evil("hs2")
    assert not any((await push(hs2, hs1, [room.join(carol)])).values())
    before, released = list(room.ends), asyncio.Event()
    serve(evil, room, between=1)

    async def silence(_request: object) -> RawAnswer:
        await released.wait()
        return raw({"errcode": "M_UNKNOWN", "error": "no"}, 500)

    path = "/_matrix/federation/v1/"
    match at:
        case "get_missing_events":
            evil.on("POST", path + at + "/{roomId}", silence)
        case "state_ids":
            evil.on("GET", path + at + "/{roomId}", silence)
        case "event_auth":
            evil.on("GET", path + at + "/{roomId}/{eventId}", silence)
        case _:
            evil.on("GET", "/_matrix/key/v2/server", silence)
    lost = messages(room, 25)
    pdus: list[dict] = [event.pdu for event in lost[2:]]
    if at == "event_auth":
        pdus = [
            forge(e, auth_events=[*e.auth_event_ids[:1], f"$n{n}"], prev_events=[lost[0].event_id])
            for n, e in enumerate(lost)
        ]
        await push(evil, hs1, [lost[0]])
    elif at == "server":
        unknown = {"evil": {"ed25519:unknown": "A" * 86}}
        pdus = [forge(event, signatures=unknown) for event in lost]
    stuck = [asyncio.ensure_future(send_transaction(evil, hs1, [pdu])) for pdu in pdus]
    asked = len(evil.asked(f"/{at}"))
    await until(lambda: len(evil.asked(f"/{at}")) > asked)
    event = room.send(carol, "m.room.message", {"body": "here"}, prev=before)
    async with asyncio.timeout(PATIENCE_S):
        assert await push(hs2, hs1, [event]) == {event.event_id: {}}
        await alice.say(room.room_id, "I, too")
        assert {"here", "I, too"} <= set(await bodies(alice, room))
    assert not any(future.done() for future in stuck)
    released.set()
    await asyncio.gather(*stuck)


# --- time ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset_ms", [-10 * YEAR_MS, 10 * YEAR_MS])
async def test_F18_time_stamps_decide_no_order(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, offset_ms: int
):
    ts_ms = hs1.clock.now_ms() + offset_ms
    evil.on("GET", "/_matrix/key/v2/server", evil.key_object(valid_until_ts=2**53 - 1))
    await alice.say(room.room_id, "first")
    event = room.send(MALLORY, "m.room.message", {"body": "second"}, origin_server_ts=ts_ms)
    result = (await push(evil, hs1, [event]))[event.event_id]
    await alice.say(room.room_id, "third")
    if offset_ms < 0:
        assert result == {}
        assert await bodies(alice, room) == ["first", "second", "third"]
    else:  # No key is believed to be valid for so long.
        assert "signature" in result["error"]
        assert await bodies(alice, room) == ["first", "third"]


@pytest.mark.parametrize("version", ["4"])
async def test_F18_not_where_keys_do_not_expire_either(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    await alice.say(room.room_id, "first")
    ts_ms = hs1.clock.now_ms() + 10 * YEAR_MS
    event = room.send(MALLORY, "m.room.message", {"body": "second"}, origin_server_ts=ts_ms)
    assert await push(evil, hs1, [event]) == {event.event_id: {}}
    await alice.say(room.room_id, "third")
    assert await bodies(alice, room) == ["first", "second", "third"]
    shown = await alice.call("GET", f"/rooms/{quote(room.room_id)}/event/{quote(event.event_id)}")
    assert shown["origin_server_ts"] == ts_ms


# --- server ACLs --------------------------------------------------------------------------------

ACLS = [
    ({"allow": ["*"], "deny": ["evil"]}, False),
    ({"allow": ["*"], "deny": ["EVIL"]}, False),
    ({"allow": ["*"], "deny": ["ev?l"]}, False),
    ({"allow": ["*"], "deny": ["*vil", "other"]}, False),
    ({"allow": ["hs1"], "deny": []}, False),
    ({"allow": [], "deny": []}, False),
    ({"deny": []}, False),
    ({"allow": "everybody", "deny": None}, False),
    ({"allow": ["evil"], "deny": ["evil"]}, False),
    ({"allow": ["*"]}, True),
    ({"allow": ["hs1", "EVIL"], "deny": [1, None]}, True),
    ({"allow": ["*"], "deny": ["*.evil", "evil2"]}, True),
]


@pytest.mark.spec("server-server-api#server-access-control-lists-acls")
@pytest.mark.parametrize(("acl", "is_heard"), ACLS)
async def test_F04_F05_servers_are_heard_as_the_acl_says(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, acl: dict, *, is_heard: bool
):
    other = await another_room(hs1, alice)
    await push(evil, hs1, [other.join(MALLORY)])
    last = await alice.say(room.room_id, "read me")
    await alice.put_state(room.room_id, "m.room.server_acl", acl)
    (event,), (free,) = messages(room, 1), messages(other, 1)
    edus = [typing(room), typing(other), receipt(room, last)]
    results = await push(evil, hs1, [event, free], edus)
    assert results[free.event_id] == {}
    assert (results[event.event_id] == {}) == is_heard
    if not is_heard:
        assert "ACL" in results[event.event_id]["error"]
    assert ((await hs1.services.events.get(event.event_id)) is not None) == is_heard
    news = await alice.sync()
    assert ephemeral(news, other) == {"m.typing": {"user_ids": [MALLORY]}}
    found = ephemeral(news, room)
    assert (found.get("m.typing") == {"user_ids": [MALLORY]}) == is_heard
    assert ("m.receipt" in found) == is_heard


@pytest.mark.spec("server-server-api#server-access-control-lists-acls")
async def test_F06_a_long_acl_is_compiled_once(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, monkeypatch: pytest.MonkeyPatch
):
    compiled = []

    def counted(content: dict) -> object:
        compiled.append(content)
        return compile_server_acl(content)

    monkeypatch.setattr("minihs.services.rooms.server_acls.compile_server_acl", counted)
    deny = [f"*.{n}.org" for n in range(2_000)] + ["*" * 200 + "x"]
    await alice.put_state(room.room_id, "m.room.server_acl", {"allow": ["*"], "deny": deny})
    for event in messages(room, 20):
        assert (await push(evil, hs1, [event], [typing(room)])) == {event.event_id: {}}
    assert len(compiled) == 1


# --- EDUs ---------------------------------------------------------------------------------------


def typing(room: Room, user_id: object = MALLORY, *, typing: object = True) -> dict:
    content = {"room_id": room.room_id, "user_id": user_id, "typing": typing}
    return {"edu_type": "m.typing", "content": content}


def receipt(
    room: Room, event_id: str, user_id: str = MALLORY, receipt_type: str = "m.read", **data: object
) -> dict:
    one = {"event_ids": [event_id], "data": {"ts": 1_234, **data}}
    content = {room.room_id: {receipt_type: {user_id: one}}}
    return {"edu_type": "m.receipt", "content": content}


def ephemeral(answer: dict, room: Room) -> dict[str, dict]:
    """Return the room's ephemeral events of a sync by type."""
    joined = answer.get("rooms", {}).get("join", {}).get(room.room_id, {})
    events = joined.get("ephemeral", {}).get("events", [])
    return {event["type"]: event["content"] for event in events}


async def who_types(user: User, room: Room) -> list[str]:
    found = ephemeral(await user.sync(), room)
    return found.get("m.typing", {"user_ids": []})["user_ids"]


@pytest.mark.spec("server-server-api#typing-notifications")
async def test_users_of_other_servers_type_and_stop(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    await push(evil, hs1, [], [typing(room)])
    assert await who_types(alice, room) == [MALLORY]
    await push(evil, hs1, [], [typing(room, typing=False)])
    assert ephemeral(await alice.sync(), room) == {"m.typing": {"user_ids": []}}


@pytest.mark.spec("server-server-api#receipts")
async def test_users_of_other_servers_read(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    first, second = await alice.say(room.room_id), await alice.say(room.room_id)
    await alice.sync()
    await push(evil, hs1, [], [receipt(room, second)])
    assert ephemeral(await alice.sync(), room)["m.receipt"] == {
        second: {"m.read": {MALLORY: {"ts": 1_234}}}
    }
    # What is behind it is no news.
    await push(evil, hs1, [], [receipt(room, first), receipt(room, second)])
    assert ephemeral(await alice.sync(), room) == {}
    await push(evil, hs1, [], [receipt(room, first, thread_id="main")])
    assert ephemeral(await alice.sync(), room)["m.receipt"] == {
        first: {"m.read": {MALLORY: {"ts": 1_234, "thread_id": "main"}}}
    }


@pytest.mark.parametrize("user_id", [ALICE, "@bob:hs1", "@mallory:other", "mallory", "", 1, None])
async def test_F07_nobody_speaks_for_the_users_of_others(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, user_id: object
):
    last = await alice.say(room.room_id)
    await alice.sync()
    edus = [typing(room, user_id), receipt(room, last, str(user_id)), typing(room)]
    await push(evil, hs1, [], edus)
    assert ephemeral(await alice.sync(), room) == {"m.typing": {"user_ids": [MALLORY]}}


async def test_F05_F07_nor_of_rooms_that_they_are_not_in(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    last = await alice.say(room.room_id)
    await alice.sync()
    stranger = "@stranger:evil"
    await push(evil, hs1, [], [typing(room, stranger), receipt(room, last, stranger)])
    assert ephemeral(await alice.sync(), room) == {}
    kick = {"user_id": MALLORY}
    await alice.call("POST", f"/rooms/{quote(room.room_id)}/kick", kick)
    await push(evil, hs1, [], [typing(room), receipt(room, last)])
    assert ephemeral(await alice.sync(), room) == {}


@pytest.mark.spec("server-server-api#receipts")
async def test_F08_receipts_name_events_of_their_room(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    other = await another_room(hs1, alice)
    elsewhere = await alice.say(other.room_id)
    rejected = room.draft(MALLORY, "m.room.name", {"name": "mine"}, state_key="")
    await push(evil, hs1, [rejected])
    await alice.sync()
    edus = [receipt(room, elsewhere), receipt(room, rejected.event_id)]
    await push(evil, hs1, [], edus)
    assert ephemeral(await alice.sync(), room) == {}


@pytest.mark.spec("server-server-api#receipts")
async def test_F08_private_receipts_and_malformed_ones_are_ignored(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    last = await alice.say(room.room_id)
    await alice.sync()
    good = receipt(room, last)
    malformed: list[object] = [None, 1, [], {}, {"event_ids": last}, {"event_ids": []}]
    malformed += [{"event_ids": [1]}, {"event_ids": ["$\0"]}]
    malformed += [{"event_ids": [last], "data": {"thread_id": 1}}]
    edus = [receipt(room, last, receipt_type="m.read.private")]
    edus += [
        {"edu_type": "m.receipt", "content": {room.room_id: {"m.read": {MALLORY: bad}}}}
        for bad in malformed
    ]
    edus += [{"edu_type": "m.receipt", "content": {room.room_id: bad}} for bad in malformed]
    edus += [{"edu_type": "m.receipt", "content": {"room": good["content"][room.room_id]}}]
    await push(evil, hs1, [], edus)
    assert ephemeral(await alice.sync(), room) == {}
    await push(evil, hs1, [], [*edus, receipt(room, last, ts=-1)])
    found = ephemeral(await alice.sync(), room)["m.receipt"]
    assert found == {last: {"m.read": {MALLORY: {"ts": hs1.clock.now_ms()}}}}


@pytest.mark.spec("server-server-api#edus")
async def test_edus_that_we_do_not_know_harm_no_others(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    strange: list = [None, 1, "m.typing", [], {}, {"edu_type": 1}, {"content": {}}]
    strange += [{"edu_type": "m.typing"}, {"edu_type": "m.typing", "content": []}]
    strange += [{"edu_type": "m.typing", "content": {"room_id": "x", "user_id": MALLORY}}]
    strange += [typing(room, typing="yes"), {"edu_type": "com.example", "content": {}}]
    for kind in ("m.presence", "m.direct_to_device", "m.device_list_update"):
        strange.append({"edu_type": kind, "content": {}})
    for before, after in itertools.permutations([strange, [typing(room)]]):
        await push(evil, hs1, [], [*before, *after])
        assert await who_types(alice, room) == [MALLORY]
        await push(evil, hs1, [], [typing(room, typing=False)])


@pytest.mark.spec("server-server-api#edus")
async def test_an_edu_that_we_stumble_over_harms_no_others(
    hs1: Homeserver,
    alice: User,
    evil: EvilServer,
    room: Room,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    """Were its transaction refused, it would come for ever, and nothing else of that server."""
    stranger = "@stranger:evil"
    set_typing = typing_notifications.set_typing

    async def stumble(services: Services, user_id: UserId, *args: Any, **options: Any) -> None:
        if user_id == stranger:
            raise ZeroDivisionError
        await set_typing(services, user_id, *args, **options)

    monkeypatch.setattr(typing_notifications, "set_typing", stumble)
    last = await alice.say(room.room_id)
    await alice.sync()
    await push(evil, hs1, [], [typing(room, stranger), typing(room), receipt(room, last)])
    found = ephemeral(await alice.sync(), room)
    assert found["m.typing"] == {"user_ids": [MALLORY]}
    assert MALLORY in found["m.receipt"][last]["m.read"]
    assert [record.getMessage() for record in caplog.records if record.exc_info] == [
        "dropped an EDU of type m.typing from evil"
    ]


@pytest.mark.spec("server-server-api#transactions")
async def test_edus_come_again_when_the_database_was_away(
    hs1: Homeserver,
    alice: User,
    evil: EvilServer,
    room: Room,
    monkeypatch: pytest.MonkeyPatch,
):
    async def fail(_: object) -> None:
        raise Unavailable("The database is not available now.")

    last = await alice.say(room.room_id)
    await alice.sync()
    with monkeypatch.context() as patched:
        patched.setattr(hs1.services.committer, "commit_rows", fail)
        answer = await send_transaction(evil, hs1, [], [receipt(room, last)], txn_id="same")
        assert isinstance(answer, RemoteError)
        assert answer.status == 503
    await push(evil, hs1, [], [receipt(room, last)], txn_id="same")
    assert "m.receipt" in ephemeral(await alice.sync(), room)


@pytest.mark.parametrize("error", [ZeroDivisionError(), InvalidParam("There is a NUL.")])
async def test_a_room_that_we_stumble_over_harms_no_others(
    hs1: Homeserver,
    alice: User,
    evil: EvilServer,
    room: Room,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
):
    other = await another_room(hs1, alice)
    join = other.join(MALLORY)
    await push(evil, hs1, [join])

    async def stumble(services: Services, origin: str, room_id: RoomId, pdus: list) -> object:
        if room_id == room.room_id:
            raise error
        return await receive_pdus(services, origin, room_id, pdus)

    receive_pdus = transactions.receive_pdus
    monkeypatch.setattr(transactions, "receive_pdus", stumble)
    (lost,), (found,) = messages(room, 1), messages(other, 1)
    assert await push(evil, hs1, [lost, found]) == {found.event_id: {}}
    assert await bodies(alice, other) == ["0"]
