"""Whose devices the client must look at again, and whose it need not look at any more.

Changed are those of users in the reader's rooms whose servers say so, and of users who share a room
with the reader since the client's position; left are those of users who no longer share any. Which
of a user's devices have which keys is not known here: it is asked for.

Spec: client-server-api#tracking-the-device-list-for-a-user
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from minihs.protocol.state_keys import ENCRYPTION
from minihs.storage import device_lists, rooms
from minihs.storage.event_store import StoredEvent
from minihs.storage.stream_rows import DeviceListChange

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from minihs.services.context import Services
    from minihs.services.sync.views import RoomMembership

USERS_MAX: Final = 10_000  # Of rooms that the reader comes into, or leaves.
MEMBER: Final = "m.room.member"


@dataclass(frozen=True, slots=True)
class RoomsThen:
    """The reader's rooms at `upto`: those joined to, newly joined to, left, and with news."""

    mine: Mapping[str, RoomMembership]
    new: Collection[str]
    left: Collection[str]
    changed: Collection[str]


async def read(
    services: Services, reader: str, then: RoomsThen, since: int | None, upto: int
) -> dict[str, list[str]]:
    """Return `changed` and `left`, as far as there are any; to who begins there is nothing to say.

    It costs nothing where nobody joined or left, and nobody's devices changed.
    """
    if since is None:
        return {}
    joined = {r: m.joined_at for r, m in then.mine.items() if m.membership == "join"}
    changed: set[str] = set()
    moved: set[str] = set()
    if services.follower.floor <= since:
        for item in services.follower.items_after(since):
            if isinstance(item, StoredEvent):
                event = item.event
                if event.type == MEMBER and event.room_id in joined and event.state_key:
                    moved.add(event.state_key)
            elif isinstance(item, DeviceListChange) and not joined.keys().isdisjoint(item.room_ids):
                changed.add(item.user_id)
    else:
        changed |= await device_lists.list_changed(services.db, reader, since, upto)
        here = [room_id for room_id in then.changed if room_id in joined]
        if here:
            moved |= await device_lists.list_changed_members(services.db, here, since, upto)
    whole = await _encrypted(services, {*then.new, *then.left})
    if whole:
        moved |= await device_lists.list_members(services.db, whole, USERS_MAX)
    moved.discard(reader)
    left: set[str] = set()
    for user_id, theirs in (await services.joined_rooms.load_many(moved)).items():
        shared = [max(at, joined[room_id]) for room_id, at in theirs.items() if room_id in joined]
        if not shared:
            left.add(user_id)
        elif min(shared) > since:
            changed.add(user_id)
    sections = {"changed": sorted(changed), "left": sorted(left)}
    return {name: users for name, users in sections.items() if users}


async def _encrypted(services: Services, room_ids: Collection[str]) -> list[str]:
    """Return those of some rooms in which messages are encrypted."""
    if not room_ids:
        return []
    ids = await rooms.list_current_states(services.db, list(room_ids))
    states = await services.states.get_many(ids.values())
    return [room_id for room_id, at in ids.items() if ENCRYPTION in states[at].entries]
