"""Caches of immutable things, each with a budget (decision D4)."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

K = TypeVar("K")
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """A least-recently-used cache whose entries' weights never exceed `budget` in sum."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self.weight = 0

    def get(self, key: K) -> V | None:
        """Return the value and mark it as used, or None."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: K, value: V, weight: int = 1) -> None:
        """Keep the value; the entries used longest ago make room for it."""
        old = self._entries.pop(key, None)
        if old is not None:
            self.weight -= old[1]
        self._entries[key] = (value, weight)
        self.weight += weight
        while self.weight > self._budget:
            _, (_, lost) = self._entries.popitem(last=False)
            self.weight -= lost

    def discard(self, key: K) -> None:
        """Drop an entry if it is there."""
        old = self._entries.pop(key, None)
        if old is not None:
            self.weight -= old[1]

    def values(self) -> Iterator[V]:
        """Return every value; none of them counts as used."""
        return (value for value, _ in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)
