"""The joined rooms of a sync answer.

What happened in a room between two positions is the same for all who were joined all the while. So
it is computed once for a hundred waiting clients, kept for as long as they come to fetch it, and
completed with what is each reader's own: counts, account data, transaction ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import orjson

from minihs.base.caching import BoundedCache
from minihs.protocol import canonical_json, unstable
from minihs.services.rooms import client_events
from minihs.services.sync import assemble
from minihs.services.sync.streams import ephemeral, state, sticky_events, summary, timeline
from minihs.services.sync.streams.sticky_events import Shown, StickySection
from minihs.storage import rooms
from minihs.storage.event_store import StoredEvent

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from minihs.protocol.identifiers import EventId
    from minihs.services.context import Services
    from minihs.services.rooms.client_events import Reader
    from minihs.services.sync.assemble import Json
    from minihs.services.sync.spans import Span, SyncRequest
    from minihs.services.sync.streams.timeline import Timeline
    from minihs.storage.state import State

SHARED_BYTES = 16 * 1_048_576
ROOMS_MAX = 10_000
# Clients may rely on the sections of a room that they are shown.
NO_EVENTS: Final[dict[str, list[object]]] = {"events": []}
# State from which clients work out what to call a room.
NAMING: Final = frozenset({"m.room.member", "m.room.name", "m.room.canonical_alias"})
NAMES: Final = frozenset({"m.room.name", "m.room.canonical_alias"})
AGE_GRAIN_MS = 1_000  # `age`, and what is left of stickiness, are at most this old.


@dataclass(frozen=True, slots=True)
class SharedPart:
    """A room's part of an answer that is the same for everybody; empty JSON: nothing to show.

    `told` are the devices and users to whom something in it tells how they sent it. `renames`:
    what the room is to be called may have changed, so that its summary is due.
    """

    json: Json
    shown: Shown
    told: frozenset[int | str]
    renames: bool


class SharedParts:
    """The parts computed lately, by room, span and filter; and the rooms by the numbers in tokens.

    What a number stands for never changes.
    """

    def __init__(self) -> None:
        self.rooms: BoundedCache[int, str] = BoundedCache(ROOMS_MAX)
        self.cache: BoundedCache[tuple[object, ...], SharedPart | None] = BoundedCache(SHARED_BYTES)


async def joined_rooms(
    services: Services,
    request: SyncRequest,
    spans: Sequence[Span],
    joined: Sequence[Span],
    account_data: set[str],
) -> tuple[dict[str, Json], StickySection]:
    """Return the JSON of each joined room in which something happened, and what was sticky in it.

    `spans` are of the rooms in which something may have happened, `joined` of those in which sticky
    events may be owed; `account_data` are the rooms in which the reader's account data changed.
    """
    parts: dict[str, Json] = {}
    shown: dict[str, Shown] = {}
    renamed: set[str] = set()
    from_database: list[Span] = []
    for span in spans:
        if request.since is None or request.full_state or not timeline.in_memory(services, span):
            from_database.append(span)
            continue
        part = await _shared(services, request, span)
        if part is not None and part.json:
            parts[span.room_id] = dict(part.json)
            shown[span.room_id] = part.shown
            if part.renames:
                renamed.add(span.room_id)
        events = ephemeral.read_window(services, request, span)
        if events:
            parts.setdefault(span.room_id, {})["ephemeral"] = {"events": events}
    if from_database:
        renamed |= await _from_database(services, request, from_database, parts, shown)
    for span in spans:
        if span.room_id in account_data:
            parts.setdefault(span.room_id, {})
    counted = list(parts)  # Where there is but something sticky, nothing else has changed.
    sticky = await sticky_events.read(
        services, request, joined, shown, left_max=sticky_events.ROOMS_LEFT_MAX
    )
    await _add_sticky_events(services, request, parts, shown, sticky.events)
    await _add_summaries(services, request, parts, shown, renamed)
    await _add_counts(services, request, parts, counted)
    for part_json in parts.values():
        part_json.setdefault(
            "timeline", {"events": [], "limited": False, "prev_batch": _here(joined)}
        )
        part_json.setdefault("ephemeral", NO_EVENTS)
        part_json.setdefault("account_data", NO_EVENTS)
        part_json.setdefault(request.state_section, NO_EVENTS)
    return parts, sticky


async def _add_sticky_events(
    services: Services,
    request: SyncRequest,
    parts: dict[str, Json],
    shown: Mapping[str, Shown],
    found: Mapping[str, Sequence[StoredEvent]],
) -> None:
    """Put sticky events into their section, and their senders where members are loaded lazily.

    MSC4354#sync-api-changes
    """
    for room_id, events in found.items():
        await client_events.prepare(services, events)
        now_ms, reader = services.clock.now_ms(), request.requester
        part = parts.setdefault(room_id, {})
        section = {
            "events": [
                assemble.event_json(stored, request.filter, now_ms, reader, None)
                for stored in events
            ]
        }
        for name in unstable.STICKY_SYNC_SECTION.written:
            part[name] = section
    if found and request.filter.room.state.lazy_load_members:
        ids = await rooms.list_current_states(services.db, list(found))
        states = await services.states.get_many(ids.values())
        current = {room_id: states[state_id] for room_id, state_id in ids.items()}
        senders = {r: {stored.event.sender for stored in events} for r, events in found.items()}
        await _add_members(services, request, parts, shown, current, senders)


async def _add_members(
    services: Services,
    request: SyncRequest,
    parts: Mapping[str, Json],
    shown: Mapping[str, Shown],
    current: Mapping[str, State],
    wanted: Mapping[str, Collection[str]],
) -> None:
    """Add the member events of some users to the state section of rooms, where they are not there.

    Spec: client-server-api#lazy-loading-room-members
    """
    ids: dict[str, list[EventId]] = {}
    for room_id, user_ids in wanted.items():
        in_timeline = shown[room_id].event_ids if room_id in shown else ()
        if request.use_state_after:
            in_timeline = ()  # The client does not take the state from there.
        found = (current[room_id].get("m.room.member", user_id) for user_id in user_ids)
        ids[room_id] = [e for e in found if e is not None and e not in in_timeline]
    events = await services.events.get_many({e for of_room in ids.values() for e in of_room})
    await client_events.prepare(services, events.values())
    now_ms, filter_, name = services.clock.now_ms(), request.filter, request.state_section
    for room_id, of_room in ids.items():
        part = parts[room_id]
        already = canonical_json.decode(orjson.dumps(part.get(name, NO_EVENTS)))
        known = already["events"] if isinstance(already, dict) else []
        have = {event.get("event_id") for event in known if isinstance(event, dict)}
        more = [
            assemble.event_json(events[event_id], filter_, now_ms, request.requester, None)
            for event_id in of_room
            if event_id in events
            and event_id not in have
            and timeline.passes(events[event_id], filter_.room.state, frozenset())
        ]
        if more:
            part[name] = {"events": [*known, *more]}


def _here(spans: Sequence[Span]) -> str:
    return f"s{max(span.upto for span in spans)}"


async def _shared(services: Services, request: SyncRequest, span: Span) -> SharedPart | None:
    """Return the part of a span in memory, computed by whoever asks first."""
    first = last = None
    for position, item in reversed(services.follower.room_items(span.room_id)):
        if position <= span.after:
            break
        if position <= span.upto and isinstance(item, StoredEvent):
            first, last = position, last or position
    if last is None:
        return None
    now_ms = services.clock.now_ms()
    key = (
        span.room_id, first, last, request.filter.signature, request.state_section,
        request.ignored, now_ms // AGE_GRAIN_MS,
        request.user_id if request.filter.room.state.lazy_load_members else "",
    )  # fmt: skip
    cache = services.shared_parts.cache
    part = cache.get(key)
    if part is None:
        found = timeline.read_window(services, request, span)
        if found is None:
            return None
        part = await _part(services, request, span, found, None)
        cache.put(key, part, 1_000 + 1_000 * len(found.events))
    if part.told and not part.told.isdisjoint(
        (request.requester.device_nid, request.requester.user_id)
    ):
        found = timeline.read_window(services, request, span)
        if found is not None:
            return await _part(services, request, span, found, request.requester)
    return part


async def _part(
    services: Services,
    request: SyncRequest,
    span: Span,
    found: Timeline,
    reader: Reader | None,
) -> SharedPart:
    states = await state.state_sections(services, request, [(span, found)])
    await client_events.prepare(services, [*found.events, *states[span.room_id]])
    names = await _redacted_names(services, found.events)
    return _written(services, request, found, states[span.room_id], reader, names)


async def _redacted_names(services: Services, events: Sequence[StoredEvent]) -> set[EventId]:
    """Return those of the events that took a name away by redacting it."""
    targets = {
        stored.event.redacts
        for stored in events
        if stored.event.type == "m.room.redaction"
        and stored.event.redacts is not None
        and "\0" not in stored.event.redacts
    }
    if not targets:
        return set()
    return {
        stored.redacted_by
        for stored in (await services.events.get_many(targets)).values()
        if stored.event.type in NAMES and stored.redacted_by is not None
    }


def _written(
    services: Services,
    request: SyncRequest,
    found: Timeline,
    states: Sequence[StoredEvent],
    reader: Reader | None,
    redacted_names: Collection[EventId],
) -> SharedPart:
    now_ms = services.clock.now_ms()
    json: Json = {}
    if found.events or found.limited:
        json["timeline"] = _fragment(assemble.timeline_json(found, request.filter, now_ms, reader))
    if states or (json and request.use_state_after):
        json[request.state_section] = _fragment(
            assemble.state_json(states, request.filter, now_ms, reader)
        )
    everything = [*found.events, *states]
    return SharedPart(
        json,
        Shown(
            frozenset(stored.event_id for stored in found.events),
            found.events[0].position if found.events else None,
            found.hides,
            is_whole=not found.limited,
        ),
        frozenset(s.device_nid or s.event.sender for s in everything if s.txn_id is not None),
        any(stored.event_id in redacted_names for stored in found.events)
        or (
            found.state_since != found.state_end
            and any(stored.event.type in NAMING for stored in everything)
        ),
    )


def _fragment(value: object) -> orjson.Fragment:
    return orjson.Fragment(orjson.dumps(value))


async def _from_database(
    services: Services,
    request: SyncRequest,
    spans: Sequence[Span],
    parts: dict[str, Json],
    shown: dict[str, Shown],
) -> set[str]:
    """Add parts of spans that the window does not hold; return the rooms that it renames."""
    found = await timeline.read_database(services, request, spans)
    pairs = [(span, found[span.room_id]) for span in spans if span.room_id in found]
    states = await state.state_sections(services, request, pairs)
    await client_events.prepare(
        services,
        [s for _, t in pairs for s in t.events] + [s for events in states.values() for s in events],
    )
    names = await _redacted_names(services, [s for _, t in pairs for s in t.events])
    renamed: set[str] = set()
    for span, of_room in pairs:
        part = _written(services, request, of_room, states[span.room_id], request.requester, names)
        shown[span.room_id] = part.shown
        if part.json or span.is_new or request.full_state:
            parts[span.room_id] = part.json
        if part.renames or span.is_new or request.full_state:
            renamed.add(span.room_id)
    for room_id, events in (await ephemeral.read_database(services, request, spans)).items():
        if events:
            parts.setdefault(room_id, {})["ephemeral"] = {"events": events}
    return renamed


async def _add_summaries(
    services: Services,
    request: SyncRequest,
    parts: Mapping[str, Json],
    shown: Mapping[str, Shown],
    renamed: set[str],
) -> None:
    """Say how many are in rooms and whom to name them after; who loads lazily must know those."""
    if not renamed:
        return
    ids = await rooms.list_current_states(services.db, list(renamed))
    states = await services.states.get_many(ids.values())
    current = {room_id: states[state_id] for room_id, state_id in ids.items()}
    found = await summary.summaries(services, request.user_id, current)
    for room_id, of_room in found.items():
        parts[room_id]["summary"] = of_room.json()
    if request.filter.room.state.lazy_load_members:
        heroes = {room_id: of_room.heroes for room_id, of_room in found.items() if of_room.heroes}
        await _add_members(services, request, parts, shown, current, heroes)


async def _add_counts(
    services: Services, request: SyncRequest, parts: dict[str, Json], counted: Sequence[str]
) -> None:
    if not counted:
        return
    by_thread = request.filter.room.timeline.unread_thread_notifications
    counts = await services.unread.load_many((request.user_id, room_id) for room_id in counted)
    for (_, room_id), of_room in counts.items():
        parts[room_id] |= assemble.unread_json(of_room, by_thread=by_thread)
