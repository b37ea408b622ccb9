"""Tasks with a name and an owner: nothing runs unwatched.

A `TaskOwner` holds the tasks that one part of the server started. One that has a job to finish is
spawned: when it dies of an exception that is logged with its name. One that the server needs for as
long as it runs is kept: when it ends it begins again, after a pause that grows with every failure,
and until then `down` names it for whoever asks how the server is. `close` cancels all and waits.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from minihs.base.errors import DatabaseAway

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from minihs.base.clock import Clock

logger = logging.getLogger(__name__)

PAUSE_MS = 250
PAUSE_MS_MAX = 30_000
CLOSE_S = (2, 1)


class TaskOwner:
    """Starts background tasks, reports their failures, and ends them together.

    `failures` counts, for each task that is kept, how often it ended unexpectedly.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._down: set[str] = set()
        self.failures: dict[str, int] = {}

    @property
    def down(self) -> list[str]:
        """The tasks that the server needs and that do not run at the moment, by name."""
        return sorted(self._down)

    def spawn(self, name: str, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Run `work` beside everything else; its failure is logged under `name`."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def keep(self, name: str, work: Callable[[], Coroutine[object, object, None]]) -> None:
        """Run `work()` for as long as the server runs: whenever it ends it begins again."""
        self.failures.setdefault(name, 0)
        self.spawn(name, self._keep(name, work))

    async def _keep(self, name: str, work: Callable[[], Coroutine[object, object, None]]) -> None:
        pause_ms = PAUSE_MS
        while True:
            began_ms = self._clock.monotonic_ms()
            try:
                await work()
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                failure: BaseException | None = error  # What it waited for was cancelled.
            except Exception as error:
                failure = error
            else:
                failure = None
            if self._clock.monotonic_ms() - began_ms > PAUSE_MS_MAX:
                pause_ms = PAUSE_MS  # It was well for a while.
            if isinstance(failure, DatabaseAway):
                await self._clock.sleep_ms(PAUSE_MS)  # No fault of its own; the database tells it.
                continue
            self.failures[name] += 1
            logger.error(
                "task %s ended unexpectedly; it begins again in %.2f s",
                name,
                pause_ms / 1000,
                exc_info=failure,
            )
            self._down.add(name)
            await self._clock.sleep_ms(pause_ms)
            self._down.discard(name)
            pause_ms = min(2 * pause_ms, PAUSE_MS_MAX)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (failure := task.exception()) is None:
            return
        if isinstance(failure, DatabaseAway):
            logger.debug("task %s failed: %s", task.get_name(), failure)
        else:
            logger.error("task %s failed", task.get_name(), exc_info=failure)

    async def close(self) -> None:
        """Cancel every task and wait for their ends.

        Who takes too long, since the database does not answer, is cancelled again, and left to end
        when the connections do.
        """
        for patience_s in CLOSE_S:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=patience_s)
        if late := sorted(task.get_name() for task in self._tasks):
            logger.warning("tasks that do not come to their end: %s", ", ".join(late))


async def give_way() -> None:
    """Let everything else that is ready run first: for work that would hold up the loop."""
    await asyncio.sleep(0)
