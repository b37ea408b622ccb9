"""Reading power levels and memberships."""

from __future__ import annotations

import pytest

from minihs.protocol.events import Event
from minihs.protocol.identifiers import EventId
from minihs.protocol.membership import is_deactivation_leave, membership_of
from minihs.protocol.power_levels import INFINITE, PowerLevels, creators_of, read_level
from minihs.protocol.room_versions import ROOM_VERSIONS
from minihs.protocol.unstable import DEACTIVATED
from tests.helpers.rooms import ALICE, BOB, CAROL


def event(
    event_type: str, content: dict[str, object], version: str, *, sender: str = ALICE, key: str = ""
) -> Event:
    pdu = {"type": event_type, "content": content, "sender": sender, "state_key": key}
    return Event.from_pdu(pdu, ROOM_VERSIONS[version], EventId("$event"))


def levels(content: dict[str, object], version: str = "12", creators: object = ()) -> PowerLevels:
    create = event("m.room.create", {"creator": ALICE, "additional_creators": creators}, version)
    power_levels = event("m.room.power_levels", content, version)
    return PowerLevels.of(power_levels, create, ROOM_VERSIONS[version])


@pytest.mark.spec("client-server-api#mroompower_levels")
def test_what_is_not_said_has_a_default() -> None:
    default = levels({})
    assert (default.invite, default.kick, default.ban, default.redact) == (0, 50, 50, 50)
    assert (default.users_default, default.events_default, default.state_default) == (0, 0, 50)
    assert default.user_level(BOB) == 0
    assert default.event_level("m.room.message", is_state=False) == 0
    assert default.event_level("m.room.topic", is_state=True) == 50
    assert default.notification_level("room") == 50


def test_what_is_said_counts() -> None:
    said = levels(
        {
            "users": {BOB: 20},
            "users_default": 5,
            "events": {"m.room.topic": 7},
            "state_default": 8,
            "events_default": -1,
            "invite": 1,
            "notifications": {"room": 9},
        }
    )
    assert (said.user_level(BOB), said.user_level(CAROL)) == (20, 5)
    assert said.event_level("m.room.topic", is_state=True) == 7
    assert said.event_level("m.room.name", is_state=True) == 8
    assert said.event_level("m.room.message", is_state=False) == -1
    assert (said.invite, said.notification_level("room")) == (1, 9)


@pytest.mark.spec("rooms/v12#authorisation-rules")
def test_creators_have_infinite_power_since_v12() -> None:
    creators = levels({"users": {ALICE: 1}}, "12", [BOB, 17])
    assert creators.user_level(ALICE) == creators.user_level(BOB) == INFINITE > 2**53
    assert levels({"users": {ALICE: 1}}, "11", [BOB]).user_level(ALICE) == 1


@pytest.mark.parametrize(("version", "creator"), [("10", BOB), ("11", ALICE), ("12", ALICE)])
def test_a_room_without_power_levels_is_its_creators(version: str, creator: str) -> None:
    create = event("m.room.create", {"creator": BOB}, version)
    nothing = PowerLevels.of(None, create, ROOM_VERSIONS[version])
    assert creators_of(create) == {creator}
    assert nothing.user_level(creator) >= 100
    assert nothing.user_level(CAROL) == 0
    assert PowerLevels.of(None, None, ROOM_VERSIONS[version]).user_level(creator) == 0


@pytest.mark.spec(
    "rooms/v1#mroompower_levels-events-accept-values-as-strings",
    "rooms/v10#values-in-mroompower_levels-events-must-be-integers",
)
@pytest.mark.parametrize(
    ("value", "until_v9"),
    [
        (50, 50),
        ("50", 50),
        (" +0050 ", 50),
        ("-5", -5),
        (50.57, 50),
        (51146.98, 51146),
        (True, 1),
        ("high", None),
        ("1.5", None),
        ("1_000", None),
        ("٣", None),  # An Arabic digit, which Python would take.
        ("9" * 5000, None),
        (float("inf"), None),
        ([], None),
        ({}, None),
        (None, None),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_levels_may_be_odd_until_v9(value: object, until_v9: int | None) -> None:
    assert read_level(value, ROOM_VERSIONS["9"]) == until_v9
    assert read_level(value, ROOM_VERSIONS["10"]) == (value if value == 50 else None)
    malformed_is_absent = levels({"users": {BOB: value}, "users_default": 3, "events": []}, "9")
    assert malformed_is_absent.user_level(BOB) == (3 if until_v9 is None else until_v9)


@pytest.mark.spec("MSC3759#proposal")
@pytest.mark.parametrize("spelling", DEACTIVATED.spellings)
def test_only_users_themselves_can_be_deactivated(spelling: str) -> None:
    content: dict[str, object] = {"membership": "leave", spelling: True}
    assert is_deactivation_leave(event("m.room.member", content, "12", sender=BOB, key=BOB))
    assert not is_deactivation_leave(event("m.room.member", content, "12", sender=ALICE, key=BOB))
    for change in ({"membership": "ban"}, {spelling: "yes"}, {spelling: False}):
        changed = event("m.room.member", {**content, **change}, "12", sender=BOB, key=BOB)
        assert not is_deactivation_leave(changed)


@pytest.mark.spec("client-server-api#mroommember")
def test_a_membership_is_read_whatever_else_is_there() -> None:
    content: dict[str, object] = {"membership": "leave", "displayname": 17, "reason": "bye"}
    kick = event("m.room.member", content, "12", sender=ALICE, key=BOB)
    assert membership_of(kick) == "leave"
    assert membership_of(event("m.room.member", {"membership": 17}, "12", key=BOB)) is None
    assert membership_of(None) is None
