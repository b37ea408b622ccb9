"""Events: made, named, hashed, signed, read, redacted."""

from __future__ import annotations

import copy
import gzip
from pathlib import Path

import pytest
import signedjson.key
import signedjson.sign
from hypothesis import given
from hypothesis import strategies as st

from minihs.protocol.canonical_json import CanonicalJsonError, decode, encode
from minihs.protocol.event_assembly import EventDraft, build_event
from minihs.protocol.event_format import EventTooLargeError, check_event_format
from minihs.protocol.events import Event
from minihs.protocol.hashes import (
    content_hash,
    decode_base64,
    encode_base64,
    event_id_of,
    has_right_content_hash,
    reference_hash,
)
from minihs.protocol.identifiers import EventId, RoomId, ServerName, UserId
from minihs.protocol.redaction import redact
from minihs.protocol.room_versions import PDU_BYTES_MAX, ROOM_VERSIONS
from minihs.protocol.signatures import (
    SignatureError,
    SigningKey,
    generate_signing_key,
    read_signing_key,
    required_signers,
    sign_json,
    signing_key_ids,
    verify_event_signature,
    verify_json,
    write_signing_key,
)
from minihs.protocol.unstable import REDACT_EVENTS, ROOM_VERSION_KEEPING_REDACT_EVENTS
from tests.helpers.json_values import CANONICAL_OBJECTS, TEXT
from tests.helpers.rooms import ALICE, BOB, CAROL, Room, signing_key, verify_keys

HS1 = ServerName("hs1")
KEY = signing_key("hs1")
VERSIONS = st.sampled_from(sorted(ROOM_VERSIONS))
EVENT_TYPES = st.sampled_from(
    [
        "m.room.message", "m.room.member", "m.room.create", "m.room.power_levels",
        "m.room.join_rules", "m.room.aliases", "m.room.redaction", "m.room.history_visibility",
    ]
)  # fmt: skip
KNOWN_CONTENT_KEYS = st.sampled_from(
    ["membership", "creator", "users", "events", "redacts", "aliases", "join_rule", "allow",
     "third_party_invite", "redact_events", "invite", "history_visibility"]
)  # fmt: skip
CONTENTS = st.dictionaries(TEXT | KNOWN_CONTENT_KEYS, CANONICAL_OBJECTS | TEXT, max_size=6)


@st.composite
def drafts(draw: st.DrawFn) -> EventDraft:
    return EventDraft(
        room_id=RoomId("!5pBfeuqhs_7y2GFY8NFvYvBVc_P_qHJtg4cUdOfwWXI"),
        sender=ALICE,
        type=draw(EVENT_TYPES),
        content=draw(CONTENTS),
        state_key=draw(st.none() | TEXT),
        redacts=draw(st.none() | st.just(EventId("$redacted"))),
        origin_server_ts=draw(st.integers(0, 2**53 - 1)),
        extra=draw(st.just({}) | st.just({"msc4354_sticky": {"duration_ms": 1000}})),
    )


def build(draft: EventDraft, version: str) -> Event:
    return build_event(
        draft,
        room_version=ROOM_VERSIONS[version],
        depth=7,
        prev_event_ids=[EventId("$prev")],
        auth_event_ids=[EventId("$auth1"), EventId("$auth2")],
        server_name=HS1,
        signing_key=KEY,
        event_id=EventId("$here:hs1"),
    )


@pytest.mark.spec("server-server-api#adding-hashes-and-signatures-to-outgoing-events")
@given(drafts(), VERSIONS)
def test_our_fast_path_makes_what_signedjson_makes(draft: EventDraft, version: str) -> None:
    event = build(draft, version)
    room_version = event.room_version
    pdu = decode(event.json)
    assert isinstance(pdu, dict)
    unsigned_redacted = redact(pdu, room_version)
    del unsigned_redacted["signatures"]
    slow_key = signedjson.key.decode_signing_key_base64("ed25519", "test", encode_base64(KEY.seed))
    slow = signedjson.sign.sign_json(copy.deepcopy(unsigned_redacted), "hs1", slow_key)
    assert slow["signatures"] == pdu["signatures"]
    assert pdu["hashes"] == {"sha256": content_hash(pdu, room_version)}
    assert event.event_id == event_id_of(pdu, room_version)
    check_event_format(pdu, room_version)


@given(drafts(), VERSIONS)
def test_hash_id_and_signature_survive_a_round_trip_and_a_redaction(
    draft: EventDraft, version: str
) -> None:
    made = build(draft, version)
    read = Event.from_json(made.json, made.room_version, made.event_id)
    assert read == made
    assert read.json == Event.from_pdu(read.pdu, made.room_version).json == encode(made.pdu)
    assert has_right_content_hash(read.pdu, read.room_version)
    verify_event_signature(read, HS1, verify_keys(HS1))

    redacted = redact(read.pdu, read.room_version)
    assert redact(redacted, read.room_version) == redacted
    assert reference_hash(redacted, read.room_version) == reference_hash(
        read.pdu, read.room_version
    )
    gone = Event.from_pdu(redacted, read.room_version)
    assert gone.event_id == read.event_id
    assert gone.key == read.key
    verify_event_signature(gone, HS1, verify_keys(HS1))


@given(drafts(), VERSIONS, TEXT)
def test_changed_content_breaks_the_hash_and_a_changed_sender_the_signature(
    draft: EventDraft, version: str, change: str
) -> None:
    event = build(draft, version)
    content = {**event.content, "changed": change}
    assert not has_right_content_hash({**event.pdu, "content": content}, event.room_version)
    forged = Event.from_pdu({**event.pdu, "sender": BOB}, event.room_version)
    with pytest.raises(SignatureError):
        verify_event_signature(forged, HS1, verify_keys(HS1))


@given(drafts(), VERSIONS)
def test_an_event_reads_the_same_from_its_pdu_and_from_its_json(
    draft: EventDraft, version: str
) -> None:
    made = build(draft, version)
    read = Event.from_json(made.json.decode(), made.room_version, made.event_id)
    for name in Event.__slots__:
        assert getattr(read, name) == getattr(made, name), name


def test_an_event_that_passes_through_is_never_parsed() -> None:
    event = Event.from_json(b"{this is not JSON", ROOM_VERSIONS["12"], EventId("$e"))
    assert event.json == b"{this is not JSON"
    assert event.event_id == "$e"
    with pytest.raises(ValueError, match="column"):
        _ = event.sender


@given(
    st.dictionaries(
        st.sampled_from(
            ["type", "sender", "room_id", "content", "state_key", "depth", "prev_events",
             "auth_events", "origin_server_ts", "unsigned", "redacts", "event_id", "hashes"]
        ),
        st.none() | st.integers() | st.booleans() | TEXT | CANONICAL_OBJECTS | st.lists(TEXT)
        | st.lists(st.lists(TEXT)),
    ),
    VERSIONS,
)  # fmt: skip
def test_reading_never_fails_whatever_the_pdu_holds(pdu: dict[str, object], version: str) -> None:
    event = Event.from_pdu(pdu, ROOM_VERSIONS[version], EventId("$e:hs1"))
    assert isinstance(event.type, str)
    assert isinstance(event.sender, str)
    assert isinstance(event.content, dict)
    assert isinstance(event.depth, int)
    assert all(isinstance(e, str) for e in (*event.prev_event_ids, *event.auth_event_ids))
    assert event.is_state == (event.state_key is not None)
    assert isinstance(repr(event), str)
    required_signers(event)


def test_unknown_attributes_are_refused() -> None:
    event = Event.from_pdu({}, ROOM_VERSIONS["12"], EventId("$e"))
    assert not hasattr(event, "sender_id")
    assert copy.copy(event) == event


@pytest.mark.spec("rooms/v12#event-format")
def test_a_room_is_named_after_its_create_event() -> None:
    room = Room("12")
    assert "room_id" not in room.create.pdu
    assert room.create.room_id == "!" + room.create.event_id[1:]
    assert room.create.auth_event_ids == ()
    message = room.send(ALICE, "m.room.message", {"body": "hello"})
    assert message.create_event_id == room.create.event_id
    # The PDU does not name the create event, and yet it is the last of the auth events.
    assert room.create.event_id not in decode(encode(message.pdu["auth_events"]))  # type: ignore[operator]  # a list
    assert message.auth_event_ids[-1] == room.create.event_id


@pytest.mark.spec(
    "rooms/v11#moving-the-redacts-property-of-mroomredaction-events-to-a-content-property"
)
@pytest.mark.parametrize(("version", "in_content"), [("1", False), ("10", False), ("11", True)])
def test_a_redaction_names_its_target_where_the_room_version_wants_it(
    version: str,
    in_content: bool,
) -> None:
    room = Room(version)
    message = room.send(ALICE, "m.room.message", {"body": "hello"})
    redaction = room.send(ALICE, "m.room.redaction", {}, redacts=message.event_id)
    assert redaction.redacts == message.event_id
    assert ("redacts" in redaction.content) == in_content
    assert ("redacts" in redaction.pdu) != in_content


@pytest.mark.spec("MSC4298#proposal")
def test_a_redacted_ban_still_redacts_in_the_room_version_made_for_it() -> None:
    content = {"membership": "ban", "reason": "spam", **REDACT_EVENTS.write(value=True)}
    pdu: dict[str, object] = {"type": "m.room.member", "state_key": BOB, "content": content}
    kept = redact(pdu, ROOM_VERSIONS[ROOM_VERSION_KEEPING_REDACT_EVENTS])["content"]
    assert kept == {"membership": "ban", **REDACT_EVENTS.write(value=True)}
    assert redact(pdu, ROOM_VERSIONS["11"])["content"] == {"membership": "ban"}


@pytest.mark.spec("client-server-api#size-limits")
def test_an_event_that_is_too_large_is_not_made() -> None:
    room = Room("12")
    with pytest.raises(EventTooLargeError):
        room.draft(ALICE, "m.room.message", {"body": "x" * PDU_BYTES_MAX})
    with pytest.raises(EventTooLargeError):
        room.draft(ALICE, "m.test", {}, state_key="ä" * 128)
    Room("10").draft(ALICE, "m.test", {}, state_key="ä" * 255)  # Until v10, characters count.


@pytest.mark.parametrize("version", ["1", "12"])
def test_we_never_sign_what_has_no_canonical_json(version: str) -> None:
    with pytest.raises(CanonicalJsonError):
        Room(version).draft(ALICE, "m.room.message", {"number": 1.5})


@pytest.mark.spec("appendices#signing-json")
def test_public_cases_of_signing() -> None:
    path = Path(__file__).parent / "vectors" / "public-signing.json.gz"
    file = decode(gzip.decompress(path.read_bytes()))
    assert isinstance(file, dict)
    seed = decode_base64(file["seed"])
    assert seed is not None
    key = SigningKey(seed, file["key"].partition(":")[2])
    for case in file["json"]:
        assert sign_json(case["input"], file["server"], key) == case["signed"]
        verify_json(case["signed"], file["server"], {key.key_id: key.public_key})
    for case in file["events"]:
        hashed = {**case["input"], "hashes": case["signed"]["hashes"]}
        assert content_hash(case["input"], ROOM_VERSIONS["1"]) == hashed["hashes"]["sha256"]
        event = Event.from_pdu(case["signed"], ROOM_VERSIONS["1"])
        verify_event_signature(event, file["server"], {key.key_id: key.public_key})
    for case in file["more"]:
        event_hash = content_hash(case["event"], ROOM_VERSIONS[case["room_version"]])
        assert event_hash == case["sha256"]


@given(CANONICAL_OBJECTS)
def test_signed_json_is_verified_by_signedjson_and_the_other_way_round(
    value: dict[str, object],
) -> None:
    value = {key: item for key, item in value.items() if key not in ("signatures", "unsigned")}
    signed = sign_json({**value, "unsigned": {"age": 1}}, HS1, KEY)
    slow_key = signedjson.key.decode_signing_key_base64("ed25519", "test", encode_base64(KEY.seed))
    signedjson.sign.verify_signed_json(
        copy.deepcopy(signed), "hs1", signedjson.key.get_verify_key(slow_key)
    )
    slow = signedjson.sign.sign_json(copy.deepcopy(value), "hs1", slow_key)
    verify_json(slow, HS1, verify_keys(HS1))
    assert slow["signatures"] == signed["signatures"]


def test_a_second_signature_stands_beside_the_first() -> None:
    other = signing_key("hs2")
    signed = sign_json(sign_json({"a": 1}, HS1, KEY), ServerName("hs2"), other)
    verify_json(signed, HS1, verify_keys(HS1))
    verify_json(signed, ServerName("hs2"), verify_keys(ServerName("hs2")))
    assert signing_key_ids(signed, HS1) == ["ed25519:test"]
    for server_name, keys in ((HS1, {}), (ServerName("hs3"), verify_keys(HS1))):
        with pytest.raises(SignatureError):
            verify_json(signed, server_name, keys)


def test_a_signing_key_file_is_signedjsons() -> None:
    key = generate_signing_key(b"s" * 32)
    text = write_signing_key(key)
    (slow,) = signedjson.key.read_signing_keys([text])
    assert bytes(slow) == key.seed
    assert read_signing_key(text).key_id == key.key_id
    assert generate_signing_key(b"t" * 32).key_id != key.key_id
    with pytest.raises(ValueError, match="no signing key"):
        read_signing_key("")


@pytest.mark.spec("server-server-api#validating-hashes-and-signatures-on-received-events")
@pytest.mark.parametrize(
    ("version", "content", "signers"),
    [
        ("12", {"membership": "join"}, {"hs2"}),
        ("12", {"membership": "invite", "third_party_invite": {}}, set()),
        ("12", {"membership": "join", "join_authorised_via_users_server": BOB}, {"hs1", "hs2"}),
        ("7", {"membership": "join", "join_authorised_via_users_server": BOB}, {"hs2"}),
        ("2", {"membership": "join"}, {"hs2", "named"}),
    ],
)
def test_servers_that_must_have_signed(
    version: str, content: dict[str, object], signers: set[str]
) -> None:
    pdu = {"type": "m.room.member", "sender": CAROL, "state_key": CAROL, "content": content}
    event = Event.from_pdu(pdu, ROOM_VERSIONS[version], EventId("$event:named"))
    assert required_signers(event) == signers


@given(st.binary())
def test_base64_comes_back_with_and_without_padding(data: bytes) -> None:
    text = encode_base64(data)
    assert "=" not in text
    padded = text + "=" * (-len(text) % 4)
    assert decode_base64(text) == decode_base64(padded) == data
    assert decode_base64(text.replace("+", "-").replace("/", "_")) == data


@pytest.mark.parametrize("text", ["a", "ä", "ab c", "a\nbc", "ab=c"])
def test_what_is_not_base64_is_refused(text: str) -> None:
    assert decode_base64(text) is None


def test_drafts_know_their_place_in_the_state() -> None:
    draft = EventDraft(
        room_id=None, sender=UserId("@a:b"), type="t", content={}, origin_server_ts=1, state_key="k"
    )
    assert draft.key == ("t", "k")
