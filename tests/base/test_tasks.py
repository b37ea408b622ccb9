"""Tasks that the server needs begin again, and say meanwhile that they do not run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from minihs.base.clock import ManualClock
from minihs.base.errors import DatabaseAway
from minihs.base.tasks import PAUSE_MS, PAUSE_MS_MAX, TaskOwner, give_way
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def tasks(clock: ManualClock) -> AsyncIterator[TaskOwner]:
    owner = TaskOwner(clock)
    yield owner
    await owner.close()


async def raise_error() -> None:
    raise ValueError("a mistake")


async def end() -> None:
    """Be done, which no task that is needed ever is."""


async def wait_for_the_cancelled() -> None:
    waited: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waited.cancel()
    await waited


@pytest.mark.parametrize("failing", [raise_error, end, wait_for_the_cancelled])
async def test_whatever_ends_a_task_it_begins_again_after_growing_pauses(
    tasks: TaskOwner,
    clock: ManualClock,
    caplog: pytest.LogCaptureFixture,
    failing: Callable[[], Coroutine[object, object, None]],
) -> None:
    begun: list[int] = []
    start_ms = clock.monotonic_ms()

    async def work() -> None:
        begun.append(clock.monotonic_ms() - start_ms)
        if len(begun) <= 3:
            await failing()
        else:
            await asyncio.Event().wait()

    tasks.keep("worker", work)
    assert tasks.down == []
    for failures, pause_ms in enumerate((PAUSE_MS, 2 * PAUSE_MS, 4 * PAUSE_MS), 1):
        await until(lambda: tasks.down == ["worker"])
        assert tasks.failures == {"worker": failures}
        clock.advance_ms(pause_ms)
        await until(lambda n=failures: len(begun) == n + 1)  # type: ignore[misc]
    assert begun == [0, PAUSE_MS, 3 * PAUSE_MS, 7 * PAUSE_MS]
    assert tasks.down == []
    assert caplog.text.count("task worker ended unexpectedly") == 3
    assert ("Traceback" in caplog.text) == (failing is not end)


async def test_pauses_begin_anew_with_who_was_well_for_a_while(
    tasks: TaskOwner, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    go_on = asyncio.Event()

    async def work() -> None:
        await go_on.wait()
        go_on.clear()
        raise ValueError("a mistake")

    tasks.keep("worker", work)
    for _ in range(3):
        clock.advance_ms(PAUSE_MS_MAX + 1)
        go_on.set()
        await until(lambda: bool(tasks.down))
        clock.advance_ms(PAUSE_MS)
        await until(lambda: not tasks.down)
    assert caplog.text.count("it begins again in 0.25 s") == 3


async def test_waiting_for_the_database_is_no_failure(
    tasks: TaskOwner, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    begun: list[bool] = []

    async def work() -> None:
        begun.append(True)
        raise DatabaseAway

    tasks.keep("worker", work)
    for n in range(1, 4):
        await until(lambda n=n: len(begun) == n and bool(clock._timers))  # type: ignore[misc]
        assert tasks.down == []
        clock.advance_ms(PAUSE_MS)
    assert tasks.failures == {"worker": 0}
    assert caplog.text == ""


async def test_who_holds_on_to_a_dead_connection_does_not_hold_up_the_end(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("minihs.base.tasks.CLOSE_S", (0.01, 0.01))
    owner, goes = TaskOwner(clock), asyncio.Event()

    async def stubborn() -> None:
        while not goes.is_set():
            try:
                await goes.wait()
            except asyncio.CancelledError:
                continue

    task = owner.spawn("stubborn", stubborn())
    await give_way()
    await owner.close()
    assert "do not come to their end: stubborn" in caplog.text
    goes.set()
    await task
