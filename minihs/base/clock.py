"""The only reader of wall time: everything else is handed a `Clock`.

Times are integers, in milliseconds: `now_ms` counts from the Unix epoch, `monotonic_ms` from
an arbitrary moment and never steps. A test moves a `ManualClock` by hand.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from typing import Protocol


class Clock(Protocol):
    """What tells the time, and waits."""

    def now_ms(self) -> int:
        """Return the wall time in milliseconds since the Unix epoch."""
        ...

    def monotonic_ms(self) -> int:
        """Return milliseconds since some fixed moment; it never goes back."""
        ...

    async def sleep_ms(self, duration_ms: int) -> None:
        """Return after `duration_ms`."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        """Return the wall time in milliseconds since the Unix epoch."""
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        """Return milliseconds since the machine's start or thereabouts."""
        return time.monotonic_ns() // 1_000_000

    async def sleep_ms(self, duration_ms: int) -> None:
        """Return after `duration_ms`."""
        await asyncio.sleep(duration_ms / 1000)


class ManualClock:
    """A clock that moves only when told to; `advance_ms` wakes whoever slept till then."""

    def __init__(self, start_ms: int = 1_750_000_000_000) -> None:
        self._now_ms = start_ms
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def now_ms(self) -> int:
        """Return the time that the test has set."""
        return self._now_ms

    def monotonic_ms(self) -> int:
        """Return the same time: a test that steps the wall clock uses `step_ms`."""
        return self._now_ms

    async def sleep_ms(self, duration_ms: int) -> None:
        """Return once somebody has advanced the clock far enough."""
        if duration_ms <= 0:
            await asyncio.sleep(0)
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (self._now_ms + duration_ms, next(self._order), waiter)
        heapq.heappush(self._sleepers, entry)
        await waiter

    def advance_ms(self, duration_ms: int) -> None:
        """Move time on and wake those whose moment has come, in order."""
        self._now_ms += duration_ms
        while self._sleepers and self._sleepers[0][0] <= self._now_ms:
            _, _, waiter = heapq.heappop(self._sleepers)
            if not waiter.done():
                waiter.set_result(None)
