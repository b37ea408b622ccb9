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
from typing import TYPE_CHECKING

from minihs.base.errors import DatabaseAway
from minihs.base.metrics import Family, labels
from minihs.services.federation.destination import (
    SHARDS,
    Destination,
    position_of,
    receipt_positions,
)
from minihs.services.federation.outbox import Outbox
from minihs.services.federation.pauses import Pauses
from minihs.services.federation.sending import Sender
from minihs.storage import destinations, jobs, missed

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from minihs.base.clock import Clock
    from minihs.services.context import Services
    from minihs.services.federation.recipients import Share
    from minihs.storage.database import Database
    from minihs.storage.stream_reads import Positioned

logger = logging.getLogger(__name__)

QUEUE_PDUS_MAX = 3_000  # A destination with more to come is caught up instead.
READ_POSITIONS_MAX = 1_000
REPLAY_POSITIONS_MAX = 5_000  # More than that is not read again event by event.
PAUSE_AFTER_ERROR_MS = 1_000
LEASE_MS = 10_000
STEP_MS = 1_000  # A clock that is set by less is only being adjusted.
LEASES = "federation-delivery "


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
    """What this process sends to others. Only the shards that it holds are its business."""

    def __init__(self, clock: Clock, db: Database) -> None:
        self._clock = clock
        self.outbox = Outbox(db)
        self._pauses = Pauses(clock)
        self._sender = Sender(clock, self.outbox, self._pauses)
        self._news = asyncio.Event()
        self._ahead_ms = clock.now_ms() - clock.monotonic_ms()  # The wall clock, of the steady one.
        self._reading = asyncio.Lock()

    # --- what others ask -------------------------------------------------------------------------

    def is_backing_off(self, server_name: str) -> bool:
        """Return whether a server did not answer and is to be left alone for now."""
        return self._pauses.is_backing_off(server_name)

    def note_alive(self, services: Services, server_name: str) -> None:
        """Take notice of a request from a server: if it was left alone, it no longer is.

        Almost always nothing happens.
        """
        if not self._pauses.end_if_alive(server_name):
            return
        now_ms = self._clock.now_ms()
        services.tasks.spawn(
            "server is alive", destinations.mark_due(services.db, server_name, now_ms)
        )
        self._try_now(services, server_name, now_ms)

    def families(self) -> list[Family]:
        """Return figures about the deliveries of this process."""
        all_served = self.outbox.destinations.values()
        behind = sum(destination.behind for destination in all_served)
        servers: dict[str, float] = {
            labels(state="behind"): behind,
            labels(state="served"): len(all_served) - behind,
        }
        return [
            *self._sender.families(),
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
            except DatabaseAway:
                await self._clock.sleep_ms(PAUSE_AFTER_ERROR_MS)
                self._news.set()
            except Exception:
                logger.exception("cannot read what is owed to whom; trying again")
                await self._clock.sleep_ms(PAUSE_AFTER_ERROR_MS)
                self._news.set()

    async def distribute(self, services: Services) -> None:
        """Hand everything in the stream to the destinations that it is owed to."""
        follower, recipients = services.follower, self.outbox.recipients
        async with self._reading:
            while self.outbox.shards and recipients.position < (head := follower.head):
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
            self._clock.call_later_ms(next_ms - self._clock.monotonic_ms(), self._news.set)

    def _hand_out(self, services: Services, share: Share) -> None:
        """Put a share into the queues of its servers."""
        outbox = self.outbox
        first = min(map(position_of, share.pdus), default=None)
        before = outbox.recipients.position if first is None else first - 1
        # A backlog, and receipts that have waited, may be of before what has been served.
        oldest = first if share.is_backlog else min(receipt_positions(share.edus), default=None)
        missed = False
        for name in share.servers:
            if name == services.server_name:
                continue
            destination = outbox.destination(name, before)
            if destination is None:
                continue
            destination.messages_at = max(destination.messages_at, share.messages_at)
            if destination.behind:
                missed = True
                if oldest is not None and oldest <= destination.position:
                    destination.position, destination.is_saved = oldest - 1, False
                continue
            since = max(destination.position, outbox.shards[destination.shard])
            if first is None or first > since or share.is_backlog:
                destination.pdus += share.pdus
            else:  # It is read again: see `_take_over`.
                destination.pdus += [s for s in share.pdus if position_of(s) > since]
            for edu in share.edus:
                destination.edus.pop(edu.subject, None)
                destination.edus[edu.subject] = edu
            if len(destination.pdus) > QUEUE_PDUS_MAX:
                outbox.fall_behind(destination)
            self._sender.wake(services, destination)
        if missed:
            outbox.note_missed(share.pdus)

    async def _skip_to(self, services: Services, head: int) -> None:
        """Let everybody concerned be behind: too much has happened to look at each event."""
        outbox = self.outbox
        after, own = outbox.recipients.position, services.server_name
        newest = await missed.list_rooms_with_events(services.db, after, head)
        await missed.upsert_sent_rooms(services.db, newest)
        for name in await missed.list_servers_of_rooms(services.db, after):
            destination = None if name == own else outbox.destination(name, after)
            if destination is not None:
                outbox.fall_behind(destination)
        outbox.recipients.begin_at(head)
        await outbox.note_messages(outbox.shards)
        await outbox.save_all()
        self._wake_all(services)

    def _try_now(self, services: Services, server_name: str, now_ms: int) -> None:
        destination = self.outbox.destinations.get(server_name)
        if destination is not None:
            destination.retry_at_ms = min(destination.retry_at_ms, now_ms)
            self._sender.wake(services, destination)

    def _wake_all(self, services: Services) -> None:
        for destination in list(self.outbox.destinations.values()):
            self._sender.wake(services, destination)

    # --- which shards are ours -------------------------------------------------------------------

    async def hold_shards(self, services: Services, holder: str) -> None:
        """Take or renew our leases, note how far we are, and try whoever is due.

        To be done every few seconds: a lease lasts `LEASE_MS`.
        """
        outbox, db = self.outbox, services.db
        now_ms = self._clock.now_ms()
        self._follow_clock(now_ms)
        until_ms = now_ms + LEASE_MS
        if outbox.lease_until_ms == 0:
            await destinations.insert_shards(db, SHARDS)
        await jobs.take_lease(db, LEASES + holder, holder, now_ms, until_ms)
        mine = shares_of(holder, await jobs.list_holders(db, LEASES, now_ms))
        surplus = outbox.shards.keys() - mine
        if surplus:
            await self._give_back(services, holder, surplus)
        taken = await destinations.take_shards(db, holder, mine, now_ms, until_ms)
        outbox.lose(outbox.shards.keys() - taken.keys())
        had_lapsed, outbox.lease_until_ms = outbox.lease_until_ms <= now_ms, until_ms
        gained = {shard: at for shard, at in taken.items() if shard not in outbox.shards}
        if gained:
            await self._take_over(services, gained)
        if had_lapsed:
            self._wake_all(services)
        await outbox.save_missed()
        await outbox.save_all()
        await destinations.save_positions(db, holder, outbox.served())
        pause_ms_max = 1_000 * services.config.federation_max_backoff_seconds
        # Some may have begun while all this was done.
        latest_ms = now_ms + LEASE_MS + pause_ms_max
        for name in await destinations.list_due(db, list(outbox.shards), now_ms, latest_ms):
            self._try_now(services, name, now_ms)
        await self._pauses.refresh(db, pause_ms_max)

    def _follow_clock(self, now_ms: int) -> None:
        """Let pauses last as long as they were to, if the wall clock was set meanwhile."""
        ahead_ms = now_ms - self._clock.monotonic_ms()
        step_ms, self._ahead_ms = ahead_ms - self._ahead_ms, ahead_ms
        if abs(step_ms) > STEP_MS:
            for destination in self.outbox.destinations.values():
                if destination.retry_at_ms:
                    destination.retry_at_ms += step_ms
                    destination.is_saved = False

    async def give_back_shards(self, services: Services, holder: str) -> None:
        """Let other processes have our shards at once: this one ends."""
        await self._give_back(services, holder, set(self.outbox.shards))
        await jobs.delete_lease(services.db, LEASES + holder, holder)

    async def _give_back(self, services: Services, holder: str, shards: Collection[int]) -> None:
        served = {shard: at for shard, at in self.outbox.served().items() if shard in shards}
        self.outbox.lose(shards)
        await destinations.save_positions(services.db, holder, served, give_back=True)

    async def _take_over(self, services: Services, gained: Mapping[int, int]) -> None:
        """Begin to serve shards, each from where its last holder left it."""
        outbox = self.outbox
        start = min(gained.values())
        async with self._reading:
            for row in await destinations.list_of_shards(services.db, list(gained), start):
                outbox.destinations[row.server_name] = Destination.of(row)
            position = outbox.recipients.position
            if not outbox.shards:
                outbox.recipients.begin_at(start)
            elif start < position:  # Ours have had what is read again.
                outbox.shards = {s: max(since, position) for s, since in outbox.shards.items()}
                outbox.recipients.begin_at(start)
            outbox.shards |= gained
            await outbox.note_messages(gained)
        self._wake_all(services)
        self._news.set()
