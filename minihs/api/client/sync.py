"""Syncing. Spec: client-server-api#syncing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.api.client.presence import wished_presence
from minihs.base.limits import SYNC_TIMEOUT_MAX_MS
from minihs.protocol import unstable
from minihs.protocol.filters import Filter
from minihs.protocol.identifiers import RoomId
from minihs.services.accounts import filters
from minihs.services.sync import peeking, v3
from minihs.services.sync.positions import parse_token
from minihs.services.sync.spans import STATE, SyncRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minihs.api.requests import Request
    from minihs.services.sync.positions import StickyBacklog

NO_FILTER = Filter()
PEEK_TIMEOUT_MS = 30_000


async def sync(request: Request) -> object:
    """GET /_matrix/client/v3/sync.

    Spec: client-server-api#get_matrixclientv3sync
    """
    services, requester = request.services, request.requester
    since = request.query("since")
    token = parse_token(since, services.follower.head) if since is not None else None
    timeout_ms = request.query_integer("timeout", 0, high=SYNC_TIMEOUT_MAX_MS)
    services.presence.note_poll(
        services, requester.user_id, requester.device_nid, wished_presence(request), timeout_ms
    )
    filter_ = await _filter(request)
    backlogs: Mapping[int, StickyBacklog] = {}
    if token is not None and token.backlogs:
        backlogs = token.backlogs_under(filter_.room.timeline.selection)
    return await v3.sync(
        services,
        SyncRequest(
            requester,
            filter_,
            None if token is None else token.position,
            full_state=request.query_flag("full_state"),
            state_section=_state_section(request),
            backlogs=backlogs,
            unignored=() if token is None else token.unignored,
            to_device=None if token is None else token.to_device,
            timeout_ms=timeout_ms,
        ),
    )


async def get_events(request: Request) -> object:
    """GET /_matrix/client/v3/events, of one room (peekEvents); of all of them /sync tells.

    Spec: client-server-api#peeking_get_matrixclientv3events
    """
    return await peeking.follow_room(
        request.services,
        request.requester,
        RoomId(request.required_query("room_id")),
        request.query("from"),
        request.query_integer("timeout", PEEK_TIMEOUT_MS, high=SYNC_TIMEOUT_MAX_MS),
    )


def _state_section(request: Request) -> str:
    """Return the name of the section of the state, by the spelling in which it is asked for."""
    if request.query_flag(unstable.USE_STATE_AFTER.stable):
        return unstable.STATE_AFTER.stable
    if request.query_flag(unstable.USE_STATE_AFTER.unstable):
        return unstable.STATE_AFTER.unstable
    return STATE


async def _filter(request: Request) -> Filter:
    """Return the filter that is given inline or by its id."""
    given = request.query("filter")
    if not given:
        return NO_FILTER
    if given.startswith("{"):
        return filters.read_filter(request.services, given)
    return await filters.load_filter(request.services, request.requester.user_id, given)
