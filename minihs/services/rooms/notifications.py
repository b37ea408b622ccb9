"""Which events count as unread, and for whom. Spec: client-server-api#receiving-notifications.

Nearly every user has the default push rules, and for them an event either counts or does not. So a
room keeps one running count, and what differs for a user (a mention, rules of their own) is a row.
A room of a thousand members costs one number for a message, not a thousand rows.

Rules of users' own are read when first needed and then followed through the stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.protocol import canonical_json
from minihs.protocol.power_levels import PowerLevels
from minihs.protocol.push_occasions import MemberNames, Occasion
from minihs.protocol.push_rule_edits import compile_stored, is_default
from minihs.protocol.push_rules import default_outcomes, evaluate
from minihs.protocol.push_rulesets import SILENT, CompiledRuleset, Outcome
from minihs.storage import account_data
from minihs.storage.stream_rows import AccountDataWrite

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minihs.protocol.events import Event
    from minihs.protocol.identifiers import UserId
    from minihs.services.context import Services
    from minihs.services.rooms.heads import RoomHead
    from minihs.storage.database import Database
    from minihs.storage.stream_reads import Positioned

PUSH_RULES = "m.push_rules"
IGNORED_USERS = "m.ignored_user_list"


class Rulesets:
    """The push rules of users who changed theirs, and whom they ignore."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._known: set[str] = set()
        self._custom: dict[str, CompiledRuleset] = {}
        self._ignored: dict[str, frozenset[str]] = {}
        self._changed_unread = 0  # Changes of users who are not known yet that passed, or may have.

    def follow(self, items: Sequence[Positioned]) -> None:
        """Take notice of changes in the stream."""
        for _, item in items:
            if not isinstance(item, AccountDataWrite):
                continue
            # Whoever is not known yet is read when asked for: a half-known user would stay so.
            if item.type == PUSH_RULES and item.user_id in self._known:
                self._put_rules(item.user_id, item.json)
            elif item.type == IGNORED_USERS and item.user_id in self._known:
                self._put_ignored(item.user_id, item.json)
            elif item.type in (PUSH_RULES, IGNORED_USERS):
                self._changed_unread += 1

    def reset(self) -> None:
        """Forget everything: part of the stream was skipped."""
        self._changed_unread += 1
        self._known.clear()
        self._custom.clear()
        self._ignored.clear()

    def _put_rules(self, user_id: str, json: str | None) -> None:
        stored = canonical_json.decode(json) if json is not None else None
        if isinstance(stored, dict) and not is_default(stored):
            self._custom[user_id] = compile_stored(stored)
        else:
            self._custom.pop(user_id, None)

    def _put_ignored(self, user_id: str, json: str | None) -> None:
        match canonical_json.decode(json) if json is not None else None:
            case {"ignored_users": dict(ignored)} if ignored:
                self._ignored[user_id] = frozenset(ignored)
            case _:
                self._ignored.pop(user_id, None)

    def ignoring(self, sender: str, members: Mapping[str, str | None]) -> list[str]:
        """Return those members who ignore the sender; `custom` must have been asked before."""
        return [u for u, ignored in self._ignored.items() if sender in ignored and u in members]

    async def custom(self, members: Mapping[str, str | None]) -> list[tuple[str, CompiledRuleset]]:
        """Return those members who have rules of their own, with these."""
        unknown = members.keys() - self._known
        if unknown:
            changed = self._changed_unread
            rules = await account_data.list_of_type(self._db, list(unknown), PUSH_RULES)
            ignored = await account_data.list_of_type(self._db, list(unknown), IGNORED_USERS)
            if changed != self._changed_unread:  # What was read may be older than what passed.
                return await self.custom(members)
            for user_id in unknown:
                self._known.add(user_id)
                self._put_rules(user_id, rules.get(user_id))
                self._put_ignored(user_id, ignored.get(user_id))
        if not self._custom:
            return []
        if len(self._custom) < len(members):
            return [(u, rules) for u, rules in self._custom.items() if u in members]
        return [(u, self._custom[u]) for u in members if u in self._custom]


async def count(
    services: Services, head: RoomHead, event: Event
) -> tuple[bool, list[tuple[UserId, int, bool]]]:
    """Return whether an event counts for users with default rules, and for whom otherwise.

    The list holds user, difference of the count (-1, 0, 1), and whether it is a highlight.
    """
    members = head.local_members
    if event.type == "m.room.member" and event.state_key is not None:
        invited = event.state_key
        if services.is_local(invited) and invited not in members:
            members = {**members, invited: None}
    if not members:
        return False, []
    occasion = Occasion(event, member_count=head.joined_count, power=await _power(services, head))
    outcomes = default_outcomes(occasion, _names(head, members))
    common = outcomes.common
    # A highlight is each reader's own, also where it is everybody's: somebody says @room.
    everybody = members if common.highlight else ()
    differing: dict[str, Outcome] = dict.fromkeys(everybody, common) | dict(outcomes.deviations)
    for user_id, rules in await services.rulesets.custom(members):
        outcome = evaluate(rules, occasion, user_id, members[user_id])
        if outcome.notify != common.notify or outcome.highlight or user_id in differing:
            differing[user_id] = outcome
    for user_id in services.rulesets.ignoring(event.sender, members):
        differing[user_id] = SILENT
    differing.pop(event.sender, None)  # Who sends has read it.
    return common.notify, [
        (user_id, outcome.notify - common.notify, outcome.highlight)  # type: ignore[misc]
        for user_id, outcome in differing.items()
        if outcome.notify != common.notify or outcome.highlight
    ]


def _names(head: RoomHead, members: Mapping[str, str | None]) -> MemberNames:
    """Return the members' names, arranged for searching; kept with the head while nobody moves."""
    if members is not head.local_members:
        return MemberNames(members)
    if head.member_names is None:
        head.member_names = MemberNames(members)
    return head.member_names


async def _power(services: Services, head: RoomHead) -> PowerLevels:
    """Return the room's power levels; kept with the head while they stand."""
    event_id = head.state.get("m.room.power_levels")
    if head.power is None or head.power[0] != event_id:
        create_id = head.state.get("m.room.create")
        events = await services.events.get_many([e for e in (event_id, create_id) if e])
        levels, create = (
            events[e].event if e is not None and e in events else None
            for e in (event_id, create_id)
        )
        head.power = event_id, PowerLevels.of(levels, create, head.room_version)
    return head.power[1]
