"""Events: a PDU, its ID, and lenient ways to read it.

An event is what its JSON says, no more: unknown keys and signatures must survive, and a server must
not refuse what the specification accepts. So an `Event` keeps the JSON and reads what the protocol
needs from it, without ever failing: a value of the wrong type reads like an absent one. Whether the
event is well formed is the question of `event_format`.

Reading is put off until the first attribute is asked for. An event that only passes through, from
the database to a client or another server, is never parsed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from minihs.protocol.canonical_json import decode, decode_lenient
from minihs.protocol.hashes import encode_event, event_id_of
from minihs.protocol.identifiers import EventId, RoomId, StateKey, UserId

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minihs.protocol.room_versions import RoomVersion


class Event:
    """One event of a room. Treat it, and everything reachable from it, as immutable.

    Made by `from_pdu` (its ID is computed) or by `from_json` (trusted text out of our database).
    Two events are equal when their IDs are.
    """

    __slots__ = (
        "auth_event_ids", "content", "depth", "event_id", "is_state", "json", "key",
        "origin_server_ts", "pdu", "prev_event_ids", "redacts", "room_id", "room_version",
        "sender", "state_key", "type",
    )  # fmt: skip

    event_id: EventId
    room_version: RoomVersion
    json: bytes
    """The JSON text of the whole PDU: canonical, with `unsigned` as given."""
    pdu: dict[str, object]
    """The PDU as parsed, with hashes and signatures."""
    room_id: RoomId
    """Since v12 a create event has none in its PDU: it is the event ID with the sigil `!`."""
    sender: UserId
    type: str
    state_key: str | None
    """None when this is not a state event."""
    is_state: bool
    key: StateKey
    """(type, state key): its place in the room state, if it is a state event."""
    content: dict[str, object]
    """Empty when malformed."""
    origin_server_ts: int
    """Milliseconds since the Unix epoch, as claimed by the sender's server; 0 when malformed."""
    depth: int
    prev_event_ids: tuple[EventId, ...]
    auth_event_ids: tuple[EventId, ...]
    """Since v12 the create event, which the PDU does not name there, comes last."""
    redacts: EventId | None
    """What a redaction names as its target: at the top level, or (since v11) in the content."""

    @classmethod
    def from_pdu(
        cls,
        pdu: Mapping[str, object],
        room_version: RoomVersion,
        event_id: EventId | None = None,
    ) -> Event:
        """Return the event that a PDU is. Its ID is computed, or given if already known.

        Raises:
            CanonicalJsonError: If the PDU cannot be written as JSON.
        """
        event = cls.__new__(cls)
        event.room_version = room_version
        event.pdu = pdu if isinstance(pdu, dict) else dict(pdu)
        event.event_id = event_id_of(pdu, room_version) if event_id is None else event_id
        return event

    @classmethod
    def from_json(cls, json: str | bytes, room_version: RoomVersion, event_id: EventId) -> Event:
        """Return an event out of our own database: trusted, and not parsed until it is read."""
        event = cls.__new__(cls)
        event.room_version = room_version
        event.event_id = event_id
        event.json = json.encode() if isinstance(json, str) else json
        return event

    @property
    def create_event_id(self) -> EventId | None:
        """The create event that the room ID names (since v12); before, the ID does not say."""
        if not self.room_version.room_id_is_create_event_id:
            return None
        return EventId("$" + self.room_id[1:])

    @property
    def thread_root(self) -> EventId | None:
        """The root of the thread that it is in. Spec: client-server-api#threading."""
        match self.content.get("m.relates_to"):
            case {"rel_type": "m.thread", "event_id": str(root)} if (
                not self.is_state and "\0" not in root
            ):
                return EventId(root)
            case _:
                return None

    if not TYPE_CHECKING:  # Slots that are not yet filled come here; types are stated above.

        def __getattr__(self, name: str) -> object:
            if name == "json":
                self.json = encode_event(self.pdu, self.room_version)
            elif name == "pdu":
                exact = self.room_version.enforces_canonical_json
                self.pdu = (decode if exact else decode_lenient)(self.json)
            elif name in Event.__slots__ and name not in ("event_id", "room_version"):
                self._read()
            else:
                raise AttributeError(name)
            return getattr(self, name)

    def _read(self) -> None:
        """Fill the slots from the PDU."""
        pdu, room_version = self.pdu, self.room_version
        kind, state_key = pdu.get("type"), pdu.get("state_key")
        content = pdu.get("content")
        self.type = kind if isinstance(kind, str) else ""
        self.sender = UserId(_text(pdu.get("sender")))
        self.state_key = state_key if isinstance(state_key, str) else None
        self.is_state = self.state_key is not None
        self.key = (self.type, self.state_key or "")
        self.content = content if isinstance(content, dict) else {}
        self.origin_server_ts = _integer(pdu.get("origin_server_ts"))
        self.depth = _integer(pdu.get("depth"))
        self.prev_event_ids = _event_ids(pdu.get("prev_events"))
        self.auth_event_ids = _event_ids(pdu.get("auth_events"))
        self.room_id = RoomId(_text(pdu.get("room_id")))
        if room_version.room_id_is_create_event_id:  # Since v12.
            if self.type == "m.room.create":
                self.room_id = RoomId("!" + self.event_id[1:])
            else:
                self.auth_event_ids += (EventId("$" + self.room_id[1:]),)
        redacts = (self.content if room_version.redacts_is_in_content else pdu).get("redacts")
        self.redacts = EventId(redacts) if isinstance(redacts, str) else None

    @override
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Event) and self.event_id == other.event_id

    @override
    def __hash__(self) -> int:
        return hash(self.event_id)

    @override
    def __repr__(self) -> str:
        return f"<Event {self.event_id} {self.type!r} {self.state_key!r} by {self.sender}>"


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _integer(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _event_ids(value: object) -> tuple[EventId, ...]:
    """Read event IDs, bare (since v3) or as pairs of ID and hashes (v1, v2)."""
    if not isinstance(value, list):
        return ()
    return tuple(
        EventId(item if isinstance(item, str) else item[0])
        for item in value
        if isinstance(item, str) or (isinstance(item, list) and item and isinstance(item[0], str))
    )
