"""Notices when the machine's clock is set: what ends at a moment then ends early or late.

Sticky and delayed events live by the wall clock, as other servers' do. A step is survived, but
somebody should know why events ended together. What became sticky while the clock was ahead ends
after its time when it is put back, not when the clock comes there again; if no process saw that, no
later than anything that becomes sticky now.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from minihs.base.errors import DatabaseAway
from minihs.services.rooms import sticky_events

if TYPE_CHECKING:
    from minihs.services.context import Services

logger = logging.getLogger(__name__)

INTERVAL_MS = 10_000
STEP_MS_MAX = 60_000


def start(services: Services) -> None:
    """Begin to watch; it ends with the services' tasks."""
    services.tasks.keep("clock watch", partial(_watch, services))


async def _watch(services: Services) -> None:
    clock = services.clock
    await sticky_events.follow_clock_back(services, 0)
    ahead_ms = clock.now_ms() - clock.monotonic_ms()
    while True:
        await clock.sleep_ms(INTERVAL_MS)
        now_ahead_ms = clock.now_ms() - clock.monotonic_ms()
        step_ms = now_ahead_ms - ahead_ms
        if step_ms < -STEP_MS_MAX:
            try:
                await sticky_events.follow_clock_back(services, -step_ms)
            except DatabaseAway:
                continue  # The step is still there the next time.
        if abs(step_ms) > STEP_MS_MAX:
            logger.warning(
                "the clock was set %s by %d s: sticky and delayed events end and are sent %s",
                "ahead" if step_ms > 0 else "back",
                abs(step_ms) // 1_000,
                "early" if step_ms > 0 else "late",
            )
        ahead_ms = now_ahead_ms
