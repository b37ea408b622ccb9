"""Forgetting a room: its history is out of reach, and it no longer appears in a sync.

Users forget a room when they ask for it. Where the server does so by itself
(`forget_rooms_on_leave`), they also do by leaving it, or by being made to leave: then it is written
in the transaction of the leave (`effects.ForgetRoom`), so that there is no moment in between.
Forgetting is over when the user is invited, knocks or joins again.

A room that every user of this server has forgotten is deleted after a while, unless it was
reported. Then it is as if we had never been there; other servers may still have the room, and
invite us to it.

Spec: client-server-api#post_matrixclientv3roomsroomidforget
MSC4267#proposal
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.base.errors import MatrixError
from minihs.services.rooms.heads import building
from minihs.storage import forgotten_rooms
from minihs.storage.membership import fetch_membership, list_remembered_rooms
from minihs.storage.stream_rows import ForgottenRoom, PurgedRoom

if TYPE_CHECKING:
    from minihs.protocol.identifiers import RoomId, UserId
    from minihs.services.context import Services
    from minihs.storage.forgotten_rooms import RoomPurge

ROOMS_AT_ONCE = 100
EVENTS_AT_ONCE = 1_000
PURGES_KEPT_MS = 86_400_000  # Longer than any process is behind the stream.


async def forget_room(services: Services, user_id: UserId, room_id: RoomId) -> None:
    """Let a user forget a room; what was never known, or is forgotten, may be forgotten again.

    Raises:
        MatrixError: 400 `M_UNKNOWN`: the user has not left the room.
    """
    await _require_outside(services, user_id, room_id)
    row = await fetch_membership(services.db, room_id, user_id)
    if row is not None and not row.forgotten:
        await services.committer.commit_rows([ForgottenRoom(user_id, room_id)])
        await _require_outside(services, user_id, room_id)  # They may have come back just now.


async def _require_outside(services: Services, user_id: UserId, room_id: RoomId) -> None:
    row = await fetch_membership(services.db, room_id, user_id)
    if row is not None and row.membership not in ("leave", "ban"):
        raise MatrixError(f"You have membership {row.membership} in the room: leave it first.")


async def forget_all_left_rooms(services: Services, user_id: UserId) -> None:
    """Let a user forget every room that they are not in."""
    rooms = await list_remembered_rooms(services.db, user_id)
    for start in range(0, len(rooms), ROOMS_AT_ONCE):
        await services.committer.commit_rows(
            [ForgottenRoom(user_id, room_id) for room_id in rooms[start : start + ROOMS_AT_ONCE]]
        )


# --- deletion ----------------------------------------------------------------------------------


async def purge_forgotten(services: Services) -> None:
    """Delete rooms that nobody has remembered for a while, and go on where that was interrupted.

    Spec: client-server-api#post_matrixclientv3roomsroomidforget
    """
    now_ms = services.clock.past_ms()
    for purge in await forgotten_rooms.list_purges(services.db, ROOMS_AT_ONCE):
        await _purge(services, purge)
    await forgotten_rooms.note_forgotten(services.db, now_ms)
    since_ms = now_ms - services.config.forgotten_room_retention_seconds * 1_000
    for room_nid, room_id in await forgotten_rooms.list_due(services.db, since_ms, ROOMS_AT_ONCE):
        if await _begin(services, room_nid, room_id):
            await finish_purge(services, room_nid)
    await forgotten_rooms.delete_old_purges(services.db, now_ms - PURGES_KEPT_MS)


async def _begin(services: Services, room_nid: int, room_id: RoomId) -> bool:
    """Take the room's turn, see whether it is still forgotten, and let it be empty then."""
    async with building(services, room_id) as head:
        async with services.db.transaction() as tx:
            began = await forgotten_rooms.begin_purge(tx, room_nid, services.clock.now_ms())
        if began and head is not None:
            head.cursor.generation += 1  # It is not what the next builder will find.
    return began


async def finish_purge(services: Services, room_nid: int) -> None:
    """Return when nothing is left of a room that is being deleted, nor in this process's memory.

    Whoever needs the room anew calls this first, and does the rest of the work if need be.
    """
    purge = await forgotten_rooms.find_purge(services.db, room_nid)
    if purge is None:
        return
    if not purge.done:
        await _purge(services, purge)
        purge = await forgotten_rooms.find_purge(services.db, room_nid)
    if purge is not None and purge.position is not None:
        await services.follower.wait_for(purge.position)


async def _purge(services: Services, purge: RoomPurge) -> None:
    """Let every process forget the room's events, then delete them step by step."""
    if purge.position is None:
        await services.committer.commit_rows([PurgedRoom(purge.room_id)])
    while await forgotten_rooms.delete_events(services.db, purge.room_nid, EVENTS_AT_ONCE):
        pass
    await forgotten_rooms.mark_done(services.db, purge.room_nid)
