"""A few seconds of what `make fuzz` does for as long as one likes."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.__main__ import inputs_of
from tests.fuzz.mutations import Mutator
from tests.fuzz.rounds import play_round, running_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.fuzz.rounds import World
    from tests.helpers.postgres import TestServers

pytestmark = pytest.mark.spec("server-server-api#checks-performed-on-receipt-of-a-pdu")

ROUNDS, INPUTS = 4, 30


@pytest.fixture
async def world(
    postgres_servers: TestServers, postgres_version: str, tmp_path: Path
) -> AsyncIterator[World]:
    """Where rounds are played."""
    async with running_world(
        lambda: postgres_servers.database(postgres_version), tmp_path
    ) as running:
        yield running


async def test_whatever_a_server_sends_nothing_fails_or_is_half_done(world: World) -> None:
    counts = [
        await play_round(world, number, Random(f"1 {number}"), INPUTS) for number in range(ROUNDS)
    ]
    assert sum(inputs_of(Counter(count)) for count in counts) == ROUNDS * INPUTS


@settings(max_examples=6, suppress_health_check=list(HealthCheck))
@given(chance=st.randoms(use_true_random=False))
async def test_nor_does_what_hypothesis_looks_for(world: World, chance: Random) -> None:
    """It makes a failure as small as it can."""
    counts = await play_round(world, world.next_round(), chance, 10)
    assert inputs_of(Counter(counts)) == 10


def test_a_seed_is_a_story() -> None:
    value = {"a": [1, {"b": "c"}], "d": None, "e": [True, 2.5, "f"]}
    stories = [Mutator(Random(7)) for _ in range(2)]
    one, other = ([m.json(value) for _ in range(200)] for m in stories)
    assert repr(one) == repr(other)
    assert sum(changed != value for changed in one) > 150
    data = b'{"a":[1,{"b":"c"}]}'
    assert len({Mutator(Random(n)).bytes(data) for n in range(100)}) > 90
