"""Where servers are: the steps of the specification in order, and what is remembered of them."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from minihs.base.clock import ManualClock
from minihs.base.randomness import Randomness
from minihs.remote.discovery import (
    DELEGATION_MS_DEFAULT,
    DELEGATION_MS_MAX,
    DELEGATION_MS_MIN,
    FAILURE_MS_MAX,
    FAILURE_MS_MIN,
    SRV_MS_MAX,
    SRV_MS_MIN,
    Discovery,
    Route,
)
from minihs.remote.dns import DnsFailure, SrvRecord, in_order
from minihs.remote.well_known import WellKnown
from tests.remote.names import FakeDns

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.spec("server-server-api#resolving-server-names")


class World:
    """What the internet says: well-known files and SRV records; what was asked of it."""

    def __init__(self) -> None:
        self.well_known: dict[str, WellKnown] = {}
        self.dns = FakeDns()
        self.asked: list[str] = []
        self.clock = ManualClock()
        self.discovery = Discovery(self._fetch, self.dns, self.clock, Randomness(1))

    def delegate(self, host: str, to: str, lifetime_ms: int | None = None) -> None:
        self.well_known[host] = WellKnown(to, lifetime_ms)

    async def find(self, server_name: str) -> tuple[Sequence[tuple[str, int]], str, str]:
        route = await self.discovery.find(server_name)
        assert route is not None
        return (route.endpoints, route.host_header, route.tls_name)

    async def _fetch(self, host: str) -> WellKnown | None:
        self.asked.append(host)
        return self.well_known.get(host)


@pytest.fixture
def world() -> World:
    return World()


def srv(target: str, port: int = 8448, priority: int = 0, weight: int = 0) -> SrvRecord:
    return SrvRecord(target, port, priority, weight, ttl_s=600)


@pytest.mark.parametrize(
    ("name", "host", "port"),
    [
        ("1.2.3.4", "1.2.3.4", 8448),
        ("1.2.3.4:80", "1.2.3.4", 80),
        ("[2a00::1]", "2a00::1", 8448),
        ("[2a00::1]:443", "2a00::1", 443),
    ],
)
async def test_step_1_an_address(world: World, name: str, host: str, port: int) -> None:
    assert await world.find(name) == (((host, port),), name, host)
    assert (world.asked, world.dns.asked) == ([], [])


async def test_step_2_a_port(world: World) -> None:
    world.delegate("hs.example", "other.example")
    assert await world.find("hs.example:80") == (
        (("hs.example", 80),),
        "hs.example:80",
        "hs.example",
    )
    assert (world.asked, world.dns.asked) == ([], [])


@pytest.mark.parametrize(
    ("delegated", "host", "port"),
    [
        ("1.2.3.4", "1.2.3.4", 8448),
        ("1.2.3.4:80", "1.2.3.4", 80),
        ("[2a00::1]:443", "2a00::1", 443),
        ("to.example:443", "to.example", 443),
    ],
)
async def test_steps_3_1_and_3_2_a_delegation_that_says_it_all(
    world: World, delegated: str, host: str, port: int
) -> None:
    world.delegate("hs.example", delegated)
    assert await world.find("hs.example") == (((host, port),), delegated, host)
    assert world.dns.asked == []


@pytest.mark.parametrize("service", ["_matrix-fed", "_matrix"])
async def test_steps_3_3_and_3_4_a_delegation_with_srv_records(world: World, service: str) -> None:
    world.delegate("hs.example", "to.example")
    world.dns.records[f"{service}._tcp.to.example"] = [srv("box.example", 99)]
    world.dns.records["_matrix-fed._tcp.hs.example"] = [srv("wrong.example", 1)]
    assert await world.find("hs.example") == ((("box.example", 99),), "to.example", "to.example")


async def test_step_3_5_a_delegation_to_a_plain_name(world: World) -> None:
    world.delegate("hs.example", "to.example")
    world.delegate("to.example", "further.example")  # One delegation is enough.
    assert await world.find("hs.example") == ((("to.example", 8448),), "to.example", "to.example")


async def test_steps_4_and_5_srv_records(world: World) -> None:
    world.dns.records["_matrix._tcp.hs.example"] = [srv("old.example", 1)]
    assert await world.find("hs.example") == ((("old.example", 1),), "hs.example", "hs.example")
    world.dns.records["_matrix-fed._tcp.new.example"] = [srv("box.example", 2)]
    world.dns.records["_matrix._tcp.new.example"] = [srv("old.example", 1)]
    assert await world.find("new.example") == ((("box.example", 2),), "new.example", "new.example")


async def test_step_6_the_name_itself(world: World) -> None:
    assert await world.find("hs.example") == ((("hs.example", 8448),), "hs.example", "hs.example")


async def test_srv_targets_are_tried_by_priority_and_weight() -> None:
    records = [srv("c", 1, 20), srv("a", 1, 10, 1), srv("b", 1, 10, 99)]
    firsts = [in_order(records, Randomness(seed))[0].target for seed in range(200)]
    assert set(firsts) == {"a", "b"}
    assert firsts.count("b") > 150
    assert all(in_order(records, Randomness(seed))[2].target == "c" for seed in range(20))


async def test_a_service_that_is_decidedly_absent(world: World) -> None:
    world.dns.records["_matrix-fed._tcp.hs.example"] = [srv("", 0)]
    assert await world.find("hs.example") == ((), "hs.example", "hs.example")


@pytest.mark.parametrize("name", ["hs.example:0", "hs.example:65536", "hs.example:99999"])
async def test_s11_ports_that_are_none(world: World, name: str) -> None:
    assert await world.discovery.find(name) is None
    world.delegate("hs.example", name)
    assert await world.discovery.find("hs.example") is None


# --- what is remembered -------------------------------------------------------------------------


async def fetches_within(world: World, duration_ms: int, steps: int = 200) -> list[int]:
    """Return when (in ms from now) `hs.example` is asked for its well-known file."""
    begin_ms = world.clock.now_ms()
    moments = []
    for _ in range(steps + 1):
        before = len(world.asked)
        await world.discovery.find("hs.example")
        if len(world.asked) > before:
            moments.append(world.clock.now_ms() - begin_ms)
        world.clock.advance_ms(duration_ms // steps)
    return moments


@pytest.mark.parametrize(
    ("asked_ms", "kept_ms"),
    [
        (None, DELEGATION_MS_DEFAULT),
        (0, DELEGATION_MS_MIN),
        (-5, DELEGATION_MS_MIN),
        (3_600_000, 3_600_000),
        (10**15, DELEGATION_MS_MAX),
    ],
)
async def test_f14_delegations_are_kept_as_asked_within_bounds(
    world: World, asked_ms: int | None, kept_ms: int
) -> None:
    world.delegate("hs.example", "1.2.3.4", asked_ms)
    moments = await fetches_within(world, kept_ms * 2, steps=4)
    assert moments == [0, kept_ms, 2 * kept_ms]


async def test_failures_are_asked_about_less_and_less(world: World) -> None:
    moments = await fetches_within(world, 4 * FAILURE_MS_MAX, steps=4 * 60 * 2)
    gaps = [later - earlier for earlier, later in pairwise(moments)]
    minute = FAILURE_MS_MIN
    assert gaps[:6] == [minute, 2 * minute, 4 * minute, 8 * minute, 16 * minute, 32 * minute]
    assert set(gaps[6:]) == {FAILURE_MS_MAX}


async def test_a_delegation_survives_a_hiccup_but_not_two_days(world: World) -> None:
    world.delegate("hs.example", "1.2.3.4", DELEGATION_MS_MIN)
    before = await world.find("hs.example")
    world.well_known.clear()
    world.clock.advance_ms(DELEGATION_MS_MIN)
    assert await world.find("hs.example") == before
    world.clock.advance_ms(DELEGATION_MS_MAX)
    assert await world.find("hs.example") == ((("hs.example", 8448),), "hs.example", "hs.example")


@pytest.mark.parametrize(
    ("ttl_s", "kept_ms"), [(0, SRV_MS_MIN), (600, 600_000), (10**6, SRV_MS_MAX)]
)
async def test_srv_records_are_kept_as_long_as_they_say_within_bounds(
    world: World, ttl_s: int, kept_ms: int
) -> None:
    world.delegate("hs.example", "to.example", DELEGATION_MS_MAX)
    world.dns.records["_matrix-fed._tcp.to.example"] = [SrvRecord("box", 1, 0, 0, ttl_s)]
    await world.find("hs.example")
    world.clock.advance_ms(kept_ms - 1)
    await world.find("hs.example")
    assert len(world.dns.asked) == 1
    world.clock.advance_ms(1)
    await world.find("hs.example")
    assert len(world.dns.asked) == 2


async def test_a_silent_name_server_is_asked_again_soon(world: World) -> None:
    world.delegate("hs.example", "to.example", DELEGATION_MS_MAX)
    world.dns.failure = DnsFailure("silence")
    assert (await world.find("hs.example"))[0] == (("to.example", 8448),)
    world.dns.failure = None
    world.dns.records["_matrix-fed._tcp.to.example"] = [srv("box", 1)]
    world.clock.advance_ms(SRV_MS_MIN)
    assert (await world.find("hs.example"))[0] == (("box", 1),)


async def test_a_route_that_led_nowhere_is_looked_up_again(world: World) -> None:
    world.dns.records["_matrix-fed._tcp.hs.example"] = [srv("down", 1)]
    await world.find("hs.example")
    world.dns.records["_matrix-fed._tcp.hs.example"] = [srv("up", 1)]
    world.discovery.forget_route("hs.example")
    assert (await world.find("hs.example"))[0] == (("up", 1),)
    assert world.asked == ["hs.example"]


async def test_all_who_look_for_a_server_share_one_search(world: World) -> None:
    routes = await asyncio.gather(*(world.discovery.find("hs.example") for _ in range(50)))
    assert set(routes) == {Route((("hs.example", 8448),), "hs.example", "hs.example")}
    assert world.asked == ["hs.example"]
