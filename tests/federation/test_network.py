"""The network of the tests does what it says, and the server bears what real networks do."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from minihs.base.limits import BODY_TIMEOUT_MS
from minihs.remote.transport import RemoteError
from tests.helpers.network import InMemoryNetwork
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from minihs.base.clock import ManualClock
    from minihs.remote.signed_requests import Answer
    from tests.helpers.network import EvilServer, Federation

VERSION = "/_matrix/federation/v1/version"


@pytest.fixture
async def pair(federation: Federation) -> tuple[EvilServer, EvilServer]:
    one, two = federation.evil("one"), federation.evil("two")
    for server in (one, two):
        server.on("GET", VERSION, {"server": {}})
    return one, two


def outcome(answer: Answer) -> str:
    return answer.kind if isinstance(answer, RemoteError) else "answered"


async def test_servers_meet(federation: Federation) -> None:
    hs1, hs2 = await federation.start("hs1"), await federation.start("hs2")
    for one, other in ((hs1, hs2), (hs2, hs1)):
        answer = await one.services.remote.requests.request(other.name, "GET", VERSION)
        assert isinstance(answer, dict)
    assert hs1.services.signing_key.public_key != hs2.services.signing_key.public_key
    assert [(d.origin, d.destination, d.outcome) for d in federation.network.log] == [
        ("hs1", "hs2", 200),
        ("hs2", "hs1", 200),
    ]


async def test_partitions_and_healing(
    federation: Federation, pair: tuple[EvilServer, EvilServer]
) -> None:
    one, two = pair
    network = federation.network
    for parts in ([["one"], ["two"]], [["two"]], None):
        if parts is None:
            network.isolate("two")
        else:
            network.partition(*parts)
        assert outcome(await one.request("two", "GET", VERSION)) == "unreachable"
        assert outcome(await two.request("one", "GET", VERSION)) == "unreachable"
        network.heal()
        assert outcome(await one.request("two", "GET", VERSION)) == "answered"
    network.remove("two")
    assert outcome(await one.request("two", "GET", VERSION)) == "unreachable"


async def test_faults_are_as_often_as_asked_and_the_same_for_a_seed(
    federation: Federation, pair: tuple[EvilServer, EvilServer]
) -> None:
    one, two = pair
    network = federation.network
    network.faults.lost, network.faults.unanswered, network.faults.doubled = 200, 200, 200
    outcomes = [outcome(await one.request("two", "GET", VERSION)) for _ in range(500)]
    assert 120 < outcomes.count("timed_out") < 240  # 36 % of 500
    assert 420 < len(two.received) < 540  # 80 % of 500, and 20 % of those twice
    again = InMemoryNetwork(network.clock, seed=0)
    again.faults = network.faults
    again.add("two", two._answer)
    one.requests._transport = again.transport("one")
    assert [outcome(await one.request("two", "GET", VERSION)) for _ in range(500)] == outcomes


async def test_delays_are_on_the_clock(
    federation: Federation, pair: tuple[EvilServer, EvilServer], clock: ManualClock
) -> None:
    one, two = pair
    federation.network.faults.delay_ms = (500, 500)
    asking = asyncio.ensure_future(one.request("two", "GET", VERSION))
    await until(lambda: clock._timers)
    clock.advance_ms(499)
    assert two.received == []
    clock.advance_ms(1)
    assert outcome(await asking) == "answered"


async def test_f16_a_body_that_drips_is_not_waited_for(
    federation: Federation, clock: ManualClock
) -> None:
    hs1 = await federation.start("hs1")
    reader, writer = await asyncio.open_connection("127.0.0.1", hs1.client.port)
    writer.write(
        b"POST /_matrix/client/v3/login HTTP/1.1\r\nHost: hs1\r\n"
        b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    )
    answer = asyncio.ensure_future(reader.readline())

    def answered() -> bool:
        clock.advance_ms(BODY_TIMEOUT_MS // 2)
        return answer.done()

    await until(answered)
    assert b" 408 " in await answer
    writer.close()
    await writer.wait_closed()
