"""Rulesets: the enabled push rules of one user, in the order in which they are tried.

What users store and how they edit it is in `push_rule_edits`.

Spec: client-server-api#push-rules
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from minihs.protocol.push_conditions import (
    Conditions,
    conditions_of_predefined,
    read_conditions,
)
from minihs.protocol.push_predefined_rules import (
    KINDS,
    MASTER_RULE_ID,
    PREDEFINED_RULES,
    PredefinedRule,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the actions of the rule that matched come to.

    `tweaks` by name, for the push gateway; `highlight` is one of them, spelled out.
    """

    notify: bool = False
    highlight: bool = False
    tweaks: Mapping[str, object] = field(default_factory=dict)


SILENT: Final = Outcome()
"""No rule matched, or the one that did has no `notify`."""


def read_actions(actions: Iterable[object]) -> Outcome:
    """Return what a list of actions comes to. Unknown and historical actions do nothing.

    Spec: client-server-api#actions
    """
    notify = False
    tweaks: dict[str, object] = {}
    for action in actions:
        match action:
            case "notify":
                notify = True
            case {"set_tweak": "highlight", **rest}:
                tweaks["highlight"] = rest.get("value", True)
            case {"set_tweak": str(name), "value": value}:
                tweaks[name] = value
            case _:
                pass
    if not notify:
        return SILENT
    highlight = tweaks.get("highlight") is True
    return Outcome(notify=True, highlight=highlight, tweaks=MappingProxyType(tweaks))


@dataclass(frozen=True, slots=True)
class Rule:
    """An enabled rule: the conditions under which it matches, and what it then does."""

    rule_id: str
    conditions: Conditions
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class CompiledRuleset:
    """The enabled rules of one user, in the order in which they are tried.

    Room and sender rules cannot both be first and need no search: they are looked up between
    `before` (override and content rules) and `after` (underride rules).
    """

    before: tuple[Rule, ...]
    rooms: Mapping[str, Outcome]
    senders: Mapping[str, Outcome]
    after: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class OwnRule:
    """A rule that the user made: its kind decides which of the other fields it has."""

    rule_id: str
    actions: tuple[object, ...]
    conditions: tuple[object, ...] = ()
    pattern: str = ""


@dataclass(frozen=True, slots=True)
class RuleChange:
    """What a user changed of a predefined rule; None leaves as it is."""

    enabled: bool | None = None
    actions: tuple[object, ...] | None = None


def compile_ruleset(
    own: Mapping[str, Sequence[OwnRule]], changes: Mapping[str, RuleChange]
) -> CompiledRuleset:
    """Return the ruleset of a user.

    `own`: the user's enabled rules by kind, most important first. `changes`: by the rule ID of a
    predefined rule.

    Spec: client-server-api#push-rules
    """
    ordered: dict[str, list[Rule]] = {kind: [] for kind in KINDS}
    for rule, conditions in _PREDEFINED:
        if rule.rule_id == MASTER_RULE_ID:
            _add_predefined(ordered["override"], rule, conditions, changes)
    for kind in ("override", "underride"):
        for own_rule in own.get(kind, ()):
            read = read_conditions(own_rule.conditions)
            ordered[kind].append(Rule(own_rule.rule_id, read, read_actions(own_rule.actions)))
    for own_rule in own.get("content", ()):
        match_body = read_conditions(
            [{"kind": "event_match", "key": "content.body", "pattern": own_rule.pattern}]
        )
        outcome = read_actions(own_rule.actions)
        ordered["content"].append(Rule(own_rule.rule_id, match_body, outcome))
    for rule, conditions in _PREDEFINED:
        if rule.rule_id != MASTER_RULE_ID:
            _add_predefined(ordered[rule.kind], rule, conditions, changes)
    return CompiledRuleset(
        before=(*ordered["override"], *ordered["content"]),
        rooms={rule.rule_id: read_actions(rule.actions) for rule in own.get("room", ())},
        senders={rule.rule_id: read_actions(rule.actions) for rule in own.get("sender", ())},
        after=tuple(ordered["underride"]),
    )


def _add_predefined(
    rules: list[Rule],
    rule: PredefinedRule,
    conditions: Conditions,
    changes: Mapping[str, RuleChange],
) -> None:
    change = changes.get(rule.rule_id, _UNCHANGED)
    if rule.enabled if change.enabled is None else change.enabled:
        actions = rule.actions if change.actions is None else change.actions
        rules.append(Rule(rule.rule_id, conditions, read_actions(actions)))


_UNCHANGED: Final = RuleChange()
_PREDEFINED: Final = tuple((rule, conditions_of_predefined(rule)) for rule in PREDEFINED_RULES)
DEFAULT_RULESET: Final = compile_ruleset({}, {})
"""The ruleset of everyone who never changed a rule."""
