"""Redaction by a kick or ban: which stays are redacted, what arrives late, and the purge.

A kick or ban with `redact_events` redacts what its target said in the stay that it ended. However
much that is, one row says so, written with the member event (`find_ended_stays`, asked by
`commit`). From that moment nobody is shown anything else: events are redacted when they are read
(`storage.event_store`), in memory at once. What arrives late is redacted before it is stored
(`find_covering`). And the purge, a loop beside requests, goes through the room and takes the
content out of the database, with whatever else it left behind: counts of unread events, mentions,
stickiness.

The rules are `protocol.redact_on_ban`. To which stay an event belongs is read from what it cites,
so every server finds the same. Four things are ours:

* the stay begins with its first join: a change of display name shields nothing;
* control state stays (`protocol.redact_on_ban.CONTROL_STATE`) if it was in force before the kick or
  ban, which all servers agree about, or is in force when we learn of that;
* a late event is redacted by the stay that it cites, also after its sender has come back; but no
  longer where the flag has been redacted, or where state resolution has taken the ban back;
* each kick or ban acts for itself, also beside another one; a change of profile sent beside a kick
  may be a return, and ends its reach (`protocol.redact_on_ban.goes_on`).

MSC4293#proposal
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from minihs.base.tasks import give_way
from minihs.protocol import canonical_json
from minihs.protocol.event_auth import (
    EventAuthError,
    check_state_dependent,
    select_auth_keys_of,
)
from minihs.protocol.events import Event
from minihs.protocol.power_levels import PowerLevels
from minihs.protocol.redact_on_ban import (
    STAY_JOINS_COUNT_MAX,
    RedactedStay,
    asks_to_redact,
    goes_on,
    is_control_state,
    is_covered,
    is_of_joins,
    is_own_join,
    joins_leading_to,
    joins_of_stay,
    redacted_stay,
)
from minihs.protocol.redaction import redact
from minihs.protocol.room_versions import ROOM_VERSIONS
from minihs.protocol.state_keys import CREATE, POWER_LEVELS
from minihs.services.rooms.client_events import as_shown
from minihs.services.rooms.state import load_state_events
from minihs.services.rooms.stripped_state import purge_stripped
from minihs.storage import redacted_stays, rooms
from minihs.storage.event_store import SOFT_FAILED
from minihs.storage.stream_rows import StayRedaction

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from minihs.protocol.identifiers import EventId, RoomId, StateKey
    from minihs.services.context import Services
    from minihs.storage.event_store import StoredEvent
    from minihs.storage.redacted_stays import Purge, Purgeable
    from minihs.storage.state import State


# By then, whoever wrote an event of the stay without knowing of the ban has finished.
PURGE_AFTER_MS = 5_000
PURGES_AT_ONCE = 100
STEPS_AT_ONCE = 200  # Of one round of the loop, for all stays together.
EVENTS_AT_ONCE = 1_000  # Looked at by one step.
CHECKS_AT_ONCE = 50


# --- which stays are redacted ------------------------------------------------------------------


async def find_ended_stays(
    services: Services,
    room_id: RoomId,
    room_nid: int,
    members: Iterable[tuple[Event, State | None]],
    current: State,
    planned: Iterable[Event] = (),
    planned_stays: Iterable[StayRedaction] = (),
) -> list[StayRedaction]:
    """Return the stays that some kicks and bans redact: of each the row that says so.

    Of each member event the state before it is given; None for an outlier, of which nothing else is
    known than what it cites. `current` is the room's state with them; `planned` are events, and
    `planned_stays` rows, that will be committed before them. Events that ask for no redaction cost
    nothing.

    A kick or ban need not be part of `current`: state resolution may prefer another one, or a join
    by which the target goes on. What was said before it is redacted all the same, as on servers
    where it comes first, unless it has been taken back. And each has a row of its own, so that none
    takes anything away from another.

    MSC4293#proposal
    """
    asking = [(event, before) for event, before in members if asks_to_redact(event)]
    if not asking:
        return []
    targets = {event.state_key or "" for event, _ in asking}
    known = {event.event_id: event for event in planned if event.type == "m.room.member"}
    known |= {
        stored.event_id: stored.event
        for stored in await redacted_stays.list_member_events(
            services.db, services.events, room_nid, targets
        )
    }
    others = await redacted_stays.list_stays(services.db, room_nid, targets)
    written = {stay.because_id: stay for stay in (*others, *planned_stays)}
    control = await _control_state(services, current)
    found: list[StayRedaction] = []
    for number, (event, before) in enumerate(asking, 1):
        stay = await _ended_stay(services, event, before, known)
        present_id = current.get("m.room.member", event.state_key or "")
        if stay is not None and present_id not in stay.led_by:
            was_control = () if before is None else await _control_state(services, before)
            going_on = await _going_on(
                services, event, before or current, stay.led_by, known.values()
            )
            if not await has_power(services, event, current):
                going_on |= _led_to(present_id, known) - stay.led_by
            joins = joins_of_stay(stay.led_by, known.values(), going_on)
            # If it is in force again, what it was found to spare stays so.
            before_that = written.get(event.event_id)
            spared = going_on if before_that is None else going_on | before_that.spared_ids
            sticky = await services.events.get_many(
                await redacted_stays.list_sticky(services.db, room_nid, stay.user_id)
            )
            found.append(
                StayRedaction(
                    room_id=room_id,
                    user_id=stay.user_id,  # type: ignore[arg-type]  # of a member event
                    first_join_id=stay.first_join_id,  # type: ignore[arg-type]  # an event id
                    because_id=stay.because_id,  # type: ignore[arg-type]  # an event id
                    join_ids=joins,
                    spared_ids=spared | _of_stay([*control, *was_control], stay, joins),
                    replaces=frozenset(
                        other.because_id
                        for other in (*written.values(), *found)
                        if other.first_join_id == stay.first_join_id
                        and other.because_id > event.event_id
                    ),
                    created_ms=services.clock.now_ms(),
                    unstuck=tuple(_of_stay(sticky.values(), stay, joins)),
                )
            )
        if number % CHECKS_AT_ONCE == 0:
            await give_way()
    return found


async def _ended_stay(
    services: Services, event: Event, before: State | None, known: dict[EventId, Event]
) -> RedactedStay | None:
    """Return the stay that a kick or ban redacts; `known` gets the member events on the way to it.

    Power is judged by the state before the event, so that a moderator's later fate changes nothing.
    """
    member_key: StateKey = ("m.room.member", event.state_key or "")
    if before is not None:
        stored = await load_state_events(services, before, (POWER_LEVELS, CREATE, member_key))
        deciding = {key: found.event for key, found in stored.items()}
    else:
        cited = await services.events.get_many(event.auth_event_ids)
        deciding = {found.event.key: found.event for found in cited.values()}
    member = deciding.get(member_key)
    levels = PowerLevels.of(deciding.get(POWER_LEVELS), deciding.get(CREATE), event.room_version)
    if member is None:
        return None
    await _load_joins(services, member, known)
    return redacted_stay(event, member, levels, known.get)  # type: ignore[arg-type]  # an id is text


async def _going_on(
    services: Services,
    event: Event,
    before: State,
    led_by: Collection[str],
    members: Iterable[Event],
) -> frozenset[EventId]:
    """Return the changes of profile by which a user goes on in spite of a kick or ban `event`.

    They are among `members`, but not among the joins `led_by`, of which the event knew.
    """
    every = {member.event_id: member for member in members}
    beside = [every[e] for e in joins_of_stay(led_by, every.values()) - frozenset(led_by)]  # type: ignore[index]  # event ids
    if not beside:
        return frozenset()
    keys = {CREATE, *(key for join in beside for key in select_auth_keys_of(join))}
    after = {
        key: stored.event
        for key, stored in (await load_state_events(services, before, list(keys))).items()
    }
    after[event.key] = event
    found: set[EventId] = set()
    for number, join in enumerate(beside, 1):
        if goes_on(join, after):
            found.add(join.event_id)
        if number % CHECKS_AT_ONCE == 0:
            await give_way()
    return frozenset(found)


async def has_power(services: Services, event: Event, current: State) -> bool:
    """Return whether a state of the room would allow a kick or ban, whatever its target is there.

    If not, state resolution has taken it back: its sender, it has turned out, had no power.
    """
    keys = [key for key in (*select_auth_keys_of(event), CREATE) if key != event.key]
    found = await load_state_events(services, current, keys)
    try:
        check_state_dependent(event, {key: stored.event for key, stored in found.items()})
    except EventAuthError:
        return False
    return True


def _led_to(member_id: EventId | None, known: Mapping[EventId, Event]) -> frozenset[EventId]:
    """Return the joins that a member event leads back to, with itself; none if it is no join."""
    member = None if member_id is None else known.get(member_id)
    joins = [] if member is None else joins_leading_to(member, known.get)  # type: ignore[arg-type]  # an id is text
    return frozenset(join.event_id for join in joins)


async def _load_joins(services: Services, member: Event, known: dict[EventId, Event]) -> None:
    """Load the joins that a join event leads back to; most are known, or in memory."""
    for _ in range(STAY_JOINS_COUNT_MAX):
        known[member.event_id] = member
        if not is_own_join(member):
            return
        cited = [known[e] for e in member.auth_event_ids if e in known]
        unknown = [e for e in member.auth_event_ids if e not in known]
        cited += [stored.event for stored in (await services.events.get_many(unknown)).values()]
        before = [e for e in cited if e.key == member.key]
        if not before:
            return
        member = before[0]


async def _control_state(services: Services, state: State) -> Collection[StoredEvent]:
    """Return the events of a state that keep a room safe, if such are to be spared."""
    if not services.config.redact_on_ban_spares_control_state:
        return ()
    ids = [event_id for key, event_id in state.entries.items() if is_control_state(key[0])]
    return (await services.events.get_many(ids)).values()


def _of_stay(
    events: Iterable[StoredEvent], stay: RedactedStay, joins: frozenset[str]
) -> frozenset[EventId]:
    return frozenset(e.event_id for e in events if is_of_joins(e.event, stay.user_id, joins))


# --- what arrives late -------------------------------------------------------------------------


async def find_covering(
    services: Services,
    room_nid: int,
    events: Iterable[StoredEvent],
    state: State | None = None,
    planned: Iterable[StayRedaction] = (),
) -> tuple[dict[EventId, EventId], list[StayRedaction]]:
    """Return which of some events, not yet stored, a kick or ban redacts, and which one does.

    Beside it: stays of which more is known now, to be written before the events; also of those that
    are `planned`, which will be written with them. `state` is the room's current state with the
    events. Where it is not at hand (None), control state among them is left alone, unless it was
    soft-failed and so cannot be in force.

    MSC4293#proposal
    """
    by_sender: dict[str, list[StoredEvent]] = {}
    for stored in events:
        if stored.event.auth_event_ids:
            by_sender.setdefault(stored.event.sender, []).append(stored)
    stays = {
        stay.because_id: stay
        for stay in (
            *await redacted_stays.list_stays(services.db, room_nid, by_sender),
            *(stay for stay in planned if stay.user_id in by_sender),
        )
    }
    if not stays:
        return {}, []
    if state is None:
        current = await redacted_stays.list_member_ids(services.db, room_nid, by_sender)
    else:
        ids = {user_id: state.get("m.room.member", user_id) for user_id in by_sender}
        current = {user_id: event_id for user_id, event_id in ids.items() if event_id is not None}
    covered: dict[EventId, EventId] = {}
    changed: list[StayRedaction] = []
    for _, stay in sorted(stays.items()):
        theirs = by_sender[stay.user_id]
        because = await services.events.get(stay.because_id)
        joins, spared = await _late_joins(services, stay, because, [s.event for s in theirs])
        present_id = current.get(stay.user_id)
        stands = await _still_stands(
            services, because, state, present_id if present_id in joins else None
        )
        for stored in theirs:
            if stored.event_id in spared or not is_of_joins(stored.event, stay.user_id, joins):
                continue
            if stands and await _loses_content(services, stored, because, state):
                covered.setdefault(stored.event_id, stay.because_id)
            elif state is None or not stay.upto:  # Else it comes after `upto`, which says enough.
                spared.add(stored.event_id)
        known = replace(stay, join_ids=joins, spared_ids=stay.spared_ids | spared)
        if known != stay:
            changed.append(known)
    return covered, changed


async def _still_stands(
    services: Services,
    because: StoredEvent | None,
    state: State | None,
    redacted_join_id: EventId | None,
) -> bool:
    """Return whether what is late is still covered by a kick or ban.

    Not if it was redacted and lost the flag (MSC4298 makes it keep that), nor if state resolution
    has taken it back. Its target is then in the room by a join of the stay (`redacted_join_id`);
    but so they may be, by one that was sent beside a ban, where a kick sent beside that, too, is
    preferred to it.
    """
    if because is None or not asks_to_redact(as_shown(because)):
        return False
    if redacted_join_id is None:
        return True
    before = await state_before(services, because)
    stay = await _ended_stay(services, because.event, before, {})
    if stay is None or redacted_join_id in stay.led_by:
        return False
    if state is None:
        state = await current_state(services, because.event.room_id)
    return await has_power(services, because.event, state)


async def state_before(services: Services, stored: StoredEvent) -> State | None:
    """Return the state before an event, None if it is not known."""
    return None if stored.state_before is None else await services.states.get(stored.state_before)


async def current_state(services: Services, room_id: RoomId) -> State:
    """Return the state of a room as the database has it."""
    state_ids = await rooms.list_current_states(services.db, [room_id])
    return await services.states.get(state_ids[room_id])


async def _late_joins(
    services: Services,
    stay: StayRedaction,
    because: StoredEvent | None,
    events: Iterable[Event],
) -> tuple[frozenset[str], set[EventId]]:
    """Return a stay's joins with those among some events, and those by which its user goes on."""
    members = [event for event in events if is_own_join(event)]
    if not members or because is None:
        return stay.join_ids, set()
    before = await state_before(services, because) or await current_state(services, stay.room_id)
    going_on = await _going_on(services, because.event, before, stay.join_ids, members)
    return joins_of_stay(stay.join_ids, members, going_on), set(going_on)


async def _loses_content(
    services: Services,
    stored: StoredEvent,
    because: StoredEvent | None,
    state: State | None,
) -> bool:
    """Return whether a late event of a redacted stay loses its content; see `find_covering`."""
    event, spares = stored.event, services.config.redact_on_ban_spares_control_state
    if state is None:
        keeps_safe = stored.status != SOFT_FAILED
    else:
        keeps_safe = event.is_state and state.entries.get(event.key) == event.event_id
    if is_covered(event, in_force=True, spare_control_state=spares):
        return True
    if not keeps_safe and because is not None and because.state_before is not None:
        before = await services.states.get(because.state_before)
        keeps_safe = before.entries.get(event.key) == event.event_id
    return is_covered(event, in_force=keeps_safe, spare_control_state=spares)


# --- the purge ---------------------------------------------------------------------------------


async def purge_redacted(services: Services) -> None:
    """Take the content of redacted stays out of the database, in bounded steps.

    Each step is a transaction that also notes where to go on, so it does not matter when the server
    stops. MSC4293#proposal
    """
    now_ms, steps = services.clock.now_ms(), 0
    for purge in await redacted_stays.list_unpurged(
        services.db, now_ms - PURGE_AFTER_MS, now_ms + PURGE_AFTER_MS, PURGES_AT_ONCE
    ):
        going_on: Purge | None = purge
        while going_on is not None and steps < STEPS_AT_ONCE:
            going_on = await _purge_step(services, going_on)
            steps += 1


async def _purge_step(services: Services, purge: Purge) -> Purge | None:
    """Purge what some of a room's events say; return where to go on, None at the end."""
    sender_json = '"sender":' + canonical_json.encode(purge.stay.user_id).decode()
    place, next_nid = (purge.next_major, purge.next_minor), purge.next_nid
    if next_nid is None:
        found = await redacted_stays.list_placed(services.db, purge, sender_json, EVENTS_AT_ONCE)
        if len(found) < EVENTS_AT_ONCE:
            next_nid = 0
        elif (major := found[-1].order_major) is not None:
            place = major, found[-1].order_minor
        done = False
    else:
        found = await redacted_stays.list_unplaced(services.db, purge, sender_json, EVENTS_AT_ONCE)
        done = len(found) < EVENTS_AT_ONCE
        if found:
            next_nid = found[-1].event_nid
    redacted = await _redacted(purge, found)
    async with services.db.transaction() as tx:
        if redacted:
            await redacted_stays.purge_events(tx, purge, redacted)
        await redacted_stays.mark_progress(tx, purge, place, next_nid)
    if done:
        await purge_stripped(services, purge.room_nid, purge.stay.user_id)
        await services.committer.commit_rows([replace(purge.stay, purged=True)])
        return None
    return replace(purge, next_major=place[0], next_minor=place[1], next_nid=next_nid)


async def _redacted(purge: Purge, found: Sequence[Purgeable]) -> list[tuple[Purgeable, str]]:
    """Return those events that lose their content, and what is left of each."""
    version, stay = ROOM_VERSIONS[purge.room_version], purge.stay
    left: list[tuple[Purgeable, str]] = []
    for number, one in enumerate(found, 1):
        if one.json is None:
            continue
        event = Event.from_json(one.json, version, one.event_id)
        if stay.covers(event):
            pdu = redact(event.pdu, version)
            left.append((one, Event.from_pdu(pdu, version, event.event_id).json.decode()))
        if number % CHECKS_AT_ONCE == 0:
            await give_way()
    return left
