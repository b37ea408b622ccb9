"""Delivery: other servers get what this one owes them, in order, each at its own pace (D5).

The stream is the outbox. `Recipients` reads it and says who is owed what; a destination keeps that
in a short queue, and one transaction at a time is under way to it. When it has answered 200, its
position in the stream is moved. A queue that grows too long, or a server that fails, makes the
destination *behind*: its queue is forgotten, and later it is caught up from the database, with the
newest event of each room (it fetches the others itself). So a server that is down costs nothing.

* **Restart.** A shard of destinations has a position: whatever is after it is read again. The id of
  a transaction follows from what is in it, so one that is built again, after its answer or the note
  of it was lost, is known to its receiver. A transaction that failed is repeated, with its id,
  before any other.
* **Pace.** A server that has had a transaction waits for its next one the longer the more
  transactions begin in a second: so events gather, and go together. The first one after a silence
  never waits. Else a room of a hundred servers would cost its users' requests most of their time.
* **Back-off** doubles with each failure, up to `federation_max_backoff_seconds`. It is in the
  database, and ends with a success or with the first request that comes from the server.
* **Messages to devices** are rows of their own, deleted when their server has taken them: of those
  none is lost, however long a server is away. Their ids tell the receiver which it has had.
* **Several processes.** Destinations are in shards by a hash of their names, and processes share
  the shards by leases: see `shares_of`.

Spec: server-server-api#transactions
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.base.batching import Batcher
from minihs.base.metrics import Family, labels
from minihs.remote.transport import RemoteError
from minihs.services.federation.catch_up import messages_owed, missed_by, to_repeat
from minihs.services.federation.destination import (
    PDUS_MAX,
    SHARDS,
    Destination,
    Transaction,
    body_of,
    position_of,
    shard_of,
    txn_id_of,
)
from minihs.services.federation.outgoing_edus import pack
from minihs.services.federation.recipients import Recipients
from minihs.storage import destinations, jobs, to_device

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from minihs.base.clock import Clock
    from minihs.services.context import Services
    from minihs.services.federation.outgoing_edus import OutgoingMessage
    from minihs.services.federation.recipients import Share
    from minihs.storage.database import Database
    from minihs.storage.destinations import DestinationRow
    from minihs.storage.event_store import StoredEvent
    from minihs.storage.stream_reads import Positioned

logger = logging.getLogger(__name__)

QUEUE_PDUS_MAX = 3_000  # A destination with more to come is caught up instead.
READ_POSITIONS_MAX = 1_000
REPLAY_POSITIONS_MAX = 5_000  # More than that is not read again event by event.

AT_ONCE_MAX = 100  # Destinations with a transaction under way that has only just begun,
UNDER_WAY_MAX = 400  # and with any.
SLOW_MS = 3_000
PAUSE_AFTER_ERROR_MS = 1_000

PACE_WINDOW_MS = 1_000
UNPACED = 50  # Transactions that begin in a second at no other's expense;
PACE_MS = 5  # for each further one a destination waits so long for its next one,
FULL_SHARE = 2  # and half of that if it is a full one.

BACK_OFF_MS = 2_000
ALIVE_PAUSE_MS = 1_000  # Times the failures: how often requests from a server make us try it.
ALIVE_PAUSE_MS_MAX = 60_000

LEASE_MS = 10_000
PAUSES_REFRESH_MS = 30_000
LEASES = "federation-delivery "

_UNACCEPTABLE = (400, 413, 414, 415, 422)  # The server is well; it is the transaction.


@dataclass(frozen=True, slots=True)
class _Pause:
    """A server is left alone until a moment, or until it asks for something after another."""

    until_ms: int
    alive_from_ms: int
    is_down: bool


def shares_of(holder: str, holders: Collection[str]) -> set[int]:
    """Return which shards a process should have, given all that live: each goes to one of them.

    When a process comes or goes, only its own shards move.
    """
    everybody = {*holders, holder}
    return {
        shard
        for shard in range(SHARDS)
        if max(everybody, key=lambda one: (zlib.crc32(f"{one}/{shard}".encode()), one)) == holder
    }


class Delivery:
    """What this process owes to whom. Only destinations in the shards it holds are its business."""

    def __init__(self, clock: Clock, db: Database) -> None:
        self._clock = clock
        self._recipients = Recipients()
        self._shards: dict[int, int] = {}  # With the position since which each is ours to serve.
        self._lease_until_ms = 0
        self._destinations: dict[str, Destination] = {}
        self._missed: dict[str, int] = {}  # Rooms in which somebody behind is owed the newest.
        self._missed_from: int | None = None
        self._ready: deque[Destination] = deque()
        self._fresh = self._under_way = 0
        self._begun_ms: deque[int] = deque()  # When the transactions of the last second began.
        self._paused: dict[str, _Pause] = {}
        self._paused_read_ms = 0
        self._news = asyncio.Event()
        self._reading = asyncio.Lock()
        self._rows: Batcher[DestinationRow, bool] = Batcher(lambda rows: _write(db, rows))
        self.transactions_sent = self.transactions_failed = self.pdus_sent = self.edus_sent = 0

    # --- what others ask -------------------------------------------------------------------------

    def is_backing_off(self, server_name: str) -> bool:
        """Return whether a server did not answer and is to be left alone for now."""
        pause = self._paused.get(server_name)
        return pause is not None and pause.is_down and pause.until_ms > self._clock.now_ms()

    def note_alive(self, services: Services, server_name: str) -> None:
        """Take notice of a request from a server: if it was left alone, it no longer is.

        Almost always nothing happens. A server that can reach us, but that we cannot reach, makes
        us try it again only now and then.
        """
        pause = self._paused.get(server_name)
        now_ms = self._clock.now_ms()
        if pause is None or pause.alive_from_ms > now_ms:
            return
        del self._paused[server_name]
        services.tasks.spawn(
            "server is alive", destinations.mark_due(services.db, server_name, now_ms)
        )
        self._try_now(services, server_name, now_ms)

    def families(self) -> list[Family]:
        """Return figures about the deliveries of this process."""
        behind = sum(destination.behind for destination in self._destinations.values())
        transactions: dict[str, float] = {
            labels(outcome="delivered"): self.transactions_sent,
            labels(outcome="failed"): self.transactions_failed,
        }
        sent: dict[str, float] = {
            labels(kind="pdu"): self.pdus_sent,
            labels(kind="edu"): self.edus_sent,
        }
        servers: dict[str, float] = {
            labels(state="behind"): behind,
            labels(state="served"): len(self._destinations) - behind,
        }
        return [
            Family(
                "minihs_delivery_transactions_total", "counter", "Transactions sent", transactions
            ),
            Family("minihs_delivery_sent_total", "counter", "What servers have taken", sent),
            Family("minihs_delivery_destinations", "gauge", "Servers that we send to", servers),
        ]

    # --- following the stream --------------------------------------------------------------------

    def follow(self, _items: Sequence[Positioned]) -> None:
        """Look at the stream soon: something has been committed."""
        self._news.set()

    def reset(self) -> None:
        """Do the same: what the process has not seen is read from the tables."""
        self._news.set()

    async def run(self, services: Services) -> None:
        """Serve the destinations of our shards for as long as the process lives."""
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                await self.distribute(services)
            except Exception:
                logger.exception("cannot read what is owed to whom; trying again")
                await self._clock.sleep_ms(PAUSE_AFTER_ERROR_MS)
                self._news.set()

    async def distribute(self, services: Services) -> None:
        """Hand everything in the stream to the destinations that it is owed to."""
        follower, recipients = services.follower, self._recipients
        async with self._reading:
            while self._shards and recipients.position < (head := follower.head):
                if head - recipients.position > REPLAY_POSITIONS_MAX:
                    await self._skip_to(services, head)
                    break
                upto = min(head, recipients.position + READ_POSITIONS_MAX)
                try:
                    shares = await recipients.read(services, upto)
                except BaseException:
                    recipients.begin_at(recipients.position)  # What is known of rooms is half true.
                    raise
                for share in shares:  # Nobody sees a part of it: here nothing waits.
                    self._hand_out(services, share)
                recipients.position = upto
            shares, next_ms = await recipients.due(services)
            for share in shares:
                self._hand_out(services, share)
        if next_ms is not None:
            self._clock.call_later_ms(next_ms - self._clock.now_ms(), self._news.set)

    def _hand_out(self, services: Services, share: Share) -> None:
        """Put a share into the queues of its servers."""
        first = min(map(position_of, share.pdus), default=None)
        shards, own, missed = self._shards, services.server_name, False
        for name in share.servers:
            destination = self._destinations.get(name)
            if destination is None:
                shard = shard_of(name)
                if name == own or shard not in shards:
                    continue
                before = self._recipients.position if first is None else first - 1
                destination = Destination(name, shard, max(before, shards[shard]))
                self._destinations[name] = destination
            destination.messages_at = max(destination.messages_at, share.messages_at)
            if destination.behind:
                missed = True
                if share.is_backlog and first is not None and first <= destination.position:
                    destination.position, destination.is_saved = first - 1, False
                continue
            since = max(destination.position, shards[destination.shard])
            if first is None or first > since or share.is_backlog:
                destination.pdus += share.pdus
            else:  # It is read again: see `_take_over`.
                destination.pdus += [s for s in share.pdus if position_of(s) > since]
            for edu in share.edus:
                destination.edus.pop(edu.subject, None)
                destination.edus[edu.subject] = edu
            if len(destination.pdus) > QUEUE_PDUS_MAX:
                self._fall_behind(destination)
            self._wake(services, destination)
        if missed:
            self._note_missed(share.pdus)

    def _note_missed(self, pdus: Iterable[StoredEvent]) -> None:
        """Note that there is something in rooms for those who are behind.

        It is written with the next round of the leases, or before somebody is caught up.
        """
        for stored in pdus:
            room_id, position = stored.event.room_id, position_of(stored)
            self._missed[room_id] = max(self._missed.get(room_id, 0), position)
            if self._missed_from is None or position < self._missed_from:
                self._missed_from = position

    async def _save_missed(self, services: Services) -> None:
        """Write what has been noted. Until then no shard's position goes past it."""
        while self._missed:
            missed = dict(self._missed)
            await destinations.upsert_sent_rooms(services.db, missed)
            for room_id, position in missed.items():
                if self._missed.get(room_id) == position:
                    del self._missed[room_id]
        self._missed_from = None

    async def _skip_to(self, services: Services, head: int) -> None:
        """Let everybody concerned be behind: too much has happened to look at each event."""
        after, own = self._recipients.position, services.server_name
        newest = await destinations.list_rooms_with_events(services.db, after, head)
        await destinations.upsert_sent_rooms(services.db, newest)
        for name in await destinations.list_servers_of_rooms(services.db, after):
            shard = shard_of(name)
            if name == own or shard not in self._shards:
                continue
            destination = self._destinations.get(name)
            if destination is None:
                destination = Destination(name, shard, max(after, self._shards[shard]))
                self._destinations[name] = destination
            self._fall_behind(destination)
        self._recipients.begin_at(head)
        await self._note_messages(services, self._shards)
        await self._save_all()
        for destination in list(self._destinations.values()):
            self._wake(services, destination)

    async def _note_messages(self, services: Services, shards: Mapping[int, int]) -> None:
        """Find out who is owed messages to devices, among the destinations of some shards."""
        for name, position in (await to_device.list_servers_owed(services.db)).items():
            shard = shard_of(name)
            if shard in shards:
                destination = self._destinations.get(name)
                if destination is None:
                    destination = Destination(name, shard, shards[shard])
                    self._destinations[name] = destination
                destination.messages_at = max(destination.messages_at, position)

    def _fall_behind(self, destination: Destination) -> None:
        """Forget a destination's queue: it will be caught up. It must be saved afterwards."""
        if not destination.behind:
            first = destination.first_owed()
            destination.position = self._recipients.position if first is None else first - 1
            destination.behind = True
        sent = destination.under_way.pdus if destination.under_way is not None else ()
        self._note_missed((*sent, *destination.pdus))
        destination.pdus.clear()
        destination.edus.clear()
        destination.is_saved = False

    # --- sending ---------------------------------------------------------------------------------

    def _try_now(self, services: Services, server_name: str, now_ms: int) -> None:
        destination = self._destinations.get(server_name)
        if destination is not None:
            destination.retry_at_ms = min(destination.retry_at_ms, now_ms)
            self._wake(services, destination)

    def _wake(self, services: Services, destination: Destination) -> None:
        """Let a destination have its turn, if there is anything to do and it may be tried."""
        now_ms = self._clock.now_ms()
        if (
            destination.is_busy
            or not destination.has_news
            or destination.retry_at_ms > now_ms
            or self._lease_until_ms <= now_ms  # All are woken when it has been renewed.
        ):
            return
        wait_ms = self._wait_ms(destination, now_ms)
        if wait_ms <= 0:
            destination.is_busy = True
            self._ready.append(destination)
            self._start_some(services)
        elif not destination.has_timer:
            destination.has_timer = True

            def go_on() -> None:
                destination.has_timer = False
                self._wake(services, destination)

            self._clock.call_later_ms(wait_ms, go_on)

    def _wait_ms(self, destination: Destination, now_ms: int) -> int:
        """Return how long a destination is to gather events before its next transaction."""
        pace_ms = destination.pace_ms
        if len(destination.pdus) >= destination.pdus_max:
            pace_ms //= FULL_SHARE
        return min(destination.begun_ms + pace_ms - now_ms, pace_ms)

    def _note_begun(self, destination: Destination) -> None:
        begun, now_ms = self._begun_ms, self._clock.now_ms()
        begun.append(now_ms)
        while begun[0] <= now_ms - PACE_WINDOW_MS:
            begun.popleft()
        destination.begun_ms = now_ms
        destination.pace_ms = PACE_MS * max(0, len(begun) - UNPACED)

    def _start_some(self, services: Services) -> None:
        while self._ready and self._fresh < AT_ONCE_MAX and self._under_way < UNDER_WAY_MAX:
            destination = self._ready.popleft()
            self._fresh += 1
            self._under_way += 1
            services.tasks.spawn("delivery", self._serve(services, destination))

    async def _serve(self, services: Services, destination: Destination) -> None:
        """Send a destination one transaction, then let the next one have its turn.

        A server that takes its time keeps nobody from theirs: after a while it no longer counts.
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
        except Exception:
            logger.exception("cannot deliver to %s; trying again", destination.name)
            destination.put_back()
            destination.retry_at_ms = self._clock.now_ms() + BACK_OFF_MS
            self._clock.call_later_ms(BACK_OFF_MS, lambda: self._wake(services, destination))
        finally:
            timer.cancel()
            self._under_way -= 1
            self._fresh -= not is_slow
        destination.is_busy = False
        if self._is_ours(destination):
            self._wake(services, destination)
        self._start_some(services)

    def _is_ours(self, destination: Destination) -> bool:
        return self._destinations.get(destination.name) is destination

    async def _send_next(self, services: Services, destination: Destination) -> None:
        if not self._is_ours(destination) or self._clock.now_ms() >= self._lease_until_ms:
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
        if not self._is_ours(destination):
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
            await self._save(destination)  # How far the well have got is written now and then.

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
            txn_id_of(destination, pdus, [*messages, *used]), pdus, packed, upto, messages
        )

    async def _catch_up(
        self, services: Services, destination: Destination, messages: Sequence[OutgoingMessage]
    ) -> Transaction | None:
        """Return the next transaction for somebody who is behind; None: they are no longer."""
        while True:
            await self._save_missed(services)
            upto = self._recipients.position
            transaction = await missed_by(services, destination, upto, messages)
            if transaction.pdus or transaction.edus:
                return transaction
            destination.position = max(destination.position, transaction.upto)
            if transaction.upto == upto == self._recipients.position and not self._missed:
                destination.behind = destination.is_saved = False
                return None

    # --- outcomes --------------------------------------------------------------------------------

    def _note_delivered(
        self, destination: Destination, transaction: Transaction, answer: Mapping[str, object]
    ) -> None:
        _log_refused_pdus(destination.name, answer)
        self.transactions_sent += 1
        self.pdus_sent += len(transaction.pdus)
        self.edus_sent += len(transaction.edus)
        if transaction.pdus or destination.failures or destination.behind:
            destination.is_saved = False
        destination.position = max(destination.position, transaction.upto)
        destination.failures = destination.retry_at_ms = 0
        destination.is_down = destination.refuses_edus = False
        destination.pdus_max = PDUS_MAX
        destination.last_success_ms = self._clock.now_ms()
        destination.repeat_id, destination.repeat_positions = None, ()
        self._paused.pop(destination.name, None)

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
        self.transactions_failed += 1
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
            destination.position = max(destination.position, transaction.upto)
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
        self.transactions_failed += 1
        destination.failures += 1
        now_ms = self._clock.now_ms()
        pause_ms_max = 1_000 * services.config.federation_max_backoff_seconds
        pause_ms = min(BACK_OFF_MS << min(destination.failures - 1, 32), pause_ms_max)
        pause_ms = services.randomness.between(pause_ms * 4 // 5, pause_ms * 6 // 5)
        pause_ms = min(max(pause_ms, error.retry_after_ms or 0), pause_ms_max)
        logger.log(
            logging.INFO if destination.failures == 1 else logging.DEBUG,
            "%s; trying again in %.0f s", error.describe(), pause_ms / 1_000,
        )  # fmt: skip
        self._fall_behind(destination)
        if transaction.pdus:
            destination.repeat_id = transaction.txn_id
            destination.repeat_positions = tuple(map(position_of, transaction.pdus))
        destination.retry_at_ms = now_ms + pause_ms
        destination.is_down = not error.server_is_up
        alive_ms = min(ALIVE_PAUSE_MS * (destination.failures - 1), ALIVE_PAUSE_MS_MAX)
        self._paused[destination.name] = _Pause(
            destination.retry_at_ms, now_ms + alive_ms, destination.is_down
        )

    async def _save(self, destination: Destination) -> None:
        """Write how far a destination has been served, if that has changed."""
        if not destination.is_saved and self._is_ours(destination):
            destination.is_saved = True
            try:
                await self._rows.load(destination.row)
            except Exception as error:
                destination.is_saved = False  # The next round of the lease tries again.
                logger.warning("cannot note what %s has got: %s", destination.name, error)

    async def _save_all(self) -> None:
        unsaved = [d for d in self._destinations.values() if not d.is_saved]
        await asyncio.gather(*map(self._save, unsaved))

    # --- which shards are ours -------------------------------------------------------------------

    async def hold_shards(self, services: Services, holder: str) -> None:
        """Take or renew our leases, note how far we are, and try whoever is due.

        To be done every few seconds: a lease lasts `LEASE_MS`.
        """
        now_ms = self._clock.now_ms()
        until_ms = now_ms + LEASE_MS
        db = services.db
        if self._lease_until_ms == 0:
            await destinations.insert_shards(db, SHARDS)
        await jobs.take_lease(db, LEASES + holder, holder, now_ms, until_ms)
        mine = shares_of(holder, await jobs.list_holders(db, LEASES, now_ms))
        surplus = self._shards.keys() - mine
        if surplus:
            await self._give_back(services, holder, surplus)
        taken = await destinations.take_shards(db, holder, mine, now_ms, until_ms)
        self._lose(self._shards.keys() - taken.keys())
        had_lapsed, self._lease_until_ms = self._lease_until_ms <= now_ms, until_ms
        gained = {shard: at for shard, at in taken.items() if shard not in self._shards}
        if gained:
            await self._take_over(services, gained)
        if had_lapsed:
            for destination in list(self._destinations.values()):
                self._wake(services, destination)
        await self._save_missed(services)
        await self._save_all()
        await destinations.save_positions(db, holder, self._served())
        for name in await destinations.list_due(db, list(self._shards), now_ms):
            self._try_now(services, name, now_ms)
        if now_ms - self._paused_read_ms >= PAUSES_REFRESH_MS:
            self._paused_read_ms = now_ms
            for name, at_ms, is_down in await destinations.list_paused(db, now_ms):
                self._paused.setdefault(name, _Pause(at_ms, now_ms, is_down))
            for name in [n for n, pause in self._paused.items() if pause.until_ms <= now_ms]:
                del self._paused[name]

    async def give_back_shards(self, services: Services, holder: str) -> None:
        """Let other processes have our shards at once: this one ends."""
        await self._give_back(services, holder, set(self._shards))
        await jobs.delete_lease(services.db, LEASES + holder, holder)

    def _served(self) -> dict[int, int]:
        """Return, for each of our shards, up to where nothing would be missed by reading on."""
        everywhere = self._recipients.position
        if self._missed_from is not None:
            everywhere = min(everywhere, self._missed_from - 1)
        served = {shard: max(everywhere, since) for shard, since in self._shards.items()}
        for destination in self._destinations.values():
            if not destination.behind:
                first = destination.first_owed()
                if first is None:
                    continue
                served[destination.shard] = min(served[destination.shard], first - 1)
            elif not destination.is_saved:
                served[destination.shard] = min(served[destination.shard], destination.position)
        return served

    async def _give_back(self, services: Services, holder: str, shards: Collection[int]) -> None:
        served = {shard: at for shard, at in self._served().items() if shard in shards}
        self._lose(shards)
        await destinations.save_positions(services.db, holder, served, give_back=True)

    def _lose(self, shards: Collection[int]) -> None:
        """Forget shards that are no longer ours; what is under way is no longer our business."""
        for shard in list(shards):
            del self._shards[shard]
        if shards:
            self._destinations = {
                name: d for name, d in self._destinations.items() if d.shard in self._shards
            }

    async def _take_over(self, services: Services, gained: Mapping[int, int]) -> None:
        """Begin to serve shards, each from where its last holder left it."""
        start = min(gained.values())
        async with self._reading:
            for row in await destinations.list_of_shards(services.db, list(gained), start):
                self._destinations[row.server_name] = Destination.of(row)
            position = self._recipients.position
            if not self._shards:
                self._recipients.begin_at(start)
            elif start < position:  # Ours have had what is read again.
                self._shards = {s: max(since, position) for s, since in self._shards.items()}
                self._recipients.begin_at(start)
            self._shards |= gained
            await self._note_messages(services, gained)
        for destination in list(self._destinations.values()):
            self._wake(services, destination)
        self._news.set()


async def _write(db: Database, rows: Sequence[DestinationRow]) -> dict[DestinationRow, bool]:
    """Write many destinations at once; of one, the last word counts."""
    last = {row.server_name: row for row in rows}
    await destinations.upsert_destinations(db, list(last.values()))
    return dict.fromkeys(rows, True)


def _only(destination: Destination, messages: Sequence[OutgoingMessage]) -> Transaction:
    """Return a transaction of messages to devices and nothing else."""
    edus, _, _ = pack((), 0, messages)
    return Transaction(
        txn_id_of(destination, (), messages), (), edus, destination.position, messages
    )


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
