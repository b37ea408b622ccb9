"""Timelines and state: what happened in rooms, and the state that makes sense of it.

A span is read from the stream's window in memory where that reaches back far enough, else from the
database, many rooms with one statement. Either way the result is the same `Timeline`.

Spec: client-server-api#syncing
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from minihs.base.limits import TIMELINE_LIMIT_DEFAULT, TIMELINE_LIMIT_MAX
from minihs.services.rooms import visibility
from minihs.services.rooms.tokens import Place, format_place, place_before
from minihs.storage import timelines
from minihs.storage.event_store import ACCEPTED, StoredEvent
from minihs.storage.state import EMPTY_STATE_ID

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minihs.protocol.filters import EventFilter
    from minihs.protocol.identifiers import EventId, StateKey
    from minihs.services.context import Services
    from minihs.services.sync.spans import Span, SyncRequest
    from minihs.storage.state import State

# Filters that let little through are given this many events to choose from, not the whole room.
SCANNED_MAX = 1_000
CHUNK = 100


@dataclass(frozen=True, slots=True)
class Timeline:
    """A span's events, oldest first, with the reader's membership at each.

    `state_since`, `state_start` and `state_end` are the room's state at the beginning of the span,
    before the first event shown, and at its end. `hides`: the history visibility kept something
    from the reader. `outside`: the event by which the reader is in the room no longer.
    """

    events: Sequence[StoredEvent]
    memberships: Sequence[str]
    limited: bool
    prev_batch: str
    state_since: int
    state_start: int
    state_end: int
    hides: bool = False
    outside: StoredEvent | None = None


def limit_of(filter_: EventFilter) -> int:
    """Return how many events a timeline may have."""
    limit = TIMELINE_LIMIT_DEFAULT if filter_.limit is None else filter_.limit
    return min(limit, TIMELINE_LIMIT_MAX)


def in_memory(services: Services, span: Span) -> bool:
    """Return whether the window of the stream holds the whole span."""
    return services.follower.floor <= span.after and span.is_open


def read_window(services: Services, request: SyncRequest, span: Span) -> Timeline | None:
    """Return the timeline of a span that is in memory and open; None when nothing happened."""
    chosen: list[StoredEvent] = []
    filter_, limit, limited = (
        request.filter.room.timeline,
        limit_of(request.filter.room.timeline),
        False,
    )
    newest = oldest = None
    for position, item in reversed(services.follower.room_items(span.room_id)):
        if position <= span.after:
            break
        if not isinstance(item, StoredEvent) or position > span.upto or item.status != ACCEPTED:
            continue
        if item.order is None:
            continue  # It came when nobody here was in the room.
        newest, oldest = newest or item, item
        if passes(item, filter_, request.ignored):
            if len(chosen) < limit:
                chosen.append(item)
            else:
                limited = True
    if newest is None or oldest is None:
        return None
    chosen.reverse()
    if (start := _after_last_gap(chosen)) is not None:
        chosen, limited = chosen[start:], True
    return Timeline(
        chosen,
        ["join"] * len(chosen),
        limited,
        _prev_batch(chosen, span),
        oldest.room_state_before or EMPTY_STATE_ID,
        _state_start(chosen, newest),
        newest.room_state_after or EMPTY_STATE_ID,
    )


def of_outsider(left: StoredEvent, user_id: str, position: int) -> Timeline:
    """Return the timeline of who never was in a room: invited, knocking, banned, and now outside.

    All that they know of the room is the event by which that came about, if it is about them.
    """
    own = [left] if left.event.key == ("m.room.member", user_id) else []
    return Timeline(
        own, ["leave"] * len(own), False, format_place(Place(position)),  # noqa: FBT003
        EMPTY_STATE_ID, EMPTY_STATE_ID, EMPTY_STATE_ID, outside=left,
    )  # fmt: skip


def as_of_end(found: Timeline, outside: StoredEvent | None, end: StoredEvent | None) -> Timeline:
    """Return the timeline of who left a room by `end`, with no state from after it.

    `outside` is the event by which they are outside now, if that is known.
    """
    if end is None or end.order is None:
        return replace(found, outside=outside)
    state_end = end.room_state_after or EMPTY_STATE_ID
    first = found.events[0].order if found.events else None
    inside = first is not None and first <= end.order
    state_start = found.state_start if inside else state_end
    return replace(found, state_start=state_start, state_end=state_end, outside=outside)


async def read_database(
    services: Services, request: SyncRequest, spans: Sequence[Span]
) -> dict[str, Timeline]:
    """Return the timelines of spans, by room; rooms in which nothing happened are left out."""
    filter_ = request.filter.room.timeline
    limit = limit_of(filter_)
    ends = await timelines.list_states_at(services.db, [(s.room_id, s.upto) for s in spans])
    begun = [(s.room_id, s.after) for s in spans if not s.is_new]
    starts = await timelines.list_states_at(services.db, begun) if begun else {}
    chosen, limited, hiding = await _choose(services, request, spans, limit)
    await _note_gaps(services, [stored for events in chosen.values() for stored, _ in events])
    found: dict[str, Timeline] = {}
    for span in spans:
        room_id = span.room_id
        if room_id not in ends:
            continue
        events = chosen[room_id]
        quiet = not events and starts.get(room_id) == ends[room_id]
        if quiet and not span.is_new and not request.full_state:
            continue
        if (start := _after_last_gap([stored for stored, _ in events])) is not None:
            events, limited[room_id] = events[start:], True
        shown = [stored for stored, _ in events]
        since = EMPTY_STATE_ID if span.is_new else starts.get(room_id, EMPTY_STATE_ID)
        found[room_id] = Timeline(
            shown,
            [membership for _, membership in events],
            limited[room_id],
            _prev_batch(shown, span),
            since,
            shown[0].room_state_before or EMPTY_STATE_ID if shown else ends[room_id],
            ends[room_id],
            room_id in hiding,
        )
    return found


async def _choose(
    services: Services, request: SyncRequest, spans: Sequence[Span], limit: int
) -> tuple[dict[str, list[tuple[StoredEvent, str]]], dict[str, bool], set[str]]:
    """Return the newest events of each span to be shown, whether there are more, what hid any."""
    filter_ = request.filter.room.timeline
    plain = filter_.matches_all and not request.ignored
    chunk = limit + 1 if plain else max(CHUNK, limit + 1)
    chosen: dict[str, list[tuple[StoredEvent, str]]] = {s.room_id: [] for s in spans}
    limited = dict.fromkeys(chosen, False)
    hiding: set[str] = set()
    scanned = 0
    upto = {s.room_id: s.upto for s in spans}
    open_spans = list(spans)
    while open_spans:
        ranges = [(s.room_id, s.after, upto[s.room_id]) for s in open_spans]
        pages = await timelines.list_newest(services.db, services.events, ranges, chunk)
        scanned += chunk
        passing = [[e for e in page if passes(e, filter_, request.ignored)] for page in pages]
        seen = await _visible(services, request, open_spans, passing)
        unfinished: list[Span] = []
        for span, page, all_, events in zip(open_spans, pages, passing, seen, strict=True):
            room_id = span.room_id
            if len(events) < len(all_):
                hiding.add(room_id)
            chosen[room_id] = events + chosen[room_id]
            more = len(page) == chunk
            if len(chosen[room_id]) > limit:
                limited[room_id] = True
                chosen[room_id] = chosen[room_id][-limit:] if limit else []
            elif more and scanned >= SCANNED_MAX:
                limited[room_id] = True
            elif more:
                upto[room_id] = (page[0].order or (1, 0))[0] - 1
                unfinished.append(span)
            if span.is_new and request.since is not None:
                limited[room_id] = True  # A gap for the client: it has nothing from before.
        open_spans = unfinished
    return chosen, limited, hiding


async def _visible(
    services: Services,
    request: SyncRequest,
    spans: Sequence[Span],
    pages: Sequence[list[StoredEvent]],
) -> list[list[tuple[StoredEvent, str]]]:
    """Return, of each page, the events that the reader may see, with their membership then."""
    joined_at = {s.room_id: s.joined_at for s in spans if s.joined_at is not None}
    asked = [
        stored
        for span, page in zip(spans, pages, strict=True)
        if not span.is_open
        for stored in page
    ]
    found = await visibility.visible(services, request.user_id, asked, joined_at=joined_at)
    allowed = {seen[0].event_id: seen for seen in found}
    for stored in asked:  # Whoever declines an invite is shown that they did.
        if stored.event.type == "m.room.member" and stored.event.state_key == request.user_id:
            membership = str(stored.event.content.get("membership"))
            allowed.setdefault(stored.event_id, (stored, membership))
    return [
        [(stored, "join") for stored in page]
        if span.is_open
        else [allowed[stored.event_id] for stored in page if stored.event_id in allowed]
        for span, page in zip(spans, pages, strict=True)
    ]


async def _note_gaps(services: Services, events: Sequence[StoredEvent]) -> None:
    """Find out before which events something is missing; only others' can have come so."""
    foreign = [stored for stored in events if not services.is_local(stored.event.sender)]
    if foreign:
        nids = [stored.event_nid for stored in foreign]
        gaps = await timelines.list_after_gaps(services.db, nids)
        for stored in foreign:
            stored.after_gap = stored.event_nid in gaps


def _after_last_gap(events: Sequence[StoredEvent]) -> int | None:
    """Return where the events begin that follow one another without a gap; None: there is none.

    What lies before a gap is shown by paging back, which fills it.
    """
    return next((n for n in range(len(events) - 1, -1, -1) if events[n].after_gap), None)


def passes(stored: StoredEvent, filter_: EventFilter, ignored: frozenset[str]) -> bool:
    """Return whether an event is let into a timeline by the filter and the ignored users."""
    event = stored.event
    if visibility.is_dummy(stored):
        return False
    if ignored and event.sender in ignored and not event.is_state:
        return False
    return filter_.matches_all or filter_.matches(
        event_type=event.type,
        sender=event.sender,
        room_id=event.room_id,
        content=event.content,
    )


def _prev_batch(events: Sequence[StoredEvent], span: Span) -> str:
    return format_place(place_before(events[0]) if events else Place(span.upto))


def _state_start(events: Sequence[StoredEvent], newest: StoredEvent) -> int:
    """Return the state before the first event shown; at the end where none is."""
    state_id = events[0].room_state_before if events else newest.room_state_after
    return state_id or EMPTY_STATE_ID


def changes_between(old: State, new: State) -> Mapping[StateKey, EventId]:
    """Return the entries that `new` has and `old` has not."""
    if old.state_id == new.state_id:
        return {}
    if not old.entries:
        return new.entries
    entries = old.entries
    return {key: event for key, event in new.entries.items() if entries.get(key) != event}
