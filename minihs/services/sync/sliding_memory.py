"""What sliding sync keeps in memory: where rooms stand in the list, and immutable things.

`activity` is a view like those of `views.py`: loaded once, then kept true by following the stream.
`members` is what may be lost: the lazily loaded members that connections have. The rest never
changes, so it may be kept: states of connections, what matters to filters of a state, and what two
states differ in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import immutables

from minihs.base.caching import BoundedCache
from minihs.storage import sliding
from minihs.storage.event_store import ACCEPTED, StoredEvent

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from minihs.protocol.identifiers import EventId, StateKey
    from minihs.services.sync.sliding_connections import Connection
    from minihs.services.sync.sliding_request import Position, SlidingRequest
    from minihs.storage.database import Database
    from minihs.storage.state import State
    from minihs.storage.stream_reads import Positioned
    from minihs.storage.streams import StreamFollower

ROOMS_MAX = 200_000
CONNECTED_ROOMS_MAX = 500_000
FACTS_MAX = 50_000
CHANGES_MAX = 100_000
MEMBERS_MAX = 500_000
MEMBERS_OF_A_ROOM_MAX = 200


@dataclass(frozen=True, slots=True)
class Activity:
    """The position of a room's last event, and its current state."""

    position: int
    state_id: int


@dataclass(frozen=True, slots=True)
class RoomFacts:
    """What filters ask of a room's state, and the event that names it."""

    room_type: str | None
    is_encrypted: bool
    name_event: EventId | None = None


@dataclass(frozen=True, slots=True)
class Changes:
    """What a state has that an older one has not, and what only the older one has."""

    made: Mapping[StateKey, EventId]
    removed: Collection[StateKey]


NO_CHANGES = Changes({}, ())

Members = immutables.Map[str, frozenset["EventId"]]
"""The member events that a connection has of rooms where those come lazily."""

NO_MEMBERS: Members = immutables.Map()


class SlidingMemory:
    """Activity of rooms as of the follower's head, and caches of immutable things."""

    def __init__(self, db: Database, follower: StreamFollower) -> None:
        self._db = db
        self._follower = follower
        self.activity: BoundedCache[str, Activity] = BoundedCache(ROOMS_MAX)
        self.connections: BoundedCache[tuple[int, int, str], Connection] = BoundedCache(
            CONNECTED_ROOMS_MAX
        )
        self.facts: BoundedCache[int, RoomFacts] = BoundedCache(FACTS_MAX)
        self.left_at: BoundedCache[str, int] = BoundedCache(FACTS_MAX)
        self._members: BoundedCache[tuple[int, str], dict[Position, tuple[Members, int]]] = (
            BoundedCache(MEMBERS_MAX)
        )
        self._changes: BoundedCache[tuple[int, int], Changes] = BoundedCache(CHANGES_MAX)

    async def load(self, room_ids: Collection[str]) -> None:
        """Load the activity of rooms that are not in memory."""
        while True:
            position, rows = await sliding.list_activity(self._db, room_ids)
            await self._follower.wait_for(position)
            if position >= self._follower.floor:
                break
        # No await from here on: nothing can pass in the stream between the last step and the next.
        loaded = {room_id: Activity(at, state_id) for room_id, at, state_id in rows}
        for room_id in room_ids:
            self.activity.put(room_id, loaded.get(room_id, Activity(0, 0)))
            for at, item in self._follower.room_items(room_id):
                if at > position:
                    self._apply(at, item)

    def follow(self, items: Sequence[Positioned]) -> None:
        """Take new items of the stream."""
        for position, item in items:
            self._apply(position, item)

    def _apply(self, position: int, item: object) -> None:
        if isinstance(item, StoredEvent) and item.status == ACCEPTED and item.order is not None:
            room_id = item.event.room_id
            if item.room_state_after is not None and self.activity.get(room_id) is not None:
                self.activity.put(room_id, Activity(position, item.room_state_after))

    def reset(self) -> None:
        """Forget what was derived from the stream: part of it was skipped."""
        self.activity = BoundedCache(ROOMS_MAX)

    def members(self, request: SlidingRequest) -> Members:
        """Return the members that the client has who makes a request, as far as that is known."""
        return self._known(request)[0]

    def _known(self, request: SlidingRequest) -> tuple[Members, int]:
        known = self._members.get((request.requester.device_nid, request.conn_id))
        if known is None or request.position is None:
            return NO_MEMBERS, 0
        return known.get(request.position, (NO_MEMBERS, 0))

    def note_members(
        self, request: SlidingRequest, answered: Position, given: Mapping[str, frozenset[EventId]]
    ) -> None:
        """Note which members of some rooms the client will have once it has got an answer.

        Only the position that was asked with and the new one are remembered: no other may be used
        again. MSC4186#connections
        """
        members, weight = before = self._known(request)
        if given:
            changing = members.mutate()
            for room_id, of_room in given.items():
                kept = of_room if len(of_room) <= MEMBERS_OF_A_ROOM_MAX else frozenset()
                weight += len(kept) - len(changing.get(room_id, ()))
                changing[room_id] = kept
            members = changing.finish()
        places = {} if request.position is None else {request.position: before}
        places[answered] = (members, weight)
        key = (request.requester.device_nid, request.conn_id)
        self._members.put(key, places, 1 + len(members) + weight)

    def changes(self, old: State, new: State) -> Changes:
        """Return what two states differ in; computed once for everybody."""
        if old.state_id == new.state_id:
            return NO_CHANGES
        key = (old.state_id, new.state_id)
        found = self._changes.get(key)
        if found is None:
            before, after = old.entries, new.entries
            found = Changes(
                {k: event_id for k, event_id in after.items() if before.get(k) != event_id},
                [k for k in before if k not in after],
            )
            self._changes.put(key, found, 1 + len(found.made))
        return found
