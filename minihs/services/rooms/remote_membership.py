"""Entering and leaving rooms through other servers: the handshakes, seen from our side.

A room that nobody of this server is in can only be joined, knocked on or left with the help of a
server that is: it gives us a template (`make_…`), and takes the event that we make (`send_…`).
A server whose template is for something else is passed over, and the next candidate is asked.

Spec: server-server-api#joining-rooms, server-server-api#knocking-rooms,
server-server-api#leaving-rooms-rejecting-invites
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from minihs.base.errors import Forbidden, MatrixError, NotFound
from minihs.protocol.canonical_json import INTEGER_MAX
from minihs.protocol.client_format import stripped_state
from minihs.protocol.identifiers import server_name_of
from minihs.protocol.membership import membership_of
from minihs.protocol.room_versions import ROOM_VERSIONS
from minihs.remote.transport import RemoteError
from minihs.services.rooms import commit
from minihs.services.rooms.candidates import through_any
from minihs.services.rooms.outsiders import read_room_state
from minihs.services.rooms.remote_joins import BadRoomError, commit_join, read_given_room
from minihs.services.rooms.templates import (
    BadTemplateError,
    RemoteChange,
    Template,
    build_in_place,
    countersigned,
    read_template,
)
from minihs.storage import membership as memberships

if TYPE_CHECKING:
    from minihs.protocol.identifiers import EventId, ServerName
    from minihs.services.context import Services
    from minihs.services.rooms.heads import RoomHead

logger = logging.getLogger(__name__)

LEAVE_KNOWN_AFTER_MS = 3_600_000


class Elsewhere(MatrixError):
    """A membership that can only be changed through servers that are in the room."""


async def is_for_others(services: Services, head: RoomHead, user_id: str, membership: str) -> bool:
    """Return whether users must ask other servers for a membership of theirs.

    So it is where nobody of this server is joined but others are, and for the answer to an invite
    (or the end of a knock) that is not part of the room as we know it.
    """
    if head.local_members and membership != "leave":
        return False
    row = await memberships.fetch_membership(services.db, head.room_id, user_id)
    waits = row is not None and row.membership in ("invite", "knock")
    if row is not None and waits and head.state.get("m.room.member", user_id) != row.event_id:
        return True
    return not head.local_members and await memberships.has_remote_members(
        services.db, head.room_id
    )


async def join(services: Services, change: RemoteChange) -> EventId:
    """Join a room through a server that is in it; return the join event's id.

    All who ask for it at the same time share one handshake.

    Raises:
        NotFound, Forbidden, IncompatibleRoomVersion, MatrixError: as the servers asked answered;
            502 where none could be reached.

    Spec: server-server-api#joining-rooms
    """

    async def handshake() -> EventId:
        async with services.join_marks.marked(change.room_id):
            return await through_any(services, change, _join_through)

    return await services.handshakes.run(f"join {change.room_id} {change.user_id}", handshake)


async def knock(services: Services, change: RemoteChange) -> EventId:
    """Knock on a room through a server that is in it; return the event's id.

    Raises:
        NotFound, Forbidden, IncompatibleRoomVersion, MatrixError: as `join`.

    Spec: server-server-api#knocking-rooms
    """
    return await services.handshakes.run(
        f"knock {change.room_id} {change.user_id}",
        lambda: through_any(services, change, _knock_through),
    )


async def leave(services: Services, change: RemoteChange) -> EventId:
    """Reject an invite or retract a knock; return the event's id.

    Where no server helps, the user is rid of it all the same: nobody else hears of it then.

    Raises:
        NotFound, Forbidden: the user has nothing to do with the room.

    Spec: server-server-api#leaving-rooms-rejecting-invites
    """
    row = await memberships.fetch_membership(services.db, change.room_id, change.user_id)
    present = None if row is None else await services.events.get(row.event_id)
    if row is None or present is None:
        raise NotFound("Unknown room.")
    if row.membership == "leave":
        return row.event_id
    if row.membership not in ("invite", "knock"):
        raise Forbidden("You are not in this room.")
    try:
        return await services.handshakes.run(
            f"leave {change.room_id} {change.user_id}",
            lambda: through_any(services, change, _leave_through),
        )
    except MatrixError as error:
        logger.info("%s leaves %s alone: %s", change.user_id, change.room_id, error.message)
    place = Template(
        present.event.room_version,
        min(present.event.depth + 1, INTEGER_MAX),
        [present.event_id],
        [present.event_id],
        None,
    )
    event = build_in_place(services, change, place)
    return (await commit.commit_outside_event(services, event)).event_id


async def _join_through(
    services: Services, change: RemoteChange, server: ServerName
) -> EventId | RemoteError:
    """Join through one server."""
    versions = list(ROOM_VERSIONS)
    made = await services.remote.make_join(server, change.room_id, change.user_id, versions)
    if isinstance(made, RemoteError):
        return made
    template = read_template(change, made)
    await _require_leave_is_known(services, change, template)
    event = build_in_place(services, change, template)
    answer = await services.remote.send_join(server, change.room_id, event.event_id, event.pdu)
    if isinstance(answer, RemoteError):
        return answer
    if template.vouching is not None:
        event = await countersigned(
            services, event, answer.get("event"), server_name_of(template.vouching)
        )
    state, chain = answer["state"], answer["auth_chain"]
    if not isinstance(state, list) or not isinstance(chain, list):
        raise BadRoomError("state or auth_chain are no lists")
    given = await read_given_room(services, template.room_version, event, state, chain)
    return await commit_join(services, given)


async def _require_leave_is_known(
    services: Services, change: RemoteChange, template: Template
) -> None:
    """Refuse the help of a server that has yet to hear that the user has left or been put out.

    It would take the join for one of somebody who is in, or still invited. As soon as it has heard
    of both, state resolution decides between them, and may undo the join. After a while we let it.

    Raises:
        BadTemplateError: the join would rest upon what has ended.
    """
    row = await memberships.fetch_membership(services.db, change.room_id, change.user_id)
    if row is None or row.membership not in ("leave", "ban"):
        return
    if row.event_id in template.auth_event_ids:
        return
    events = await services.events.get_many([row.event_id, *template.auth_event_ids])
    gone = events.pop(row.event_id, None)
    now_ms = services.clock.now_ms()
    if gone is None or gone.event.origin_server_ts < now_ms - LEAVE_KNOWN_AFTER_MS:
        return
    for stored in events.values():
        event = stored.event
        if event.key == ("m.room.member", change.user_id) and (
            membership_of(event) == "join" or event.event_id in gone.event.auth_event_ids
        ):
            raise BadTemplateError("the server has yet to hear that the user is no longer in")


async def _knock_through(
    services: Services, change: RemoteChange, server: ServerName
) -> EventId | RemoteError:
    """Knock through one server."""
    versions = [v.identifier for v in ROOM_VERSIONS.values() if v.knows_knocking]
    made = await services.remote.make_knock(server, change.room_id, change.user_id, versions)
    if isinstance(made, RemoteError):
        return made
    event = build_in_place(services, change, read_template(change, made))
    answer = await services.remote.send_knock(server, change.room_id, event.event_id, event.pdu)
    if isinstance(answer, RemoteError):
        return answer
    shown = read_room_state(answer.get("knock_room_state")) or []
    shown = [*shown, stripped_state(event)]
    return (await commit.commit_outside_event(services, event, shown)).event_id


async def _leave_through(
    services: Services, change: RemoteChange, server: ServerName
) -> EventId | RemoteError:
    """Leave through one server."""
    made = await services.remote.make_leave(server, change.room_id, change.user_id)
    if isinstance(made, RemoteError):
        return made
    event = build_in_place(services, change, read_template(change, made))
    answer = await services.remote.send_leave(server, change.room_id, event.event_id, event.pdu)
    if isinstance(answer, RemoteError):
        return answer
    return (await commit.commit_outside_event(services, event)).event_id
