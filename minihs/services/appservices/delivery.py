"""Delivery to application services: each gets what concerns it, in transactions, in order.

The stream is the outbox. A service has a position in it; what follows is read, and what concerns it
makes a transaction, which is written down before it is sent. A service that does not take it is
sent the same again, but for what was redacted since, after a pause that doubles, until it does:
nothing overtakes it. Then the position is moved.

One process delivers to all services, by a lease; when it dies another goes on with what is written
down. Without any service nothing here runs.

Spec: application-service-api#pushing-events
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from minihs.base.errors import DatabaseAway
from minihs.base.limits import APPSERVICE_TRANSACTION_TIMEOUT_MS
from minihs.remote.appservices import V1
from minihs.remote.transport import RemoteError
from minihs.services.appservices.interest import MEMBER, Found, Interest
from minihs.services.appservices.transactions import body_of, without_redacted
from minihs.storage import appservices, jobs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minihs.services.appservices.registration import Registration
    from minihs.services.context import Services
    from minihs.storage.appservices import ServiceRow
    from minihs.storage.event_store import StoredEvent
    from minihs.storage.stream_reads import Positioned

logger = logging.getLogger(__name__)

LEASE = "appservice-delivery"
LEASE_MS = 10_000
READ_POSITIONS_MAX = 1_000
UNSAVED_POSITIONS_MAX = 1_000  # So much at most is read again after a crash.
BACK_OFF_MS = 1_000
BACK_OFF_MS_MAX = 300_000
PAUSE_AFTER_ERROR_MS = 1_000
FAILURES_PER_WARNING = 12  # One an hour, when the pauses have grown.


class _Queue:
    """One application service as it is served: `pending` is the transaction it has not taken."""

    def __init__(self, service: Registration, row: ServiceRow) -> None:
        self.service = service
        self.interest = Interest(service)
        self.position = self.saved = row.position
        self.txn_id = row.txn_id
        self.pending = row.txn_body
        self.upto = row.txn_upto or row.position
        self.failures = row.failures
        self.retry_at_ms = row.retry_at_ms
        self.news = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class AppserviceDelivery:
    """What this process owes to application services, if it is the one that delivers."""

    def __init__(self, services: Services, holder: str) -> None:
        self._services = services
        self._holder = holder
        self._queues: dict[str, _Queue] = {}
        self._until_ms = 0

    def follow(self, _items: Sequence[Positioned]) -> None:
        """Look at the stream soon: something has been committed."""
        for queue in self._queues.values():
            queue.news.set()

    def reset(self) -> None:
        """Do the same: what the process has not seen is read from the tables."""
        self.follow(())

    # --- who delivers ----------------------------------------------------------------------------

    async def hold(self) -> None:
        """Take or renew the lease, and begin to serve, or cease, as it was had or not.

        To be done every few seconds: a lease lasts `LEASE_MS`.
        """
        services = self._services
        now_ms = services.clock.now_ms()
        until_ms = now_ms + LEASE_MS
        if not await jobs.take_lease(services.db, LEASE, self._holder, now_ms, until_ms):
            await self._stop()
            return
        had_lapsed, self._until_ms = self._until_ms <= now_ms, until_ms
        if not self._queues:
            await self._begin()
        if had_lapsed:
            self.follow(())
        await self._save(UNSAVED_POSITIONS_MAX)
        await self._wake_due(now_ms)

    async def give_back(self) -> None:
        """Cease to serve, note how far everybody is, and let others deliver: this process ends."""
        had = bool(self._queues)
        await self._stop(save=True)
        if had:
            await jobs.delete_lease(self._services.db, LEASE, self._holder)

    async def _begin(self) -> None:
        """Go on where whoever delivered before has stopped."""
        listening = {service.id: service for service in self._services.appservices.listening}
        for row in await appservices.list_services(self._services.db, list(listening)):
            queue = _Queue(listening[row.service_id], row)
            self._queues[row.service_id] = queue
            name = f"delivery to application service {row.service_id}"
            queue.task = self._services.tasks.spawn(name, self._serve(queue))

    async def _stop(self, *, save: bool = False) -> None:
        tasks = [queue.task for queue in self._queues.values() if queue.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if save:
            await self._save(0)
        self._queues.clear()

    async def _save(self, more_than: int) -> None:
        """Note how far those are that had nothing to be sent."""
        moved = {
            service_id: queue.position
            for service_id, queue in self._queues.items()
            if queue.pending is None and queue.position - queue.saved > more_than
        }
        if moved:
            await appservices.save_positions(self._services.db, moved)
            for service_id, position in moved.items():
                self._queues[service_id].saved = position

    async def _wake_due(self, now_ms: int) -> None:
        """Try those whose pause has ended, perhaps sooner than was planned: see `ping`."""
        failing = [service_id for service_id, queue in self._queues.items() if queue.failures]
        if not failing:
            return
        latest_ms = now_ms + 2 * BACK_OFF_MS_MAX
        for service_id in await appservices.list_due(self._services.db, failing, now_ms, latest_ms):
            queue = self._queues.get(service_id)
            if queue is not None:
                queue.retry_at_ms = min(queue.retry_at_ms, now_ms)
                queue.news.set()

    # --- serving one -----------------------------------------------------------------------------

    async def _serve(self, queue: _Queue) -> None:
        """Send a service one transaction after the other for as long as there is something."""
        clock = self._services.clock
        while True:
            queue.news.clear()
            try:
                while await self._send_next(queue):
                    pass
            except Exception as error:
                if not isinstance(error, DatabaseAway):
                    logger.exception("cannot serve %s; trying again", queue.service.id)
                await clock.sleep_ms(PAUSE_AFTER_ERROR_MS)
                queue.news.set()
            await queue.news.wait()

    async def _send_next(self, queue: _Queue) -> bool:
        """Send the next transaction; False: there is none, or it must wait."""
        now_ms = self._services.clock.now_ms()
        if now_ms >= self._until_ms or now_ms < queue.retry_at_ms:
            return False
        if queue.pending is not None:
            await self._redact(queue, queue.pending)
        elif not await self._prepare(queue):
            return False
        path = f"/transactions/{queue.txn_id}"
        answer = await self._services.appservices.remote.request(
            queue.service,
            "PUT",
            V1 + path,
            legacy=path,
            content=(queue.pending or "").encode(),
            timeout_ms=APPSERVICE_TRANSACTION_TIMEOUT_MS,
        )
        if isinstance(answer, RemoteError):
            await self._note_failed(queue, answer)
            return False
        await appservices.end_transaction(self._services.db, queue.service.id, queue.txn_id)
        if queue.failures:
            logger.info("application service %s takes transactions again", queue.service.id)
        self._services.appservices.count(queue.service.id, "delivered")
        queue.position = queue.saved = queue.upto
        queue.pending, queue.failures, queue.retry_at_ms = None, 0, 0
        return True

    async def _prepare(self, queue: _Queue) -> bool:
        """Write down the next transaction; False: there is nothing to send."""
        services = self._services
        while queue.position < (head := services.follower.head):
            upto = min(head, queue.position + READ_POSITIONS_MAX)
            found = await queue.interest.read(services, queue.position, upto)
            if found.is_nothing:
                queue.position = found.upto
                continue
            await self._make_users(queue.service, found.events)
            text = (await body_of(services, queue.service, found)).decode()
            txn_id = await self._begin_transaction(queue, found, text)
            queue.txn_id, queue.upto, queue.pending = txn_id, found.upto, text
            return True
        return False

    async def _redact(self, queue: _Queue, pending: str) -> None:
        """Take out of a transaction, also as it is written down, what was redacted since."""
        text = await without_redacted(self._services, queue.service, pending)
        if text != pending:
            queue.pending = text
            await appservices.replace_body(self._services.db, queue.service.id, queue.txn_id, text)

    async def _begin_transaction(self, queue: _Queue, found: Found, text: str) -> int:
        """Write a transaction down, and return its id.

        Messages to devices are in it from now on, and in no inbox any more: see `ToDevice`.
        """
        last = [(one.position, one.device_nid) for one in found.to_device if one.is_last]
        async with self._services.db.transaction() as tx:
            txn_id = await appservices.begin_transaction(
                tx, queue.service.id, queue.txn_id, found.upto, text
            )
            if txn_id is None:
                raise RuntimeError("another process delivers to the same application service")
            if last:
                await appservices.delete_to_device(tx, last)
        return txn_id

    async def _make_users(self, service: Registration, events: Sequence[StoredEvent]) -> None:
        """Let a service make those of its users who are spoken of, and are not there.

        Spec: application-service-api#querying
        """
        registry = self._services.appservices
        named = {
            user_id
            for stored in events
            if stored.event.type == MEMBER
            and (user_id := stored.event.state_key) is not None
            and user_id != stored.event.sender
            and service in registry.of_user(user_id)
        }
        if not named:
            return
        for user_id in await appservices.list_unknown_users(self._services.db, named):
            await registry.make_user(service, user_id)

    async def _note_failed(self, queue: _Queue, error: RemoteError) -> None:
        """Leave a service alone for a while: twice as long each time, give or take a fifth."""
        services = self._services
        queue.failures += 1
        pause_ms = min(BACK_OFF_MS << min(queue.failures - 1, 16), BACK_OFF_MS_MAX)
        pause_ms = services.randomness.between(pause_ms * 4 // 5, pause_ms * 6 // 5)
        queue.retry_at_ms = services.clock.now_ms() + pause_ms
        services.clock.call_later_ms(pause_ms, queue.news.set)
        services.appservices.count(queue.service.id, "failed")
        logger.log(
            logging.WARNING if queue.failures % FAILURES_PER_WARNING == 1 else logging.DEBUG,
            "application service %s; trying again in %.0f s",
            error.describe(),
            pause_ms / 1_000,
        )
        await appservices.mark_failed(
            services.db, queue.service.id, queue.txn_id, queue.failures, queue.retry_at_ms
        )
