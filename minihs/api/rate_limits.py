"""Rate limits of the client API: a leaky bucket (GCRA) for each user and class of request.

Spec: client-server-api#rate-limiting. State is in memory and per process: with N workers a client
may do N times as much, which is still a bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.base.caching import BoundedCache
from minihs.base.errors import LimitExceeded

if TYPE_CHECKING:
    from minihs.base.clock import Clock


@dataclass(frozen=True, slots=True)
class Limit:
    """`burst` requests at once, then one every `interval_ms`."""

    interval_ms: int
    burst: int


LIMITS = {
    "read": Limit(20, 200),
    "write": Limit(100, 50),
    "join": Limit(1_000, 30),
    "create": Limit(2_000, 20),
    "login": Limit(3_000, 10),
    "register": Limit(10_000, 10),
    "costly": Limit(500, 20),
}
BUCKETS_MAX = 100_000


class RateLimiter:
    """Remembers, for each key, when its bucket will be empty again."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._empty_at_ms: BoundedCache[tuple[str, str], int] = BoundedCache(BUCKETS_MAX)

    def check(self, kind: str, who: str) -> None:
        """Count one request.

        Raises:
            LimitExceeded: it is one too many; the request is not counted.
        """
        limit = LIMITS[kind]
        now_ms = self._clock.monotonic_ms()
        empty_at_ms = max(self._empty_at_ms.get((kind, who)) or 0, now_ms)
        wait_ms = empty_at_ms - now_ms - limit.interval_ms * (limit.burst - 1)
        if wait_ms > 0:
            raise LimitExceeded(wait_ms)
        self._empty_at_ms.put((kind, who), empty_at_ms + limit.interval_ms)
