"""Telling the administrators of bad rooms, events and users.

Spec: client-server-api#reporting-content
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.base.errors import InvalidParam, NotFound
from minihs.base.limits import REASON_CHARS_MAX
from minihs.storage import reports
from minihs.storage.accounts import fetch_account
from minihs.storage.membership import fetch_membership
from minihs.storage.reports import Report
from minihs.storage.rooms import fetch_room

if TYPE_CHECKING:
    from minihs.protocol.identifiers import UserId
    from minihs.services.context import Services


async def report_room(services: Services, reporter: UserId, room_id: str, reason: str) -> None:
    """Keep a report of a room, which the reporter need not be in.

    Spec: client-server-api#post_matrixclientv3roomsroomidreport

    Raises:
        NotFound: this server does not know the room.
    """
    if await fetch_room(services.db, room_id) is None:  # type: ignore[arg-type]  # (of a client)
        raise NotFound("The room was not found.")
    await _keep(services, reporter, reason, room_id=room_id)


async def report_event(
    services: Services, reporter: UserId, room_id: str, event_id: str, reason: str
) -> None:
    """Keep a report of an event in a room that the reporter is joined to.

    Spec: client-server-api#post_matrixclientv3roomsroomidreporteventid

    Raises:
        NotFound: they are not, or there is no such event in the room.
    """
    member = await fetch_membership(services.db, room_id, reporter)
    event = await services.events.get(event_id)  # type: ignore[arg-type]  # (of a client)
    if member is None or member.membership != "join" or event is None:
        raise NotFound("The event was not found or you are not joined to the room.")
    if event.event.room_id != room_id:
        raise NotFound("The event was not found or you are not joined to the room.")
    await _keep(services, reporter, reason, room_id=room_id, event_id=event_id)


async def report_user(services: Services, reporter: UserId, user_id: str, reason: str) -> None:
    """Keep a report of a user.

    Spec: client-server-api#post_matrixclientv3usersuseridreport

    Raises:
        NotFound: it is a user of this server that does not exist.
    """
    if services.is_local(user_id) and await fetch_account(services.db, user_id) is None:
        raise NotFound("The user was not found.")
    await _keep(services, reporter, reason, user_id=user_id)


async def _keep(
    services: Services,
    reporter: UserId,
    reason: str,
    *,
    room_id: str | None = None,
    event_id: str | None = None,
    user_id: str | None = None,
) -> None:
    if len(reason) > REASON_CHARS_MAX or "\0" in reason:
        raise InvalidParam(f"The reason may have {REASON_CHARS_MAX} characters, and no U+0000.")
    now_ms = services.clock.now_ms()
    report = Report(reporter, reason, now_ms, room_id, event_id, user_id)
    await reports.insert_report(services.db, report)
