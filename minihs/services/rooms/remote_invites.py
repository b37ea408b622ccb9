"""Inviting users of other servers: theirs signs our event before we commit it.

Spec: server-server-api#inviting-to-a-room
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from minihs.base.errors import Forbidden, MatrixError, NotFound, Unavailable
from minihs.protocol.event_auth import EventAuthError, check_state_dependent, select_auth_keys_of
from minihs.protocol.identifiers import server_name_of
from minihs.protocol.state_keys import CREATE
from minihs.remote.transport import RemoteError
from minihs.services.rooms import commit, origins, outsiders
from minihs.services.rooms.candidates import refusal_of
from minihs.services.rooms.commit import Plan, PlannedEvent
from minihs.services.rooms.heads import building
from minihs.services.rooms.send import Decision, build_upon
from minihs.services.rooms.state import load_state_events
from minihs.services.rooms.templates import BadTemplateError, countersigned
from minihs.storage.group_commit import Conflict

if TYPE_CHECKING:
    from minihs.protocol.identifiers import EventId, RoomId, UserId
    from minihs.services.context import Services
    from minihs.services.rooms.origins import Origin

ATTEMPTS = 20


async def invite(
    services: Services,
    room_id: RoomId,
    user_id: UserId,
    decide: Decision,
    transaction: Origin | None = None,
) -> EventId:
    """Invite a user of another server: it signs the invite before we commit it.

    `decide` says what to send, or the event that makes it needless, as for `send_decided`.

    Raises:
        NotFound: this server is not in the room, or the user's server cannot be reached.
        Forbidden: the room's rules, or the user's server, are against it.

    Spec: server-server-api#inviting-to-a-room
    """
    async with building(services, room_id) as head:
        if head is None or not head.extremities:
            raise NotFound("Unknown room.")
        decided = await decide(head)
        if isinstance(decided, str):
            return decided
        named = {**decided.extra, "origin": services.server_name}  # Other servers may ask for it.
        planned = await build_upon(services, head, replace(decided, extra=named))
        planned.transaction = transaction
        shown = await outsiders.room_state_for_outsiders(services, head, planned.event)
    # Neither a transaction nor the room's turn waits for another server.
    event, server = planned.event, server_name_of(user_id)
    answer = await services.remote.invite(
        server,
        room_id,
        event.event_id,
        event.pdu,
        event.room_version.identifier,
        [of_room.pdu for of_room in shown],
    )
    if isinstance(answer, RemoteError):
        raise refusal_of(answer)
    try:
        planned.event = await countersigned(services, event, answer["event"], server)
    except BadTemplateError as error:
        raise MatrixError(f"{server} did not take the invite: {error}", status=502) from error
    return await _commit_signed(services, planned)


async def _commit_signed(services: Services, planned: PlannedEvent) -> EventId:
    """Commit an event that was built a while ago, where it was built.

    Raises:
        Forbidden: the room has changed, and does not allow it any more.
        Unavailable: other processes were faster, time after time.
    """
    event = planned.event
    keys = [*select_auth_keys_of(event), CREATE]
    for _ in range(ATTEMPTS):
        async with building(services, event.room_id) as head:
            if head is None:
                raise NotFound("Unknown room.")
            current = await load_state_events(services, head.state, keys)
            try:
                check_state_dependent(event, {key: s.event for key, s in current.items()})
            except EventAuthError as error:
                raise Forbidden(error.message) from error
            plan = Plan(head)
            stored = await commit.add_event(services, plan, planned)
            durable = plan.submit(services)
        try:
            await durable
        except Conflict:
            if planned.transaction is not None and (
                known := await origins.find_by_transaction(
                    services, event.room_id, planned.transaction
                )
            ):
                return known
            continue
        return stored.event_id
    raise Unavailable("The room is too busy; try again.")
