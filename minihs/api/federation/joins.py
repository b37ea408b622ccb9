"""Joining, knocking, leaving and inviting, as other servers ask for it.

Each `send_…` and `invite` has two versions: the first answers in a list, after the status.
Spec: server-server-api#joining-rooms, server-server-api#inviting-to-a-room
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import msgspec

from minihs.base.errors import MissingParam
from minihs.services.federation import resident

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from minihs.api.requests import Request


class Invite(msgspec.Struct):
    """Body of PUT /_matrix/federation/v2/invite/{roomId}/{eventId}."""

    event: dict[str, object]
    room_version: str
    invite_room_state: object = msgspec.field(default_factory=list)


async def make_join(request: Request) -> object:
    """GET /_matrix/federation/v1/make_join/{roomId}/{userId}.

    Spec: server-server-api#get_matrixfederationv1make_joinroomiduserid
    """
    versions = request.query_all("ver") or ["1"]
    return await _make(request, "join", versions)


async def make_knock(request: Request) -> object:
    """GET /_matrix/federation/v1/make_knock/{roomId}/{userId}.

    Spec: server-server-api#get_matrixfederationv1make_knockroomiduserid
    """
    versions = request.query_all("ver")
    if not versions:
        raise MissingParam("Query parameter ver is missing.")
    return await _make(request, "knock", versions)


async def make_leave(request: Request) -> object:
    """GET /_matrix/federation/v1/make_leave/{roomId}/{userId}.

    Spec: server-server-api#get_matrixfederationv1make_leaveroomiduserid
    """
    return await _make(request, "leave", None)


async def _make(request: Request, membership: str, versions: list[str] | None) -> object:
    return await resident.make_membership(
        request.services,
        request.origin,
        request.room_id(),
        request.path["userId"],
        membership,
        versions,
    )


async def _send(request: Request, take: Callable[..., Awaitable[object]]) -> object:
    return await take(
        request.services,
        request.origin,
        request.room_id(),
        request.path["eventId"],
        await request.json_object(),
    )


async def send_join_v2(request: Request) -> object:
    """PUT /_matrix/federation/v2/send_join/{roomId}/{eventId}.

    Spec: server-server-api#put_matrixfederationv2send_joinroomideventid
    """
    omit_members = request.query_flag("omit_members")
    return await _send(request, partial(resident.send_join, omit_members=omit_members))


async def send_join_v1(request: Request) -> object:
    """PUT /_matrix/federation/v1/send_join/{roomId}/{eventId}.

    Spec: server-server-api#joining-rooms
    """
    return [200, await send_join_v2(request)]


async def send_leave_v2(request: Request) -> object:
    """PUT /_matrix/federation/v2/send_leave/{roomId}/{eventId}.

    Spec: server-server-api#put_matrixfederationv2send_leaveroomideventid
    """
    return await _send(request, resident.send_leave)


async def send_leave_v1(request: Request) -> object:
    """PUT /_matrix/federation/v1/send_leave/{roomId}/{eventId}.

    Spec: server-server-api#leaving-rooms-rejecting-invites
    """
    return [200, await send_leave_v2(request)]


async def send_knock(request: Request) -> object:
    """PUT /_matrix/federation/v1/send_knock/{roomId}/{eventId}.

    Spec: server-server-api#put_matrixfederationv1send_knockroomideventid
    """
    return await _send(request, resident.send_knock)


async def send_invite_v2(request: Request) -> object:
    """PUT /_matrix/federation/v2/invite/{roomId}/{eventId}.

    Spec: server-server-api#put_matrixfederationv2inviteroomideventid
    """
    body = await request.json(Invite)
    return await resident.take_invite(
        request.services,
        request.origin,
        request.room_id(),
        request.path["eventId"],
        body.event,
        body.room_version,
        body.invite_room_state,
    )


async def send_invite_v1(request: Request) -> object:
    """PUT /_matrix/federation/v1/invite/{roomId}/{eventId}: for room versions 1 and 2.

    The body is the event; what tells the user of the room is in its `unsigned`.

    Spec: server-server-api#put_matrixfederationv1inviteroomideventid
    """
    pdu = await request.json_object()
    unsigned = pdu.get("unsigned")
    shown = unsigned.get("invite_room_state", []) if isinstance(unsigned, dict) else []
    answer = await resident.take_invite(
        request.services,
        request.origin,
        request.room_id(),
        request.path["eventId"],
        pdu,
        "1",
        shown,
    )
    return [200, answer]
