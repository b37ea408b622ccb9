"""Other servers as they see our deliveries, and time as deliveries see it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from minihs.workers.runner import RENEWAL_MS
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from minihs.base.clock import ManualClock
    from minihs.services.context import Services
    from tests.helpers.network import EvilServer, Received

SEND = "/_matrix/federation/v1/send/{txnId}"
HOLDER = "the only one"


class Peer:
    """Another server, which takes every transaction unless it is told otherwise.

    `answer` is asked first: what it returns is the answer, None is a 200. `under_way` is how many
    transactions have come that it has not answered yet, `at_once` the most there were at any time.
    """

    def __init__(self, server: EvilServer) -> None:
        self.server = server
        self.name = server.name
        self.user = f"@mallory:{server.name}"
        self.answer: Callable[[Received], object] = lambda _: None
        self.taken: list[Received] = []
        self.at_once = self.under_way = 0
        self.open = asyncio.Event()
        self.open.set()
        server.on("PUT", SEND, self._take)

    async def _take(self, received: Received) -> object:
        self.under_way += 1
        self.at_once = max(self.at_once, self.under_way)
        try:
            await self.open.wait()
            answer = self.answer(received)
        finally:
            self.under_way -= 1
        if answer is None:
            self.taken.append(received)
            return {"pdus": {}}
        return answer

    @property
    def attempts(self) -> list[Received]:
        """Every transaction that came, taken or not."""
        return self.server.asked("/send/")

    @property
    def pdus(self) -> list[dict]:
        """The PDUs taken, in order."""
        return [pdu for r in self.taken for pdu in r.content["pdus"]]  # type: ignore[index]

    @property
    def bodies(self) -> list[str]:
        """The texts of the messages taken, in order."""
        return [p["content"]["body"] for p in self.pdus if p["type"] == "m.room.message"]

    def edus(self, edu_type: str) -> list[dict]:
        """The contents of the EDUs of a type that were taken, in order."""
        return [
            edu["content"]
            for r in self.taken
            for edu in r.content["edus"]  # type: ignore[index]
            if edu["edu_type"] == edu_type
        ]


async def begin(services: Services, holder: str = HOLDER) -> None:
    """Let a process take part in deliveries; its leases are renewed by `pass_time`, or by hand."""
    services.tasks.spawn("delivery", services.delivery.run(services))
    await services.delivery.hold_shards(services, holder)


async def handed_out(services: Services) -> None:
    """Return when everything committed has been handed out to destinations."""
    head = await services.follower.fetch_position()
    await until(lambda: services.delivery.outbox.recipients.position >= head)


async def settled(services: Services) -> None:
    """Return when everything committed has been handed out, and nothing is under way."""
    delivery = services.delivery
    head = await services.follower.fetch_position()

    def idle() -> bool:
        return delivery.outbox.recipients.position >= head and not any(
            d.is_busy for d in delivery.outbox.destinations.values()
        )

    await until(idle)


async def pass_time(services: Services, clock: ManualClock, duration_ms: int) -> None:
    """Let time pass in steps in which leases are renewed; whatever is due is done."""
    for _ in range(-(-duration_ms // RENEWAL_MS)):
        await settled(services)
        clock.advance_ms(min(duration_ms, RENEWAL_MS))
        await services.delivery.hold_shards(services, HOLDER)
    await settled(services)
