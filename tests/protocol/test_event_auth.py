"""Authorization, told as stories and as one table of rules.

The many combinations are in the tables that `test_vectors` replays; here each rule has its name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from minihs.protocol.event_auth import (
    EventAuthError,
    check_against_auth_events,
    check_signers,
    check_state_dependent,
    check_state_independent,
    select_auth_keys,
)
from minihs.protocol.events import Event
from minihs.protocol.identifiers import EventId
from minihs.protocol.room_versions import ROOM_VERSIONS
from minihs.protocol.signatures import sign_json
from tests.helpers.rooms import ALICE, BOB, CAROL, MALLORY, Room, signing_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from minihs.protocol.identifiers import StateKey

MEMBER = "m.room.member"
MODERATED = {"users": {BOB: 50}, "events_default": 0, "invite": 50}


def crowded(version: str = "12") -> Room:
    """Alice's room; Bob is a moderator, Carol a member, Mallory banned."""
    levels = {**MODERATED, "users": {BOB: 50}}
    if not ROOM_VERSIONS[version].creators_are_privileged:
        levels = {**MODERATED, "users": {ALICE: 100, BOB: 50}}
    room = Room(version, levels)
    room.join(BOB)
    room.join(CAROL)
    room.send(ALICE, MEMBER, {"membership": "ban"}, state_key=MALLORY)
    return room


def state(room: Room) -> dict[StateKey, Event]:
    return {key: room.events[e] for key, e in room.state_of(room.ends).items()}


Attempt = tuple[str, str, dict[str, object], str | None]

REFUSED: dict[str, tuple[str, Attempt]] = {
    "a stranger speaks": (
        "sender.not-joined", ("@stranger:hs1", "m.room.message", {}, None),
    ),
    "a banned user joins": (
        "member.join.banned", (MALLORY, MEMBER, {"membership": "join"}, MALLORY),
    ),
    "Bob makes somebody join": (
        "member.join.sender", (BOB, MEMBER, {"membership": "join"}, "@stranger:hs1"),
    ),
    "a banned user leaves": (
        "member.leave.own", (MALLORY, MEMBER, {"membership": "leave"}, MALLORY),
    ),
    "Carol invites without power": (
        "member.invite.level", (CAROL, MEMBER, {"membership": "invite"}, "@stranger:hs1"),
    ),
    "Bob invites a member": (
        "member.invite.target", (BOB, MEMBER, {"membership": "invite"}, CAROL),
    ),
    "a stranger invites": (
        "member.invite.sender", ("@stranger:hs1", MEMBER, {"membership": "invite"}, "@s:hs1"),
    ),
    "Carol kicks Bob": ("member.leave.kick", (CAROL, MEMBER, {"membership": "leave"}, BOB)),
    "Bob kicks Alice": ("member.leave.kick", (BOB, MEMBER, {"membership": "leave"}, ALICE)),
    "Carol unbans": ("member.leave.unban", (CAROL, MEMBER, {"membership": "leave"}, MALLORY)),
    "Bob bans Alice": ("member.ban.level", (BOB, MEMBER, {"membership": "ban"}, ALICE)),
    "Carol bans": ("member.ban.level", (CAROL, MEMBER, {"membership": "ban"}, "@s:hs1")),
    "a stranger bans": ("member.ban.sender", ("@s:hs1", MEMBER, {"membership": "ban"}, CAROL)),
    "knocking on a public room": (
        "member.knock.rule", ("@s:hs1", MEMBER, {"membership": "knock"}, "@s:hs1"),
    ),
    "a membership nobody knows": (
        "member.unknown", (BOB, MEMBER, {"membership": "hover"}, BOB),
    ),
    "no membership": ("member.form", (BOB, MEMBER, {}, BOB)),
    "a membership of nobody": ("member.form", (BOB, MEMBER, {"membership": "join"}, None)),
    "an invitation by address without proof": (
        "member.invite.third-party.form",
        (BOB, MEMBER, {"membership": "invite", "third_party_invite": {}}, "@s:hs1"),
    ),
    "an invitation by address of a banned user": (
        "member.invite.third-party.banned",
        (BOB, MEMBER, {"membership": "invite", "third_party_invite": {}}, MALLORY),
    ),
    "Carol sets the topic": ("event.level", (CAROL, "m.room.topic", {"topic": "x"}, "")),
    "Carol invites an address": (
        "third_party_invite.level", (CAROL, "m.room.third_party_invite", {}, "token"),
    ),
    "Bob writes Carol's own state": ("state_key.user", (BOB, "m.test", {}, CAROL)),
    "Bob raises himself": (
        "power_levels.change", (BOB, "m.room.power_levels", {**MODERATED, "users": {BOB: 51}}, ""),
    ),
    "Bob asks for more than he has": (
        "power_levels.change", (BOB, "m.room.power_levels", {**MODERATED, "ban": 60}, ""),
    ),
    "a level that is a string": (
        "power_levels.integers", (BOB, "m.room.power_levels", {**MODERATED, "ban": "50"}, ""),
    ),
    "a level of somebody who is no user": (
        "power_levels.users",
        (BOB, "m.room.power_levels", {**MODERATED, "users": {BOB: 50, "carol": 1}}, ""),
    ),
    "a level for the creator": (
        "power_levels.creators",
        (BOB, "m.room.power_levels", {**MODERATED, "users": {BOB: 50, ALICE: 50}}, ""),
    ),
}  # fmt: skip


@pytest.mark.spec("rooms/v12#authorisation-rules")
@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_the_rule_of_that_name(name: str) -> None:
    rule, (sender, event_type, content, state_key) = REFUSED[name]
    room = crowded("12")
    # Bob's levels are set by a moderator: let the room allow the type itself.
    event = room.draft(sender, event_type, content, state_key=state_key)
    with pytest.raises(EventAuthError) as refused:
        check_state_dependent(event, state(room))
    assert refused.value.rule == rule
    assert refused.value.passage == "rooms/v12#authorisation-rules"
    assert refused.value.message


@pytest.mark.parametrize("version", sorted(ROOM_VERSIONS))
def test_a_day_in_a_room_of_every_version(version: str) -> None:
    room = crowded(version)
    room.send(CAROL, "m.room.message", {"body": "hello"})
    room.send(BOB, "m.room.topic", {"topic": "tea"}, state_key="")
    room.send(BOB, MEMBER, {"membership": "leave"}, state_key=CAROL)
    room.send(BOB, MEMBER, {"membership": "invite"}, state_key=CAROL)
    room.send(ALICE, "m.room.join_rules", {"join_rule": "invite"}, state_key="")
    room.join(CAROL)
    room.send(CAROL, MEMBER, {"membership": "leave"}, state_key=CAROL)
    with pytest.raises(EventAuthError, match="not invited"):
        room.join(CAROL)
    room.send(ALICE, MEMBER, {"membership": "leave"}, state_key=MALLORY)
    assert room.current("m.room.topic") is not None


@pytest.mark.spec("rooms/v7#authorisation-rules")
def test_knocking_needs_v7() -> None:
    for version, rule in (("6", "member.unknown"), ("7", None), ("12", None)):
        room = Room(version)
        room.send(ALICE, "m.room.join_rules", {"join_rule": "knock"}, state_key="")
        knock = room.draft(CAROL, MEMBER, {"membership": "knock"}, state_key=CAROL)
        assert refusal(room.accept, knock) == rule


@pytest.mark.spec("rooms/v8#authorisation-rules")
def test_a_member_who_may_invite_vouches_for_a_restricted_join() -> None:
    room = Room("12", {"users": {BOB: 50}, "invite": 50})
    room.join(BOB)
    room.join("@dave:hs1")
    room.send(ALICE, "m.room.join_rules", {"join_rule": "restricted", "allow": []}, state_key="")

    def attempt(**vouched: str) -> str | None:
        content = {"membership": "join", **vouched}
        join = room.draft("@eve:hs1", MEMBER, content, state_key="@eve:hs1")
        return refusal(check_state_dependent, join, state(room))

    assert attempt() == "member.join.restricted"
    assert attempt(join_authorised_via_users_server="@dave:hs1") == "member.join.restricted"
    assert attempt(join_authorised_via_users_server="@nobody:hs1") == "member.join.restricted"
    assert attempt(join_authorised_via_users_server=BOB) is None


@pytest.mark.spec("rooms/v12#authorisation-rules")
def test_an_invitation_by_address_is_accepted_by_whoever_proves_to_own_it() -> None:
    room = crowded()
    identity_server = signing_key("id.test")
    room.send(
        BOB,
        "m.room.third_party_invite",
        {"display_name": "e", "public_keys": [{"public_key": identity_server.public_key_base64}]},
        state_key="token",
    )
    eve = "@eve:hs2"
    signed = sign_json({"mxid": eve, "token": "token"}, "id.test", identity_server)  # type: ignore[arg-type]  # a literal

    def attempt(sender: str, proof: object) -> str | None:
        content = {"membership": "invite", "third_party_invite": {"signed": proof}}
        invite = room.draft(sender, MEMBER, content, state_key=eve)
        return refusal(check_state_dependent, invite, state(room))

    assert attempt(BOB, signed) is None
    assert attempt(ALICE, signed) == "member.invite.third-party.sender"
    assert attempt(BOB, {**signed, "mxid": CAROL}) == "member.invite.third-party.mxid"
    assert attempt(BOB, {**signed, "token": "x"}) == "member.invite.third-party.token"
    assert attempt(BOB, {**signed, "more": 1}) == "member.invite.third-party.signature"
    assert attempt(BOB, {"mxid": eve, "token": "token"}) == "member.invite.third-party.form"


def test_a_room_that_does_not_federate_keeps_others_out() -> None:
    room = Room("11")
    pdu = {**room.create.pdu, "content": {"room_version": "11", "m.federate": False}}
    closed = Event.from_pdu(pdu, room.room_version, room.create.event_id)
    join = room.draft(CAROL, MEMBER, {"membership": "join"}, state_key=CAROL)
    rule = refusal(check_state_dependent, join, {**state(room), closed.key: closed})
    assert rule == "room.federate"
    invite = room.draft(ALICE, MEMBER, {"membership": "invite"}, state_key=CAROL)
    rule = refusal(check_state_dependent, invite, {**state(room), closed.key: closed})
    assert rule == "member.federate"


@pytest.mark.spec("rooms/v1#authorisation-rules")
def test_a_redaction_needs_power_or_a_common_server_until_v2() -> None:
    for version, outcome in (("2", "redaction.level"), ("3", None), ("12", None)):
        room = crowded(version)
        message = room.send(BOB, "m.room.message", {"body": "x"})
        own = room.send(CAROL, "m.room.message", {"body": "y"})
        room.send(CAROL, "m.room.redaction", {}, redacts=own.event_id)
        redaction = room.draft(CAROL, "m.room.redaction", {}, redacts=message.event_id)
        assert refusal(check_state_dependent, redaction, state(room)) == outcome


@pytest.mark.spec("server-server-api#auth-events-selection")
def test_auth_events_are_selected_by_what_the_rules_look_at() -> None:
    def keys(version: str, event_type: str, state_key: str | None, **content: object) -> list[str]:
        selected = select_auth_keys(ROOM_VERSIONS[version], ALICE, event_type, state_key, content)
        return [f"{kind.removeprefix('m.room.')} {key}".strip() for kind, key in selected]

    invited = {"signed": {"token": "t"}}
    assert keys("12", "m.room.create", "") == []
    assert keys("12", "m.room.message", None) == ["power_levels", f"member {ALICE}"]
    assert keys("11", "m.room.message", None) == ["create", "power_levels", f"member {ALICE}"]
    assert keys("12", MEMBER, BOB, membership="leave") == [
        "power_levels", f"member {ALICE}", f"member {BOB}",
    ]  # fmt: skip
    assert keys("12", MEMBER, ALICE, membership="join")[2:] == ["join_rules"]
    assert keys("12", MEMBER, BOB, membership="invite", third_party_invite=invited)[3:] == [
        "join_rules", "third_party_invite t",
    ]  # fmt: skip
    vouched = {"membership": "join", "join_authorised_via_users_server": BOB}
    assert keys("12", MEMBER, ALICE, **vouched)[2:] == ["join_rules", f"member {BOB}"]
    assert keys("7", MEMBER, ALICE, **vouched)[3:] == ["join_rules"]


class TestAuthEvents:
    """What an event names as its auth events."""

    def test_a_rejected_auth_event_rejects(self) -> None:
        room = crowded()
        message = room.draft(BOB, "m.room.message", {})
        auth_events = [room.events[e] for e in message.auth_event_ids]
        check_against_auth_events(message, auth_events)
        for auth_event in auth_events:
            rejected = {auth_event.event_id}
            rule = refusal(check_state_independent, message, auth_events, rejected)
            assert rule in ("auth_events.rejected", "room_id.create")

    def test_unknown_auth_events_reject(self) -> None:
        room = crowded()
        message = room.draft(BOB, "m.room.message", {})
        assert refusal(check_state_independent, message, []) == "auth_events.unknown"

    def test_the_create_event_is_implied_since_v12(self) -> None:
        room = crowded()
        message = room.draft(BOB, "m.room.message", {})
        named = [*message.auth_event_ids]  # Ends with the create event.
        event = Event.from_pdu({**message.pdu, "auth_events": named}, room.room_version)
        auth_events = [room.events[e] for e in event.auth_event_ids]
        rule = refusal(check_state_independent, event, auth_events)
        assert rule == "auth_events.selection"

    def test_a_room_id_that_names_another_event_rejects(self) -> None:
        room = crowded()
        message = room.draft(BOB, "m.room.message", {})
        other = message.auth_event_ids[0]
        pdu = {**message.pdu, "room_id": "!" + other[1:]}
        event = Event.from_pdu(pdu, room.room_version)
        auth_events = [room.events[e] for e in event.auth_event_ids]
        assert refusal(check_state_independent, event, auth_events) == "room_id.create"

    def test_auth_events_of_another_room_reject(self) -> None:
        room, other = crowded("11"), crowded("11")
        message = room.draft(BOB, "m.room.message", {})
        other.room_id = room.room_id
        foreign = Event.from_pdu(
            {**room.create.pdu, "room_id": "!other:hs1"}, room.room_version, room.create.event_id
        )
        auth_events = [room.events[e] for e in message.auth_event_ids[1:]]
        rule = refusal(check_state_independent, message, [foreign, *auth_events])
        assert rule == "auth_events.room_id"

    def test_a_message_authorizes_nothing(self) -> None:
        room = crowded()
        message = room.send(BOB, "m.room.message", {})
        pdu = {**message.pdu, "auth_events": [message.event_id]}
        event = Event.from_pdu(pdu, room.room_version)
        rule = refusal(check_state_independent, event, [message, room.create])
        assert rule == "auth_events.selection"

    def test_a_missing_signature_rejects(self) -> None:
        room = crowded()
        message = room.draft(BOB, "m.room.message", {})
        unsigned = Event.from_pdu({**message.pdu, "signatures": {}}, room.room_version)
        assert refusal(check_signers, unsigned) == "signatures.missing"


@pytest.mark.spec("rooms/v12#authorisation-rules", "rooms/v1#authorisation-rules")
@pytest.mark.parametrize(
    ("version", "change", "rule"),
    [
        ("1", {}, None),
        ("1", {"prev_events": [["$e:hs1", {}]]}, "create.prev_events"),
        ("1", {"room_id": "!room:hs2"}, "create.room_id"),
        ("1", {"content": {}}, "create.creator"),
        ("1", {"content": {"creator": ALICE, "room_version": "999"}}, "create.room_version"),
        ("1", {"content": {"creator": ALICE, "room_version": ["1"]}}, "create.room_version"),
        ("11", {"content": {}}, None),
        ("12", {"content": {"additional_creators": [BOB]}}, None),
        ("12", {"content": {"additional_creators": ["bob"]}}, "create.additional_creators"),
        ("12", {"content": {"additional_creators": BOB}}, "create.additional_creators"),
        ("12", {"room_id": "!room:hs1"}, "create.room_id"),
    ],
)
def test_create_events(version: str, change: dict[str, object], rule: str | None) -> None:
    pdu = {**Room(version).create.pdu, **change}
    create = Event.from_pdu(pdu, ROOM_VERSIONS[version], EventId("$create:hs1"))
    assert refusal(check_state_independent, create, []) == rule
    check_state_dependent(create, {})


def refusal(attempt: Callable[..., object], *arguments: object) -> str | None:
    """Return the rule that refuses the attempt, or None if it succeeds."""
    try:
        attempt(*arguments)
    except EventAuthError as error:
        return error.rule
    return None
