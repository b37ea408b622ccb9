"""Which server tells the others in a room about an event.

Usually it is the sender's. But somebody who joins, leaves or knocks from outside does not know
which servers are in the room: the resident server that took the event in, and signed it beside the
sender's server, passes it on.

Spec: server-server-api#joining-rooms, server-server-api#knocking-rooms
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from minihs.protocol.identifiers import server_name_of
from minihs.protocol.membership import membership_of

if TYPE_CHECKING:
    from minihs.protocol.events import Event
    from minihs.protocol.identifiers import ServerName

_FROM_OUTSIDE: Final = ("join", "leave", "knock")


def passes_on(server_name: ServerName, event: Event) -> bool:
    """Return whether a server that has an event is the one to tell the others about it.

    Spec: server-server-api#joining-rooms
    """
    if server_name_of(event.sender) == server_name:
        return True
    if event.type != "m.room.member" or event.state_key != event.sender:
        return False
    signatures = event.pdu.get("signatures")
    return (
        membership_of(event) in _FROM_OUTSIDE
        and isinstance(signatures, dict)
        and server_name in signatures
    )
