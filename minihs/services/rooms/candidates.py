"""Candidates: the servers that may help with a room, asked one after the other until one does.

Servers that accept a request and then say nothing must not make a user wait for each of them: after
a while no other is asked.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from minihs.base.errors import (
    Forbidden,
    IncompatibleRoomVersion,
    LimitExceeded,
    MatrixError,
    NotFound,
)
from minihs.base.limits import REMOTE_QUERIES_MS
from minihs.protocol.identifiers import parse_server_name, server_name_of
from minihs.remote.transport import RemoteError
from minihs.services.rooms.remote_joins import BadRoomError
from minihs.services.rooms.stripped_state import load_stripped
from minihs.services.rooms.templates import BadTemplateError, RemoteChange
from minihs.storage import directory
from minihs.storage import membership as memberships

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from minihs.protocol.identifiers import EventId, ServerName
    from minihs.services.context import Services

logger = logging.getLogger(__name__)

CANDIDATES_MAX = 20

# No other server tells a user these: clients take them for what is said of their own session.
OF_SESSIONS: Final = frozenset(
    {
        "M_CONSENT_NOT_GIVEN",
        "M_MISSING_TOKEN",
        "M_UNAUTHORIZED",
        "M_UNKNOWN_TOKEN",
        "M_USER_DEACTIVATED",
        "M_USER_LOCKED",
        "M_USER_SUSPENDED",
    }
)
# Nor these: they are said of requests that we made, not the user.
OF_REQUESTS: Final = frozenset(
    {"", "M_BAD_JSON", "M_INVALID_PARAM", "M_MISSING_PARAM", "M_NOT_JSON", "M_UNRECOGNIZED"}
)


async def through_any(
    services: Services,
    change: RemoteChange,
    through: Callable[[Services, RemoteChange, ServerName], Awaitable[EventId | RemoteError]],
) -> EventId:
    """Return what the first candidate achieves that achieves anything.

    Raises:
        MatrixError: nobody did.
    """
    failures: list[RemoteError] = []
    until_ms = services.clock.monotonic_ms() + REMOTE_QUERIES_MS
    for server in await candidates(services, change):
        if services.clock.monotonic_ms() >= until_ms:
            break
        try:
            outcome = await through(services, change, server)
        except (BadTemplateError, BadRoomError) as error:
            outcome = RemoteError("bad_answer", server, str(error))
        if not isinstance(outcome, RemoteError):
            return outcome
        logger.info("%s of %s: %s", change.membership, change.user_id, outcome.describe())
        failures.append(outcome)
    raise _failure(failures)


async def candidates(services: Services, change: RemoteChange) -> list[ServerName]:
    """Return the servers to ask, the likeliest first."""
    row = await memberships.fetch_membership(services.db, change.room_id, change.user_id)
    named: list[str] = list(change.via)
    if row is not None and row.membership == "invite":
        inviter = server_name_of(row.sender)
        named = [*named, inviter] if change.membership == "join" else [inviter, *named]
    if set(change.via) <= {services.server_name}:  # A client that names others means those.
        named += await directory.list_servers_in_room(services.db, change.room_id)
        named += await _servers_shown(services, change)
        named.append(server_name_of(change.room_id))  # Since v12 that is nobody.
    found = dict.fromkeys(
        name
        for text in named
        if (name := parse_server_name(text)) is not None and name != services.server_name
    )
    return list(found)[:CANDIDATES_MAX]


async def _servers_shown(services: Services, change: RemoteChange) -> list[ServerName]:
    """Return the servers of those who made the room what we were shown when outside of it."""
    shown = await load_stripped(services, change.user_id, [change.room_id])
    return [
        server_name_of(event["sender"])
        for event in shown.get(change.room_id, ())
        if isinstance(event, dict) and isinstance(event.get("sender"), str)
    ]


def _failure(failures: Sequence[RemoteError]) -> MatrixError:
    """Return the error that tells the user most about why no server helped."""
    reached = [failure for failure in failures if failure.kind != "unreachable"]
    if not reached:
        return NotFound("No server that knows this room can be reached.")
    for failure in reached:
        if failure.errcode == "M_INCOMPATIBLE_ROOM_VERSION":
            version = failure.body.get("room_version")
            return IncompatibleRoomVersion(failure.message, room_version=version)
    for failure in reached:
        if failure.status == 403:
            return refusal_of(failure)
    for failure in reached:
        if failure.errcode in ("M_UNABLE_TO_AUTHORISE_JOIN", "M_UNABLE_TO_GRANT_JOIN"):
            return Forbidden(failure.message)
    return refusal_of(reached[0])


def refusal_of(failure: RemoteError) -> MatrixError:
    """Return what a user is told of another server's refusal, or of its silence.

    Spec: server-server-api#put_matrixfederationv2send_joinroomideventid
    """
    if failure.kind == "unreachable":
        return NotFound(f"The server {failure.destination} cannot be reached.")
    if failure.status == 403:
        is_known = failure.errcode and failure.errcode not in OF_SESSIONS
        return Forbidden(failure.message, errcode=failure.errcode if is_known else None)
    if failure.status == 404:
        return NotFound(failure.message or "Not found.")
    if failure.status == 429:
        return LimitExceeded(failure.retry_after_ms or 1_000, failure.message)
    if failure.errcode == "M_INCOMPATIBLE_ROOM_VERSION":
        version = failure.body.get("room_version")
        return IncompatibleRoomVersion(failure.message, room_version=version)
    if failure.status == 400 and failure.errcode not in OF_SESSIONS | OF_REQUESTS:
        return MatrixError(failure.message, errcode=failure.errcode)
    return MatrixError(f"{failure.destination} does not help: {failure.message}", status=502)
