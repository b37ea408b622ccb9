"""Judging received events where they stand, in the room's turn, one after the other.

Spec: server-server-api#checks-performed-on-receipt-of-a-pdu
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.base.tasks import give_way
from minihs.protocol.event_auth import EventAuthError, check_state_dependent, select_auth_keys_of
from minihs.protocol.state_keys import CREATE
from minihs.protocol.state_resolution import MissingEventsError
from minihs.protocol.stickiness import sticky_duration_ms
from minihs.services.rooms import commit, early_redactions, history_commit, missing, state
from minihs.services.rooms.commit import Plan, PlannedEvent
from minihs.services.rooms.heads import RoomHead, is_confirmed
from minihs.services.rooms.receipt import Receipt, is_followed, is_sticky_message, refusal_of_server
from minihs.services.rooms.verification import whole_of
from minihs.storage import missing_events
from minihs.storage.event_store import ACCEPTED, REJECTED, SOFT_FAILED, StoredEvent
from minihs.storage.group_commit import Conflict
from minihs.storage.history_writes import HistoryWrite, Refusal

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from minihs.protocol.events import Event
    from minihs.protocol.identifiers import EventId, StateKey
    from minihs.services.context import Services
    from minihs.storage.state import State, StateRow

logger = logging.getLogger(__name__)

COVERED_MAX = 100
JUDGED_AT_ONCE = 20
POSITION_MAX = 2**62


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
    next commit: events after which something is missing, redactions of what is not here. `awaited`
    is what the room's gaps wait for; None until somebody wants to know.
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
        self.awaited: set[EventId] | None = None

    async def run(self, events: Sequence[Event]) -> asyncio.Future[int] | None:
        """Judge the events; return when what was accepted last will be durable.

        Raises:
            Conflict: the room has moved; nothing that rests upon what it was has been kept.
        """
        services, receipt = self.services, self.receipt
        refusal = await refusal_of_server(services, self.head, receipt.origin)
        if refusal is not None or not await is_followed(services, self.head):
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
        except BaseException as error:
            for write in self.plan.writes:  # They will not be committed.
                services.events.forget(write.stored.event_id)
            if isinstance(error, Exception) and self.head.was_overtaken:
                raise Conflict from error  # It stumbled over what is not there any more.
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
        event = whole_of(event, stored)
        try:
            verdict = await self._judge(event)
        except (MissingEventsError, state.TooManyLoadsError) as error:
            verdict = f"the state before it could not be resolved: {error}"
        if isinstance(verdict, str):  # That is no fault of the event; it may come again.
            if self.head.was_overtaken:
                raise Conflict
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
            sticky_until_ms=None if stored is None else stored.sticky_until_ms,
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
        await history_commit.store_history(
            services, room_nid, [HistoryWrite(kept, refusal=refusal)]
        )
        if refusal is None:
            await history_commit.deliver_out_of_place(services, room_nid, kept)
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
        return target.redacted_by is None and await early_redactions.applies(
            self.services, event, before, target.event
        )

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
        if self.awaited is None:  # Gaps that these events make cannot wait for any of them.
            services, room_nid = self.services, self.receipt.room.room_nid
            gaps = await missing_events.list_gaps(services.db, room_nid, 0, POSITION_MAX)
            after = await services.events.get_many([gap.event_id for gap in gaps])
            self.awaited = {
                prev_id
                for stored in after.values()
                if stored.status == ACCEPTED
                for prev_id in stored.event.prev_event_ids
            }
        return event.event_id in self.awaited

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
        await history_commit.store_history(
            services, self.receipt.room.room_nid, [HistoryWrite(stored, auth_nids, rows, refusal)]
        )
        services.states.remember(after)
        if verdict.status == SOFT_FAILED:
            await early_redactions.note_soft_failed(services, event)
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
