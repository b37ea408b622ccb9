"""Delivery to application services, in one process at a time (D4, D5)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from minihs.services.appservices.delivery import AppserviceDelivery
from minihs.workers import runner

if TYPE_CHECKING:
    from minihs.services.context import Services


def start(services: Services) -> None:
    """Begin to take part in deliveries, if there is anybody to deliver to."""
    if not services.appservices.listening:
        return
    what = "delivery to application services"
    delivery = AppserviceDelivery(services, services.randomness.token(runner.HOLDER_LENGTH))
    services.follower.subscribe(delivery.follow, delivery.reset)
    services.tasks.keep(
        f"lease of {what}",
        partial(runner.hold, services, what, delivery.hold, delivery.give_back),
    )
