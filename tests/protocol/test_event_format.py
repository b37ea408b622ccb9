"""Which PDUs are valid events. Spec: server-server-api#checks-performed-on-receipt-of-a-pdu."""

from __future__ import annotations

import pytest

from minihs.protocol.event_format import EventFormatError, EventTooLargeError, check_event_format
from minihs.protocol.room_versions import ROOM_VERSIONS
from tests.helpers.rooms import ALICE, BOB, Room

ABSENT = object()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sender", ABSENT),
        ("sender", "alice"),
        ("sender", "@" + "a" * 300 + ":hs1"),
        ("room_id", ABSENT),
        ("room_id", "room"),
        ("type", ABSENT),
        ("type", 1),
        ("content", ABSENT),
        ("content", []),
        ("hashes", ABSENT),
        ("signatures", ABSENT),
        ("signatures", "x"),
        ("state_key", None),
        ("state_key", 1),
        ("unsigned", 1),
        ("origin_server_ts", ABSENT),
        ("origin_server_ts", "1"),
        ("origin_server_ts", True),
        ("depth", ABSENT),
        ("depth", -1),
        ("depth", 2**53),
        ("prev_events", ABSENT),
        ("prev_events", "$e"),
        ("prev_events", ["$e"] * 21),
        ("prev_events", [["$e", {}]]),
        ("auth_events", ["$e"] * 11),
        ("auth_events", [1]),
        ("type", "t" * 256),
        ("state_key", "ä" * 128),
        ("content", {"body": "x" * 65_536}),
        ("content", {"number": 1.5}),
        ("content", {"number": 2**53}),
    ],
    ids=lambda value: "absent" if value is ABSENT else repr(value)[:30],
)
def test_faults_are_found(key: str, value: object) -> None:
    room = Room("12")
    pdu = {**room.draft(ALICE, "m.room.message", {"body": "hello"}).pdu, key: value}
    if value is ABSENT:
        del pdu[key]
    with pytest.raises(EventFormatError):
        check_event_format(pdu, room.room_version)


@pytest.mark.parametrize("version", sorted(ROOM_VERSIONS))
def test_what_we_make_is_valid(version: str) -> None:
    room = Room(version)
    room.join(BOB)
    assert len(room.events) > 1
    for event in room.events.values():
        check_event_format(event.pdu, room.room_version)


def test_events_of_early_versions_are_named_by_their_server() -> None:
    pdu = dict(Room("2").draft(ALICE, "m.room.message", {}).pdu)
    check_event_format(pdu, ROOM_VERSIONS["2"])
    with pytest.raises(EventFormatError):
        check_event_format({**pdu, "event_id": "$"}, ROOM_VERSIONS["2"])
    with pytest.raises(EventFormatError):
        check_event_format({**pdu, "prev_events": ["$e:hs1"]}, ROOM_VERSIONS["2"])


@pytest.mark.spec("rooms/v6#canonical-json")
def test_until_v5_any_number_is_valid() -> None:
    pdu = Room("5").draft(ALICE, "m.room.message", {}).pdu
    check_event_format({**pdu, "content": {"number": 1.5, "big": 2**70}}, ROOM_VERSIONS["5"])
    with pytest.raises(EventFormatError):
        check_event_format({**pdu, "content": {"number": float("nan")}}, ROOM_VERSIONS["5"])


def test_unsigned_does_not_count_for_the_size() -> None:
    pdu = Room("12").draft(ALICE, "m.room.message", {"body": "x" * 60_000}).pdu
    check_event_format({**pdu, "unsigned": {"x": "y" * 10_000}}, ROOM_VERSIONS["12"])
    with pytest.raises(EventTooLargeError):
        check_event_format({**pdu, "extra": "y" * 10_000}, ROOM_VERSIONS["12"])
