"""Delivery to other servers, in every process; each has its share of the destinations (D4, D5)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from minihs.workers import runner

if TYPE_CHECKING:
    from minihs.services.context import Services


def start(services: Services) -> None:
    """Begin to deliver; it ends with the services' tasks."""
    holder = services.randomness.token(runner.HOLDER_LENGTH)
    services.tasks.keep("delivery", partial(services.delivery.run, services))
    services.tasks.keep(
        "delivery leases",
        partial(
            runner.hold,
            services,
            "destinations",
            partial(services.delivery.hold_shards, services, holder),
            partial(services.delivery.give_back_shards, services, holder),
        ),
    )
