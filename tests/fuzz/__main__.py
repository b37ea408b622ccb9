"""`make fuzz SEED=1 N=100000`: play rounds, print what goes wrong, and how to see it again."""

# ruff: noqa: T201  # It is a command.

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

from tests.fuzz.rounds import FuzzFailure, play_round, running_world
from tests.helpers.postgres import EMBEDDED_VERSION, TestServers, cluster_directory

INPUTS_PER_ROUND = 100
ROUNDS_PER_WORLD = 50


async def play_rounds(
    servers: TestServers, seed: int, rounds: range, *, keep_going: bool = False
) -> tuple[Counter[str], int]:
    """Play rounds in worlds of their own; return the inputs by kind, and how many rounds failed."""
    played: Counter[str] = Counter()
    failed, left = 0, list(rounds)
    while left:
        some, left = left[:ROUNDS_PER_WORLD], left[ROUNDS_PER_WORLD:]
        with tempfile.TemporaryDirectory() as directory:
            async with running_world(
                lambda: servers.database(EMBEDDED_VERSION), Path(directory)
            ) as world:
                for done, number in enumerate(some, 1):
                    try:
                        chance = Random(f"{seed} {number}")
                        played += Counter(await play_round(world, number, chance, INPUTS_PER_ROUND))
                    except FuzzFailure as failure:
                        failed += 1
                        again = f"make fuzz SEED={seed} ROUND={number}"
                        print(f"{failure}\nAgain: {again}\n", file=sys.stderr, flush=True)
                        if not keep_going:
                            return played, failed
                        left = some[done:] + left  # In a new world.
                        break
        print(f"round {number}: {inputs_of(played)} inputs", flush=True)
    return played, failed


def inputs_of(played: Counter[str]) -> int:
    """Return how many requests and answers there were, whatever was changed in each."""
    return played.total() - played["changes"]


def main() -> int:
    """Play what is asked for; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seed", type=int, default=1, help="what is done")
    parser.add_argument("--count", type=int, default=1_000, help="how many inputs")
    parser.add_argument("--round", type=int, help="this round only")
    parser.add_argument("--keep-going", action="store_true", help="go on after a failure")
    given = parser.parse_args()
    began = time.monotonic()
    rounds = range(-(-given.count // INPUTS_PER_ROUND))
    if given.round is not None:
        rounds = range(given.round, given.round + 1)
    with cluster_directory(in_memory=True) as fast, cluster_directory() as durable:
        servers = TestServers(fast, durable)

        async def play() -> tuple[Counter[str], int]:
            try:
                return await play_rounds(servers, given.seed, rounds, keep_going=given.keep_going)
            finally:
                await servers.stop()

        played, failed = asyncio.run(play())
    seconds = time.monotonic() - began
    inputs = inputs_of(played)
    kinds = ", ".join(f"{count} {kind}" for kind, count in played.most_common())
    print(f"seed {given.seed}: {inputs} inputs ({kinds}), {failed} rounds failed,"
          f" {seconds:.1f} s, {inputs / seconds:.0f}/s")  # fmt: skip
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
