"""Events, history and states, as other servers ask for them.

Spec: server-server-api#retrieving-events
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from minihs.base.errors import InvalidParam
from minihs.services.federation import answers

if TYPE_CHECKING:
    from minihs.api.requests import Request


class MissingEvents(msgspec.Struct):
    """Body of POST /_matrix/federation/v1/get_missing_events/{roomId}."""

    earliest_events: list[str]
    latest_events: list[str]
    limit: int = answers.MISSING_EVENTS_DEFAULT
    min_depth: int = 0


async def get_event(request: Request) -> object:
    """GET /_matrix/federation/v1/event/{eventId}.

    Spec: server-server-api#get_matrixfederationv1eventeventid
    """
    return await answers.get_event(request.services, request.origin, request.path["eventId"])


async def get_room_state(request: Request) -> object:
    """GET /_matrix/federation/v1/state/{roomId}.

    Spec: server-server-api#get_matrixfederationv1stateroomid
    """
    return await answers.get_state(
        request.services, request.origin, request.room_id(), request.required_query("event_id")
    )


async def get_room_state_ids(request: Request) -> object:
    """GET /_matrix/federation/v1/state_ids/{roomId}.

    Spec: server-server-api#get_matrixfederationv1state_idsroomid
    """
    return await answers.get_state_ids(
        request.services, request.origin, request.room_id(), request.required_query("event_id")
    )


async def get_event_auth(request: Request) -> object:
    """GET /_matrix/federation/v1/event_auth/{roomId}/{eventId}.

    Spec: server-server-api#get_matrixfederationv1event_authroomideventid
    """
    return await answers.get_event_auth(
        request.services, request.origin, request.room_id(), request.path["eventId"]
    )


async def backfill_room(request: Request) -> object:
    """GET /_matrix/federation/v1/backfill/{roomId}.

    Spec: server-server-api#get_matrixfederationv1backfillroomid
    """
    request.required_query("v")
    request.required_query("limit")
    return await answers.backfill(
        request.services,
        request.origin,
        request.room_id(),
        request.query_all("v"),
        request.query_integer("limit", 0),
    )


async def get_missing_previous_events(request: Request) -> object:
    """POST /_matrix/federation/v1/get_missing_events/{roomId}.

    Spec: server-server-api#post_matrixfederationv1get_missing_eventsroomid
    """
    body = await request.json(MissingEvents)
    return await answers.get_missing_events(
        request.services,
        request.origin,
        request.room_id(),
        earliest=body.earliest_events,
        latest=body.latest_events,
        limit=body.limit,
        min_depth=body.min_depth,
    )


async def get_event_by_timestamp(request: Request) -> object:
    """GET /_matrix/federation/v1/timestamp_to_event/{roomId}.

    Spec: server-server-api#get_matrixfederationv1timestamp_to_eventroomid
    """
    request.required_query("ts")
    direction = request.required_query("dir")
    if direction not in ("b", "f"):
        raise InvalidParam("Query parameter dir must be b or f.")
    return await answers.event_by_time(
        request.services,
        request.origin,
        request.room_id(),
        request.query_integer("ts", 0),
        backward=direction == "b",
    )
