"""How many sticky events there may be: of our own users, and of other servers.

They reach every client whatever its timeline's limit, so a flood of them would reach everybody.

* A **user of ours** may have so many at once in a room; one more is refused until the first ends.
* Of **another server** so many of a room are delivered at once, and then a few in a second; the
  rest is stored and waits its turn (the proposal's option B). What ends soonest goes first, so that
  as much as possible is delivered in time. A waiting event stands in the timeline as any other;
  it is the sticky section that it waits for.
* When too much of a server's waits, its transactions with more are refused as a whole, and it
  tries again later (option A). So nothing that we have answered for is ever dropped.

MSC4354#rate-limits
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from minihs.base.caching import BoundedCache
from minihs.base.errors import LimitExceeded
from minihs.base.leaky_buckets import LeakyBuckets, Limit
from minihs.base.turns import Turns
from minihs.protocol.identifiers import server_name_of
from minihs.storage import sticky_events
from minihs.storage.stream_rows import StickyEvent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from minihs.base.clock import Clock
    from minihs.protocol.identifiers import ServerName
    from minihs.services.context import Services
    from minihs.services.rooms.heads import RoomHead
    from minihs.storage.stream_reads import Positioned

logger = logging.getLogger(__name__)

OF_SERVER_AND_ROOM = Limit(interval_ms=1_000, burst=200)
RELEASED_AT_ONCE = 10  # Of each server and room, each time that those are looked for who wait.
WAITING_MAX = 5_000  # Of one server; what it sends then, it must keep itself.
REFUSED_MS = 60_000
COUNTS_MAX = 10_000


class StickyLimits:
    """What this process knows of who sends how much.

    `_counts` has no fewer than there are as of the follower's head; so most events of our users
    need no look at the table.
    """

    def __init__(self, clock: Clock) -> None:
        self._buckets: LeakyBuckets[tuple[str, str]] = LeakyBuckets(clock)
        self._counts: BoundedCache[tuple[str, str], int] = BoundedCache(COUNTS_MAX)
        self._crowded: BoundedCache[str, bool] = BoundedCache(COUNTS_MAX)
        self._turns: Turns[tuple[str, str]] = Turns()

    def follow(self, items: Sequence[Positioned]) -> None:
        """Count what becomes sticky, in whatever process."""
        for _, item in items:
            if isinstance(item, StickyEvent):
                key = item.room_id, item.sender
                known = self._counts.get(key)
                if known is not None:
                    self._counts.put(key, known + 1)

    def reset(self) -> None:
        """Forget the counts: part of the stream was skipped."""
        self._counts = BoundedCache(COUNTS_MAX)

    @contextlib.asynccontextmanager
    async def own_turn(
        self, room_id: str, sender: str, sticky_ms: int | None
    ) -> AsyncIterator[None]:
        """Let a user of ours send but one sticky event into a room at a time, so each is counted.

        `check_own` counts what is durable. Other events, without a duration, wait for nothing.
        """
        if not sticky_ms:
            yield
            return
        async with self._turns.take((room_id, sender)):
            yield

    async def check_own(self, services: Services, head: RoomHead, sender: str) -> None:
        """Check that a user of ours may have one more sticky event in a room, built upon a head.

        If another process commits one meanwhile the head is stale, and this is asked again.

        Raises:
            LimitExceeded: they have as many as they may; it says when the first of them ends.
        """
        count_max = services.config.sticky_events_per_user_max
        if not count_max:
            return
        room_id = head.room_id
        known = self._counts.get((room_id, sender))
        is_followed = head.cursor.position <= services.follower.head
        if known is not None and known < count_max // 2 and is_followed:
            return
        now_ms = services.clock.now_ms()
        count, first_end_ms = await sticky_events.count_live(services.db, room_id, sender, now_ms)
        self._counts.put((room_id, sender), count)
        if count >= count_max:
            raise LimitExceeded(
                max(first_end_ms - now_ms, 1), "You have too many sticky events in the room."
            )

    def waits_for(self, services: Services, room_id: str, sender: str) -> ServerName | None:
        """Return the server of a sticky event's sender if it must wait its turn, else None."""
        server_name = server_name_of(sender)
        if server_name == services.server_name or not services.config.rate_limits_on:
            return None
        if not self._buckets.add((server_name, room_id), OF_SERVER_AND_ROOM):
            return None
        if self._crowded.get(server_name) is None:
            logger.info("%s sends many sticky events to %s; some wait", server_name, room_id)
            self._crowded.put(server_name, True)  # noqa: FBT003  # a value
        return server_name

    async def check_room_for_more(self, services: Services, server_name: str) -> None:
        """Check that a server's sticky events can be stored.

        Raises:
            LimitExceeded: too many of them wait already.
        """
        if self._crowded.get(server_name) is None:
            return
        waiting = await sticky_events.count_waiting(
            services.db, server_name, services.clock.now_ms(), WAITING_MAX
        )
        if waiting >= WAITING_MAX:
            raise LimitExceeded(REFUSED_MS, "Too many of your sticky events wait here.")


async def release_waiting(services: Services) -> None:
    """Let some of those that wait be delivered; once a second."""
    waiting = await sticky_events.list_waiting(
        services.db, services.clock.now_ms(), RELEASED_AT_ONCE
    )
    if waiting:
        await services.committer.commit_rows(waiting)
