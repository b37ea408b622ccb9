"""Which servers a room listens to: its `m.room.server_acl`, asked before anything else.

An ACL is compiled once and kept for as long as its event is in force.

Spec: server-server-api#server-access-control-lists-acls
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.base.errors import Forbidden
from minihs.protocol.server_acl import compile_server_acl
from minihs.protocol.state_keys import SERVER_ACL
from minihs.storage import state_reads
from minihs.storage.rooms import list_current_states

if TYPE_CHECKING:
    from minihs.protocol.identifiers import EventId
    from minihs.services.context import Services


async def is_allowed(services: Services, room_id: str, server_name: str) -> bool:
    """Return whether a room listens to a server. A room that we do not know has no rules.

    Spec: client-server-api#server-access-control-lists-acls-for-rooms
    """
    state_id = (await list_current_states(services.db, [room_id])).get(room_id)
    if state_id is None:
        return True
    entries = await state_reads.load_entries(services.states, services.db, [state_id], [SERVER_ACL])
    return await is_allowed_by(services, entries[state_id].get(SERVER_ACL), server_name)


async def is_allowed_by(services: Services, event_id: EventId | None, server_name: str) -> bool:
    """Return whether an ACL, given by its event, allows a server; none allows everybody."""
    stored = None if event_id is None else await services.events.get(event_id)
    if stored is None:
        return True
    acl = services.server_acls.get(stored.event_id)
    if acl is None:
        acl = compile_server_acl(stored.event.content)
        services.server_acls.put(stored.event_id, acl)
    return acl.allows(server_name)


async def require_allowed(services: Services, room_id: str, server_name: str) -> None:
    """Refuse a server that a room does not listen to.

    Raises:
        Forbidden: so it is.
    """
    if not await is_allowed(services, room_id, server_name):
        raise Forbidden(f"{server_name} is denied access to the room by its server ACL.")
