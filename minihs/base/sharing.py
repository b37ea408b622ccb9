"""One piece of work for everybody who wants its result at the same time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Hashable

K = TypeVar("K", bound="Hashable")
V = TypeVar("V")


CLOSE_S_MAX = 1


class SharedWork(Generic[K, V]):
    """Runs at most one piece of work for each key; whoever comes meanwhile waits for its result.

    A caller who is cancelled leaves the work to the others.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._running: dict[K, asyncio.Task[V]] = {}

    async def run(self, key: K, work: Callable[[], Coroutine[object, object, V]]) -> V:
        """Return the result of the work under way for `key`, or else of `work()`."""
        task = self._running.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(work(), name=f"{self._name} {key}")
            self._running[key] = task
            task.add_done_callback(lambda done: self._ended(key, done))
        return await asyncio.shield(task)

    async def wait_for(self, is_meant: Callable[[K], bool], timeout_s: float) -> None:
        """Wait for the work under way for some keys, whatever comes of it, up to `timeout_s`."""
        meant = [task for key, task in self._running.items() if is_meant(key)]
        if meant:
            await asyncio.wait(meant, timeout=timeout_s)

    def _ended(self, key: K, task: asyncio.Task[V]) -> None:
        del self._running[key]
        if not task.cancelled():
            task.exception()  # Seen, also when everybody who waited has gone.

    async def close(self) -> None:
        """Cancel what is under way; what hangs ends when the connections do."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_S_MAX)
