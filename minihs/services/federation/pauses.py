"""Pauses: servers that did not answer, and are left alone for a while.

The moments in here are of the clock that never steps; those in the database are of the wall clock,
and one that is further off than any pause lasts has outlived a clock that was put back.

Spec: server-server-api#transactions
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.storage import destinations

if TYPE_CHECKING:
    from minihs.base.clock import Clock
    from minihs.services.federation.destination import Destination
    from minihs.storage.database import Database

ALIVE_PAUSE_MS = 1_000  # Times the failures: how often requests from a server make us try it.
ALIVE_PAUSE_MS_MAX = 60_000
REFRESH_MS = 30_000


@dataclass(frozen=True, slots=True)
class _Pause:
    """A server is left alone until a moment, or until it asks for something after another."""

    until_ms: int
    alive_from_ms: int
    is_down: bool


class Pauses:
    """Who is left alone, as far as this process knows: of the others it hears now and then."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._paused: dict[str, _Pause] = {}
        self._refreshed_ms: int | None = None

    def is_backing_off(self, server_name: str) -> bool:
        """Return whether a server did not answer and is to be left alone for now."""
        pause = self._paused.get(server_name)
        return pause is not None and pause.is_down and pause.until_ms > self._clock.monotonic_ms()

    def begin(self, destination: Destination) -> None:
        """Leave a destination alone until it is to be tried again."""
        alive_ms = min(ALIVE_PAUSE_MS * (destination.failures - 1), ALIVE_PAUSE_MS_MAX)
        monotonic_ms = self._clock.monotonic_ms()
        until_ms = monotonic_ms + destination.retry_at_ms - self._clock.now_ms()
        self._paused[destination.name] = _Pause(
            until_ms, monotonic_ms + alive_ms, destination.is_down
        )

    def end(self, server_name: str) -> None:
        """Leave a server alone no longer."""
        self._paused.pop(server_name, None)

    def end_if_alive(self, server_name: str) -> bool:
        """Take notice of a request from a server; return whether it has ended a pause.

        A server that can reach us, but that we cannot reach, makes us try it again only now and
        then.
        """
        pause = self._paused.get(server_name)
        if pause is None or pause.alive_from_ms > self._clock.monotonic_ms():
            return False
        del self._paused[server_name]
        return True

    async def refresh(self, db: Database, pause_ms_max: int) -> None:
        """Learn whom other processes leave alone, if it is time to."""
        monotonic_ms = self._clock.monotonic_ms()
        if self._refreshed_ms is not None and monotonic_ms - self._refreshed_ms < REFRESH_MS:
            return
        self._refreshed_ms = monotonic_ms
        now_ms = self._clock.now_ms()
        for name, at_ms, is_down in await destinations.list_paused(
            db, now_ms, now_ms + pause_ms_max
        ):
            until_ms = monotonic_ms + at_ms - now_ms
            self._paused.setdefault(name, _Pause(until_ms, monotonic_ms, is_down))
        for name in [n for n, pause in self._paused.items() if pause.until_ms <= monotonic_ms]:
            del self._paused[name]
