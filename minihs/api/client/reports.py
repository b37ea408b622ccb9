"""Reporting rooms, events and users. Spec: client-server-api#reporting-content."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from minihs.services.rooms import reports

if TYPE_CHECKING:
    from minihs.api.requests import Request


class Report(msgspec.Struct):
    """Body of a report of a room or a user. The reason may be empty, but must be there."""

    reason: str


class EventReport(msgspec.Struct):
    """Body of a report of an event."""

    reason: str | None = None


async def report_room(request: Request) -> object:
    """POST /_matrix/client/v3/rooms/{roomId}/report.

    Spec: client-server-api#post_matrixclientv3roomsroomidreport
    """
    body = await request.json(Report)
    await reports.report_room(
        request.services, request.requester.user_id, request.path["roomId"], body.reason
    )
    return {}


async def report_event(request: Request) -> object:
    """POST /_matrix/client/v3/rooms/{roomId}/report/{eventId}.

    Spec: client-server-api#post_matrixclientv3roomsroomidreporteventid
    """
    body = await request.json(EventReport)
    path = request.path
    await reports.report_event(
        request.services,
        request.requester.user_id,
        path["roomId"],
        path["eventId"],
        body.reason or "",
    )
    return {}


async def report_user(request: Request) -> object:
    """POST /_matrix/client/v3/users/{userId}/report.

    Spec: client-server-api#post_matrixclientv3usersuseridreport
    """
    body = await request.json(Report)
    await reports.report_user(
        request.services, request.requester.user_id, request.path["userId"], body.reason
    )
    return {}
