"""Forgetting a room: its history is out of reach, and it no longer appears in a sync.

The mark is in the user's membership, so a later invite or join, which writes that anew, takes it
away.
Spec: client-server-api#post_matrixclientv3roomsroomidforget
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.base.errors import MatrixError
from minihs.storage.membership import fetch_membership, mark_forgotten

if TYPE_CHECKING:
    from minihs.protocol.identifiers import RoomId, UserId
    from minihs.services.context import Services


async def forget_room(services: Services, user_id: UserId, room_id: RoomId) -> None:
    """Let a user forget a room; what was never known, or is forgotten, may be forgotten again.

    Raises:
        MatrixError: 400 `M_UNKNOWN`: the user has not left the room.
    """
    if await mark_forgotten(services.db, room_id, user_id):
        return
    row = await fetch_membership(services.db, room_id, user_id)
    if row is not None and row.membership not in ("leave", "ban"):
        raise MatrixError(f"You have membership {row.membership} in the room: leave it first.")
