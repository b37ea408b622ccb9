"""User IDs, room IDs, event IDs, room aliases and server names: their types and their grammar.

Identifiers are plain strings with a name for the type checker. What comes from outside goes through
a `parse_` function once, which returns None for what is not an identifier; inside the server an
identifier is trusted. Users of other servers may have *historical* user IDs whose localparts use
nearly any character; only users made here must follow the strict grammar.

Spec: appendices#identifier-grammar
"""

from __future__ import annotations

import ipaddress
import re
from typing import NewType

UserId = NewType("UserId", str)
RoomId = NewType("RoomId", str)
EventId = NewType("EventId", str)
RoomAlias = NewType("RoomAlias", str)
ServerName = NewType("ServerName", str)

StateKey = tuple[str, str]
"""The key of an entry of the room state: (event type, state key)."""

IDENTIFIER_BYTES_MAX = 255
"""The longest identifier in bytes, its sigil and server name included."""

_LOCALPART = re.compile(r"[a-z0-9._=\-/+]+")
_SERVER_NAME = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([0-9A-Za-z.\-]{1,255}))(?::[0-9]{1,5})?")
_DOTTED_QUAD = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}")
_OPAQUE = re.compile(r"[A-Za-z0-9\-_+/]+")


def parse_user_id(text: object) -> UserId | None:
    """Return the user ID, or None if it is not one. Historical localparts are accepted.

    Spec: appendices#historical-user-ids
    """
    return UserId(text) if isinstance(text, str) and _has_server_name(text, "@") else None


def parse_room_alias(text: object) -> RoomAlias | None:
    """Return the room alias, or None if it is not one. Spec: appendices#room-aliases."""
    return RoomAlias(text) if isinstance(text, str) and _has_server_name(text, "#") else None


def parse_room_id(text: object) -> RoomId | None:
    """Return the room ID, or None if it is not one.

    Both forms pass: `!opaque:server.name`, and since room version 12 `!` and the hash of the create
    event. Spec: appendices#room-ids
    """
    return RoomId(text) if isinstance(text, str) and _is_opaque_or_scoped(text, "!") else None


def parse_event_id(text: object) -> EventId | None:
    """Return the event ID, or None if it is not one.

    Room versions 1 and 2 have `$opaque:server.name`, later ones `$` and a hash.
    Spec: appendices#event-ids
    """
    return EventId(text) if isinstance(text, str) and _is_opaque_or_scoped(text, "$") else None


def parse_server_name(text: object) -> ServerName | None:
    """Return the server name, or None if it is not one. Spec: appendices#server-name."""
    if not isinstance(text, str):
        return None
    match = _SERVER_NAME.fullmatch(text)
    if match is None:
        return None
    ipv6, host = match.groups()
    try:
        if ipv6 is not None:
            ipaddress.IPv6Address(ipv6)
        elif _DOTTED_QUAD.fullmatch(host):
            ipaddress.IPv4Address(host)
    except ipaddress.AddressValueError:
        return None
    return ServerName(text)


def server_name_of(identifier: str) -> ServerName:
    """Return what follows the first `:` of an identifier; empty if there is none."""
    return ServerName(identifier.partition(":")[2])


def localpart_of(user_id: str) -> str:
    """Return the localpart of a user ID."""
    return user_id[1:].partition(":")[0]


def is_valid_localpart(text: str) -> bool:
    """Return whether a new user may have this localpart. Spec: appendices#user-identifiers."""
    return _LOCALPART.fullmatch(text) is not None


def _has_server_name(text: str, sigil: str) -> bool:
    localpart, colon, server_name = text[1:].partition(":")
    return (
        text[:1] == sigil
        and colon == ":"
        and _fits(text)
        and "\0" not in localpart
        and parse_server_name(server_name) is not None
    )


def _is_opaque_or_scoped(text: str, sigil: str) -> bool:
    if ":" in text:
        return _has_server_name(text, sigil)
    return text[:1] == sigil and _fits(text) and _OPAQUE.fullmatch(text, 1) is not None


def _fits(text: str) -> bool:
    try:
        return len(text.encode()) <= IDENTIFIER_BYTES_MAX
    except UnicodeEncodeError:  # A lone surrogate: no Unicode text, so no identifier.
        return False
