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
from minihs.services.rooms.heads import load_head
from minihs.services.rooms.send import load_state_events
from minihs.storage import sticky_events
from minihs.storage.stream_rows import StickyEvent

if TYPE_CHECKING:
    from minihs.services.context import Services
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
    passed: list[StickyEvent] = []
    for event in held:
        known = stored.get(event.event_id)
        if known is None or known.redacted_by is not None:
            continue
        keys = [*select_auth_keys_of(known.event), CREATE]
        auth = await load_state_events(services, head.state, keys)
        try:
            check_state_dependent(known.event, {key: s.event for key, s in auth.items()})
        except EventAuthError:
            continue
        passed.append(StickyEvent(head.room_id, known.event_id, known.event.sender, event.until_ms))
    if passed:
        await services.committer.commit_rows(passed)
    await sticky_events.mark_checked(
        services.db, [event.event_id for event in held], head.state.state_id
    )


async def forget_expired(services: Services) -> None:
    """Forget events that are not sticky any more, in steps that block nobody.

    When an event ends is written down with it, so it does not matter whether the server ran.
    """
    now_ms = services.clock.now_ms()
    while await sticky_events.delete_expired(services.db, now_ms, EXPIRED_AT_ONCE):
        pass
    await sticky_events.delete_unignored(services.db, now_ms)
