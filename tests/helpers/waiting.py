"""Waiting for what another task, process or server will bring about."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

POLL_S = 0.01
PATIENCE_S = 180  # Nothing takes that long; what is broken takes for ever.


async def until(
    condition: Callable[[], object] | Callable[[], Awaitable[object]],
    *,
    within_s: float = PATIENCE_S,
) -> None:
    """Return as soon as `condition` holds, and fail when it does not within the time.

    Nothing is assumed about how long anything takes: the limit keeps a broken test from hanging.
    """
    async with asyncio.timeout(within_s):
        while True:
            held = condition()
            if asyncio.iscoroutine(held):
                held = await held
            if held:
                return
            await asyncio.sleep(POLL_S)
