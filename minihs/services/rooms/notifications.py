"""Which events count as unread, and for whom. Spec: client-server-api#receiving-notifications.

Nearly every user has the default push rules, and for them an event either counts or does not. So a
room keeps one running count, and what differs for a user (a mention, rules of their own) is a row. A room
of a thousand members costs one number for a message, not a thousand rows.

Rules of users' own are read when first needed and then followed through the stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.base.caching import BoundedCache
from minihs.protocol import canonical_json
from minihs.protocol.push_rules import CompiledRuleset, compile_ruleset
from minihs.storage import account_data
from minihs.storage.stream_rows import AccountDataWrite

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from minihs.storage.database import Database
    from minihs.storage.streams import Positioned

PUSH_RULES = "m.push_rules"
RULESETS_MAX = 100_000


class Rulesets:
    """The push rules of users who changed theirs; None for those with the default rules."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._known: BoundedCache[str, tuple[CompiledRuleset | None]] = BoundedCache(RULESETS_MAX)

    def follow(self, items: Sequence[Positioned]) -> None:
        """Take notice of changes in the stream."""
        for _, item in items:
            if isinstance(item, AccountDataWrite) and item.type == PUSH_RULES:
                self._known.put(item.user_id, (_compile(item.user_id, item.json),))

    def reset(self) -> None:
        """Forget everything: part of the stream was skipped."""
        self._known = BoundedCache(RULESETS_MAX)

    async def custom(self, user_ids: Iterable[str]) -> dict[str, CompiledRuleset]:
        """Return the rules of those users who have rules of their own."""
        found: dict[str, CompiledRuleset] = {}
        missing: list[str] = []
        for user_id in user_ids:
            known = self._known.get(user_id)
            if known is None:
                missing.append(user_id)
            elif known[0] is not None:
                found[user_id] = known[0]
        if missing:
            stored = await account_data.list_of_type(self._db, missing, PUSH_RULES)
            for user_id in missing:
                ruleset = _compile(user_id, stored[user_id]) if user_id in stored else None
                self._known.put(user_id, (ruleset,))
                if ruleset is not None:
                    found[user_id] = ruleset
        return found


def _compile(user_id: str, json: str) -> CompiledRuleset | None:
    delta = canonical_json.decode(json)
    if not isinstance(delta, dict) or not delta:
        return None
    return compile_ruleset(user_id, delta)
