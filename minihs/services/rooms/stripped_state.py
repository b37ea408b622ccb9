"""Stripped state: what somebody is shown of a room to which they are invited, or knock.

It is kept as it came. Where the invite is redacted since, by itself or with all that its sender
said (MSC4293), what that sender wrote is taken out of it as well: the reason, their name, their
picture.

Spec: client-server-api#stripped-state
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.protocol import canonical_json
from minihs.protocol.redaction import redact
from minihs.storage import stripped_states

if TYPE_CHECKING:
    from collections.abc import Collection

    from minihs.protocol.events import Event
    from minihs.services.context import Services

PAGE = 1_000


async def load_stripped(
    services: Services, user_id: str, room_ids: Collection[str]
) -> dict[str, list[object]]:
    """Return the stripped state that came with a user's invites and knocks, by room."""
    rows = await stripped_states.list_of_user(services.db, user_id, room_ids)
    members = await services.events.get_many([row.member_id for row in rows])
    found: dict[str, list[object]] = {}
    for row in rows:
        events = canonical_json.decode(row.json)
        member = members.get(row.member_id)
        if not isinstance(events, list):
            continue
        if member is not None and member.redacted_by is not None:
            events = _without(events, member.event)
        found[row.room_id] = events
    return found


def _without(stripped: list[object], member: Event) -> list[object]:
    """Return stripped state with no more of what a member event's sender wrote than is kept."""
    return [
        {**event, "content": redact(event, member.room_version)["content"]}
        if isinstance(event, dict) and event.get("sender") == member.sender
        else event
        for event in stripped
    ]


async def purge_stripped(services: Services, room_nid: int, sender: str) -> None:
    """Take out of the database what somebody wrote into the stripped state of a room.

    As far as invites are redacted or over: those of a later stay are not touched.
    MSC4293#proposal
    """
    sender_json = '"sender":' + canonical_json.encode(sender).decode()
    after = ""
    while rows := await stripped_states.list_by_sender(
        services.db, room_nid, sender_json, after, PAGE
    ):
        after = rows[-1].user_id
        members = await services.events.get_many([row.member_id for row in rows])
        for row in rows:
            member, events = members.get(row.member_id), canonical_json.decode(row.json)
            if row.is_over:
                await stripped_states.replace(services.db, row, None)
            elif member is not None and member.redacted_by is not None and isinstance(events, list):
                json = canonical_json.encode_any(_without(events, member.event)).decode()
                if json != row.json:
                    await stripped_states.replace(services.db, row, json)
