"""Tasks with a name and an owner: nothing runs unwatched.

A `TaskOwner` holds the tasks that one part of the server started. A task that dies of an exception
is logged with its name; `close` cancels all of them and waits.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Coroutine

logger = logging.getLogger(__name__)


class TaskOwner:
    """Starts background tasks, reports their failures, and ends them together."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, name: str, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Run `work` beside everything else; its failure is logged under `name`."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            logger.error("task %s failed", task.get_name(), exc_info=failure)

    async def close(self) -> None:
        """Cancel every task and wait for their ends."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def give_way() -> None:
    """Let everything else that is ready run first: for work that would hold up the loop."""
    await asyncio.sleep(0)
