"""Users of other servers, whose events are put into a room without asking any server.

What is committed is what would be after a transaction or a /send_join: built upon the room as it
is, signed by the sender's server, allowed by the rules.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from minihs.protocol.event_assembly import EventDraft
from minihs.protocol.events import Event
from minihs.protocol.identifiers import RoomId, ServerName, UserId, server_name_of
from minihs.protocol.signatures import with_signatures_of
from minihs.services.rooms import commit
from minihs.services.rooms.commit import Plan
from minihs.services.rooms.heads import building
from minihs.services.rooms.send import build_upon
from tests.helpers.rooms import signing_key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minihs.services.context import Services


async def put_event(
    services: Services,
    room_id: str,
    sender: str,
    event_type: str,
    content: Mapping[str, object],
    *,
    state_key: str | None = None,
    resident: bool = False,
) -> str:
    """Put an event of a remote user into a room; return its id.

    `resident`: this server took it in from outside, and signed it, too.
    """
    server = ServerName(server_name_of(sender))
    there = replace(services, server_name=server, signing_key=signing_key(server))
    draft = EventDraft(
        room_id=RoomId(room_id),
        sender=UserId(sender),
        type=event_type,
        content=dict(content),
        origin_server_ts=services.clock.now_ms(),
        state_key=state_key,
    )
    async with building(services, RoomId(room_id)) as head:
        assert head is not None
        planned = await build_upon(there, head, draft)
        if resident:
            ours = await build_upon(services, head, draft)
            pdu = with_signatures_of(planned.event.pdu, ours.event.pdu, services.server_name)
            planned.event = Event.from_pdu(pdu, head.room_version, planned.event.event_id)
        plan = Plan(head)
        stored = await commit.add_event(services, plan, planned)
        durable = plan.submit(services)
    await durable
    return stored.event_id


async def put_member(
    services: Services,
    room_id: str,
    user_id: str,
    membership: str = "join",
    *,
    resident: bool = False,
    **content: object,
) -> str:
    """Let a remote user join, leave or knock; return the event's id."""
    return await put_event(
        services, room_id, user_id, "m.room.member", {"membership": membership, **content},
        state_key=user_id, resident=resident,
    )  # fmt: skip
