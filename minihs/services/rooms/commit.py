"""THE ONLY WRITER OF EVENTS, for local and remote alike (one of the three laws).

An accepted event becomes one `EventWrite`: the row, the state after it, and every effect that
`effects_of` lists, carried out in one `match`. What is handed to the group committer is written
whole or not at all. Nothing is called back afterwards: readers follow the stream.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, assert_never

from minihs.base.tasks import give_way
from minihs.protocol.canonical_json import encode_any
from minihs.protocol.membership import INSIDE
from minihs.protocol.redact_on_ban import asks_to_redact
from minihs.protocol.stickiness import stickiness
from minihs.services.rooms import effects as consequences
from minihs.services.rooms import notifications, redact_on_ban, state
from minihs.services.rooms.history_commit import ensure_room
from minihs.services.rooms.origins import ClientTransaction, DelayedSending, Origin
from minihs.services.rooms.outsiders import stripped_room_state
from minihs.storage import membership as memberships
from minihs.storage.event_store import StoredEvent
from minihs.storage.event_writes import DelayedOutcome, EventWrite, Push, RoomWrite
from minihs.storage.stream_rows import (
    DelayedEventOutcome,
    ForgottenRoom,
    Membership,
    StayRedaction,
    StickyEvent,
)

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Collection, Mapping, Sequence

    from minihs.protocol.events import Event
    from minihs.protocol.identifiers import EventId, RoomAlias, RoomId, StateKey, UserId
    from minihs.services.context import Services
    from minihs.services.rooms.heads import RoomHead
    from minihs.storage.state import State, StateRow
    from minihs.storage.stream_rows import StreamRow

MEMBERS_AT_ONCE = 500


@dataclass(slots=True)
class PlannedEvent:
    """An event that has passed its checks, with what the commit needs to know.

    `auth` are its auth events, by key. `state_before` is the state before the event (None: the
    room's current state), `rows` the states that were made to find it; `stored` the event with its
    number, if it has one. `covers` are events which, beside its prev_events, are no ends of the
    graph any more: the event itself, if it comes after what follows it.
    """

    event: Event
    auth: Mapping[StateKey, StoredEvent]
    may_redact: bool = False
    transaction: Origin | None = None
    state_before: State | None = None
    rows: Sequence[StateRow] = ()
    stored: StoredEvent | None = None
    received_ms: int | None = None
    covers: Collection[EventId] = ()


@dataclass(slots=True)
class Plan:
    """Events of one room, chained, on their way to the committer, and rows that come with them.

    `published` and `alias` (with its creator) are of a room that is being made: a room and its
    alias come into being together, and an alias that is taken is a `Conflict`.
    """

    head: RoomHead
    writes: list[EventWrite] = field(default_factory=list)
    rows: list[StreamRow] = field(default_factory=list)
    published: bool = False
    alias: tuple[RoomAlias, UserId] | None = None

    def submit(self, services: Services) -> Future[int]:
        """Hand the events to the committer; the answer comes when they are durable.

        Call it before the room's turn ends: builders' order is commit order.
        """
        head = self.head
        head.unsubmitted = False
        room = RoomWrite(
            head.cursor.room_nid,
            head.room_id,
            head.room_version.identifier,
            None,
            [stored.event_nid for stored in head.extremities],
            head.state.state_id,
            head.main_count,
            self.published,
            self.alias,
        )
        return services.committer.commit_events(
            self.writes, room, head.cursor, head.generation, self.rows
        )


async def add_event(services: Services, plan: Plan, planned: PlannedEvent) -> StoredEvent:
    """Put an accepted event into the room's graph, with everything that it causes."""
    head, event = plan.head, planned.event
    head.unsubmitted = True  # Whatever goes wrong before `submit`, the next builder starts anew.
    if not head.room_id:
        head.room_id = event.room_id
    enters = not head.extremities
    room_before, before, rows = head.state, planned.state_before or head.state, list(planned.rows)
    after = before
    if event.is_state:
        await services.states.numbers.reserve(1)
        after, row = services.states.derive(before, {event.key: event.event_id})
        services.states.remember(after)
        rows.append(row)
    await services.event_numbers.reserve(1)
    stored = planned.stored or StoredEvent(event, services.event_numbers.take())
    stored.state_before, stored.state_after = before.state_id, after.state_id
    stored.thread_root = event.thread_root
    services.events.remember(stored)
    prev_event_ids = {*event.prev_event_ids, *planned.covers}
    head.extremities = [e for e in (*head.extremities, stored) if e.event_id not in prev_event_ids]
    merged: list[StateRow] = []
    if head.extremities == [stored]:
        head.state = after
    else:
        head.state, merged = await state.resolve(services, head.room_version, head.extremities)
    # For who enters a room, it has been all the while what it turns out to be.
    stored.room_state_before = before.state_id if enters else room_before.state_id
    stored.room_state_after = head.state.state_id
    if await _redact_late(services, plan, planned, stored):
        event = stored.event
    write = EventWrite(stored, head.cursor.room_nid, states=[*rows, *merged])
    if event.is_state:
        write.auth_nids = [auth.event_nid for auth in planned.auth.values()]
    now_ms = services.clock.now_ms()
    _write_origin(plan, write, planned.transaction, now_ms)
    sticky = stickiness(event.pdu, planned.received_ms or now_ms)
    if sticky is not None and stored.redacted_by is None:
        stored.stick_until(sticky.end_ms)
    became_current: list[Event] = []
    lost: list[UserId] = []
    if before is room_before and after is head.state:  # The usual case: one end, one change.
        if event.type == "m.room.member" and event.is_state:
            became_current.append(event)
    else:
        became_current, lost = await _member_changes(services, room_before, head.state)
    moves = became_current if event in became_current else [*became_current, event]
    ended_stays = await _ended_stays(services, plan, moves, {event.event_id: before})
    for effect in consequences.effects_of(
        event,
        became_current=became_current,
        lost=lost,
        server_name=services.server_name,
        may_redact=planned.may_redact,
        leaving=await _leaving(services, room_before, became_current, lost),
        forget_on_leave=services.config.forget_rooms_on_leave,
        ended_stays=ended_stays,
        is_redacted=stored.redacted_by is not None,
        sticky=sticky if stored.redacted_by is None else None,
        now_ms=now_ms,
    ):
        await _carry_out(services, plan, write, room_before, effect)
        if len(write.memberships) % MEMBERS_AT_ONCE == MEMBERS_AT_ONCE - 1:
            await give_way()  # A room of 10,000 members has been joined.
    stored.main_count = head.main_count
    plan.writes.append(write)
    return stored


async def _leaving(
    services: Services, before: State, became_current: Sequence[Event], lost: Sequence[UserId]
) -> set[str]:
    """Return the local users who were in the room, invited or knocking before, and are not now."""
    gone = {e.state_key or "" for e in became_current if not _is_inside(e)} | set(lost)
    keys: list[StateKey] = [("m.room.member", u) for u in gone if services.is_local(u)]
    if not keys:
        return set()
    members = await state.load_state_events(services, before, keys)
    return {key[1] for key, stored in members.items() if _is_inside(stored.event)}


def _is_inside(member_event: Event) -> bool:
    return member_event.content.get("membership") in INSIDE


async def _redact_late(
    services: Services, plan: Plan, planned: PlannedEvent, stored: StoredEvent
) -> bool:
    """Redact an event that comes late, of a stay that a kick or ban has redacted; say if it was.

    Nearly every event cites its sender's present membership, and that is all that is looked at.
    MSC4293#proposal
    """
    head, event = plan.head, stored.event
    member = planned.auth.get(("m.room.member", event.sender))
    present_id = head.state.entries.get(("m.room.member", event.sender))
    if member is None:
        return False
    planned_stays = _planned_stays(plan, event.sender)
    is_present = present_id in (member.event_id, event.event_id)
    if is_present and member.redacted_by is None and not planned_stays:
        return False
    covered, changed = await redact_on_ban.find_covering(
        services, head.cursor.room_nid, [stored], head.state, planned_stays
    )
    known_now = {stay.because_id for stay in changed}
    plan.rows[:] = [
        row
        for row in plan.rows
        if not (isinstance(row, StayRedaction) and row.because_id in known_now)
    ]
    plan.rows += changed
    if event.event_id not in covered:
        return False
    stored.redact_for_good(covered[event.event_id])
    return True


def _planned_stays(plan: Plan, *user_ids: str) -> list[StayRedaction]:
    """Return the redacted stays of some users that will be written with a plan."""
    rows = plan.rows
    return [row for row in rows if isinstance(row, StayRedaction) and row.user_id in user_ids]


async def _ended_stays(
    services: Services,
    plan: Plan,
    events: Sequence[Event],
    states: Mapping[EventId, State],
) -> list[StayRedaction]:
    """Return the stays that some kicks and bans redact. MSC4293#proposal.

    `states` are the states before events that are about to be committed.
    """
    asking = [event for event in events if asks_to_redact(event)]
    if not asking:
        return []
    members: list[tuple[Event, State | None]] = []
    for event in asking:
        before = states.get(event.event_id)
        if before is None:
            stored = await services.events.get(event.event_id)
            if stored is not None and stored.state_before is not None:
                before = await services.states.get(stored.state_before)
        members.append((event, before))
    head, planned = plan.head, [*(write.stored.event for write in plan.writes), *events]
    planned_stays = _planned_stays(plan, *(event.state_key or "" for event in asking))
    return await redact_on_ban.find_ended_stays(
        services, head.room_id, head.cursor.room_nid, members, head.state, planned, planned_stays
    )


def _write_origin(plan: Plan, write: EventWrite, origin: Origin | None, now_ms: int) -> None:
    """Write down what made an event, so that it makes no second one."""
    stored = write.stored
    match origin:
        case ClientTransaction(device_nid, txn_id, scope):
            stored.device_nid, stored.txn_id, write.txn_scope = device_nid, txn_id, scope
        case DelayedSending(delay_id, due_ms):
            stored.txn_id, write.delayed = delay_id, DelayedOutcome(delay_id, due_ms, now_ms)
            owner: UserId = stored.event.sender
            plan.rows.append(DelayedEventOutcome(owner, delay_id, due_ms, now_ms, stored.event_id))
        case None:
            pass


async def commit_outside_event(
    services: Services, event: Event, shown: Sequence[Mapping[str, object]] = ()
) -> StoredEvent:
    """Commit what became of a local user in a room that nobody of this server is in.

    That is an invite, a knock, or the end of either. The user's membership changes; the event has
    no place in the room, whose graph we do not know. `shown` is the stripped state that came along.
    """
    room_nid = await ensure_room(services, event.room_id, event.room_version)
    stored = await services.events.get(event.event_id)
    if stored is None:
        await services.event_numbers.reserve(1)
        stored = StoredEvent(event, services.event_numbers.take())
    elif stored.order is not None:
        return stored
    write = EventWrite(stored, room_nid)
    rows: list[StreamRow] = []
    before = await memberships.fetch_membership(services.db, event.room_id, event.state_key or "")
    is_leaving = before is not None and before.membership in INSIDE and not _is_inside(event)
    for effect in consequences.effects_of(
        event,
        became_current=[event],
        lost=[],
        server_name=services.server_name,
        may_redact=False,
        leaving=[event.state_key or ""] if is_leaving else (),
        forget_on_leave=services.config.forget_rooms_on_leave,
    ):
        match effect:
            case consequences.SetMembership():
                write.memberships.append(_membership(services, event.room_id, effect))
            case consequences.ForgetRoom(user_id):
                rows.append(ForgottenRoom(user_id, event.room_id))
            case consequences.ShowInvite(user_id):
                write.invite_states[user_id] = encode_any(list(shown)).decode()
            case _:
                pass  # Of those who are in the room.
    await services.committer.commit_outside_event(write, rows)
    return stored


async def _member_changes(
    services: Services, before: State, after: State
) -> tuple[list[Event], list[UserId]]:
    """Return the member events that are current only now, and the users who lost theirs."""
    if before.state_id == after.state_id:
        return [], []
    old, new = before.entries, after.entries
    ids = [e for key, e in new.items() if key[0] == "m.room.member" and old.get(key) != e]
    events = await services.events.get_many(ids)
    lost = [key[1] for key in old if key[0] == "m.room.member" and key not in new]
    return [events[e].event for e in ids], lost  # type: ignore[return-value]  # user ids


async def _carry_out(
    services: Services,
    plan: Plan,
    write: EventWrite,
    room_before: State,
    effect: consequences.Effect,
) -> None:
    """Turn an effect into what its tables will hold."""
    head, stored = plan.head, write.stored
    event = stored.event
    match effect:
        case consequences.SetMembership():
            write.memberships.append(_membership(services, head.room_id, effect))
            await _count_member(services, head, room_before, effect)
        case consequences.ShowInvite(user_id, member_event):
            shown = await stripped_room_state(services, head, member_event)
            write.invite_states[user_id] = encode_any(shown).decode()
        case consequences.Redact(event_id):
            write.redacts = event_id
            write.sticky = await _told_instead(services, head.room_id, event, event_id)
        case consequences.ForgetRoom(user_id):
            plan.rows.append(ForgottenRoom(user_id, head.room_id))
        case consequences.RedactStay(stay):
            plan.rows.append(stay)
        case consequences.RecordStickiness(until_ms):
            waits_for = services.sticky_limits.waits_for(services, head.room_id, event.sender)
            write.sticky = StickyEvent(
                head.room_id, event.event_id, event.sender, until_ms, waits_for
            )
        case consequences.MarkRead(user_id):
            write.read_by = user_id
        case consequences.CountUnread():
            default, differing = await notifications.count(services, head, event)
            if default and stored.thread_root is None:
                head.main_count += 1
            stored.notifies = default
            write.pushes = [Push(*d) for d in differing]
        case _:
            assert_never(effect)


async def _told_instead(
    services: Services, room_id: RoomId, redaction: Event, redacted_id: EventId
) -> StickyEvent | None:
    """Return the redaction of a sticky event in its place; None if the event was none.

    For as long as it would have been sticky, whoever has been sent the event is told so, however
    far away their timeline is. Ours: MSC4354#proposal leaves it to chance.
    """
    redacted = await services.events.get(redacted_id)
    if redacted is None or redacted.event.room_id != room_id or redacted.sticky_until_ms is None:
        return None
    if redacted.redacted_by is not None or redacted.sticky_until_ms <= services.clock.now_ms():
        return None
    return StickyEvent(
        room_id,
        redaction.event_id,
        redaction.sender,
        redacted.sticky_until_ms,
        instead_of=redacted_id,
    )


def _membership(
    services: Services, room_id: RoomId, effect: consequences.SetMembership
) -> Membership:
    """Return the row of a change of membership.

    Where to leave is to forget, a stranger who is banned begins by having forgotten: they have
    nothing to remember, and shall not keep the room from being deleted. MSC4267#proposal
    """
    is_outside = effect.membership not in INSIDE
    return Membership(
        room_id=room_id,
        user_id=effect.user_id,
        membership=effect.membership,
        event_id=effect.event_id,
        sender=effect.sender,
        local=effect.local,
        forgotten=is_outside and services.config.forget_rooms_on_leave,
        display_name=effect.display_name,
        avatar_url=effect.avatar_url,
    )


async def _count_member(
    services: Services, head: RoomHead, before: State, change: consequences.SetMembership
) -> None:
    """Keep the head's members true: what `load_head` would read after the commit."""
    old_id = before.get("m.room.member", change.user_id)
    old = await services.events.get(old_id) if old_id is not None else None
    joined_before = old is not None and old.event.content.get("membership") == "join"
    joined_now = change.membership == "join"
    head.joined_count += joined_now - joined_before
    if not change.local:
        return
    head.member_names = None
    if joined_now:
        head.local_members[change.user_id] = change.display_name
    else:
        head.local_members.pop(change.user_id, None)
