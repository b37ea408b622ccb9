"""Who is in which room. Spec: client-server-api#room-membership."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from minihs.base.errors import BadJson, Forbidden, InvalidParam, MissingParam
from minihs.protocol.identifiers import parse_user_id
from minihs.protocol.membership import INSIDE
from minihs.protocol.redact_on_ban import read_flag
from minihs.protocol.unstable import REDACT_EVENTS, Disagreement, strip
from minihs.services.rooms import aliases, forget, membership
from minihs.services.rooms.membership import MembershipChange

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minihs.api.requests import Request
    from minihs.protocol.identifiers import RoomId, UserId


class Target(msgspec.Struct):
    """Body of the endpoints that change somebody else's membership."""

    user_id: str | None = None
    reason: str | None = None
    address: str | None = None  # of an invite by email address or phone number

    @property
    def content(self) -> dict[str, object]:
        """What goes into the member event."""
        return {} if self.reason is None else {"reason": self.reason}


class Reason(msgspec.Struct):
    """Body of the endpoints that change one's own membership."""

    reason: str | None = None

    @property
    def content(self) -> dict[str, object]:
        """What goes into the member event."""
        return {} if self.reason is None else {"reason": self.reason}


async def get_joined_rooms(request: Request) -> object:
    """GET /_matrix/client/v3/joined_rooms.

    Spec: client-server-api#get_matrixclientv3joined_rooms
    """
    rooms = await membership.list_joined_rooms(request.services, request.requester.user_id)
    return {"joined_rooms": rooms}


async def join_room(request: Request) -> object:
    """POST /_matrix/client/v3/join/{roomIdOrAlias}.

    Spec: client-server-api#post_matrixclientv3joinroomidoralias
    """
    room_id, servers = await aliases.find_room(request.services, request.path["roomIdOrAlias"])
    return await _join(request, room_id, [*_via(request), *servers])


async def join_room_by_id(request: Request) -> object:
    """POST /_matrix/client/v3/rooms/{roomId}/join.

    Spec: client-server-api#post_matrixclientv3roomsroomidjoin
    """
    return await _join(request, request.room_id(), ())


async def knock_room(request: Request) -> object:
    """POST /_matrix/client/v3/knock/{roomIdOrAlias}.

    Spec: client-server-api#post_matrixclientv3knockroomidoralias
    """
    body = await request.json(Reason)
    room_id, servers = await aliases.find_room(request.services, request.path["roomIdOrAlias"])
    await membership.knock_on_room(
        request.services,
        request.requester.user_id,
        room_id,
        content=body.content,
        via=[*_via(request), *servers],
    )
    return {"room_id": room_id}


async def leave_room(request: Request) -> object:
    """POST /_matrix/client/v3/rooms/{roomId}/leave.

    Spec: client-server-api#post_matrixclientv3roomsroomidleave
    """
    body = await request.json(Reason)
    await membership.leave_room(
        request.services, request.requester.user_id, request.room_id(), content=body.content
    )
    return {}


async def forget_room(request: Request) -> object:
    """POST /_matrix/client/v3/rooms/{roomId}/forget.

    Spec: client-server-api#post_matrixclientv3roomsroomidforget
    """
    await forget.forget_room(request.services, request.requester.user_id, request.room_id())
    return {}


async def invite_user(request: Request) -> object:
    """POST /_matrix/client/v3/rooms/{roomId}/invite.

    Spec: client-server-api#post_matrixclientv3roomsroomidinvite
    client-server-api#thirdparty_post_matrixclientv3roomsroomidinvite
    """
    return await _change_other(request, "invite", None)


async def kick(request: Request) -> object:
    """POST /_matrix/client/v3/rooms/{roomId}/kick.

    Spec: client-server-api#post_matrixclientv3roomsroomidkick
    MSC4293#proposal
    """
    return await _change_other(request, "leave", INSIDE, await _redact_events(request))


async def ban(request: Request) -> object:
    """POST /_matrix/client/v3/rooms/{roomId}/ban.

    Spec: client-server-api#post_matrixclientv3roomsroomidban
    MSC4293#proposal
    """
    return await _change_other(request, "ban", None, await _redact_events(request))


async def unban(request: Request) -> object:
    """POST /_matrix/client/v3/rooms/{roomId}/unban.

    Spec: client-server-api#post_matrixclientv3roomsroomidunban
    """
    return await _change_other(request, "leave", frozenset({"ban"}))


def _via(request: Request) -> list[str]:
    """Return the servers that the client knows to be in the room."""
    return request.query_all("via") or request.query_all("server_name")


async def _join(request: Request, room_id: RoomId, via: Sequence[str]) -> object:
    content = strip(await request.json_object(), REDACT_EVENTS)  # Nobody joins so (MSC4293).
    if content.pop("third_party_signed", None) is not None:
        raise Forbidden("This server knows no invites by email address or phone number.")
    if not isinstance(content.get("reason", ""), str):
        del content["reason"]
    requester = request.requester
    await membership.join_room(
        request.services,
        requester.user_id,
        room_id,
        content=content,
        guest=requester.guest,
        via=via,
    )
    return {"room_id": room_id}


async def _redact_events(request: Request) -> dict[str, object]:
    """Return what the body of a kick or ban says of the target's events, as the event says it.

    MSC4293#proposal
    """
    body = await request.json_object()
    flag = read_flag(body)
    if flag is None:
        raise BadJson("redact_events is true or false.")
    if isinstance(flag, Disagreement):
        raise InvalidParam(flag.message)
    return REDACT_EVENTS.write(flag) if REDACT_EVENTS.is_in(body) else {}


async def _change_other(
    request: Request,
    wanted: str,
    only_from: frozenset[str] | None,
    more: Mapping[str, object] | None = None,
) -> object:
    body = await request.json(Target)
    user_id = _target(body)
    content = {**body.content, **(more or {})}
    change = MembershipChange(
        request.room_id(), request.requester.user_id, user_id, wanted, content, only_from
    )
    await membership.change_membership(request.services, change)
    return {}


def _target(body: Target) -> UserId:
    if body.user_id is None:
        if body.address is not None:
            raise Forbidden(
                "This server cannot invite by email address or phone number.",
                errcode="M_THREEPID_DENIED",
            )
        raise MissingParam("user_id is missing.")
    user_id = parse_user_id(body.user_id)
    if user_id is None:
        raise InvalidParam("user_id is not a user id.")
    return user_id
