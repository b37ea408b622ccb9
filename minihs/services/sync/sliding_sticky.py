"""Sticky events in sliding sync: an extension with a position of its own.

The position is a token like that of /sync, and says whose it is (`s123~0a1b2c3d`): everything up to
it is delivered, but for the backlogs of rooms that it names. A joined room that no list or
subscription matches has a backlog too, as long as something in it is sticky: so a room gets
whatever is live once it starts to match, and nothing but the token need be known for that, which
the client keeps when its connection is lost.

MSC4480#proposal, MSC4480#pagination
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from minihs.base.errors import InvalidParam
from minihs.services.rooms import client_events, visibility
from minihs.services.sync import assemble
from minihs.services.sync.positions import format_token, parse_token
from minihs.services.sync.sliding_plans import NO_FILTER, timeline_request
from minihs.services.sync.spans import Span
from minihs.services.sync.streams import sticky_events as stream
from minihs.services.sync.streams.sticky_events import Shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minihs.services.context import Services
    from minihs.services.sync.assemble import Json
    from minihs.services.sync.positions import StickyBacklog, SyncToken, Unignored
    from minihs.services.sync.sliding_lists import Matches, Rooms
    from minihs.services.sync.sliding_request import SlidingRequest
    from minihs.services.sync.sliding_rooms import RoomPart
    from minihs.storage.event_store import StoredEvent


async def sticky(
    services: Services,
    request: SlidingRequest,
    rooms: Rooms,
    matches: Matches,
    parts: Mapping[str, RoomPart],
) -> tuple[Json, bool]:
    """Return the extension's answer, and whether there is anything in it.

    Only rooms that the user is joined to count, whatever matches.
    """
    wanted = request.sticky
    if wanted is None:
        return {}, False
    since = None if wanted.token is None else wanted.token.position
    asked = replace(
        timeline_request(request, rooms.personal.ignored, 1, since),
        backlogs={} if wanted.token is None else wanted.token.backlogs_under(0),
        unignored=() if wanted.token is None else wanted.token.unignored,
    )
    spans = [
        _span(room_id, since, rooms.upto, room.joined_at)
        for room_id, room in rooms.rooms.items()
        if room.joined_at is not None
    ]
    matched = [span for span in spans if span.room_id in matches.matched]
    section = await stream.read(
        services, asked, matched, _shown(parts), limit=min(wanted.limit, stream.EVENTS_MAX)
    )
    others = [span for span in spans if span.room_id not in matches.matched]
    backlogs = {**await stream.left_out(services, asked, others), **section.backlogs}
    next_batch = format_since(request.user_id, rooms.upto, backlogs, section.unignored)
    answer: Json = {"next_batch": next_batch}
    of_rooms = await _written(services, request, rooms, section.events)
    if of_rooms:
        answer["rooms"] = of_rooms
    return answer, bool(of_rooms)


def format_since(
    user_id: str,
    upto: int,
    backlogs: Mapping[int, StickyBacklog] | None = None,
    unignored: Sequence[Unignored] = (),
) -> str:
    """Return the `since` of a user who has everything up to a position, but for what is named."""
    return f"{format_token(upto, backlogs, unignored)}~{_owner(user_id)}"


def parse_since(user_id: str, since: str, head: int) -> SyncToken:
    """Return what a `since` says.

    Raises:
        InvalidParam: it was not handed out to this user: what another one has, they may lack.
    """
    token, _, owner = since.rpartition("~")
    if owner != _owner(user_id):
        raise InvalidParam("This since was not handed out to this user.")
    return parse_token(token, head)


def _owner(user_id: str) -> str:
    return hashlib.blake2s(user_id.encode(), digest_size=4).hexdigest()


def _span(room_id: str, since: int | None, upto: int, joined_at: int) -> Span:
    is_new = since is None or joined_at > since
    return Span(room_id, 0 if is_new or since is None else since, upto, joined_at, is_new)


def _shown(parts: Mapping[str, RoomPart]) -> dict[str, Shown]:
    """Return what the timelines of the answer show; they need not be repeated."""
    return {
        room_id: Shown(
            frozenset(stored.event_id for stored in part.events),
            part.events[0].position,
            part.hides,
        )
        for room_id, part in parts.items()
        if part.events
    }


async def _written(
    services: Services,
    request: SlidingRequest,
    rooms: Rooms,
    events: Mapping[str, Sequence[StoredEvent]],
) -> dict[str, Json]:
    """Return the events of each room, as the reader may see them. MSC4354#proposal."""
    joined_at = {room_id: rooms.rooms[room_id].joined_at or 0 for room_id in events}
    seen = await visibility.visible(
        services,
        request.user_id,
        [stored for of_room in events.values() for stored in of_room],
        joined_at=joined_at,
        ignored=rooms.personal.ignored,
        sticky=True,
    )
    await client_events.prepare(services, [stored for stored, _ in seen])
    now_ms, reader = services.clock.now_ms(), request.requester
    found: dict[str, Json] = {}
    for stored, membership in seen:
        json = assemble.event_json(stored, NO_FILTER, now_ms, reader, membership)
        of_room = found.setdefault(stored.event.room_id, {"events": []})["events"]
        if isinstance(of_room, list):
            of_room.append(json)
    return found
