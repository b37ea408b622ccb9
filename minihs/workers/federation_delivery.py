"""Delivery to other servers, in every process; each has its share of the destinations (D4, D5)."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minihs.services.context import Services

logger = logging.getLogger(__name__)

INTERVAL_MS = 2_000  # A lease lasts several of them.
HOLDER_BYTES = 12


def start(services: Services) -> None:
    """Begin to deliver; it ends with the services' tasks."""
    services.tasks.spawn("delivery", services.delivery.run(services))
    services.tasks.spawn("delivery leases", _hold(services))


async def _hold(services: Services) -> None:
    holder = services.randomness.token(HOLDER_BYTES)
    try:
        while True:
            try:
                await services.delivery.hold_shards(services, holder)
            except Exception:
                logger.exception("cannot renew the leases of destinations; trying again")
            await services.clock.sleep_ms(INTERVAL_MS)
    except asyncio.CancelledError:
        try:
            await services.delivery.give_back_shards(services, holder)
        except Exception:  # The leases run out by themselves.
            logger.debug("could not give back the destinations")
        raise
