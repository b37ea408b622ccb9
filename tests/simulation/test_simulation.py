"""Servers that a seed partitions, restarts and confuses agree in the end.

`make test-sim SEED=1 N=5000` plays more; what a failure prints plays it again.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.simulation.__main__ import play_seeds
from tests.simulation.scenarios import SCENARIOS

if TYPE_CHECKING:
    from tests.helpers.postgres import TestServers
    from tests.simulation.run import Scenario

RANDOM_SEEDS = 10
SCENARIO_SEEDS = range(1, 2)
JOBS = 2
SECONDS_MAX = 1_200  # However busy the machine is.


@pytest.mark.database
def test_whatever_befalls_them_servers_agree_in_the_end() -> None:
    command = [sys.executable, "-m", "tests.simulation", "--seed", "1"]
    command += ["--count", str(RANDOM_SEEDS), "--jobs", str(JOBS), "--quiet"]
    played = subprocess.run(  # noqa: S603  # this project
        command,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert played.returncode == 0, played.stdout[-2_000:] + played.stderr[-30_000:]


@pytest.mark.database
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_servers_agree_after(scenario: Scenario, postgres_servers: TestServers) -> None:
    failures = play_seeds(postgres_servers, SCENARIO_SEEDS, scenario=scenario)
    assert not failures, str(failures[0])
