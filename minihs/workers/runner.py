"""Runs loops beside requests, each in one process of the server at a time (D4).

Every process tries to take the lease of every loop; who has it does the work. A lease lasts several
intervals, and a process that died is replaced soon after. A round that takes longer than its lease
may be joined by another process, so that no work minds being done by two.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from minihs.base.errors import DatabaseAway
from minihs.storage import jobs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from minihs.services.context import Services

logger = logging.getLogger(__name__)

LEASE_INTERVALS = 4
HOLDER_LENGTH = 12  # letters and digits
RENEWAL_MS = 2_000  # A lease that is held lasts several of them.


@dataclass(frozen=True, slots=True)
class LeasedLoop:
    """Work that is done every `interval_ms` by one process."""

    name: str
    interval_ms: int
    work: Callable[[Services], Awaitable[None]]


def start(services: Services, loops: Iterable[LeasedLoop]) -> None:
    """Begin to take part in the loops; they end with the services' tasks."""
    holder = services.randomness.token(HOLDER_LENGTH)
    for loop in loops:
        services.tasks.keep(f"loop {loop.name}", partial(_run, services, loop, holder))


async def _run(services: Services, loop: LeasedLoop, holder: str) -> None:
    try:
        while True:
            await run_once(services, loop, holder)
            await services.clock.sleep_ms(loop.interval_ms)
    except asyncio.CancelledError:
        await give_back(services, loop, holder)
        raise


async def run_once(services: Services, loop: LeasedLoop, holder: str) -> bool:
    """Do a loop's work once if the lease can be had; return whether it was.

    Failures are logged: the next round tries again. (That the database is away it tells itself.)
    """
    now_ms = services.clock.now_ms()
    until_ms = now_ms + LEASE_INTERVALS * loop.interval_ms
    try:
        if not await jobs.take_lease(services.db, loop.name, holder, now_ms, until_ms):
            return False
        await loop.work(services)
    except DatabaseAway:
        logger.debug("a round of %s waits for the database", loop.name)
    except Exception:
        logger.exception("a round of %s failed", loop.name)
    return True


async def give_back(services: Services, loop: LeasedLoop, holder: str) -> None:
    """Let others have the lease at once."""
    try:
        await jobs.delete_lease(services.db, loop.name, holder)
    except Exception:  # The lease runs out by itself.
        logger.debug("could not give back the lease of %s", loop.name)


async def hold(
    services: Services,
    what: str,
    renew: Callable[[], Awaitable[None]],
    give_back: Callable[[], Awaitable[None]],
) -> None:
    """Take leases of what goes on without rounds, and renew them, for as long as we run."""
    try:
        while True:
            try:
                await renew()
            except DatabaseAway:
                logger.debug("the lease of %s waits for the database", what)
            except Exception:
                logger.exception("cannot renew the lease of %s; trying again", what)
            await services.clock.sleep_ms(RENEWAL_MS)
    except asyncio.CancelledError:
        try:
            await give_back()
        except Exception:  # It runs out by itself.
            logger.debug("could not give back the lease of %s", what)
        raise
