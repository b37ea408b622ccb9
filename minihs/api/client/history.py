"""Reading rooms: /messages, /context, /event, /state, /members, /timestamp_to_event."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.api.requests import Answer
from minihs.base.errors import BadJson, InvalidParam, MissingParam
from minihs.base.limits import CONTEXT_LIMIT_DEFAULT, PAGE_LIMIT_DEFAULT
from minihs.protocol import canonical_json
from minihs.protocol.filter_reading import InvalidFilterError, parse_event_filter
from minihs.protocol.filters import EventFilter
from minihs.protocol.identifiers import EventId, RoomId
from minihs.services.rooms import history, initial_sync, state_reading
from minihs.services.rooms.access import open_room
from minihs.services.rooms.client_events import as_shown, shown
from minihs.services.rooms.event_by_time import event_by_time

if TYPE_CHECKING:
    from minihs.api.requests import Request

MEMBERSHIPS = ("join", "invite", "knock", "leave", "ban")


def _room_id(request: Request) -> RoomId:
    return RoomId(request.path["roomId"])  # Whatever is no room id is an unknown room.


def _event_id(request: Request) -> EventId:
    return EventId(request.path["eventId"])


def _filter(request: Request) -> EventFilter:
    """Return the filter that stands in the query, as JSON."""
    text = request.query("filter")
    if not text:
        return EventFilter()
    try:
        return parse_event_filter(canonical_json.decode(text), path="filter")
    except InvalidFilterError as error:
        raise BadJson(str(error)) from None
    except ValueError:
        raise InvalidParam("Query parameter filter must be JSON.") from None


def _backward(request: Request) -> bool:
    direction = request.query("dir")
    if direction is None:
        raise MissingParam("Query parameter dir is missing.")
    if direction not in ("b", "f"):
        raise InvalidParam("Query parameter dir must be b or f.")
    return direction == "b"


def _choice(request: Request, name: str, choices: tuple[str, ...]) -> str | None:
    value = request.query(name)
    if value is not None and value not in choices:
        raise InvalidParam(f"Query parameter {name} must be one of {', '.join(choices)}.")
    return value


async def get_room_events(request: Request) -> object:
    """GET /_matrix/client/v3/rooms/{roomId}/messages.

    Spec: client-server-api#get_matrixclientv3roomsroomidmessages
    """
    room_id = _room_id(request)
    try:
        backward = _backward(request)
    except MissingParam:
        # Whether somebody may look at a room comes before how.
        await open_room(request.services, request.requester, room_id)
        raise
    return await history.messages(
        request.services,
        request.requester,
        room_id,
        start=request.query("from"),
        stop=request.query("to"),
        backward=backward,
        limit=request.query_integer("limit", PAGE_LIMIT_DEFAULT),
        event_filter=_filter(request),
    )


async def room_initial_sync(request: Request) -> object:
    """GET /_matrix/client/v3/rooms/{roomId}/initialSync; `limit` is not the specification's.

    Spec: client-server-api#get_matrixclientv3roomsroomidinitialsync
    """
    return await initial_sync.room_initial_sync(
        request.services,
        request.requester,
        _room_id(request),
        request.query_integer("limit", PAGE_LIMIT_DEFAULT),
    )


async def get_event_context(request: Request) -> object:
    """GET /_matrix/client/v3/rooms/{roomId}/context/{eventId}.

    Spec: client-server-api#get_matrixclientv3roomsroomidcontexteventid
    """
    return await history.context(
        request.services,
        request.requester,
        _room_id(request),
        _event_id(request),
        limit=request.query_integer("limit", CONTEXT_LIMIT_DEFAULT),
        event_filter=_filter(request),
    )


async def get_one_room_event(request: Request) -> object:
    """GET /_matrix/client/v3/rooms/{roomId}/event/{eventId}.

    Spec: client-server-api#get_matrixclientv3roomsroomideventeventid
    """
    return await history.one_event(
        request.services, request.requester, _room_id(request), _event_id(request)
    )


async def get_event_by_timestamp(request: Request) -> object:
    """GET /_matrix/client/v1/rooms/{roomId}/timestamp_to_event.

    Spec: client-server-api#get_matrixclientv1roomsroomidtimestamp_to_event
    """
    request.required_query("ts")
    return await event_by_time(
        request.services,
        request.requester,
        _room_id(request),
        request.query_integer("ts", 0),
        backward=_backward(request),
    )


async def get_room_state(request: Request) -> object:
    """GET /_matrix/client/v3/rooms/{roomId}/state.

    Spec: client-server-api#get_matrixclientv3roomsroomidstate
    """
    return await state_reading.state(request.services, request.requester, _room_id(request))


async def get_room_state_with_key(request: Request) -> object:
    """GET /_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}.

    Without a state key, and with or without the last slash, the key is empty. With
    `format=event` the whole event is returned.

    Spec: client-server-api#get_matrixclientv3roomsroomidstateeventtypestatekey
    """
    kind = _choice(request, "format", ("content", "event"))
    stored = await state_reading.state_event(
        request.services,
        request.requester,
        _room_id(request),
        (request.path["eventType"], request.path.get("stateKey", "")),
    )
    if kind == "event":
        return (await shown(request.services, [stored], reader=request.requester))[0]
    return Answer(canonical_json.encode_lenient(as_shown(stored).content))


async def get_members_by_room(request: Request) -> object:
    """GET /_matrix/client/v3/rooms/{roomId}/members.

    Spec: client-server-api#get_matrixclientv3roomsroomidmembers
    """
    chunk = await state_reading.members(
        request.services,
        request.requester,
        _room_id(request),
        at=request.query("at"),
        membership=_choice(request, "membership", MEMBERSHIPS),
        not_membership=_choice(request, "not_membership", MEMBERSHIPS),
    )
    return {"chunk": chunk}


async def get_joined_members_by_room(request: Request) -> object:
    """GET /_matrix/client/v3/rooms/{roomId}/joined_members.

    Spec: client-server-api#get_matrixclientv3roomsroomidjoined_members
    """
    joined = await state_reading.joined_members(
        request.services, request.requester, _room_id(request)
    )
    return {"joined": joined}
