"""WHAT WE ANSWER other servers about rooms: events, history, states, and what they rest upon.

A server is told about rooms that its users are in, and that somebody of this server is in: of what
we may have from an earlier stay we are no authority. Where the stay of either has ended, it is
still given the events of the time that it was in the room, as those by which the stay ended would
else have no place in its graph. Of an event it gets what its users could see,
else the redacted event, so that the graph it receives is whole. What was rejected is not passed on.

Events are sent as the text that is stored; large answers are put together a few hundred at a time,
so that others are served in between.

Spec: server-server-api#retrieving-events,
server-server-api#backfilling-and-retrieving-missing-events
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

import orjson

from minihs.base.errors import Forbidden, NotFound
from minihs.base.tasks import give_way
from minihs.protocol.hashes import encode_event
from minihs.protocol.history_visibility import HistoryVisibility, history_visibility, may_server_see
from minihs.protocol.identifiers import EventId, RoomId, ServerName, server_name_of
from minihs.protocol.redaction import redact
from minihs.protocol.state_keys import HISTORY_VISIBILITY
from minihs.services.federation.room_servers import joined_among
from minihs.services.rooms import client_events
from minihs.storage import auth_chains, rooms, state_reads
from minihs.storage import events as event_reads
from minihs.storage import membership as memberships
from minihs.storage.event_store import REJECTED, StoredEvent
from minihs.storage.state import EMPTY_STATE_ID

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from minihs.services.context import Services

BACKFILL_MAX = 100
MISSING_EVENTS_MAX = 20
MISSING_EVENTS_DEFAULT = 10
NEAR_IN_TIME_MAX = 50
NAMED_EVENTS_MAX = 100
EVENTS_AT_ONCE = 500
Json = dict[str, object]


# --- who may ask -------------------------------------------------------------------------------


async def require_in_room(services: Services, origin: str, room_id: str) -> None:
    """Refuse to talk about a room that this server, or the one that asks, is not in.

    Raises:
        NotFound: this server is not in the room.
        Forbidden: the other server is not.
    """
    if room_id not in await memberships.list_rooms_with_us(services.db, [room_id]):
        raise NotFound("Unknown room.")
    if not await memberships.has_members_of_server(services.db, room_id, origin):
        raise Forbidden("Your server is not in this room.")


async def _end_of_stay(services: Services, origin: str, room_id: str) -> int | None:
    """Return None if a server and this one are in a room; else up to where all is told as if so.

    That is 0 where the stay was ended by an event that says so. Where state resolution has undone
    it, the server can only understand that by what we have come to know till then.

    Raises:
        NotFound, Forbidden: as `require_in_room`; and they never were.
    """
    try:
        await require_in_room(services, origin, room_id)
    except (NotFound, Forbidden):
        cause_id = await memberships.fetch_last_change(services.db, room_id, origin)
        if cause_id is None:
            raise
        cause = (await services.events.get_many([cause_id]))[cause_id]
        event = cause.event
        if event.type == "m.room.member" and server_name_of(event.state_key or "") == origin:
            return 0
        before = cause.room_state_before
        if before is None or not await joined_among(services, before, {origin}):
            return 0
        return cause.position or 0
    return None


async def _of_its_stay(
    services: Services, origin: ServerName, events: Iterable[StoredEvent], end: int
) -> list[StoredEvent]:
    """Return those of the events that a server may ask about although its stay has ended.

    All that came up to the position `end`, and what happened where one of its users was joined.
    """
    joined: dict[int, bool] = {}
    found: list[StoredEvent] = []
    for stored in events:
        state_id = stored.state_before
        if stored.position is not None and stored.position <= end:
            found.append(stored)
        elif state_id is not None:
            if state_id not in joined:
                joined[state_id] = bool(await joined_among(services, state_id, {origin}))
            if joined[state_id]:
                found.append(stored)
    return found


async def _event_in_room(
    services: Services, origin: ServerName, room_id: str, event_id: str
) -> StoredEvent:
    """Return an event of a room that a server may ask about.

    Raises:
        NotFound: there is none, or it is of another room, or not for the server to know.
        Forbidden: as `require_in_room`.
    """
    end = await _end_of_stay(services, origin, room_id)
    stored = await services.events.get(EventId(event_id)) if "\0" not in event_id else None
    # What was rejected may rest upon events of other rooms: it opens no way to them.
    if stored is None or stored.event.room_id != room_id or stored.status == REJECTED:
        raise NotFound("Event not found.")
    if end is not None and not await _of_its_stay(services, origin, [stored], end):
        raise NotFound("Event not found.")
    return stored


# --- single events -----------------------------------------------------------------------------


async def get_event(services: Services, origin: ServerName, event_id: str) -> Json:
    """Return a transaction of one event.

    Raises:
        NotFound: there is none that this server would show the other.
        Forbidden: the other server is not in its room.

    Spec: server-server-api#get_matrixfederationv1eventeventid
    """
    stored = await services.events.get(EventId(event_id)) if "\0" not in event_id else None
    if stored is None or stored.status == REJECTED:
        raise NotFound("Event not found.")
    await _event_in_room(services, origin, stored.event.room_id, event_id)
    return _transaction(services, await for_server(services, origin, [stored]))


async def event_by_time(
    services: Services, origin: ServerName, room_id: RoomId, ts_ms: int, *, backward: bool
) -> Json:
    """Return id and time of the event nearest to a moment, in one direction.

    Raises:
        NotFound, Forbidden: as `require_in_room`; no event lies there.

    Spec: server-server-api#get_matrixfederationv1timestamp_to_eventroomid
    """
    await require_in_room(services, origin, room_id)
    row = await event_reads.fetch_reader(services.db, room_id, "")
    near = [] if row is None else await event_reads.list_by_time(
        services.db, services.events, row.room_nid, ts_ms,
        backward=backward, limit=NEAR_IN_TIME_MAX,
    )  # fmt: skip
    hidden = await _hidden_from(services, origin, near)
    for stored in near:
        if stored.event_id not in hidden:
            event = stored.event
            return {"event_id": event.event_id, "origin_server_ts": event.origin_server_ts}
    raise NotFound(f"There is no event {'before' if backward else 'after'} {ts_ms}.")


# --- history -----------------------------------------------------------------------------------


async def backfill(
    services: Services, origin: ServerName, room_id: RoomId, event_ids: Sequence[str], limit: int
) -> Json:
    """Return a transaction of the given events and what came before them, newest first.

    Raises:
        NotFound, Forbidden: as `require_in_room`.

    Spec: server-server-api#get_matrixfederationv1backfillroomid
    """
    await require_in_room(services, origin, room_id)
    limit = min(limit, BACKFILL_MAX)
    known = await _of_room(services, room_id, event_ids[:NAMED_EVENTS_MAX])
    waiting = [(_newest_first(stored), stored.event_id) for stored in known.values()]
    heapq.heapify(waiting)
    seen, found = set(known), list[StoredEvent]()
    while waiting and len(found) < limit:
        stored = known[EventId(heapq.heappop(waiting)[1])]
        found.append(stored)
        new = [e for e in stored.event.prev_event_ids if e not in seen]
        seen.update(new)
        for before in (await _of_room(services, room_id, new)).values():
            known[before.event_id] = before
            heapq.heappush(waiting, (_newest_first(before), before.event_id))
    return _transaction(services, await for_server(services, origin, found))


def _newest_first(stored: StoredEvent) -> tuple[int, int]:
    major, minor = stored.order or (0, 0)
    return -major, -minor


async def get_missing_events(
    services: Services,
    origin: ServerName,
    room_id: RoomId,
    *,
    earliest: Sequence[str],
    latest: Sequence[str],
    limit: int,
    min_depth: int,
) -> Json:
    """Return the events between `earliest` and `latest`, neither of them included, oldest first.

    Raises:
        NotFound, Forbidden: as `require_in_room`, if it has never been otherwise.

    Spec: server-server-api#post_matrixfederationv1get_missing_eventsroomid
    """
    end = await _end_of_stay(services, origin, room_id)
    limit = max(0, min(limit, MISSING_EVENTS_MAX))
    seen = {*earliest, *latest}
    layer = await _of_room(services, room_id, latest[:NAMED_EVENTS_MAX])
    if end is not None:  # What led to these it could have asked for then.
        known = await _of_its_stay(services, origin, layer.values(), end)
        layer = {stored.event_id: stored for stored in known}
    found: list[StoredEvent] = []
    while layer and len(found) < limit:
        ids = [
            event_id
            for event_id in dict.fromkeys(
                e for stored in layer.values() for e in stored.event.prev_event_ids
            )
            if event_id not in seen
        ]
        seen.update(ids)
        layer = {
            event_id: stored
            for event_id, stored in (await _of_room(services, room_id, ids)).items()
            if stored.event.depth >= min_depth
        }
        found += layer.values()
    found = found[:limit]
    found.reverse()
    return {"events": await for_server(services, origin, found)}


async def _of_room(
    services: Services, room_id: RoomId, event_ids: Iterable[str]
) -> dict[EventId, StoredEvent]:
    """Return those of the events that are in a room's history and were not rejected."""
    asked = [EventId(event_id) for event_id in event_ids if "\0" not in event_id]
    if not asked:
        return {}
    return {
        event_id: stored
        for event_id, stored in (await services.events.get_many(asked)).items()
        if stored.event.room_id == room_id
        and stored.status != REJECTED
        and stored.state_before is not None
    }


# --- states and auth chains --------------------------------------------------------------------


async def get_state(services: Services, origin: ServerName, room_id: RoomId, event_id: str) -> Json:
    """Return the state before an event, and all that it rests upon.

    Raises:
        NotFound, Forbidden: as `require_in_room`; there is no such event in this room.

    Spec: server-server-api#get_matrixfederationv1stateroomid
    """
    state_ids, chain_ids = await _state_and_chain(services, origin, room_id, event_id)
    return {
        "pdus": await pdu_list(services, state_ids),
        "auth_chain": await pdu_list(services, chain_ids),
    }


async def get_state_ids(
    services: Services, origin: ServerName, room_id: RoomId, event_id: str
) -> Json:
    """Return the same, as event ids.

    Raises:
        NotFound, Forbidden: as `get_state`.

    Spec: server-server-api#get_matrixfederationv1state_idsroomid
    """
    state_ids, chain_ids = await _state_and_chain(services, origin, room_id, event_id)
    return {"pdu_ids": list(state_ids), "auth_chain_ids": list(chain_ids)}


async def _state_and_chain(
    services: Services, origin: ServerName, room_id: RoomId, event_id: str
) -> tuple[Collection[EventId], Collection[EventId]]:
    stored = await _event_in_room(services, origin, room_id, event_id)
    if stored.state_before is None:
        raise NotFound("Nothing is known of the state before that event.")
    state_ids = list((await services.states.get(stored.state_before or 0)).entries.values())
    return state_ids, await auth_chain_of(services, state_ids)


async def get_event_auth(
    services: Services, origin: ServerName, room_id: RoomId, event_id: str
) -> Json:
    """Return everything that an event rests upon.

    Raises:
        NotFound, Forbidden: as `require_in_room`; there is no such event in this room.

    Spec: server-server-api#get_matrixfederationv1event_authroomideventid
    """
    stored = await _event_in_room(services, origin, room_id, event_id)
    named = stored.event.auth_event_ids  # Of a message they are only in its JSON.
    chain = await auth_chains.list_auth_chain(services.db, named)
    return {"auth_chain": await pdu_list(services, sorted(chain))}


async def auth_chain_of(services: Services, event_ids: Collection[EventId]) -> Collection[EventId]:
    """Return what state events rest upon; those of them that others rest upon are among it."""
    if not event_ids:
        return ()
    events = await services.events.get_many(event_ids)
    named = {e for stored in events.values() for e in stored.event.auth_event_ids}
    return sorted(await auth_chains.list_auth_chain(services.db, named)) if named else ()


# --- events as they are sent -------------------------------------------------------------------


async def pdu_list(services: Services, event_ids: Iterable[EventId]) -> orjson.Fragment:
    """Return state events of a room as a JSON list, whoever asks: state is not hidden."""
    ids = list(event_ids)
    parts: list[bytes] = []
    for start in range(0, len(ids), EVENTS_AT_ONCE):
        events = await services.events.get_many(ids[start : start + EVENTS_AT_ONCE])
        parts += [pdu_json(stored) for stored in events.values() if stored.status != REJECTED]
        await give_way()
    return orjson.Fragment(b"[%b]" % b",".join(parts))


def pdu_json(stored: StoredEvent, *, hidden: bool = False) -> bytes:
    """Return an event as JSON: as it was signed, or redacted if it has been, or is `hidden`."""
    event = stored.event
    if stored.redacted_by is None and not hidden:
        return event.json
    return encode_event(redact(event.pdu, event.room_version), event.room_version)


async def for_server(
    services: Services, origin: ServerName, events: Sequence[StoredEvent]
) -> list[orjson.Fragment]:
    """Return events as a server may have them; what its users could not see is redacted.

    What is sticky is not, for a server that is in the room: redacted copies that it got here would
    keep it from those that it is pushed.

    Spec: client-server-api#room-history-visibility
    MSC4354#proposal
    """
    hidden = await _hidden_from(services, origin, events)
    return [
        orjson.Fragment(pdu_json(stored, hidden=stored.event_id in hidden)) for stored in events
    ]


async def _hidden_from(
    services: Services, origin: ServerName, events: Sequence[StoredEvent]
) -> set[EventId]:
    """Return those of the events whose contents nobody on a server could see.

    Outliers are state that the room has been given to us with, and state is not hidden. What else
    has no state before it was sticky; who was there then is not known, so nobody is taken to have
    been, and the room's present history visibility counts.
    """
    placed = [s for s in events if s.state_before is not None or not s.event.is_state]
    unplaced = {stored.event.room_id for stored in placed if stored.state_before is None}
    present_ids = await rooms.list_current_states(services.db, list(unplaced)) if unplaced else {}
    before = {
        stored.event_id: present_ids.get(stored.event.room_id, EMPTY_STATE_ID)
        if stored.state_before is None
        else stored.state_before
        for stored in placed
    }
    state_ids = set(before.values())
    entries = await state_reads.load_entries(
        services.states, services.db, state_ids, [HISTORY_VISIBILITY]
    )
    settings = await services.events.get_many(
        {event_id for entry in entries.values() for event_id in entry.values()}
    )
    visibilities = {
        state_id: _visibility(settings.get(entry.get(HISTORY_VISIBILITY, EventId(""))))
        for state_id, entry in entries.items()
    }
    erased = set(
        await event_reads.list_erased(
            services.db, {s.event.sender for s in placed if services.is_local(s.event.sender)}
        )
    )
    members: dict[int, set[str]] = {}
    hidden: set[EventId] = set()
    for stored in placed:
        state_id, event = before[stored.event_id], stored.event
        visibility = visibilities[state_id]
        is_erased = event.sender in erased
        if not is_erased and may_server_see(visibility, ()):
            continue
        if stored.state_before is not None and state_id not in members:
            members[state_id] = await _memberships(services, origin, state_id)
        present = set() if stored.state_before is None else set(members[state_id])
        if event.type == "m.room.member" and server_name_of(event.state_key or "") == origin:
            present.add(str(event.content.get("membership")))
        after = visibility
        if event.key == HISTORY_VISIBILITY and event.is_state:
            after = history_visibility(event.content)
        may_see = may_server_see(visibility, present) or may_server_see(after, present)
        if not may_see or (is_erased and "join" not in present):
            hidden.add(event.event_id)
    now_ms = services.clock.now_ms()
    live: dict[str, set[EventId]] = {}
    for stored in placed:
        is_hidden = stored.event_id in hidden and stored.event.sender not in erased
        if is_hidden and client_events.time_left_ms(stored, now_ms):
            live.setdefault(stored.event.room_id, set()).add(stored.event_id)
    for room_id, event_ids in live.items():
        if await memberships.has_members_of_server(services.db, room_id, origin):
            hidden -= event_ids
    return hidden


def _visibility(setting: StoredEvent | None) -> HistoryVisibility:
    return history_visibility(None if setting is None else setting.event.content)


async def _memberships(services: Services, origin: ServerName, state_id: int) -> set[str]:
    """Return what users of a server are in a state."""
    state = await services.states.get(state_id)
    ids = [
        event_id
        for (kind, user_id), event_id in state.entries.items()
        if kind == "m.room.member" and server_name_of(user_id) == origin
    ]
    events = await services.events.get_many(ids)
    return {str(stored.event.content.get("membership")) for stored in events.values()}


def _transaction(services: Services, pdus: Sequence[object]) -> Json:
    return {
        "origin": services.server_name,
        "origin_server_ts": services.clock.now_ms(),
        "pdus": pdus,
    }
