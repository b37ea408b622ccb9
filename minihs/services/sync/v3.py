"""GET /sync: snapshot, collect, wait, assemble.

1. The follower must have seen what was committed before the request came (read your writes).
2. Everything the client has not seen up to the follower's head is collected.
3. If that is nothing, wait for the user's view to change, and begin again.

Spec: client-server-api#syncing
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from minihs.protocol import canonical_json, unstable
from minihs.services.accounts.account_data import ignored_in
from minihs.services.accounts.authentication import require_device_in_use, require_session
from minihs.services.rooms import client_events, delayed_events, visibility
from minihs.services.rooms.stripped_state import load_stripped
from minihs.services.sync import assemble
from minihs.services.sync.joined_rooms import joined_rooms
from minihs.services.sync.positions import format_token
from minihs.services.sync.spans import Span
from minihs.services.sync.streams import (
    account_data,
    device_lists,
    presence,
    state,
    sticky_events,
    timeline,
    to_device,
)
from minihs.services.sync.streams.device_lists import RoomsThen
from minihs.storage import membership, timelines
from minihs.storage.event_store import StoredEvent
from minihs.storage.state import EMPTY_STATE_ID
from minihs.storage.stream_rows import ForgottenRoom, Membership

if TYPE_CHECKING:
    from collections.abc import Collection

    from minihs.protocol.identifiers import EventId, RoomId, UserId
    from minihs.services.accounts.authentication import Requester
    from minihs.services.context import Services
    from minihs.services.sync.assemble import Json
    from minihs.services.sync.spans import SyncRequest
    from minihs.services.sync.streams.timeline import Timeline
    from minihs.services.sync.views import RoomMembership, UserView


async def sync(services: Services, request: SyncRequest) -> Json:
    """Return what the client has not seen; wait for it, up to `timeout_ms`, if there is nothing."""
    deadline_ms = services.clock.monotonic_ms() + request.timeout_ms
    view = await services.views.get(request.user_id)
    await to_device.acknowledge(services, request.requester, view, _received(request))
    while True:
        view = await services.views.get(request.user_id)
        upto = services.follower.head
        since = request.since
        is_rest = bool(request.backlogs) or bool(request.unignored)
        is_rest = is_rest or request.to_device is not None
        next_batch: object = format_token(upto)
        if since is None or request.full_state or is_rest or view.changed_at > since:
            answer, has_news = await _collect(services, request, view, upto)
            if has_news or since is None or request.full_state:
                return answer
            next_batch = answer["next_batch"]  # It may say what the filter leaves out.
        left_ms = deadline_ms - services.clock.monotonic_ms()
        if left_ms <= 0 or services.views.is_closing:
            return {"next_batch": next_batch}
        await wait(services, request.requester, upto, left_ms)


async def wait(services: Services, requester: Requester, seen: int, timeout_ms: int) -> None:
    """Return when something new concerns the user, or after `timeout_ms`.

    Raises:
        UnknownToken: the requester has been logged out meanwhile.
    """
    view = await services.views.get(requester.user_id)
    if await was_logged_out_perhaps(services, requester):  # While we looked for what is new.
        view = await services.views.get(requester.user_id)  # It may have been dropped meanwhile.
    if view.changed_at <= seen:
        await wait_for_news(services, view, timeout_ms)
        await was_logged_out_perhaps(services, requester)


async def was_logged_out_perhaps(services: Services, requester: Requester) -> bool:
    """Return whether it had to be seen that the requester is still logged in.

    Raises:
        UnknownToken: they are not.
    """
    if services.views.may_be_logged_out(requester):
        await require_session(services, requester)
    elif services.views.may_have_gone_unheard(requester):
        await require_device_in_use(services, requester)
    else:
        return False
    return True


async def wait_for_news(services: Services, view: UserView, timeout_ms: int) -> None:
    """Return when something happens that concerns a view, or after `timeout_ms`."""
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake() -> None:
        if not waiter.done():
            waiter.set_result(None)

    timer = services.clock.call_later_ms(timeout_ms, wake)
    view.waiters.add(waiter)
    try:
        await waiter
    finally:
        timer.cancel()
        view.waiters.discard(waiter)


async def _collect(
    services: Services, request: SyncRequest, view: UserView, upto: int
) -> tuple[Json, bool]:
    """Return the answer up to `upto`, and whether there is anything in it."""
    since = request.since
    rooms = dict(view.rooms)  # As of `upto`: no await has happened since it was read.
    in_window = since is not None and services.follower.floor <= since
    changed = _changed_in_window(services, request, rooms, since) if in_window else None
    may_have_left = since is None or not in_window
    may_have_left = may_have_left or _may_have_left(services, request.user_id, since or 0)
    request = await _with_ignored(services, request, view)
    if changed is None:
        changed = set(rooms)
        if since is not None and not request.full_state:
            listed = await timelines.list_changed_rooms(services.db, request.user_id, since, upto)
            changed = {r for r, m in rooms.items() if m.position > since} | set(listed)
    left = await _left_in_database(services, request, since, upto) if may_have_left else []
    of_room = request.filter.room
    everywhere = [
        _span(request, room_id, membership, upto)
        for room_id, membership in rooms.items()
        if membership.membership == "join"
    ]
    joined = [span for span in everywhere if of_room.has_room(span.room_id)]
    new_rooms = [span.room_id for span in joined if span.is_new]
    data = await account_data.read(services, request, upto, new_rooms)
    spans = [span for span in joined if span.room_id in changed or span.room_id in data]
    if (
        in_window
        and not request.backlogs
        and not sticky_events.may_owe_unignored(services, request)
    ):
        joined = spans  # Nothing sticky can be owed where nothing happened.
    join, sticky = await joined_rooms(services, request, spans, joined, data.keys() & rooms.keys())
    for room_id, part in join.items():
        if room_id in data:
            part["account_data"] = {"events": data[room_id]}
    invite = await _shown_from_outside(services, request, rooms, "invite", "invite_state")
    knock = await _shown_from_outside(services, request, rooms, "knock", "knock_state")
    leave = await _left_rooms(services, request, left)
    forgotten = await _forgotten_rooms(services, request, rooms, upto)
    messages = await to_device.read(services, request.requester, view, _received(request), upto)
    backlogs = sticky.backlogs
    if request.backlogs and len(joined) < len(everywhere):
        begun = await sticky_events.backlogs_by_room(services, request)
        others = [s for s in everywhere if s.room_id in begun and not of_room.has_room(s.room_id)]
        backlogs = {**await sticky_events.left_out(services, request, others), **backlogs}
    next_batch = format_token(
        upto,
        backlogs,
        sticky.unignored,
        messages.left_after,
        of_room.timeline.selection if backlogs else 0,
    )
    answer = assemble.answer_json(next_batch, join, invite, knock, leave, forgotten)
    answer |= assemble.events_json("account_data", data.get("", ()))
    answer |= assemble.events_json("to_device", messages.events)
    then = RoomsThen(rooms, new_rooms, [room_id for room_id, _, _ in left], changed)
    lists = await device_lists.read(services, request.user_id, then, since, upto)
    if lists:
        answer["device_lists"] = lists
    answer |= assemble.events_json(
        "presence", await presence.read(services, request, view, new_rooms, upto)
    )
    if request.filter.delayed_outcomes:
        outcomes = await delayed_events.list_outcomes(services, request.user_id, since, upto)
        answer |= unstable.DELAYED_EVENT_OUTCOMES.write(outcomes) if outcomes else {}
    return answer, len(answer) > 1


def _received(request: SyncRequest) -> int:
    """Return up to where the client has the messages to its device."""
    return request.since or 0 if request.to_device is None else request.to_device


def _changed_in_window(
    services: Services, request: SyncRequest, rooms: dict[str, RoomMembership], since: int | None
) -> set[str]:
    """Return the rooms in which something happened since the client's position, from memory."""
    if since is None or request.full_state:
        return set(rooms)
    changed: set[str] = set()
    for item in services.follower.items_after(since):
        changed.add(item.event.room_id if isinstance(item, StoredEvent) else item.room_id)
    return changed


def _span(request: SyncRequest, room_id: str, membership: RoomMembership, upto: int) -> Span:
    """Return what of a joined room the client lacks."""
    is_new = request.since is None or membership.joined_at > request.since
    after = 0 if is_new or request.since is None else request.since
    return Span(room_id, after, upto, membership.joined_at, is_new)


async def _with_ignored(services: Services, request: SyncRequest, view: UserView) -> SyncRequest:
    """Return the request with the users whom the reader ignores."""
    ignored = view.ignored
    if ignored is None:
        changed_at = view.ignored_at
        json = await services.ignored_lists.load(request.user_id)
        content = canonical_json.decode(json) if json is not None else None
        ignored = ignored_in(content) if isinstance(content, dict) else frozenset()
        if view.ignored_at == changed_at:
            view.ignored = ignored
    return replace(request, ignored=ignored) if ignored else request


async def _shown_from_outside(
    services: Services,
    request: SyncRequest,
    rooms: dict[str, RoomMembership],
    kind: str,
    section: str,
) -> dict[str, Json]:
    """Return rooms that the user is invited to, or knocks on, with their stripped state.

    Spec: client-server-api#stripped-state
    """
    new = [
        room_id
        for room_id, membership in rooms.items()
        if membership.membership == kind
        and (request.since is None or request.full_state or membership.position > request.since)
        and request.filter.room.has_room(room_id)
    ]
    if not new:
        return {}
    states = await load_stripped(services, request.user_id, new)
    return {
        room_id: {section: {"events": events}}
        for room_id, events in states.items()
        if not _from_ignored(request, events)
    }


def _from_ignored(request: SyncRequest, stripped: list[object]) -> bool:
    """Return whether an invite comes from somebody whom the user ignores."""
    return any(
        isinstance(event, dict)
        and event.get("type") == "m.room.member"
        and event.get("state_key") == request.user_id
        and event.get("sender") in request.ignored
        for event in stripped
    )


def _may_have_left(services: Services, user_id: UserId, since: int) -> bool:
    """Return whether the user left any room after `since`, from memory."""
    return any(
        isinstance(item, Membership)
        and item.user_id == user_id
        and item.membership in ("leave", "ban")
        for item in services.follower.items_after(since)
    )


async def _left_in_database(
    services: Services, request: SyncRequest, since: int | None, upto: int
) -> list[tuple[str, int, EventId]]:
    """Return the user's departures since the client's position; all if the filter asks so.

    A room that was forgotten meanwhile is told once more. One that was forgotten before is not,
    whatever has become of the membership since.
    """
    if since is None and not request.filter.room.include_leave:
        return []
    rows = await timelines.list_left_rooms(services.db, request.user_id, since or 0, upto)
    return [
        (row[0], row[1], row[2])
        for row in rows
        if row[5] is None or (since is not None and row[5] > since)
    ]


async def _forgotten_rooms(
    services: Services, request: SyncRequest, rooms: dict[str, RoomMembership], upto: int
) -> dict[str, Json]:
    """Return the rooms that the user has forgotten since the client's position.

    Ours: MSC4267#proposal leaves it out.
    """
    found = await list_forgotten(services, request.user_id, request.since, upto)
    return {
        room_id: {}
        for room_id in found
        if room_id not in rooms and request.filter.room.has_room(room_id)
    }


async def list_forgotten(
    services: Services, user_id: str, since: int | None, upto: int
) -> list[RoomId]:
    """Return the rooms that a user has forgotten in (since, upto], here or elsewhere.

    It is the only way for the user's other devices to hear of it. Whoever begins has none to drop.
    They may have come back to some of them since.
    """
    if since is None:
        return []
    if services.follower.floor > since:
        return await membership.list_forgotten_rooms(services.db, user_id, since, upto)
    return [
        item.room_id
        for item in services.follower.items_after(since)
        if isinstance(item, ForgottenRoom) and item.user_id == user_id
    ]


async def _ends_of_stays(
    services: Services, user_id: UserId, events: Collection[StoredEvent]
) -> dict[EventId, StoredEvent | None]:
    """Return, by the event through which a user is outside of a room, the end of their last stay.

    That is mostly the event itself; an earlier one where they were invited or banned since; None
    where they never were in the room.
    """
    placed = [stored for stored in events if stored.order is not None]
    state_ids = {stored.room_state_before or EMPTY_STATE_ID for stored in placed}
    states = await visibility.reader_states(services, user_id, state_ids)
    ends: dict[EventId, StoredEvent | None] = {}
    for stored in placed:
        if states[stored.room_state_before or EMPTY_STATE_ID].membership == "join":
            ends[stored.event_id] = stored
        else:
            room_id = stored.event.room_id
            ends[stored.event_id] = await visibility.end_of_last_stay(services, room_id, user_id)
    return ends


async def _left_rooms(
    services: Services, request: SyncRequest, left: list[tuple[str, int, EventId]]
) -> dict[str, Json]:
    """Return rooms that the user has left, up to where they left them.

    Of what came later they are shown what became of their own membership, and no more.
    """
    left = [row for row in left if request.filter.room.has_room(row[0])]
    events = await services.events.get_many([event_id for _, _, event_id in left])
    ends = await _ends_of_stays(services, request.user_id, events.values())
    outside: list[tuple[Span, Timeline]] = []
    spans: list[Span] = []
    for room_id, position, event_id in left:
        span = Span(room_id, request.since or 0, position, None, request.since is None)
        stored = events.get(event_id)
        if stored is not None and ends.get(event_id) is None:
            outside.append((span, timeline.of_outsider(stored, request.user_id, position)))
        else:
            spans.append(span)
    found = await timeline.read_database(services, request, spans) if spans else {}
    last = {room_id: (events.get(event_id), ends.get(event_id)) for room_id, _, event_id in left}
    pairs = [
        (span, timeline.as_of_end(found[span.room_id], *last[span.room_id]))
        for span in spans
        if span.room_id in found
    ]
    pairs += outside
    if not pairs:
        return {}
    states = await state.state_sections(services, request, pairs)
    await client_events.prepare(
        services,
        [s for _, t in pairs for s in t.events] + [s for events in states.values() for s in events],
    )
    now_ms = services.clock.now_ms()
    return {
        span.room_id: {
            "timeline": assemble.timeline_json(of_room, request.filter, now_ms, request.requester),
            request.state_section: assemble.state_json(
                states[span.room_id], request.filter, now_ms, request.requester
            ),
            "account_data": {"events": []},
        }
        for span, of_room in pairs
    }
