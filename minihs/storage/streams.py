"""Following the stream: how a process sees what any process has committed (D1).

The follower keeps a window of the newest items, in memory, in commit order. A commit of this
process is handed over directly; those of others are announced by NOTIFY and read from the tables; a
poll covers lost notifications. Whoever has seen `head` has seen everything up to it. What is older
than `floor` must be asked of the database.

Subscribers are called with every run of new items, synchronously and in order, so that whatever
they derive from the stream is true as of `head` at any time.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from minihs.base.errors import Unavailable
from minihs.base.sharing import SharedWork
from minihs.storage.database import close
from minihs.storage.event_store import StoredEvent
from minihs.storage.sessions import LOGOUT_CHANNEL
from minihs.storage.sql import statement
from minihs.storage.stream_reads import (
    FETCH_REDACTED,
    LIST_EVENTS,
    Positioned,
    StreamItem,
    list_unpurged_stays,
    read_rows,
)
from minihs.storage.stream_rows import PurgedRoom, StayRedaction, StickyEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from minihs.base.clock import Clock
    from minihs.base.tasks import TaskOwner
    from minihs.storage.database import Database
    from minihs.storage.event_store import EventStore

logger = logging.getLogger(__name__)


CHANNEL = "minihs"
WINDOW_ITEMS_MAX = 6_000
POLL_MS = 2_000
RECONNECT_MS = 500
SEEN_S_MAX = 30

FETCH_POSITION = statement("streams.fetch_position", "SELECT position FROM stream")

PROBE = statement(
    "streams.probe",
    "SELECT position, current_setting('transaction_read_only') = 'on' FROM stream",
)


class StreamFollower:
    """The window of the stream that this process holds in memory."""

    def __init__(self, db: Database, events: EventStore, clock: Clock, tasks: TaskOwner) -> None:
        self._db = db
        self._events = events
        self._clock = clock
        self._tasks = tasks
        self.head = 0
        self.floor = 0
        self._window: deque[Positioned] = deque()
        self._rooms: dict[str, deque[Positioned]] = {}
        self._subscribers: list[
            tuple[Callable[[Sequence[Positioned]], None], Callable[[], None]]
        ] = []
        self._on_logout: Callable[[int, str], None] | None = None
        self._on_deaf: Callable[[], None] | None = None
        self._announced = 0
        self._committing = False
        self._begins_anew = False
        self._probes: SharedWork[str, tuple[int, bool]] = SharedWork("probe the database")
        self._behind = asyncio.Event()
        self._reached: list[tuple[int, asyncio.Future[None]]] = []

    async def start(self) -> None:
        """Begin at the stream's present end."""
        self.head = self.floor = await self.fetch_position()
        for stay in await list_unpurged_stays(self._db):
            self._events.note_stay(stay)
        self._tasks.keep("stream listener", self._listen)
        self._tasks.keep("stream follower", self._follow)

    def subscribe(
        self, on_items: Callable[[Sequence[Positioned]], None], on_reset: Callable[[], None]
    ) -> None:
        """Be called with every run of new items; `on_reset` when items were skipped.

        So it is when `on_items` fails: what was derived from the stream is not true any more.
        """
        self._subscribers.append((on_items, on_reset))

    def subscribe_logouts(
        self, on_logout: Callable[[int, str], None], on_deaf: Callable[[], None]
    ) -> None:
        """Be called with each device (its device_nid, and whose it is) that has been logged out.

        `on_deaf` is called whenever it may have been that some were not heard of.
        """
        self._on_logout, self._on_deaf = on_logout, on_deaf

    @property
    def behind(self) -> int:
        """How many positions are known to be committed that have not been seen."""
        return max(self._announced - self.head, 0)

    @property
    def window_items(self) -> int:
        """How many items the window holds."""
        return len(self._window)

    def room_items(self, room_id: str) -> Sequence[Positioned]:
        """Return the window's items of one room, oldest first."""
        return self._rooms.get(room_id, ())

    def items_after(self, position: int) -> list[StreamItem]:
        """Return the window's items with a higher position, oldest first."""
        found: list[StreamItem] = []
        for at, item in reversed(self._window):
            if at <= position:
                break
            found.append(item)
        found.reverse()
        return found

    async def between(self, after: int, upto: int) -> list[Positioned]:
        """Return the items after a position, up to another that has been seen, oldest first.

        Of rows that were written again since, what is older than the window has the newest only.
        """
        if after < self.floor:
            return await self._read(after, upto)
        found: list[Positioned] = []
        for positioned in reversed(self._window):
            if positioned[0] <= after:
                break
            if positioned[0] <= upto:
                found.append(positioned)
        found.reverse()
        return found

    async def fetch_position(self) -> int:
        """Return the last position committed by any process."""
        return int(str(await self._db.fetchval(FETCH_POSITION)))

    async def probe(self) -> tuple[int, bool]:
        """Return the last position committed by any process, and whether nothing can be written.

        Who comes while the database is being asked waits for the same answer.
        """
        return await self._probes.run("", self._probe)

    async def _probe(self) -> tuple[int, bool]:
        row = await self._db.fetchrow(PROBE)
        return (0, True) if row is None else (row[0], row[1])

    async def close(self) -> None:
        """Cancel what is under way."""
        await self._probes.close()

    async def wait_for(self, position: int) -> None:
        """Return once everything up to `position` has been seen.

        Raises:
            Unavailable: it is not in a long while.
        """
        if self.head >= position:
            return
        self._announce(position)
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reached.append((position, reached))
        try:
            async with asyncio.timeout(SEEN_S_MAX):
                await reached
        except TimeoutError as error:
            raise Unavailable("What was committed before cannot be seen now.") from error

    def begin_anew(self) -> None:
        """Forget what is in memory, and begin at the stream's end: it may be half true."""
        self._begins_anew = True
        self._behind.set()

    def commit_begins(self) -> None:
        """Note that this process is committing: what is announced meanwhile may be its own."""
        self._committing = True

    def commit_ends(self) -> None:
        """Note the end of a commit; catch up if others committed as well."""
        self._committing = False
        if self._announced > self.head:
            self._behind.set()

    def offer(self, base: int, last: int, items: Sequence[Positioned]) -> None:
        """Take a commit of this process: positions after `base`, up to `last`."""
        if base == self.head and not self._begins_anew:
            self._append(items, last)
        else:
            self._announced = max(self._announced, last)

    def _announce(self, position: int) -> None:
        self._announced = max(self._announced, position)
        if position > self.head and not self._committing:
            self._behind.set()

    def _append(self, items: Sequence[Positioned], last: int) -> None:
        for positioned in items:
            self._window.append(positioned)
            room_id = _room_of(positioned[1])
            if room_id:
                self._rooms.setdefault(room_id, deque()).append(positioned)
            if isinstance(positioned[1], StayRedaction):
                self._note_stay(positioned[0], positioned[1])
            elif isinstance(positioned[1], StickyEvent):
                self._events.note_accepted(positioned[1].event_id)
            elif isinstance(positioned[1], PurgedRoom):
                self._events.drop_room(room_id)
        self.head = last
        while len(self._window) > WINDOW_ITEMS_MAX:
            self._drop_oldest()
        self._hand_out(items)
        if self._reached:
            waiting, self._reached = self._reached, []
            for position, reached in waiting:
                if position > self.head:
                    self._reached.append((position, reached))
                elif not reached.done():
                    reached.set_result(None)

    def _hand_out(self, items: Sequence[Positioned]) -> None:
        for on_items, on_reset in self._subscribers:
            try:
                on_items(items)
            except Exception:
                logger.exception("a reader of the stream has failed; it begins anew")
                on_reset()

    def _drop_oldest(self) -> None:
        """Let the window's oldest item go: from now on it must be asked of the database."""
        self.floor, item = self._window.popleft()
        room_id = _room_of(item)
        if room_id:
            room = self._rooms[room_id]
            room.popleft()
            if not room:
                del self._rooms[room_id]

    def _note_stay(self, position: int, stay: StayRedaction) -> None:
        """Redact what of a stay is in memory, here or in the cache (MSC4293)."""
        items = (item for _, item in self.room_items(stay.room_id))
        window = [item for item in items if isinstance(item, StoredEvent)]
        self._events.note_stay(stay if stay.upto else replace(stay, upto=position), window)

    async def _follow(self) -> None:
        """Catch up whenever there is something to catch up on."""
        while True:
            await self._behind.wait()
            self._behind.clear()
            try:
                await self._catch_up()
            except Unavailable:
                await self._clock.sleep_ms(RECONNECT_MS)
                self._behind.set()
            except Exception:  # Something in it cannot be read: whoever needs it asks for it.
                logger.exception("cannot follow the stream; beginning anew at its end")
                self.begin_anew()
                await self._clock.sleep_ms(RECONNECT_MS)

    async def _catch_up(self) -> None:
        upto = await self.fetch_position()
        after = self.head
        if upto <= after and not self._begins_anew:
            return
        if upto - after > WINDOW_ITEMS_MAX or self._begins_anew:
            stays = await list_unpurged_stays(self._db)
            if self.head == after:
                self._begins_anew = False
                self._reset(upto)
                for stay in stays:  # Before anybody reads an event of theirs.
                    self._events.note_stay(stay)
        else:
            items = await self._read(after, upto)
            if self.head == after:
                self._append(items, upto)
        if self.head < upto:
            self._behind.set()  # A commit of our own came in between: begin again after it.

    async def _read(self, after: int, upto: int) -> list[Positioned]:
        """Read the items of a range of positions from the tables."""
        items: list[Positioned] = []
        for stored in self._events.from_rows(await self._db.fetch(LIST_EVENTS, after, upto)):
            self._events.remember(stored)
            items.append((stored.position or 0, stored))
            if stored.event.redacts is not None and stored.event.type == "m.room.redaction":
                await self._note_redaction(stored)
        items += await read_rows(self._db, after, upto)  # An event comes before its membership.
        items.sort(key=lambda positioned: positioned[0])
        return items

    async def _note_redaction(self, stored: StoredEvent) -> None:
        row = await self._db.fetchrow(FETCH_REDACTED, stored.event_id, stored.event.redacts)
        if row is not None:
            self._events.note_redaction(row[0], stored.event_id)

    def _reset(self, position: int) -> None:
        """Begin anew at `position`: too much was missed to read it all."""
        self._window.clear()
        self._rooms.clear()
        self._events.drop_committed()  # They may have been redacted meanwhile.
        self.head = self.floor = position
        for _, on_reset in self._subscribers:
            on_reset()
        self._append((), position)

    async def _listen(self) -> None:
        """Hear notifications, on a connection of its own, and poll in case one was lost."""
        connection = await self._db.dedicated()
        try:
            with self._db.errors_told():
                await connection.add_listener(CHANNEL, self._heard)
                await connection.add_listener(LOGOUT_CHANNEL, self._heard_logout)
                self._announce(int(await connection.fetchval(FETCH_POSITION)))
                if self._on_deaf is not None:
                    self._on_deaf()
                while True:
                    self._announce(int(await connection.fetchval(FETCH_POSITION)))
                    await self._clock.sleep_ms(POLL_MS)
        finally:
            await close(connection)

    def _heard(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        self._announce(int(str(payload)))

    def _heard_logout(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        if self._on_logout is not None:
            device_nid, _, user_id = str(payload).partition(" ")
            self._on_logout(int(device_nid), user_id)


def _room_of(item: StreamItem) -> str:
    """Return the room that an item is about; empty for global account data."""
    if isinstance(item, StoredEvent):
        return item.event.room_id
    return item.room_id
