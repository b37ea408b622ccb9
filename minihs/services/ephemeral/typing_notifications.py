"""Typing notifications: who types where, until they stop or their time runs out.

What is kept of a room is the whole list, as that is what clients are told; each change of it is
news in the stream, also when the list becomes empty. Changes of one room take turns within the
process, and each says which list it was made of: where another process has written a later one, it
is made again of that, so that none is lost. The process that accepted a change looks again when the
first user's time runs out, and when a member goes; should it die before, `expire_overdue` (leased
housekeeping) does.

Spec: client-server-api#typing-notifications
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from minihs.base.errors import Forbidden
from minihs.base.limits import TYPING_TIMEOUT_MAX_MS
from minihs.base.turns import Turns
from minihs.protocol.identifiers import RoomId, UserId
from minihs.storage import typing_notifications as typing_reads
from minihs.storage.group_commit import Conflict
from minihs.storage.stream_rows import Membership, TypingWrite

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

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

    def change(joined: bool, old: Mapping[str, int]) -> dict[str, int]:  # noqa: FBT001
        if not joined:
            raise Forbidden("You are not in this room.")
        now_ms = services.clock.now_ms()
        new = _others(old, user_id, now_ms)
        if timeout_ms is not None:
            new[user_id] = now_ms + min(timeout_ms, TYPING_TIMEOUT_MAX_MS)
        return new

    await _change(services, room_id, user_id, change)
    services.presence.note_active(services, user_id)


async def expire(services: Services, room_id: RoomId) -> None:
    """Take those out of a room's list whose time has run out."""

    def change(_: bool, old: Mapping[str, int]) -> dict[str, int]:  # noqa: FBT001
        return _others(old, "", services.clock.now_ms())

    if typing := await _change(services, room_id, "", change):
        _look_again(services, room_id, min(typing.values()))


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
    def change(joined: bool, old: Mapping[str, int]) -> Mapping[str, int]:  # noqa: FBT001
        if joined or user_id not in old:
            return old
        return _others(old, user_id, services.clock.now_ms())

    await _change(services, room_id, user_id, change)


def _others(typing: Mapping[str, int], user_id: str, now_ms: int) -> dict[str, int]:
    """Return who else types still. What lasts longer than it may has outlived a clock put back."""
    latest_ms = now_ms + TYPING_TIMEOUT_MAX_MS
    return {u: ms for u, ms in typing.items() if u != user_id and now_ms < ms <= latest_ms}


async def _change(
    services: Services,
    room_id: RoomId,
    user_id: str,
    change: Callable[[bool, Mapping[str, int]], Mapping[str, int]],
) -> Mapping[str, int]:
    """Return who types in a room until when, after writing what `change` makes of who did.

    It is told whether the user is in the room, and that list. Where another process was faster it
    is asked again, about what that has written.
    """
    async with services.typing.turns.take(room_id):
        while True:
            joined, old, position = await typing_reads.fetch_typing(services.db, room_id, user_id)
            new = change(joined, old)
            if new == old:
                return new
            users, until_ms = tuple(map(UserId, new)), tuple(new.values())
            with contextlib.suppress(Conflict):
                await services.committer.commit_rows(
                    [TypingWrite(room_id, users, until_ms, position)]
                )
                break
        if new:
            _look_again(services, room_id, min(until_ms))
        return new


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
