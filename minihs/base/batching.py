"""Many single look-ups become one: group commit's twin for reads.

A hundred requests that arrive together each need one row. `Batcher.load` hands each its own answer
from one statement: keys gather while the previous batch is under way. An answer is never older than
its question, as a batch takes only keys that were asked for before it began.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence

K = TypeVar("K", bound="Hashable")
V = TypeVar("V")

BATCH_MAX = 500
GATHER_S = 0.001


class Batcher(Generic[K, V]):
    """Loads values by key, many keys at a time. A key without a value gives None."""

    def __init__(self, fetch: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]]) -> None:
        self._fetch = fetch
        self._waiting: dict[K, asyncio.Future[V | None]] = {}
        self._running: asyncio.Task[None] | None = None

    async def load(self, key: K) -> V | None:
        """Return the value of `key`, read after this call began; None when there is none."""
        waiter = self._waiting.get(key)
        if waiter is None:
            loop = asyncio.get_running_loop()
            waiter = self._waiting[key] = loop.create_future()
            if self._running is None:
                self._running = loop.create_task(self._run())  # owned: see below
        return await asyncio.shield(waiter)

    async def load_many(self, keys: Iterable[K]) -> dict[K, V]:
        """Return the values of those keys that have one."""
        wanted = list(keys)
        found = await asyncio.gather(*map(self.load, wanted))
        return {key: value for key, value in zip(wanted, found, strict=True) if value is not None}

    async def _run(self) -> None:
        """Serve batches until nobody waits. Failures go to those who asked."""
        try:
            while self._waiting:
                if len(self._waiting) > 1:
                    # Where several come at once more are on their way: a moment's wait saves a
                    # statement for each. Somebody who comes alone is served at once.
                    await asyncio.sleep(GATHER_S)  # noqa: TID251  # not a matter of any clock
                waiting, self._waiting = self._waiting, {}
                keys = list(waiting)
                for start in range(0, len(keys), BATCH_MAX):
                    await self._serve(keys[start : start + BATCH_MAX], waiting)
        finally:
            self._running = None

    async def _serve(self, keys: list[K], waiting: Mapping[K, asyncio.Future[V | None]]) -> None:
        try:
            found = await self._fetch(keys)
        except Exception as error:  # handed to every caller
            for key in keys:
                if not waiting[key].done():
                    waiting[key].set_exception(error)
                    waiting[key].exception()  # Seen, also when who asked has gone.
            return
        for key in keys:
            if not waiting[key].done():
                waiting[key].set_result(found.get(key))
