"""Redactions: which of them apply, also when they came before the event that they name.

A redaction applies to an event of its room if its sender had the power to redact when it was sent,
or is of the same server as the event's sender. Nothing that came too early is trusted: it is kept
aside, and held against the event when that comes. The create event is what a room is, and stays.

A soft-failed redaction applies to nothing. But where what it redacts is held back as well, and may
pass later (MSC4354), it is kept aside, too: who said something and took it back did both.

Spec: rooms/v11#handling-redactions
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.protocol.identifiers import server_name_of
from minihs.protocol.power_levels import PowerLevels
from minihs.protocol.state_keys import CREATE, POWER_LEVELS
from minihs.protocol.stickiness import sticky_duration_ms
from minihs.services.rooms.state import load_state_events
from minihs.storage import missing_events
from minihs.storage.event_store import ACCEPTED, SOFT_FAILED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minihs.protocol.events import Event
    from minihs.protocol.identifiers import EventId, StateKey
    from minihs.services.context import Services
    from minihs.storage.state import State

POWER_KEYS: tuple[StateKey, ...] = (POWER_LEVELS, CREATE)
CHECKED_MAX = 20  # Redactions of one event; who sends more has to send them after the event.


async def applies(services: Services, redaction: Event, before: State, target: Event) -> bool:
    """Return whether a redaction, sent in the state `before`, takes its target's content away."""
    if target.room_id != redaction.room_id or target.event_id != redaction.redacts:
        return False
    if target.type == "m.room.create":
        return False
    if server_name_of(target.sender) == server_name_of(redaction.sender):
        return True
    found = await load_state_events(services, before, POWER_KEYS)
    power, create = (found[key].event if key in found else None for key in POWER_KEYS)
    levels = PowerLevels.of(power, create, redaction.room_version)
    return levels.user_level(redaction.sender) >= levels.redact


async def may_redact(services: Services, event: Event, before: State) -> bool:
    """Return whether a redaction takes away the content of an event that we have.

    If we do not have it, the redaction is kept aside until it comes. If the event is redacted, it
    stays so for the reason that it has: a kick or ban may not have written that to it yet
    (MSC4293#proposal).
    """
    if event.type != "m.room.redaction" or event.redacts is None or "\0" in event.redacts:
        return False
    target = await services.events.get(event.redacts)
    if target is None:
        early = [(event.redacts, event.event_id)]
        await missing_events.insert_early_redactions(services.db, early)
        return False
    return target.redacted_by is None and await applies(services, event, before, target.event)


async def find_applying(
    services: Services, events: Mapping[EventId, Event]
) -> dict[EventId, EventId]:
    """Return which of some new events have been redacted before they came, and by what."""
    found: dict[EventId, EventId] = {}
    checked: dict[EventId, int] = {}
    for target_id, redaction_id in await missing_events.list_redactions(services.db, list(events)):
        checked[target_id] = checked.get(target_id, 0) + 1
        if target_id in found or checked[target_id] > CHECKED_MAX:
            continue
        redaction = await services.events.get(redaction_id)
        if redaction is None or redaction.status != ACCEPTED or redaction.state_before is None:
            continue
        before = await services.states.get(redaction.state_before)
        if await applies(services, redaction.event, before, events[target_id]):
            found[target_id] = redaction_id
    return found


async def note_soft_failed(services: Services, event: Event) -> None:
    """Keep a soft-failed redaction aside, if what it redacts is sticky and soft-failed as well."""
    if event.type != "m.room.redaction" or event.redacts is None or "\0" in event.redacts:
        return
    target = await services.events.get(event.redacts)
    if (
        target is not None
        and target.status == SOFT_FAILED
        and sticky_duration_ms(target.event.pdu) is not None
    ):
        pair = (target.event_id, event.event_id)
        await missing_events.insert_early_redactions(services.db, [pair])


async def list_soft_failed(services: Services, event_ids: Sequence[EventId]) -> list[Event]:
    """Return the soft-failed redactions that were noted of some events."""
    pairs = await missing_events.list_redactions(services.db, event_ids)
    known = await services.events.get_many([redaction_id for _, redaction_id in pairs])
    return [stored.event for stored in known.values() if stored.status == SOFT_FAILED]
