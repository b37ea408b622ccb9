"""READING ROOMS: pages of history, single events, and state, as their reader may see them.

Every operation first asks how the reader stands to the room (`open_room`): members see it up to
now; whoever was a member sees what was there when they left; everybody sees a world-readable room.
Events then pass `visibility.visible`. State is that of the moment, and is shown whole.

Spec: client-server-api#getting-events-for-a-room
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from minihs.base.errors import Forbidden, NotFound
from minihs.base.limits import CONTEXT_LIMIT_MAX, PAGE_LIMIT_MAX
from minihs.protocol import canonical_json
from minihs.protocol.filters import EventFilter
from minihs.protocol.history_visibility import HistoryVisibility
from minihs.remote.transport import RemoteError
from minihs.services.rooms import backfill
from minihs.services.rooms.client_events import shown
from minihs.services.rooms.tokens import (
    START,
    Place,
    format_place,
    parse_place,
    place_after,
    place_before,
)
from minihs.services.rooms.visibility import Seen, end_of_last_stay, reader_states, visible
from minihs.storage import events as event_reads
from minihs.storage import state_reads
from minihs.storage.missing_events import list_gaps, list_servers

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    import orjson

    from minihs.protocol.identifiers import EventId, RoomId, StateKey, UserId
    from minihs.services.context import Services
    from minihs.storage.event_store import StoredEvent
    from minihs.storage.missing_events import Gap

ALL = EventFilter()
SCANNED_EVENTS_MAX = 2_000  # Of one request whose filter lets little through; then `end` is given.
FILTERED_BATCH = 200
FIRST_EVENTS = 10
NEAR_IN_TIME_MAX = 50
SERVERS_ASKED_MAX = 3
FETCHES_FOR_TIME_MAX = 10  # Of a hundred events each.
FETCHES_MAX = 3


class RoomForgotten(Forbidden):
    """The reader was in the room once, and has forgotten it. MSC4267#proposal."""


class Reader(Protocol):
    """Who reads. `position` is one of the stream that is no older than the request."""

    @property
    def user_id(self) -> UserId: ...  # noqa: D102
    @property
    def device_nid(self) -> int: ...  # noqa: D102
    @property
    def position(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Access:
    """How a reader stands to a room.

    `joined` is whether they are a member now; `upto` where what they may see ends; `left` the event
    by which a former member left; `ignored` whose messages they do not want.
    """

    room_id: RoomId
    room_nid: int
    joined: bool
    state_id: int
    upto: Place
    left: StoredEvent | None
    ignored: Collection[str]


async def open_room(services: Services, reader: Reader, room_id: RoomId) -> Access:
    """Return how the reader may look at a room.

    Raises:
        Forbidden: not at all: they never joined it, or have forgotten it (`RoomForgotten`), and it
            is not world-readable; or it does not exist.
    """
    row = await event_reads.fetch_reader(services.db, room_id, reader.user_id)
    if row is None:
        raise Forbidden("You are not in this room.")
    upto, left = Place(row.position), None
    joined = row.membership == "join"
    if not joined:
        if row.membership is not None and not row.forgotten:
            left = await end_of_last_stay(services, room_id, reader.user_id)
        if left is not None:
            upto = place_after(left)
        elif not await _is_world_readable(services, row.state_id):
            if row.forgotten:
                raise RoomForgotten("You have forgotten this room.")
            raise Forbidden("You are not in this room, and it is not world-readable.")
    ignored = _ignored_users(row.ignored_json)
    return Access(room_id, row.room_nid, joined, row.state_id, upto, left, ignored)


async def _is_world_readable(services: Services, state_id: int) -> bool:
    states = await reader_states(services, services.db, "", [state_id])
    return states[state_id].visibility is HistoryVisibility.WORLD_READABLE


def _ignored_users(json: str | None) -> Collection[str]:
    """Return whom a user ignores. Spec: client-server-api#mignored_user_list."""
    if json is None:
        return ()
    match canonical_json.decode(json):
        case {"ignored_users": dict(users)}:
            return users
        case _:
            return ()


# --- pages of history --------------------------------------------------------------------------


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
    first = _place(start, newest) if start is not None else None
    last = _place(stop, newest) if stop is not None else None
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
        answer["state"] = await _members(services, reader, newest_event, senders)
    return answer


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
    fetches = 0
    while True:
        stretch = await _read(
            services, reader, access, start, stop,
            backward=backward, limit=limit, event_filter=event_filter,
        )  # fmt: skip
        gap = await _gap_within(services, access, start, stretch) if backward else None
        if gap is None:
            return stretch
        if fetches == FETCHES_MAX or not await backfill.fill(services, access.room_id, gap):
            stretch.more = bool(stretch.seen)  # There is more, if not here and now.
            return stretch
        fetches += 1


async def _gap_within(
    services: Services, access: Access, start: Place, stretch: _Stretch
) -> Gap | None:
    """Return a gap whose history would have been read on the way back from `start`, or None."""
    upto = stretch.place if stretch.more else START
    gaps = await list_gaps(services.db, access.room_nid, upto.major, start.major)
    return next((gap for gap in gaps if upto < gap.order <= start), None)


def _place(token: str, newest: int) -> Place:
    return parse_place(token, newest=newest)


async def _members(
    services: Services, reader: Reader, newest: StoredEvent, user_ids: Iterable[str]
) -> list[orjson.Fragment]:
    """Return the member events of users in the state after an event.

    Spec: client-server-api#lazy-loading-room-members
    """
    keys = [("m.room.member", user_id) for user_id in sorted(user_ids)]
    state_id = newest.state_before or 0
    entries = (await state_reads.load_entries(services.states, services.db, [state_id], keys))[
        state_id
    ]
    if newest.event.is_state and newest.event.key in keys:
        entries[newest.event.key] = newest.event_id
    return await _show_state(services, reader, entries.values())


async def _shown(services: Services, reader: Reader, seen: Sequence[Seen]) -> list[orjson.Fragment]:
    return await shown(
        services,
        [stored for stored, _ in seen],
        reader=reader,
        memberships=[membership for _, membership in seen],
    )


async def _show_state(
    services: Services, reader: Reader, event_ids: Iterable[EventId]
) -> list[orjson.Fragment]:
    ids = list(event_ids)
    known = await services.events.get_many(ids)
    events = [known[event_id] for event_id in ids if event_id in known]
    return await shown(services, events, reader=reader)


# --- single events -----------------------------------------------------------------------------


async def _open_event(
    services: Services, reader: Reader, room_id: RoomId, event_id: EventId
) -> tuple[Access, Seen]:
    """Return an event that the reader may see.

    Raises:
        NotFound: there is none, or it is not for them: they cannot tell.
        RoomForgotten: they could tell once.
    """
    refusal = NotFound("Event not found.")
    stored = await services.events.get(event_id)
    if stored is None or stored.event.room_id != room_id:
        raise refusal
    try:
        access = await open_room(services, reader, room_id)
    except RoomForgotten:
        raise
    except Forbidden:
        raise refusal from None
    seen = await visible(services, reader.user_id, [stored], sticky=True)
    if not seen:
        raise refusal
    return access, seen[0]


async def one_event(
    services: Services, reader: Reader, room_id: RoomId, event_id: EventId
) -> orjson.Fragment:
    """Return one event.

    Raises:
        NotFound: there is none, or the reader may not see it.

    Spec: client-server-api#get_matrixclientv3roomsroomideventeventid
    """
    _, seen = await _open_event(services, reader, room_id, event_id)
    return (await _shown(services, reader, [seen]))[0]


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
    access, seen = await _open_event(services, reader, room_id, event_id)
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
    entries = await _state_after(services, around[-1][0])
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
        "state": await _show_state(services, reader, state_ids),
    }


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
    found = await _nearest(services, reader, access, ts_ms, backward=backward)
    gaps = await list_gaps(services.db, access.room_nid, 0, access.upto.major)
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
            if not gaps or not await backfill.fill(services, access.room_id, gaps[0]):
                break
            gaps = await list_gaps(services.db, access.room_nid, 0, access.upto.major)
    return False


# --- state -------------------------------------------------------------------------------------


async def _state_after(services: Services, stored: StoredEvent) -> Mapping[StateKey, EventId]:
    """Return the state after an event of the room's history."""
    before = (await services.states.get(stored.state_before or 0)).entries
    if stored.event.is_state:
        return before.set(stored.event.key, stored.event_id)
    return before


async def _current_state(services: Services, access: Access) -> Mapping[StateKey, EventId]:
    """Return the room's state now, or as it was when the reader left."""
    if access.left is None:
        return (await services.states.get(access.state_id)).entries
    return await _room_state_after(services, access.left)


async def _room_state_after(services: Services, stored: StoredEvent) -> Mapping[StateKey, EventId]:
    """Return what the room's current state was once an event had come in."""
    if stored.room_state_after is not None:
        return (await services.states.get(stored.room_state_after)).entries
    return await _state_after(services, stored)


async def state(services: Services, reader: Reader, room_id: RoomId) -> list[orjson.Fragment]:
    """Return every state event of a room, now or when the reader left.

    Raises:
        Forbidden: the reader may not look at the room.

    Spec: client-server-api#get_matrixclientv3roomsroomidstate
    """
    access = await open_room(services, reader, room_id)
    entries = await _current_state(services, access)
    return await _show_state(services, reader, entries.values())


async def state_event(
    services: Services, reader: Reader, room_id: RoomId, key: StateKey
) -> StoredEvent:
    """Return the event that holds a key of the room's state, now or when the reader left.

    Raises:
        Forbidden: the reader may not look at the room.
        NotFound: nothing holds the key.

    Spec: client-server-api#get_matrixclientv3roomsroomidstateeventtypestatekey
    """
    access = await open_room(services, reader, room_id)
    event_id = (await _current_state(services, access)).get(key)
    stored = await services.events.get(event_id) if event_id is not None else None
    if stored is None:
        raise NotFound("The room has no such state.")
    return stored


async def members(
    services: Services,
    reader: Reader,
    room_id: RoomId,
    *,
    at: str | None,
    membership: str | None,
    not_membership: str | None,
) -> list[orjson.Fragment]:
    """Return the member events of a room, now, at a token's place, or when the reader left.

    With both `membership` and `not_membership`, either is enough.

    Raises:
        Forbidden: the reader may not look at the room.
        InvalidParam: `at` is no token of ours.

    Spec: client-server-api#get_matrixclientv3roomsroomidmembers
    """
    access = await open_room(services, reader, room_id)
    if at is None:
        entries = await _current_state(services, access)
    else:
        newest = max(reader.position, access.upto.major)
        entries = await _state_at(services, access, min(_place(at, newest), access.upto))
    ids = [event_id for (kind, _), event_id in entries.items() if kind == "m.room.member"]
    known = await services.events.get_many(ids)
    chosen = [
        stored
        for event_id in ids
        if (stored := known.get(event_id)) is not None
        and _is_asked_for(stored.event.content.get("membership"), membership, not_membership)
    ]
    return await shown(services, chosen, reader=reader)


def _is_asked_for(value: object, membership: str | None, not_membership: str | None) -> bool:
    if membership is None and not_membership is None:
        return True
    return (membership is not None and value == membership) or (
        not_membership is not None and value != not_membership
    )


async def _state_at(services: Services, access: Access, place: Place) -> Mapping[StateKey, EventId]:
    """Return the room's state at a place.

    A token from before anybody was in the room, such as the `prev_batch` of a timeline that begins
    with its creation, stands for the moment at which the first member was there.
    """
    before = await event_reads.list_range(
        services.db, services.events, access.room_nid, place, START, backward=True, limit=1
    )
    entries = await _room_state_after(services, before[0]) if before else None
    if entries is not None and any(kind == "m.room.member" for kind, _ in entries):
        return entries
    first = await event_reads.list_range(
        services.db, services.events, access.room_nid, START, access.upto,
        backward=False, limit=FIRST_EVENTS,
    )  # fmt: skip
    for stored in first:
        if stored.event.type == "m.room.member" and stored.event.is_state:
            return await _room_state_after(services, stored)
    return entries if entries is not None else {}


async def joined_members(
    services: Services, reader: Reader, room_id: RoomId
) -> dict[str, dict[str, str | None]]:
    """Return the names and avatars of a room's members, by user id; only for members.

    Who has no name or no avatar has `None` there. The specification's schema leaves the key out;
    Complement looks for both keys, Synapse sends null, and clients take either.

    Raises:
        Forbidden: the reader is not joined.

    Spec: client-server-api#get_matrixclientv3roomsroomidjoined_members
    """
    access = await open_room(services, reader, room_id)
    if not access.joined:
        raise Forbidden("You are not in this room.")
    return {
        user_id: {"display_name": name, "avatar_url": avatar}
        for user_id, name, avatar in await event_reads.list_joined_members(
            services.db, access.room_nid
        )
    }
