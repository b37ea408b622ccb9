"""Loose ends: a room's graph that has many is tied together by events that say nothing.

Every event that other servers send beside what we know adds an end, and the room's state is the
resolution of the states at all of them. Events of our own users tie ends together; where nobody of
us speaks, a dummy event does, once in a while.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from minihs.base.errors import MatrixError
from minihs.protocol.event_assembly import EventDraft
from minihs.protocol.identifiers import UserId
from minihs.services.rooms.send import send_decided
from minihs.services.rooms.standing import standing_of
from minihs.services.rooms.visibility import DUMMY_EVENT
from minihs.storage import rooms

if TYPE_CHECKING:
    from minihs.protocol.identifiers import EventId, RoomId
    from minihs.services.context import Services
    from minihs.services.rooms.heads import RoomHead

logger = logging.getLogger(__name__)

# Ours; others begin at 10 as well.
ENDS_MAX = 10
ROOMS_AT_ONCE = 20
EVENTS_AT_ONCE = 50
SENDERS_TRIED_MAX = 50


class _NothingToDo(Exception):
    """The room has few ends now, or nobody of us may speak there."""


async def tie_loose_ends(services: Services) -> None:
    """Tie the ends of the rooms that have the most of them."""
    for room_id in await rooms.list_with_many_ends(services.db, ENDS_MAX, ROOMS_AT_ONCE):
        try:
            await tie_room(services, room_id)
        except MatrixError:  # The others have ends, too.
            logger.warning("cannot tie the ends of %s", room_id, exc_info=True)


async def tie_room(services: Services, room_id: RoomId) -> None:
    """Send dummy events to a room until it has few ends, if one of our users may send any.

    Raises:
        MatrixError: see `send_decided`.
    """

    async def decide(head: RoomHead) -> EventDraft | EventId:
        sender = await _sender(services, head) if len(head.extremities) > ENDS_MAX else None
        if sender is None:
            raise _NothingToDo
        return EventDraft(
            room_id=room_id,
            sender=sender,
            type=DUMMY_EVENT,
            content={},
            origin_server_ts=services.clock.now_ms(),
        )

    for _ in range(EVENTS_AT_ONCE):
        try:
            await send_decided(services, room_id, decide)
        except _NothingToDo:
            return


async def _sender(services: Services, head: RoomHead) -> UserId | None:
    """Return one of our users in a room who may send a dummy event there."""
    for user_id in sorted(head.local_members)[:SENDERS_TRIED_MAX]:
        standing = await standing_of(services, head, user_id)
        if standing.may_send(DUMMY_EVENT, is_state=False):
            return UserId(user_id)
    return None
