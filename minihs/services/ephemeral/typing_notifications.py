"""Typing notifications: who types where, until they stop or their time runs out.

What is kept of a room is the whole list, as that is what clients are told; each change of it is
news in the stream, also when the list becomes empty. Changes of one room take turns within the
process, so that none is lost. The process that accepted a change looks again when the first user's
time runs out, and when a member goes; should it die before, `expire_overdue` (leased housekeeping)
does.

Spec: client-server-api#typing-notifications
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.base.errors import Forbidden
from minihs.base.limits import TYPING_TIMEOUT_MAX_MS
from minihs.base.turns import Turns
from minihs.protocol.identifiers import RoomId, UserId
from minihs.storage import typing_notifications as typing_reads
from minihs.storage.stream_rows import Membership, TypingWrite

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minihs.services.context import Services
    from minihs.storage.stream_reads import Positioned

TIMEOUT_DEFAULT_MS = 30_000
OVERDUE_GRACE_MS = 3_000  # The accepting process comes first.


class TypingRooms:
    """The rooms in which this process is changing, or will end, somebody's typing.

    `turns` are those to change who types in a room. `timed` is when this process will look again at
    those in which somebody types.
    """

    def __init__(self) -> None:
        self.turns: Turns[str] = Turns()
        self.timed: dict[str, int] = {}


async def set_typing(
    services: Services, user_id: UserId, room_id: RoomId, *, timeout_ms: int | None
) -> None:
    """Note that a user types for `timeout_ms` from now, or (None) has stopped.

    Raises:
        Forbidden: the user is not in the room.

    Spec: client-server-api#put_matrixclientv3roomsroomidtypinguserid
    """
    async with services.typing.turns.take(room_id):
        now_ms = services.clock.now_ms()
        joined, old = await typing_reads.fetch_typing(services.db, room_id, user_id)
        if not joined:
            raise Forbidden("You are not in this room.")
        new = _others(old, user_id, now_ms)
        if timeout_ms is not None:
            new[user_id] = now_ms + min(timeout_ms, TYPING_TIMEOUT_MAX_MS)
        if new != old:
            await _write(services, room_id, new)
    services.presence.note_active(services, user_id)


async def expire(services: Services, room_id: RoomId) -> None:
    """Take those out of a room's list whose time has run out."""
    async with services.typing.turns.take(room_id):
        _, old = await typing_reads.fetch_typing(services.db, room_id, "")
        new = _others(old, "", services.clock.now_ms())
        if new != old:
            await _write(services, room_id, new)
        elif new:
            _look_again(services, room_id, min(new.values()))


async def expire_overdue(services: Services) -> None:
    """Do the same in every room that was left alone by the process that should have."""
    now_ms = services.clock.now_ms()
    for room_id in await typing_reads.list_overdue(
        services.db, now_ms - OVERDUE_GRACE_MS, now_ms + TYPING_TIMEOUT_MAX_MS + OVERDUE_GRACE_MS
    ):
        await expire(services, RoomId(room_id))


def follow(services: Services, items: Sequence[Positioned]) -> None:
    """End the typing of those who are no more in rooms where this process would end it.

    That is also where it is just writing that they type.
    """
    typing = services.typing
    for _, item in items:
        if (
            isinstance(item, Membership)
            and item.membership != "join"
            and (item.room_id in typing.timed or typing.turns.is_taken(item.room_id))
        ):
            stopped = _stop(services, item.room_id, item.user_id)
            services.tasks.spawn("typing ends with a stay", stopped)


async def _stop(services: Services, room_id: RoomId, user_id: UserId) -> None:
    async with services.typing.turns.take(room_id):
        joined, old = await typing_reads.fetch_typing(services.db, room_id, user_id)
        if user_id in old and not joined:
            await _write(services, room_id, _others(old, user_id, services.clock.now_ms()))


def _others(typing: Mapping[str, int], user_id: str, now_ms: int) -> dict[str, int]:
    """Return who else types still. What lasts longer than it may has outlived a clock put back."""
    latest_ms = now_ms + TYPING_TIMEOUT_MAX_MS
    return {u: ms for u, ms in typing.items() if u != user_id and now_ms < ms <= latest_ms}


async def _write(services: Services, room_id: RoomId, until_ms: dict[str, int]) -> None:
    await services.committer.commit_rows(
        [TypingWrite(room_id, tuple(map(UserId, until_ms)), tuple(until_ms.values()))]
    )
    if until_ms:
        _look_again(services, room_id, min(until_ms.values()))


def _look_again(services: Services, room_id: RoomId, at_ms: int) -> None:
    """See to it that this process looks at the room at a moment, or before."""
    timed = services.typing.timed
    planned = timed.get(room_id)
    if planned is None or at_ms < planned:
        timed[room_id] = at_ms
        services.tasks.spawn("typing runs out", _expire_at(services, room_id, at_ms))


async def _expire_at(services: Services, room_id: RoomId, at_ms: int) -> None:
    await services.clock.sleep_ms(max(at_ms - services.clock.now_ms(), 0))
    if services.typing.timed.get(room_id) == at_ms:  # Else somebody looks earlier, and again.
        del services.typing.timed[room_id]
        await expire(services, room_id)
