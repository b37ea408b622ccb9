"""The outbox: what this process owes to whom, and what of that is written down.

Spec: server-server-api#transactions
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from minihs.base.batching import Batcher
from minihs.services.federation.destination import Destination, position_of, shard_of
from minihs.services.federation.recipients import Recipients
from minihs.storage import destinations, missed, to_device

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from minihs.storage.database import Database
    from minihs.storage.destinations import DestinationRow
    from minihs.storage.event_store import StoredEvent

logger = logging.getLogger(__name__)


class Outbox:
    """The destinations in the shards that this process holds, and what they are owed.

    `shards` has the position since which each is ours to serve. They are served for as long as the
    lease lasts, until `lease_until_ms`.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self.recipients = Recipients()
        self.shards: dict[int, int] = {}
        self.lease_until_ms = 0
        self.destinations: dict[str, Destination] = {}
        self._missed: dict[str, int] = {}  # Rooms in which somebody behind is owed the newest.
        self._missed_from: int | None = None
        self._rows: Batcher[DestinationRow, bool] = Batcher(lambda rows: _write(db, rows))

    def destination(self, name: str, position: int) -> Destination | None:
        """Return a destination, if it is our business; a new one has been served to a position."""
        destination = self.destinations.get(name)
        if destination is None:
            shard = shard_of(name)
            if shard not in self.shards:
                return None
            destination = Destination(name, shard, max(position, self.shards[shard]))
            self.destinations[name] = destination
        return destination

    def is_ours(self, destination: Destination) -> bool:
        """Return whether a destination is still our business."""
        return self.destinations.get(destination.name) is destination

    def lose(self, shards: Collection[int]) -> None:
        """Forget shards that are no longer ours; what is under way is no longer our business."""
        for shard in list(shards):
            del self.shards[shard]
        if shards:
            self.destinations = {
                name: d for name, d in self.destinations.items() if d.shard in self.shards
            }

    def served(self) -> dict[int, int]:
        """Return, for each of our shards, up to where nothing would be missed by reading on."""
        everywhere = self.recipients.position
        if self._missed_from is not None:
            everywhere = min(everywhere, self._missed_from - 1)
        served = {shard: max(everywhere, since) for shard, since in self.shards.items()}
        for destination in self.destinations.values():
            if not destination.behind:
                first = destination.first_owed()
                if first is None:
                    continue
                served[destination.shard] = min(served[destination.shard], first - 1)
            elif not destination.is_saved:
                served[destination.shard] = min(served[destination.shard], destination.position)
        return served

    # --- who is behind ---------------------------------------------------------------------------

    def fall_behind(self, destination: Destination) -> None:
        """Forget a destination's queue: it will be caught up. It must be saved afterwards."""
        if not destination.behind:
            first = destination.first_owed()
            destination.position = self.recipients.position if first is None else first - 1
            destination.behind = True
        sent = destination.under_way.pdus if destination.under_way is not None else ()
        self.note_missed((*sent, *destination.pdus))
        destination.pdus.clear()
        destination.edus.clear()
        destination.is_saved = False

    @property
    def has_unsaved_missed(self) -> bool:
        """Whether something was noted for those who are behind that is not written yet."""
        return bool(self._missed)

    def note_missed(self, pdus: Iterable[StoredEvent]) -> None:
        """Note that there is something in rooms for those who are behind.

        It is written with the next round of the leases, or before somebody is caught up.
        """
        for stored in pdus:
            room_id, position = stored.event.room_id, position_of(stored)
            self._missed[room_id] = max(self._missed.get(room_id, 0), position)
            if self._missed_from is None or position < self._missed_from:
                self._missed_from = position

    async def save_missed(self) -> None:
        """Write what has been noted. Until then no shard's position goes past it."""
        while self._missed:
            noted = dict(self._missed)
            await missed.upsert_sent_rooms(self._db, noted)
            for room_id, position in noted.items():
                if self._missed.get(room_id) == position:
                    del self._missed[room_id]
        self._missed_from = None

    async def note_messages(self, shards: Collection[int]) -> None:
        """Find out who is owed messages to devices, among the destinations of some shards."""
        for name, position in (await to_device.list_servers_owed(self._db)).items():
            destination = self.destination(name, 0) if shard_of(name) in shards else None
            if destination is not None:
                destination.messages_at = max(destination.messages_at, position)

    # --- how far destinations are ----------------------------------------------------------------

    async def save(self, destination: Destination) -> None:
        """Write how far a destination has been served, if that has changed."""
        if not destination.is_saved and self.is_ours(destination):
            destination.is_saved = True
            try:
                await self._rows.load(destination.row)
            except Exception as error:
                destination.is_saved = False  # The next round of the lease tries again.
                logger.warning("cannot note what %s has got: %s", destination.name, error)

    async def save_all(self) -> None:
        """Write how far all have been served."""
        unsaved = [d for d in self.destinations.values() if not d.is_saved]
        await asyncio.gather(*map(self.save, unsaved))


async def _write(db: Database, rows: Sequence[DestinationRow]) -> dict[DestinationRow, bool]:
    """Write many destinations at once; of one, the last word counts."""
    last = {row.server_name: row for row in rows}
    await destinations.upsert_destinations(db, list(last.values()))
    return dict.fromkeys(rows, True)
