"""Plans of a sliding sync answer: the rooms that it may speak of, and since when.

MSC4186#room-results
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from minihs.protocol.filters import EventFilter, Filter, RoomFilter
from minihs.services.sync.spans import STATE, SyncRequest

if TYPE_CHECKING:
    from collections.abc import Collection

    from minihs.services.sync.sliding_connections import Connection, SentRoom
    from minihs.services.sync.sliding_lists import Matches, Rooms, Rule, UserRoom
    from minihs.services.sync.sliding_request import SlidingRequest

NO_FILTER = Filter()


@dataclass(frozen=True, slots=True)
class Plan:
    """A room that may have news for the connection, which has had it up to `after`.

    `is_new`: the client is to replace whatever it knows of the room. `is_expanded`: it wants more
    of the timeline than it was sent.
    """

    room: UserRoom
    rule: Rule
    sent: SentRoom | None
    after: int
    is_new: bool
    is_expanded: bool
    is_dm: bool

    @property
    def room_id(self) -> str:
        """The room."""
        return self.room.room_id


def plan_rooms(
    request: SlidingRequest,
    connection: Connection,
    rooms: Rooms,
    matches: Matches,
    changed: Collection[str],
) -> list[Plan]:
    """Return the rooms to look at; `changed` are those in which something happened.

    To who is not in a room only what becomes of their own membership is news.
    """
    plans: list[Plan] = []
    for room_id, rule in matches.rules.items():
        room = rooms.rooms[room_id]
        sent = connection.rooms.get(room_id)
        after = 0
        if sent is not None:
            after = (request.since or 0) if sent.upto is None else sent.upto
        is_dm = room_id in rooms.personal.direct
        is_new = (
            sent is None
            or sent.kind != "join"
            or room.kind == "outside"
            or (room.joined_at is not None and room.joined_at > after)
        )
        if (
            sent is None
            or (room.kind == "join" and (sent.upto is not None or room_id in changed))
            or room.position > after
            or sent.config.required != rule.config.required
            or sent.config.timeline_limit < rule.config.timeline_limit
            or sent.is_dm != is_dm
        ):
            is_expanded = (
                not is_new
                and sent is not None
                and sent.config.timeline_limit < rule.config.timeline_limit
            )
            plans.append(Plan(room, rule, sent, after, is_new, is_expanded, is_dm))
    return plans


@lru_cache(maxsize=256)
def _filter(limit: int) -> Filter:
    return Filter(room=RoomFilter(timeline=EventFilter(limit=limit)))


def timeline_request(
    request: SlidingRequest, ignored: frozenset[str], limit: int, since: int | None = None
) -> SyncRequest:
    """Return the request to the streams of /sync that asks for the same."""
    return SyncRequest(
        request.requester, _filter(limit), since,
        full_state=False, state_section=STATE, timeout_ms=0, ignored=ignored,
    )  # fmt: skip
