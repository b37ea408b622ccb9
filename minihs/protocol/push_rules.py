"""Push rules: whether an event notifies a user, and how loudly.

Every accepted event is held against the rules of every local member of its room, so this file is
built around doing the common work once. An `Occasion` is one event in its room; it remembers which
conditions hold that do not depend on the reader. For the many users who never changed a rule,
`default_outcomes` answers at once: one outcome that is common to all of them, and the few who
deviate because the event names them. Everybody else is asked one by one with `evaluate`, and the
two ways agree for each user whose rules are the predefined ones.

Conditions are of two sorts. *Fixed* ones are facts of the event and its room. *Personal* ones
depend on who reads, and can turn the question round: whom among these members do you mean?

What users store and how they edit it is in `push_rule_edits`.

Spec: client-server-api#push-rules
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from minihs.protocol.filters import split_path
from minihs.protocol.globs import Glob, compile_glob, contains_word
from minihs.protocol.push_predefined_rules import (
    KINDS,
    MASTER_RULE_ID,
    PREDEFINED_RULES,
    Placeholder,
    PredefinedRule,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from minihs.protocol.events import Event
    from minihs.protocol.power_levels import PowerLevels


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


# --- the event and its readers ------------------------------------------------------------------

_ABSENT: Final = object()
_WORDS: Final = re.compile("[a-z0-9_]+")


class Occasion:
    """One event in its room, with what has been found out about it so far.

    `member_count` is the number of joined members; `power` the power levels in force.
    """

    __slots__ = ("_content", "_held", "_top", "_words", "body", "event", "member_count", "power")

    def __init__(self, event: Event, *, member_count: int, power: PowerLevels) -> None:
        self.event = event
        self.member_count = member_count
        self.power = power
        self._content = event.content
        body = event.content.get("body")
        self.body: str | None = body.lower() if isinstance(body, str) else None
        self._top: dict[str, object] | None = None
        self._held: dict[Conditions, bool] = {}
        self._words: frozenset[str] | None = None

    @property
    def words(self) -> frozenset[str]:
        """Return the words of the body, each a run of letters A to Z, digits and underscores."""
        if self._words is None:
            self._words = frozenset(_WORDS.findall(self.body or ""))
        return self._words

    def value_at(self, path: Sequence[str]) -> object:
        """Return the value of a property of the event, or a mark that equals nothing in JSON."""
        if path[0] == "content":
            value: object = self._content
        else:
            if self._top is None:
                self._top = {
                    **self.event.pdu,
                    "event_id": self.event.event_id,
                    "room_id": self.event.room_id,
                }
            value = self._top.get(path[0], _ABSENT)
        for name in path[1:]:
            if not isinstance(value, dict):
                return _ABSENT
            value = value.get(name, _ABSENT)
        return value

    def holds(self, conditions: Conditions) -> bool:
        """Return whether the fixed ones among the conditions hold; asked once, then remembered."""
        held = self._held.get(conditions)
        if held is None:
            held = True
            for condition in conditions.fixed:  # A loop: twice as fast as all() over a generator.
                if not condition.holds(self):
                    held = False
                    break
            self._held[conditions] = held
        return held


@dataclass(frozen=True, slots=True)
class Reader:
    """The user whose rules are asked, under the display name in this room."""

    user_id: str
    display_name: str | None


class MemberNames:
    """The local members of a room, arranged so that a text finds whom it names.

    A name is looked up by its longest word, so that a message costs as much as it has words and
    not as much as the room has members; the index is made when a text is first searched. Include
    whoever the event invites.
    """

    __slots__ = ("_display_names", "_localparts", "_members")

    def __init__(self, members: Mapping[str, str | None]) -> None:
        self._members = members
        self._display_names: _WordIndex | None = None
        self._localparts: _WordIndex | None = None

    def __contains__(self, user_id: object) -> bool:
        return user_id in self._members

    def named_by_display_name(self, occasion: Occasion) -> Iterator[str]:
        """Yield the members whose display name is in the body."""
        if not occasion.body:
            return iter(())
        if self._display_names is None:
            self._display_names = _WordIndex(
                (name, user_id) for user_id, name in self._members.items() if name
            )
        return self._display_names.find(occasion)

    def named_by_localpart(self, occasion: Occasion) -> Iterator[str]:
        """Yield the members whose localpart is in the body."""
        if not occasion.body:
            return iter(())
        if self._localparts is None:
            self._localparts = _WordIndex((_localpart(user), user) for user in self._members)
        return self._localparts.find(occasion)


class _WordIndex:
    """Texts by their longest word; those without one (other scripts, emoji) are tried in turn."""

    __slots__ = ("_by_word", "_wordless")

    def __init__(self, named: Iterable[tuple[str, str]]) -> None:
        self._by_word: dict[str, list[tuple[str, str]]] = {}
        self._wordless: list[tuple[str, str]] = []
        for text, user_id in named:
            lowered = text.lower()
            words = _WORDS.findall(lowered)
            if words:
                self._by_word.setdefault(max(words, key=len), []).append((lowered, user_id))
            elif lowered.strip():
                self._wordless.append((lowered, user_id))

    def find(self, occasion: Occasion) -> Iterator[str]:
        body = occasion.body
        if not body:
            return
        for word in occasion.words & self._by_word.keys():
            for text, user_id in self._by_word[word]:
                if contains_word(body, text):
                    yield user_id
        for text, user_id in self._wordless:
            if contains_word(body, text):
                yield user_id


def _localpart(user_id: str) -> str:
    return user_id[1:].partition(":")[0]


# --- conditions ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _EventMatch:
    """Spec: client-server-api#conditions-1 (`event_match`)."""

    path: tuple[str, ...]
    glob: Glob
    literal: str | None  # The pattern, where it has no wildcard.

    @staticmethod
    def of(key: str, pattern: str) -> _EventMatch:
        glob = compile_glob(pattern)
        return _EventMatch(split_path(key), glob, pattern.lower() if glob.is_literal else None)

    def holds(self, occasion: Occasion) -> bool:
        if self.path == _BODY:
            return occasion.body is not None and self.glob.matches_word(occasion.body)
        value = occasion.value_at(self.path)
        if not isinstance(value, str):
            return False
        if self.literal is not None:
            return value.lower() == self.literal
        return self.glob.matches(value.lower())


@dataclass(frozen=True, slots=True)
class _PropertyIs:
    """Spec: client-server-api#conditions-1 (`event_property_is`)."""

    path: tuple[str, ...]
    value: object

    def holds(self, occasion: Occasion) -> bool:
        return _same(occasion.value_at(self.path), self.value)


@dataclass(frozen=True, slots=True)
class _PropertyContains:
    """Spec: client-server-api#conditions-1 (`event_property_contains`)."""

    path: tuple[str, ...]
    value: object

    def holds(self, occasion: Occasion) -> bool:
        array = occasion.value_at(self.path)
        return isinstance(array, list) and any(_same(entry, self.value) for entry in array)


@dataclass(frozen=True, slots=True)
class _MemberCount:
    """Spec: client-server-api#conditions-1 (`room_member_count`)."""

    compare: Callable[[int, int], bool]
    count: int

    def holds(self, occasion: Occasion) -> bool:
        return self.compare(occasion.member_count, self.count)


@dataclass(frozen=True, slots=True)
class _SenderMayNotify:
    """Spec: client-server-api#conditions-1 (`sender_notification_permission`)."""

    key: str

    def holds(self, occasion: Occasion) -> bool:
        power = occasion.power
        return power.user_level(occasion.event.sender) >= power.notification_level(self.key)


@dataclass(frozen=True, slots=True)
class _NoMentions:
    """The event has no `m.mentions`. Spec: client-server-api#user-and-room-mentions."""

    def holds(self, occasion: Occasion) -> bool:
        return "m.mentions" not in occasion.event.content


@dataclass(frozen=True, slots=True)
class _Never:
    """A condition that is not recognised: it matches no event."""

    def holds(self, occasion: Occasion) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class _IsReader:
    """A property of the event is the reader's Matrix ID."""

    path: tuple[str, ...]

    def holds_for(self, occasion: Occasion, reader: Reader) -> bool:
        return occasion.value_at(self.path) == reader.user_id

    def who(self, occasion: Occasion, members: MemberNames) -> Iterable[str]:
        value = occasion.value_at(self.path)
        return (value,) if isinstance(value, str) and value in members else ()


@dataclass(frozen=True, slots=True)
class _ContainsReader:
    """An array of the event has the reader's Matrix ID."""

    path: tuple[str, ...]

    def holds_for(self, occasion: Occasion, reader: Reader) -> bool:
        array = occasion.value_at(self.path)
        return isinstance(array, list) and reader.user_id in array

    def who(self, occasion: Occasion, members: MemberNames) -> Iterable[str]:
        array = occasion.value_at(self.path)
        if not isinstance(array, list):
            return ()
        return [entry for entry in array if isinstance(entry, str) and entry in members]


@dataclass(frozen=True, slots=True)
class _ContainsDisplayName:
    """Spec: client-server-api#conditions-1 (`contains_display_name`)."""

    def holds_for(self, occasion: Occasion, reader: Reader) -> bool:
        name = reader.display_name
        if not occasion.body or not name or not name.strip():
            return False
        return contains_word(occasion.body, name.lower())

    def who(self, occasion: Occasion, members: MemberNames) -> Iterable[str]:
        return members.named_by_display_name(occasion)


@dataclass(frozen=True, slots=True)
class _ContainsLocalpart:
    """The pattern of `.m.rule.contains_user_name`."""

    def holds_for(self, occasion: Occasion, reader: Reader) -> bool:
        localpart = _localpart(reader.user_id)
        if not occasion.body or not localpart.strip():
            return False
        return contains_word(occasion.body, localpart.lower())

    def who(self, occasion: Occasion, members: MemberNames) -> Iterable[str]:
        return members.named_by_localpart(occasion)


_Fixed = (
    _EventMatch
    | _PropertyIs
    | _PropertyContains
    | _MemberCount
    | _SenderMayNotify
    | _NoMentions
    | _Never
)
_Personal = _IsReader | _ContainsReader | _ContainsDisplayName | _ContainsLocalpart


@dataclass(frozen=True, slots=True, eq=False)
class Conditions:
    """The conditions of one rule. Compared by identity: rules of many users share them."""

    fixed: tuple[_Fixed, ...] = ()
    personal: tuple[_Personal, ...] = ()

    def hold_for(self, occasion: Occasion, reader: Reader) -> bool:
        """Return whether all hold for this reader."""
        if not occasion.holds(self):
            return False
        for condition in self.personal:  # noqa: SIM110  As in Occasion.holds.
            if not condition.holds_for(occasion, reader):
                return False
        return True


_BODY: Final = ("content", "body")
_SCALARS: Final = (str, bool, int, type(None))
_COUNT: Final = re.compile(r"(==|<=|>=|<|>)?([0-9]{1,15})")
_COMPARISONS: Final[Mapping[str | None, Callable[[int, int], bool]]] = {
    None: operator.eq,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}


def _same(one: object, other: object) -> bool:
    return type(one) is type(other) and one == other  # In Python, True == 1.


def _read_condition(condition: object) -> _Fixed | _Personal:
    # One case for each kind of condition that the specification has.
    match condition:
        case {"kind": "event_match", "key": str(key), "pattern": Placeholder.USER_ID}:
            return _IsReader(split_path(key))
        case {"kind": "event_match", "key": str(key), "pattern": str(pattern)}:
            return _EventMatch.of(key, pattern)
        case {"kind": "event_property_contains", "key": str(key), "value": Placeholder.USER_ID}:
            return _ContainsReader(split_path(key))
        case {"kind": "event_property_contains", "key": str(key), "value": value} if isinstance(
            value, _SCALARS
        ):
            return _PropertyContains(split_path(key), value)
        case {"kind": "event_property_is", "key": str(key), "value": value} if isinstance(
            value, _SCALARS
        ):
            return _PropertyIs(split_path(key), value)
        case {"kind": "contains_display_name"}:
            return _ContainsDisplayName()
        case {"kind": "sender_notification_permission", "key": str(key)}:
            return _SenderMayNotify(key)
        case {"kind": "room_member_count", "is": str(comparison)}:
            found = _COUNT.fullmatch(comparison)
            if found is not None:
                return _MemberCount(_COMPARISONS[found[1]], int(found[2]))
        case _:
            pass
    return _Never()


def _conditions(conditions: Iterable[_Fixed | _Personal]) -> Conditions:
    fixed: list[_Fixed] = []
    personal: list[_Personal] = []
    for condition in conditions:
        if isinstance(condition, _Personal):
            personal.append(condition)
        else:
            fixed.append(condition)
    return Conditions(tuple(fixed), tuple(personal))


def _conditions_of_predefined(rule: PredefinedRule) -> Conditions:
    conditions = [_read_condition(condition) for condition in rule.conditions]
    if rule.only_without_mentions:
        conditions.insert(0, _NoMentions())
    if rule.pattern is Placeholder.LOCALPART:
        conditions.append(_ContainsLocalpart())
    return _conditions(conditions)


# --- rulesets -----------------------------------------------------------------------------------


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
            read = _conditions(map(_read_condition, own_rule.conditions))
            ordered[kind].append(Rule(own_rule.rule_id, read, read_actions(own_rule.actions)))
    for own_rule in own.get("content", ()):
        match_body = _conditions([_EventMatch.of("content.body", own_rule.pattern)])
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
_PREDEFINED: Final = tuple((rule, _conditions_of_predefined(rule)) for rule in PREDEFINED_RULES)

DEFAULT_RULESET: Final = compile_ruleset({}, {})
"""The ruleset of everyone who never changed a rule."""


# --- evaluation ---------------------------------------------------------------------------------


def evaluate(
    ruleset: CompiledRuleset, occasion: Occasion, user_id: str, display_name: str | None
) -> Outcome:
    """Return what the event means to one user; `display_name` is the user's in this room.

    Nobody is notified of what they sent themselves.

    Spec: client-server-api#push-rules
    """
    event = occasion.event
    if event.sender == user_id:
        return SILENT
    reader = Reader(user_id, display_name)
    for rule in ruleset.before:
        if rule.conditions.hold_for(occasion, reader):
            return rule.outcome
    outcome = ruleset.rooms.get(event.room_id)
    if outcome is None:
        outcome = ruleset.senders.get(event.sender)
    if outcome is not None:
        return outcome
    for rule in ruleset.after:
        if rule.conditions.hold_for(occasion, reader):
            return rule.outcome
    return SILENT


@dataclass(frozen=True, slots=True)
class DefaultOutcomes:
    """What an event means to the users with the predefined rules.

    `common` for all of them but those in `deviations`, by user ID.
    """

    common: Outcome
    deviations: Mapping[str, Outcome]

    def of(self, user_id: str) -> Outcome:
        """Return what the event means to one of them."""
        return self.deviations.get(user_id, self.common)


def default_outcomes(occasion: Occasion, members: MemberNames) -> DefaultOutcomes:
    """Return what the event means to all `members` at once, as far as they changed no rule.

    The predefined rules are tried once. The first that matches without looking at the reader
    decides for everyone; those before it that do look at the reader say whom they mean.

    Spec: client-server-api#predefined-rules
    """
    common = SILENT
    deviations: dict[str, Outcome] = {}
    for rule in _DEFAULT_ORDER:
        conditions = rule.conditions
        if not occasion.holds(conditions):
            continue
        if not conditions.personal:
            common = rule.outcome
            break
        (personal,) = conditions.personal  # A predefined rule has one at most.
        for user_id in personal.who(occasion, members):
            deviations.setdefault(user_id, rule.outcome)
    sender = occasion.event.sender
    if sender in members:
        deviations[sender] = SILENT
    return DefaultOutcomes(common, deviations)


_DEFAULT_ORDER: Final = (*DEFAULT_RULESET.before, *DEFAULT_RULESET.after)
