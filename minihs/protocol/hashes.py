"""The two hashes of an event, and its event ID.

The *content hash* covers the whole event and is written into it, so that a receiver notices changed
content. The *reference hash* covers the redacted event, content hash included; it names the event
since room version 3, and stays the same when the event is redacted.

Spec: server-server-api#calculating-the-content-hash-for-an-event,
server-server-api#calculating-the-reference-hash-for-an-event
"""

from __future__ import annotations

import binascii
import hashlib
from typing import TYPE_CHECKING

from minihs.protocol.canonical_json import encode, encode_lenient
from minihs.protocol.identifiers import EventId
from minihs.protocol.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minihs.protocol.room_versions import RoomVersion

_NOT_CONTENT_HASHED = frozenset({"unsigned", "signatures", "hashes"})
_NOT_SIGNED = frozenset({"unsigned", "signatures"})


def content_hash(pdu: Mapping[str, object], room_version: RoomVersion) -> str:
    """Return the SHA-256 that belongs into `hashes.sha256`, in unpadded base64.

    Raises:
        CanonicalJsonError: If the PDU cannot be written as JSON.
    """
    hashed = {key: value for key, value in pdu.items() if key not in _NOT_CONTENT_HASHED}
    return encode_base64(hashlib.sha256(encode_event(hashed, room_version)).digest())


def has_right_content_hash(pdu: Mapping[str, object], room_version: RoomVersion) -> bool:
    """Return whether the content hash that the PDU claims is its own.

    An event for which this is false must be redacted before it is used.
    Spec: server-server-api#validating-hashes-and-signatures-on-received-events
    """
    match pdu:
        case {"hashes": {"sha256": str(claimed)}}:
            wanted = content_hash(pdu, room_version)
            return claimed == wanted or decode_base64(claimed) == decode_base64(wanted)
        case _:
            return False


def signed_bytes(pdu: Mapping[str, object], room_version: RoomVersion) -> bytes:
    """Return the bytes that servers sign, and that the reference hash covers: the redacted event.

    Spec: server-server-api#signing-events
    """
    redacted = redact(pdu, room_version)
    for key in _NOT_SIGNED:
        redacted.pop(key, None)
    return encode_event(redacted, room_version)


def reference_hash(pdu: Mapping[str, object], room_version: RoomVersion) -> str:
    """Return the reference hash in unpadded (standard) base64."""
    return encode_base64(hashlib.sha256(signed_bytes(pdu, room_version)).digest())


def event_id_of(pdu: Mapping[str, object], room_version: RoomVersion) -> EventId:
    """Return the event ID: of the PDU's own choice (v1, v2), or its reference hash.

    Empty when a PDU of the first kind has none. Spec: rooms/v4#event-ids
    """
    if room_version.event_id_source == "server":
        claimed = pdu.get("event_id")
        return EventId(claimed if isinstance(claimed, str) else "")
    return event_id_from_hash(reference_hash(pdu, room_version), room_version)


def event_id_from_hash(base64_hash: str, room_version: RoomVersion) -> EventId:
    """Return the event ID that a reference hash makes."""
    if room_version.event_id_source == "hash-urlsafe":  # Since v4.
        return EventId("$" + base64_hash.replace("+", "-").replace("/", "_"))
    return EventId("$" + base64_hash)  # v3


def encode_event(pdu: Mapping[str, object], room_version: RoomVersion) -> bytes:
    """Return the JSON of an event as its room version hashes it."""
    # Until v5 events may hold numbers that Canonical JSON has no form for.
    return (encode if room_version.enforces_canonical_json else encode_lenient)(pdu)


def encode_base64(data: bytes) -> str:
    """Return the unpadded base64 of the bytes. Spec: appendices#unpadded-base64."""
    return binascii.b2a_base64(data, newline=False).rstrip(b"=").decode("ascii")


def decode_base64(text: str) -> bytes | None:
    """Return the bytes of unpadded or padded base64 of either alphabet, or None if it is not that.

    Spec: appendices#unpadded-base64
    """
    standard = text.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return binascii.a2b_base64(standard + "=" * (-len(standard) % 4), strict_mode=True)
    except ValueError:  # binascii.Error, or text outside ASCII.
        return None
