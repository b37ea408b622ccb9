"""The event nearest to a moment, also where another server knows a nearer one than we.

Spec: client-server-api#get_matrixclientv1roomsroomidtimestamp_to_event
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.base.errors import NotFound
from minihs.base.limits import REMOTE_QUERIES_MS
from minihs.remote.transport import RemoteError
from minihs.services.rooms import backfill
from minihs.services.rooms.access import Access, Reader, open_room
from minihs.services.rooms.tokens import place_after
from minihs.services.rooms.visibility import visible
from minihs.storage import events as event_reads
from minihs.storage.missing_events import list_gaps, list_servers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minihs.protocol.identifiers import RoomId
    from minihs.services.context import Services
    from minihs.storage.event_store import StoredEvent
    from minihs.storage.missing_events import Gap

NEAR_IN_TIME_MAX = 50
SERVERS_ASKED_MAX = 3
FETCHES_FOR_TIME_MAX = 10  # Of a hundred events each.


async def event_by_time(
    services: Services, reader: Reader, room_id: RoomId, ts_ms: int, *, backward: bool
) -> dict[str, object]:
    """Return id and time of the event nearest to a moment, in one direction.

    Where a gap in our history may hide a nearer one, another server is asked.

    Raises:
        Forbidden: the reader may not look at the room.
        NotFound: no event lies there.

    Spec: client-server-api#get_matrixclientv1roomsroomidtimestamp_to_event
    """
    access = await open_room(services, reader, room_id)
    # Before anything is read: another process may fill one at any time.
    gaps = await list_gaps(services.db, access.room_nid, 0, access.upto.major)
    found = await _nearest(services, reader, access, ts_ms, backward=backward)
    if gaps and await _may_be_beyond(services, access, found, gaps, backward=backward):
        after = None if found is None else found.event.origin_server_ts
        if await _fetch_nearer(services, access, gaps, ts_ms, after, backward=backward):
            found = await _nearest(services, reader, access, ts_ms, backward=backward)
    if found is None:
        raise NotFound(f"There is no event {'before' if backward else 'after'} {ts_ms}.")
    return {"event_id": found.event_id, "origin_server_ts": found.event.origin_server_ts}


async def _nearest(
    services: Services, reader: Reader, access: Access, ts_ms: int, *, backward: bool
) -> StoredEvent | None:
    """Return the event nearest to a moment that the reader may see, of those that we have."""
    near = await event_reads.list_by_time(
        services.db, services.events, access.room_nid, ts_ms,
        backward=backward, limit=NEAR_IN_TIME_MAX,
    )  # fmt: skip
    seen = await visible(services, reader.user_id, near)
    return next((stored for stored, _ in seen if place_after(stored) <= access.upto), None)


async def _may_be_beyond(
    services: Services,
    access: Access,
    found: StoredEvent | None,
    gaps: Sequence[Gap],
    *,
    backward: bool,
) -> bool:
    """Return whether what was found is next to a gap, so that the nearest may lie in that."""
    if found is None:
        return True
    edge: StoredEvent | None = found
    if backward:
        following = await event_reads.list_range(
            services.db, services.events, access.room_nid, place_after(found), access.upto,
            backward=False, limit=1,
        )  # fmt: skip
        edge = following[0] if following else None
    return edge is not None and edge.event_id in {gap.event_id for gap in gaps}


async def _fetch_nearer(
    services: Services,
    access: Access,
    gaps: Sequence[Gap],
    ts_ms: int,
    known_ms: int | None,
    *,
    backward: bool,
) -> bool:
    """Fetch the event that another server knows nearer to a moment than ours; False: it has none.

    Spec: server-server-api#get_matrixfederationv1timestamp_to_eventroomid
    """
    until_ms = services.clock.monotonic_ms() + REMOTE_QUERIES_MS
    for server in await list_servers(services.db, access.room_nid, SERVERS_ASKED_MAX):
        answer = await services.remote.timestamp_to_event(
            server, access.room_id, ts_ms, "b" if backward else "f"
        )
        if isinstance(answer, RemoteError):
            continue
        event_id, at_ms = str(answer["event_id"]), int(str(answer["origin_server_ts"]))
        low, high = (known_ms or 0, ts_ms) if backward else (ts_ms, known_ms or at_ms)
        if not low <= at_ms <= high or "\0" in event_id:
            continue
        for _ in range(FETCHES_FOR_TIME_MAX):
            stored = await services.events.get(event_id)  # type: ignore[arg-type]  # any text
            if stored is not None and stored.order is not None:
                return True
            if not gaps or not await backfill.fill(services, access.room_id, gaps[0], until_ms):
                break
            gaps = await list_gaps(services.db, access.room_nid, 0, access.upto.major)
    return False
