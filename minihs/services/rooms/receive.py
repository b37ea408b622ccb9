"""REMOTE WRITE: the checks performed on receipt of a PDU, in their order, then the same commit.

`receive_pdus` takes what a server pushed for one room. What the events follow or rest upon and we
lack is fetched first (`gap_filling`), then the room's turn is taken, and each event is judged where
it stands in the graph (`judge`):

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
from typing import TYPE_CHECKING

from minihs.base.errors import Unavailable
from minihs.protocol.events import Event
from minihs.services.rooms import commit, missing
from minihs.services.rooms.gap_filling import fetch_what_is_missing
from minihs.services.rooms.heads import building
from minihs.services.rooms.judge import Judge
from minihs.services.rooms.missing import Room
from minihs.services.rooms.receipt import Receipt, is_followed, refusal_of_server, why_misplaced
from minihs.services.rooms.verification import BadPdu, examine_pdus, verify_pdus
from minihs.storage import join_marks
from minihs.storage import membership as memberships
from minihs.storage.event_store import REJECTED
from minihs.storage.group_commit import Conflict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from minihs.protocol.identifiers import EventId, RoomId
    from minihs.services.context import Services
    from minihs.storage.state import State

logger = logging.getLogger(__name__)

ATTEMPTS = 20
JOIN_TIMEOUT_S = 10
JOIN_ASKED_EVERY_MS = 50  # Of another process.


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
        room, here = Room.of(head), await is_followed(services, head)
        refusal = await refusal_of_server(services, head, origin)
        ends, near = [end.event_id for end in head.extremities], head.state
    if refusal is not None or not here:
        if refusal is None:
            await _receive_outside(services, room, pdus)
        return dict.fromkeys(_ids(pdus, room), refusal)
    results: dict[EventId, str | None] = {}
    events: dict[EventId, Event] = {}
    for found in await examine_pdus(services, pdus, room.room_version):
        reason = found.reason if isinstance(found, BadPdu) else why_misplaced(room, found)
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


async def _end_of_join(services: Services, room_id: RoomId) -> None:
    """Wait for the end of a join that is under way, here or in another process.

    The room has taken our join before we know: what happens in it then is pushed to us, and would
    be lost until something else follows it.
    """
    prefix = f"join {room_id} "
    await services.handshakes.wait_for(lambda key: key.startswith(prefix), JOIN_TIMEOUT_S)
    deadline_ms = services.clock.monotonic_ms() + 1_000 * JOIN_TIMEOUT_S
    while await join_marks.is_marked(services.db, room_id):
        if services.clock.monotonic_ms() > deadline_ms:
            return
        await services.clock.sleep_ms(JOIN_ASKED_EVERY_MS)


async def _receive(
    services: Services, receipt: Receipt, ends: Sequence[EventId], near: State
) -> None:
    """Take in events; what is wrong with the events is noted, and with us, too."""
    try:
        await fetch_what_is_missing(services, receipt, ends, near)
        await _judge_and_commit(services, receipt)
    except Unavailable:
        raise
    except Exception:  # It must not keep other rooms' events from coming.
        logger.exception("PDUs of %s from %s failed", receipt.room.room_id, receipt.origin)
        receipt.dropped |= {event.event_id: "internal error" for event in receipt.events}


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
