"""Leaky buckets (GCRA): so much at once, then one at a time at a steady pace.

They are in memory, so each process of a server has its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from minihs.base.caching import BoundedCache

if TYPE_CHECKING:
    from collections.abc import Hashable

    from minihs.base.clock import Clock

BUCKETS_MAX = 100_000

K = TypeVar("K", bound="Hashable")


@dataclass(frozen=True, slots=True)
class Limit:
    """`burst` at once, then one every `interval_ms`."""

    interval_ms: int
    burst: int


class LeakyBuckets(Generic[K]):
    """Remembers, for each key, when its bucket will be empty again."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._empty_at_ms: BoundedCache[K, int] = BoundedCache(BUCKETS_MAX)

    def add(self, key: K, limit: Limit, count: int = 1) -> int:
        """Put one into a bucket; return 0, or after how long it will have room: nothing was put.

        Where there is room for one, several may be put; they fill it for as much longer.
        """
        now_ms = self._clock.monotonic_ms()
        empty_at_ms = max(self._empty_at_ms.get(key) or 0, now_ms)
        wait_ms = empty_at_ms - now_ms - limit.interval_ms * (limit.burst - 1)
        if wait_ms <= 0:
            self._empty_at_ms.put(key, empty_at_ms + limit.interval_ms * count)
        return max(wait_ms, 0)
