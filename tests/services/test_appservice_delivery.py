"""What application services are sent: what concerns them, in order, time after time the same."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from minihs.base.clock import ManualClock
from minihs.services.appservices import interest
from minihs.services.appservices.delivery import BACK_OFF_MS, LEASE_MS, AppserviceDelivery
from minihs.storage import appservices
from minihs.workers import appservice_delivery
from tests.helpers.appservices import (
    HS_TOKEN,
    Bridge,
    BridgeUser,
    begin,
    make_ghost,
    running_bridge,
    sender,
    settled,
)
from tests.helpers.homeserver import Homeserver, User, running_homeserver
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.spec("application-service-api#pushing-events")

STICKY = {"org.matrix.msc4354.sticky_duration_ms": "60000"}


@pytest.fixture
async def bridge(tmp_path: Path) -> AsyncIterator[Bridge]:
    async with running_bridge(tmp_path) as service:
        yield service


class House:
    """A homeserver with the bridge, which can be started again, and time that the test moves."""

    def __init__(self, dsn: str, directory: Path, bridge: Bridge) -> None:
        self.dsn = dsn
        self.directory = directory
        self.bridge = bridge
        self.clock = ManualClock()

    @contextlib.asynccontextmanager
    async def running(self, workers: int = 1) -> AsyncIterator[Homeserver]:
        """Run the homeserver; nothing is delivered before somebody begins to."""
        async with running_homeserver(
            self.dsn,
            self.directory,
            clock=self.clock,
            workers=workers,
            appservice_files=str(self.bridge.file),
        ) as server:
            yield server


@pytest.fixture
def house(database_url: str, tmp_path: Path, bridge: Bridge) -> House:
    return House(database_url, tmp_path, bridge)


def types(bridge: Bridge) -> list[str]:
    return [event["type"] for event in bridge.events]


# --- what concerns a service ---------------------------------------------------------------------


@pytest.mark.spec("application-service-api#authorisation")
async def test_a_service_is_told_what_happens_where_its_users_are(house: House, bridge: Bridge):
    async with house.running() as server:
        delivery = await begin(server.services)
        alice, ghost = await server.register("alice"), await make_ghost(server, "_bridge_g")
        elsewhere, room_id = await alice.create_room(), await alice.create_room()
        await alice.say(elsewhere, "not for bridges")
        await alice.say(room_id, "before")
        await settled(delivery)
        assert bridge.asked == []
        await ghost.join(room_id)
        event_id = await alice.say(room_id, "one")
        await ghost.say(room_id, "two")
        await alice.put_state(room_id, "m.room.topic", {"topic": "three"})
        await ghost.leave(room_id)
        await alice.say(room_id, "after")
        await settled(delivery)
        assert types(bridge) == [
            "m.room.member", "m.room.message", "m.room.message", "m.room.topic", "m.room.member"
        ]  # fmt: skip
        one = next(event for event in bridge.events if event["event_id"] == event_id)
        assert one.pop("unsigned").keys() == {"age"}
        assert one == {
            "type": "m.room.message",
            "room_id": room_id,
            "sender": alice.user_id,
            "event_id": event_id,
            "origin_server_ts": one["origin_server_ts"],
            "content": {"msgtype": "m.text", "body": "one"},
        }
        assert {t.method for t in bridge.transactions} == {"PUT"}
        assert {t.headers["Authorization"] for t in bridge.transactions} == {f"Bearer {HS_TOKEN}"}
        assert {t.query.get("access_token") for t in bridge.transactions} == {None}
        assert len(set(bridge.txn_ids)) == len(bridge.txn_ids)


async def test_the_service_itself_counts_as_a_user_of_its(house: House, bridge: Bridge):
    bridge.register(namespaces={})
    async with house.running() as server:
        delivery = await begin(server.services)
        alice, bot = await server.register("alice"), sender(server)
        room_id = await alice.create_room(invite=[bot.user_id])
        await settled(delivery)
        (invite,) = bridge.events
        assert invite["state_key"] == bot.user_id
        shown = {event["type"] for event in invite["unsigned"]["invite_room_state"]}
        assert "m.room.create" in shown
        await bot.join(room_id)
        await alice.say(room_id, "hello")
        await settled(delivery)
        assert bridge.texts == ["hello"]


async def test_a_service_is_told_who_is_thrown_out(house: House, bridge: Bridge):
    async with house.running() as server:
        delivery = await begin(server.services)
        alice, ghost = await server.register("alice"), await make_ghost(server, "_bridge_g")
        room_id = await alice.create_room()
        await ghost.join(room_id)
        await alice.call("POST", f"/rooms/{quote(room_id)}/ban", {"user_id": ghost.user_id})
        await alice.say(room_id, "good riddance")
        await settled(delivery)
        memberships = [event["content"]["membership"] for event in bridge.events]
        assert memberships == ["join", "ban"]


@pytest.mark.parametrize("kind", ["rooms", "aliases"])
async def test_a_service_is_told_what_happens_in_rooms_of_its(
    house: House, bridge: Bridge, kind: str
):
    regex = {"rooms": "!.*", "aliases": "#news.*"}[kind]
    bridge.register(namespaces={kind: [{"regex": regex, "exclusive": False}]})
    async with house.running() as server:
        delivery = await begin(server.services)
        alice = await server.register("alice")
        room_id = await alice.create_room(room_alias_name="newsroom")
        await alice.say(room_id, "extra")
        if kind == "aliases":
            other = await alice.create_room(room_alias_name="other")
            await alice.say(other, "not for bridges")
        await settled(delivery)
        assert bridge.texts == ["extra"]
        assert types(bridge)[0] == "m.room.create"


@pytest.mark.spec("application-service-api#querying")
async def test_a_service_may_make_users_who_are_invited(house: House, bridge: Bridge):
    async with house.running() as server:
        delivery = await begin(server.services)
        alice, ghost = await server.register("alice"), await make_ghost(server, "_bridge_g")
        await alice.create_room(invite=["@_bridge_unborn:hs1", ghost.user_id])
        await settled(delivery)
        paths = [asked.path for asked in bridge.asked]
        assert paths[0] == "/_matrix/app/v1/users/@_bridge_unborn:hs1"
        assert len(paths) == 2, "nobody asks about those who are there"


async def test_what_has_been_redacted_is_told_redacted(house: House, bridge: Bridge):
    async with house.running() as server:
        ghost = await make_ghost(server, "_bridge_g")
        room_id = await ghost.create_room()
        event_id = await ghost.say(room_id, "a slip of the tongue")
        path = f"/rooms/{quote(room_id)}/redact/{quote(event_id)}/t1"
        await ghost.call("PUT", path, {})
        await settled(await begin(server.services))
        (said,) = [event for event in bridge.events if event["event_id"] == event_id]
        assert said["content"] == {}
        assert "redacted_because" in said["unsigned"]


async def test_a_deactivation_is_told_as_what_it_is(house: House, bridge: Bridge):
    async with house.running() as server:
        delivery = await begin(server.services)
        alice, ghost = await server.register("alice"), await make_ghost(server, "_bridge_g")
        room_id = await alice.create_room()
        await ghost.join(room_id)
        await ghost.call("POST", "/account/deactivate", {})
        await settled(delivery)
        last = bridge.events[-1]
        assert last["content"] == {
            "membership": "leave",
            "org.matrix.msc3759.deactivated": True,
        }


async def test_a_sticky_event_is_told_once_with_its_time_left(house: House, bridge: Bridge):
    async with house.running() as server:
        delivery = await begin(server.services)
        ghost = await make_ghost(server, "_bridge_g")
        room_id = await ghost.create_room()
        path = f"/rooms/{quote(room_id)}/send/m.call/t1"
        sent = await ghost.call("PUT", path, {"x": "y"}, **STICKY)
        await settled(delivery)
        told = [event for event in bridge.events if event["event_id"] == sent["event_id"]]
        assert len(told) == 1
        assert told[0]["unsigned"]["msc4354_sticky_duration_ttl_ms"] == 60_000
        assert told[0]["msc4354_sticky"] == {"duration_ms": 60_000}


@pytest.mark.spec("MSC4140#syncing-failed-delayed-events")
async def test_a_service_is_told_what_became_of_its_delayed_events(house: House, bridge: Bridge):
    async with house.running() as server:
        delivery = await begin(server.services)
        alice, ghost = await server.register("alice"), await make_ghost(server, "_bridge_g")
        room_id = await ghost.create_room()
        path = f"/rooms/{quote(room_id)}/delayed_event/m.room.message/t1"
        body = {"delay_ms": 60_000, "content": {"body": "later"}}
        scheduled = (await ghost.call("PUT", path, body))["delay_id"]
        await alice.join(room_id)
        await alice.call("PUT", path, body)
        await ghost.call("POST", f"/_matrix/client/v1/delayed_events/{scheduled}/send")
        await settled(delivery)
        told = [
            outcome
            for one in bridge.transactions
            for outcome in one.body.get("org.matrix.msc4140.finalised_delayed_events", ())
        ]
        assert [outcome["delay_id"] for outcome in told] == [scheduled]
        assert told[0]["finalised"]["event_id"] == bridge.events[-1]["event_id"]
        assert bridge.texts == ["later"]


# --- ephemeral data ------------------------------------------------------------------------------


@pytest.mark.spec("application-service-api#pushing-ephemeral-data")
async def test_a_service_that_wants_it_is_told_who_types_and_reads(house: House, bridge: Bridge):
    bridge.register(receive_ephemeral=True)
    async with house.running() as server:
        alice, ghost = await server.register("alice"), await make_ghost(server, "_bridge_g")
        room_id, elsewhere = await alice.create_room(), await alice.create_room()
        await ghost.join(room_id)
        delivery = await begin(server.services)
        event_id = await alice.say(room_id, "hello")
        await settled(delivery)
        for room in (elsewhere, room_id):
            path = f"/rooms/{quote(room)}/typing/{quote(alice.user_id)}"
            await alice.call("PUT", path, {"typing": True, "timeout": 5_000})
        await settled(delivery)
        assert bridge.ephemeral("m.typing") == [
            {"type": "m.typing", "room_id": room_id, "content": {"user_ids": [alice.user_id]}}
        ]
        last = bridge.transactions[-1].body
        assert last["ephemeral"] == last["de.sorunome.msc2409.ephemeral"]
        assert last["events"] == []
        for user, kind in ((alice, "m.read.private"), (ghost, "m.read.private"), (alice, "m.read")):
            path = f"/rooms/{quote(room_id)}/receipt/{kind}/{quote(event_id)}"
            await user.call("POST", path, {})
            await settled(delivery)
        receipts = bridge.ephemeral("m.receipt")
        read_by = [
            (kind, user_id)
            for receipt in receipts
            for kind, users in receipt["content"][event_id].items()
            for user_id in users
        ]
        assert read_by == [("m.read.private", ghost.user_id), ("m.read", alice.user_id)]
        assert {receipt["room_id"] for receipt in receipts} == {room_id}


@pytest.mark.spec("application-service-api#pushing-ephemeral-data")
async def test_a_service_that_wants_it_is_told_who_is_there(house: House, bridge: Bridge):
    bridge.register(receive_ephemeral=True)
    async with house.running() as server:
        delivery = await begin(server.services)
        alice, bob = await server.register("alice"), await server.register("bob")
        ghost = await make_ghost(server, "_bridge_g")
        await ghost.join(await alice.create_room())
        await bob.create_room()
        for user in (alice, bob, ghost):
            path = f"/presence/{quote(user.user_id)}/status"
            await user.call("PUT", path, {"presence": "online", "status_msg": "hello"})
        await settled(delivery)
        told = {event["sender"]: event["content"] for event in bridge.ephemeral("m.presence")}
        assert told.keys() == {alice.user_id, ghost.user_id}
        assert told[alice.user_id]["presence"] == "online"
        assert told[alice.user_id]["status_msg"] == "hello"


async def test_a_service_that_does_not_want_it_is_told_events_only(house: House, bridge: Bridge):
    async with house.running() as server:
        delivery = await begin(server.services)
        ghost = await make_ghost(server, "_bridge_g")
        room_id = await ghost.create_room()
        path = f"/rooms/{quote(room_id)}/typing/{quote(ghost.user_id)}"
        await ghost.call("PUT", path, {"typing": True, "timeout": 5_000})
        await settled(delivery)
        assert [t.body.keys() for t in bridge.transactions] == [{"events"}] * len(bridge.asked)


@pytest.mark.spec("application-service-api#pushing-ephemeral-data")
async def test_a_service_that_was_down_is_not_told_who_typed_then(house: House, bridge: Bridge):
    bridge.register(receive_ephemeral=True)
    async with house.running() as server:
        ghost = await make_ghost(server, "_bridge_g")
        room_id = await ghost.create_room()
        path = f"/rooms/{quote(room_id)}/typing/{quote(ghost.user_id)}"
        await ghost.call("PUT", path, {"typing": True, "timeout": 5_000})
        house.clock.advance_ms(60_000)
        await settled(await begin(server.services))
        assert {len(t["content"]["user_ids"]) for t in bridge.ephemeral("m.typing")} == {0}


# --- messages to devices -------------------------------------------------------------------------


async def send_to_device(user: User, number: int, *users: User) -> None:
    messages = {one.user_id: {"*": {"n": number}} for one in users}
    path = f"/sendToDevice/m.test/{number}"
    await user.call("PUT", path, {"messages": messages})


async def test_messages_to_devices_of_a_services_users_are_told(house: House, bridge: Bridge):
    bridge.register(
        namespaces={
            "users": [
                {"regex": "@_bridge_.*", "exclusive": True},
                {"regex": "@bob", "exclusive": False},
            ]
        }
    )
    async with house.running() as server:
        delivery = await begin(server.services)
        alice, bob = await server.register("alice"), await server.register("bob")
        ghost = await make_ghost(server, "_bridge_g")
        await ghost.request("PUT", "/devices/PHONE", {})
        await send_to_device(alice, 1, alice, bob, ghost)
        await settled(delivery)
        await send_to_device(alice, 2, ghost)
        await settled(delivery)
        one, two = [transaction.body for transaction in bridge.transactions]
        assert one["to_device"] == one["de.sorunome.msc2409.to_device"]
        assert sorted(one["to_device"], key=str) == sorted(
            (
                {
                    "type": "m.test",
                    "sender": alice.user_id,
                    "content": {"n": 1},
                    "to_user_id": user_id,
                    "to_device_id": device_id,
                }
                for user_id, device_id in (
                    (bob.user_id, bob.device_id),
                    (ghost.user_id, "PHONE"),
                )
            ),
            key=str,
        )
        assert [(m["to_user_id"], m["content"]) for m in two["to_device"]] == [
            (ghost.user_id, {"n": 2})
        ]
        assert len((await bob.sync())["to_device"]["events"]) == 1, "they are bob's as well"
        left = await ghost.sync(device_id="PHONE")
        assert left.get("to_device", {"events": []})["events"] == [], "nobody else reads them"


# --- in order, at least once, the same -----------------------------------------------------------


async def test_a_transaction_that_is_not_taken_is_sent_the_same_again(house: House, bridge: Bridge):
    async with house.running() as server:
        delivery = await begin(server.services)
        ghost = await make_ghost(server, "_bridge_g")
        room_id = await ghost.create_room()
        await settled(delivery)
        bridge.asked.clear()
        bridge.answer = lambda _: (500, {})
        first = await ghost.say(room_id, "one")
        await settled(delivery)
        path = f"/rooms/{quote(room_id)}/redact/{quote(first)}/t1"
        await ghost.call("PUT", path, {})
        await ghost.say(room_id, "two")
        await settled(delivery)
        assert len(bridge.asked) == 1, "it is left alone for a while"
        for tried, pause_ms in ((2, BACK_OFF_MS), (3, 2 * BACK_OFF_MS), (4, 4 * BACK_OFF_MS)):
            house.clock.advance_ms(pause_ms * 7 // 10)
            await settled(delivery)
            assert len(bridge.asked) == tried - 1
            house.clock.advance_ms(pause_ms * 6 // 10)
            await until(lambda tried=tried: len(bridge.asked) == tried)
            await settled(delivery)
        house.clock.advance_ms(LEASE_MS)
        bridge.answer = lambda _: None
        await delivery.hold()
        await settled(delivery)
        assert len(set(bridge.txn_ids[:5])) == 1
        bodies = [one.body for one in bridge.asked[:5]]
        assert bodies[0]["events"][0]["content"]["body"] == "one"
        assert bodies[1:] == [bodies[1]] * 4
        assert bodies[1]["events"][0]["content"] == {}, "it was redacted since"
        assert [e["content"].get("body") for e in bridge.asked[5].body["events"]] == [None, "two"]
        assert int(bridge.txn_ids[5]) == int(bridge.txn_ids[0]) + 1
        (figures,) = server.services.appservices.families()
        assert figures.samples['{service="bridge",outcome="failed"}'] == 4


@pytest.mark.spec("MSC4293#proposal")
async def test_what_a_ban_redacts_is_told_no_more_when_a_transaction_is_sent_again(
    house: House, bridge: Bridge
):
    """Nor what quotes it; whoever sends it then. It does not stay in the database either."""
    async with house.running() as server:
        delivery = await begin(server.services)
        alice, mallory = await server.register("alice"), await server.register("mallory")
        ghost = await make_ghost(server, "_bridge_g")
        room_id = await alice.create_room(
            power_level_content_override={"state_default": 0, "events": {}}
        )
        for user in (ghost, mallory):
            await user.join(room_id)
        await settled(delivery)
        bridge.asked.clear()
        bridge.answer = lambda _: (500, {})
        await delivery.give_back()
        await mallory.put_state(room_id, "m.room.topic", {"topic": "pills"})
        await alice.put_state(room_id, "m.room.topic", {"topic": "tea"})
        await alice.invite(room_id, await make_ghost(server, "_bridge_h"))
        await mallory.say(room_id, "pills")
        await mallory.put_state(room_id, "m.room.name", {"name": "pills"})
        await alice.invite(room_id, await make_ghost(server, "_bridge_i"))
        await settled(await begin(server.services))
        before = bridge.asked[-1].body["events"]
        assert str(before).count("pills") == 5
        ban = {"user_id": mallory.user_id, "org.matrix.msc4293.redact_events": True}
        await alice.call("POST", f"/rooms/{quote(room_id)}/ban", ban)
    house.clock.advance_ms(2 * LEASE_MS)
    async with house.running() as server:
        delivery = await begin(server.services, "second")
        await settled(delivery)
        again = bridge.asked[-1].body["events"]
        assert len(set(bridge.txn_ids[-2:])) == 1
        assert [event["event_id"] for event in again] == [event["event_id"] for event in before]
        assert "pills" not in str(again)
        assert [
            event for event in again if event["sender"] == mallory.user_id and not event["content"]
        ]
        body = await server.services.db.fetchrow("SELECT txn_body FROM appservices")
        assert body is not None
        assert "pills" not in body[0]


async def test_a_pause_begins_with_the_failure_however_long_the_database_takes_over_it(
    house: House, bridge: Bridge, monkeypatch: pytest.MonkeyPatch
):
    async with house.running() as server:
        delivery = await begin(server.services)
        ghost = await make_ghost(server, "_bridge_g")
        room_id = await ghost.create_room()
        await settled(delivery)
        bridge.asked.clear()
        bridge.answer = lambda _: (500, {})
        noting, go_on, mark_failed = asyncio.Event(), asyncio.Event(), appservices.mark_failed

        async def slowly(*args: Any) -> None:
            noting.set()
            await go_on.wait()
            await mark_failed(*args)

        monkeypatch.setattr(appservices, "mark_failed", slowly)
        await ghost.say(room_id, "one")
        await noting.wait()
        house.clock.advance_ms(BACK_OFF_MS * 6 // 5)
        go_on.set()
        await until(lambda: len(bridge.asked) >= 2)
        first, second = bridge.asked
        assert first.body == second.body


async def test_a_restart_changes_nothing_of_what_is_owed(house: House, bridge: Bridge):
    bridge.answer = lambda _: (503, {})
    async with house.running() as server:
        delivery = await begin(server.services, "first")
        ghost = await make_ghost(server, "_bridge_g")
        room_id = await ghost.create_room()
        await until(lambda: bridge.asked)
        await settled(delivery)
        await ghost.say(room_id, "one")
        await delivery.give_back()
    house.clock.advance_ms(BACK_OFF_MS * 2)
    bridge.answer = lambda _: None
    async with house.running() as server:
        delivery = await begin(server.services, "second")
        await settled(delivery)
        ghost = BridgeUser(server, ghost.user_id)
        await ghost.say(room_id, "two")
        await settled(delivery)
    assert bridge.txn_ids[0] == bridge.txn_ids[1]
    assert bridge.asked[0].body == bridge.asked[1].body
    assert bridge.texts == ["one", "two"]
    assert [int(txn) for txn in bridge.txn_ids[1:]] == sorted(map(int, bridge.txn_ids[1:]))


async def test_a_crash_after_the_answer_repeats_the_same_transaction(
    house: House, bridge: Bridge, monkeypatch: pytest.MonkeyPatch
):
    async with house.running() as server:
        await begin(server.services, "first")
        ghost = await make_ghost(server, "_bridge_g")

        crashed = asyncio.Event()

        async def crash(*_args: object) -> None:
            crashed.set()
            raise ConnectionError("killed")

        with monkeypatch.context() as patch:
            patch.setattr(appservices, "end_transaction", crash)
            await ghost.create_room()
            await crashed.wait()
    async with house.running() as server:
        delivery = AppserviceDelivery(server.services, "second")
        await delivery.hold()
        assert not delivery._queues, "the lease of the dead still holds"
        house.clock.advance_ms(LEASE_MS)
        await delivery.hold()
        await settled(delivery)
    assert len(bridge.asked) == 2
    assert bridge.asked[0].path == bridge.asked[1].path
    assert bridge.asked[0].body == bridge.asked[1].body


async def test_a_service_that_was_down_catches_up(
    house: House, bridge: Bridge, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(interest, "EVENTS_MAX", 10)
    async with house.running() as server:
        ghost = await make_ghost(server, "_bridge_g")
        alice = await server.register("alice")
        room_id, left = await ghost.create_room(), await alice.create_room()
        await ghost.join(left)
        await alice.say(left, "while the ghost is there")
        await ghost.leave(left)
        await alice.say(left, "when the ghost has left")
        for number in range(25):
            await ghost.say(room_id, str(number))
    async with house.running() as server:  # What happened is to be read from the tables.
        await settled(await begin(server.services))
    assert bridge.texts == ["while the ghost is there", *map(str, range(25))]
    assert max(len(one.body["events"]) for one in bridge.transactions) == 10


async def test_a_new_service_begins_in_the_present(
    database_url: str, tmp_path: Path, house: House, bridge: Bridge
):
    async with running_homeserver(database_url, tmp_path) as server:
        alice = await server.register("alice")
        room_id = await alice.create_room()
        await alice.say(room_id, "long ago")
    bridge.register(namespaces={"rooms": [{"regex": "!", "exclusive": False}]})
    async with house.running() as server:
        delivery = await begin(server.services)
        alice = User(server, alice.user_id, alice.token)
        await alice.say(room_id, "now")
        await settled(delivery)
        assert bridge.texts == ["now"]


@pytest.mark.spec("application-service-api#pinging")
async def test_a_ping_ends_the_pause(house: House, bridge: Bridge):
    async with house.running() as server:
        delivery = await begin(server.services)
        bridge.answer = lambda asked: None if asked.path.endswith("/ping") else (500, {})
        ghost = await make_ghost(server, "_bridge_g")
        await ghost.create_room()
        await settled(delivery)
        bridge.answer = lambda _: None
        await sender(server).call("POST", "/_matrix/client/v1/appservice/bridge/ping", {})
        await delivery.hold()
        await until(lambda: len(bridge.transactions) == 2)
        assert len(set(bridge.txn_ids)) == 1, "what was refused comes again"


async def test_a_service_that_is_down_keeps_no_other_waiting(
    database_url: str, tmp_path: Path, bridge: Bridge
):
    (tmp_path / "other").mkdir()
    async with running_bridge(tmp_path / "other") as other:
        everywhere = {"rooms": [{"regex": "!", "exclusive": False}]}
        other.register(id="other", as_token="x", sender_localpart="o", namespaces=everywhere)
        bridge.answer = lambda _: (500, {})
        async with running_homeserver(
            database_url,
            tmp_path,
            clock=ManualClock(),
            appservice_files=f"{bridge.file}, {other.file}",
        ) as server:
            delivery = await begin(server.services)
            ghost = await make_ghost(server, "_bridge_g")
            room_id = await ghost.create_room()
            for text in ("one", "two"):
                await ghost.say(room_id, text)
            await settled(delivery)
            assert other.texts == ["one", "two"]
            assert len(bridge.transactions) == 1
            mine = User(server, ghost.user_id, "x")
            assert (await mine.request("GET", "/account/whoami")).json["user_id"] == "@o:hs1"


# --- several processes ---------------------------------------------------------------------------


async def test_one_of_several_processes_delivers_and_another_takes_over(
    house: House, bridge: Bridge
):
    async with house.running(workers=2) as server:
        one, two = server.workers
        first, second = await begin(one, "first"), await begin(two, "second")
        assert first._queues
        assert not second._queues
        ghost = await make_ghost(server, "_bridge_g")
        room_id = await ghost.create_room()
        for number in range(6):
            await ghost.say(room_id, str(number))
        await settled(first)
        assert bridge.texts == [str(n) for n in range(6)]
        for queue in first._queues.values():  # It hangs: its lease runs out.
            assert queue.task is not None
            queue.task.cancel()
        for number in range(6, 9):
            await ghost.say(room_id, str(number))
        house.clock.advance_ms(LEASE_MS)
        await second.hold()
        await settled(second)
        assert bridge.texts == [str(n) for n in range(9)]
        await first.hold()
        assert not first._queues
        assert len(set(bridge.txn_ids)) == len(bridge.txn_ids)


async def test_a_process_that_ends_lets_another_deliver_at_once(house: House, bridge: Bridge):
    async with house.running(workers=2) as server:
        first = await begin(server.workers[0], "first")
        await first.give_back()
        second = await begin(server.workers[1], "second")
        ghost = await make_ghost(server, "_bridge_g")
        await ghost.create_room()
        await settled(second)
        assert types(bridge)[0] == "m.room.create"


async def test_processes_deliver_by_themselves(database_url: str, tmp_path: Path, bridge: Bridge):
    async with running_homeserver(
        database_url, tmp_path, workers=2, appservice_files=str(bridge.file)
    ) as server:
        for services in server.workers:
            appservice_delivery.start(services)
        ghost = await make_ghost(server, "_bridge_g")
        room_id = await ghost.create_room()
        await ghost.say(room_id, "hello")
        await until(lambda: bridge.texts)
        assert bridge.texts == ["hello"]


@pytest.mark.parametrize("url", [None, ""])
async def test_nothing_runs_where_nobody_listens(
    database_url: str, tmp_path: Path, bridge: Bridge, url: str | None
):
    bridge.register(url=url)
    async with running_homeserver(
        database_url, tmp_path, appservice_files=str(bridge.file)
    ) as server:
        before = asyncio.all_tasks()
        appservice_delivery.start(server.services)
        assert asyncio.all_tasks() == before
