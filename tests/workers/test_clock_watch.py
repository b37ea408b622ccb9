"""A clock that is set is noticed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from minihs.base.clock import ManualClock
from minihs.workers import clock_watch
from tests.helpers.homeserver import running_homeserver
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from pathlib import Path


class SetClock(ManualClock):
    """A clock whose wall time somebody sets; what has passed goes on as before."""

    def __init__(self) -> None:
        super().__init__()
        self.set_ms = 0

    @override
    def now_ms(self) -> int:
        """Return the wall time."""
        return super().now_ms() + self.set_ms


@pytest.mark.parametrize(
    ("step_ms", "told"),
    [(61_000, "ahead by 61 s"), (-3_600_000, "back by 3600 s"), (59_000, None), (-59_000, None)],
)
async def test_a_step_of_more_than_a_minute_is_told(
    database_url: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    step_ms: int,
    told: str | None,
) -> None:
    clock = SetClock()
    async with running_homeserver(database_url, tmp_path, clock=clock, workers=1) as server:
        clock_watch.start(server.services)
        await until(lambda: bool(clock._timers))
        clock.set_ms = step_ms
        for _ in range(2):  # Once it is told, it is how it is.
            before = list(clock._timers)
            clock.advance_ms(clock_watch.INTERVAL_MS)
            await until(lambda before=before: clock._timers and clock._timers != before)  # type: ignore[misc]
        found = [r.getMessage() for r in caplog.records if "the clock was set" in r.getMessage()]
    assert len(found) == (told is not None)
    assert told is None or told in found[0]
