"""The authorization rules against a state of the room, in the order of the room version pages.

The state is the one before the event, the current state (for soft failure), the one that state
resolution has built so far, or just the auth events. Rules that only some versions have ask for
a named fact of the room version.

Spec: rooms/v1#authorisation-rules … rooms/v12#authorisation-rules
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.protocol.event_auth.errors import rejection
from minihs.protocol.event_auth.membership_rules import check_membership
from minihs.protocol.event_auth.room_state import AuthState
from minihs.protocol.identifiers import parse_user_id, server_name_of
from minihs.protocol.power_levels import read_level

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minihs.protocol.events import Event
    from minihs.protocol.identifiers import StateKey

_NAMED_LEVELS = (
    "users_default", "events_default", "state_default", "ban", "redact", "kick", "invite",
)  # fmt: skip


def check_state_dependent(event: Event, state: Mapping[StateKey, Event]) -> None:
    """Refuse an event that this state of the room does not allow.

    `state` may be the whole state or just its entries under `select_auth_keys`, and since v12 the
    create event, which is looked for in it in every room version.

    Raises:
        EventAuthError: With the rule that rejects it.
    """
    if event.type == "m.room.create":
        return  # Its rules need no state: see state_independent.
    auth = AuthState(state, event.room_version)
    _check_federation(event, auth)

    if event.type == "m.room.aliases" and event.room_version.aliases_belong_to_servers:
        _check_aliases(event)  # v1–v5
        return
    if event.type == "m.room.member":
        check_membership(event, auth)
        return
    if auth.membership(event.sender) != "join":
        raise rejection(event, "sender.not-joined", f"{event.sender} is not in the room")

    sender_level = auth.level(event.sender)
    if event.type == "m.room.third_party_invite":
        if sender_level < auth.power_levels.invite:
            raise rejection(event, "third_party_invite.level", "the sender may not invite")
        return
    required_level = auth.power_levels.event_level(event.type, is_state=event.is_state)
    if sender_level < required_level:
        raise rejection(
            event,
            "event.level",
            f"{event.sender} has power {sender_level}, {event.type} takes {required_level}",
        )
    state_key = event.state_key or ""
    if state_key.startswith("@") and state_key != event.sender:
        raise rejection(event, "state_key.user", "the state key is another user")
    if event.type == "m.room.power_levels":
        _check_power_levels(event, auth)
    if event.type == "m.room.redaction" and event.room_version.redactions_are_authorized:
        _check_redaction(event, auth)  # v1, v2


def _check_federation(event: Event, auth: AuthState) -> None:
    if auth.create is None:
        raise rejection(event, "room.create", "the room has no create event")
    if not auth.lets_in(event.sender):
        raise rejection(event, "room.federate", "the room is closed to other servers")


def _check_aliases(event: Event) -> None:
    # With an empty state key, too, the event has none of the sender's server.
    if event.state_key != server_name_of(event.sender):
        raise rejection(event, "aliases.state_key", "the state key is not the sender's server")


def _check_redaction(event: Event, auth: AuthState) -> None:
    if auth.level(event.sender) >= auth.power_levels.redact:
        return
    # Without a target to compare there is nothing to protect.
    if event.redacts is None or server_name_of(event.redacts) == server_name_of(event.event_id):
        return
    raise rejection(event, "redaction.level", "the sender may not redact events of other servers")


def _check_power_levels(event: Event, auth: AuthState) -> None:
    _check_power_levels_form(event)
    if event.room_version.creators_are_privileged:  # Since v12.
        users = event.content.get("users")
        if isinstance(users, dict) and not auth.power_levels.creators.isdisjoint(users):
            raise rejection(event, "power_levels.creators", "creators cannot be given a level")

    # The text compares with the room's power levels whatever the state key is. Synapse compares
    # with the event of the same state key, which auth events never hold unless it is empty; rooms
    # only work if servers agree, so we do the same.
    if auth.power_levels_event is not None and event.state_key == "":
        _check_level_changes(event, auth)


def _check_power_levels_form(event: Event) -> None:
    content, room_version = event.content, event.room_version
    if room_version.requires_integer_levels:  # Since v10.
        for name in _NAMED_LEVELS:
            if name in content and type(content[name]) is not int:
                raise rejection(event, "power_levels.integers", f"{name} is not an integer")
        for name in ("events", "notifications", "users"):
            section = content.get(name, {})
            if not isinstance(section, dict) or any(type(n) is not int for n in section.values()):
                raise rejection(event, "power_levels.integers", f"{name} is not all integers")
    users = content.get("users", {})
    if not isinstance(users, dict):
        raise rejection(event, "power_levels.users", "users is not an object")
    for user_id, level in users.items():
        if parse_user_id(user_id) is None or read_level(level, room_version) is None:
            raise rejection(event, "power_levels.users", f"the level of {user_id!r} is not valid")


def _check_level_changes(event: Event, auth: AuthState) -> None:
    """Nobody may take or give power that they do not have themselves."""
    sender_level = auth.level(event.sender)
    for place, name, current, new in _level_changes(event, auth):
        if place == "users" and name != event.sender and current == sender_level:
            raise rejection(event, "power_levels.equal", f"{name} has as much power as the sender")
        for level in (current, new):
            if level is not None and level > sender_level:
                raise rejection(
                    event,
                    "power_levels.change",
                    f"{place} {name!r}: {level} is above the sender's power {sender_level}",
                )


def _level_changes(event: Event, auth: AuthState) -> list[tuple[str, str, int | None, int | None]]:
    """Return every level that is added, changed or removed: (place, name, current, new)."""
    current_levels, room_version = auth.power_levels, event.room_version
    sections = ["users", "events"]
    if room_version.limits_notification_levels:  # Since v6.
        sections.append("notifications")
    compared = [
        ("content", name, current_levels.content.get(name), event.content.get(name))
        for name in _NAMED_LEVELS
    ]
    for place in sections:
        current, section = current_levels.section(place), event.content.get(place)
        new = section if isinstance(section, dict) else {}
        compared += [
            (place, name, current.get(name), new.get(name))
            for name in dict.fromkeys((*current, *new))
        ]
    changes = []
    for place, name, current_value, new_value in compared:
        was, becomes = read_level(current_value, room_version), read_level(new_value, room_version)
        if was != becomes:
            changes.append((place, name, was, becomes))
    return changes
