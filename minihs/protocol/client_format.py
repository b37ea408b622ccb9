"""From a PDU to what clients see: the client event, as bytes.

The same event is sent to every member of a room, and differs between them only in `unsigned` (a
transaction ID, an age, the reader's membership). So an event is serialised once, into a *head*
that ends just before the closing brace; a copy for one reader is the head, that reader's
`unsigned` members, and a brace. Nothing is parsed or serialised again.

What is written is `content`, `event_id`, `origin_server_ts`, `sender` and `type`; `state_key`
for state; `redacts` for redactions; the stickiness of a sticky event; `room_id` where the
surrounding answer does not already name the room. Everything else of a PDU (hashes, signatures,
edges, the sender's own `unsigned`) stays between servers. A redacted event is made from its
redacted PDU and needs nothing special here.

Spec: client-server-api#room-event-format
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.protocol import unstable
from minihs.protocol.canonical_json import encode, encode_any, is_shallow

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from minihs.protocol.events import Event

STRIPPED_DEPTH_MAX = 100  # Ours. An event itself may be nested as deep as JSON is written.


def client_event(event: Event, *, with_room_id: bool) -> dict[str, object]:
    """Return the client event without `unsigned`, as a JSON object.

    A redaction names its target in both places, whatever its room version: clients old and new
    find it.

    Spec: client-server-api#room-event-format, rooms/v11#event-format-1
    MSC4354#proposal
    """
    content: dict[str, object] = event.content
    json: dict[str, object] = {
        "content": content,
        "event_id": event.event_id,
        "origin_server_ts": event.origin_server_ts,
        "sender": event.sender,
        "type": event.type,
    }
    if event.state_key is not None:
        json["state_key"] = event.state_key
    if with_room_id:
        json["room_id"] = event.room_id
    if event.type == "m.room.redaction" and event.redacts is not None:
        json["redacts"] = event.redacts
        if "redacts" not in content:
            json["content"] = {**content, "redacts": event.redacts}
    pdu = event.pdu
    for spelling in unstable.STICKY.spellings:
        if spelling in pdu:
            json[spelling] = pdu[spelling]
    return json


def client_event_head(event: Event) -> bytes:
    """Return the JSON of the client event up to, but without, its closing brace; no room ID.

    Give it to `finish`, or to `add_room_id` before.
    """
    return encode_any(client_event(event, with_room_id=False))[:-1]


def add_room_id(head: bytes, room_id: str) -> bytes:
    """Return a head without a room ID, with it."""
    return b'%b,"room_id":%b' % (head, encode(room_id))


def finish(head: bytes, unsigned_parts: bytes = b"") -> bytes:
    """Return a whole client event: a head, and the members of `unsigned`, if any.

    `unsigned_parts` is what stands between the braces of `unsigned`, for instance
    `"age":12,"transaction_id":"t1"`; see `unsigned_parts`.
    """
    if not unsigned_parts:
        return head + b"}"
    return b'%b,"unsigned":{%b}}' % (head, unsigned_parts)


def unsigned_part(name: str, value: object) -> bytes:
    """Return one member of `unsigned`: `"name":value`. Bytes are taken as JSON already made."""
    return b"%b:%b" % (encode(name), value if isinstance(value, bytes) else encode_any(value))


def unsigned_parts(members: Mapping[str, object]) -> bytes:
    """Return the members of `unsigned`, for `finish`. Bytes are taken as JSON already made."""
    return b",".join(unsigned_part(name, value) for name, value in members.items())


def join_parts(parts: Iterable[bytes]) -> bytes:
    """Return several results of `unsigned_part` as one; empty ones are left out."""
    return b",".join(filter(None, parts))


def stripped_state(event: Event) -> dict[str, object]:
    """Return the stripped form of a state event: content, sender, state_key and type.

    Spec: client-server-api#stripped-state
    """
    return strip_state(event.pdu) or {}


def strip_state(json: object) -> dict[str, object] | None:
    """Return the stripped form of a state event; None when it is no state event.

    `json` is a PDU, or what another server gave us as state of its room: that may be a whole PDU
    or stripped already. The create event keeps its `origin_server_ts`, as a sign that the whole
    event was at hand and not only its stripped form. Of the content, what is nested too deeply is
    left out: it stands further down in what clients are told than in its event.

    Spec: client-server-api#stripped-state
    MSC4311#proposal
    """
    match json:
        case {
            "content": dict(content),
            "sender": str(sender),
            "state_key": str(state_key),
            "type": str(event_type),
            **others,
        }:
            stripped: dict[str, object] = {
                "content": {k: v for k, v in content.items() if is_shallow(v, STRIPPED_DEPTH_MAX)},
                "sender": sender,
                "state_key": state_key,
                "type": event_type,
            }
            if event_type == "m.room.create" and "origin_server_ts" in others:
                stripped["origin_server_ts"] = others["origin_server_ts"]
            return stripped
        case _:
            return None
