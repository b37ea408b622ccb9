"""Turns: work with the same key is done one after the other."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Hashable

K = TypeVar("K", bound="Hashable")


class Turns(Generic[K]):
    """A lock for each key that somebody holds or waits for."""

    def __init__(self) -> None:
        self._locks: dict[K, tuple[asyncio.Lock, int]] = {}

    def is_taken(self, key: K) -> bool:
        """Return whether somebody holds the turn, or waits for it."""
        return key in self._locks

    @contextlib.asynccontextmanager
    async def take(self, key: K) -> AsyncIterator[None]:
        """Wait for, and hold, the turn."""
        lock, users = self._locks.get(key, (None, 0))
        lock = lock or asyncio.Lock()
        self._locks[key] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            _, users = self._locks[key]
            if users == 1:
                del self._locks[key]
            else:
                self._locks[key] = lock, users - 1
