"""Storing events that take no place in the stream: outliers, refused events, fetched history.

They cause almost nothing: a stay that one of them ended may be redacted, and a sticky one may be
delivered later, or out of its place.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from minihs.protocol.redact_on_ban import asks_to_redact
from minihs.protocol.stickiness import stickiness
from minihs.services.rooms import forget, redact_on_ban
from minihs.storage import history_writes, sticky_events
from minihs.storage.event_store import ACCEPTED, REJECTED, SOFT_FAILED, StoredEvent
from minihs.storage.stream_rows import StickyEvent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minihs.protocol.events import Event
    from minihs.protocol.room_versions import RoomVersion
    from minihs.services.context import Services
    from minihs.storage.history_writes import HistoryWrite
    from minihs.storage.state import State, StateRow
    from minihs.storage.stream_rows import StayRedaction


async def store_history(
    services: Services,
    room_nid: int,
    writes: Sequence[HistoryWrite],
    states: Sequence[StateRow] = (),
) -> None:
    """Store events that take no place in the stream: outliers, refused events, fetched history.

    Of an event that is stored already, only what it lacked is added. `states` are those whose
    events are now all stored.
    """
    keys = [w.stored.event.key for w in writes if w.stored.event.is_state]
    keys += [key for w in writes for row in w.states for key in row.changes]
    keys += [key for row in states for key in row.changes]
    key_nids = await services.states.key_nids(services.db, keys) if keys else {}
    now_ms = services.clock.now_ms()
    covered, rows = await redact_on_ban.find_covering(
        services, room_nid, [write.stored for write in writes]
    )
    for write in writes:
        if write.stored.event_id in covered:
            write.stored.redact_for_good(covered[write.stored.event_id])
        if write.stored.order is not None:
            write.stored.thread_root = write.stored.event.thread_root
        sticky = stickiness(write.stored.event.pdu, now_ms)
        if sticky is not None and write.stored.redacted_by is None:
            write.stored.stick_until(sticky.end_ms)
    # Also now: whoever dies in between, or is out of time, does not come to it again.
    rows += await _stays_ended_in_history(services, room_nid, writes)
    if rows:
        await services.committer.commit_rows(rows)
    written = await history_writes.write_history(
        services.db, room_nid, [_held_back(write, now_ms) for write in writes], key_nids, states
    )
    for write in writes:
        if write.stored.event_id not in written:  # Another process was faster, and knows better.
            services.events.forget(write.stored.event_id)
            continue
        services.events.remember(write.stored)
        services.events.redact_by_stays(write.stored)
    ended = await _stays_ended_in_history(services, room_nid, writes)
    if ended:
        await services.committer.commit_rows(ended)


async def _stays_ended_in_history(
    services: Services, room_nid: int, writes: Sequence[HistoryWrite]
) -> list[StayRedaction]:
    """Return the stays that fetched kicks and bans once redacted. MSC4293#proposal.

    Each acts upon the stay that it ended, whatever became of its target since. So does a kick that
    is soft-failed only because another moderator was faster with a ban, which its sender may not
    lift; but not one of somebody who has lost the power.
    """
    asking = [
        write.stored
        for write in writes
        if asks_to_redact(write.stored.event) and write.stored.state_before is not None
    ]
    if not asking:
        return []
    room_id = asking[0].event.room_id
    current = await redact_on_ban.current_state(services, room_id)
    members: list[tuple[Event, State | None]] = [
        (stored.event, await redact_on_ban.state_before(services, stored))
        for stored in asking
        if (stored.status == ACCEPTED and stored.order is not None)
        or (
            stored.status == SOFT_FAILED
            and await redact_on_ban.has_power(services, stored.event, current)
        )
    ]
    planned = [write.stored.event for write in writes if write.stored.status != REJECTED]
    return await redact_on_ban.find_ended_stays(
        services, room_id, room_nid, members, current, planned
    )


def _held_back(write: HistoryWrite, now_ms: int) -> HistoryWrite:
    """Return a write; of a soft-failed sticky event, one that keeps it for another try.

    MSC4354#federation-behaviour
    """
    until_ms = write.stored.sticky_until_ms
    if write.stored.status != SOFT_FAILED or until_ms is None or until_ms <= now_ms:
        return write
    return replace(write, is_held_back=True)


async def deliver_out_of_place(services: Services, room_nid: int, stored: StoredEvent) -> None:
    """Deliver a sticky event that is stored, but has no place in the room.

    MSC4354#federation-behaviour
    """
    event, until_ms = stored.event, stored.sticky_until_ms
    if until_ms is None or stored.redacted_by is not None:
        return
    waits_for = services.sticky_limits.waits_for(services, event.room_id, event.sender)
    await sticky_events.insert_out_of_place(
        services.db, event.event_id, room_nid, event.sender, until_ms, waits_for
    )
    if waits_for is None:
        await services.committer.commit_rows(
            [StickyEvent(event.room_id, event.event_id, event.sender, until_ms)]
        )


async def ensure_room(services: Services, room_id: str, room_version: RoomVersion) -> int:
    """Return the surrogate key of a room; it is made, without events, if it is not known.

    Of a room that is being deleted nothing is left when it returns.
    """
    await services.room_numbers.reserve(1)
    room_nid = await history_writes.ensure_room(
        services.db, services.room_numbers.take(), room_id, room_version.identifier
    )
    await forget.finish_purge(services, room_nid)
    return room_nid
