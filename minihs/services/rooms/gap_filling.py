"""Filling the gap before received events: what they follow and rest upon is fetched first.

Spec: server-server-api#backfilling-and-retrieving-missing-events
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from minihs.base.errors import Unavailable
from minihs.services.rooms import missing, missing_state
from minihs.services.rooms.heads import Unreached
from minihs.services.rooms.receipt import Receipt, is_sticky_message, why_misplaced
from minihs.storage.events import list_range
from minihs.storage.missing_events import list_servers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minihs.protocol.events import Event
    from minihs.protocol.identifiers import EventId
    from minihs.services.context import Services
    from minihs.storage.state import State

logger = logging.getLogger(__name__)

FAR_ENDS_MAX = 5  # Events at the far end of a gap whose states we ask for.
OTHERS_ASKED_MAX = 2
UNREACHED_TIMES_MAX = 3  # So often events are to be sent again,
UNREACHED_PAUSE_MS = 60_000  # then their server is asked only as often as this,
UNREACHED_KEPT_MS = 3_600_000  # and after this all begins anew.


async def fetch_what_is_missing(
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
    if unknown and not _is_left_alone(services, receipt.source):
        resting = [event for event in events if not unknown.isdisjoint(event.auth_event_ids)]
        await missing.fetch_auth_events(services, receipt.source, receipt.room, resting)


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
    pulled = await _pull(services, receipt, following, ends)
    receipt.pulled = [event for event in pulled if why_misplaced(receipt.room, event) is None]
    far_ends = await _unknown_prevs(services, receipt, receipt.pulled)
    for event_id in sorted(far_ends)[:FAR_ENDS_MAX]:
        try:
            after = await missing_state.fetch_state_after(
                services, receipt.source, receipt.room, event_id, near
            )
        except missing_state.UntoldError:  # Also unknown to who came in later, by what follows it.
            follower = next(e for e in receipt.pulled if event_id in e.prev_event_ids)
            after = await missing_state.fetch_state_before(
                services, receipt.source, receipt.room, follower, near
            )
        if after is not None:
            receipt.states[event_id] = after


async def _pull(
    services: Services, receipt: Receipt, following: Sequence[Event], ends: Sequence[EventId]
) -> list[Event]:
    """Return what lies between, from who pushed the events, or else from others in the room.

    Raises:
        Unavailable: nobody tells, and the events are to be sent again.
    """
    origin, unreached = receipt.origin, services.heads.unreached
    if not _is_left_alone(services, origin):
        before = unreached.get(origin)
        try:
            pulled = await missing.fetch_events_between(
                services, origin, receipt.room, following, ends
            )
        except missing.NotReachedError as error:
            logger.info("cannot learn what events of %s follow: %s", origin, error)
            if unreached.get(origin) is before:  # Else that was another request beside this one.
                times = 0 if before is None or _is_old(services, before) else before.times
                unreached.put(origin, Unreached(times + 1, services.clock.monotonic_ms()))
        else:
            unreached.discard(origin)
            return pulled
    for server in await list_servers(services.db, receipt.room.room_nid, 1 + OTHERS_ASKED_MAX):
        if server == origin:
            continue
        try:
            pulled = await missing.fetch_events_between(
                services, server, receipt.room, following, ends
            )
        except missing.NotReachedError:
            continue
        if pulled:  # Else it need not have heard of the events.
            receipt.source = server
            return pulled
    _let_come_again(services, origin)
    return []


def _is_old(services: Services, unreached: Unreached) -> bool:
    return services.clock.monotonic_ms() - unreached.asked_ms > UNREACHED_KEPT_MS


def _is_left_alone(services: Services, origin: str) -> bool:
    """Return whether a server was not reached several times, and lately."""
    unreached = services.heads.unreached.get(origin)
    return (
        unreached is not None
        and unreached.times > UNREACHED_TIMES_MAX
        and services.clock.monotonic_ms() - unreached.asked_ms < UNREACHED_PAUSE_MS
    )


def _let_come_again(services: Services, origin: str) -> None:
    """Let a server that did not tell what its events follow send them again, a few times.

    They may be the last that we hear of the room, such as one by which we have to leave it. Of a
    server that can reach us, but that we can never reach, such events are dropped in the end, and
    it is asked only now and then: what it has to say of other rooms must not wait for ever.

    Raises:
        Unavailable: the events are to be sent again.
    """
    unreached = services.heads.unreached.get(origin)
    if unreached is None or unreached.times <= UNREACHED_TIMES_MAX:  # None: it is reached again.
        raise Unavailable("What the events follow cannot be fetched; send them again.")
