"""Push rules: whether an event notifies a user, and how loudly.

Every accepted event is held against the rules of every local member of its room, so the common work
is done once. An `Occasion` is one event in its room; it remembers which
conditions hold that do not depend on the reader. For the many users who never changed a rule,
`default_outcomes` answers at once: one outcome that is common to all of them, and the few who
deviate because the event names them. Everybody else is asked one by one with `evaluate`, and the
two ways agree for each user whose rules are the predefined ones.

Spec: client-server-api#push-rules
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from minihs.protocol.push_occasions import MemberNames, Occasion, Reader
from minihs.protocol.push_rulesets import DEFAULT_RULESET, SILENT, CompiledRuleset, Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping


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
        if not conditions.hold_for_all(occasion):
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
