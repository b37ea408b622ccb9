"""What a sliding sync answer says of each room: all of it the first time, then what changed.

What changed is what two states of the room differ in: the one as of the position up to which the
connection was sent the room, and the current one. So nothing but that position need be remembered.

MSC4186#room-results
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from minihs.protocol import unstable
from minihs.protocol.client_format import stripped_state
from minihs.protocol.state_keys import AVATAR, NAME
from minihs.services.rooms import client_events
from minihs.services.rooms.tokens import Place, format_place
from minihs.services.sync import assemble
from minihs.services.sync.sliding_memory import Changes
from minihs.services.sync.sliding_plans import NO_FILTER, Plan, timeline_request
from minihs.services.sync.sliding_request import MEMBER
from minihs.services.sync.spans import Span
from minihs.services.sync.streams import timeline as timelines_of
from minihs.services.sync.streams.summary import HEROES_MAX
from minihs.storage import sliding, timelines
from minihs.storage.state import EMPTY_STATE, EMPTY_STATE_ID

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from minihs.protocol.identifiers import EventId, StateKey
    from minihs.services.context import Services
    from minihs.services.sync.assemble import Json
    from minihs.services.sync.sliding_lists import Rooms
    from minihs.services.sync.sliding_request import SlidingRequest
    from minihs.services.sync.streams.timeline import Timeline
    from minihs.storage.event_store import StoredEvent
    from minihs.storage.state import State

BUMPING = frozenset(
    ("m.room.create", "m.room.message", "m.room.encrypted", "m.sticker", "m.call.invite",
     "m.beacon_info", *unstable.POLL_START.spellings)
)  # fmt: skip
FACES: Final = (NAME, AVATAR)
BUMPS_SCANNED = 20  # Rooms whose last events do not bump them are looked at this far back.


@dataclass(frozen=True, slots=True)
class RoomPart:
    """What is said of a room: JSON, and the timeline in it; `hides` as that of a `Timeline`.

    `members` are the member events that the client has of it then, None where they come not lazily.
    """

    json: Json
    events: Sequence[StoredEvent]
    limited: bool
    hides: bool = False
    members: frozenset[EventId] | None = None


@dataclass(frozen=True, slots=True)
class _Read:
    """A room as read from the database: its timeline (None: nothing happened), its states.

    `emptied` is what was redacted in the timeline's span of what the room shows itself by.
    """

    timeline: Timeline | None
    changes: Changes
    state: State
    emptied: frozenset[StateKey] = frozenset()


async def room_parts(
    services: Services,
    request: SlidingRequest,
    rooms: Rooms,
    plans: Sequence[Plan],
    read_rooms: Collection[str],
) -> dict[str, RoomPart]:
    """Return what is said of each planned room that has news.

    `read_rooms` are those whose notification counts may have changed without an event.
    """
    inside = [plan for plan in plans if plan.room.kind != "outside"]
    read = await _read(services, request, rooms, inside)
    known = _known_members(services, request, inside, read)
    left = await _departures(services, request, plans)
    chosen = {
        plan.room_id: _required(
            plan, read[plan.room_id], known[plan.room_id], left.get(plan.room_id)
        )
        for plan in inside
    }
    wanted = {e for entries in chosen.values() for e in entries.values()}
    for plan in inside:
        for key in FACES:
            event_id = read[plan.room_id].state.entries.get(key)
            if event_id is not None and _is_news(plan, read[plan.room_id], key):
                wanted.add(event_id)
    events = await services.events.get_many(wanted)
    bumps = await _bumps(services, rooms, inside, read)
    shown = [s for r in read.values() if r.timeline is not None for s in r.timeline.events]
    await client_events.prepare(services, [*shown, *events.values(), *left.values()])
    parts = {
        plan.room_id: RoomPart(
            _outside(services, request, rooms, plan, left.get(plan.room_id)), (), limited=False
        )
        for plan in plans
        if plan.room.kind == "outside" and (plan.sent is None or plan.room.position > plan.after)
    }
    for plan in inside:
        found = read[plan.room_id]
        states = [
            events[event_id] for event_id in chosen[plan.room_id].values() if event_id in events
        ]
        json = _inside(services, request, plan, found, states, events)
        if plan.room_id in bumps:
            json["bump_stamp"] = bumps[plan.room_id]
        if json or plan.is_new or (plan.room_id in read_rooms and not request.merged):
            of_room = found.timeline
            parts[plan.room_id] = RoomPart(
                json,
                () if of_room is None else _shown(plan, of_room.events),
                of_room is not None and of_room.limited,
                of_room is not None and of_room.hides,
                known[plan.room_id] | {e for k, e in chosen[plan.room_id].items() if k[0] == MEMBER}
                if plan.rule.config.lazy_members
                else None,
            )
    await _add_members(services, request, inside, read, events, parts)
    await _add_counts(services, request, inside, parts)
    for plan in plans:
        part = parts.get(plan.room_id)
        if part is not None and request.merged:
            if plan.rule.lists:
                part.json["lists"] = plan.rule.lists
            if plan.is_new or plan.room.position > plan.after:
                part.json["membership"] = plan.room.membership
    return parts


async def _read(
    services: Services, request: SlidingRequest, rooms: Rooms, plans: Sequence[Plan]
) -> dict[str, _Read]:
    """Read timelines and states: what lies in memory from there, the rest many rooms at once."""
    found: dict[str, Timeline | None] = {}
    by_limit: dict[int, list[Span]] = {}
    for plan in plans:
        limit = plan.rule.config.timeline_limit
        start = 0 if plan.is_new or plan.is_expanded else plan.after
        upto = rooms.upto if plan.room.left_at is None else plan.room.left_at
        span = Span(plan.room_id, start, upto, plan.room.joined_at, start == 0)
        if start and timelines_of.in_memory(services, span):
            of_room = timelines_of.read_window(
                services, timeline_request(request, rooms.personal.ignored, max(limit, 1)), span
            )
            found[plan.room_id] = of_room
        else:
            by_limit.setdefault(limit, []).append(span)
    for limit, spans in by_limit.items():
        asked = timeline_request(request, rooms.personal.ignored, max(limit, 1))
        found |= await timelines_of.read_database(services, asked, spans)
    expanded = [(plan.room_id, plan.after) for plan in plans if plan.is_expanded]
    since = await timelines.list_states_at(services.db, expanded) if expanded else {}
    ids: dict[str, tuple[int, int]] = {}
    for plan in plans:
        of_room = found.get(plan.room_id)
        end = plan.room.state_id
        if end is None:
            end = of_room.state_end if of_room is not None else EMPTY_STATE_ID
        old = end
        if plan.is_new:
            old = EMPTY_STATE_ID
        elif plan.is_expanded:
            old = since.get(plan.room_id, EMPTY_STATE_ID)
        elif of_room is not None:
            old = of_room.state_since
        ids[plan.room_id] = (old, end)
    states = await services.states.get_many({i for pair in ids.values() for i in pair})
    changes = services.sliding.changes
    current = {room_id: states.get(end, EMPTY_STATE) for room_id, (_, end) in ids.items()}
    emptied = await _emptied(services, [p for p in plans if found.get(p.room_id)], current)
    return {
        room_id: _Read(
            found.get(room_id),
            Changes(states[end].entries, ())
            if old == EMPTY_STATE_ID
            else changes(states[old], states[end]),
            current[room_id],
            frozenset(emptied.get(room_id, ())),
        )
        for room_id, (old, end) in ids.items()
    }


async def _emptied(
    services: Services, plans: Iterable[Plan], states: Mapping[str, State]
) -> dict[str, set[StateKey]]:
    """Return what the rooms showed themselves by and was redacted since the client had it."""
    shown = [
        (plan, key, event_id)
        for plan in plans
        for key in FACES
        if not plan.is_new and (event_id := states[plan.room_id].entries.get(key)) is not None
    ]
    events = await services.events.get_many(event_id for _, _, event_id in shown)
    redacted = [
        (plan, key, stored.redacted_by)
        for plan, key, event_id in shown
        if (stored := events.get(event_id)) is not None and stored.redacted_by is not None
    ]
    redactions = await services.events.get_many({by for _, _, by in redacted})
    emptied: dict[str, set[StateKey]] = {}
    for plan, key, redaction_id in redacted:
        redaction = redactions.get(redaction_id)
        if redaction is not None and (redaction.position or 0) > plan.after:
            emptied.setdefault(plan.room_id, set()).add(key)
    return emptied


def _is_news(plan: Plan, read: _Read, key: StateKey) -> bool:
    changes = read.changes
    return plan.is_new or key in changes.made or key in changes.removed or key in read.emptied


def _known_members(
    services: Services, request: SlidingRequest, plans: Iterable[Plan], read: Mapping[str, _Read]
) -> dict[str, frozenset[EventId]]:
    """Return the member events that the client has of each room; where there is a gap, none."""
    members = services.sliding.members(request)
    known: dict[str, frozenset[EventId]] = {}
    for plan in plans:
        of_room = read[plan.room_id].timeline
        gap = of_room is not None and (
            of_room.limited or len(_shown(plan, of_room.events)) < len(of_room.events)
        )
        had = members.get(plan.room_id)
        known[plan.room_id] = frozenset() if had is None or gap or plan.is_new else had
    return known


def _required(
    plan: Plan, read: _Read, known: Collection[EventId], departure: StoredEvent | None
) -> dict[StateKey, EventId]:
    """Return the state to send; who says something is left out if their member event is `known`.

    It is as the user left the room; only of themselves it says what they are now.

    MSC4186#lazy-loaded-memberships, MSC4186#changes-to-required_state
    """
    config, entries = plan.rule.config, read.state.entries
    chosen = config.select(read.changes.made)
    if plan.sent is not None and not plan.is_new and plan.sent.config.required != config.required:
        before = plan.sent.config
        chosen |= {k: e for k, e in config.select(entries).items() if not before.has(k)}
    if config.lazy_members:
        events = read.timeline.events if read.timeline is not None else ()
        seen: set[str] = {stored.event.sender for stored in _shown(plan, events)}
        seen |= {
            stored.event.state_key or ""
            for stored in _shown(plan, events)
            if stored.event.type == MEMBER
        }
        for user_id in seen:
            event_id = entries.get((MEMBER, user_id))
            if event_id is not None and event_id not in known:
                chosen[MEMBER, user_id] = event_id
        if not plan.is_new and not (read.timeline is not None and read.timeline.limited):
            chosen |= {k: e for k, e in read.changes.made.items() if k[0] == MEMBER}
    if departure is not None and departure.event.key in chosen:
        chosen[departure.event.key] = departure.event_id
    return chosen


def _shown(plan: Plan, events: Sequence[StoredEvent]) -> Sequence[StoredEvent]:
    """Return what of a timeline is shown: one event is read even where none is wanted."""
    return events if plan.rule.config.timeline_limit else ()


def _inside(
    services: Services,
    request: SlidingRequest,
    plan: Plan,
    read: _Read,
    states: Sequence[StoredEvent],
    events: Mapping[EventId, StoredEvent],
) -> Json:
    """Return what a room says to who is or was in it; empty where there is no news."""
    now_ms, reader = services.clock.now_ms(), request.requester
    json: Json = {"initial": True} if plan.is_new else {}
    for key, field, name in ((NAME, "name", "name"), (AVATAR, "url", "avatar")):
        if _is_news(plan, read, key):
            value = _content(events, read.state.entries.get(key), field)
            if value is not None or not plan.is_new:
                json[name] = value
    required: list[object] = [
        assemble.event_json(stored, NO_FILTER, now_ms, reader, None) for stored in states
    ]
    if request.merged:
        removed = [key for key in read.changes.removed if plan.rule.config.has(key)]
        required += [{"type": kind, "state_key": key} for kind, key in removed]
    if required:
        json["required_state"] = required
    of_room = read.timeline
    if of_room is not None and (of_room.events or of_room.limited):
        live = -1 if request.since is None else request.since
        shown = _shown(plan, of_room.events)
        json["timeline"] = [
            assemble.event_json(stored, NO_FILTER, now_ms, reader, membership)
            for stored, membership in zip(of_room.events, of_room.memberships, strict=True)
        ][: len(shown)]
        if shown:
            json["prev_batch"] = of_room.prev_batch
        else:
            last = of_room.events[-1].order if of_room.events else None
            json["prev_batch"] = format_place(Place(*last)) if last else of_room.prev_batch
        if of_room.limited or len(shown) < len(of_room.events):
            json["limited"] = True
        json["num_live"] = 0 if live < 0 else sum((stored.position or 0) > live for stored in shown)
        if plan.is_expanded:
            json["expanded_timeline" if request.merged else "unstable_expanded_timeline"] = True
    if plan.is_dm if plan.is_new else (plan.sent is not None and plan.sent.is_dm != plan.is_dm):
        json["is_dm"] = plan.is_dm
    if plan.room.kind == "left" and (plan.is_new or plan.room.position > plan.after):
        json["bump_stamp"] = plan.room.position
    return json


def _content(
    events: Mapping[EventId, StoredEvent], event_id: EventId | None, field: str
) -> str | None:
    stored = events.get(event_id) if event_id is not None else None
    if stored is None or stored.redacted_by is not None:
        return None
    value = stored.event.content.get(field)
    return value if isinstance(value, str) and value else None


async def _departures(
    services: Services, request: SlidingRequest, plans: Sequence[Plan]
) -> dict[str, StoredEvent]:
    """Return, by room, the user's own member events that say that they are outside."""
    ids = {plan.room_id: plan.room.left_by for plan in plans if plan.room.left_by is not None}
    events = await services.events.get_many(ids.values()) if ids else {}
    return {
        room_id: events[event_id]
        for room_id, event_id in ids.items()
        if event_id in events and events[event_id].event.key == (MEMBER, request.user_id)
    }


def _outside(
    services: Services,
    request: SlidingRequest,
    rooms: Rooms,
    plan: Plan,
    departure: StoredEvent | None,
) -> Json:
    """Return what a room says to who is invited, knocks, or was never let in.

    Of who is not invited any more, or knocks no more, it says so. Clients of the older shape take
    any room with `invite_state` for an invite, and look for the rest in `required_state`.

    MSC4186#inviteknockrejections
    """
    json: Json = {"initial": True, "bump_stamp": plan.room.position}
    stripped = rooms.stripped.get(plan.room_id, [])
    if departure is None:
        json["stripped_state" if request.merged else "invite_state"] = stripped
    elif request.merged:
        own = stripped_state(client_events.as_shown(departure))
        others = (event for event in stripped if not _is_same_state(event, own))
        json["stripped_state"] = [*others, own]
    else:
        now_ms, reader = services.clock.now_ms(), request.requester
        json["required_state"] = [assemble.event_json(departure, NO_FILTER, now_ms, reader, None)]
    return json


def _is_same_state(event: object, other: Mapping[str, object]) -> bool:
    return isinstance(event, dict) and all(
        event.get(field) == other[field] for field in ("type", "state_key")
    )


async def _bumps(
    services: Services, rooms: Rooms, plans: Sequence[Plan], read: Mapping[str, _Read]
) -> dict[str, int]:
    """Return the positions of the last proper activity, where that is news."""
    found: dict[str, int] = {}
    unknown: list[str] = []
    for plan in plans:
        of_room = read[plan.room_id].timeline
        if plan.room.kind != "join":
            continue
        bump = _last_bump(of_room.events if of_room is not None else ())
        if bump is not None:
            found[plan.room_id] = bump
        elif plan.is_new or (of_room is not None and of_room.limited):
            unknown.append(plan.room_id)
    if unknown:
        ranges = [(room_id, 0, rooms.upto) for room_id in unknown]
        pages = await timelines.list_newest(services.db, services.events, ranges, BUMPS_SCANNED)
        for room_id, page in zip(unknown, pages, strict=True):
            oldest = page[0].order if page else None
            found[room_id] = _last_bump(page) or (oldest[0] if oldest is not None else 0)
    return found


def _last_bump(events: Sequence[StoredEvent]) -> int | None:
    for stored in reversed(events):
        if stored.event.type in BUMPING and stored.order is not None:
            return stored.order[0]
    return None


async def _add_members(
    services: Services,
    request: SlidingRequest,
    plans: Sequence[Plan],
    read: Mapping[str, _Read],
    events: Mapping[EventId, StoredEvent],
    parts: Mapping[str, RoomPart],
) -> None:
    """Add how many members there are, and heroes of rooms without a name, where that changed."""
    counted: list[str] = []
    nameless: list[str] = []
    for plan in plans:
        found = read[plan.room_id]
        if plan.room_id not in parts or plan.room.kind != "join":
            continue
        members = (
            plan.is_new or _has_members(found.changes.made) or _has_members(found.changes.removed)
        )
        if members:
            counted.append(plan.room_id)
        if members or _is_news(plan, found, NAME):
            named = found.state.entries.get(NAME)
            if named is None or not await _has_name(services, named, events):
                nameless.append(plan.room_id)
    if counted:
        for room_id, counts in (await timelines.list_summaries(services.db, counted)).items():
            parts[room_id].json["joined_count"], parts[room_id].json["invited_count"] = counts
    if nameless:
        heroes = await sliding.list_heroes(services.db, nameless, request.user_id, HEROES_MAX)
        for room_id, members_ in heroes.items():
            parts[room_id].json["heroes"] = [_hero(*member) for member in members_]


def _has_members(keys: Iterable[StateKey]) -> bool:
    return any(key[0] == MEMBER for key in keys)


async def _has_name(
    services: Services, event_id: EventId, events: Mapping[EventId, StoredEvent]
) -> bool:
    stored = events.get(event_id) or await services.events.get(event_id)
    return stored is not None and _content({event_id: stored}, event_id, "name") is not None


def _hero(user_id: str, display_name: str | None, avatar_url: str | None) -> Json:
    hero: Json = {"user_id": user_id}
    if display_name is not None:
        hero["displayname"] = display_name
    if avatar_url is not None:
        hero["avatar_url"] = avatar_url
    return hero


async def _add_counts(
    services: Services,
    request: SlidingRequest,
    plans: Sequence[Plan],
    parts: Mapping[str, RoomPart],
) -> None:
    """Add notification counts, which only the older shape has."""
    joined = [p.room_id for p in plans if p.room.kind == "join" and p.room_id in parts]
    if request.merged or not joined:
        return
    counts = await services.unread.load_many((request.user_id, room_id) for room_id in joined)
    for (_, room_id), of_room in counts.items():
        threads = of_room.threads.values()
        parts[room_id].json["notification_count"] = of_room.notifications + sum(
            notifications for notifications, _ in threads
        )
        parts[room_id].json["highlight_count"] = of_room.highlights + sum(
            highlights for _, highlights in threads
        )
