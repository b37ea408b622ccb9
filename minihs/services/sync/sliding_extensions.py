"""Extensions of sliding sync: messages to the device, account data, receipts, typing.

None of them is part of MSC4186 itself.

One is ours: which rooms were forgotten since (MSC4267).
MSC4186#extensions
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.protocol.unstable import FORGOTTEN_EXTENSION
from minihs.services.sync.positions import format_token
from minihs.services.sync.sliding_plans import timeline_request
from minihs.services.sync.spans import Span
from minihs.services.sync.streams import account_data, device_lists, ephemeral, to_device
from minihs.services.sync.streams.device_lists import RoomsThen
from minihs.services.sync.v3 import list_forgotten

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from minihs.services.context import Services
    from minihs.services.sync.assemble import Json
    from minihs.services.sync.sliding_connections import Connection
    from minihs.services.sync.sliding_lists import Matches, Rooms
    from minihs.services.sync.sliding_request import SlidingRequest, ToDeviceRequest
    from minihs.services.sync.sliding_rooms import RoomPart

ACCOUNT_DATA, RECEIPTS, TYPING = "account_data", "receipts", "typing"
TO_DEVICE, E2EE = "to_device", "e2ee"
TYPES = {RECEIPTS: "m.receipt", TYPING: "m.typing"}
KNOWN = (ACCOUNT_DATA, RECEIPTS, TYPING, TO_DEVICE, E2EE, FORGOTTEN_EXTENSION)


async def extensions(
    services: Services,
    request: SlidingRequest,
    connection: Connection,
    rooms: Rooms,
    matches: Matches,
    parts: Mapping[str, RoomPart],
    changed: Collection[str],
) -> tuple[dict[str, Json], bool]:
    """Return the answers of the extensions that were asked for, and whether there is any news."""
    found: dict[str, Json] = {}
    if ACCOUNT_DATA in request.extensions:
        found[ACCOUNT_DATA] = await _account_data(services, request, connection, rooms, matches)
    found |= await _ephemeral(services, request, connection, rooms, matches, parts, changed)
    if FORGOTTEN_EXTENSION in request.extensions:
        found[FORGOTTEN_EXTENSION] = await _forgotten(services, request, rooms)
    has_news = any(found.values())
    if request.to_device is not None:
        found[TO_DEVICE] = await _to_device(services, request, request.to_device, rooms)
        has_news = has_news or bool(found[TO_DEVICE]["events"])
    if E2EE in request.extensions:
        lists = await _device_lists(services, request, rooms, changed)
        has_news = has_news or bool(lists)
        # Keys of devices come with end-to-end encryption: there is none yet.
        found[E2EE] = {
            "device_one_time_keys_count": {}, "device_unused_fallback_key_types": [], **lists,
        }  # fmt: skip
    return {name: answer for name, answer in found.items() if answer}, has_news


async def _to_device(
    services: Services, request: SlidingRequest, wanted: ToDeviceRequest, rooms: Rooms
) -> Json:
    """Return the next messages to the device. Spec: client-server-api#send-to-device-messaging."""
    view = await services.views.get(request.user_id)
    messages = await to_device.read(
        services, request.requester, view, wanted.received, rooms.upto, wanted.limit
    )
    next_batch = rooms.upto if messages.left_after is None else messages.left_after
    return {"next_batch": format_token(next_batch), "events": messages.events}


async def _device_lists(
    services: Services, request: SlidingRequest, rooms: Rooms, changed: Collection[str]
) -> Json:
    """Return whose devices to look at again; empty if there are none.

    Spec: client-server-api#tracking-the-device-list-for-a-user
    """
    mine, since = (await services.views.get(request.user_id)).rooms, request.since or 0
    new = [r for r, m in mine.items() if m.membership == "join" and m.joined_at > since]
    then = RoomsThen(mine, new, (), changed)
    lists = await device_lists.read(services, request.user_id, then, request.since, rooms.upto)
    return {"device_lists": lists} if lists else {}


async def _forgotten(services: Services, request: SlidingRequest, rooms: Rooms) -> Json:
    """Return the rooms that the user has forgotten since the `pos`. Ours: MSC4267#proposal."""
    found = await list_forgotten(services, request.user_id, request.since, rooms.upto)
    gone: Json = {
        room_id: {}
        for room_id in found
        if room_id not in rooms.rooms or rooms.rooms[room_id].membership in ("leave", "ban")
    }
    return {"rooms": gone} if gone else {}


def _rooms_in_scope(
    request: SlidingRequest, name: str, rooms: Rooms, matches: Matches
) -> list[str]:
    scope = request.extensions[name]
    return [
        room_id
        for room_id, rule in matches.rules.items()
        if rooms.rooms[room_id].kind == "join"
        and (
            any(_names(scope.lists, list_) for list_ in rule.lists)
            or (rule.subscribed and _names(scope.rooms, room_id))
        )
    ]


def _names(names: tuple[str, ...] | None, name: str) -> bool:
    return names is None or "*" in names or name in names


def _missed(
    request: SlidingRequest,
    connection: Connection,
    name: str,
    room_ids: Iterable[str],
    rooms: Rooms,
) -> set[str]:
    """Return the rooms of which the client lacks more than what is new since its `pos`."""
    since = request.since
    if since is None or request.extensions[name].named(name) not in connection.extensions:
        return set(room_ids)
    missed: set[str] = set()
    for room_id in room_ids:
        sent = connection.rooms.get(room_id)
        joined_at = rooms.rooms[room_id].joined_at
        if (
            sent is None
            or sent.upto is not None
            or sent.kind != "join"
            or (joined_at is not None and joined_at > since)
        ):
            missed.add(room_id)
    return missed


async def _account_data(
    services: Services,
    request: SlidingRequest,
    connection: Connection,
    rooms: Rooms,
    matches: Matches,
) -> Json:
    """Return global account data, and that of rooms. Spec: client-server-api#client-config."""
    in_scope = _rooms_in_scope(request, ACCOUNT_DATA, rooms, matches)
    missed = _missed(request, connection, ACCOUNT_DATA, in_scope, rooms)
    had = any(name.split()[0] == ACCOUNT_DATA for name in connection.extensions)
    since = request.since if had else None
    asked = timeline_request(request, rooms.personal.ignored, 1, since)
    data = await account_data.read(services, asked, rooms.upto, sorted(missed))
    answer: Json = {}
    if data.get(""):
        answer["global"] = data[""]
    of_rooms = {r: data[r] for r in in_scope if r in data}
    if of_rooms:
        answer["rooms"] = of_rooms
    return answer


async def _ephemeral(
    services: Services,
    request: SlidingRequest,
    connection: Connection,
    rooms: Rooms,
    matches: Matches,
    parts: Mapping[str, RoomPart],
    changed: Collection[str],
) -> dict[str, Json]:
    """Return receipts and typing notifications.

    Of a room that is new to the client, receipts are told that are on events of its timeline, and
    the client's own user's.
    """
    names = [name for name in (RECEIPTS, TYPING) if name in request.extensions]
    scopes = {name: _rooms_in_scope(request, name, rooms, matches) for name in names}
    missed = {name: _missed(request, connection, name, scopes[name], rooms) for name in names}
    behind = {room_id for name in names for room_id in missed[name]}
    asked = timeline_request(request, rooms.personal.ignored, 1, request.since)
    events: dict[str, Sequence[Json]] = {}
    from_database: list[Span] = []
    for room_id in dict.fromkeys(room_id for name in names for room_id in scopes[name]):
        if room_id not in behind and room_id not in changed:
            continue
        after = 0 if room_id in behind else request.since or 0
        span = Span(room_id, after, rooms.upto, rooms.rooms[room_id].joined_at, room_id in behind)
        if room_id not in behind and services.follower.floor <= after:
            events[room_id] = ephemeral.read_window(services, asked, span)
        else:
            from_database.append(span)
    if from_database:
        events |= await ephemeral.read_database(services, asked, from_database)
    found: dict[str, Json] = {}
    for name in names:
        of_rooms: dict[str, Json] = {}
        for room_id in scopes[name]:
            event = _of_type(events.get(room_id, ()), TYPES[name])
            if event is not None and name == RECEIPTS and room_id in missed[name]:
                event = _nearby(event, parts.get(room_id), request.user_id)
            if event is not None and event["content"]:
                of_rooms[room_id] = event
        found[name] = {"rooms": of_rooms} if of_rooms else {}
    return found


def _of_type(events: Sequence[Json], event_type: str) -> Json | None:
    return next((event for event in events if event["type"] == event_type), None)


def _nearby(event: Json, part: RoomPart | None, user_id: str) -> Json:
    """Return of a receipt event what is on events of the timeline, and what is the reader's own."""
    shown = {stored.event_id for stored in part.events} if part is not None else set()
    content = event["content"]
    kept: Json = {}
    if isinstance(content, dict):
        for event_id, kinds in content.items():
            if event_id in shown:
                kept[event_id] = kinds
                continue
            own = {kind: {user_id: u[user_id]} for kind, u in kinds.items() if user_id in u}
            if own:
                kept[event_id] = own
    return {"type": event["type"], "content": kept}
