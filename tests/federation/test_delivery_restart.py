"""Delivery survives: nothing owed is lost when a process dies, nothing is done twice by two."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from minihs.services.federation import delivery as delivery_module
from minihs.services.federation.delivery import LEASE_MS, shares_of
from minihs.services.federation.destination import SHARDS
from minihs.storage import destinations
from minihs.workers import federation_delivery
from minihs.workers.runner import RENEWAL_MS
from tests.helpers.deliveries import Peer, begin, handed_out, settled
from tests.helpers.homeserver import Homeserver, running_homeserver
from tests.helpers.network import node_of
from tests.helpers.remote_members import put_member
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from minihs.base.clock import ManualClock
    from tests.helpers.homeserver import User
    from tests.helpers.network import Federation

pytestmark = pytest.mark.spec("server-server-api#transactions")


class House:
    """A homeserver that can be started again, and killed."""

    def __init__(self, dsn: str, directory: Path, federation: Federation) -> None:
        self.dsn = dsn
        self.directory = directory
        self.federation = federation

    @contextlib.asynccontextmanager
    async def running(self, workers: int = 1) -> AsyncIterator[Homeserver]:
        """Run the homeserver; its users keep their tokens."""
        async with running_homeserver(
            self.dsn,
            self.directory,
            clock=self.federation.network.clock,
            transport=self.federation.network.transport("hs1"),
            workers=workers,
        ) as server:
            self.federation.network.add("hs1", node_of(server.services))
            yield server


@pytest.fixture
def house(database_url: str, tmp_path: Path, federation: Federation) -> House:
    return House(database_url, tmp_path, federation)


@pytest.fixture
async def evil(federation: Federation) -> Peer:
    return Peer(federation.evil("evil"))


def at(server: Homeserver, user: User) -> User:
    """Return a user with the same token at a server that was started again."""
    again = type(user)(server, user.user_id, user.token)
    again.device_id = user.device_id
    return again


async def test_a_crash_between_answer_and_note_repeats_the_same_transaction(
    house: House, evil: Peer, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
):
    async with house.running() as server:
        await begin(server.services, "first")
        alice = await server.register("alice")
        room_id = await alice.create_room()
        await put_member(server.services, room_id, evil.user)
        await settled(server.services)
        await server.services.delivery.hold_shards(server.services, "first")

        async def crash(*_args: object) -> None:
            raise ConnectionError("killed")

        monkeypatch.setattr(destinations, "upsert_destinations", crash)
        await alice.say(room_id, "hello")
        await until(lambda: evil.taken)
        await settled(server.services)
        monkeypatch.undo()
    async with house.running() as server:
        await server.services.delivery.hold_shards(server.services, "second")
        assert not server.services.delivery.outbox.shards, "the lease of the dead still holds"
        clock.advance_ms(LEASE_MS)
        await begin(server.services, "second")
        await until(lambda: len(evil.taken) == 2)
        assert evil.taken[0].path == evil.taken[1].path
        assert evil.bodies == ["hello", "hello"]
        await settled(server.services)
        alice = at(server, alice)
        await alice.say(room_id, "once")
        await until(lambda: evil.bodies[2:] == ["once"])


async def test_what_was_waiting_is_delivered_after_a_restart(
    house: House, evil: Peer, clock: ManualClock
):
    async with house.running() as server:
        await begin(server.services, "first")
        alice = await server.register("alice")
        room_id = await alice.create_room()
        await put_member(server.services, room_id, evil.user)
        await alice.say(room_id, "0")
        await until(lambda: evil.bodies == ["0"])
        await settled(server.services)
        evil.open.clear()
        for n in range(1, 4):
            await alice.say(room_id, str(n))
        await handed_out(server.services)
        await server.services.delivery.hold_shards(server.services, "first")
        await server.services.delivery.give_back_shards(server.services, "first")
    evil.open.set()
    evil.taken.clear()
    async with house.running() as server:
        await alice_says(server, alice, room_id, "between")
        await begin(server.services, "second")
        await until(lambda: "between" in evil.bodies)
        assert evil.bodies == ["1", "2", "3", "between"]


async def alice_says(server: Homeserver, alice: User, room_id: str, body: str) -> None:
    """Send a message through a server that was started again."""
    await at(server, alice).say(room_id, body)


async def test_a_pause_and_its_transaction_outlive_a_restart(
    house: House, evil: Peer, clock: ManualClock, federation: Federation
):
    async with house.running() as server:
        await begin(server.services, "first")
        alice = await server.register("alice")
        room_id = await alice.create_room()
        await put_member(server.services, room_id, evil.user)
        evil.answer = lambda _: (_ for _ in ()).throw(AssertionError("it is cut off"))
        federation.network.isolate("evil")
        await alice.say(room_id, "first")
        await settled(server.services)
        await alice.say(room_id, "second")
        await settled(server.services)
        delivery = server.services.delivery
        repeated_id = delivery.outbox.destinations["evil"].repeat_id
        assert repeated_id is not None
        await delivery.give_back_shards(server.services, "first")
    federation.network.heal()
    evil.answer = lambda _: None
    async with house.running() as server:
        await begin(server.services, "second")
        await settled(server.services)
        assert server.services.delivery.is_backing_off("evil")
        assert evil.taken == []
        clock.advance_ms(3_000)
        await server.services.delivery.hold_shards(server.services, "second")
        await until(lambda: evil.bodies == ["first", "second"])
        assert evil.taken[0].path["txnId"] == repeated_id


async def test_when_too_much_has_happened_everybody_is_caught_up(
    house: House, evil: Peer, monkeypatch: pytest.MonkeyPatch, federation: Federation
):
    monkeypatch.setattr(delivery_module, "REPLAY_POSITIONS_MAX", 5)
    kicked = Peer(federation.evil("kicked"))
    async with house.running() as server:
        alice = await server.register("alice")
        room_id, quiet = await alice.create_room(), await alice.create_room()
        for peer in (evil, kicked):
            await put_member(server.services, room_id, peer.user)
        for n in range(10):
            await alice.say(room_id, str(n))
        await alice.call("POST", f"/rooms/{room_id}/kick", {"user_id": kicked.user})
        await alice.say(room_id, "10")
        await alice.say(quiet, "nobody")
        await begin(server.services)
        await until(lambda: evil.bodies == ["10"])
        await until(lambda: kicked.pdus)
        await settled(server.services)
        assert [pdu["content"]["membership"] for pdu in kicked.pdus] == ["leave"]
        await alice.say(room_id, "11")
        await until(lambda: evil.bodies == ["10", "11"])


async def test_processes_share_the_servers_and_take_over(
    house: House, federation: Federation, clock: ManualClock
):
    peers = [Peer(federation.evil(f"peer{n}")) for n in range(12)]
    async with house.running(workers=2) as server:
        first, second = server.workers
        await begin(first, "a")
        await begin(second, "b")
        await first.delivery.hold_shards(first, "a")
        await second.delivery.hold_shards(second, "b")
        assert set(first.delivery.outbox.shards) == shares_of("a", ["b"])
        assert set(second.delivery.outbox.shards) == shares_of("b", ["a"])
        assert len(first.delivery.outbox.shards) + len(second.delivery.outbox.shards) == SHARDS

        alice = await server.register("alice")
        room_id = await alice.create_room()
        for peer in peers:
            await put_member(first, room_id, peer.user)
        await alice.say(room_id, "1")
        await alice.say(room_id, "2")
        await until(lambda: all(peer.bodies == ["1", "2"] for peer in peers))
        for worker in (first, second):
            await settled(worker)
        by_worker = [set(worker.delivery.outbox.destinations) for worker in (first, second)]
        assert not by_worker[0] & by_worker[1]
        assert all(by_worker)

        await second.delivery.hold_shards(second, "b")
        await second.delivery.give_back_shards(second, "b")
        await alice.say(room_id, "3")
        await first.delivery.hold_shards(first, "a")
        await until(lambda: all(peer.bodies == ["1", "2", "3"] for peer in peers))
        assert len(first.delivery.outbox.shards) == SHARDS
        assert max(peer.at_once for peer in peers) == 1


@pytest.mark.parametrize(
    "passed_ms",
    [
        pytest.param(LEASE_MS, id="run out"),
        pytest.param(-3_600_000, id="outlived a clock that was put back"),
    ],
)
async def test_a_process_that_dies_is_replaced_when_its_leases_have(
    house: House, federation: Federation, clock: ManualClock, passed_ms: int
):
    peers = [Peer(federation.evil(f"peer{n}")) for n in range(12)]
    async with house.running(workers=2) as server:
        first, second = server.workers
        await begin(second, "b")
        assert len(second.delivery.outbox.shards) == SHARDS
        await begin(first, "a")
        assert not first.delivery.outbox.shards, "the other has them all, and knows of no other"
        alice = await server.register("alice")
        room_id = await alice.create_room()
        for peer in peers:
            await put_member(first, room_id, peer.user)
        outbox = second.delivery.outbox
        outbox.lose(set(outbox.shards))  # It hears and does nothing any more.
        await alice.say(room_id, "hello")
        clock.advance_ms(passed_ms)
        await first.delivery.hold_shards(first, "a")
        await until(lambda: all(peer.bodies == ["hello"] for peer in peers))


async def test_a_process_whose_lease_has_run_out_sends_nothing(
    house: House, evil: Peer, clock: ManualClock
):
    async with house.running() as server:
        await begin(server.services)
        alice = await server.register("alice")
        room_id = await alice.create_room()
        await put_member(server.services, room_id, evil.user)
        clock.advance_ms(LEASE_MS)
        await alice.say(room_id, "hello")
        await handed_out(server.services)
        assert evil.attempts == []
        await begin(server.services)
        await until(lambda: evil.bodies == ["hello"])


async def test_the_worker_begins_renews_and_gives_back(
    house: House, evil: Peer, clock: ManualClock
):
    async with house.running() as server:
        services = server.services
        federation_delivery.start(services)

        def renewed(until_ms: int) -> bool:
            if clock.now_ms() < until_ms - LEASE_MS // 2:  # Long enough, and it has not run out.
                clock.advance_ms(RENEWAL_MS // 4)
            return services.delivery.outbox.lease_until_ms > until_ms

        await until(lambda: len(services.delivery.outbox.shards) == SHARDS)
        alice = await server.register("alice")
        room_id = await alice.create_room()
        await put_member(services, room_id, evil.user)
        for n in range(3):
            await until(lambda held=services.delivery.outbox.lease_until_ms: renewed(held))
            await alice.say(room_id, str(n))
            await until(lambda count=n: len(evil.bodies) == count + 1)
        await settled(services)  # And the last answer has been heard.
    async with house.running() as server:
        await begin(server.services, "next")
        assert len(server.services.delivery.outbox.shards) == SHARDS, "given back at the end"
        await settled(server.services)
        assert evil.bodies == ["0", "1", "2"]


def test_every_shard_is_somebodys_and_moves_only_with_its_holder() -> None:
    holders = [f"process {n}" for n in range(5)]
    shares = {h: shares_of(h, holders) for h in holders}
    assert sorted(shard for share in shares.values() for shard in share) == list(range(SHARDS))
    fewer = {h: shares_of(h, holders[1:]) for h in holders[1:]}
    assert all(shares[h] <= fewer[h] for h in holders[1:])
    assert shares_of("alone", []) == set(range(SHARDS))
