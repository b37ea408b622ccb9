"""Presence of those who share a room with the reader. Spec: client-server-api#presence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.services.ephemeral.presence import content_of, list_in_rooms
from minihs.storage import presence
from minihs.storage.stream_rows import PresenceWrite

if TYPE_CHECKING:
    from collections.abc import Iterable

    from minihs.services.context import Services
    from minihs.services.sync.spans import SyncRequest
    from minihs.services.sync.views import UserView

PRESENCE = "m.presence"


async def read(
    services: Services, request: SyncRequest, view: UserView, new_rooms: Iterable[str], upto: int
) -> list[dict[str, object]]:
    """Return the presence that changed since the client's position, and that of `new_rooms`.

    It costs nothing where nobody's has changed.
    """
    filter_, since = request.filter.presence, request.since
    if not services.config.presence_enabled or filter_.matches_nothing:
        return []
    newest: dict[str, PresenceWrite] = {}
    joined = list(new_rooms) if since is not None else []
    if joined:
        newest |= {write.user_id: write for write in await list_in_rooms(services, joined)}
    if since is None or view.presence_at > since:
        if since is not None and services.follower.floor <= since:
            newest |= _changed_in_window(services, request, view, since)
        else:
            rows = await presence.list_changed(services.db, request.user_id, since or 0, upto)
            newest |= {write.user_id: write for write in rows}
    return [
        {"type": PRESENCE, "sender": user_id, "content": content_of(services, write)}
        for user_id, write in newest.items()
        if user_id not in request.ignored
        and filter_.has_type(PRESENCE)
        and filter_.has_sender(user_id)
    ]


def _changed_in_window(
    services: Services, request: SyncRequest, view: UserView, since: int
) -> dict[str, PresenceWrite]:
    rooms = {room_id for room_id, room in view.rooms.items() if room.membership == "join"}
    return {
        item.user_id: item
        for item in services.follower.items_after(since)
        if isinstance(item, PresenceWrite)
        and (item.user_id == request.user_id or not rooms.isdisjoint(item.room_ids))
    }
