"""A room of a server under test as another server sees it, which can add to it what it likes.

room = await mirror(hs1, room_id)
join = room.join("@mallory:evil")
await push(evil, hs1, [join])
"""

from __future__ import annotations

import hashlib
import itertools
from typing import TYPE_CHECKING

from minihs.protocol.canonical_json import encode_lenient
from minihs.protocol.events import Event
from minihs.protocol.hashes import encode_base64, event_id_from_hash
from minihs.protocol.identifiers import EventId, RoomId, server_name_of
from minihs.protocol.redaction import redact
from minihs.protocol.room_versions import ROOM_VERSIONS
from minihs.remote.transport import RemoteError
from minihs.storage import rooms as room_reads
from minihs.storage.events import list_range
from tests.helpers.network import raw
from tests.helpers.rooms import Room, signing_key

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from minihs.protocol.room_versions import RoomVersion
    from tests.helpers.homeserver import Homeserver
    from tests.helpers.network import EvilServer, Received

_transactions = itertools.count()


async def mirror(homeserver: Homeserver, room_id: str) -> Room:
    """Return a copy of a room that began at a server under test."""
    services = homeserver.services
    row = await room_reads.fetch_room(services.db, RoomId(room_id))
    assert row is not None
    room = Room.__new__(Room)
    room.room_version = ROOM_VERSIONS[row.room_version]
    room.room_id = RoomId(room_id)
    room.events, room.state_after, room.ends = {}, {}, []
    await refresh(room, homeserver)
    create = room.current("m.room.create")
    assert create is not None
    room.create = create
    return room


async def refresh(room: Room, homeserver: Homeserver) -> None:
    """Let a copy of a room have what the server has accepted since."""
    services = homeserver.services
    row = await room_reads.fetch_room(services.db, room.room_id)
    assert row is not None
    every = await list_range(
        services.db, services.events, row.room_nid, (0, 0), (2**62, 0), backward=False, limit=9_999
    )
    for stored in every:
        if stored.event_id not in room.events:
            room.accept(Event.from_json(stored.event.json, room.room_version, stored.event_id))


async def push(
    origin: EvilServer,
    homeserver: Homeserver,
    events: Iterable[Event | Mapping[str, object]] = (),
    edus: Iterable[Mapping[str, object]] = (),
    *,
    txn_id: str | None = None,
) -> dict:
    """Send a transaction that must succeed; return the result of each PDU by event id."""
    answer = await send_transaction(origin, homeserver, events, edus, txn_id=txn_id)
    assert not isinstance(answer, RemoteError), answer.describe()
    pdus = answer["pdus"]
    assert isinstance(pdus, dict)
    return pdus


async def send_transaction(
    origin: EvilServer,
    homeserver: Homeserver,
    events: Iterable[Event | Mapping[str, object]] = (),
    edus: Iterable[Mapping[str, object]] = (),
    *,
    txn_id: str | None = None,
) -> dict[str, object] | RemoteError:
    """Send a transaction; return what is answered."""
    pdus = [event.pdu if isinstance(event, Event) else event for event in events]
    txn_id = txn_id or f"txn{next(_transactions)}"
    content = {"origin": origin.name, "origin_server_ts": 1, "pdus": pdus, "edus": list(edus)}
    return await origin.request(
        homeserver.name, "PUT", f"/_matrix/federation/v1/send/{txn_id}", content
    )


class Absent:
    """In `forge`: the PDU lacks this key."""


def forge(
    event: Event,
    changes: Mapping[str, object] | None = None,
    *,
    signers: Iterable[str] | None = None,
    **more: object,
) -> dict:
    """Return a PDU made of an event with changed keys, hashed and signed as if nothing was wrong.

    It is signed by the sender's server unless others are given; its numbers may be any.
    """
    changes = {**(changes or {}), **more}
    pdu = {**event.pdu, **changes}
    pdu = {key: value for key, value in pdu.items() if value is not Absent}
    names = [server_name_of(event.sender)] if signers is None else signers
    return seal(pdu, event.room_version, names, as_they_are=changes)


def seal(
    pdu: dict,
    room_version: RoomVersion,
    signers: Iterable[str],
    *,
    as_they_are: Collection[str] = (),
) -> dict:
    """Return a PDU hashed and signed anew, but for those of the two that are `as_they_are`."""
    bare = {k: v for k, v in pdu.items() if k not in ("hashes", "signatures", "unsigned")}
    if "hashes" not in as_they_are:
        digest = hashlib.sha256(encode_lenient(bare)).digest()
        pdu = {**pdu, "hashes": {"sha256": encode_base64(digest)}}
    if "signatures" not in as_they_are:
        message = encode_lenient(_signed(pdu, room_version))
        keys = {name: signing_key(name) for name in signers}
        signatures = {name: {k.key_id: k.sign(message)} for name, k in keys.items()}
        pdu = {**pdu, "signatures": signatures}
    return pdu


def id_of(pdu: Mapping[str, object], event: Event) -> EventId:
    """Return the id of a forged PDU that was made of `event`."""
    if event.room_version.event_id_source == "server":
        return EventId(str(pdu["event_id"]))
    digest = hashlib.sha256(encode_lenient(_signed(pdu, event.room_version))).digest()
    return event_id_from_hash(encode_base64(digest), event.room_version)


def _signed(pdu: Mapping[str, object], room_version: RoomVersion) -> dict[str, object]:
    redacted = redact(pdu, room_version)
    return {k: v for k, v in redacted.items() if k not in ("signatures", "unsigned")}


class Answers:
    """What a server answers about its copy of a room; `hidden` events it does not give away.

    `between`: how many events it gives for a gap (0: as many as are asked for). `counts_latest`: in
    that number it counts those that it is asked about, as Dendrite does.
    """

    def __init__(
        self, room: Room, hidden: Iterable[str], between: int, *, counts_latest: bool = False
    ) -> None:
        self.room = room
        self.hidden = set(hidden)
        self.between = between
        self.counts_latest = counts_latest

    def get(self, event_id: str) -> Event | None:
        return None if event_id in self.hidden else self.room.events.get(EventId(event_id))

    def pdus(self, event_ids: Iterable[str]) -> list[dict[str, object]]:
        return [e.pdu for event_id in event_ids if (e := self.get(event_id)) is not None]

    def state_before(self, event_id: str) -> list[EventId]:
        event = self.room.events[EventId(event_id)]
        prev = [self.room.events[e] for e in event.prev_event_ids]
        return list(self.room.state_of(prev).values())

    def auth_chain(self, event_ids: Iterable[str]) -> list[str]:
        chain: set[str] = set()
        queue = list(event_ids)
        while queue:
            for auth_id in self.room.events[EventId(queue.pop())].auth_event_ids:
                if auth_id not in chain:
                    chain.add(auth_id)
                    queue.append(auth_id)
        return sorted(chain)

    def backwards(self, event_ids: Iterable[str], limit: int, known: Iterable[str]) -> list[str]:
        found: list[str] = []
        seen, queue = set(known), list(event_ids)
        while queue and len(found) < limit:
            event_id = queue.pop(0)
            event = self.get(event_id)
            if event is not None and event_id not in seen:
                seen.add(event_id)
                found.append(event_id)
                queue += event.prev_event_ids
        return found

    def missing_events(self, request: Received) -> object:
        asked = request.content
        assert isinstance(asked, dict)
        latest = [self.room.events[e] for e in asked["latest_events"]]
        prev_ids = [prev_id for event in latest for prev_id in event.prev_event_ids]
        limit = self.between or asked["limit"]
        if self.counts_latest:
            limit -= len(latest)
        return {
            "events": self.pdus(self.backwards(prev_ids, limit, asked["earliest_events"])[::-1])
        }

    def state_ids(self, request: Received) -> object:
        ids = self.state_before(request.query["event_id"])
        return {"pdu_ids": ids, "auth_chain_ids": self.auth_chain(ids)}

    def state(self, request: Received) -> object:
        ids = self.state_before(request.query["event_id"])
        return {"pdus": self.pdus(ids), "auth_chain": self.pdus(self.auth_chain(ids))}

    def event(self, request: Received) -> object:
        found = self.pdus([request.path["eventId"]])
        return {"origin": "evil", "origin_server_ts": 1, "pdus": found} if found else NOT_FOUND

    def event_auth(self, request: Received) -> object:
        return {"auth_chain": self.pdus(self.auth_chain([request.path["eventId"]]))}

    def backfill(self, request: Received) -> object:
        ids = self.backwards([request.query["v"]], int(request.query["limit"]), ())
        return {"origin": "evil", "origin_server_ts": 1, "pdus": self.pdus(ids)}


def serve(
    origin: EvilServer,
    room: Room,
    *,
    hidden: Iterable[str] = (),
    between: int = 0,
    counts_latest: bool = False,
) -> Answers:
    """Let a server answer what it is asked about its copy of a room."""
    answers = Answers(room, hidden, between, counts_latest=counts_latest)
    path = "/_matrix/federation/v1"
    origin.on("POST", path + "/get_missing_events/{roomId}", answers.missing_events)
    origin.on("GET", path + "/state_ids/{roomId}", answers.state_ids)
    origin.on("GET", path + "/state/{roomId}", answers.state)
    origin.on("GET", path + "/event/{eventId}", answers.event)
    origin.on("GET", path + "/event_auth/{roomId}/{eventId}", answers.event_auth)
    origin.on("GET", path + "/backfill/{roomId}", answers.backfill)
    return answers


NOT_FOUND = raw({"errcode": "M_NOT_FOUND", "error": "hidden"}, 404)
