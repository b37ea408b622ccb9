"""Push rules: conditions one by one, the predefined rules, and the fast path against the slow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minihs.protocol.events import Event
from minihs.protocol.identifiers import EventId
from minihs.protocol.power_levels import PowerLevels
from minihs.protocol.push_occasions import MemberNames, Occasion
from minihs.protocol.push_rules import default_outcomes, evaluate
from minihs.protocol.push_rulesets import (
    DEFAULT_RULESET,
    SILENT,
    Outcome,
    OwnRule,
    RuleChange,
    compile_ruleset,
    read_actions,
)
from minihs.protocol.room_versions import V11

if TYPE_CHECKING:
    from collections.abc import Mapping

ALICE = "@alice:hs1"  # Moderator, may notify the room.
BOB = "@bob:hs1"
CAROL = "@carol:hs1"
MALLORY = "@mallory:evil"
MEMBERS: Mapping[str, str | None] = {
    ALICE: "Alice",
    BOB: "Bob the Builder",
    CAROL: "キャロル",  # No word of letters A to Z.
    "@dave:hs1": None,
    "@eve:hs1": "  ",
    "@bob2:hs1": "bob",
}
POWER = PowerLevels({"users": {ALICE: 50}}, V11, frozenset(), has_event=True)

QUIET = Outcome(notify=True)
SOUND = Outcome(notify=True, tweaks={"sound": "default"})
LOUD = Outcome(notify=True, highlight=True, tweaks={"sound": "default", "highlight": True})
HIGHLIGHT = Outcome(notify=True, highlight=True, tweaks={"highlight": True})


def occasion(
    content: Mapping[str, object] | None = None,
    *,
    event_type: str = "m.room.message",
    sender: str = MALLORY,
    state_key: str | None = None,
    member_count: int = 6,
) -> Occasion:
    pdu: dict[str, object] = {
        "type": event_type,
        "sender": sender,
        "room_id": "!room:hs1",
        "content": dict(content or {}),
    }
    if state_key is not None:
        pdu["state_key"] = state_key
    event = Event.from_pdu(pdu, V11, EventId("$event"))
    return Occasion(event, member_count=member_count, power=POWER)


# --- the predefined rules -----------------------------------------------------------------------

HELLO = {"body": "hello", "msgtype": "m.text"}
INVITE = {"membership": "invite"}


@pytest.mark.parametrize(
    ("what", "bob", "everyone"),
    [
        (occasion(HELLO), QUIET, QUIET),
        (occasion({**HELLO, "msgtype": "m.notice"}), SILENT, SILENT),
        (
            occasion({"membership": "join"}, event_type="m.room.member", state_key=BOB),
            SILENT,
            SILENT,
        ),
        (occasion(INVITE, event_type="m.room.member", state_key=BOB), SOUND, SILENT),
        (occasion({**HELLO, "m.mentions": {"user_ids": [BOB]}}), LOUD, QUIET),
        (occasion({**HELLO, "m.mentions": {"user_ids": {BOB: 1}}}), QUIET, QUIET),
        (occasion({**HELLO, "m.mentions": {"user_ids": [1, [BOB]]}}), QUIET, QUIET),
        (occasion({"m.mentions": {"user_ids": [BOB]}}, event_type="m.anything"), LOUD, SILENT),
        (occasion({**HELLO, "m.mentions": {"room": True}}, sender=ALICE), HIGHLIGHT, HIGHLIGHT),
        (occasion({**HELLO, "m.mentions": {"room": True}}), QUIET, QUIET),
        (occasion({**HELLO, "m.mentions": {"room": 1}}, sender=ALICE), QUIET, QUIET),
        (occasion({"body": "hi @room!"}, sender=ALICE), HIGHLIGHT, HIGHLIGHT),
        (occasion({"body": "hi @room!"}), QUIET, QUIET),
        (occasion({"body": "@room", "m.mentions": {}}, sender=ALICE), QUIET, QUIET),
        (occasion({"body": "BOB THE BUILDER, can you?"}), LOUD, QUIET),
        (occasion({"body": "bob: hello"}), LOUD, QUIET),  # His localpart.
        (occasion({"body": "bob: hello", "m.mentions": {}}), QUIET, QUIET),
        (occasion({"body": "bobby: hello"}), QUIET, QUIET),
        (occasion(event_type="m.room.tombstone", state_key=""), HIGHLIGHT, HIGHLIGHT),
        (occasion(event_type="m.room.tombstone"), SILENT, SILENT),
        (occasion(event_type="m.reaction"), SILENT, SILENT),
        (occasion({"body": "bob"}, event_type="m.room.server_acl", state_key=""), SILENT, SILENT),
        (occasion({**HELLO, "m.relates_to": {"rel_type": "m.replace"}}), SILENT, SILENT),
        (occasion(event_type="m.room.encrypted"), QUIET, QUIET),
        (occasion(event_type="m.room.encrypted", member_count=2), SOUND, SOUND),
        (occasion(HELLO, member_count=2), SOUND, SOUND),
        (occasion(event_type="org.matrix.msc3381.poll.start"), QUIET, QUIET),
        (occasion(event_type="org.matrix.msc3381.poll.end", member_count=2), SOUND, SOUND),
        (occasion(event_type="org.matrix.msc3381.poll.response"), SILENT, SILENT),
        (occasion(event_type="m.room.topic", state_key=""), SILENT, SILENT),
        (occasion({"body": 1}), QUIET, QUIET),
    ],
)
def test_predefined_rules(what: Occasion, bob: Outcome, everyone: Outcome) -> None:
    assert evaluate(DEFAULT_RULESET, what, BOB, MEMBERS[BOB]) == bob
    assert evaluate(DEFAULT_RULESET, what, "@zoe:hs1", "Zoe") == everyone


def test_a_call_rings() -> None:
    ring = evaluate(DEFAULT_RULESET, occasion(event_type="m.call.invite"), BOB, None)
    assert ring.tweaks == {"sound": "ring"}


def test_nobody_is_notified_of_what_they_sent() -> None:
    assert evaluate(DEFAULT_RULESET, occasion(HELLO, sender=BOB), BOB, "Bob") is SILENT


# --- conditions ---------------------------------------------------------------------------------

CONTENT = {
    "topic": "Lunch plans",
    "m.federate": True,
    "one": 1,
    "none": None,
    "list": ["a", 1, True, {"b": 1}, None],
    "object": {"inner": "x"},
    "body": "An exciting triple-whammy",
}


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ({"kind": "event_match", "key": "content.topic", "pattern": "lunc?*"}, True),
        ({"kind": "event_match", "key": "content.topic", "pattern": "lunch"}, False),
        ({"kind": "event_match", "key": "content.nothing", "pattern": "*"}, False),
        ({"kind": "event_match", "key": "content.one", "pattern": "*"}, False),
        ({"kind": "event_match", "key": "content", "pattern": "*"}, False),
        ({"kind": "event_match", "key": "content.topic.deeper", "pattern": "*"}, False),
        ({"kind": "event_match", "key": "content.body", "pattern": "ex*ple"}, True),
        ({"kind": "event_match", "key": "content.body", "pattern": "excit"}, False),
        ({"kind": "event_match", "key": "room_id", "pattern": "!room:hs1"}, True),
        ({"kind": "event_match", "key": "state_key", "pattern": "*"}, False),
        ({"kind": "event_match", "key": "content.topic"}, False),
        ({"kind": "event_match", "pattern": "*"}, False),
        ({"kind": "event_match", "key": "content.topic", "pattern": 1}, False),
        ({"kind": "event_property_is", "key": r"content.m\.federate", "value": True}, True),
        ({"kind": "event_property_is", "key": r"content.m\.federate", "value": 1}, False),
        ({"kind": "event_property_is", "key": r"content.m\.federate", "value": "true"}, False),
        ({"kind": "event_property_is", "key": "content.one", "value": 1}, True),
        ({"kind": "event_property_is", "key": "content.one", "value": True}, False),
        ({"kind": "event_property_is", "key": "content.one", "value": 1.0}, False),
        ({"kind": "event_property_is", "key": "content.none", "value": None}, True),
        ({"kind": "event_property_is", "key": "content.nothing", "value": None}, False),
        ({"kind": "event_property_is", "key": "content.list", "value": []}, False),
        ({"kind": "event_property_is", "key": "content.object.inner", "value": "x"}, True),
        ({"kind": "event_property_contains", "key": "content.list", "value": "a"}, True),
        ({"kind": "event_property_contains", "key": "content.list", "value": None}, True),
        ({"kind": "event_property_contains", "key": "content.list", "value": False}, False),
        ({"kind": "event_property_contains", "key": "content.list", "value": {"b": 1}}, False),
        ({"kind": "event_property_contains", "key": "content.topic", "value": "L"}, False),
        ({"kind": "contains_display_name"}, False),
        ({"kind": "sender_notification_permission", "key": "room"}, False),
        ({"kind": "sender_notification_permission"}, False),
        ({"kind": "room_member_count", "is": "6"}, True),
        ({"kind": "room_member_count", "is": "==6"}, True),
        ({"kind": "room_member_count", "is": "<6"}, False),
        ({"kind": "room_member_count", "is": "<=6"}, True),
        ({"kind": "room_member_count", "is": ">5"}, True),
        ({"kind": "room_member_count", "is": ">=7"}, False),
        ({"kind": "room_member_count", "is": "=6"}, False),
        ({"kind": "room_member_count", "is": "٦"}, False),  # A digit, but not a decimal of ours.
        ({"kind": "room_member_count", "is": 6}, False),
        ({"kind": "org.example.moon_phase"}, False),
        ({}, False),
        ("no condition", False),
    ],
)
def test_condition(condition: object, holds: bool) -> None:
    ruleset = compile_ruleset({"override": [OwnRule("mine", ("notify",), (condition,))]}, {})
    what = occasion(CONTENT, event_type="m.room.topic")
    assert evaluate(ruleset, what, BOB, "Bob").notify is holds


def test_a_rule_without_conditions_always_matches() -> None:
    ruleset = compile_ruleset({"underride": [OwnRule("mine", ("notify",))]}, {})
    assert evaluate(ruleset, occasion(event_type="m.any"), BOB, None) == QUIET


# --- kinds and their order ----------------------------------------------------------------------


def sound(name: str) -> tuple[object, ...]:
    return ("notify", {"set_tweak": "sound", "value": name})


OWN = {
    "override": [
        OwnRule("o", sound("o"), ({"kind": "event_match", "key": "content.o", "pattern": "1"},))
    ],
    "content": [OwnRule("c", sound("c"), pattern="cake*lie")],
    "room": [OwnRule("!room:hs1", sound("r"))],
    "sender": [OwnRule(MALLORY, sound("s"))],
    "underride": [OwnRule("u", sound("u"))],
}


@pytest.mark.parametrize(
    ("without", "content", "expected"),
    [
        ((), {"o": "1", "body": "the cake is a lie"}, "o"),
        ((), {"body": "the cake is a lie"}, "c"),
        ((), {"body": "the cakes are a lie"}, "c"),
        ((), {"body": "cheesecake is a lie"}, "r"),
        (("room",), {}, "s"),
        (("room", "sender"), {}, "u"),
    ],
)
def test_kinds_are_tried_in_order(
    without: tuple[str, ...], content: dict[str, object], expected: str
) -> None:
    ruleset = compile_ruleset({kind: OWN[kind] for kind in OWN if kind not in without}, {})
    assert evaluate(ruleset, occasion(content), BOB, None).tweaks == {"sound": expected}


def test_the_master_rule_stands_above_the_users_own() -> None:
    ruleset = compile_ruleset(
        {"override": [OwnRule("mine", ("notify",))]}, {".m.rule.master": RuleChange(enabled=True)}
    )
    assert evaluate(ruleset, occasion(HELLO), BOB, None) is SILENT


def test_a_changed_predefined_rule() -> None:
    changes = {
        ".m.rule.message": RuleChange(actions=sound("ding")),
        ".m.rule.suppress_notices": RuleChange(enabled=False),
        ".m.rule.no_more": RuleChange(enabled=True),
    }
    ruleset = compile_ruleset({}, changes)
    notice = occasion({**HELLO, "msgtype": "m.notice"})
    assert evaluate(ruleset, notice, BOB, None).tweaks == {"sound": "ding"}


@pytest.mark.parametrize(
    ("actions", "outcome"),
    [
        ([], SILENT),
        (["notify"], QUIET),
        (["dont_notify"], SILENT),
        (["notify", "coalesce", "dont_notify"], QUIET),
        (["notify", {"set_tweak": "highlight"}], HIGHLIGHT),
        ([{"set_tweak": "highlight"}], SILENT),
        (
            ["notify", {"set_tweak": "highlight", "value": False}],
            Outcome(notify=True, tweaks={"highlight": False}),
        ),
        (
            ["notify", {"set_tweak": "flash", "value": 3}, 7, None, {}],
            Outcome(True, False, {"flash": 3}),
        ),
    ],
)
def test_actions(actions: list[object], outcome: Outcome) -> None:
    assert read_actions(actions) == outcome


# --- the fast path ------------------------------------------------------------------------------

NAMES = st.sampled_from(
    [
        "Alice",
        "Bob the Builder",
        "bob",
        "キャロル",
        "É",
        "a-b",
        "_",
        " ",
        "",
        None,
        "x" * 3,
        "B*b",
        "😀 é",
    ]
)
BODIES = st.lists(
    st.sampled_from(
        [
            "alice",
            "bob the builder",
            "Bob",
            "キャロル",
            "é",
            "a-b",
            "@room",
            "u1",
            "U2",
            "xxx",
            "b*b",
            "😀",
            "é_",
            "!",
        ]
    ),
    max_size=5,
).flatmap(lambda words: st.sampled_from([" ", "", "-"]).map(lambda sep: sep.join(words)))
CONTENTS = st.fixed_dictionaries(
    {},
    optional={
        "body": BODIES | st.just(1),
        "msgtype": st.sampled_from(["m.text", "m.notice"]),
        "membership": st.sampled_from(["invite", "join"]),
        "m.mentions": st.fixed_dictionaries(
            {},
            optional={
                "room": st.booleans(),
                "user_ids": st.lists(st.sampled_from(["@u1:hs1", "@u2:hs1", MALLORY, 3])),
            },
        ),
        "m.relates_to": st.just({"rel_type": "m.replace"}),
    },
)


@given(
    st.lists(NAMES, min_size=1, max_size=5),
    CONTENTS,
    st.sampled_from(
        ["m.room.message", "m.room.member", "m.room.encrypted", "m.reaction", "m.room.tombstone"]
    ),
    st.sampled_from([ALICE, MALLORY, "@u1:hs1"]),
    st.sampled_from([None, "", "@u1:hs1"]),
    st.integers(2, 3),
)
def test_the_fast_path_agrees_with_the_slow_for_everyone(
    names: list[str | None],
    content: dict[str, object],
    event_type: str,
    sender: str,
    state_key: str | None,
    member_count: int,
) -> None:
    members = {f"@u{number}:hs1": name for number, name in enumerate(names)}

    def happens() -> Occasion:
        return occasion(
            content,
            event_type=event_type,
            sender=sender,
            state_key=state_key,
            member_count=member_count,
        )

    fast = default_outcomes(happens(), MemberNames(members))
    for user_id, name in members.items():
        slow = evaluate(DEFAULT_RULESET, happens(), user_id, name)
        assert fast.of(user_id) == slow, user_id
    assert fast.deviations.keys() <= members.keys()


def test_the_fast_path_names_those_who_deviate() -> None:
    what = occasion({"body": "bob, キャロル: look!"}, sender=ALICE)
    outcomes = default_outcomes(what, MemberNames(MEMBERS))
    assert outcomes.common == QUIET
    assert outcomes.deviations == {BOB: LOUD, "@bob2:hs1": LOUD, CAROL: LOUD, ALICE: SILENT}
