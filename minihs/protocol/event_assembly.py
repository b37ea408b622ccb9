"""From a draft to an event: hashed, signed and named.

Every event that this server makes passes here, so it is kept short: three encodings, two hashes and
one signature. The bytes that are signed are the bytes that the reference hash covers.

Spec: server-server-api#adding-hashes-and-signatures-to-outgoing-events
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from minihs.protocol.canonical_json import encode, encode_strict
from minihs.protocol.event_format import check_sizes
from minihs.protocol.events import Event
from minihs.protocol.hashes import encode_base64, event_id_from_hash
from minihs.protocol.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minihs.protocol.identifiers import EventId, RoomId, ServerName, UserId
    from minihs.protocol.room_versions import RoomVersion
    from minihs.protocol.signatures import SigningKey


@dataclass(frozen=True, slots=True, kw_only=True)
class EventDraft:
    """What its sender wants to say; where in the graph it is said, `build_event` adds.

    `room_id` is None (or ignored) for the create event of a room whose ID is made from it (v12).
    `redacts` goes to where the room version wants it. `extra` are further top-level keys.
    """

    room_id: RoomId | None
    sender: UserId
    type: str
    content: Mapping[str, object]
    origin_server_ts: int
    state_key: str | None = None
    redacts: EventId | None = None
    extra: Mapping[str, object] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        """(type, state key), as for an event."""
        return (self.type, self.state_key or "")


def build_event(
    draft: EventDraft,
    *,
    room_version: RoomVersion,
    depth: int,
    prev_event_ids: Sequence[EventId],
    auth_event_ids: Sequence[EventId],
    server_name: ServerName,
    signing_key: SigningKey,
    event_id: EventId | None = None,
) -> Event:
    """Return the draft as an event at this place of the graph, signed by this server.

    `event_id` is only for room versions 1 and 2, where the server chooses it. A create event among
    `auth_event_ids` is left out where the room ID stands for it (v12).

    Raises:
        CanonicalJsonError: If the content has no Canonical JSON. We never sign such an event, also
            where others may (v1 to v5).
        EventTooLargeError: If the event is larger than allowed.
    """
    pdu = _unsigned_pdu(draft, room_version)
    pdu["depth"] = depth
    if room_version.event_id_source == "server":  # v1, v2
        if event_id is None:
            raise ValueError("events of this room version need an ID from their server")
        pdu["event_id"] = event_id
        pdu["prev_events"] = _references(prev_event_ids)
        pdu["auth_events"] = _references(auth_event_ids)
    else:
        pdu["prev_events"] = list(prev_event_ids)
        pdu["auth_events"] = list(auth_event_ids)
        if room_version.room_id_is_create_event_id and draft.room_id is not None:  # Since v12.
            implied = "$" + draft.room_id[1:]
            pdu["auth_events"] = [item for item in auth_event_ids if item != implied]

    pdu["hashes"] = {"sha256": encode_base64(hashlib.sha256(encode_strict(pdu)).digest())}
    signed = encode(redact(pdu, room_version))
    pdu["signatures"] = {server_name: {signing_key.key_id: signing_key.sign(signed)}}
    if event_id is None or room_version.event_id_source != "server":
        reference_hash = encode_base64(hashlib.sha256(signed).digest())
        event_id = event_id_from_hash(reference_hash, room_version)

    event = Event.from_pdu(pdu, room_version, event_id)
    event.json = encode(pdu)
    check_sizes(pdu, room_version, len(event.json))
    return event


def _unsigned_pdu(draft: EventDraft, room_version: RoomVersion) -> dict[str, object]:
    content = dict(draft.content)
    pdu: dict[str, object] = {
        **draft.extra,
        "type": draft.type,
        "sender": draft.sender,
        "content": content,
        "origin_server_ts": draft.origin_server_ts,
    }
    if draft.state_key is not None:
        pdu["state_key"] = draft.state_key
    becomes_room_id = room_version.room_id_is_create_event_id and draft.type == "m.room.create"
    if not becomes_room_id:
        pdu["room_id"] = draft.room_id
    if draft.redacts is not None:
        (content if room_version.redacts_is_in_content else pdu)["redacts"] = draft.redacts
    return pdu


def _references(event_ids: Sequence[EventId]) -> list[list[object]]:
    """Return references as v1 and v2 write them, without the hashes: nobody checks those."""
    return [[event_id, {}] for event_id in event_ids]
