"""Servers that a seed partitions, restarts and confuses agree in the end.

`make test-sim SEED=1 N=5000` plays more; what a failure prints plays it again.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.simulation import event_loop
from tests.simulation.__main__ import play_seeds
from tests.simulation.scenarios import SCENARIOS

if TYPE_CHECKING:
    from tests.helpers.postgres import TestServers
    from tests.simulation.run import Scenario

RANDOM_SEEDS = 300
SCENARIO_SEEDS = range(5, 9)
REPLAYED_SEEDS = (4, 9)
KEYS = "/_matrix/key/"
JOBS = 2
SECONDS_MAX = 3_000  # However busy the machine is.


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


@pytest.mark.database
def test_a_seed_is_a_run(postgres_servers: TestServers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Played again, in another world, a seed is the same to the letter.

    What people and machines do and when, which requests servers make of each other and what becomes
    of them, what the servers log, and the ids of all events. Not so the order in which keys are
    asked for (it is that of sets, which differs between processes), and everything if PostgreSQL
    takes longer over a statement than `PATIENCE_S`, and another of the same server goes ahead: here
    none waits for another, so there may be as much patience as a busy machine needs.
    """
    monkeypatch.setattr(event_loop, "PATIENCE_S", 60)
    plays: list[list[list[str]]] = []
    for _ in range(2):
        traces: list[list[str]] = []
        for seed in REPLAYED_SEEDS:
            assert not play_seeds(postgres_servers, [seed], traces=traces)
        plays.append([[line for line in trace if KEYS not in line] for trace in traces])
    assert plays[0] == plays[1]
    assert [len(trace) > 50 for trace in plays[0]] == [True] * len(REPLAYED_SEEDS)
