"""A user's push rules as they are stored and edited: what the user changed, and nothing else.

Stored is a JSON object: the rules that the user made, by kind, most important first, and the
changes to predefined rules, by rule ID. Someone who never changed a rule stores nothing, and a
change that is taken back leaves nothing behind, so `is_default` tells who can be served by the
fast path of `push_rules`; and when the specification gains a rule, everyone has it.

    {"own": {"content": [{"rule_id": "cake", "enabled": true, "actions": ["notify"],
                          "pattern": "cake"}]},
     "changed": {".m.rule.master": {"enabled": true}}}

Each edit takes the stored object and returns another; nothing is changed in place.

Spec: client-server-api#push-rules-api
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from minihs.protocol.push_predefined_rules import (
    KINDS,
    MASTER_RULE_ID,
    PREDEFINED_RULES,
    Kind,
    PredefinedRule,
)
from minihs.protocol.push_rulesets import CompiledRuleset, OwnRule, RuleChange, compile_ruleset

if TYPE_CHECKING:
    from collections.abc import Mapping

Stored = dict[str, object]
Json = dict[str, object]

PATTERN_LENGTH_MAX: Final = 1_024  # Ours: each is matched against every message.
OWN_RULES_COUNT_MAX: Final = 2_000  # Ours: of all kinds together.
CONDITIONS_COUNT_MAX: Final = 64  # Ours.
ACTIONS_COUNT_MAX: Final = 64  # Ours.
RULE_ID_LENGTH_MAX: Final = 512  # Ours: room IDs and user IDs are rule IDs.

_PREDEFINED: Final[Mapping[str, PredefinedRule]] = {rule.rule_id: rule for rule in PREDEFINED_RULES}


class PushRuleError(ValueError):
    """An edit that cannot be made; `status` and `errcode` are what the API answers."""

    def __init__(self, status: int, errcode: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.errcode = errcode
        self.message = message


def _not_found() -> PushRuleError:
    return PushRuleError(404, "M_NOT_FOUND", "The push rule was not found.")


def _invalid(message: str) -> PushRuleError:
    return PushRuleError(400, "M_INVALID_PARAM", message)


# --- reading ------------------------------------------------------------------------------------


def is_default(stored: Mapping[str, object]) -> bool:
    """Return whether the user's rules are exactly the predefined ones."""
    return not stored.get("own") and not stored.get("changed")


def compile_stored(stored: Mapping[str, object]) -> CompiledRuleset:
    """Return the stored rules ready for evaluation; keep it as long as they stay the same."""
    own: dict[str, list[OwnRule]] = {}
    for kind in KINDS:
        for rule in _own_rules(stored, kind):
            if rule.get("enabled") is not False:
                own.setdefault(kind, []).append(_own_rule(rule))
    changes = {
        rule_id: RuleChange(
            enabled=_boolean(change.get("enabled")),
            actions=tuple(_list(change["actions"])) if "actions" in change else None,
        )
        for rule_id, change in _changed(stored).items()
    }
    return compile_ruleset(own, changes)


def _own_rule(rule: Json) -> OwnRule:
    pattern = rule.get("pattern")
    return OwnRule(
        rule_id=_text(rule.get("rule_id")),
        actions=tuple(_list(rule.get("actions"))),
        conditions=tuple(_list(rule.get("conditions"))),
        pattern=_text(pattern),
    )


def rules_json(stored: Mapping[str, object], user_id: str) -> Json:
    """Return all rules of a user: the answer to GET, and the content of `m.push_rules`.

    The user's own rules stand above the predefined ones, but below the master rule.

    Spec: client-server-api#get_matrixclientv3pushrules
    """
    rules: dict[str, list[Json]] = {}
    for kind in KINDS:
        predefined = [rule for rule in PREDEFINED_RULES if rule.kind == kind]
        master = [rule for rule in predefined if rule.rule_id == MASTER_RULE_ID]
        others = [rule for rule in predefined if rule.rule_id != MASTER_RULE_ID]
        rules[kind] = [
            *(_predefined_json(stored, rule, user_id) for rule in master),
            *(_own_json(rule) for rule in _own_rules(stored, kind)),
            *(_predefined_json(stored, rule, user_id) for rule in others),
        ]
    return {"global": rules}


def rule_json(stored: Mapping[str, object], kind: str, rule_id: str, user_id: str) -> Json:
    """Return one rule.

    Raises:
        PushRuleError: 404 M_NOT_FOUND.

    Spec: client-server-api#get_matrixclientv3pushrulesglobalkindruleid
    """
    predefined = _PREDEFINED.get(rule_id)
    if predefined is not None and predefined.kind == kind:
        return _predefined_json(stored, predefined, user_id)
    for rule in _own_rules(stored, kind):
        if rule.get("rule_id") == rule_id:
            return _own_json(rule)
    raise _not_found()


def _own_json(rule: Json) -> Json:
    return {"default": False, **rule}


def _predefined_json(stored: Mapping[str, object], rule: PredefinedRule, user_id: str) -> Json:
    return {**rule.json(user_id), **_changed(stored).get(rule.rule_id, {})}


# --- editing ------------------------------------------------------------------------------------


def put_rule(
    stored: Mapping[str, object],
    kind: str,
    rule_id: str,
    body: Mapping[str, object],
    *,
    before: str | None = None,
    after: str | None = None,
) -> Stored:
    """Return the rules with one of the user's own added, or replaced by a rule of the same ID.

    A new rule is enabled, and the most important of its kind unless `before` or `after` place it
    next to another. A rule that is replaced stays enabled or disabled, and stays where it is
    unless it is placed.

    Raises:
        PushRuleError: 400 with M_INVALID_PARAM, M_MISSING_PARAM, or M_UNKNOWN when `before` or
            `after` name no rule.

    Spec: client-server-api#put_matrixclientv3pushrulesglobalkindruleid
    """
    checked = _check_kind(kind)
    _check_rule_id(rule_id)
    rule = _read_rule(checked, rule_id, body)
    rules = _own_rules(stored, kind)
    index = _index(rules, rule_id)
    if index is None:
        _check_count(stored)
        index = 0
    else:
        rule["enabled"] = rules.pop(index).get("enabled", True)
    # If both are given, `before` decides.
    if before is not None:
        index = _place(rules, before)
    elif after is not None:
        index = _place(rules, after) + 1
    rules.insert(index, rule)
    return _with_own(stored, kind, rules)


def delete_rule(stored: Mapping[str, object], kind: str, rule_id: str) -> Stored:
    """Return the rules without one of the user's own.

    Raises:
        PushRuleError: 404 M_NOT_FOUND, also for a predefined rule, which can only be disabled.

    Spec: client-server-api#delete_matrixclientv3pushrulesglobalkindruleid
    """
    rules = _own_rules(stored, kind)
    index = _index(rules, rule_id)
    if index is None:
        raise _not_found()
    del rules[index]
    return _with_own(stored, kind, rules)


def set_enabled(stored: Mapping[str, object], kind: str, rule_id: str, enabled: object) -> Stored:
    """Return the rules with one of them, own or predefined, switched on or off.

    Raises:
        PushRuleError: 404 M_NOT_FOUND; 400 M_BAD_JSON if `enabled` is no boolean.

    Spec: client-server-api#put_matrixclientv3pushrulesglobalkindruleidenabled
    """
    if not isinstance(enabled, bool):
        raise PushRuleError(400, "M_BAD_JSON", "enabled must be a boolean")
    return _set(stored, kind, rule_id, "enabled", enabled)


def set_actions(stored: Mapping[str, object], kind: str, rule_id: str, actions: object) -> Stored:
    """Return the rules with other actions for one of them, own or predefined.

    Raises:
        PushRuleError: 404 M_NOT_FOUND; 400 M_INVALID_PARAM if they are no actions.

    Spec: client-server-api#put_matrixclientv3pushrulesglobalkindruleidactions
    """
    return _set(stored, kind, rule_id, "actions", _check_actions(actions))


def copy_room_rules(stored: Mapping[str, object], old_room_id: str, new_room_id: str) -> Stored:
    """Return the rules with those about one room repeated for another.

    For a room upgrade: room rules of the old room, and override and underride rules that match
    its ID. A rule that is there already is left as it is.

    Spec: client-server-api#room-upgrades
    """
    result: Stored = dict(stored)
    for kind in ("override", "room", "underride"):
        rules = _own_rules(stored, kind)
        taken = {rule.get("rule_id") for rule in rules}
        copies: list[Json] = []
        for rule in rules:
            rule_id = _text(rule.get("rule_id"))
            conditions = _list(rule.get("conditions"))
            if not (kind == "room" and rule_id == old_room_id) and not any(
                _is_about(condition, old_room_id) for condition in conditions
            ):
                continue
            new_id = rule_id.replace(old_room_id, new_room_id)
            new_id = new_room_id if new_id == rule_id else new_id
            if new_id in taken:
                continue
            taken.add(new_id)
            copy: Json = {**rule, "rule_id": new_id}
            if "conditions" in rule:
                copy["conditions"] = [
                    {**condition, "pattern": new_room_id}
                    if isinstance(condition, dict) and _is_about(condition, old_room_id)
                    else condition
                    for condition in conditions
                ]
            copies.append(copy)
        if copies:
            result = _with_own(result, kind, [*copies, *rules])
    return result


def _is_about(condition: object, room_id: str) -> bool:
    match condition:
        case {"kind": "event_match", "key": "room_id", "pattern": str(pattern)}:
            return pattern == room_id
        case _:
            return False


def _set(stored: Mapping[str, object], kind: str, rule_id: str, key: str, value: object) -> Stored:
    predefined = _PREDEFINED.get(rule_id)
    if predefined is not None and predefined.kind == kind:
        original = predefined.enabled if key == "enabled" else list(predefined.actions)
        change = {**_changed(stored).get(rule_id, {}), key: value}
        if value == original:
            del change[key]
        return _with_change(stored, rule_id, change)
    rules = _own_rules(stored, kind)
    index = _index(rules, rule_id)
    if index is None:
        raise _not_found()
    rules[index] = {**rules[index], key: value}
    return _with_own(stored, kind, rules)


# --- checks -------------------------------------------------------------------------------------


def _check_kind(kind: str) -> Kind:
    for known in KINDS:
        if kind == known:
            return known
    raise _invalid(f"{kind!r} is not a kind of push rule")


def _check_rule_id(rule_id: str) -> None:
    if not rule_id or rule_id.startswith("."):
        raise _invalid("Rule IDs that start with a dot are those of predefined rules.")
    if "/" in rule_id or "\\" in rule_id:
        raise _invalid("A rule ID has no slash and no backslash.")
    if len(rule_id) > RULE_ID_LENGTH_MAX:
        raise _invalid(f"A rule ID has at most {RULE_ID_LENGTH_MAX} characters.")


def _check_count(stored: Mapping[str, object]) -> None:
    if sum(len(_own_rules(stored, kind)) for kind in KINDS) >= OWN_RULES_COUNT_MAX:
        raise _invalid(f"There may be at most {OWN_RULES_COUNT_MAX} push rules.")


def _read_rule(kind: Kind, rule_id: str, body: Mapping[str, object]) -> Json:
    if "actions" not in body:
        raise PushRuleError(400, "M_MISSING_PARAM", "actions are missing")
    rule: Json = {
        "rule_id": rule_id,
        "enabled": True,
        "actions": _check_actions(body["actions"]),
    }
    if kind in ("override", "underride"):
        rule["conditions"] = _check_conditions(body.get("conditions", []))
    elif kind == "content":
        pattern = body.get("pattern")
        if pattern is None:
            raise PushRuleError(400, "M_MISSING_PARAM", "a content rule needs a pattern")
        rule["pattern"] = _check_pattern(pattern)
    return rule


def _check_actions(actions: object) -> list[object]:
    if not isinstance(actions, list) or len(actions) > ACTIONS_COUNT_MAX:
        raise _invalid(f"actions must be a list of at most {ACTIONS_COUNT_MAX}")
    for action in actions:
        match action:
            # The last two are historical: stored, shown, and without effect.
            case "notify" | "dont_notify" | "coalesce" | {"set_tweak": str()}:
                continue
            case _:
                raise _invalid("actions must be notify or set_tweak")
    return actions


def _check_conditions(conditions: object) -> list[object]:
    if not isinstance(conditions, list) or len(conditions) > CONDITIONS_COUNT_MAX:
        raise _invalid(f"conditions must be a list of at most {CONDITIONS_COUNT_MAX}")
    for condition in conditions:
        match condition:
            case {"kind": str(), "pattern": pattern}:
                _check_pattern(pattern)
            case {"kind": str()}:
                continue
            case _:
                raise _invalid("a condition must be an object with a kind")
    return conditions


def _check_pattern(pattern: object) -> str:
    if not isinstance(pattern, str) or len(pattern) > PATTERN_LENGTH_MAX:
        raise _invalid(f"pattern must be a string of at most {PATTERN_LENGTH_MAX} characters")
    return pattern


# --- the stored object --------------------------------------------------------------------------


def _own_rules(stored: Mapping[str, object], kind: str) -> list[Json]:
    own = stored.get("own")
    rules = own.get(kind) if isinstance(own, dict) else None
    return [rule for rule in _list(rules) if isinstance(rule, dict)]


def _changed(stored: Mapping[str, object]) -> dict[str, Json]:
    changed = stored.get("changed")
    if not isinstance(changed, dict):
        return {}
    return {rule_id: change for rule_id, change in changed.items() if isinstance(change, dict)}


def _with_own(stored: Mapping[str, object], kind: str, rules: list[Json]) -> Stored:
    own = stored.get("own")
    kinds: Json = {**(own if isinstance(own, dict) else {}), kind: rules}
    return _without_empty({**stored, "own": _without_empty(kinds)})


def _with_change(stored: Mapping[str, object], rule_id: str, change: Json) -> Stored:
    return _without_empty(
        {**stored, "changed": _without_empty({**_changed(stored), rule_id: change})}
    )


def _without_empty(json: Mapping[str, object]) -> Json:
    return {key: value for key, value in json.items() if value not in ({}, [])}


def _index(rules: list[Json], rule_id: str) -> int | None:
    for index, rule in enumerate(rules):
        if rule.get("rule_id") == rule_id:
            return index
    return None


def _place(rules: list[Json], rule_id: str) -> int:
    if rule_id.startswith("."):
        raise _invalid("A rule cannot be placed next to a predefined one.")
    index = _index(rules, rule_id)
    if index is None:
        raise PushRuleError(400, "M_UNKNOWN", f"before/after rule not found: {rule_id}")
    return index


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _boolean(value: object) -> bool | None:
    return value if isinstance(value, bool) else None
