"""Delivery to application services, in one process at a time (D4, D5)."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from minihs.services.appservices.delivery import AppserviceDelivery

if TYPE_CHECKING:
    from minihs.services.context import Services

logger = logging.getLogger(__name__)

INTERVAL_MS = 2_000  # A lease lasts several of them.
HOLDER_BYTES = 12


def start(services: Services) -> None:
    """Begin to take part in deliveries, if there is anybody to deliver to."""
    if not services.appservices.listening:
        return
    delivery = AppserviceDelivery(services, services.randomness.token(HOLDER_BYTES))
    services.follower.subscribe(delivery.follow, delivery.reset)
    services.tasks.spawn("lease of appservice delivery", _hold(services, delivery))


async def _hold(services: Services, delivery: AppserviceDelivery) -> None:
    try:
        while True:
            try:
                await delivery.hold()
            except Exception:
                logger.exception("cannot renew the lease of appservice delivery; trying again")
            await services.clock.sleep_ms(INTERVAL_MS)
    except asyncio.CancelledError:
        try:
            await delivery.give_back()
        except Exception:  # The lease runs out by itself.
            logger.debug("could not give back the lease of appservice delivery")
        raise
