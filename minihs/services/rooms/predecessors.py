"""What a user keeps when they follow a room to its replacement.

Spec: client-server-api#room-upgrades ("When a user joins the new room, ...")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.protocol import canonical_json
from minihs.protocol.identifiers import parse_room_id
from minihs.protocol.push_rule_edits import copy_room_rules
from minihs.storage.account_data import fetch_account_data
from minihs.storage.stream_rows import AccountDataWrite

if TYPE_CHECKING:
    from minihs.protocol.events import Event
    from minihs.protocol.identifiers import RoomId, UserId
    from minihs.services.context import Services

PUSH_RULES, TAGS, DIRECT = "m.push_rules", "m.tag", "m.direct"


def predecessor_of(create: Event | None) -> str | None:
    """Return the room that a room replaces, by its create event."""
    match create.content.get("predecessor") if create is not None else None:
        case {"room_id": str(room_id)} if parse_room_id(room_id) is not None:
            return room_id
        case _:
            return None


async def follow_to_replacement(
    services: Services, user_id: UserId, old_room_id: str, room_id: RoomId
) -> None:
    """Copy what a user has set for a room to the room that replaces it.

    Their push rules about it, its tags, and its place among their direct chats. What the user has
    already set for the new room stays.
    """
    writes: list[AccountDataWrite] = []
    rules = await _read(services, user_id, "", PUSH_RULES)
    if rules is not None:
        changed = copy_room_rules(rules, old_room_id, room_id)
        if changed != rules:
            writes.append(_write(user_id, "", PUSH_RULES, changed))
    tags = await _read(services, user_id, old_room_id, TAGS)
    if tags is not None and await _read(services, user_id, room_id, TAGS) is None:
        writes.append(_write(user_id, room_id, TAGS, tags))
    direct = await _read(services, user_id, "", DIRECT)
    if direct is not None:
        followed = {
            other: [*rooms, room_id]
            for other, rooms in direct.items()
            if isinstance(rooms, list) and old_room_id in rooms and room_id not in rooms
        }
        if followed:
            writes.append(_write(user_id, "", DIRECT, direct | followed))
    if writes:
        await services.committer.commit_rows(writes)


async def _read(
    services: Services, user_id: str, room_id: str, data_type: str
) -> dict[str, object] | None:
    json = await fetch_account_data(services.db, user_id, room_id, data_type)
    value = None if json is None else canonical_json.decode(json)
    return value if isinstance(value, dict) else None


def _write(user_id: UserId, room_id: str, data_type: str, value: object) -> AccountDataWrite:
    return AccountDataWrite(user_id, room_id, data_type, canonical_json.encode(value).decode())
