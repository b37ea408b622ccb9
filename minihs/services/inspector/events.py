"""Events as the inspector shows them: where they stand, and what became of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson

from minihs.base.errors import NotFound
from minihs.protocol.membership import membership_of
from minihs.services.rooms.client_events import as_shown
from minihs.storage import inspector
from minihs.storage.event_store import ACCEPTED, REJECTED

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from minihs.protocol.identifiers import EventId
    from minihs.services.context import Services
    from minihs.storage.event_store import StoredEvent
    from minihs.storage.inspector import RefusalRow


@dataclass(frozen=True, slots=True)
class EventRef:
    """An event in a few words. `type` is empty where this server does not have the event."""

    event_id: str
    type: str = ""
    state_key: str | None = None
    sender: str = ""
    sent_ms: int = 0
    membership: str | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an event was rejected or soft-failed: the rule, its passage, and what decided (D13)."""

    rule: str
    passage: str
    message: str
    deciding: Sequence[EventRef]


@dataclass(frozen=True, slots=True)
class ShownEvent:
    """An event of the room's graph.

    `order` is its place in the room (None: it has none, as it was refused or is an outlier).
    `lacking` are those of its `prev_events` that this server does not have. `redacted_by_stay`: a
    kick or ban redacted it with its sender's whole stay (MSC4293).
    """

    event_id: str
    type: str
    state_key: str | None
    sender: str
    sent_ms: int
    membership: str | None
    status: str
    refusal: Refusal | None
    order: tuple[int, int] | None
    depth: int
    prev_events: Sequence[str]
    lacking: Sequence[str]
    auth_events: Sequence[str]
    is_forward_extremity: bool
    redacted_by: EventRef | None
    redacted_by_stay: bool
    sticky_until_ms: int | None


@dataclass(frozen=True, slots=True)
class EventView:
    """One event with everything that is known of it. `json` is the PDU, redacted if it is."""

    room_id: str
    now_ms: int
    shown: ShownEvent
    prev_events: Sequence[EventRef]
    auth_events: Sequence[EventRef]
    state_before: int | None
    state_after: int | None
    json: str


STATUS = {ACCEPTED: "accepted", REJECTED: "rejected"}


def status_of(stored: StoredEvent) -> str:
    """Return what became of an event, in the specification's words."""
    return STATUS.get(stored.status, "soft-failed")


def ref(event_id: str, stored: StoredEvent | None) -> EventRef:
    """Return an event in a few words."""
    if stored is None:
        return EventRef(event_id)
    event = stored.event
    return EventRef(
        event.event_id, event.type, event.state_key, event.sender, event.origin_server_ts,
        membership_of(event) if event.type == "m.room.member" else None,
    )  # fmt: skip


async def load_refs(services: Services, event_ids: Iterable[EventId]) -> dict[EventId, EventRef]:
    """Return events in a few words, whether this server has them or not."""
    wanted = set(event_ids)
    found = await services.events.get_many(wanted) if wanted else {}
    return {event_id: ref(event_id, found.get(event_id)) for event_id in wanted}


async def load_refusals(
    services: Services, event_ids: Collection[EventId]
) -> dict[EventId, Refusal]:
    """Return why events were refused, of those that were."""
    rows = await inspector.list_refusals(services.db, event_ids)
    refs = await load_refs(services, {e for row in rows.values() for e in row.deciding})
    return {event_id: _refusal(row, refs) for event_id, row in rows.items()}


def _refusal(row: RefusalRow, refs: Mapping[EventId, EventRef]) -> Refusal:
    return Refusal(row.rule, row.passage, row.message, [refs[e] for e in row.deciding])


async def show(
    services: Services, events: Sequence[StoredEvent], extremities: Collection[EventId]
) -> list[ShownEvent]:
    """Return events of a room as they are shown, in the same order."""
    ids = {stored.event_id for stored in events}
    named = {e for stored in events for e in stored.event.prev_event_ids} - ids
    known = ids | (await inspector.list_known(services.db, named) if named else set())
    refusals = await load_refusals(services, ids)
    refs = await load_refs(services, {s.redacted_by for s in events if s.redacted_by is not None})
    return [
        ShownEvent(
            event_id=stored.event_id,
            type=event.type,
            state_key=event.state_key,
            sender=event.sender,
            sent_ms=event.origin_server_ts,
            membership=membership_of(event) if event.type == "m.room.member" else None,
            status=status_of(stored),
            refusal=refusals.get(stored.event_id),
            order=stored.order,
            depth=event.depth,
            prev_events=event.prev_event_ids,
            lacking=[e for e in event.prev_event_ids if e not in known],
            auth_events=event.auth_event_ids,
            is_forward_extremity=stored.event_id in extremities,
            redacted_by=because,
            redacted_by_stay=because is not None and because.type == "m.room.member",
            sticky_until_ms=stored.sticky_until_ms,
        )
        for stored in events
        for event in (stored.event,)
        for because in (refs.get(stored.redacted_by) if stored.redacted_by is not None else None,)
    ]


async def view_event(
    services: Services, room_id: str, event_id: EventId, extremities: Collection[EventId]
) -> EventView:
    """Return one event of a room.

    Raises:
        NotFound: the room has no such event that we know.
    """
    stored = await services.events.get(event_id)
    if stored is None or stored.event.room_id != room_id:
        raise NotFound("The room has no such event that this server knows.")
    event = stored.event
    (shown,) = await show(services, [stored], extremities)
    refs = await load_refs(services, {*event.prev_event_ids, *event.auth_event_ids})
    return EventView(
        room_id,
        services.clock.now_ms(),
        shown,
        [refs[e] for e in event.prev_event_ids],
        [refs[e] for e in event.auth_event_ids],
        stored.state_before,
        stored.state_after,
        _json_text(stored),
    )


def _json_text(stored: StoredEvent) -> str:
    """Return an event's JSON in lines; as it is, if numbers are in it that only old rooms have."""
    event = as_shown(stored)
    try:
        return orjson.dumps(event.pdu, option=orjson.OPT_INDENT_2).decode()
    except TypeError:
        return event.json.decode()
