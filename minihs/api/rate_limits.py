"""Rate limits of the client API: a leaky bucket (GCRA) for each user and class of request.

Spec: client-server-api#rate-limiting. State is in memory and per process: with N workers a client
may do N times as much, which is still a bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.base.errors import LimitExceeded
from minihs.base.leaky_buckets import LeakyBuckets, Limit

if TYPE_CHECKING:
    from minihs.base.clock import Clock


LIMITS = {
    "read": Limit(20, 200),
    "write": Limit(100, 50),
    "join": Limit(1_000, 30),
    "create": Limit(2_000, 20),
    "login": Limit(3_000, 10),
    "register": Limit(10_000, 10),
    "costly": Limit(500, 20),
}


class RateLimiter:
    """Counts the requests of each kind and user."""

    def __init__(self, clock: Clock) -> None:
        self._buckets: LeakyBuckets[tuple[str, str]] = LeakyBuckets(clock)

    def check(self, kind: str, who: str) -> None:
        """Count one request.

        Raises:
            LimitExceeded: it is one too many; the request is not counted.
        """
        wait_ms = self._buckets.add((kind, who), LIMITS[kind])
        if wait_ms > 0:
            raise LimitExceeded(wait_ms)
