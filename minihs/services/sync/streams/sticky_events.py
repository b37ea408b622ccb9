"""Sticky events: every joined user gets each of them, once, for as long as it lives.

They come in a section of their own, whatever the timeline's limit left out. In the stream they lie
at the position at which they became deliverable. A client has had those up to its token's position;
of a room that it joined since it has had none. What does not fit into one answer stays in the token
as a backlog of the room, and rooms take turns, so that nobody's flood delays another room's call.

Those of ignored users are left out before anything is counted. Whoever is ignored no longer is made
up for: what the client passed over then, and is still sticky, comes now, and before anything else:
as long as some of it is left, no backlog moves, and so tells what was passed over.

MSC4354#sync-api-changes
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.services.sync.positions import UNIGNORED_MAX, StickyBacklog, Unignored
from minihs.services.sync.streams.timeline import passes
from minihs.storage import sticky_events
from minihs.storage.stream_rows import StickyEvent, UnignoredUser

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minihs.protocol.identifiers import EventId
    from minihs.services.context import Services
    from minihs.services.sync.spans import Span, SyncRequest
    from minihs.storage.event_store import StoredEvent
    from minihs.storage.sticky_events import LiveStickyEvent


@dataclass(frozen=True, slots=True)
class Shown:
    """What a timeline showed: its events, and the position of the first of them.

    `hides`: the history visibility kept some from the reader who joined only lately. `is_whole`:
    the limit left nothing out.
    """

    event_ids: frozenset[str]
    first: int | None
    hides: bool = False
    is_whole: bool = False


EVENTS_MAX = 100  # Of all rooms, in one answer.
SPANS_MAX = 20  # A client that pages without end may see an event of the oldest span twice.
SPANS_OF_ALL_MAX = 128  # In one token.
EVENTS_PER_ROOM_MAX = 50  # While other rooms wait.
# Rooms of which a token of /sync says what is left: it goes into a URL, of which many proxies let
# 8 KiB through. What is left of more rooms comes at once.
ROOMS_LEFT_MAX = 64
LEFT_OUT_MAX = 200  # Rooms with something sticky of which a token says that nobody asked for it.


@dataclass(frozen=True, slots=True)
class StickySection:
    """The sticky events to deliver, by room, and what remains: of rooms, of unignored users."""

    events: Mapping[str, Sequence[StoredEvent]]
    backlogs: Mapping[int, StickyBacklog]
    unignored: Sequence[Unignored] = ()


NOTHING = StickySection({}, {})


async def read(
    services: Services,
    request: SyncRequest,
    spans: Sequence[Span],
    shown: Mapping[str, Shown],
    *,
    limit: int = EVENTS_MAX,
    left_max: int | None = None,
) -> StickySection:
    """Return the sticky events of joined rooms that the client lacks, at most `limit`.

    `spans` are of all joined rooms whose sticky events the request is about; `shown` are
    the timelines of the same answer. The events are not checked against the history
    visibility: whoever is joined may see what is sticky now. With `left_max`, there are more than
    `limit` where otherwise something would be left of more rooms than that.

    MSC4354#sync-api-changes
    """
    backlogs = await _backlogs_of(services, request, spans)
    wanted = [
        (span, backlogs.get(span.room_id), delivered_upto(span, backlogs.get(span.room_id)))
        for span in spans
        if span.is_new or span.room_id in backlogs or has_news(services, request, span)
    ]
    by_room, stored = await _lacking(services, request, wanted, shown, limit)
    owed = _owed_of_unignored(services, request)
    if not by_room and not owed:
        return NOTHING
    found, rest = await _of_unignored(services, request, spans, backlogs, shown, owed, limit)
    left = 0 if rest else max(limit - sum(map(len, found.values())), 0)
    chosen = _take_turns(by_room, left, limit, left_max)
    remaining: dict[int, StickyBacklog] = {}
    for span, backlog, _ in wanted:
        events, taken = by_room.get(span.room_id, []), chosen.get(span.room_id, [])
        if len(taken) < len(events):
            upto_now = taken[-1].position if taken else delivered_upto(span, backlog)
            remaining[events[0].room_nid] = _left_over(
                upto_now, backlog, span, shown.get(span.room_id)
            )
    if sum(len(backlog.shown) for backlog in remaining.values()) > SPANS_OF_ALL_MAX:
        remaining = {n: StickyBacklog(b.upto, b.shown[-1:]) for n, b in remaining.items()}
    for room_id, events in chosen.items():
        found.setdefault(room_id, []).extend(stored[event.event_id] for event in events)
    return StickySection(found, remaining, rest)


async def _lacking(
    services: Services,
    request: SyncRequest,
    wanted: Sequence[tuple[Span, StickyBacklog | None, int]],
    shown: Mapping[str, Shown],
    limit: int,
) -> tuple[dict[str, list[LiveStickyEvent]], dict[EventId, StoredEvent]]:
    """Return the sticky events that the client lacks: of each room all, or more than `limit`.

    `wanted` are spans, each with its backlog and the position up to which it is delivered.
    """
    lacking: dict[str, list[LiveStickyEvent]] = {}
    stored: dict[EventId, StoredEvent] = {}
    backlogs = {span.room_id: backlog for span, backlog, _ in wanted}
    asked = {span.room_id: (after, span.after) for span, _, after in wanted}
    while asked:
        live = await sticky_events.list_live(
            services.db,
            [(room_id, *bounds) for room_id, bounds in asked.items()],
            wanted[0][0].upto,
            services.clock.now_ms(),
            ignored=request.ignored,
            limit=limit + 1,
        )
        stored |= await services.events.get_many([event.event_id for event in live])
        listed: dict[str, list[LiveStickyEvent]] = {}
        for event in live:
            listed.setdefault(event.room_id, []).append(event)
            known, backlog = stored.get(event.event_id), backlogs[event.room_id]
            if known is None or known.redacted_by is not None:
                continue
            if event.room_id in shown and event.event_id in shown[event.room_id].event_ids:
                continue
            if backlog is not None and _was_shown(request, backlog, event, known):
                continue
            lacking.setdefault(event.room_id, []).append(event)
        asked = {  # Where timelines showed so much of it that there may be more behind.
            room_id: (events[-1].position, asked[room_id][1])
            for room_id, events in listed.items()
            if len(events) > limit and len(lacking.get(room_id, ())) <= limit
        }
    return lacking, stored


async def backlogs_by_room(services: Services, request: SyncRequest) -> dict[str, StickyBacklog]:
    """Return the backlogs of the client's token, by room."""
    if not request.backlogs:
        return {}
    known = services.shared_parts.rooms
    unknown = [nid for nid in request.backlogs if known.get(nid) is None]
    rooms = await sticky_events.list_rooms_by_nid(services.db, unknown) if unknown else {}
    for nid, room_id in rooms.items():
        known.put(nid, room_id)
    named = [(known.get(nid), backlog) for nid, backlog in request.backlogs.items()]
    return {room_id: backlog for room_id, backlog in named if room_id is not None}


async def _backlogs_of(
    services: Services, request: SyncRequest, spans: Sequence[Span]
) -> dict[str, StickyBacklog]:
    """Return the backlogs of spans; one of an earlier stay in a room counts for nothing."""
    backlogs = await backlogs_by_room(services, request)
    known = [span for span in spans if span.room_id in backlogs and not span.is_new]
    return {span.room_id: backlogs[span.room_id] for span in known}


async def left_out(
    services: Services, request: SyncRequest, spans: Sequence[Span]
) -> dict[int, StickyBacklog]:
    """Return the backlogs of rooms that the request is not about, for when another one is.

    Where unignored users are owed something, that is where it begins, and what others sent after it
    comes twice.
    """
    backlogs = await _backlogs_of(services, request, spans)
    places = {
        span.room_id: delivered_upto(span, backlogs.get(span.room_id))
        for span in spans
        if span.is_new or span.room_id in backlogs or has_news(services, request, span)
    }
    begins = await _begins_of_unignored(services, request, spans)
    for room_id, place in begins.items():
        places[room_id] = min(place, places.get(room_id, place))
    if not places:
        return {}
    live = await sticky_events.list_live(
        services.db,
        [(room_id, after, after) for room_id, after in places.items()],
        spans[0].upto,
        services.clock.now_ms(),
        ignored=request.ignored,
        limit=1,
    )
    return {
        event.room_nid: StickyBacklog(
            places[event.room_id],
            ()
            if event.room_id in begins or event.room_id not in backlogs
            else backlogs[event.room_id].shown,
        )
        for event in live[-LEFT_OUT_MAX:]
    }


def delivered_upto(span: Span, backlog: StickyBacklog | None) -> int:
    """Return the position up to which the client has a room's sticky events."""
    if span.is_new:
        return 0
    return span.after if backlog is None else backlog.upto


def has_news(services: Services, request: SyncRequest, span: Span) -> bool:
    """Return whether a room may have new sticky events; False only when it certainly has none."""
    if request.since is None or services.follower.floor > span.after:
        return True
    for position, item in reversed(services.follower.room_items(span.room_id)):
        if position <= span.after:
            return False
        if isinstance(item, StickyEvent) and position <= span.upto:
            return True
    return False


def may_owe_unignored(services: Services, request: SyncRequest) -> bool:
    """Return whether the reader may have ceased to ignore somebody since they synced last."""
    return bool(_owed_of_unignored(services, request))


def _owed_of_unignored(services: Services, request: SyncRequest) -> Sequence[Unignored]:
    """Return what unignored users are owed, as far as memory tells; empty: nothing for certain."""
    since, owed = request.since, request.unignored
    if since is None or (owed and owed[-1].since == since):
        return owed
    if services.follower.floor > since or any(
        isinstance(item, UnignoredUser) and item.user_id == request.user_id
        for item in services.follower.items_after(since)
    ):
        return (*owed, Unignored(since))
    return owed


async def _owed_to(
    services: Services,
    request: SyncRequest,
    spans: Sequence[Span],
    owed: Sequence[Unignored],
    number: int,
) -> tuple[set[str], list[tuple[str, int]]]:
    """Return whom one of those that are `owed` is about; of each room, up to where it is owed."""
    since = owed[number].since
    until = owed[number + 1].since if number + 1 < len(owed) else services.follower.head
    senders = set(await sticky_events.list_unignored(services.db, request.user_id, since, until))
    rooms = [  # Of one that the user joined later everything comes anyway.
        (span.room_id, since)
        for span in spans
        if span.joined_at is not None and span.joined_at <= since
    ]
    return senders - request.ignored, rooms


async def _begins_of_unignored(
    services: Services, request: SyncRequest, spans: Sequence[Span]
) -> dict[str, int]:
    """Return the places in rooms before the first event that unignored users are owed there."""
    begins: dict[str, int] = {}
    owed = _owed_of_unignored(services, request)
    for number, of_some in enumerate(owed):
        senders, rooms = await _owed_to(services, request, spans, owed, number)
        while senders and rooms:
            live = await sticky_events.list_live_of_senders(
                services.db,
                rooms,
                of_some.upto,
                services.clock.now_ms(),
                senders=senders,
                limit=EVENTS_MAX,
            )
            for event in live:
                place = event.position - 1
                begins[event.room_id] = min(place, begins.get(event.room_id, place))
            if len(live) < EVENTS_MAX:
                break
            found = {event.room_id for event in live}
            rooms = [room for room in rooms if room[0] not in found]
    return begins


async def _of_unignored(
    services: Services,
    request: SyncRequest,
    spans: Sequence[Span],
    backlogs: Mapping[str, StickyBacklog],
    shown: Mapping[str, Shown],
    owed: Sequence[Unignored],
    limit: int,
) -> tuple[dict[str, list[StoredEvent]], Sequence[Unignored]]:
    """Return what unignored users sent that the client passed over, and what is left of it.

    What lies ahead in a room's backlog comes with that, unless a timeline is said to have shown it:
    it left these users out. What is left of more than a token says comes at once.
    """
    found: dict[str, list[StoredEvent]] = {}
    for number, of_some in enumerate(owed):
        senders, rooms = await _owed_to(services, request, spans, owed, number)
        if not senders or not rooms:
            continue
        upto = of_some.upto
        while True:
            page = limit - sum(map(len, found.values()))
            if len(owed) - number > UNIGNORED_MAX:
                page = max(page, EVENTS_MAX)
            if page <= 0:
                return found, (Unignored(of_some.since, upto), *owed[number + 1 :])
            live = await sticky_events.list_live_of_senders(
                services.db, rooms, upto, services.clock.now_ms(), senders=senders, limit=page + 1
            )
            stored = await services.events.get_many([event.event_id for event in live])
            for event in live[:page]:
                known, backlog = stored.get(event.event_id), backlogs.get(event.room_id)
                if known is None or known.redacted_by is not None:
                    continue
                if event.room_id in shown and event.event_id in shown[event.room_id].event_ids:
                    continue
                if (
                    backlog is None
                    or event.position <= backlog.upto
                    or backlog.was_shown(event.position)
                ):
                    found.setdefault(event.room_id, []).append(known)
            if len(live) <= page:
                break
            upto = live[page - 1].position
    return found, ()


def _was_shown(
    request: SyncRequest, backlog: StickyBacklog, event: LiveStickyEvent, stored: StoredEvent
) -> bool:
    """Return whether the timeline of the answer that left the backlog showed the event already."""
    return (
        backlog.was_shown(event.position)
        and stored.position == event.position  # It did not become deliverable later.
        and passes(stored, request.filter.room.timeline, request.ignored)
    )


def _left_over(
    upto: int, backlog: StickyBacklog | None, span: Span, shown: Shown | None
) -> StickyBacklog:
    """Return the backlog of a room, with the parts of it that timelines showed for certain."""
    spans = [s for s in (backlog.shown if backlog is not None else ()) if s[1] > upto]
    if shown is not None and shown.first is not None:
        first = span.after + 1 if shown.is_whole else shown.first
        if shown.hides:
            first = max(first, span.joined_at or 0)
        if spans and spans[-1][1] == first - 1:
            first = spans.pop()[0] + 1
        spans.append((first - 1, span.upto))
    return StickyBacklog(upto, tuple(spans[-SPANS_MAX:]))


def _take_turns(
    by_room: Mapping[str, Sequence[LiveStickyEvent]],
    left: int,
    limit: int,
    left_max: int | None,
) -> dict[str, list[LiveStickyEvent]]:
    """Return what goes into one answer: of each room the oldest, fairly shared.

    There is room for `left`; of a room that lacks no more than `limit` all is known. If something
    would be left of more than `left_max` rooms, those that have least come whole.
    """
    room_max = EVENTS_PER_ROOM_MAX if len(by_room) > 1 else limit
    chosen: dict[str, list[LiveStickyEvent]] = {room_id: [] for room_id in by_room}
    turn = 0
    while left and turn < room_max:
        took = False
        for room_id, events in by_room.items():
            if turn < len(events) and left:
                chosen[room_id].append(events[turn])
                left -= 1
                took = True
        if not took:
            break
        turn += 1
    if left_max is not None:
        left_over = [r for r, events in by_room.items() if len(chosen[r]) < len(events)]
        left_over.sort(key=lambda room_id: len(by_room[room_id]))
        for room_id in left_over[: max(len(left_over) - left_max, 0)]:
            if len(by_room[room_id]) <= limit:  # Else it is not all that there is.
                chosen[room_id] = list(by_room[room_id])
    return {room_id: events for room_id, events in chosen.items() if events}
