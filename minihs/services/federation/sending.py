"""Sending: each destination gets what it is owed, one transaction after the other, at its pace.

* **Pace.** A server that has had a transaction waits for its next one the longer the more
  transactions begin in a second: so events gather, and go together. The first one after a silence
  never waits. Else a room of a hundred servers would cost its users' requests most of their time.
* **Back-off** doubles with each failure, up to `federation_max_backoff_seconds`. It is in the
  database, and ends with a success or with the first request that comes from the server.

Spec: server-server-api#transactions
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING

from minihs.base.errors import DatabaseAway
from minihs.base.metrics import Family, labels
from minihs.remote.transport import RemoteError
from minihs.services.federation.catch_up import messages_owed, missed_by, to_repeat
from minihs.services.federation.destination import (
    PDUS_MAX,
    Destination,
    Transaction,
    body_of,
    position_of,
    receipt_positions,
    txn_id_of,
)
from minihs.services.federation.outgoing_edus import pack
from minihs.storage import to_device

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minihs.base.clock import Clock
    from minihs.services.context import Services
    from minihs.services.federation.outbox import Outbox
    from minihs.services.federation.outgoing_edus import OutgoingMessage
    from minihs.services.federation.pauses import Pauses

logger = logging.getLogger(__name__)

AT_ONCE_MAX = 100  # Destinations with a transaction under way that has only just begun,
UNDER_WAY_MAX = 400  # and with any.
DOUBTFUL_MAX = 300  # Of them, with those that took nothing yet, or not the last one.
SLOW_MS = 3_000

PACE_WINDOW_MS = 1_000
UNPACED = 50  # Transactions that begin in a second at no other's expense;
PACE_MS = 5  # for each further one a destination waits so long for its next one,
FULL_SHARE = 2  # and half of that if it is a full one.

BACK_OFF_MS = 2_000

_UNACCEPTABLE = (400, 413, 414, 415, 422)  # The server is well; it is the transaction.


class Sender:
    """Sends to destinations what the outbox says that they are owed."""

    def __init__(self, clock: Clock, outbox: Outbox, pauses: Pauses) -> None:
        self._clock = clock
        self._outbox = outbox
        self._pauses = pauses
        self._ready: deque[Destination] = deque()
        self._set_aside: deque[Destination] = deque()
        self._fresh = self._under_way = self._doubtful = 0
        self._begun_ms: deque[int] = deque()  # When the transactions of the last second began.
        self._transactions_sent = self._transactions_failed = 0
        self._pdus_sent = self._edus_sent = 0

    def families(self) -> list[Family]:
        """Return figures about what this process has sent."""
        transactions: dict[str, float] = {
            labels(outcome="delivered"): self._transactions_sent,
            labels(outcome="failed"): self._transactions_failed,
        }
        sent: dict[str, float] = {
            labels(kind="pdu"): self._pdus_sent,
            labels(kind="edu"): self._edus_sent,
        }
        return [
            Family(
                "minihs_delivery_transactions_total", "counter", "Transactions sent", transactions
            ),
            Family("minihs_delivery_sent_total", "counter", "What servers have taken", sent),
        ]

    def wake(self, services: Services, destination: Destination) -> None:
        """Let a destination have its turn, if there is anything to do and it may be tried."""
        now_ms = self._clock.now_ms()
        if (
            destination.is_busy
            or not destination.has_news
            or destination.retry_at_ms > now_ms
            or self._outbox.lease_until_ms <= now_ms  # All are woken when it has been renewed.
        ):
            return
        wait_ms = self._wait_ms(destination)
        if wait_ms <= 0:
            destination.is_busy = True
            self._ready.append(destination)
            self._start_some(services)
        elif not destination.has_timer:
            destination.has_timer = True

            def go_on() -> None:
                destination.has_timer = False
                self.wake(services, destination)

            self._clock.call_later_ms(wait_ms, go_on)

    def _wait_ms(self, destination: Destination) -> int:
        """Return how long a destination is to gather events before its next transaction."""
        pace_ms = destination.pace_ms
        if len(destination.pdus) >= destination.pdus_max:
            pace_ms //= FULL_SHARE
        return destination.begun_ms + pace_ms - self._clock.monotonic_ms()

    def _note_begun(self, destination: Destination) -> None:
        begun, now_ms = self._begun_ms, self._clock.monotonic_ms()
        begun.append(now_ms)
        while begun[0] <= now_ms - PACE_WINDOW_MS:
            begun.popleft()
        destination.begun_ms = now_ms
        destination.pace_ms = PACE_MS * max(0, len(begun) - UNPACED)

    def _start_some(self, services: Services) -> None:
        while self._ready and self._fresh < AT_ONCE_MAX and self._under_way < UNDER_WAY_MAX:
            destination = self._ready.popleft()
            is_doubtful = destination.is_doubtful
            if is_doubtful and self._doubtful >= DOUBTFUL_MAX:
                self._set_aside.append(destination)
                continue
            self._doubtful += is_doubtful
            self._fresh += 1
            self._under_way += 1
            services.tasks.spawn(
                "delivery", self._serve(services, destination, is_doubtful=is_doubtful)
            )

    async def _serve(
        self, services: Services, destination: Destination, *, is_doubtful: bool
    ) -> None:
        """Send a destination one transaction, then let the next one have its turn.

        A server that takes its time keeps nobody from theirs: after a while it no longer counts.
        Those of which nobody knows that they answer never have all places.
        """
        is_slow = False

        def slow() -> None:
            nonlocal is_slow
            is_slow = True
            self._fresh -= 1
            self._start_some(services)

        timer = self._clock.call_later_ms(SLOW_MS, slow)
        try:
            await self._send_next(services, destination)
        except Exception as error:
            if not isinstance(error, DatabaseAway):
                logger.exception("cannot deliver to %s; trying again", destination.name)
            destination.put_back()
            retry_at_ms = destination.retry_at_ms = self._clock.now_ms() + BACK_OFF_MS

            def try_again() -> None:
                if destination.retry_at_ms == retry_at_ms:  # However the clock was set meanwhile.
                    destination.retry_at_ms = 0
                self.wake(services, destination)

            self._clock.call_later_ms(BACK_OFF_MS, try_again)
        finally:
            timer.cancel()
            self._under_way -= 1
            self._fresh -= not is_slow
            self._doubtful -= is_doubtful
            if is_doubtful and self._set_aside:
                self._ready.appendleft(self._set_aside.popleft())
        destination.is_busy = False
        if self._outbox.is_ours(destination):
            self.wake(services, destination)
        self._start_some(services)

    async def _send_next(self, services: Services, destination: Destination) -> None:
        outbox = self._outbox
        if not outbox.is_ours(destination) or self._clock.now_ms() >= outbox.lease_until_ms:
            return
        transaction = await to_repeat(services, destination)
        if transaction is None:
            messages = await messages_owed(services, destination)
            if messages and messages[0].position <= destination.careful_upto:
                transaction = _only(destination, messages)
            elif destination.behind:
                transaction = await self._catch_up(services, destination, messages)
            else:
                transaction = self._take(destination, messages)
        if transaction is None:
            return
        destination.under_way = transaction
        was_well = not destination.failures and not destination.behind
        self._note_begun(destination)
        answer = await services.remote.send_transaction(
            destination.name,
            transaction.txn_id,
            body_of(transaction, services.server_name, self._clock.now_ms()),
        )
        if not outbox.is_ours(destination):
            return
        if not isinstance(answer, RemoteError):
            await self._note_taken(services, destination, transaction)
            self._note_delivered(destination, transaction, answer)
        elif answer.kind == "refused" and answer.status in _UNACCEPTABLE:
            if _is_single_message(transaction):
                logger.error("%s; giving up on a message to devices", answer.describe())
                await self._note_taken(services, destination, transaction)
            self._note_unacceptable(destination, transaction, answer)
        else:
            self._note_failed(services, destination, transaction, answer)
        destination.under_way = None
        if destination.failures or destination.behind or not was_well:
            await outbox.save(destination)  # How far the well have got is written now and then.

    def _take(
        self, destination: Destination, messages: Sequence[OutgoingMessage]
    ) -> Transaction | None:
        """Return the next transaction out of a destination's queue, or None."""
        destination.pdus.sort(key=position_of)
        pdus = destination.pdus[: destination.pdus_max]
        del destination.pdus[: destination.pdus_max]
        if destination.refuses_edus:
            destination.edus.clear()
        packed, used, left = pack(destination.edus.values(), self._clock.now_ms(), messages)
        destination.edus = {edu.subject: edu for edu in left}
        if not pdus and not packed:
            return None
        upto = position_of(pdus[-1]) if pdus else destination.position
        return Transaction(
            txn_id_of(destination, pdus, [*messages, *used]),
            pdus, packed, destination.position, upto, messages, receipt_positions(used),
        )  # fmt: skip

    async def _catch_up(
        self, services: Services, destination: Destination, messages: Sequence[OutgoingMessage]
    ) -> Transaction | None:
        """Return the next transaction for somebody who is behind; None: they are no longer."""
        outbox = self._outbox
        while True:
            await outbox.save_missed()
            upto = outbox.recipients.position
            transaction = await missed_by(services, destination, upto, messages)
            if transaction.pdus or transaction.edus:
                return transaction
            destination.note_served(transaction)
            is_at_end = transaction.upto == upto == outbox.recipients.position
            if is_at_end and destination.position >= upto and not outbox.has_unsaved_missed:
                destination.behind = destination.is_saved = False
                return None

    # --- outcomes --------------------------------------------------------------------------------

    def _note_delivered(
        self, destination: Destination, transaction: Transaction, answer: Mapping[str, object]
    ) -> None:
        _log_refused_pdus(destination.name, answer)
        self._transactions_sent += 1
        self._pdus_sent += len(transaction.pdus)
        self._edus_sent += len(transaction.edus)
        if transaction.pdus or destination.failures or destination.behind:
            destination.is_saved = False
        destination.note_served(transaction)
        destination.failures = destination.retry_at_ms = 0
        destination.is_down = destination.refuses_edus = False
        destination.pdus_max = PDUS_MAX
        destination.last_success_ms = self._clock.now_ms()
        destination.repeat_id, destination.repeat_positions = None, ()
        self._pauses.end(destination.name)

    async def _note_taken(
        self, services: Services, destination: Destination, transaction: Transaction
    ) -> None:
        """Delete the messages to devices that a server has taken, or never will."""
        positions = [message.position for message in transaction.messages]
        if positions:
            await to_device.delete_taken(services.db, destination.name, positions)
            if destination.messages_at <= positions[-1]:
                destination.messages_at = 0

    def _note_unacceptable(
        self, destination: Destination, transaction: Transaction, error: RemoteError
    ) -> None:
        """Find out what it is that the other server never takes, and leave that out.

        One bad EDU or PDU must not keep everything else from being delivered.
        """
        self._transactions_failed += 1
        destination.repeat_id, destination.repeat_positions = None, ()
        if _is_single_message(transaction):
            return
        if transaction.messages:
            logger.warning("%s; trying messages to devices one by one", error.describe())
            destination.careful_upto = transaction.messages[-1].position
            destination.put_back()
        elif transaction.edus:
            logger.warning("%s; trying without EDUs", error.describe())
            destination.refuses_edus = True
            destination.put_back()
        elif len(transaction.pdus) > 1:
            logger.warning("%s; trying its PDUs one by one", error.describe())
            destination.pdus_max = 1
            destination.put_back()
        else:
            ids = [stored.event_id for stored in transaction.pdus]
            logger.error("%s; giving up on %s", error.describe(), ids)
            destination.note_served(transaction)
            destination.pdus_max = PDUS_MAX
            destination.is_saved = False

    def _note_failed(
        self,
        services: Services,
        destination: Destination,
        transaction: Transaction,
        error: RemoteError,
    ) -> None:
        """Leave a server alone for a while: twice as long each time, give or take a fifth."""
        self._transactions_failed += 1
        destination.failures += 1
        pause_ms_max = 1_000 * services.config.federation_max_backoff_seconds
        pause_ms = min(BACK_OFF_MS << min(destination.failures - 1, 32), pause_ms_max)
        pause_ms = services.randomness.between(pause_ms * 4 // 5, pause_ms * 6 // 5)
        pause_ms = min(max(pause_ms, error.retry_after_ms or 0), pause_ms_max)
        logger.log(
            logging.INFO if destination.failures == 1 else logging.DEBUG,
            "%s; trying again in %.0f s", error.describe(), pause_ms / 1_000,
        )  # fmt: skip
        self._outbox.fall_behind(destination)
        if transaction.pdus:
            destination.repeat_id = transaction.txn_id
            destination.repeat_positions = tuple(map(position_of, transaction.pdus))
        destination.retry_at_ms = self._clock.now_ms() + pause_ms
        destination.is_down = not error.server_is_up
        self._pauses.begin(destination)


def _only(destination: Destination, messages: Sequence[OutgoingMessage]) -> Transaction:
    """Return a transaction of messages to devices and nothing else."""
    edus, _, _ = pack((), 0, messages)
    at = destination.position
    return Transaction(txn_id_of(destination, (), messages), (), edus, at, at, messages)


def _is_single_message(transaction: Transaction) -> bool:
    return len(transaction.messages) == len(transaction.edus) == 1 and not transaction.pdus


def _log_refused_pdus(server_name: str, answer: Mapping[str, object]) -> None:
    results = answer.get("pdus")
    for event_id, result in results.items() if isinstance(results, dict) else ():
        match result:
            case {"error": str(message)}:
                logger.info("%s did not take %s: %s", server_name, event_id, message[:200])
            case _:
                pass
