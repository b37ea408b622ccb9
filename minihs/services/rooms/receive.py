"""REMOTE WRITE: the checks performed on receipt of a PDU, in their order, then the same commit.

`receive_pdus` takes what a server pushed for one room. What the events follow or rest upon and we
lack is fetched first (`missing`), then the room's turn is taken, and each event is judged where it
stands in the graph:

* accepted: it takes its place, like an event of our own;
* soft-failed: allowed where it stands, but not by the room's current state. It is kept, others may
  build upon it, but it is no end of the graph and nobody is shown it;
* rejected: kept as well, so that we know it when it comes again, but it changes no state;
* dropped: nothing is kept of it. It is malformed or not signed; the sender is told. Or it could not
  be judged, as what it follows or rests upon could not be had: it may come again, and be judged;
* out of place: a sticky message (MSC4354) is delivered even if what it follows cannot be had, or is
  of a time before we came. It is judged by its auth events and by the room's current state, and has
  no place in the graph or in timelines until it comes again with what it follows.

Spec: server-server-api#checks-performed-on-receipt-of-a-pdu
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from minihs.base.errors import MatrixError, Unavailable
from minihs.base.tasks import give_way
from minihs.protocol.event_auth import (
    EventAuthError,
    check_state_dependent,
    select_auth_keys_of,
)
from minihs.protocol.events import Event
from minihs.protocol.state_resolution import MissingEventsError
from minihs.protocol.stickiness import stickiness, sticky_duration_ms
from minihs.services.rooms import commit, early_redactions, missing, state
from minihs.services.rooms.commit import HistoryWrite, Plan, PlannedEvent, Refusal
from minihs.services.rooms.heads import RoomHead, building, is_confirmed
from minihs.services.rooms.missing import CREATE, Room
from minihs.services.rooms.server_acls import SERVER_ACL, is_allowed_by
from minihs.services.rooms.verification import BadPdu, examine_pdus, verify_pdus
from minihs.storage import membership as memberships
from minihs.storage import missing_events
from minihs.storage.event_store import ACCEPTED, REJECTED, SOFT_FAILED, StoredEvent
from minihs.storage.events import list_range
from minihs.storage.group_commit import Conflict

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Mapping, Sequence

    from minihs.protocol.identifiers import EventId, RoomId, StateKey
    from minihs.services.context import Services
    from minihs.storage.state import State, StateRow

logger = logging.getLogger(__name__)

ATTEMPTS = 20
FAR_ENDS_MAX = 5  # Events at the far end of a gap whose states we ask for.
COVERED_MAX = 100
JUDGED_AT_ONCE = 20
UNREACHED_TIMES_MAX = 3
JOIN_TIMEOUT_S = 10
POSITION_MAX = 2**62


async def receive_pdus(
    services: Services, origin: str, room_id: RoomId, pdus: Sequence[object]
) -> dict[EventId, str | None]:
    """Receive PDUs of one room that a server pushed, in its order.

    Returns what is wrong with each, or None: it has been dealt with, be it by rejecting it or by
    waiting for a better occasion. PDUs of a room that we are not in are left alone, unless they
    take back an invite; but a room that somebody has made us leave, and whose servers go on telling
    us of it, may turn out not to have accepted that.

    Raises:
        Unavailable: the database does not answer, or others were faster, time after time.
    """
    received_ms = services.clock.now_ms()
    async with building(services, room_id) as head:
        here = head is not None and bool(head.local_members)
    if not here:
        await _end_of_join(services, room_id)
    async with building(services, room_id) as head:
        if head is None:
            return {}
        room, here = Room.of(head), await _is_followed(services, head)
        refusal = await _refusal_of_server(services, head, origin)
        ends, near = [end.event_id for end in head.extremities], head.state
    if refusal is not None or not here:
        if refusal is None:
            await _receive_outside(services, room, pdus)
        return dict.fromkeys(_ids(pdus, room), refusal)
    results: dict[EventId, str | None] = {}
    events: dict[EventId, Event] = {}
    for found in await examine_pdus(services, pdus, room.room_version):
        reason = found.reason if isinstance(found, BadPdu) else _misplaced(room, found)
        if isinstance(found, Event) and reason is None:
            events[found.event_id] = found
        elif reason is not None:
            logger.info("dropped %s from %s: %s", found.event_id or "a PDU", origin, reason)
        if found.event_id is not None:
            results[found.event_id] = reason
    settled = await _settled(services, room, events)
    new = [event for event_id, event in events.items() if event_id not in settled]
    receipt = Receipt(origin, room, new, received_ms)
    if new:
        await _receive(services, receipt, ends, near)
    return results | {e: why for e, why in receipt.dropped.items() if e in results}


async def _is_followed(services: Services, head: RoomHead) -> bool:
    """Return whether what happens in a room is our business.

    It is if we are in it, and also if others have put us out of it: whether they could, servers may
    not have agreed about yet, and state resolution will tell.
    """
    return bool(head.local_members) or (
        bool(head.extremities) and await memberships.were_we_put_out(services.db, head.room_id)
    )


async def _end_of_join(services: Services, room_id: RoomId) -> None:
    """Wait for the end of a join that is under way.

    The room has taken our join before we know: what happens in it then is pushed to us, and would
    be lost until something else follows it.
    """
    prefix = f"join {room_id} "
    await services.handshakes.wait_for(lambda key: key.startswith(prefix), JOIN_TIMEOUT_S)


async def _receive(
    services: Services, receipt: Receipt, ends: Sequence[EventId], near: State
) -> None:
    """Take in events; what is wrong with the events is noted, and with us, too."""
    try:
        await _fetch_what_is_missing(services, receipt, ends, near)
        await _judge_and_commit(services, receipt)
    except MatrixError:
        raise
    except Exception:  # It must not keep other rooms' events from coming.
        logger.exception("PDUs of %s from %s failed", receipt.room.room_id, receipt.origin)
        receipt.dropped |= {event.event_id: "internal error" for event in receipt.events}


@dataclass(slots=True)
class Receipt:
    """Events of one room on their way in, and what is known only of this way.

    `pulled` were fetched because the pushed `events` follow them. `states` are those after events
    that we lack. `dropped` says why nothing is kept of an event.
    """

    origin: str
    room: Room
    events: list[Event]
    received_ms: int
    pulled: list[Event] = field(default_factory=list)
    states: dict[EventId, State] = field(default_factory=dict)
    dropped: dict[EventId, str] = field(default_factory=dict)

    def in_order(self) -> list[Event]:
        """Return all events, each after those that it follows or rests upon."""
        return missing.in_order(
            [*self.pulled, *self.events],
            lambda event: (*event.prev_event_ids, *event.auth_event_ids),
        )


async def _refusal_of_server(services: Services, head: RoomHead, origin: str) -> str | None:
    """Return why a room does not listen to a server, None if it does.

    Spec: server-server-api#server-access-control-lists-acls
    """
    if not await is_allowed_by(services, head.state.entries.get(SERVER_ACL), origin):
        return f"{origin} is denied access to the room by its server ACL"
    return None


async def _receive_outside(services: Services, room: Room, pdus: Sequence[object]) -> None:
    """Let whoever has invited a user of ours take it back. Nobody else can be believed.

    Of a room that we are not in we cannot tell who may do what; that two events are of the same
    sender is all that we know.
    """
    takes_back: list[object] = []
    for pdu in pdus:
        match pdu:
            case {
                "type": "m.room.member",
                "state_key": str(user_id),
                "content": {"membership": "leave" | "ban"},
            } if services.is_local(user_id):
                takes_back.append(pdu)
            case _:
                pass
    for event in await verify_pdus(services, takes_back, room.room_version):
        if event is None or event.room_id != room.room_id:
            continue
        user_id = event.state_key or ""
        invite = await memberships.fetch_membership(services.db, room.room_id, user_id)
        if invite is not None and (invite.membership, invite.sender) == ("invite", event.sender):
            await commit.commit_outside_event(services, event)


def _ids(pdus: Iterable[object], room: Room) -> list[EventId]:
    """Return the ids of PDUs that nobody looks at."""
    ids: list[EventId] = []
    for pdu in pdus:
        if isinstance(pdu, dict):
            try:
                ids.append(Event.from_pdu(pdu, room.room_version).event_id)
            except ValueError:
                continue
    return ids


def _misplaced(room: Room, event: Event) -> str | None:
    """Return why an event has no business in this room."""
    if event.room_id != room.room_id:
        return "the event is of another room"
    if event.key == CREATE and event.event_id != room.create_id:
        return "the room has been created by another event"
    return None


async def _settled(services: Services, room: Room, events: Mapping[EventId, Event]) -> set[EventId]:
    """Return those of the room's events that we have, and need not judge again."""
    known = await services.events.get_many(events)
    with_state = await missing.list_with_state(services, room.room_id, known)
    rejected = {
        event_id
        for event_id, stored in known.items()
        if stored.status == REJECTED and stored.event.room_id == room.room_id
    }
    return rejected | with_state.keys()


# --- what is missing ---------------------------------------------------------------------------


async def _fetch_what_is_missing(
    services: Services, receipt: Receipt, ends: Sequence[EventId], near: State
) -> None:
    """Fetch what the events follow and what they rest upon, in so far as we lack it."""
    linked = await _to_be_linked(services, receipt)
    if await _unknown_prevs(services, receipt, linked):
        async with services.heads.fetching.take((receipt.room.room_id, receipt.origin)):
            await _fetch_prev_events(services, receipt, linked, ends, near)
    events = [*receipt.pulled, *receipt.events]
    named = {e for event in events for e in event.auth_event_ids}
    named -= {event.event_id for event in events}
    unknown = named - (await services.events.get_many(named)).keys()
    if unknown:
        resting = [event for event in events if not unknown.isdisjoint(event.auth_event_ids)]
        await missing.fetch_auth_events(services, receipt.origin, receipt.room, resting)


async def _to_be_linked(services: Services, receipt: Receipt) -> list[Event]:
    """Return the events of which we want to have what they follow.

    What is sticky and older than all that we have of the room is delivered for what it is: servers
    push it to those who join. Were it linked, the past would come after the present in timelines.

    MSC4354#federation-behaviour
    """
    sticky = {e.event_id for e in receipt.events if is_sticky_message(e, receipt.received_ms)}
    if not sticky or not await _unknown_prevs(services, receipt, receipt.events):
        return receipt.events
    room_nid, everywhere = receipt.room.room_nid, ((0, 0), (2**62, 0))
    first = await list_range(
        services.db, services.events, room_nid, *everywhere, backward=False, limit=1
    )
    depth = first[0].event.depth if first else 0
    return [e for e in receipt.events if e.event_id not in sticky or e.depth >= depth]


def is_sticky_message(event: Event, now_ms: int) -> bool:
    """Return whether an event that comes now is sticky, and changes no state. MSC4354#proposal."""
    sticky = None if event.is_state else stickiness(event.pdu, now_ms)
    return sticky is not None and sticky.is_sticky(now_ms)


async def _unknown_prevs(
    services: Services, receipt: Receipt, events: Sequence[Event]
) -> set[EventId]:
    """Return what these events follow that is not known, nor on its way in."""
    named = {e for event in events for e in event.prev_event_ids}
    named -= {event.event_id for event in receipt.events}
    named -= {event.event_id for event in receipt.pulled}
    return named - (await missing.list_with_state(services, receipt.room.room_id, named)).keys()


async def _fetch_prev_events(
    services: Services,
    receipt: Receipt,
    linked: Sequence[Event],
    ends: Sequence[EventId],
    near: State,
) -> None:
    """Fetch the events between, and at their far end, if it does not reach us, the state.

    Events that a server pushes are never the far end themselves: it has what they follow, and to
    believe its word about the state there would let it replace ours.
    """
    unknown = await _unknown_prevs(services, receipt, linked)
    following = [e for e in linked if not unknown.isdisjoint(e.prev_event_ids)]
    if not following:  # They came while we waited for our turn.
        return
    try:
        pulled = await missing.fetch_events_between(
            services, receipt.origin, receipt.room, following, ends
        )
    except missing.NotReachedError as error:
        _let_come_again(services, receipt.origin, following, error)
        pulled = []
    receipt.pulled = [event for event in pulled if _misplaced(receipt.room, event) is None]
    far_ends = await _unknown_prevs(services, receipt, receipt.pulled)
    for event_id in sorted(far_ends)[:FAR_ENDS_MAX]:
        try:
            after = await missing.fetch_state_after(
                services, receipt.origin, receipt.room, event_id, near
            )
        except missing.UntoldError:  # Also unknown to who came in later, by what follows it.
            follower = next(e for e in receipt.pulled if event_id in e.prev_event_ids)
            after = await missing.fetch_state_before(
                services, receipt.origin, receipt.room, follower, near
            )
        if after is not None:
            receipt.states[event_id] = after


def _let_come_again(
    services: Services, origin: str, following: Sequence[Event], error: Exception
) -> None:
    """Let a server that did not tell what its events follow send them again, a few times.

    They may be the last that we hear of the room, such as one by which we have to leave it. Of a
    server that can reach us, but that we can never reach, the events are dropped in the end: what
    it has to say of other rooms must not wait for ever.

    Raises:
        Unavailable: the events are to be sent again.
    """
    unreached = services.heads.unreached
    keys = [(origin, event.event_id) for event in following]
    tries = max(unreached.get(key) or 0 for key in keys)
    if tries < UNREACHED_TIMES_MAX:
        for key in keys:
            unreached.put(key, tries + 1)
        logger.info("cannot learn what events of %s follow: %s", origin, error)
        raise Unavailable("What the events follow cannot be fetched; send them again.")


# --- judging and committing --------------------------------------------------------------------


async def _judge_and_commit(services: Services, receipt: Receipt) -> None:
    """Judge the events in the room's turn, again if the room has moved, until all are durable."""
    ordered = receipt.in_order()
    for event in receipt.events:
        receipt.dropped[event.event_id] = "the event follows or rests upon itself"
    for event in ordered:
        receipt.dropped.pop(event.event_id, None)
    for _ in range(ATTEMPTS):
        try:
            async with building(services, receipt.room.room_id) as head:
                if head is None:
                    raise RuntimeError(f"{receipt.room.room_id} is gone")
                judge = Judge(services, receipt, head)
                durable = await judge.run(ordered)
            if durable is not None:
                await durable
        except Conflict:
            continue
        return
    raise Unavailable("The room is too busy; try again.")


@dataclass(slots=True)
class Verdict:
    """An event where it stands: its auth events, the state before it, and why it is refused."""

    event: Event
    auth: Sequence[StoredEvent]
    before: State
    rows: Sequence[StateRow]
    refusal: Refusal | None = None
    status: int = ACCEPTED


class Judge:
    """Judges events of a room in its turn, one after the other, and hands on what is accepted.

    `known` are the events that they name, and those of them that have been judged; `redacted` and
    `waiting` say what has been redacted before it came. `gaps` and `early` are to be noted with the
    next commit: events after which something is missing, redactions of what is not here.
    """

    def __init__(self, services: Services, receipt: Receipt, head: RoomHead) -> None:
        self.services = services
        self.receipt = receipt
        self.head = head
        self.known: dict[EventId, StoredEvent] = {}
        self.redacted: dict[EventId, EventId] = {}
        self.plan = Plan(head)
        self.gaps: list[int] = []
        self.early: list[tuple[EventId, EventId]] = []
        self.waiting: dict[EventId, list[tuple[Event, State]]] = {}

    async def run(self, events: Sequence[Event]) -> asyncio.Future[int] | None:
        """Judge the events; return when what was accepted last will be durable.

        Raises:
            Conflict: the room has moved; nothing that rests upon what it was has been kept.
        """
        services, receipt = self.services, self.receipt
        refusal = await _refusal_of_server(services, self.head, receipt.origin)
        if refusal is not None or not await _is_followed(services, self.head):
            reason = refusal or "this server has left the room"
            receipt.dropped |= {event.event_id: reason for event in events}
            return None
        try:
            await self._load(events)
            for number, event in enumerate(events, 1):
                await self._receive(event)
                if number % JUDGED_AT_ONCE == 0:
                    await give_way()
            return await self._submit()
        except BaseException:
            for write in self.plan.writes:  # They will not be committed.
                services.events.forget(write.stored.event_id)
            raise

    async def _load(self, events: Sequence[Event]) -> None:
        """Read what the events name, and which of them have been redacted in advance."""
        named = {e for event in events for e in (*event.prev_event_ids, *event.auth_event_ids)}
        new = {event.event_id: event for event in events}
        self.known = await self.services.events.get_many(named | new.keys())
        self.redacted = await early_redactions.find_applying(self.services, new)

    async def _receive(self, event: Event) -> None:
        """Judge one event and do with it what the verdict says."""
        origin, stored = self.receipt.origin, self.known.get(event.event_id)
        if stored is not None and stored.event.room_id != event.room_id:
            # In room versions 1 and 2 its server has named it so.
            self.receipt.dropped[event.event_id] = "there is an event of that id in another room"
            return
        if stored is not None and (stored.state_after is not None or stored.status == REJECTED):
            return  # It has come by another way in the meantime.
        try:
            verdict = await self._judge(event)
        except (MissingEventsError, state.TooManyLoadsError) as error:
            verdict = f"the state before it could not be resolved: {error}"
        if isinstance(verdict, str):  # That is no fault of the event; it may come again.
            if await self._take_out_of_place(event, stored):
                return
            logger.info("cannot judge %s from %s: %s", event.event_id, origin, verdict)
            if sticky_duration_ms(event.pdu) is not None:  # Its loss must be told.
                self.receipt.dropped[event.event_id] = f"cannot judge it: {verdict}"
            return
        self.receipt.dropped.pop(event.event_id, None)
        if stored is None:
            await self.services.event_numbers.reserve(1)
        stored = StoredEvent(
            event,
            self.services.event_numbers.take() if stored is None else stored.event_nid,
            redacted_by=await self._redacted_by(event),
        )
        if verdict.refusal is None:
            await self._accept(verdict, stored)
        else:
            await self._refuse(verdict, stored)
        self.known[event.event_id] = stored

    async def _take_out_of_place(self, event: Event, stored: StoredEvent | None) -> bool:
        """Keep a sticky message that cannot be judged where it stands; return whether it is kept.

        MSC4354#federation-behaviour
        """
        auth = [self.known[e] for e in event.auth_event_ids if e in self.known]
        if (
            not is_sticky_message(event, self.receipt.received_ms)
            or len(auth) < len(event.auth_event_ids)
            or missing.refusal_by_auth_events(event, auth) is not None
        ):
            return False
        services, head = self.services, self.head
        refusal = await self._refusal_by_state(event, head.state, set())
        await self._make_sure()
        if stored is None:
            await services.event_numbers.reserve(1)
        kept = StoredEvent(
            event,
            services.event_numbers.take() if stored is None else stored.event_nid,
            redacted_by=await self._redacted_by(event),
            status=ACCEPTED if refusal is None else SOFT_FAILED,
        )
        room_nid = self.receipt.room.room_nid
        await commit.store_history(services, room_nid, [HistoryWrite(kept, refusal=refusal)])
        if refusal is None:
            await commit.deliver_out_of_place(services, room_nid, kept)
        self.receipt.dropped.pop(event.event_id, None)
        return True

    async def _judge(self, event: Event) -> Verdict | str:
        """Return the verdict on a valid, signed, hashed event, or why there cannot be one."""
        auth = [self.known[e] for e in event.auth_event_ids if e in self.known]
        if len(auth) < len(event.auth_event_ids):
            return "its auth_events could not be had"
        before = await self._state_before(event)
        if before is None:
            return "its prev_events could not be had"
        verdict = Verdict(event, auth, *before)

        # 4. Passes authorization rules based on its auth events, otherwise it is rejected.
        verdict.refusal = missing.refusal_by_auth_events(event, auth)

        # 5. Passes authorization rules based on the state before it, otherwise it is rejected.
        by_auth_events = {stored.event_id for stored in auth}
        if verdict.refusal is None:
            verdict.refusal = await self._refusal_by_state(event, verdict.before, by_auth_events)
        if verdict.refusal is not None:
            verdict.status = REJECTED
            return verdict

        # 6. Passes authorization rules based on the room's current state, else it is soft-failed.
        if verdict.before.state_id != self.head.state.state_id:
            verdict.refusal = await self._refusal_by_state(event, self.head.state, by_auth_events)
            if verdict.refusal is not None:
                verdict.status = SOFT_FAILED
        return verdict

    async def _state_before(self, event: Event) -> tuple[State, Sequence[StateRow]] | None:
        """Return the state before an event; None if we lack what it follows."""
        head = self.head
        state_ids: set[int] = set()
        for prev_id in event.prev_event_ids:
            prev = self.known.get(prev_id)
            if missing.is_placed(prev, head.room_id):
                state_ids.add(prev.state_after or 0)
            elif prev_id in self.receipt.states:
                state_ids.add(self.receipt.states[prev_id].state_id)
            else:
                return None
        if state_ids == {head.state.state_id}:
            return head.state, ()
        if set(event.prev_event_ids) == {end.event_id for end in head.extremities}:
            return head.state, ()
        return await state.resolve_states(self.services, head.room_version, state_ids)

    async def _refusal_by_state(
        self, event: Event, of: State, checked: set[EventId]
    ) -> Refusal | None:
        """Return why a state does not allow an event, unless it has been `checked` against it."""
        keys = [*select_auth_keys_of(event), CREATE]
        entries: dict[StateKey, EventId] = {key: e for key in keys if (e := of.entries.get(key))}
        if checked == set(entries.values()):
            return None  # Its auth events are what that state has under these keys.
        found = await state.load_state_events(self.services, of, keys)
        try:
            check_state_dependent(event, {key: stored.event for key, stored in found.items()})
        except EventAuthError as error:
            return Refusal(error.rule, error.passage, error.message, sorted(entries.values()))
        return None

    async def _accept(self, verdict: Verdict, stored: StoredEvent) -> None:
        """Let an event take its place in the room."""
        event = verdict.event
        if any(self._is_missing(prev_id) for prev_id in event.prev_event_ids):
            self.gaps.append(stored.event_nid)
            stored.after_gap = True
        await commit.add_event(
            self.services,
            self.plan,
            PlannedEvent(
                event,
                {auth.event.key: auth for auth in verdict.auth},
                await self._may_redact(event, verdict.before),
                state_before=verdict.before,
                rows=verdict.rows,
                stored=stored,
                received_ms=self.receipt.received_ms,
                covers=await self._covers(event),
            ),
        )

    def _is_missing(self, event_id: EventId) -> bool:
        return not missing.is_placed(self.known.get(event_id), self.head.room_id)

    async def _may_redact(self, event: Event, before: State) -> bool:
        """Return whether a redaction applies to an event that we have; else remember it."""
        if event.type != "m.room.redaction" or event.redacts is None or "\0" in event.redacts:
            return False
        target = await self.services.events.get(event.redacts)
        if target is None:
            self.early.append((event.redacts, event.event_id))
            self.waiting.setdefault(event.redacts, []).append((event, before))
            return False
        return await early_redactions.applies(self.services, event, before, target.event)

    async def _redacted_by(self, event: Event) -> EventId | None:
        """Return the redaction that came before the event that it redacts."""
        for redaction, before in self.waiting.get(event.event_id, ()):
            if await early_redactions.applies(self.services, redaction, before, event):
                return redaction.event_id
        return self.redacted.get(event.event_id)

    async def _covers(self, event: Event) -> set[EventId]:
        """Return what lies behind refused events that this one follows: no ends any more.

        Nor is the event itself one, if something has come before it that follows it.
        """
        covered: set[EventId] = {event.event_id} if await self._comes_late(event) else set()
        queue = list(event.prev_event_ids)
        while queue and len(covered) < COVERED_MAX:
            prev_id = queue.pop()
            stored = self.known.get(prev_id) or await self.services.events.get(prev_id)
            if stored is not None and stored.status != ACCEPTED:
                new = set(stored.event.prev_event_ids) - covered
                covered |= new
                queue += new
        return covered

    async def _comes_late(self, event: Event) -> bool:
        """Return whether an event stands where the room had a gap."""
        if {end.event_id for end in self.head.extremities} <= set(event.prev_event_ids):
            return False  # As nearly all do.
        services, room_nid = self.services, self.receipt.room.room_nid
        gaps = await missing_events.list_gaps(services.db, room_nid, 0, POSITION_MAX)
        after = await services.events.get_many([gap.event_id for gap in gaps])
        return any(
            event.event_id in stored.event.prev_event_ids and stored.status == ACCEPTED
            for stored in after.values()
        )

    async def _refuse(self, verdict: Verdict, stored: StoredEvent) -> None:
        """Keep an event that is rejected or soft-failed, with the reason.

        What it follows must be durable first, and the room must be what we took it for.
        """
        services, event, refusal = self.services, verdict.event, verdict.refusal
        if refusal is None:
            raise ValueError("it is not refused")
        await self._make_sure()
        after, rows = verdict.before, list(verdict.rows)
        if verdict.status == SOFT_FAILED and event.is_state:
            await services.states.numbers.reserve(1)
            after, row = services.states.derive(verdict.before, {event.key: event.event_id})
            rows.append(row)
        stored.status = verdict.status
        stored.state_before, stored.state_after = verdict.before.state_id, after.state_id
        auth_nids = [auth.event_nid for auth in verdict.auth] if event.is_state else None
        await commit.store_history(
            services, self.receipt.room.room_nid, [HistoryWrite(stored, auth_nids, rows, refusal)]
        )
        services.states.remember(after)
        logger.info(
            "%s %s from %s: %s (%s)",
            "rejected" if verdict.status == REJECTED else "soft-failed",
            event.event_id, self.receipt.origin, refusal.message, refusal.rule,
        )  # fmt: skip

    async def _make_sure(self) -> None:
        """Let what has been accepted be durable, and the room be what we took it for.

        Raises:
            Conflict: it is not.
        """
        durable = await self._submit()
        if durable is not None:
            await durable
        if not await is_confirmed(self.services, self.head, self.head.cursor.pending):
            raise Conflict

    async def _submit(self) -> asyncio.Future[int] | None:
        """Hand what has been accepted so far to the committer."""
        services, plan = self.services, self.plan
        if not plan.writes:
            return None
        if self.gaps:
            await missing_events.insert_gaps(services.db, self.receipt.room.room_nid, self.gaps)
        if self.early:
            await missing_events.insert_early_redactions(services.db, self.early)
        self.plan, self.gaps, self.early = Plan(self.head), [], []
        return plan.submit(services)
