"""Loops beside requests run in one process at a time, and another takes over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from minihs.base.clock import ManualClock
from minihs.storage import jobs
from minihs.workers.housekeeping import LOOPS
from minihs.workers.runner import LEASE_INTERVALS, LeasedLoop, run_once
from tests.helpers.homeserver import running_homeserver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from minihs.services.context import Services

INTERVAL_MS = 1_000


@pytest.fixture
async def services(database_url: str, tmp_path: Path) -> AsyncIterator[Services]:
    async with running_homeserver(database_url, tmp_path, clock=ManualClock()) as server:
        yield server.services


async def test_one_process_works_until_its_lease_runs_out(services: Services) -> None:
    done: list[str] = []

    async def work(_services: Services) -> None:
        done.append("once")

    clock = services.clock
    assert isinstance(clock, ManualClock)
    loop = LeasedLoop("test", INTERVAL_MS, work)
    assert await run_once(services, loop, "first")
    assert not await run_once(services, loop, "second")
    clock.advance_ms(INTERVAL_MS)
    assert await run_once(services, loop, "first"), "who has it renews it"
    clock.advance_ms(LEASE_INTERVALS * INTERVAL_MS)
    assert await run_once(services, loop, "second"), "the first has died"
    assert not await run_once(services, loop, "first")
    await jobs.delete_lease(services.db, "test", "first")
    assert not await run_once(services, loop, "first"), "it was not the first's to give back"
    await jobs.delete_lease(services.db, "test", "second")
    assert await run_once(services, loop, "first")
    assert len(done) == 4


async def test_a_clock_that_is_put_back_keeps_no_loop_from_running(services: Services) -> None:
    async def work(_services: Services) -> None:
        pass

    clock = services.clock
    assert isinstance(clock, ManualClock)
    loop = LeasedLoop("test", INTERVAL_MS, work)
    assert await run_once(services, loop, "before the restart")
    clock._now_ms -= 24 * 3_600_000  # Clocks do this; `advance_ms` does not.
    assert await run_once(services, loop, "after the restart")


async def test_a_failed_round_is_logged_and_tried_again(
    services: Services, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(_services: Services) -> None:
        raise ValueError("no luck")

    assert await run_once(services, LeasedLoop("unlucky", INTERVAL_MS, work), "first")
    assert "unlucky" in caplog.text
    assert await run_once(services, LeasedLoop("unlucky", INTERVAL_MS, work), "first")


async def test_every_loop_of_ours_runs(
    services: Services, caplog: pytest.LogCaptureFixture
) -> None:
    for loop in LOOPS:
        assert await run_once(services, loop, "only")
    assert "failed" not in caplog.text
