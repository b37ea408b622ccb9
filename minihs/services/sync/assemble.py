"""From what the streams found to the JSON of a sync answer.

Events are put in as bytes made once for everybody; nothing is parsed here.
Spec: client-server-api#get_matrixclientv3sync
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from minihs.protocol import canonical_json, unstable
from minihs.protocol.event_fields import select_fields
from minihs.services.rooms.client_events import as_shown, client_event, time_left_ms

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minihs.protocol.filters import Filter
    from minihs.services.rooms.client_events import Reader
    from minihs.services.sync.streams.timeline import Timeline
    from minihs.storage.event_store import StoredEvent
    from minihs.storage.unread import UnreadCounts

Json = dict[str, object]


def timeline_json(timeline: Timeline, filter_: Filter, now_ms: int, reader: Reader | None) -> Json:
    """Return a room's `timeline`; its events must have been prepared."""
    return {
        "events": [
            event_json(stored, filter_, now_ms, reader, membership)
            for stored, membership in zip(timeline.events, timeline.memberships, strict=True)
        ],
        "limited": timeline.limited,
        "prev_batch": timeline.prev_batch,
    }


def state_json(
    events: Sequence[StoredEvent], filter_: Filter, now_ms: int, reader: Reader | None
) -> Json:
    """Return a room's `state`; its events must have been prepared."""
    return {"events": [event_json(stored, filter_, now_ms, reader, None) for stored in events]}


def event_json(
    stored: StoredEvent,
    filter_: Filter,
    now_ms: int,
    reader: Reader | None,
    membership: str | None,
) -> object:
    """Return one event in the shape that the filter asks for; it must have been prepared."""
    if not filter_.shapes_events:
        return orjson.Fragment(
            client_event(stored, now_ms, with_room_id=False, reader=reader, membership=membership)
        )
    if filter_.event_format == "federation":
        pdu = dict(as_shown(stored).pdu)
        if left_ms := time_left_ms(stored, now_ms):
            pdu["unsigned"] = unstable.STICKY_TTL.write(left_ms)
        event: object = pdu
    else:
        event = canonical_json.decode(
            client_event(stored, now_ms, with_room_id=False, reader=reader, membership=membership)
        )
    if filter_.event_fields is not None and isinstance(event, dict):
        event = select_fields(event, filter_.event_fields)
    return event


def unread_json(counts: UnreadCounts, *, by_thread: bool) -> Json:
    """Return `unread_notifications`, and `unread_thread_notifications` where it was asked for."""
    if by_thread:
        answer: Json = {"unread_notifications": _counts(counts.notifications, counts.highlights)}
        if counts.threads:
            threads = {root: _counts(*numbers) for root, numbers in counts.threads.items()}
            for name in unstable.UNREAD_THREAD_NOTIFICATIONS.written:
                answer[name] = threads
        return answer
    return {
        "unread_notifications": _counts(
            counts.notifications + sum(n for n, _ in counts.threads.values()),
            counts.highlights + sum(n for _, n in counts.threads.values()),
        )
    }


def _counts(notifications: int, highlights: int) -> Json:
    return {"notification_count": notifications, "highlight_count": highlights}


def answer_json(
    next_batch: str,
    join: Mapping[str, Json],
    invite: Mapping[str, Json],
    knock: Mapping[str, Json],
    leave: Mapping[str, Json],
    forgotten: Mapping[str, Json],
) -> Json:
    """Return the answer as far as it is about rooms; what is empty is left out."""
    answer: Json = {"next_batch": next_batch}
    sections = {
        "join": join,
        "invite": invite,
        "knock": knock,
        "leave": leave,
        unstable.FORGOTTEN_SECTION: forgotten,
    }
    rooms = {name: rooms for name, rooms in sections.items() if rooms}
    if rooms:
        answer["rooms"] = rooms
    return answer


def events_json(name: str, events: Sequence[object]) -> Json:
    """Return a section of the answer that has nothing but events; without any, nothing."""
    return {name: {"events": events}} if events else {}
