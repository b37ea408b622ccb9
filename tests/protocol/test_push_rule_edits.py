"""Editing push rules: the stored object before and after, and what the API shows of it."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minihs.protocol.push_predefined_rules import KINDS, PREDEFINED_RULES
from minihs.protocol.push_rule_edits import (
    PushRuleError,
    compile_stored,
    copy_room_rules,
    delete_rule,
    is_default,
    put_rule,
    rule_json,
    rules_json,
    set_actions,
    set_enabled,
)
from minihs.protocol.push_rulesets import DEFAULT_RULESET, SILENT, read_actions

if TYPE_CHECKING:
    from collections.abc import Callable

ALICE = "@alice:hs1"
NOTIFY: dict[str, object] = {"actions": ["notify"]}


def shown(stored: dict[str, object], kind: str) -> list[Any]:
    rules: Any = rules_json(stored, ALICE)
    own: list[Any] = rules["global"][kind]
    return own


def own_ids(stored: dict[str, object], kind: str) -> list[str]:
    return [rule["rule_id"] for rule in shown(stored, kind) if not rule["default"]]


def put(stored: dict[str, object], rule_id: str, **where: str) -> dict[str, object]:
    return put_rule(stored, "room", rule_id, NOTIFY, **where)


# --- what is shown ------------------------------------------------------------------------------


def test_a_new_user_has_the_predefined_rules_in_their_order() -> None:
    for kind in KINDS:
        expected = [rule.rule_id for rule in PREDEFINED_RULES if rule.kind == kind]
        assert [rule["rule_id"] for rule in shown({}, kind)] == expected
        assert all(rule["default"] for rule in shown({}, kind))
    assert [rule["rule_id"] for rule in shown({}, "override") if not rule["enabled"]] == [
        ".m.rule.master"
    ]


def test_rules_about_the_user_name_the_user() -> None:
    invite = rule_json({}, "override", ".m.rule.invite_for_me", ALICE)
    assert invite["conditions"] == [
        {"kind": "event_match", "key": "type", "pattern": "m.room.member"},
        {"kind": "event_match", "key": "content.membership", "pattern": "invite"},
        {"kind": "event_match", "key": "state_key", "pattern": ALICE},
    ]
    assert rule_json({}, "content", ".m.rule.contains_user_name", ALICE)["pattern"] == "alice"


def test_everything_shown_is_json() -> None:
    assert json.loads(json.dumps(rules_json({}, ALICE))) == rules_json({}, ALICE)


def test_own_rules_stand_below_the_master_rule_and_above_the_others() -> None:
    stored = put_rule({}, "override", "mine", NOTIFY)
    ids = [rule["rule_id"] for rule in shown(stored, "override")]
    assert ids[:3] == [".m.rule.master", "mine", ".m.rule.suppress_notices"]


def test_a_rule_is_found_only_under_its_kind() -> None:
    with pytest.raises(PushRuleError) as raised:
        rule_json({}, "underride", ".m.rule.master", ALICE)
    assert (raised.value.status, raised.value.errcode) == (404, "M_NOT_FOUND")
    with pytest.raises(PushRuleError):
        rule_json({}, "postcontent", ".m.rule.master", ALICE)


def test_historical_actions_are_shown_as_given() -> None:
    stored = put_rule({}, "sender", ALICE, {"actions": ["dont_notify"]})
    assert rule_json(stored, "sender", ALICE, ALICE)["actions"] == ["dont_notify"]
    assert compile_stored(stored).senders == {ALICE: SILENT}


# --- adding and placing -------------------------------------------------------------------------


def test_a_new_rule_is_enabled_and_most_important() -> None:
    stored = put(put({}, "!a"), "!b")
    assert own_ids(stored, "room") == ["!b", "!a"]
    assert rule_json(stored, "room", "!b", ALICE) == {
        "rule_id": "!b",
        "default": False,
        "enabled": True,
        "actions": ["notify"],
    }


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"before": "!b"}, ["!c", "!new", "!b", "!a"]),
        ({"after": "!b"}, ["!c", "!b", "!new", "!a"]),
        ({"before": "!c"}, ["!new", "!c", "!b", "!a"]),
        ({"after": "!a"}, ["!c", "!b", "!a", "!new"]),
        ({"before": "!a", "after": "!c"}, ["!c", "!b", "!new", "!a"]),
    ],
)
def test_a_rule_is_placed_next_to_another(where: dict[str, str], expected: list[str]) -> None:
    stored = put(put(put({}, "!a"), "!b"), "!c")
    assert own_ids(put(stored, "!new", **where), "room") == expected
    moved = put(put(stored, "!new"), "!new", **where)
    assert own_ids(moved, "room") == expected


def test_a_replaced_rule_stays_where_and_as_it_is() -> None:
    stored = set_enabled(put(put({}, "!a"), "!b"), "room", "!a", False)
    stored = put_rule(stored, "room", "!a", {"actions": []})
    assert own_ids(stored, "room") == ["!b", "!a"]
    assert rule_json(stored, "room", "!a", ALICE)["enabled"] is False
    assert rule_json(stored, "room", "!a", ALICE)["actions"] == []


@pytest.mark.parametrize(
    ("kind", "rule_id", "body", "where", "errcode"),
    [
        ("room", "!a", {}, {}, "M_MISSING_PARAM"),
        ("content", "a", NOTIFY, {}, "M_MISSING_PARAM"),
        ("content", "a", {**NOTIFY, "pattern": 1}, {}, "M_INVALID_PARAM"),
        ("content", "a", {**NOTIFY, "pattern": "a" * 1025}, {}, "M_INVALID_PARAM"),
        ("room", ".mine", NOTIFY, {}, "M_INVALID_PARAM"),
        ("room", "", NOTIFY, {}, "M_INVALID_PARAM"),
        ("room", "a/b", NOTIFY, {}, "M_INVALID_PARAM"),
        ("room", "a\\b", NOTIFY, {}, "M_INVALID_PARAM"),
        ("room", "a" * 513, NOTIFY, {}, "M_INVALID_PARAM"),
        ("postcontent", "a", NOTIFY, {}, "M_INVALID_PARAM"),
        ("room", "!a", {"actions": "notify"}, {}, "M_INVALID_PARAM"),
        ("room", "!a", {"actions": ["shout"]}, {}, "M_INVALID_PARAM"),
        ("room", "!a", {"actions": [{"set_tweak": 1}]}, {}, "M_INVALID_PARAM"),
        ("room", "!a", {"actions": ["notify"] * 65}, {}, "M_INVALID_PARAM"),
        ("override", "a", {**NOTIFY, "conditions": {}}, {}, "M_INVALID_PARAM"),
        ("override", "a", {**NOTIFY, "conditions": [{}]}, {}, "M_INVALID_PARAM"),
        ("override", "a", {**NOTIFY, "conditions": [{"kind": "a"}] * 65}, {}, "M_INVALID_PARAM"),
        (
            "override",
            "a",
            {**NOTIFY, "conditions": [{"kind": "event_match", "key": "a", "pattern": "a" * 1025}]},
            {},
            "M_INVALID_PARAM",
        ),
        ("room", "!a", NOTIFY, {"before": "!none"}, "M_UNKNOWN"),
        ("room", "!a", NOTIFY, {"after": "!none"}, "M_UNKNOWN"),
        ("override", "a", NOTIFY, {"after": ".m.rule.master"}, "M_INVALID_PARAM"),
    ],
)
def test_what_cannot_be_put(
    kind: str, rule_id: str, body: dict[str, object], where: dict[str, str], errcode: str
) -> None:
    with pytest.raises(PushRuleError) as raised:
        put_rule({}, kind, rule_id, body, **where)
    assert (raised.value.status, raised.value.errcode) == (400, errcode)


def test_unknown_kinds_of_condition_are_kept_for_servers_and_clients_to_come() -> None:
    condition = {"kind": "org.example.moon", "phase": "full"}
    stored = put_rule({}, "override", "moon", {**NOTIFY, "conditions": [condition]})
    assert rule_json(stored, "override", "moon", ALICE)["conditions"] == [condition]


# --- deleting and changing ----------------------------------------------------------------------


def test_deleting_the_last_rule_leaves_nothing() -> None:
    assert delete_rule(put({}, "!a"), "room", "!a") == {}


@pytest.mark.parametrize("rule_id", ["!none", ".m.rule.master"])
def test_what_cannot_be_deleted(rule_id: str) -> None:
    with pytest.raises(PushRuleError) as raised:
        delete_rule(put({}, "!a"), "override", rule_id)
    assert raised.value.errcode == "M_NOT_FOUND"


def test_a_predefined_rule_is_changed_and_changed_back() -> None:
    stored = set_enabled({}, "override", ".m.rule.master", True)
    assert rule_json(stored, "override", ".m.rule.master", ALICE)["enabled"] is True
    assert not is_default(stored)
    assert compile_stored(stored).before[0].rule_id == ".m.rule.master"
    assert set_enabled(stored, "override", ".m.rule.master", False) == {}

    stored = set_actions({}, "underride", ".m.rule.message", [])
    assert rule_json(stored, "underride", ".m.rule.message", ALICE)["actions"] == []
    assert set_actions(stored, "underride", ".m.rule.message", ["notify"]) == {}


def test_a_disabled_rule_of_ones_own_is_not_compiled() -> None:
    stored = set_enabled(put({}, "!a"), "room", "!a", False)
    assert compile_stored(stored).rooms == {}


@pytest.mark.parametrize("change", [set_enabled, set_actions])
def test_a_rule_that_is_not_there_cannot_be_changed(
    change: Callable[..., dict[str, object]],
) -> None:
    value: object = True if change is set_enabled else []
    for kind, rule_id in (("room", "!none"), ("room", ".m.rule.master"), ("nope", "x")):
        with pytest.raises(PushRuleError) as raised:
            change({}, kind, rule_id, value)
        assert raised.value.errcode == "M_NOT_FOUND"


def test_values_of_the_wrong_type() -> None:
    with pytest.raises(PushRuleError) as raised:
        set_enabled({}, "override", ".m.rule.master", "yes")
    assert raised.value.errcode == "M_BAD_JSON"
    with pytest.raises(PushRuleError) as raised:
        set_actions({}, "override", ".m.rule.master", "notify")
    assert raised.value.errcode == "M_INVALID_PARAM"


def test_the_untouched_ruleset_is_the_default_one() -> None:
    compiled = compile_stored({})
    assert [rule.rule_id for rule in compiled.before] == [
        rule.rule_id for rule in DEFAULT_RULESET.before
    ]
    assert is_default({})
    assert read_actions(NOTIFY["actions"]).notify  # type: ignore[arg-type]  # A list, above.


# --- room upgrades ------------------------------------------------------------------------------


def test_rules_about_a_room_follow_its_upgrade() -> None:
    about = {"kind": "event_match", "key": "room_id", "pattern": "!old"}
    other = {"kind": "event_match", "key": "type", "pattern": "m.x"}
    stored = put({}, "!old")
    stored = put_rule(stored, "override", "!old", {"actions": [], "conditions": [about, other]})
    stored = put_rule(stored, "underride", "quiet", {"actions": [], "conditions": [about]})
    stored = put(stored, "!else")
    before = copy.deepcopy(stored)
    copied = copy_room_rules(stored, "!old", "!new")
    assert stored == before
    assert set(own_ids(copied, "room")) == {"!old", "!new", "!else"}
    assert rule_json(copied, "override", "!new", ALICE)["conditions"] == [
        {**about, "pattern": "!new"},
        other,
    ]
    assert rule_json(copied, "underride", "!new", ALICE)["conditions"] == [
        {**about, "pattern": "!new"}
    ]
    assert copy_room_rules(copied, "!old", "!new") == copied


# --- properties ---------------------------------------------------------------------------------

EDITS = st.lists(
    st.tuples(
        st.sampled_from(["put", "delete", "disable", "enable", "act", "master"]),
        st.sampled_from(["!a", "!b", "!c"]),
        st.none() | st.sampled_from(["!a", "!b"]),
    ),
    max_size=12,
)


@given(EDITS)
def test_no_edit_changes_what_it_was_given_and_ids_stay_unique(
    edits: list[tuple[str, str, str | None]],
) -> None:
    stored: dict[str, object] = {}
    for what, rule_id, before in edits:
        frozen = copy.deepcopy(stored)
        result = stored
        try:
            match what:
                case "put":
                    result = put_rule(stored, "room", rule_id, NOTIFY, before=before)
                case "delete":
                    result = delete_rule(stored, "room", rule_id)
                case "disable" | "enable":
                    result = set_enabled(stored, "room", rule_id, what == "enable")
                case "act":
                    result = set_actions(stored, "room", rule_id, [])
                case _:
                    result = set_enabled(stored, "override", ".m.rule.master", before is None)
        except PushRuleError:
            pass
        assert stored == frozen
        stored = result
        ids = own_ids(stored, "room")
        assert len(ids) == len(set(ids))
        assert json.loads(json.dumps(stored)) == stored
        compile_stored(stored)
