"""The head of a room: what its next event is built upon.

Each process keeps heads of the rooms it writes to. A head is never trusted: the commit verifies the
room's version, and when another process was faster the head is dropped and read again (D4). Within
the process, builders take turns on `lock`, and may build upon an event that still waits for its
commit.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from minihs.base.caching import BoundedCache
from minihs.base.turns import Turns
from minihs.protocol.room_versions import ROOM_VERSIONS, RoomVersion
from minihs.storage import rooms
from minihs.storage.group_commit import RoomCursor
from minihs.storage.state import EMPTY_STATE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minihs.protocol.identifiers import EventId, RoomId
    from minihs.protocol.power_levels import PowerLevels
    from minihs.protocol.push_occasions import MemberNames
    from minihs.services.context import Services
    from minihs.storage.event_store import StoredEvent
    from minihs.storage.state import State

AHEAD_MS_MAX = 60_000


@dataclass(slots=True, eq=False)
class RoomHead:
    """A room as the next builder finds it.

    `local_members` maps the user ids of joined local users to their display names in the room;
    `joined_count` counts all joined users. `unsubmitted`: events were put upon it that nobody has
    handed to the committer. `member_names` and `power` are kept for as long as they
    hold.
    """

    room_id: RoomId
    room_version: RoomVersion
    cursor: RoomCursor
    extremities: Sequence[StoredEvent]
    state: State
    main_count: int
    local_members: dict[str, str | None]
    joined_count: int = 0
    generation: int = 0
    unsubmitted: bool = False
    member_names: MemberNames | None = None
    power: tuple[EventId | None, PowerLevels] | None = None

    @property
    def was_overtaken(self) -> bool:
        """Whether something built upon this head was not committed: it is not there any more."""
        return self.cursor.generation != self.generation

    @property
    def is_stale(self) -> bool:
        """Whether something built upon this head was not committed, or was given up."""
        return self.unsubmitted or self.was_overtaken


@dataclass(slots=True, eq=False)
class _Slot:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    head: RoomHead | None = None
    users: int = 0


HEADS_MAX = 5_000
UNREACHED_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Unreached:
    """A server that sends us events, but does not answer: how often in a row, and when last.

    `asked_ms` is by the clock that never steps.
    """

    times: int
    asked_ms: int


class RoomHeads:
    """The heads that this process keeps, and the lock that orders their builders.

    `fetching` are the turns to fetch what a room lacks: one at a time from each server. `unreached`
    are the servers that did not tell what events of theirs follow.
    """

    def __init__(self) -> None:
        self._slots: dict[str, _Slot] = {}
        self._last_creation_ms = 0
        self.fetching: Turns[tuple[str, str]] = Turns()
        self.unreached: BoundedCache[str, Unreached] = BoundedCache(UNREACHED_MAX)

    def creation_ms(self, now_ms: int) -> int:
        """Return when a room is made: no two at the same moment.

        The id of a room may be the hash of its create event (v12), and two rooms of one user that
        are made alike in one millisecond would be the same room.
        """
        ahead_ms = self._last_creation_ms + 1 - now_ms
        # More than that, and the clock has been put back.
        self._last_creation_ms = now_ms + (ahead_ms if 0 < ahead_ms <= AHEAD_MS_MAX else 0)
        return self._last_creation_ms

    def slot(self, room_id: str) -> _Slot:
        """Return the slot of a room, the most recently used last."""
        slot = self._slots.pop(room_id, None) or _Slot()
        self._slots[room_id] = slot
        if len(self._slots) > HEADS_MAX:
            for old_id, old in list(self._slots.items())[: HEADS_MAX // 10]:
                if old.users == 0 and old is not slot:
                    del self._slots[old_id]
        return slot

    def put(self, head: RoomHead) -> None:
        """Keep the head of a room that was just made."""
        self.slot(head.room_id).head = head


class building:  # noqa: N801  # reads as a statement: `async with building(…) as head`
    """Take the room's turn: yields its head, or None when this server does not know the room."""

    __slots__ = ("_room_id", "_services", "_slot")

    def __init__(self, services: Services, room_id: RoomId) -> None:
        self._services = services
        self._room_id = room_id
        self._slot = services.heads.slot(room_id)

    async def __aenter__(self) -> RoomHead | None:
        slot = self._slot
        slot.users += 1
        try:
            await slot.lock.acquire()
        except BaseException:
            slot.users -= 1
            raise
        try:
            if slot.head is None or slot.head.is_stale or not slot.head.extremities:
                slot.head = await load_head(self._services, self._room_id)
        except BaseException:
            await self.__aexit__()
            raise
        return slot.head

    async def __aexit__(self, *_exc: object) -> None:
        self._slot.users -= 1
        self._slot.lock.release()


async def is_confirmed(
    services: Services, head: RoomHead, pending: asyncio.Future[int] | None
) -> bool:
    """Return whether what a builder saw is committed and was the newest; else it is read again.

    A head may be behind what other processes have written, and ahead of what will be committed:
    `pending` is the commit that it was waiting for then. Commits verify the room's version, so one
    that succeeds speaks for what it was built upon.
    """
    if pending is not None:
        await asyncio.wait([pending])
        return not pending.cancelled() and pending.exception() is None
    version = await rooms.fetch_version(services.db, head.room_id)
    if version == head.cursor.version and not head.is_stale:
        return True
    head.cursor.generation += 1
    return False


async def load_head(services: Services, room_id: RoomId) -> RoomHead | None:
    """Read the head of a room from the database; None when the room is not known here.

    A room without extremities is known, but nobody of this server has been in it yet.
    """
    async with services.db.snapshot() as tx:
        row = await rooms.fetch_room(tx, room_id)
        if row is None:
            return None
        members = await rooms.list_local_members(tx, row.room_nid)
        state = (await services.states.get_many([row.state_id], tx))[row.state_id]
        events = await services.events.get_many([e for e, _ in row.extremities], tx)  # type: ignore[misc]
    return RoomHead(
        room_id,
        ROOM_VERSIONS[row.room_version],
        RoomCursor(row.room_nid, row.version, row.position),
        [events[e] for e, _ in row.extremities],  # type: ignore[index]
        state,
        row.main_count,
        members,
        row.joined_count,
    )


async def new_head(services: Services, room_version: RoomVersion) -> RoomHead:
    """Return the head of a room that is about to be made.

    Where the room's id comes from its create event (v12), `room_id` stays empty until that event is
    planned.
    """
    await services.room_numbers.reserve(1)
    room_id = ""
    if not room_version.room_id_is_create_event_id:
        room_id = f"!{services.randomness.token(18)}:{services.server_name}"
    return RoomHead(
        room_id,  # type: ignore[arg-type]  # of its grammar
        room_version,
        RoomCursor(services.room_numbers.take(), None),
        [],
        EMPTY_STATE,
        0,
        {},
    )
