"""The machine's clock, and what becomes of times when somebody sets it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from minihs.base.clock import RIGHT_SINCE_MS, SystemClock

if TYPE_CHECKING:
    import pytest

YEAR_MS = 365 * 86_400_000


class Machine:
    """A machine whose clock a test sets."""

    def __init__(self, now_ms: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ms, self.running_ms = now_ms, 5_000
        monkeypatch.setattr(time, "time_ns", lambda: self.now_ms * 1_000_000)
        monkeypatch.setattr(time, "monotonic_ns", lambda: self.running_ms * 1_000_000)

    def pass_ms(self, duration_ms: int) -> None:
        self.now_ms += duration_ms
        self.running_ms += duration_ms


def test_a_clock_that_is_set_forward_makes_nothing_older(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(RIGHT_SINCE_MS, monkeypatch)
    clock = SystemClock()
    machine.now_ms += 10 * YEAR_MS
    machine.pass_ms(1_000)
    assert clock.past_ms() == RIGHT_SINCE_MS + 1_000
    machine.now_ms = RIGHT_SINCE_MS - YEAR_MS
    assert clock.past_ms() == RIGHT_SINCE_MS - YEAR_MS


def test_a_machine_that_begins_in_1970_is_believed_once_it_knows_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(0, monkeypatch)
    clock = SystemClock()
    machine.pass_ms(60_000)
    assert clock.past_ms() == 60_000
    machine.now_ms = RIGHT_SINCE_MS + YEAR_MS
    assert clock.past_ms() == RIGHT_SINCE_MS + YEAR_MS
    machine.now_ms += 10 * YEAR_MS
    machine.pass_ms(1_000)
    assert clock.past_ms() == RIGHT_SINCE_MS + YEAR_MS + 1_000, "now it has begun"
