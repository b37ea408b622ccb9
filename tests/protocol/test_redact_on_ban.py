"""Redaction by a kick or ban, told as small rooms: Alice moderates, Mallory spams."""

from __future__ import annotations

from typing import Any

import pytest

from minihs.protocol.events import Event
from minihs.protocol.identifiers import EventId
from minihs.protocol.power_levels import PowerLevels
from minihs.protocol.redact_on_ban import (
    RedactedStay,
    asks_to_redact,
    goes_on,
    is_covered,
    is_of_joins,
    joins_leading_to,
    joins_of_stay,
    may_redact,
    read_flag,
    redacted_stay,
)
from minihs.protocol.redaction import redact
from minihs.protocol.room_versions import MSC4298, V11, V12, RoomVersion
from minihs.protocol.unstable import REDACT_EVENTS, Disagreement

ALICE = "@alice:hs1"
BOB = "@bob:hs1"
MALLORY = "@mallory:evil"
FLAG: dict[str, Any] = {"org.matrix.msc4293.redact_events": True}


class Room:
    """Events by ID, as a server would find them."""

    def __init__(self) -> None:
        self.events: dict[str, Event] = {}

    def find(self, event_id: str) -> Event | None:
        return self.events.get(event_id)

    def add(
        self,
        event_id: str,
        sender: str,
        *auth: str,
        event_type: str = "m.room.message",
        state_key: str | None = None,
        **content: object,
    ) -> Event:
        pdu: dict[str, object] = {
            "type": event_type,
            "sender": sender,
            "content": content,
            "auth_events": list(auth),
        }
        if state_key is not None:
            pdu["state_key"] = state_key
        self.events[event_id] = Event.from_pdu(pdu, V11, EventId(event_id))
        return self.events[event_id]

    def member(
        self,
        event_id: str,
        sender: str,
        target: str,
        membership: str,
        *auth: str,
        **content: object,
    ) -> Event:
        return self.add(
            event_id,
            sender,
            *auth,
            event_type="m.room.member",
            state_key=target,
            membership=membership,
            **content,
        )


def levels(content: dict[str, object], version: RoomVersion = V11) -> PowerLevels:
    return PowerLevels(content, version, frozenset({BOB}), has_event=True)


ALICE_50 = levels({"users": {ALICE: 50}})


@pytest.fixture
def room() -> Room:
    """Mallory joined, left, joined again, changed name, and was banned by Alice."""
    room = Room()
    room.member("$join1", MALLORY, MALLORY, "join", "$create")
    room.add("$A", MALLORY, "$create", "$join1")
    room.member("$left1", MALLORY, MALLORY, "leave", "$join1")
    room.member("$join2", MALLORY, MALLORY, "join", "$create", "$left1")
    room.add("$D", MALLORY, "$join2")
    room.member("$renamed", MALLORY, MALLORY, "join", "$create", "$join2", displayname="nice")
    room.add("$E", MALLORY, "$renamed")
    room.member("$ban", ALICE, MALLORY, "ban", "$alice", "$renamed", **FLAG)
    return room


def test_a_ban_redacts_the_stay_that_it_ended(room: Room) -> None:
    stay = redacted_stay(room.events["$ban"], room.events["$renamed"], ALICE_50, room.find)
    assert stay == RedactedStay(MALLORY, "$join2", "$ban", frozenset({"$join2", "$renamed"}))


def test_the_stay_is_covered_whatever_the_order_of_arrival(room: Room) -> None:
    room.add("$late", MALLORY, "$join2")  # Sent before the rename, arrives after the ban.
    room.member("$back", MALLORY, MALLORY, "join", "$ban")
    room.add("$new", MALLORY, "$back")
    room.add("$other", BOB, "$join2")
    joins = joins_of_stay({"$join2"}, room.events.values())
    covered = {n for n, event in room.events.items() if is_of_joins(event, MALLORY, joins)}
    assert covered == {"$D", "$E", "$join2", "$renamed", "$late"}


def test_by_a_change_of_profile_that_goes_on_the_stay_is_redacted_no_further(room: Room) -> None:
    room.member("$again", MALLORY, MALLORY, "join", "$create", "$renamed")
    joins = joins_of_stay({"$join2"}, room.events.values(), {"$renamed"})
    assert joins == {"$join2"}
    assert joins_of_stay(joins, room.events.values()) == {"$join2", "$renamed", "$again"}


@pytest.mark.parametrize(
    ("membership", "rule", "can"),
    [("leave", "public", True), ("leave", "invite", False), ("ban", "public", False)],
)
def test_who_is_kicked_goes_on_where_anybody_may_join(
    room: Room, membership: str, rule: str, can: bool
) -> None:
    create = room.add("$create", ALICE, event_type="m.room.create", state_key="", creator=ALICE)
    rules = room.add("$rules", ALICE, event_type="m.room.join_rules", state_key="", join_rule=rule)
    removal = room.member("$removal", ALICE, MALLORY, membership, "$join2", **FLAG)
    after = {event.key: event for event in (create, rules, removal)}
    assert goes_on(room.events["$renamed"], after) is can


def test_a_rename_is_no_shield(room: Room) -> None:
    joins = joins_leading_to(room.events["$renamed"], room.find)
    assert joins == [room.events["$renamed"], room.events["$join2"]]


def test_what_is_no_join_begins_no_stay(room: Room) -> None:
    assert joins_leading_to(room.events["$left1"], room.find) == []
    assert joins_leading_to(room.events["$A"], room.find) == []


def test_the_stay_begins_where_our_knowledge_does(room: Room) -> None:
    del room.events["$join2"]
    assert joins_leading_to(room.events["$renamed"], room.find) == [room.events["$renamed"]]


def test_a_chain_that_bites_its_tail_ends(room: Room) -> None:
    room.member("$snake", MALLORY, MALLORY, "join", "$snake")
    assert joins_leading_to(room.events["$snake"], room.find)[-1] is room.events["$snake"]


@pytest.mark.parametrize("before", ["leave", "invite", "knock", "ban"])
@pytest.mark.parametrize("act", ["leave", "ban"])
def test_unban_retracted_invite_and_the_like_redact_nothing(
    room: Room, before: str, act: str
) -> None:
    member_before = room.member("$before", MALLORY, MALLORY, before, "$join2")
    event = room.member("$act", ALICE, MALLORY, act, "$before", **FLAG)
    assert redacted_stay(event, member_before, ALICE_50, room.find) is None
    assert redacted_stay(event, None, ALICE_50, room.find) is None


@pytest.mark.parametrize(
    ("sender", "membership", "content", "asked"),
    [
        (ALICE, "ban", FLAG, True),
        (ALICE, "leave", FLAG, True),
        (ALICE, "ban", {"redact_events": True}, True),
        (ALICE, "ban", {}, False),
        (ALICE, "ban", {"redact_events": False}, False),
        (ALICE, "ban", {"redact_events": 1}, False),
        (ALICE, "ban", {"redact_events": "true"}, False),
        (ALICE, "invite", FLAG, False),
        (MALLORY, "leave", FLAG, False),
        (MALLORY, "ban", FLAG, False),
        (MALLORY, "join", FLAG, False),
        (MALLORY, "knock", FLAG, False),
    ],
)
def test_who_asks(sender: str, membership: str, content: dict[str, object], asked: bool) -> None:
    event = Room().member("$act", sender, MALLORY, membership, **content)
    assert asks_to_redact(event) is asked


def test_only_memberships_ask() -> None:
    assert not asks_to_redact(Room().add("$m", ALICE, membership="ban", **FLAG))
    other = Room().add("$s", ALICE, event_type="m.x", state_key=MALLORY, membership="ban", **FLAG)
    assert not asks_to_redact(other)


@pytest.mark.parametrize(
    ("content", "allowed"),
    [
        ({}, False),  # The level of `redact` is 50 where a room sets none.
        ({"users": {ALICE: 49}}, False),
        ({"users": {ALICE: 50}}, True),
        ({"users": {ALICE: 49}, "redact": 49}, True),
        ({"users": {ALICE: 50}, "redact": 51}, False),
        ({"users": {ALICE: 50}, "events": {"m.room.redaction": 51}}, False),
        ({"users": {ALICE: 50}, "events": {"m.room.redaction": 50}}, True),
        ({"users": {ALICE: 50}, "events_default": 99}, True),
        ({"users": {ALICE: 0}, "redact": 0, "events": {"m.room.redaction": 1}}, False),
    ],
)
def test_power(content: dict[str, object], allowed: bool) -> None:
    assert may_redact(ALICE, levels(content)) is allowed


def test_a_creator_may_whatever_the_levels_since_v12() -> None:
    assert may_redact(BOB, levels({"redact": 10_000, "users": {}}, V12))


def test_without_power_the_flag_is_ignored(room: Room) -> None:
    ban, before = room.events["$ban"], room.events["$renamed"]
    assert redacted_stay(ban, before, levels({"users": {ALICE: 49}}), room.find) is None


@pytest.mark.parametrize(
    ("event_type", "state_key", "in_force", "covered"),
    [
        ("m.room.message", None, False, True),
        ("m.room.topic", "", True, True),
        ("m.room.member", MALLORY, True, True),
        ("m.room.server_acl", "", True, False),
        ("m.room.server_acl", "", False, True),
        ("m.room.server_acl", None, True, True),
        ("m.policy.rule.user", "x", True, False),
        ("m.space.child", "!r", True, False),
        ("m.room.encryption", "", True, False),
        ("m.room.tombstone", "", True, False),
        ("m.room.create", "", True, False),
    ],
)
def test_control_state_in_force_is_spared(
    event_type: str, state_key: str | None, in_force: bool, covered: bool
) -> None:
    event = Room().add("$e", MALLORY, event_type=event_type, state_key=state_key)
    assert is_covered(event, in_force=in_force) is covered
    assert is_covered(event, in_force=in_force, spare_control_state=False)


@pytest.mark.parametrize(("version", "kept"), [(V11, False), (MSC4298, True)])
def test_a_redacted_ban_keeps_asking_only_in_its_room_version(
    version: RoomVersion, kept: bool
) -> None:
    pdu = {"type": "m.room.member", "sender": ALICE, "state_key": MALLORY}
    pdu_with_flag = {**pdu, "content": {"membership": "ban", **FLAG}}
    event = Event.from_pdu(redact(pdu_with_flag, version), version, EventId("$ban"))
    assert asks_to_redact(event) is kept


@pytest.mark.parametrize(
    ("body", "flag"),
    [
        ({}, False),
        ({"redact_events": True}, True),
        (FLAG, True),
        ({"redact_events": False}, False),
        ({"redact_events": "yes"}, None),
        ({"redact_events": None}, None),
        ({"redact_events": False, **FLAG}, Disagreement(REDACT_EVENTS)),
    ],
)
def test_the_flag_in_a_request(body: dict[str, object], flag: object) -> None:
    assert read_flag(body) == flag
