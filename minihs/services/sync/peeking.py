"""Following a room without being in it: what happens there, as it happens.

Spec: client-server-api#room-previews
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from minihs.services.rooms import history
from minihs.services.rooms.tokens import Place, format_place
from minihs.services.sync.v3 import wait_for_news, was_logged_out_perhaps
from minihs.storage.event_store import StoredEvent

if TYPE_CHECKING:
    from minihs.protocol.identifiers import RoomId
    from minihs.services.accounts.authentication import Requester
    from minihs.services.context import Services
    from minihs.services.sync.assemble import Json

EVENTS_MAX = 100


async def follow_room(
    services: Services, requester: Requester, room_id: RoomId, start: str | None, timeout_ms: int
) -> Json:
    """Return a room's events after a token (None: from now on), waiting up to `timeout_ms` for one.

    Raises:
        Forbidden: the requester may not look at the room (any more).
        InvalidParam: `start` is no token of ours.
        UnknownToken: they have been logged out meanwhile.

    Spec: client-server-api#peeking_get_matrixclientv3events
    """
    deadline_ms = services.clock.monotonic_ms() + timeout_ms
    begin = token = start or format_place(Place(services.follower.head))
    looks = True
    while True:
        with services.views.watching(room_id) as view:
            upto = services.follower.head
            if looks:
                end = format_place(Place(upto))
                reader = replace(requester, position=upto)  # Who has left sees less, but no error.
                page = await history.messages(
                    services, reader, room_id,
                    start=token, stop=end, backward=False, limit=EVENTS_MAX,
                )  # fmt: skip
                looks = "end" in page  # What passed by was not for them, and there is more.
                token = str(page.get("end", end))
                if page["chunk"]:
                    return {"chunk": page["chunk"], "start": begin, "end": token}
            left_ms = deadline_ms - services.clock.monotonic_ms()
            if left_ms <= 0 or services.views.is_closing:
                return {"chunk": [], "start": begin, "end": token}
            if looks:
                continue
            if view.changed_at <= upto:
                await wait_for_news(services, view, left_ms)
            await was_logged_out_perhaps(services, requester)
        looks = _may_have_more(services, room_id, upto)


def _may_have_more(services: Services, room_id: RoomId, position: int) -> bool:
    """Return whether there may be events of a room after a position, and not only who types."""
    return services.follower.floor > position or any(
        at > position and isinstance(item, StoredEvent)
        for at, item in services.follower.room_items(room_id)
    )
