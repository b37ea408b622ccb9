"""READING HISTORY: pages of a room's events, and single ones, as their reader may see them.

Every operation first asks how the reader stands to the room (`access.open_room`); the events then
pass `visibility.visible`.

Spec: client-server-api#getting-events-for-a-room
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.base.errors import Forbidden, NotFound
from minihs.base.limits import CONTEXT_LIMIT_MAX, PAGE_LIMIT_MAX, REMOTE_QUERIES_MS
from minihs.protocol.filters import EventFilter
from minihs.services.rooms import backfill
from minihs.services.rooms.access import Access, Reader, RoomForgotten, open_room
from minihs.services.rooms.client_events import shown
from minihs.services.rooms.state_reading import members_after, show_state, state_after
from minihs.services.rooms.tokens import (
    START,
    Place,
    format_place,
    parse_place,
    place_after,
    place_before,
)
from minihs.services.rooms.visibility import Seen, visible
from minihs.storage import events as event_reads
from minihs.storage.missing_events import list_gaps

if TYPE_CHECKING:
    from collections.abc import Sequence

    import orjson

    from minihs.protocol.identifiers import EventId, RoomId
    from minihs.services.context import Services
    from minihs.storage.event_store import StoredEvent
    from minihs.storage.missing_events import Gap

ALL = EventFilter()
SCANNED_EVENTS_MAX = 2_000  # Of one request whose filter lets little through; then `end` is given.
FILTERED_BATCH = 200
FETCHES_MAX = 3
ANYBODY = ""  # Who has never been in any room: they see what is world-readable.


async def messages(
    services: Services,
    reader: Reader,
    room_id: RoomId,
    *,
    start: str | None,
    stop: str | None,
    backward: bool,
    limit: int,
    event_filter: EventFilter = ALL,
) -> dict[str, object]:
    """Return a page of a room's history: `chunk`, `start`, `end` unless nothing is left, `state`.

    Raises:
        Forbidden: the reader may not look at the room.
        InvalidParam: `start` or `stop` is no token of ours.

    Spec: client-server-api#get_matrixclientv3roomsroomidmessages
    """
    access = await open_room(services, reader, room_id)
    newest = max(reader.position, access.upto.major)
    first = parse_place(start, newest=newest) if start is not None else None
    last = parse_place(stop, newest=newest) if stop is not None else None
    if backward:
        begin, end = min(first or access.upto, access.upto), last or START
    else:
        begin, end = first or START, min(last or access.upto, access.upto)
    stretch = await _read_or_fetch(
        services, reader, access, begin, end,
        backward=backward, limit=min(limit, PAGE_LIMIT_MAX), event_filter=event_filter,
    )  # fmt: skip
    answer: dict[str, object] = {
        "chunk": await _shown(services, reader, stretch.seen),
        "start": start if start is not None else format_place(begin),
    }
    if stretch.more:
        answer["end"] = format_place(stretch.place)
    if event_filter.lazy_load_members and stretch.seen:
        newest_event = stretch.seen[0 if backward else -1][0]
        senders = {stored.event.sender for stored, _ in stretch.seen}
        answer["state"] = await members_after(services, reader, newest_event, senders)
    return answer


async def context(
    services: Services,
    reader: Reader,
    room_id: RoomId,
    event_id: EventId,
    *,
    limit: int,
    event_filter: EventFilter = ALL,
) -> dict[str, object]:
    """Return an event, what came just before and after it, and the state at the end of that.

    Raises:
        NotFound: there is none, or the reader may not see it.

    Spec: client-server-api#get_matrixclientv3roomsroomidcontexteventid
    """
    seen, access = await _find_event(services, reader, room_id, event_id)
    if access is None:
        raise NotFound("Event not found.")
    limit = min(limit, CONTEXT_LIMIT_MAX)
    before = await _read(
        services, reader, access, place_before(seen[0]), START,
        backward=True, limit=limit // 2, event_filter=event_filter,
    )  # fmt: skip
    after = await _read(
        services, reader, access, place_after(seen[0]), access.upto,
        backward=False, limit=limit - limit // 2, event_filter=event_filter,
    )  # fmt: skip
    around = [*before.seen, seen, *after.seen]
    entries = await state_after(services, around[-1][0])
    wanted = None
    if event_filter.lazy_load_members:
        wanted = {stored.event.sender for stored, _ in around}
    state_ids = [
        entry
        for (event_type, state_key), entry in entries.items()
        if event_filter.has_type(event_type)
        and (wanted is None or event_type != "m.room.member" or state_key in wanted)
    ]
    return {
        "start": format_place(before.place),
        "end": format_place(after.place),
        "events_before": await _shown(services, reader, before.seen),
        "event": (await _shown(services, reader, [seen]))[0],
        "events_after": await _shown(services, reader, after.seen),
        "state": await show_state(services, reader, state_ids),
    }


async def one_event(
    services: Services, reader: Reader, room_id: RoomId, event_id: EventId
) -> orjson.Fragment:
    """Return one event.

    Who may not look at the room as it is now may still see what was sent when anybody might.

    Raises:
        NotFound: there is none, or the reader may not see it.
        RoomForgotten: they could see it once.

    Spec: client-server-api#get_matrixclientv3roomsroomideventeventid
    """
    seen, _ = await _find_event(services, reader, room_id, event_id)
    return (await _shown(services, reader, [seen]))[0]


@dataclass(slots=True)
class _Stretch:
    """Events that passed, where the reading ended, and whether there may be more beyond."""

    seen: list[Seen]
    place: Place
    more: bool


async def _read(
    services: Services,
    reader: Reader,
    access: Access,
    start: Place,
    stop: Place,
    *,
    backward: bool,
    limit: int,
    event_filter: EventFilter = ALL,
) -> _Stretch:
    """Return up to `limit` events from `start` towards `stop` that the reader may see."""
    stretch = _Stretch([], start, more=True)
    if event_filter.matches_nothing or not event_filter.has_room(access.room_id):
        stretch.more = False
        return stretch
    boundary = place_before if backward else place_after
    scanned = 0
    while len(stretch.seen) < limit and scanned < SCANNED_EVENTS_MAX:
        free = limit - len(stretch.seen)
        # One more than wanted tells whether there is more.
        asked = free + 1 if event_filter.matches_all else max(free + 1, FILTERED_BATCH)
        batch = await event_reads.list_range(
            services.db, services.events, access.room_nid, stretch.place, stop,
            backward=backward, limit=asked, keep=event_filter.matches_all,
        )  # fmt: skip
        scanned += len(batch)
        seen = await visible(services, reader.user_id, batch, ignored=access.ignored)
        if not event_filter.matches_all:
            seen = [pair for pair in seen if _passes(event_filter, pair[0])]
        if len(seen) > free:
            stretch.seen += seen[:free]
            stretch.place = boundary(stretch.seen[-1][0])
            break
        stretch.seen += seen
        if batch:
            stretch.place = boundary(batch[-1])
        if len(batch) < asked:
            stretch.more = False
            break
    return stretch


def _passes(event_filter: EventFilter, stored: StoredEvent) -> bool:
    event = stored.event
    return event_filter.matches(
        event_type=event.type, sender=event.sender, room_id=event.room_id, content=event.content
    )


async def _read_or_fetch(
    services: Services,
    reader: Reader,
    access: Access,
    start: Place,
    stop: Place,
    *,
    backward: bool,
    limit: int,
    event_filter: EventFilter,
) -> _Stretch:
    """Return events as `_read` does; history that we lack on the way is asked of other servers.

    Only on the way back: who reads forward has come from there.
    """
    fetches, until_ms = 0, services.clock.monotonic_ms() + REMOTE_QUERIES_MS
    while True:
        gaps: Sequence[Gap] = ()
        if backward:  # Before anything is read: another process may fill one at any time.
            gaps = await list_gaps(services.db, access.room_nid, START.major, start.major)
        stretch = await _read(
            services, reader, access, start, stop,
            backward=backward, limit=limit, event_filter=event_filter,
        )  # fmt: skip
        upto = stretch.place if stretch.more else START
        gap = next((gap for gap in gaps if upto < gap.order <= start), None)
        if gap is None:
            return stretch
        if fetches == FETCHES_MAX or not await backfill.fill(
            services, access.room_id, gap, until_ms
        ):
            stretch.more = bool(stretch.seen)  # There is more, if not here and now.
            return stretch
        fetches += 1


async def _shown(services: Services, reader: Reader, seen: Sequence[Seen]) -> list[orjson.Fragment]:
    return await shown(
        services,
        [stored for stored, _ in seen],
        reader=reader,
        memberships=[membership for _, membership in seen],
    )


async def _find_event(
    services: Services, reader: Reader, room_id: RoomId, event_id: EventId
) -> tuple[Seen, Access | None]:
    """Return an event that the reader may see; how far they may look at the room, if they may.

    Raises:
        NotFound: there is none, or it is not for them: they cannot tell.
        RoomForgotten: they could tell once.
    """
    stored = await services.events.get(event_id)
    if stored is None or stored.event.room_id != room_id:
        raise NotFound("Event not found.")
    access = None
    try:
        access = await open_room(services, reader, room_id)
    except RoomForgotten:
        raise
    except Forbidden:
        if not await visible(services, ANYBODY, [stored]):
            raise NotFound("Event not found.") from None
    seen = await visible(services, reader.user_id, [stored], sticky=True)
    if not seen:
        raise NotFound("Event not found.")
    return seen[0], access
