"""Conditions of push rules: what must hold of an event, its room and its reader.

They are of two sorts. *Fixed* ones are facts of the event and its room. *Personal* ones depend on
who reads, and can turn the question round: whom among these members do you mean?

Spec: client-server-api#conditions-1
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from minihs.protocol.event_fields import split_path
from minihs.protocol.globs import Glob, compile_glob, contains_word
from minihs.protocol.identifiers import localpart_of
from minihs.protocol.push_predefined_rules import Placeholder, PredefinedRule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from minihs.protocol.push_occasions import MemberNames, Occasion, Reader


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
        localpart = localpart_of(reader.user_id)
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

    def hold_for_all(self, occasion: Occasion) -> bool:
        """Return whether the fixed ones hold; asked once of an occasion, then remembered."""
        held = occasion.held.get(self)
        if held is None:
            held = True
            for condition in self.fixed:  # A loop: twice as fast as all() over a generator.
                if not condition.holds(occasion):
                    held = False
                    break
            occasion.held[self] = held
        return held

    def hold_for(self, occasion: Occasion, reader: Reader) -> bool:
        """Return whether all hold for this reader."""
        if not self.hold_for_all(occasion):
            return False
        for condition in self.personal:  # noqa: SIM110  As above.
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


def read_conditions(conditions: Iterable[object]) -> Conditions:
    """Return the conditions of a rule out of its JSON. One that is not understood never holds."""
    return _gather(map(_read_condition, conditions))


def conditions_of_predefined(rule: PredefinedRule) -> Conditions:
    """Return the conditions of a predefined rule, with those that are not in its JSON."""
    conditions = [_read_condition(condition) for condition in rule.conditions]
    if rule.only_without_mentions:
        conditions.insert(0, _NoMentions())
    if rule.pattern is Placeholder.LOCALPART:
        conditions.append(_ContainsLocalpart())
    return _gather(conditions)


def _gather(conditions: Iterable[_Fixed | _Personal]) -> Conditions:
    fixed: list[_Fixed] = []
    personal: list[_Personal] = []
    for condition in conditions:
        if isinstance(condition, _Personal):
            personal.append(condition)
        else:
            fixed.append(condition)
    return Conditions(tuple(fixed), tuple(personal))
