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
import contextlib
import logging
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import asyncpg

from minihs.storage.event_store import COLUMNS, StoredEvent
from minihs.storage.sql import statement
from minihs.storage.stream_rows import (
    PRESENCE_COLUMNS,
    AccountDataWrite,
    DelayedEventOutcome,
    DeviceListChange,
    ForgottenRoom,
    Membership,
    PresenceWrite,
    PurgedRoom,
    ReadRow,
    ReceiptWrite,
    StayRedaction,
    StickyEvent,
    ToDeviceNews,
    TypingWrite,
    UnignoredUser,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from minihs.base.clock import Clock
    from minihs.base.tasks import TaskOwner
    from minihs.storage.database import Database, Row
    from minihs.storage.event_store import EventStore

logger = logging.getLogger(__name__)

StreamItem = StoredEvent | Membership | ReadRow
Positioned = tuple[int, StreamItem]

CHANNEL = "minihs"
WINDOW_ITEMS_MAX = 6_000
POLL_MS = 2_000
RECONNECT_MS = 500

FETCH_POSITION = statement("streams.fetch_position", "SELECT position FROM stream")

# Unique index events_position_key.
LIST_EVENTS = statement(
    "streams.list_events",
    f"""
    SELECT {COLUMNS}
    FROM events e
    JOIN rooms r ON r.room_nid = e.room_nid
    WHERE e.position > $1 AND e.position <= $2
    ORDER BY e.position
    """,  # noqa: S608  # a constant
)

# Found through the events that changed them. Those of other servers' users concern nobody's view.
LIST_MEMBERSHIPS = statement(
    "streams.list_memberships",
    """
    SELECT
      m.position, r.room_id, m.user_id, m.membership, m.event_id, m.sender, m.local, m.forgotten,
      m.display_name, m.avatar_url, m.joined_position
    FROM events e
    JOIN rooms r ON r.room_nid = e.room_nid
    JOIN memberships m ON m.room_nid = e.room_nid AND m.position = e.position
    WHERE e.position > $1 AND e.position <= $2 AND e.key_nid IS NOT NULL AND m.local
    """,
)

# Index account_data_position.
LIST_ACCOUNT_DATA = statement(
    "streams.list_account_data",
    """
    SELECT position, user_id, room_id, type, json
    FROM account_data
    WHERE position > $1 AND position <= $2
    """,
)

# Index receipts_position.
LIST_RECEIPTS = statement(
    "streams.list_receipts",
    """
    SELECT t.position, r.room_id, t.user_id, t.receipt_type, t.thread_id, t.event_id, t.ts_ms
    FROM receipts t
    JOIN rooms r ON r.room_nid = t.room_nid
    WHERE t.position > $1 AND t.position <= $2
    """,
)

# Index sticky_events_position.
LIST_STICKY_EVENTS = statement(
    "streams.list_sticky_events",
    """
    SELECT s.position, r.room_id, s.event_id, s.sender, s.until_ms
    FROM sticky_events s
    JOIN rooms r ON r.room_nid = s.room_nid
    WHERE s.position > $1 AND s.position <= $2
    """,
)

# Index unignored_position.
LIST_UNIGNORED = statement(
    "streams.list_unignored",
    """
    SELECT position, user_id, sender, until_ms
    FROM unignored
    WHERE position > $1 AND position <= $2
    """,
)

# Index memberships_forgotten.
LIST_FORGOTTEN = statement(
    "streams.list_forgotten",
    """
    SELECT m.forgotten_position, m.user_id, r.room_id
    FROM memberships m
    JOIN rooms r ON r.room_nid = m.room_nid
    WHERE m.forgotten AND m.forgotten_position > $1 AND m.forgotten_position <= $2
    """,
)

# Index delayed_events_position.
LIST_OUTCOMES = statement(
    "streams.list_outcomes",
    """
    SELECT position, user_id, delay_id, due_ms, finalised_ms, event_id, error
    FROM delayed_events
    WHERE position > $1 AND position <= $2
    """,
)

# Index room_purges_position.
LIST_PURGED = statement(
    "streams.list_purged",
    """
    SELECT p.position, r.room_id
    FROM room_purges p
    JOIN rooms r ON r.room_nid = p.room_nid
    WHERE p.position > $1 AND p.position <= $2
    """,
)

# Index redacted_stays_position.
LIST_STAY_REDACTIONS = statement(
    "streams.list_stay_redactions",
    """
    SELECT
      s.position, r.room_id, s.user_id, s.first_join_id, s.because_id, s.join_ids,
      s.spared_ids, s.created_ms, s.upto, s.purged
    FROM redacted_stays s
    JOIN rooms r ON r.room_nid = s.room_nid
    WHERE s.position > $1 AND s.position <= $2
    """,
)

# Index redacted_stays_unpurged.
LIST_UNPURGED_STAYS = statement(
    "streams.list_unpurged_stays",
    """
    SELECT
      r.room_id, s.user_id, s.first_join_id, s.because_id, s.join_ids, s.spared_ids, s.created_ms,
      s.upto, s.purged
    FROM redacted_stays s
    JOIN rooms r ON r.room_nid = s.room_nid
    WHERE NOT s.purged
    """,
)

# Index typing_position.
LIST_TYPING = statement(
    "streams.list_typing",
    """
    SELECT t.position, r.room_id, t.user_ids, t.expires_ms
    FROM typing t
    JOIN rooms r ON r.room_nid = t.room_nid
    WHERE t.position > $1 AND t.position <= $2
    """,
)


# Indexes presence_position and memberships_user_id.
LIST_PRESENCE = statement(
    "streams.list_presence",
    f"""
    SELECT
      p.position, {PRESENCE_COLUMNS},
      ARRAY(
        SELECT r.room_id
        FROM memberships m
        JOIN rooms r ON r.room_nid = m.room_nid
        WHERE m.user_id = p.user_id AND m.membership = 'join'
      )
    FROM presence p
    WHERE p.position > $1 AND p.position <= $2
    """,  # noqa: S608  # a constant
)

# Indexes device_lists_position and memberships_user_id.
LIST_DEVICE_LISTS = statement(
    "streams.list_device_lists",
    """
    SELECT
      d.position, d.user_id,
      ARRAY(
        SELECT r.room_id
        FROM memberships m
        JOIN rooms r ON r.room_nid = m.room_nid
        WHERE m.user_id = d.user_id AND m.membership = 'join'
      )
    FROM device_lists d
    WHERE d.position > $1 AND d.position <= $2
    """,
)

ROWS: Final[tuple[tuple[str, Callable[..., StreamItem]], ...]] = (
    (LIST_MEMBERSHIPS, Membership),
    (LIST_ACCOUNT_DATA, AccountDataWrite),
    (LIST_RECEIPTS, ReceiptWrite),
    (LIST_TYPING, TypingWrite),
    (LIST_STICKY_EVENTS, StickyEvent),
    (LIST_UNIGNORED, UnignoredUser),
    (LIST_STAY_REDACTIONS, StayRedaction.of_row),
    (LIST_FORGOTTEN, ForgottenRoom),
    (LIST_OUTCOMES, DelayedEventOutcome),
    (LIST_PURGED, PurgedRoom),
    (LIST_PRESENCE, PresenceWrite),
    (LIST_DEVICE_LISTS, DeviceListChange),
)
"""Tables of the stream that have a row for each item: how to read them, and what they make."""

# Indexes to_device_messages_position and to_device_outbox_position.
LIST_TO_DEVICE = statement(
    "streams.list_to_device",
    """
    SELECT m.position, d.user_id, m.device_nid, NULL AS server_name
    FROM to_device_messages m
    JOIN devices d ON d.device_nid = m.device_nid
    WHERE m.position > $1 AND m.position <= $2
    UNION ALL
    SELECT position, NULL, NULL, server_name
    FROM to_device_outbox
    WHERE position > $1 AND position <= $2
    """,
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
        self._announced = 0
        self._committing = False
        self._behind = asyncio.Event()
        self._reached: list[tuple[int, asyncio.Future[None]]] = []

    async def start(self) -> None:
        """Begin at the stream's present end."""
        self.head = self.floor = await self.fetch_position()
        for stay in await self._list_unpurged_stays():
            self._events.note_stay(stay)
        self._tasks.spawn("stream-listener", self._listen())
        self._tasks.spawn("stream-follower", self._follow())

    def subscribe(
        self, on_items: Callable[[Sequence[Positioned]], None], on_reset: Callable[[], None]
    ) -> None:
        """Be called with every run of new items; `on_reset` when items were skipped.

        So it is when `on_items` fails: what was derived from the stream is not true any more.
        """
        self._subscribers.append((on_items, on_reset))

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

    async def wait_for(self, position: int) -> None:
        """Return once everything up to `position` has been seen."""
        if self.head >= position:
            return
        self._announce(position)
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reached.append((position, reached))
        await reached

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
        if base == self.head:
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

    async def _list_unpurged_stays(self) -> list[StayRedaction]:
        """Return the stays whose events do not say yet that they are redacted."""
        return [StayRedaction.of_row(*row) for row in await self._db.fetch(LIST_UNPURGED_STAYS)]

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
            except (asyncpg.PostgresError, OSError, Exception):
                logger.warning("cannot follow the stream; trying again", exc_info=True)
                await self._clock.sleep_ms(RECONNECT_MS)
                self._behind.set()

    async def _catch_up(self) -> None:
        upto = await self.fetch_position()
        after = self.head
        if upto <= after:
            return
        if upto - after > WINDOW_ITEMS_MAX:
            stays = await self._list_unpurged_stays()
            if self.head == after:
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
        fetch = self._db.fetch
        items: list[Positioned] = []
        for stored in self._events.from_rows(await fetch(LIST_EVENTS, after, upto)):
            self._events.remember(stored)
            items.append((stored.position or 0, stored))
            if stored.event.redacts is not None and stored.event.type == "m.room.redaction":
                await self._note_redaction(stored)
        for text, make in ROWS:  # An event comes before its membership.
            items += [(row[0], make(*tuple(row)[1:])) for row in await fetch(text, after, upto)]
        items += _to_device_news(await fetch(LIST_TO_DEVICE, after, upto))
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
        """Keep a connection that hears notifications, and poll in case one was lost."""
        while True:
            connection: asyncpg.Connection | None = None
            try:
                connection = await self._db.dedicated()
                await connection.add_listener(CHANNEL, self._heard)
                while not connection.is_closed():
                    self._announce(int(await connection.fetchval(FETCH_POSITION)))
                    await self._clock.sleep_ms(POLL_MS)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, Exception):
                logger.warning("lost the connection that listens; trying again", exc_info=True)
                await self._clock.sleep_ms(RECONNECT_MS)
            finally:
                if connection is not None:
                    with contextlib.suppress(Exception):
                        await connection.close(timeout=1)

    def _heard(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        self._announce(int(str(payload)))


# Primary key of redactions: whether an accepted redaction names its target there.
FETCH_REDACTED = statement(
    "streams.fetch_redacted",
    "SELECT event_id FROM redactions WHERE redaction_id = $1 AND event_id = $2",
)


def _to_device_news(rows: Iterable[Row]) -> list[Positioned]:
    """Return messages to devices: whatever was sent at once has one position."""
    devices: dict[int, list[tuple[str, int]]] = {}
    servers: dict[int, list[str]] = {}
    for position, user_id, device_nid, server_name in rows:
        if server_name is None:
            devices.setdefault(position, []).append((user_id, device_nid))
        else:
            servers.setdefault(position, []).append(server_name)
    return [
        (p, ToDeviceNews(tuple(devices.get(p, ())), tuple(servers.get(p, ()))))
        for p in {**devices, **servers}
    ]


def _room_of(item: StreamItem) -> str:
    """Return the room that an item is about; empty for global account data."""
    if isinstance(item, StoredEvent):
        return item.event.room_id
    return item.room_id
