"""Group commit: one writer in each process, one transaction for whatever is ready (D2).

Writers hand in units: the events of one room with everything they cause, or rows of other tables.
While one batch is being flushed the next one gathers. Usually a batch is a single statement. When
that finds a room moved (another process was faster) or a transaction id used, the batch is written
again in a transaction that locks its rooms and leaves the losers out; they hear `Conflict` and
decide again.

Events of one room may be chained: a unit can be built upon another that is still waiting. A
`RoomCursor` ties them together: when a unit fails, its cursor's generation moves on and those
chained to it fail too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import asyncpg

from minihs.base.errors import DatabaseAway, DatabaseBusy, Unavailable
from minihs.base.metrics import Histogram, stopwatch
from minihs.storage import directory, event_writes, rooms, stream_writes
from minihs.storage.database import close, is_away
from minihs.storage.event_writes import EventBatch, EventWrite, RoomWrite
from minihs.storage.state import needs_rebase
from minihs.storage.stream_rows import as_read

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minihs.base.tasks import TaskOwner
    from minihs.protocol.identifiers import StateKey
    from minihs.storage.database import Database
    from minihs.storage.event_store import EventStore
    from minihs.storage.state import StateStore
    from minihs.storage.stream_reads import StreamItem
    from minihs.storage.stream_rows import StreamRow
    from minihs.storage.streams import StreamFollower


logger = logging.getLogger(__name__)


class Conflict(Exception):
    """What a unit was built upon has changed: read again and decide again."""


UNITS_PER_BATCH = 256
DEADLOCKS_MAX = 5
REFUSED_S = 10

# What makes it necessary to look at units one by one: another writer came first, or crosswise.
EXPECTED = (asyncpg.UniqueViolationError, asyncpg.DeadlockDetectedError, Conflict)
# An event has got a number, or a room a list of who types, by another process: see event_writes
# and stream_writes.
OVERTAKEN = asyncpg.DivisionByZeroError


@dataclass(slots=True, eq=False)
class RoomCursor:
    """The version of a room that this process knows to be committed; None: it is being made.

    What made it so lies at `position` in the stream, or before.
    """

    room_nid: int
    version: int | None
    position: int = 0
    generation: int = 0
    last: asyncio.Future[int] | None = field(default=None, repr=False)

    @property
    def pending(self) -> asyncio.Future[int] | None:
        """The newest commit that is waiting or under way, or None."""
        return self.last if self.last is not None and not self.last.done() else None


@dataclass(slots=True, eq=False)
class _Unit:
    events: Sequence[EventWrite]
    room: RoomWrite | None
    cursor: RoomCursor | None
    generation: int
    rows: Sequence[StreamRow]
    done: asyncio.Future[int] = field(repr=False)


@dataclass(slots=True)
class CommitCounts:
    """What a committer has done since it began. `conflicts` and `failures` count units."""

    commits: int = 0
    events: int = 0
    rows: int = 0
    conflicts: int = 0
    failures: int = 0
    seconds: Histogram = field(default_factory=Histogram)


class GroupCommitter:
    """The process's only writer of the stream."""

    def __init__(
        self,
        db: Database,
        states: StateStore,
        events: EventStore,
        follower: StreamFollower,
        tasks: TaskOwner,
    ) -> None:
        self._db = db
        self._states = states
        self._events = events
        self._follower = follower
        self._tasks = tasks
        self._connection: asyncpg.Connection | None = None
        self._waiting: list[_Unit] = []
        self._ready = asyncio.Event()
        self._is_down = False
        self._refused_at: float | None = None
        self.counts = CommitCounts()

    def start(self) -> None:
        """Begin to commit."""
        self._tasks.keep("group committer", self._run)

    @property
    def refuses(self) -> bool:
        """Whether the database has just taken no commit, and has taken none since."""
        return self._refused_at is not None and stopwatch() - self._refused_at < REFUSED_S

    @property
    def waiting(self) -> int:
        """How many units wait for the next batch."""
        return len(self._waiting)

    def commit_events(
        self,
        events: Sequence[EventWrite],
        room: RoomWrite,
        cursor: RoomCursor,
        generation: int,
        rows: Sequence[StreamRow] = (),
    ) -> asyncio.Future[int]:
        """Queue events of one room, all or none; the answer is the position of the last one.

        `generation` is the cursor's at the time when the events were built. `rows` come with them.

        Raises:
            Conflict: the room has moved, or a transaction id (or the new room's alias) has been
                used already.
            Unavailable: the database did not answer: the events may or may not be there.
        """
        return self._submit(events, room, cursor, generation, rows)

    async def commit_outside_event(self, event: EventWrite, rows: Sequence[StreamRow] = ()) -> int:
        """Commit an event that has no place in its room, for its effects, with rows."""
        return await self._submit([event], None, None, 0, rows)

    async def commit_rows(self, rows: Sequence[StreamRow]) -> int:
        """Commit rows of other tables, all or none; return the position of the last one."""
        return await self._submit((), None, None, 0, rows)

    def _submit(
        self,
        events: Sequence[EventWrite],
        room: RoomWrite | None,
        cursor: RoomCursor | None,
        generation: int,
        rows: Sequence[StreamRow],
    ) -> asyncio.Future[int]:
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if self._is_down:
            done.set_exception(Unavailable("Nothing can be committed now."))
            return done
        self._waiting.append(_Unit(events, room, cursor, generation, rows, done))
        if cursor is not None:
            cursor.last = done
        self._ready.set()
        return done

    async def _run(self) -> None:
        self._is_down = False
        try:
            while True:
                await self._ready.wait()
                await asyncio.sleep(0)  # noqa: TID251  # lets the requests of this turn join
                units = self._waiting[: _batch_length(self._waiting)]
                del self._waiting[: len(units)]
                if not self._waiting:
                    self._ready.clear()
                try:
                    await self._commit(units)
                except Exception:
                    # It may be in the database, and what is in memory may be half true.
                    logger.exception("a commit could not be followed up; it will be read anew")
                    self._disconnect()
                    self._fail(units, Unavailable("Whether it was committed is not known."), None)
                    self._follower.begin_anew()
        except asyncio.CancelledError:
            for unit in self._waiting:
                unit.done.cancel()
            raise
        finally:
            self._is_down = True
            self._fail(self._waiting, Unavailable("Nothing can be committed now."), None)
            self._waiting.clear()
            self._ready.clear()
            if self._connection is not None:
                await close(self._connection)

    async def _commit(self, units: Sequence[_Unit]) -> None:
        """Commit a batch and answer everyone in it; failures go to those who wait."""
        cursors: dict[int, RoomCursor] = {}
        units = [unit for unit in units if not self._fails_already(unit, cursors)]
        if not units:
            return
        apart, began = False, stopwatch()
        self._follower.commit_begins()
        try:
            winners, base = await self._write(units)
        except asyncio.CancelledError:
            for unit in units:
                unit.done.cancel()
            raise
        except Exception as error:
            if isinstance(error, DatabaseBusy):
                self._fail(units, error, None)  # It answers, and may take the next batch.
            elif is_away(error) or isinstance(error, Unavailable):
                self._disconnect()
                self._refused_at = stopwatch()
                if isinstance(error, Unavailable):
                    self._fail(units, error, error.__cause__)
                else:
                    self._db.note_away(error)
                    self._fail(units, DatabaseAway(), error)
            elif len(units) == 1:
                self._fail(units, Conflict() if isinstance(error, OVERTAKEN) else error, None)
            else:  # Whoever is to blame for it shall suffer alone.
                apart = True
        else:
            self.counts.seconds.observe(stopwatch() - began)
            self._refused_at = None
            self._succeed(winners, base)
            self._fail([unit for unit in units if unit not in winners], Conflict(), None)
        finally:
            self._follower.commit_ends()
        if apart:
            for unit in units:
                await self._commit([unit])

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    def _fails_already(self, unit: _Unit, cursors: dict[int, RoomCursor]) -> bool:
        """Return whether a unit was built upon what failed, or beside others of its room."""
        cursor = unit.cursor
        if cursor is None:
            return False
        stands = cursor.generation == unit.generation
        if stands and cursors.setdefault(cursor.room_nid, cursor) is cursor:
            return False
        self._fail([unit], Conflict(), None)
        return True

    def _fail(self, units: Sequence[_Unit], error: Exception, cause: BaseException | None) -> None:
        error.__cause__ = cause
        if isinstance(error, Conflict):
            self.counts.conflicts += len(units)
        else:
            self.counts.failures += len(units)
        for unit in units:
            if unit.cursor is not None:
                unit.cursor.generation += 1
            for write in unit.events:
                self._events.forget(write.stored.event_id)
            if not unit.done.done():
                unit.done.set_exception(error)
                unit.done.exception()  # Seen, also when who waited has gone.

    async def _write(self, units: Sequence[_Unit]) -> tuple[Sequence[_Unit], int]:
        """Write what can be written; return it, and the position before its first event."""
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._db.dedicated()
        connection = self._connection
        keys = [w.stored.event.key for u in units for w in u.events if w.stored.event.is_state]
        keys += [k for u in units for w in u.events for row in w.states for k in row.changes]
        # Over its own connection: those of the pool may be held by who waits for this commit.
        key_nids = await self._states.key_nids(connection, keys) if keys else {}
        batch, rows = _gather(units)
        base: int | None = None
        with contextlib.suppress(*EXPECTED):
            if rows:
                async with connection.transaction():
                    base = await _write_all(connection, batch, key_nids, rows)
            else:
                base = await event_writes.write_batch(connection, batch, key_nids, 0)
        if base is not None:
            return units, base
        for _ in range(DEADLOCKS_MAX):
            with contextlib.suppress(asyncpg.DeadlockDetectedError):
                return await _write_without_losers(connection, units, key_nids)
        raise DatabaseBusy

    def _succeed(self, units: Sequence[_Unit], base: int) -> None:
        """Note what has been committed, let readers know, and answer the writers."""
        if not units:
            return
        position = base
        items: list[tuple[int, StreamItem]] = []
        for write in (w for u in units for w in u.events):
            position += 1
            items += self._take_place(write, position)
        for row in (r for u in units for r in u.rows):
            position += 1
            items.append((position, as_read(row)))
        self.counts.commits += 1
        self.counts.events += sum(len(unit.events) for unit in units)
        self.counts.rows += sum(len(unit.rows) for unit in units)
        bumped = {u.cursor for u in units if u.cursor is not None}
        for cursor in bumped:
            cursor.version, cursor.position = (cursor.version or 0) + 1, position
        self._follower.offer(base, position, items)
        for unit in units:
            if not unit.done.done():
                unit.done.set_result(position)
            for write in unit.events:
                for state in filter(needs_rebase, write.states):
                    self._tasks.spawn("rebase-state", self._states.rebase(state))

    def _take_place(self, write: EventWrite, position: int) -> list[tuple[int, StreamItem]]:
        """Give a committed event its position; return what it is for readers of the stream."""
        stored = write.stored
        stored.position = position
        if stored.state_before is not None:
            stored.order = (position, 0)
        self._events.remember(stored)
        if write.redacts is not None:
            self._events.note_redaction(write.redacts, stored.event_id)
        items: list[tuple[int, StreamItem]] = [(position, stored)]
        items += [(position, m) for m in write.memberships if m.local]
        if write.sticky is not None and write.sticky.waits_for is None:
            items.append((position, write.sticky))
        return items


def _batch_length(units: Sequence[_Unit]) -> int:
    """Return how many units make the next batch.

    In one batch nobody's membership of a room changes twice: its row would know only the second
    change, and not that somebody who is joined as before was away in between.
    """
    changed: set[tuple[str, str]] = set()
    for length, unit in enumerate(units[:UNITS_PER_BATCH]):
        of_unit = {(m.room_id, m.user_id) for w in unit.events for m in w.memberships}
        if of_unit:
            if not changed.isdisjoint(of_unit):
                return length
            changed |= of_unit
    return min(len(units), UNITS_PER_BATCH)


async def _write_without_losers(
    connection: asyncpg.Connection, units: Sequence[_Unit], key_nids: Mapping[StateKey, int]
) -> tuple[Sequence[_Unit], int]:
    """Write those units that nothing stands in the way of, their rooms locked; see `_write`."""
    async with connection.transaction():
        nids = {u.room.room_nid for u in units if u.room is not None}
        versions = await event_writes.lock_rooms(connection, sorted(nids))
        writes = [w for u in units for w in u.events]
        used = await event_writes.find_transactions(connection, writes)
        used |= await event_writes.find_superseded(connection, writes)
        taken = await _taken_names(connection, [u.room for u in units if u.room is not None])
        winners = _winners(units, versions, used, taken)
        if not winners:
            return (), 0
        batch, rows = _gather(winners)
        return winners, await _write_all(connection, batch, key_nids, rows)


async def _taken_names(connection: asyncpg.Connection, writes: Sequence[RoomWrite]) -> set[str]:
    """Return which ids and aliases of rooms that are made now belong to other rooms."""
    made = [room for room in writes if room.expected_version is None]
    if not made:
        return set()
    aliases = [room.alias[0] for room in made if room.alias is not None]
    return {
        *await rooms.list_current_states(connection, [room.room_id for room in made]),
        *await directory.list_taken_aliases(connection, aliases),
    }


def _winners(
    units: Sequence[_Unit], versions: Mapping[int, int], used: set[int], taken: set[str]
) -> list[_Unit]:
    """Return the units whose rooms have not moved and whose transaction ids and names are free.

    `used` are event_nids of events that were sent already, or must not be sent any more. Where one
    unit of a room loses, those after it were built upon it.
    """
    lost: set[int] = set()
    winners: list[_Unit] = []
    begun: set[tuple[object, ...]] = set()
    for unit in units:
        if unit.room is None or unit.cursor is None:
            winners.append(unit)
            continue
        nid = unit.room.room_nid
        moved = unit.cursor.version is not None and versions.get(nid) != unit.cursor.version
        alias = unit.room.alias[0] if unit.room.alias is not None else None
        is_made_twice = unit.room.expected_version is None and unit.room.room_id in taken
        transactions = {t for w in unit.events if (t := w.transaction) is not None}
        if (
            nid in lost
            or moved
            or is_made_twice
            or alias in taken
            or transactions & begun
            or any(w.stored.event_nid in used for w in unit.events)
        ):
            lost.add(nid)
            continue
        winners.append(unit)
        begun |= transactions
        if alias is not None:
            taken.add(alias)
    return winners


async def _write_all(
    connection: asyncpg.Connection,
    batch: EventBatch,
    key_nids: Mapping[StateKey, int],
    rows: Sequence[StreamRow],
) -> int:
    """Write events and rows inside a transaction that is open; return the base position.

    Raises:
        Conflict: a room has moved.
    """
    base = await event_writes.write_batch(connection, batch, key_nids, len(rows))
    if base is None:
        raise Conflict
    start = base + len(batch.events) + 1
    await stream_writes.write_rows(connection, list(enumerate(rows, start)))
    return base


def _gather(units: Sequence[_Unit]) -> tuple[EventBatch, list[StreamRow]]:
    """Return the events of all units as one batch, and their other rows."""
    batch = EventBatch()
    rows: list[StreamRow] = []
    by_id: dict[str, EventWrite] = {}
    for unit in units:
        if unit.room is not None and unit.cursor is not None:
            unit.room.expected_version = unit.cursor.version
            # The last unit of a room has its last word.
            batch.rooms[unit.room.room_nid] = unit.room
        for write in unit.events:
            by_id[write.stored.event_id] = write
            if write.redacts in by_id:
                by_id[write.redacts].stored.redacted_by = write.stored.event_id
        batch.events += unit.events
        rows += unit.rows
    return batch, rows
