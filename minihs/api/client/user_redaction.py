"""Redacting what one user said in a room. MSC4194#redacting-a-users-events."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from minihs.base.errors import InvalidParam
from minihs.protocol.identifiers import parse_room_id, parse_user_id
from minihs.services.rooms import user_redaction

if TYPE_CHECKING:
    from minihs.api.requests import Request

LIMIT_DEFAULT = 25


class Reason(msgspec.Struct):
    """Body of the endpoint."""

    reason: str | None = None


async def redact_user(request: Request) -> object:
    """POST /_matrix/client/v1/rooms/{roomId}/redact/user/{userId}.

    `M_FORBIDDEN`: the requester is not in the room, or lacks the power. `M_LIMIT_EXCEEDED`: they
    have redacted too many events.

    MSC4194#redacting-a-users-events
    """
    room_id, user_id = parse_room_id(request.path["roomId"]), parse_user_id(request.path["userId"])
    if room_id is None or user_id is None:
        raise InvalidParam("The path names a room and a user.")
    body = await request.json(Reason)
    requester = request.requester
    done = await user_redaction.redact_user(
        request.services,
        requester.user_id,
        room_id,
        user_id,
        limit=request.query_integer("limit", LIMIT_DEFAULT, low=1),
        content={} if body.reason is None else {"reason": body.reason},
        is_limited=request.services.config.rate_limits_on and requester.rate_limited,
    )
    return {
        "is_more_events": done.is_more,
        "redacted_events": {"total": done.total, "soft_failed": done.soft_failed},
    }
