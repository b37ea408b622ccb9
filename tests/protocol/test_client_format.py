"""The client event, compared as JSON by the keys that the specification names."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minihs.protocol.client_format import (
    add_room_id,
    client_event_head,
    finish,
    join_parts,
    strip_state,
    stripped_state,
    unsigned_part,
    unsigned_parts,
)
from minihs.protocol.events import Event
from minihs.protocol.identifiers import EventId
from minihs.protocol.redaction import redact
from minihs.protocol.room_versions import V5, V10, V11, V12, RoomVersion

PDU: dict[str, object] = {
    "auth_events": ["$a"],
    "content": {"body": "hi"},
    "depth": 12,
    "hashes": {"sha256": "x"},
    "origin_server_ts": 1_000,
    "prev_events": ["$p"],
    "room_id": "!room:hs1",
    "sender": "@alice:hs1",
    "signatures": {"hs1": {"ed25519:a": "x"}},
    "type": "m.room.message",
    "unsigned": {"age": 99, "prev_content": {"lie": 1}},
}


def shown(changes: dict[str, object], version: RoomVersion = V11) -> dict[str, object]:
    event = Event.from_pdu({**PDU, **changes}, version, EventId("$event"))
    result = json.loads(finish(add_room_id(client_event_head(event), event.room_id)))
    assert isinstance(result, dict)
    return result


def test_a_message_shows_only_what_clients_need() -> None:
    assert shown({}) == {
        "content": {"body": "hi"},
        "event_id": "$event",
        "origin_server_ts": 1_000,
        "room_id": "!room:hs1",
        "sender": "@alice:hs1",
        "type": "m.room.message",
    }


@pytest.mark.parametrize("state_key", ["", "@bob:hs1"])
def test_state_shows_its_state_key_even_an_empty_one(state_key: str) -> None:
    assert shown({"state_key": state_key})["state_key"] == state_key


def test_a_sticky_event_shows_its_stickiness_outside_the_content() -> None:
    result = shown({"msc4354_sticky": {"duration_ms": 5}})
    assert result["msc4354_sticky"] == {"duration_ms": 5}
    assert "sticky" not in result


@pytest.mark.parametrize("version", [V10, V11])
def test_a_redaction_names_its_target_in_both_places(version: RoomVersion) -> None:
    target: dict[str, object] = {"redacts": "$target"}
    if version is V11:
        changes: dict[str, object] = {"content": {**target, "reason": "spam"}}
    else:
        changes = {"content": {"reason": "spam"}, **target}
    result = shown({"type": "m.room.redaction", **changes}, version)
    assert result["redacts"] == "$target"
    assert result["content"] == {"redacts": "$target", "reason": "spam"}


def test_redacts_of_another_type_of_event_stays_hidden() -> None:
    assert "redacts" not in shown({"redacts": "$target"}, V10)


def test_a_redacted_event_shows_what_redaction_left() -> None:
    pdu = redact({**PDU, "msc4354_sticky": {"duration_ms": 5}}, V11)
    event = Event.from_pdu(pdu, V11, EventId("$event"))
    result = json.loads(finish(client_event_head(event), b'"age":1'))
    assert result == {
        "content": {},
        "event_id": "$event",
        "origin_server_ts": 1_000,
        "sender": "@alice:hs1",
        "type": "m.room.message",
        "unsigned": {"age": 1},
    }


def test_a_create_event_of_version_12_shows_the_room_it_makes() -> None:
    create = {key: value for key, value in PDU.items() if key != "room_id"}
    event = Event.from_pdu(
        {**create, "type": "m.room.create", "state_key": ""}, V12, EventId("$event")
    )
    head = add_room_id(client_event_head(event), event.room_id)
    assert json.loads(finish(head))["room_id"] == "!event"


def test_numbers_of_old_rooms_survive() -> None:
    assert shown({"content": {"big": 2**70}}, V5)["content"] == {"big": 2**70}


JSON = st.dictionaries(st.text(), st.none() | st.booleans() | st.integers(-9, 9) | st.text())


@given(JSON, JSON.filter(bool), st.booleans())
def test_splicing_equals_serialising_the_whole(
    content: dict[str, object], unsigned: dict[str, object], with_room_id: bool
) -> None:
    event = Event.from_pdu({**PDU, "content": content}, V11, EventId("$event"))
    head = client_event_head(event)
    if with_room_id:
        head = add_room_id(head, "!room:hs1")
    assert "unsigned" not in json.loads(finish(head))
    whole = json.loads(finish(head, unsigned_parts(unsigned)))
    assert whole["unsigned"] == unsigned
    assert whole["content"] == content


def test_a_head_is_given_its_room_later() -> None:
    event = Event.from_pdu(PDU, V11, EventId("$event"))
    head = client_event_head(event)
    assert "room_id" not in json.loads(finish(head))
    with_room = json.loads(finish(add_room_id(head, "!room:hs1")))
    assert with_room == json.loads(finish(add_room_id(client_event_head(event), event.room_id)))


def test_parts_made_before_are_taken_as_they_are() -> None:
    because = finish(b'{"type":"m.room.member"')
    parts = join_parts([unsigned_part("redacted_because", because), b"", unsigned_part("age", 3)])
    assert json.loads(finish(b'{"type":"m.room.message"', parts)) == {
        "type": "m.room.message",
        "unsigned": {"redacted_because": {"type": "m.room.member"}, "age": 3},
    }


def test_stripped_state_has_four_keys() -> None:
    name: dict[str, object] = {"type": "m.room.name", "state_key": "", "content": {"name": "n"}}
    event = Event.from_pdu({**PDU, **name}, V11, EventId("$event"))
    assert stripped_state(event) == {**name, "sender": "@alice:hs1"}


def test_the_create_event_keeps_its_time() -> None:
    event = Event.from_pdu({**PDU, "type": "m.room.create", "state_key": ""}, V11, EventId("$e"))
    assert stripped_state(event)["origin_server_ts"] == 1_000


@pytest.mark.parametrize(
    "given_state",
    [None, [], {"type": "m.room.name", "state_key": "", "sender": "@a:b"}, PDU],
    ids=["null", "list", "no content", "not state"],
)
def test_what_is_not_state_has_no_stripped_form(given_state: object) -> None:
    assert strip_state(given_state) is None
