"""Which entries of the room state an event's `auth_events` must name.

Spec: server-server-api#auth-events-selection
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.protocol.state_keys import CREATE, JOIN_RULES, POWER_LEVELS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minihs.protocol.events import Event
    from minihs.protocol.identifiers import StateKey
    from minihs.protocol.room_versions import RoomVersion


def select_auth_keys(
    room_version: RoomVersion,
    sender: str,
    event_type: str,
    state_key: str | None,
    content: Mapping[str, object],
) -> list[StateKey]:
    """Return the keys of the state before the event that its auth events are taken from.

    Each key once. Entries that the state does not have are left out of the auth events.
    """
    if event_type == "m.room.create":
        return []
    keys = [POWER_LEVELS, ("m.room.member", sender)]
    # Until v11. Since v12 the room ID says which create event it is, so none is named.
    if not room_version.room_id_is_create_event_id:
        keys.insert(0, CREATE)
    if event_type == "m.room.member":
        if state_key is not None and state_key != sender:
            keys.append(("m.room.member", state_key))
        keys += _member_keys(room_version, content)
    return list(dict.fromkeys(keys))


def select_auth_keys_of(event: Event) -> list[StateKey]:
    """Return the same for an event that exists."""
    return select_auth_keys(
        event.room_version, event.sender, event.type, event.state_key, event.content
    )


def _member_keys(room_version: RoomVersion, content: Mapping[str, object]) -> list[StateKey]:
    """Return what a membership needs beside the memberships of its sender and its target."""
    keys: list[StateKey] = []
    membership = content.get("membership")
    if membership in ("join", "invite", "knock"):
        keys.append(JOIN_RULES)
    if membership == "invite":
        match content:
            case {"third_party_invite": {"signed": {"token": str(token)}}}:
                keys.append(("m.room.third_party_invite", token))
            case _:
                pass
    if membership == "join" and room_version.knows_restricted_joins:  # Since v8.
        authorising_user = content.get("join_authorised_via_users_server")
        if isinstance(authorising_user, str):
            keys.append(("m.room.member", authorising_user))
    return keys
