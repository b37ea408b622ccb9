"""The redaction algorithm: what is left of an event when its content must go.

What stays is what the protocol itself needs: the keys that place the event in the room's graph,
and the content that authorization and state resolution read. Signatures are made over the redacted
form, so they survive a redaction. Which keys stay is a fact of the room version.

Spec: rooms/v11#redactions
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.protocol.room_versions import EVERY_KEY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minihs.protocol.room_versions import RoomVersion


def redact(pdu: Mapping[str, object], room_version: RoomVersion) -> dict[str, object]:
    """Return the PDU stripped to what its room version keeps; the argument is left alone.

    The result shares values with the argument. It always has a `content`, and never `unsigned`.
    Redacting twice changes nothing more.
    """
    kept_keys = room_version.kept_keys
    redacted = {key: value for key, value in pdu.items() if key in kept_keys}
    redacted["content"] = _redact_content(pdu, room_version)
    if room_version.room_id_is_create_event_id and pdu.get("type") == "m.room.create":
        redacted.pop("room_id", None)  # Since v12 a create event names no room: it becomes one.
    return redacted


def _redact_content(pdu: Mapping[str, object], room_version: RoomVersion) -> dict[str, object]:
    event_type, content = pdu.get("type"), pdu.get("content")
    if not isinstance(event_type, str) or not isinstance(content, dict):
        return {}
    kept_keys = room_version.kept_content.get(event_type)
    if kept_keys is None:
        return {}
    if EVERY_KEY in kept_keys:
        return content
    kept = {key: value for key, value in content.items() if key in kept_keys}
    if event_type == "m.room.member" and room_version.keeps_signed_third_party_invite:
        # Since v11: the proof that a third-party invite was accepted is part of what authorizes the
        # membership; the invited person's name beside it is not. Without a proof Synapse, and so
        # every hash in existing rooms, keeps an empty object.
        invite = content.get("third_party_invite")
        if isinstance(invite, dict):
            kept["third_party_invite"] = {"signed": invite["signed"]} if "signed" in invite else {}
    return kept
