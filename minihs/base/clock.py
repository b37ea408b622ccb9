"""The only reader of wall time: everything else is handed a `Clock`.

Times are integers, in milliseconds: `now_ms` counts from the Unix epoch, `monotonic_ms` from
an arbitrary moment and never steps. A test moves a `ManualClock` by hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


RIGHT_SINCE_MS = 1_735_689_600_000  # 2025: no clock that has been set shows less.


class Timer(Protocol):
    """A call that will be made unless it is cancelled."""

    def cancel(self) -> None:
        """Make sure that the call is not made."""
        ...


class Clock(Protocol):
    """What tells the time, and waits."""

    def now_ms(self) -> int:
        """Return the wall time in milliseconds since the Unix epoch."""
        ...

    def monotonic_ms(self) -> int:
        """Return milliseconds since some fixed moment; it never goes back."""
        ...

    def past_ms(self) -> int:
        """Return the wall time, or what it would be had nobody set it forward since we began.

        What is forgotten after a while is older than that while, whatever became of the clock. A
        machine without a clock of its own may begin in 1970: what it shows before `RIGHT_SINCE_MS`
        is no time, and we count as having begun when it is first seen to show a later one.
        """
        ...

    async def sleep_ms(self, duration_ms: int) -> None:
        """Return after `duration_ms`."""
        ...

    def call_later_ms(self, duration_ms: int, callback: Callable[[], None]) -> Timer:
        """Call `callback` after `duration_ms`."""
        ...


@contextlib.asynccontextmanager
async def time_limit(clock: Clock, duration_ms: int) -> AsyncIterator[None]:
    """Allow the block that much time by a clock.

    Raises:
        TimeoutError: it has taken longer, and was cancelled.
    """
    async with asyncio.timeout(None) as scope:
        timer = clock.call_later_ms(duration_ms, lambda: scope.reschedule(0))
        try:
            yield
        finally:
            timer.cancel()


class SystemClock:
    """The machine's clock."""

    def __init__(self) -> None:
        self._ahead_ms = self.now_ms() - self.monotonic_ms()

    def now_ms(self) -> int:
        """Return the wall time in milliseconds since the Unix epoch."""
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        """Return milliseconds since the machine's start or thereabouts."""
        return time.monotonic_ns() // 1_000_000

    def past_ms(self) -> int:
        """Return the wall time, or what it would be had nobody set it forward since we began."""
        now_ms, supposed_ms = self.now_ms(), self.monotonic_ms() + self._ahead_ms
        if supposed_ms < RIGHT_SINCE_MS <= now_ms:
            self._ahead_ms += now_ms - supposed_ms
            return now_ms
        return min(now_ms, supposed_ms)

    async def sleep_ms(self, duration_ms: int) -> None:
        """Return after `duration_ms`."""
        await asyncio.sleep(duration_ms / 1000)

    def call_later_ms(self, duration_ms: int, callback: Callable[[], None]) -> Timer:
        """Call `callback` after `duration_ms`."""
        return asyncio.get_running_loop().call_later(duration_ms / 1000, callback)


class _ManualTimer:
    """A call that a `ManualClock` will make."""

    __slots__ = ("callback", "cancelled")

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        """Make sure that the call is not made."""
        self.cancelled = True

    def fire(self) -> None:
        """Make the call."""
        if not self.cancelled:
            self.callback()


class ManualClock:
    """A clock that moves only when told to; `advance_ms` wakes whoever slept till then."""

    def __init__(self, start_ms: int = 1_750_000_000_000) -> None:
        self._now_ms = start_ms
        self._stepped_ms = 0
        self._timers: list[tuple[int, int, _ManualTimer]] = []
        self._order = itertools.count()

    def now_ms(self) -> int:
        """Return the time that the test has set."""
        return self._now_ms + self._stepped_ms

    def monotonic_ms(self) -> int:
        """Return the same time, but for what `step_ms` has done."""
        return self._now_ms

    def past_ms(self) -> int:
        """Return the wall time, or what it would be but for what `step_ms` has added."""
        return min(self.now_ms(), self._now_ms)

    def step_ms(self, duration_ms: int) -> None:
        """Set the wall clock forward, or back, while no time passes."""
        self._stepped_ms += duration_ms

    async def sleep_ms(self, duration_ms: int) -> None:
        """Return once somebody has advanced the clock far enough."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not waiter.done():
                waiter.set_result(None)

        self.call_later_ms(duration_ms, wake)
        await waiter

    def call_later_ms(self, duration_ms: int, callback: Callable[[], None]) -> Timer:
        """Call `callback` once the clock has been advanced far enough; soon if it has been."""
        timer = _ManualTimer(callback)
        if duration_ms <= 0:
            asyncio.get_running_loop().call_soon(timer.fire)
            return timer
        heapq.heappush(self._timers, (self._now_ms + duration_ms, next(self._order), timer))
        return timer

    def advance_ms(self, duration_ms: int) -> None:
        """Move time on and make the calls whose moment has come, in order."""
        self._now_ms += duration_ms
        while self._timers and self._timers[0][0] <= self._now_ms:
            heapq.heappop(self._timers)[2].fire()
