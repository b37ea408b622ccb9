"""Sticky events beside their way through the commit: second checks, and their end.

A sticky event that the room's current state refused is held back, not lost: whenever that state has
changed it is tried again, and if it passes it becomes deliverable then, with a place of its own in
the stream. It does not appear in the timeline of the past.

MSC4354#federation-behaviour
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.protocol.event_auth import EventAuthError, check_state_dependent, select_auth_keys_of
from minihs.protocol.state_keys import CREATE
from minihs.protocol.stickiness import STICKY_DURATION_MS_MAX
from minihs.services.rooms import early_redactions
from minihs.services.rooms.heads import load_head
from minihs.services.rooms.state import load_state_events
from minihs.storage import sticky_events
from minihs.storage.stream_rows import StickyEvent

if TYPE_CHECKING:
    from minihs.protocol.events import Event
    from minihs.protocol.identifiers import EventId
    from minihs.services.context import Services
    from minihs.services.rooms.heads import RoomHead
    from minihs.storage.sticky_events import HeldStickyEvent

EXPIRED_AT_ONCE = 2_000
HELD_AT_ONCE = 500


async def recheck_soft_failed(services: Services) -> None:
    """Try soft-failed sticky events again in rooms whose current state has changed since.

    MSC4354#federation-behaviour
    """
    held = await sticky_events.list_held(services.db, services.clock.now_ms(), HELD_AT_ONCE)
    rooms: dict[str, list[HeldStickyEvent]] = {}
    for event in held:
        rooms.setdefault(event.room_id, []).append(event)
    for room_id, events in rooms.items():
        await _recheck_room(services, room_id, events)


async def _recheck_room(services: Services, room_id: str, held: list[HeldStickyEvent]) -> None:
    head = await load_head(services, room_id)  # type: ignore[arg-type]  # a room of ours
    if head is None:
        return
    stored = await services.events.get_many([event.event_id for event in held])
    passed: dict[EventId, StickyEvent] = {}
    for event in held:
        known = stored.get(event.event_id)
        if known is None or known.redacted_by is not None:
            continue
        if await _passes(services, head, known.event):
            passed[known.event_id] = StickyEvent(
                head.room_id, known.event_id, known.event.sender, event.until_ms
            )
    for redaction in await early_redactions.list_soft_failed(services, list(passed)):
        target = stored.get(redaction.redacts) if redaction.redacts is not None else None
        if (
            target is not None
            and await early_redactions.applies(services, redaction, head.state, target.event)
            and await _passes(services, head, redaction)
        ):
            passed.pop(target.event_id, None)
    if passed:
        await services.committer.commit_rows(list(passed.values()))
    await sticky_events.mark_checked(
        services.db, [event.event_id for event in held], head.state.state_id
    )


async def _passes(services: Services, head: RoomHead, event: Event) -> bool:
    """Return whether the room's current state allows an event."""
    keys = [*select_auth_keys_of(event), CREATE]
    auth = await load_state_events(services, head.state, keys)
    try:
        check_state_dependent(event, {key: s.event for key, s in auth.items()})
    except EventAuthError:
        return False
    return True


async def follow_clock_back(services: Services, step_ms: int) -> None:
    """Let what became sticky while the clock was ahead end when its time has passed.

    To be called when the clock has been put back by `step_ms`; with 0 when a process begins, as
    nobody knows by how much it was put back before.
    """
    latest_ms = services.clock.now_ms() + STICKY_DURATION_MS_MAX
    await sticky_events.bring_forward(services.db, latest_ms, step_ms)


async def forget_expired(services: Services) -> None:
    """Forget events that are not sticky any more, in steps that block nobody.

    When an event ends is written down with it, so it does not matter whether the server ran.
    """
    now_ms = services.clock.past_ms()
    while await sticky_events.delete_expired(services.db, now_ms, EXPIRED_AT_ONCE):
        pass
    await sticky_events.delete_unignored(services.db, now_ms)
