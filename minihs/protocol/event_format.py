"""The format of a PDU: which keys it must have, of which types, and how large it may be.

A PDU that fails here is dropped on receipt, or refused to the client that wants to send it; no rule
of authorization is asked. Everything is checked that the rest of the package relies on, and nothing
more: content is free as long as it is Canonical JSON (since v6).

Spec: server-server-api#checks-performed-on-receipt-of-a-pdu ("is a valid event"),
client-server-api#size-limits, rooms/v1#event-format … rooms/v12#event-format
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.protocol.canonical_json import INTEGER_MAX, CanonicalJsonError, check
from minihs.protocol.hashes import encode_event
from minihs.protocol.identifiers import parse_event_id, parse_room_id, parse_user_id
from minihs.protocol.room_versions import (
    AUTH_EVENTS_MAX,
    FIELD_LENGTH_MAX,
    PDU_BYTES_MAX,
    PREV_EVENTS_MAX,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minihs.protocol.room_versions import RoomVersion


class EventFormatError(ValueError):
    """The PDU is not a valid event of its room version."""


class EventTooLargeError(EventFormatError):
    """The event, or one of its fields, is longer than allowed."""


def check_event_format(pdu: Mapping[str, object], room_version: RoomVersion) -> None:
    """Refuse a PDU that is not a valid event of the room version.

    Raises:
        EventFormatError: With a sentence that says why; `EventTooLargeError` for sizes.
    """
    _check_json(pdu, room_version)
    _check_identifiers(pdu, room_version)
    for key, kind in (("type", str), ("content", dict), ("hashes", dict), ("signatures", dict)):
        if not isinstance(pdu.get(key), kind):
            raise EventFormatError(f"{key} is missing or of the wrong type")
    if "state_key" in pdu and not isinstance(pdu["state_key"], str):
        raise EventFormatError("state_key is not a string")
    if "unsigned" in pdu and not isinstance(pdu["unsigned"], dict):
        raise EventFormatError("unsigned is not an object")
    for key in ("origin_server_ts", "depth"):
        number = pdu.get(key)
        if not isinstance(number, int) or isinstance(number, bool):
            raise EventFormatError(f"{key} is missing or not an integer")
    depth = pdu["depth"]
    if not isinstance(depth, int) or not 0 <= depth <= INTEGER_MAX:
        raise EventFormatError("depth is out of range")
    _check_references(pdu, "prev_events", PREV_EVENTS_MAX, room_version)
    _check_references(pdu, "auth_events", AUTH_EVENTS_MAX, room_version)
    check_sizes(pdu, room_version, None)


def check_sizes(
    pdu: Mapping[str, object], room_version: RoomVersion, encoded_bytes: int | None
) -> None:
    """Refuse an event that is too large. `encoded_bytes`: the length of its JSON, if known.

    Raises:
        EventTooLargeError: If so.

    Spec: client-server-api#size-limits
    """
    for key in ("sender", "room_id", "state_key", "type", "event_id"):
        text = pdu.get(key)
        # At most four bytes are a code point: short text needs no encoding to be measured.
        if isinstance(text, str) and len(text) * 4 > FIELD_LENGTH_MAX:
            length = len(text.encode()) if room_version.measures_fields_in_bytes else len(text)
            if length > FIELD_LENGTH_MAX:
                raise EventTooLargeError(f"{key} is longer than {FIELD_LENGTH_MAX}")
    if encoded_bytes is None:
        signed = {key: value for key, value in pdu.items() if key != "unsigned"}
        encoded_bytes = len(encode_event(signed, room_version))
    if encoded_bytes > PDU_BYTES_MAX:
        raise EventTooLargeError(f"the event is larger than {PDU_BYTES_MAX} bytes")


def _check_json(pdu: Mapping[str, object], room_version: RoomVersion) -> None:
    try:
        if room_version.enforces_canonical_json:  # Since v6. Spec: rooms/v6#canonical-json
            check(pdu)
        else:
            encode_event(pdu, room_version)
    except CanonicalJsonError as error:
        raise EventFormatError(f"not Canonical JSON: {error}") from error


def _check_identifiers(pdu: Mapping[str, object], room_version: RoomVersion) -> None:
    if parse_user_id(pdu.get("sender")) is None:
        raise EventFormatError("sender is missing or not a user ID")
    # Since v12 a create event has no room ID: it becomes one. Spec: rooms/v12#event-format
    becomes_room_id = room_version.room_id_is_create_event_id and pdu.get("type") == "m.room.create"
    if not becomes_room_id and parse_room_id(pdu.get("room_id")) is None:
        raise EventFormatError("room_id is missing or not a room ID")
    if room_version.event_id_source == "server" and parse_event_id(pdu.get("event_id")) is None:
        raise EventFormatError("event_id is missing or not an event ID")


def _check_references(
    pdu: Mapping[str, object], key: str, count_max: int, room_version: RoomVersion
) -> None:
    references = pdu.get(key)
    if not isinstance(references, list):
        raise EventFormatError(f"{key} is missing or not a list")
    if len(references) > count_max:
        raise EventFormatError(f"{key} has more than {count_max} entries")
    for reference in references:
        match reference:
            case str() if room_version.event_id_source != "server":
                pass
            case [str(), dict()] if room_version.event_id_source == "server":  # v1, v2
                pass
            case _:
                raise EventFormatError(f"{key} holds something else than references to events")
