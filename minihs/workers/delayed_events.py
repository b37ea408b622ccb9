"""Sending delayed events when they are due, in one process at a time (MSC4140).

Who holds the lease looks every fifth of a second for what is due, and sleeps shorter when something
is due sooner. So an event is never early, and late by milliseconds, or by that fifth of a second if
its delay was shorter. After a start whatever is overdue goes first.

In a room events are sent one after the other, in the order in which they were due; rooms do not
wait for one another. Nor does anybody wait for long for somebody else: what takes its time, such as
an invite to a server that does not answer, goes on by itself, and only its sender waits for it in
that room. No user keeps more than a few rooms busy.

When the wall clock is set forward, what was scheduled before still waits for its whole delay; after
a restart it goes by the clock. When it is put back, what was scheduled when it was further on waits
for its whole delay from then.

MSC4140#scheduling-a-delayed-event
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from functools import partial
from typing import TYPE_CHECKING

from minihs.services.rooms import delayed_sending
from minihs.storage.delayed_events import Busy
from minihs.workers.runner import HOLDER_LENGTH, LeasedLoop, give_back, run_once

if TYPE_CHECKING:
    from minihs.services.context import Services
    from minihs.storage.delayed_events import DelayedEvent

logger = logging.getLogger(__name__)

NAME = "delayed-events"
TURN_MS = 1_000  # After each the lease is renewed, which lasts several.
LOOK_MS = 200
ROOMS_AT_ONCE = 64
ROOMS_OF_A_USER_AT_ONCE = 8
PATIENCE_MS = 500  # Long enough for whatever needs no other server.
EVENTS_AT_ONCE = 200
STEP_MS = 1_000  # A clock that gains less in a turn is only being adjusted.
ONE_MOMENT_MS = 100
STEPS_MAX = 100


def start(services: Services) -> None:
    """Begin to take part in sending; it ends with the services' tasks."""
    services.tasks.keep(f"loop {NAME}", partial(_run, services))


async def _run(services: Services) -> None:
    sender = Sender(services)
    loop = LeasedLoop(NAME, TURN_MS, sender.take_turn)
    holder = services.randomness.token(HOLDER_LENGTH)
    try:
        while True:
            began_ms = services.clock.monotonic_ms()
            await run_once(services, loop, holder)
            # Somebody else has the lease, or it failed: try again when the turn would have ended.
            left_ms = began_ms + TURN_MS - services.clock.monotonic_ms()
            if left_ms > 0:
                await services.clock.sleep_ms(left_ms)
    except asyncio.CancelledError:
        await give_back(services, loop, holder)
        raise


class Sender:
    """Sends what is due, and knows in which rooms it is still at it."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._began_ms = self._wall_ms = services.clock.now_ms()
        self._monotonic_ms = services.clock.monotonic_ms()
        # When, by the wall clock, and by how much it was set forward.
        self._steps: deque[tuple[int, int]] = deque(maxlen=STEPS_MAX)
        # Rooms that are being served, with whose events; whose events in which take their time.
        self._rooms: dict[str, tuple[asyncio.Task[None], frozenset[str]]] = {}
        self._slow: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._again = asyncio.Event()
        self._was_put_back = True  # Before we began: who knows.

    async def take_turn(self, services: Services) -> None:
        """Send whatever becomes due within a turn."""
        clock = services.clock
        end_ms = clock.monotonic_ms() + TURN_MS
        while (left_ms := end_ms - clock.monotonic_ms()) > 0:
            self._again.clear()
            await self.begin()
            next_ms = await delayed_sending.fetch_next_due(services)
            wait_ms = min(left_ms, LOOK_MS)
            if next_ms is not None:
                wait_ms = min(wait_ms, max(next_ms - clock.now_ms(), 1))
            timer = clock.call_later_ms(wait_ms, self._again.set)
            try:
                await self._again.wait()
            finally:
                timer.cancel()

    async def begin(self) -> None:
        """Begin to send what is due now; it goes on beside everything else."""
        rooms_of = Counter(user_id for _, user_id in self._slow)
        for _, user_ids in self._rooms.values():
            rooms_of.update(user_ids)
        at_limit = [user for user, n in rooms_of.items() if n >= ROOMS_OF_A_USER_AT_ONCE]
        busy = Busy(self._rooms, at_limit, self._slow)
        self._notice_step()
        if self._was_put_back:
            await delayed_sending.begin_again_ahead(self._services, STEP_MS)
            self._was_put_back = False
        due = await delayed_sending.list_due(self._services, busy, EVENTS_AT_ONCE)
        self._notice_step()
        now_ms = self._services.clock.now_ms()
        of_room: dict[str, list[DelayedEvent]] = {}
        for event in due:
            if event.due_ms + self._skipped_ms(event) <= now_ms:
                of_room.setdefault(event.room_id, []).append(event)
        for room_id, in_room in of_room.items():
            if len(self._rooms) >= ROOMS_AT_ONCE:
                break
            events = [e for e in in_room if rooms_of[e.user_id] < ROOMS_OF_A_USER_AT_ONCE]
            if events:
                user_ids = frozenset(event.user_id for event in events)
                rooms_of.update(user_ids)
                task = self._services.tasks.spawn(
                    "send delayed events", self._send(room_id, events)
                )
                self._rooms[room_id] = task, user_ids

    def _notice_step(self) -> None:
        """Notice whether the wall clock was set since this was called last."""
        clock = self._services.clock
        monotonic_ms, wall_ms = clock.monotonic_ms(), clock.now_ms()
        if clock.monotonic_ms() - monotonic_ms > ONE_MOMENT_MS:
            return  # The process was held up between the two: they are not of one moment.
        expected_ms = self._wall_ms + monotonic_ms - self._monotonic_ms
        step_ms, at_ms = wall_ms - expected_ms, expected_ms
        if step_ms < -STEP_MS:  # Set back: of earlier steps only what is left of them counts.
            self._was_put_back = True
            step_ms += sum(earlier_ms for _, earlier_ms in self._steps)
            at_ms = wall_ms
            self._steps.clear()
        if step_ms > STEP_MS:
            logger.warning("the clock was set forward by %d ms", step_ms)
            self._steps.append((at_ms, step_ms))
        self._wall_ms, self._monotonic_ms = wall_ms, monotonic_ms

    def _skipped_ms(self, event: DelayedEvent) -> int:
        """Return how much time the clock has skipped since an event was scheduled."""
        return sum(step_ms for at_ms, step_ms in self._steps if event.since_ms <= at_ms)

    async def finish(self) -> None:
        """Return once nothing is under way any more."""
        while self._rooms or self._slow:
            await asyncio.wait([*(task for task, _ in self._rooms.values()), *self._slow.values()])

    async def _send(self, room_id: str, events: list[DelayedEvent]) -> None:
        done: bool | None = False
        try:
            for event in events:
                if (room_id, event.user_id) in self._slow:
                    continue
                done = await self._send_one(event)
                if done is False:  # Those after it shall not overtake it.
                    break
        finally:
            del self._rooms[room_id]
            if done is not False:
                self._again.set()

    async def _send_one(self, event: DelayedEvent) -> bool | None:
        """Return whether an event is done with; None: it takes its time, and goes on by itself."""
        ended = asyncio.Event()
        key = (event.room_id, event.user_id)
        is_done = has_ended = False

        async def attempt() -> None:
            nonlocal is_done, has_ended
            try:
                is_done = await delayed_sending.send_due(self._services, event, self._began_ms)
            finally:
                has_ended = True
                ended.set()
                if self._slow.pop(key, None) is not None:
                    self._again.set()

        task = self._services.tasks.spawn("send a delayed event", attempt())
        timer = self._services.clock.call_later_ms(PATIENCE_MS, ended.set)
        try:
            await ended.wait()
        finally:
            timer.cancel()
        if has_ended:
            return is_done
        self._slow[key] = task
        return None
