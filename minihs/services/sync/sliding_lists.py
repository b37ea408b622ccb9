"""Which rooms a sliding sync request is about: the user's rooms in order, lists, subscriptions.

MSC4186#lists-and-subscriptions
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.protocol import canonical_json
from minihs.protocol.state_keys import CREATE, ENCRYPTION, NAME
from minihs.services.rooms import visibility
from minihs.services.rooms.stripped_state import load_stripped
from minihs.services.sync.sliding_memory import RoomFacts
from minihs.services.sync.sliding_request import RoomConfig, combine
from minihs.storage import sliding, state_reads, timelines

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from minihs.protocol.identifiers import EventId
    from minihs.services.context import Services
    from minihs.services.sync.sliding_connections import Connection, Kind
    from minihs.services.sync.sliding_request import RoomFilters, RoomList, SlidingRequest
    from minihs.storage.state import State

UNKNOWN = RoomFacts(None, is_encrypted=False)


@dataclass(frozen=True, slots=True)
class UserRoom:
    """A room as a user stands to it.

    `position` is when their membership changed last, `active` when anything happened that they know
    of, `joined_at` since when they have been joined, `left_at` up to where a departed member may
    look, `left_by` the event by which they are outside, `state_id` the current state (of joined
    rooms).
    """

    room_id: str
    membership: str
    kind: Kind
    position: int
    active: int
    joined_at: int | None = None
    left_at: int | None = None
    left_by: EventId | None = None
    state_id: int | None = None


@dataclass(frozen=True, slots=True)
class Personal:
    """A user's global account data that matters here."""

    ignored: frozenset[str]
    direct: frozenset[str]


@dataclass(frozen=True, slots=True)
class Rooms:
    """A user's rooms as of `upto`; `stripped` is what those outside were shown, as JSON events."""

    upto: int
    rooms: Mapping[str, UserRoom]
    stripped: Mapping[str, Sequence[object]]
    personal: Personal


@dataclass(frozen=True, slots=True)
class Rule:
    """Why a room is in an answer, and what is wanted of it.

    `lists` are the names of the lists that have it in a window.
    """

    config: RoomConfig
    lists: tuple[str, ...]
    subscribed: bool


@dataclass(frozen=True, slots=True)
class Matches:
    """What lists and subscriptions match.

    `rules` are of rooms in windows and subscriptions, `matched` all rooms that any list or
    subscription matches, in or outside its window.
    """

    counts: Mapping[str, int]
    rules: Mapping[str, Rule]
    matched: Collection[str]


async def load_rooms(services: Services, request: SlidingRequest, connection: Connection) -> Rooms:
    """Return the user's rooms as of the stream's head."""
    while True:
        view = await services.views.get(request.user_id)
        activity = services.sliding.activity
        missing = [
            room_id
            for room_id, membership in view.rooms.items()
            if membership.membership == "join" and activity.get(room_id) is None
        ]
        if not missing:
            break
        await services.sliding.load(missing)
    # No await from here on until everything that is true as of `upto` has been read.
    upto = services.follower.head
    rooms: dict[str, UserRoom] = {}
    for room_id, membership in view.rooms.items():
        now = activity.get(room_id) if membership.membership == "join" else None
        if now is None:
            at = membership.position
            rooms[room_id] = UserRoom(room_id, membership.membership, "outside", at, at)
        else:
            rooms[room_id] = UserRoom(
                room_id, "join", "join", membership.position, now.position,
                joined_at=membership.joined_at, state_id=now.state_id,
            )  # fmt: skip
    personal = await _personal(services, request)
    rooms |= await _departed(services, request, connection, rooms)
    outside = [room_id for room_id, room in rooms.items() if room.kind == "outside"]
    stripped = await load_stripped(services, request.user_id, outside) if outside else {}
    for room_id, events in stripped.items():
        if rooms[room_id].membership == "invite" and _inviter(request, events) in personal.ignored:
            del rooms[room_id]
    return Rooms(upto, rooms, stripped, personal)


async def _personal(services: Services, request: SlidingRequest) -> Personal:
    found = await sliding.list_global_account_data(
        services.db, request.user_id, ("m.ignored_user_list", "m.direct")
    )
    ignored: frozenset[str] = frozenset()
    direct: set[str] = set()
    match canonical_json.decode(found.get("m.ignored_user_list", "{}")):
        case {"ignored_users": dict(users)}:
            ignored = frozenset(users)
        case _:
            pass
    match canonical_json.decode(found.get("m.direct", "{}")):
        case dict(of_users):
            for rooms in of_users.values():
                if isinstance(rooms, list):
                    direct.update(room for room in rooms if isinstance(room, str))
        case _:
            pass
    return Personal(ignored, frozenset(direct))


async def _departed(
    services: Services,
    request: SlidingRequest,
    connection: Connection,
    present: Mapping[str, UserRoom],
) -> dict[str, UserRoom]:
    """Return the rooms that the user was removed from, and those they left that matter here.

    Those are rooms that the connection was sent or that are subscribed to. Forgotten rooms are told
    once more to a connection that had them, then never.
    """
    asked = [room_id for room_id in connection.rooms if room_id not in present]
    asked += [room_id for room_id in request.subscriptions if room_id not in present]
    rows = await sliding.list_departures(services.db, request.user_id, asked)
    found: dict[str, UserRoom] = {}
    for room_id, membership, position, event_id, forgotten_at in rows:
        if room_id in present:
            continue  # They left after `upto`.
        sent = connection.rooms.get(room_id)
        after = 0 if request.since is None else request.since
        if sent is not None and sent.upto is not None:
            after = sent.upto
        told_by = position if forgotten_at is None else min(position, forgotten_at)
        is_news = sent is not None and told_by > after
        if forgotten_at is not None and not is_news:
            continue
        left_at = await _left_at(services, request.user_id, room_id, event_id)
        if left_at is None and sent is None:
            continue  # They never were in it: nothing is to be told of a ban or a refused knock.
        kind: Kind = "outside" if left_at is None else "left"
        found[room_id] = UserRoom(
            room_id, membership, kind, position, position, left_at=left_at, left_by=event_id
        )
    return found


async def _left_at(services: Services, user_id: str, room_id: str, event_id: str) -> int | None:
    """Return the place in a room where the user left it; None when they were never joined."""
    cache = services.sliding.left_at
    known = cache.get(event_id)
    if known is None:
        left = await visibility.end_of_last_stay(services, room_id, user_id)
        known = left.order[0] if left is not None and left.order is not None else 0
        cache.put(event_id, known)
    return known or None


def _inviter(request: SlidingRequest, stripped: Sequence[object]) -> object:
    for event in stripped:
        match event:
            case {"type": "m.room.member", "state_key": request.user_id, "sender": str(sender)}:
                return sender
            case _:
                pass
    return None


async def match_rooms(services: Services, request: SlidingRequest, rooms: Rooms) -> Matches:
    """Return what the request's lists and subscriptions match."""
    newest_first = sorted(
        rooms.rooms.values(), key=lambda room: (room.active, room.room_id), reverse=True
    )
    facts = await _facts(services, request, rooms)
    names = await _names(services, request, rooms, facts)
    tags = await _tags(services, request, rooms)
    spaces = await _spaces(services, request, rooms)
    wishes: dict[str, list[RoomConfig]] = {}
    windows: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    matched: set[str] = set()
    for name, list_ in request.lists.items():
        filters = list_.filters
        ids = [
            room.room_id
            for room in newest_first
            if _passes(
                filters,
                room,
                facts.get(room.room_id, UNKNOWN),
                names.get(room.room_id, ""),
                rooms.personal,
            )
            and (filters.spaces is None or room.room_id in spaces[name])
            and _has_tags(filters, tags.get(room.room_id, frozenset()))
        ]
        counts[name] = len(ids)
        matched.update(ids)
        for room_id in _windows(list_, ids):
            wishes.setdefault(room_id, []).append(list_.config)
            windows.setdefault(room_id, []).append(name)
    for room_id, config in request.subscriptions.items():
        if room_id in rooms.rooms:
            wishes.setdefault(room_id, []).append(config)
            matched.add(room_id)
    rules = {
        room_id: Rule(
            combine(configs), tuple(windows.get(room_id, ())), room_id in request.subscriptions
        )
        for room_id, configs in wishes.items()
    }
    return Matches(counts, rules, matched)


def _windows(list_: RoomList, ids: Sequence[str]) -> Iterable[str]:
    """Return the rooms in a list's windows, each once."""
    if list_.ranges is None:
        return ids
    return dict.fromkeys(
        room_id for first, last in list_.ranges for room_id in ids[first : last + 1]
    )


def _passes(
    filters: RoomFilters, room: UserRoom, facts: RoomFacts, name: str, personal: Personal
) -> bool:
    """Return whether a room passes a list's filters, but for spaces and tags."""
    if filters.is_dm is not None and filters.is_dm != (room.room_id in personal.direct):
        return False
    if filters.is_invited is not None and filters.is_invited != (room.membership == "invite"):
        return False
    if filters.is_encrypted is not None and filters.is_encrypted != facts.is_encrypted:
        return False
    if filters.room_types is not None and facts.room_type not in filters.room_types:
        return False
    if facts.room_type in filters.not_room_types:
        return False
    return filters.room_name_like is None or filters.room_name_like.casefold() in name


def _has_tags(filters: RoomFilters, tags: frozenset[str]) -> bool:
    if filters.tags is not None and tags.isdisjoint(filters.tags):
        return False
    return tags.isdisjoint(filters.not_tags)


async def _facts(services: Services, request: SlidingRequest, rooms: Rooms) -> dict[str, RoomFacts]:
    """Return what filters ask of the rooms' states; of rooms outside, as far as they were shown."""
    if not any(list_.filters.needs_facts for list_ in request.lists.values()):
        return {}
    cache = services.sliding.facts
    ids = {r.room_id: r.state_id for r in rooms.rooms.values() if r.state_id is not None}
    departed = [(r.room_id, r.left_at) for r in rooms.rooms.values() if r.left_at is not None]
    if departed:
        ids |= await timelines.list_states_at(services.db, departed)
    missing = {state_id for state_id in ids.values() if cache.get(state_id) is None}
    if missing:
        entries = await state_reads.load_entries(
            services.states, services.db, missing, (CREATE, ENCRYPTION, NAME)
        )
        events = await services.events.get_many(
            [entry[CREATE] for entry in entries.values() if CREATE in entry]
        )
        for state_id, entry in entries.items():
            create = events.get(entry[CREATE]) if CREATE in entry else None
            room_type = create.event.content.get("type") if create is not None else None
            cache.put(state_id, RoomFacts(_text(room_type), ENCRYPTION in entry, entry.get(NAME)))
    found = {r: facts for r, s in ids.items() if (facts := cache.get(s)) is not None}
    return found | {r: _shown_facts(events) for r, events in rooms.stripped.items()}


def _shown_facts(stripped: Sequence[object]) -> RoomFacts:
    room_type: str | None = None
    is_encrypted = False
    for event in stripped:
        match event:
            case {"type": "m.room.create", "content": {"type": str(value)}}:
                room_type = value
            case {"type": "m.room.encryption"}:
                is_encrypted = True
            case _:
                pass
    return RoomFacts(room_type, is_encrypted)


async def _names(
    services: Services, request: SlidingRequest, rooms: Rooms, facts: Mapping[str, RoomFacts]
) -> dict[str, str]:
    """Return the names of rooms that have one, as people compare them."""
    if all(list_.filters.room_name_like is None for list_ in request.lists.values()):
        return {}
    ids = {r: f.name_event for r, f in facts.items() if f.name_event is not None}
    events = await services.events.get_many(ids.values())
    names: dict[str, str] = {}
    for room_id, event_id in ids.items():
        stored = events.get(event_id)
        if stored is not None and stored.redacted_by is None:
            names[room_id] = _text(stored.event.content.get("name")) or ""
    for room_id, stripped in rooms.stripped.items():
        for event in stripped:
            match event:
                case {"type": "m.room.name", "content": {"name": str(name)}}:
                    names[room_id] = name
                case _:
                    pass
    return {room_id: name.casefold() for room_id, name in names.items()}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


async def _tags(
    services: Services, request: SlidingRequest, rooms: Rooms
) -> dict[str, frozenset[str]]:
    filters = [list_.filters for list_ in request.lists.values()]
    if not any(f.tags is not None or f.not_tags for f in filters):
        return {}
    found: dict[str, frozenset[str]] = {}
    of_rooms = await sliding.list_tags(services.db, request.user_id, list(rooms.rooms))
    for room_id, json in of_rooms.items():
        match canonical_json.decode(json):
            case {"tags": dict(tags)}:
                found[room_id] = frozenset(tags)
            case _:
                pass
    return found


async def _spaces(services: Services, request: SlidingRequest, rooms: Rooms) -> dict[str, set[str]]:
    """Return, for each list that is about spaces, the rooms in them. Only joined spaces count."""
    wanted = {n: list_.filters.spaces for n, list_ in request.lists.items() if list_.filters.spaces}
    state_ids = {
        space: rooms.rooms[space].state_id or 0
        for spaces in wanted.values()
        for space in spaces or ()
        if space in rooms.rooms and rooms.rooms[space].kind == "join"
    }
    states = await services.states.get_many(state_ids.values()) if state_ids else {}
    children = {
        space: await _children(services, states[state_id]) for space, state_id in state_ids.items()
    }
    return {
        name: {child for space in list_.filters.spaces or () for child in children.get(space, ())}
        for name, list_ in request.lists.items()
        if list_.filters.spaces is not None
    }


async def _children(services: Services, state: State) -> set[str]:
    """Return the rooms that a space names. Spec: client-server-api#mspacechild."""
    entries = {
        key: event_id for (kind, key), event_id in state.entries.items() if kind == "m.space.child"
    }
    events = await services.events.get_many(entries.values())
    return {
        room_id
        for room_id, event_id in entries.items()
        if (stored := events.get(event_id)) is not None
        and stored.redacted_by is None
        and isinstance(stored.event.content.get("via"), list)
    }
