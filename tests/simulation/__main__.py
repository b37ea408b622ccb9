"""`make test-sim SEED=1 N=1000`: play runs, print what goes wrong, and how to see it again."""

# ruff: noqa: T201  # It is a command.

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from tests.helpers.postgres import EMBEDDED_VERSION, TEMPLATE, TestServers, cluster_directory
from tests.simulation.event_loop import SimulationLoop, statements_in_turn
from tests.simulation.run import RunFailure, play_seed, quiet
from tests.simulation.scenarios import SCENARIOS
from tests.simulation.world import LEASE_INTERVAL_MS, SERVERS, running_world

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.simulation.run import Scenario

RUNS_PER_WORLD = 100
HASH_SEED = "PYTHONHASHSEED"


def _say_nothing(_: str) -> None:
    pass


async def make_databases(servers: TestServers, version: str, prefix: str) -> list[str]:
    """Return the DSNs of new databases, one for each server of a world."""
    server = await servers.server(version)
    names = [f"{prefix}_{name}" for name in SERVERS]
    for name in names:
        await servers._administer(
            server, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} STRATEGY FILE_COPY"
        )
    return [server.cluster.dsn(name) for name in names]


async def drop_databases(servers: TestServers, version: str, prefix: str) -> None:
    """Drop those databases."""
    server = await servers.server(version)
    for name in SERVERS:
        await servers._administer(server, f"DROP DATABASE {prefix}_{name} WITH (FORCE)")


def play_seeds(
    servers: TestServers,
    seeds: Sequence[int],
    *,
    version: str = EMBEDDED_VERSION,
    scenario: Scenario | None = None,
    keep_going: bool = False,
    progress: Callable[[str], None] = _say_nothing,
    traces: list[list[str]] | None = None,
) -> list[RunFailure]:
    """Play runs in worlds of their own; return those that failed.

    `progress` is told how it goes; `traces` takes what happened in each run that did not fail.
    """  # fmt: skip
    failures: list[RunFailure] = []
    left = list(seeds)
    while left:
        prefix = f"sim_{next(servers.numbers)}"
        dsns = asyncio.run(make_databases(servers, version, prefix))
        with (
            quiet(),
            statements_in_turn(),
            mock.patch("minihs.workers.runner.RENEWAL_MS", LEASE_INTERVAL_MS),
            tempfile.TemporaryDirectory() as directory,
            asyncio.Runner(loop_factory=SimulationLoop) as runner,
        ):
            played, failure = runner.run(
                _play_in_world(
                    dsns, Path(directory), left[:RUNS_PER_WORLD], scenario, progress, traces
                )
            )
        asyncio.run(drop_databases(servers, version, prefix))
        left = left[played:]
        if failure is not None:
            failures.append(failure)
            again = f"make test-sim SEED={failure.seed}"
            again += f" SCENARIO={scenario.__name__}" if scenario is not None else ""
            progress(f"{failure}\nAgain: {again}")
            if not keep_going:
                break
    return failures


async def _play_in_world(
    dsns: Sequence[str],
    directory: Path,
    seeds: Sequence[int],
    scenario: Scenario | None,
    progress: Callable[[str], None],
    traces: list[list[str]] | None,
) -> tuple[int, RunFailure | None]:
    """Play runs until one fails; return how many were played, and what failed."""
    async with running_world(dsns, directory) as world:
        for number, seed in enumerate(seeds, 1):
            try:
                play = await play_seed(world, seed, scenario)
            except RunFailure as failure:
                return number, failure
            if traces is not None:
                traces.append(play.trace)
            if number % 25 == 0:
                progress(f"seed {seed} …")
    return len(seeds), None


def main() -> int:
    """Play the runs that are asked for, on several processes; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--count", type=int, default=1, help="how many seeds")
    parser.add_argument("--jobs", type=int, default=1, help="how many processes")
    parser.add_argument("--scenario", choices=[s.__name__ for s in SCENARIOS], help="not at random")
    parser.add_argument("--trace", action="store_true", help="print what happened in each run")
    parser.add_argument("--quiet", action="store_true", help="print nothing but failures")
    parser.add_argument("--keep-going", action="store_true", help="go on after a failure")
    given = parser.parse_args()
    if os.environ.get(HASH_SEED) != "0":  # The order of sets is part of a run.
        again = [sys.executable, "-m", "tests.simulation", *sys.argv[1:]]
        os.execve(again[0], again, os.environ | {HASH_SEED: "0"})  # noqa: S606  # ourselves
    if given.jobs > 1:
        return _share_out(given)
    began = time.monotonic()
    traces: list[list[str]] = []
    last = given.seed + given.count - 1

    def progress(text: str) -> None:
        failed = "\n" in text
        if failed or not given.quiet:
            print(text, file=sys.stderr if failed else sys.stdout, flush=True)

    with cluster_directory(in_memory=True) as fast, cluster_directory() as durable:
        servers = TestServers(fast, durable)
        try:
            failures = play_seeds(
                servers,
                range(given.seed, last + 1),
                scenario={s.__name__: s for s in SCENARIOS}.get(given.scenario),
                keep_going=given.keep_going,
                progress=progress,
                traces=traces,
            )
        finally:
            asyncio.run(servers.stop())
    if given.trace:
        for trace in traces:
            print("", *trace, sep="\n")
    seconds = time.monotonic() - began
    print(f"seeds {given.seed} to {last}: {len(failures)} failed, {seconds:.1f} s", flush=True)
    return 1 if failures else 0


def _share_out(given: argparse.Namespace) -> int:
    """Let several processes play a part of the seeds each."""
    each = -(-given.count // given.jobs)
    children: list[subprocess.Popen[bytes]] = []
    for first in range(given.seed, given.seed + given.count, each):
        count = min(each, given.seed + given.count - first)
        options = ["--seed", str(first), "--count", str(count)]
        options += ["--keep-going"] if given.keep_going else []
        options += ["--scenario", given.scenario] if given.scenario else []
        options += [f"--{name}" for name in ("trace", "quiet") if getattr(given, name)]
        command = [sys.executable, "-m", "tests.simulation", *options]
        children.append(subprocess.Popen(command))  # noqa: S603  # ourselves
    with contextlib.suppress(KeyboardInterrupt):
        return max(child.wait() for child in children)
    return 1


if __name__ == "__main__":
    sys.exit(main())
