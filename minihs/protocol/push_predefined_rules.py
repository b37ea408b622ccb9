"""The push rules that every user has: the specification's, in its order, as a table.

Three of them, which look for a mention in the text of a message, left the specification in v1.17;
they are kept for clients that do not send `m.mentions` yet, and rest where an event has it. The
rules about polls are MSC3930's.

Spec: client-server-api#predefined-rules
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, Literal

from minihs.protocol import unstable
from minihs.protocol.identifiers import localpart_of

if TYPE_CHECKING:
    from collections.abc import Mapping

Kind = Literal["override", "content", "room", "sender", "underride"]

KINDS: Final[tuple[Kind, ...]] = ("override", "content", "room", "sender", "underride")
"""The kinds of rule, in the order in which they are checked."""

MASTER_RULE_ID: Final = ".m.rule.master"
"""The one predefined rule that stands above the user's own."""

Action = str | dict[str, object]


class Placeholder(Enum):
    """What a predefined rule takes from the user whose rule it is."""

    USER_ID = "[the user's Matrix ID]"
    LOCALPART = "[the local part of the user's Matrix ID]"


@dataclass(frozen=True, slots=True)
class PredefinedRule:
    """One rule of the table. Of `conditions` and `pattern` it has the one that its kind has."""

    kind: Kind
    rule_id: str
    conditions: tuple[Mapping[str, object], ...] = ()
    pattern: Placeholder | None = None
    actions: tuple[Action, ...] = ()
    enabled: bool = True
    only_without_mentions: bool = False
    """Rests where the event has `m.mentions`."""

    def json(self, user_id: str) -> dict[str, object]:
        """Return the rule as the API shows it to this user, unchanged by the user."""
        values = {Placeholder.USER_ID: user_id, Placeholder.LOCALPART: localpart_of(user_id)}

        def fill(value: object) -> object:
            return values[value] if isinstance(value, Placeholder) else value

        rule: dict[str, object] = {
            "rule_id": self.rule_id,
            "default": True,
            "enabled": self.enabled,
            "actions": list(self.actions),
        }
        if self.pattern is not None:
            rule["pattern"] = fill(self.pattern)
        else:
            rule["conditions"] = [
                {key: fill(value) for key, value in condition.items()}
                for condition in self.conditions
            ]
        return rule


_SOUND: Final[Action] = {"set_tweak": "sound", "value": "default"}
_RING: Final[Action] = {"set_tweak": "sound", "value": "ring"}
_HIGHLIGHT: Final[Action] = {"set_tweak": "highlight"}


def _matches(key: str, pattern: str | Placeholder) -> Mapping[str, object]:
    return {"kind": "event_match", "key": key, "pattern": pattern}


_ONE_TO_ONE: Final = {"kind": "room_member_count", "is": "2"}
_MAY_NOTIFY_ROOM: Final = {"kind": "sender_notification_permission", "key": "room"}

PREDEFINED_RULES: Final[tuple[PredefinedRule, ...]] = (
    PredefinedRule("override", MASTER_RULE_ID, enabled=False),
    PredefinedRule(
        "override", ".m.rule.suppress_notices", (_matches("content.msgtype", "m.notice"),)
    ),
    PredefinedRule(
        "override",
        ".m.rule.invite_for_me",
        (
            _matches("type", "m.room.member"),
            _matches("content.membership", "invite"),
            _matches("state_key", Placeholder.USER_ID),
        ),
        actions=("notify", _SOUND),
    ),
    PredefinedRule("override", ".m.rule.member_event", (_matches("type", "m.room.member"),)),
    PredefinedRule(
        "override",
        ".m.rule.is_user_mention",
        (
            {
                "kind": "event_property_contains",
                "key": r"content.m\.mentions.user_ids",
                "value": Placeholder.USER_ID,
            },
        ),
        actions=("notify", _SOUND, _HIGHLIGHT),
    ),
    PredefinedRule(
        "override",
        ".m.rule.contains_display_name",
        ({"kind": "contains_display_name"},),
        actions=("notify", _SOUND, _HIGHLIGHT),
        only_without_mentions=True,
    ),
    PredefinedRule(
        "override",
        ".m.rule.is_room_mention",
        (
            {"kind": "event_property_is", "key": r"content.m\.mentions.room", "value": True},
            _MAY_NOTIFY_ROOM,
        ),
        actions=("notify", _HIGHLIGHT),
    ),
    PredefinedRule(
        "override",
        ".m.rule.roomnotif",
        (_matches("content.body", "@room"), _MAY_NOTIFY_ROOM),
        actions=("notify", _HIGHLIGHT),
        only_without_mentions=True,
    ),
    PredefinedRule(
        "override",
        ".m.rule.tombstone",
        (_matches("type", "m.room.tombstone"), _matches("state_key", "")),
        actions=("notify", _HIGHLIGHT),
    ),
    PredefinedRule("override", ".m.rule.reaction", (_matches("type", "m.reaction"),)),
    PredefinedRule(
        "override",
        ".m.rule.room.server_acl",
        (_matches("type", "m.room.server_acl"), _matches("state_key", "")),
    ),
    PredefinedRule(
        "override",
        ".m.rule.suppress_edits",
        (
            {
                "kind": "event_property_is",
                "key": r"content.m\.relates_to.rel_type",
                "value": "m.replace",
            },
        ),
    ),
    PredefinedRule(
        "override",
        unstable.POLL_RULE_RESPONSE.unstable,
        (_matches("type", unstable.POLL_RESPONSE.unstable),),
    ),
    PredefinedRule(
        "content",
        ".m.rule.contains_user_name",
        pattern=Placeholder.LOCALPART,
        actions=("notify", _SOUND, _HIGHLIGHT),
        only_without_mentions=True,
    ),
    PredefinedRule(
        "underride",
        ".m.rule.call",
        (_matches("type", "m.call.invite"),),
        actions=("notify", _RING),
    ),
    PredefinedRule(
        "underride",
        ".m.rule.encrypted_room_one_to_one",
        (_ONE_TO_ONE, _matches("type", "m.room.encrypted")),
        actions=("notify", _SOUND),
    ),
    PredefinedRule(
        "underride",
        ".m.rule.room_one_to_one",
        (_ONE_TO_ONE, _matches("type", "m.room.message")),
        actions=("notify", _SOUND),
    ),
    PredefinedRule(
        "underride",
        unstable.POLL_RULE_START_ONE_TO_ONE.unstable,
        (_ONE_TO_ONE, _matches("type", unstable.POLL_START.unstable)),
        actions=("notify", _SOUND),
    ),
    PredefinedRule(
        "underride",
        unstable.POLL_RULE_START.unstable,
        (_matches("type", unstable.POLL_START.unstable),),
        actions=("notify",),
    ),
    PredefinedRule(
        "underride",
        unstable.POLL_RULE_END_ONE_TO_ONE.unstable,
        (_ONE_TO_ONE, _matches("type", unstable.POLL_END.unstable)),
        actions=("notify", _SOUND),
    ),
    PredefinedRule(
        "underride",
        unstable.POLL_RULE_END.unstable,
        (_matches("type", unstable.POLL_END.unstable),),
        actions=("notify",),
    ),
    PredefinedRule(
        "underride",
        ".m.rule.message",
        (_matches("type", "m.room.message"),),
        actions=("notify",),
    ),
    PredefinedRule(
        "underride",
        ".m.rule.encrypted",
        (_matches("type", "m.room.encrypted"),),
        actions=("notify",),
    ),
)
