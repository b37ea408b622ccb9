"""Access: how a reader stands to a room.

Members see it up to now; whoever was a member sees what was there when they left; everybody sees a
world-readable room.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from minihs.base.errors import Forbidden
from minihs.protocol import canonical_json
from minihs.protocol.history_visibility import HistoryVisibility
from minihs.services.rooms.tokens import Place, place_after
from minihs.services.rooms.visibility import end_of_last_stay, reader_states
from minihs.storage import events as event_reads

if TYPE_CHECKING:
    from collections.abc import Collection

    from minihs.protocol.identifiers import RoomId, UserId
    from minihs.services.context import Services
    from minihs.storage.event_store import StoredEvent


class RoomForgotten(Forbidden):
    """The reader was in the room once, and has forgotten it. MSC4267#proposal."""


class Reader(Protocol):
    """Who reads. `position` is one of the stream that is no older than the request."""

    @property
    def user_id(self) -> UserId: ...  # noqa: D102
    @property
    def device_nid(self) -> int: ...  # noqa: D102
    @property
    def position(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Access:
    """How a reader stands to a room.

    `joined` is whether they are a member now; `upto` where what they may see ends; `left` the event
    by which a former member left; `ignored` whose messages they do not want.
    """

    room_id: RoomId
    room_nid: int
    joined: bool
    state_id: int
    upto: Place
    left: StoredEvent | None
    ignored: Collection[str]


async def open_room(services: Services, reader: Reader, room_id: RoomId) -> Access:
    """Return how the reader may look at a room.

    Raises:
        Forbidden: not at all: they never joined it, or have forgotten it (`RoomForgotten`), and it
            is not world-readable; or it does not exist.
    """
    row = await event_reads.fetch_reader(services.db, room_id, reader.user_id)
    if row is None:
        raise Forbidden("You are not in this room.")
    upto, left = Place(row.position), None
    joined = row.membership == "join"
    if not joined:
        if row.membership is not None and not row.forgotten:
            left = await end_of_last_stay(services, room_id, reader.user_id)
        if left is not None:
            upto = place_after(left)
        elif not await _is_world_readable(services, row.state_id):
            if row.forgotten:
                raise RoomForgotten("You have forgotten this room.")
            raise Forbidden("You are not in this room, and it is not world-readable.")
    ignored = _ignored_users(row.ignored_json)
    return Access(room_id, row.room_nid, joined, row.state_id, upto, left, ignored)


async def _is_world_readable(services: Services, state_id: int) -> bool:
    states = await reader_states(services, "", [state_id])
    return states[state_id].visibility is HistoryVisibility.WORLD_READABLE


def _ignored_users(json: str | None) -> Collection[str]:
    """Return whom a user ignores. Spec: client-server-api#mignored_user_list."""
    if json is None:
        return ()
    match canonical_json.decode(json):
        case {"ignored_users": dict(users)}:
            return users
        case _:
            return ()
