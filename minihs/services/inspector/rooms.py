"""Rooms for the inspector: the list, and one room with all that it shows of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.base.errors import NotFound
from minihs.protocol.identifiers import EventId, RoomId
from minihs.protocol.state_keys import NAME
from minihs.services.inspector.events import EventView, ShownEvent, show, view_event
from minihs.services.inspector.redactions import StayView, view_stays
from minihs.services.inspector.sticky_events import (
    ServerView,
    StickyView,
    view_servers,
    view_sticky_events,
)
from minihs.services.rooms.client_events import as_shown
from minihs.storage import events as event_reads
from minihs.storage import inspector, rooms, state_reads

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from minihs.services.context import Services
    from minihs.storage.event_store import StoredEvent
    from minihs.storage.rooms import RoomRow

ROOMS_MAX = 50
GRAPH_EVENTS_MAX = 50
REFUSED_MAX = 50
NEWEST = (2**62, 0)
OLDEST = (-(2**62), 0)


@dataclass(frozen=True, slots=True)
class RoomLine:
    """A room of the list."""

    room_id: str
    name: str | None
    room_version: str
    forward_extremities: int
    joined: int
    local_joined: int
    servers: int
    sticky_events: int
    held_back: int
    redacted_stays: int


@dataclass(frozen=True, slots=True)
class RoomList:
    """A page of the list; `next` begins the next page, None at the end."""

    server_name: str
    rooms: Sequence[RoomLine]
    next: int | None


@dataclass(frozen=True, slots=True)
class RoomView:
    """A room as it is now, and a page of its graph.

    `graph` are accepted events, newest first; `older` (major and minor) begins the next page, None
    at the end. `refused` are the latest rejected and soft-failed events. Those that were sticky
    and passed their checks later are among them, as accepted.
    """

    server_name: str
    room_id: str
    name: str | None
    room_version: str
    now_ms: int
    position: int
    joined: int
    state_id: int
    servers: Sequence[ServerView]
    more_servers: bool
    forward_extremities: Sequence[str]
    sticky_events: Sequence[StickyView]
    more_sticky_events: bool
    redacted_stays: Sequence[StayView]
    more_redacted_stays: bool
    graph: Sequence[ShownEvent]
    is_newest: bool
    older: tuple[int, int] | None
    refused: Sequence[ShownEvent]
    more_refused: bool


async def list_rooms(services: Services, after: int) -> RoomList:
    """Return a page of the rooms that this server knows."""
    found = await inspector.list_rooms(services.db, after, services.clock.now_ms(), ROOMS_MAX + 1)
    shown = found[:ROOMS_MAX]
    names = await _names(services, {row.state_id for row in shown})
    lines = [
        RoomLine(
            row.room_id, names.get(row.state_id), row.room_version, row.extremities, row.joined,
            row.local_joined, row.servers, row.sticky, row.held, row.redacted_stays,
        )
        for row in shown
    ]  # fmt: skip
    return RoomList(
        services.server_name, lines, shown[-1].room_nid if len(found) > ROOMS_MAX else None
    )


async def view_room(
    services: Services, room_id: str, before: tuple[int, int] | None = None
) -> RoomView:
    """Return a room, with the page of its graph before a place (None: the newest page).

    Raises:
        NotFound: this server does not know the room.
    """
    row = await _room(services, room_id)
    extremities = _extremities(row)
    servers, more_servers = await view_servers(services, row.room_nid)
    sticky, more_sticky = await view_sticky_events(services, row.room_nid, row.state_id, servers)
    stays, more_stays = await view_stays(services, row.room_nid)
    page = await _page(services, row.room_nid, before)
    graph = page[:GRAPH_EVENTS_MAX]
    refused = await inspector.list_refused(
        services.db, services.events, row.room_nid, REFUSED_MAX + 1
    )
    shown = await show(services, [*graph, *refused[:REFUSED_MAX]], extremities)
    names = await _names(services, {row.state_id})
    return RoomView(
        server_name=services.server_name,
        room_id=room_id,
        name=names.get(row.state_id),
        room_version=row.room_version,
        now_ms=services.clock.now_ms(),
        position=services.follower.head,
        joined=row.joined_count,
        state_id=row.state_id,
        servers=servers,
        more_servers=more_servers,
        forward_extremities=extremities,
        sticky_events=sticky,
        more_sticky_events=more_sticky,
        redacted_stays=stays,
        more_redacted_stays=more_stays,
        graph=shown[: len(graph)],
        is_newest=before is None,
        older=graph[-1].order if len(page) > GRAPH_EVENTS_MAX else None,
        refused=shown[len(graph) :],
        more_refused=len(refused) > REFUSED_MAX,
    )


async def view_event_of_room(services: Services, room_id: str, event_id: str) -> EventView:
    """Return one event of a room with everything that is known of it.

    Raises:
        NotFound: this server does not know the room, or not this event of it.
    """
    row = await _room(services, room_id)
    return await view_event(services, room_id, EventId(event_id), _extremities(row))


def _extremities(row: RoomRow) -> list[EventId]:
    return [EventId(event_id) for event_id, _ in row.extremities]


async def _room(services: Services, room_id: str) -> RoomRow:
    row = await rooms.fetch_room(services.db, RoomId(room_id))
    if row is None:
        raise NotFound("This server does not know the room.")
    return row


async def _page(
    services: Services, room_nid: int, before: tuple[int, int] | None
) -> list[StoredEvent]:
    """Return accepted events before a place, newest first: one more than a page has."""
    start = NEWEST if before is None else (before[0], before[1] - 1)
    return await event_reads.list_range(
        services.db, services.events, room_nid, start, OLDEST,
        backward=True, limit=GRAPH_EVENTS_MAX + 1,
    )  # fmt: skip


async def _names(services: Services, state_ids: Collection[int]) -> dict[int, str]:
    """Return the names of rooms by their current states, of those that have one."""
    entries = await state_reads.load_entries(services.states, services.db, state_ids, [NAME])
    events = await services.events.get_many(e for found in entries.values() for e in found.values())
    names: dict[int, str] = {}
    for state_id, found in entries.items():
        stored = events.get(found[NAME]) if NAME in found else None
        name = as_shown(stored).content.get("name") if stored is not None else None
        if isinstance(name, str) and name:
            names[state_id] = name
    return names
