"""Redaction by a kick or ban: is it asked for, is it allowed, and what does it cover.

MSC4293: a moderator who kicks or bans somebody may set `redact_events`. Every server then redacts
the target's events by itself; no redaction events are sent. What is covered is the *stay* that
the kick or ban ended, from the join that began it. A change of display name is a join event too,
but it begins no stay, or anyone could shield their spam with one.

To which stay an event belongs is read from the auth events that it cites and not from its order
of arrival, so every server finds the same, and events that arrive late are covered as well. And
whether the moderator was allowed to redact is judged by the state before the kick or ban, so that
a moderator's later fate changes nothing.

MSC4293#proposal
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from minihs.protocol import unstable
from minihs.protocol.event_auth import EventAuthError, check_state_dependent

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from minihs.protocol.events import Event
    from minihs.protocol.identifiers import StateKey
    from minihs.protocol.power_levels import PowerLevels

CONTROL_STATE: Final = frozenset(
    {
        "m.room.create",
        "m.room.encryption",
        "m.room.history_visibility",
        "m.room.join_rules",
        "m.room.power_levels",
        "m.room.server_acl",
        "m.room.tombstone",
        "m.space.child",
    }
)
"""Ours: types of state that keep a room safe, beside `m.policy.*`.

To redact for instance a server ACL, because its author was banned later, would open the room.
"""

STAY_JOINS_COUNT_MAX: Final = 10_000
"""How many join events of one stay are followed back before we give up."""


@dataclass(frozen=True, slots=True)
class RedactedStay:
    """The stay of one user that a kick or ban redacts.

    `first_join_id` is the join that began it, and `led_by` are the joins from that to the one which
    was ended. `because_id` is the kick or ban, which clients see in `unsigned.redacted_because` of
    each redacted event.
    """

    user_id: str
    first_join_id: str
    because_id: str
    led_by: frozenset[str]


def redacted_stay(
    event: Event,
    member_before: Event | None,
    levels: PowerLevels,
    find: Callable[[str], Event | None],
) -> RedactedStay | None:
    """Return the stay that an event redacts, or None if it redacts none.

    `member_before` is the target's membership event, and `levels` are the power levels, in the
    state before `event`. Only a stay that the event itself ends is redacted: nothing of somebody
    who was not joined. So an unban, a retracted invite and a refused knock, which look like a
    kick, redact nothing; nor does a ban of somebody who had left. `find` as in `joins_leading_to`.

    MSC4293#proposal
    """
    if not asks_to_redact(event) or not may_redact(event.sender, levels):
        return None
    joins = [] if member_before is None else joins_leading_to(member_before, find)
    if not joins or event.state_key is None:
        return None
    led_by = frozenset(join.event_id for join in joins)
    return RedactedStay(event.state_key, joins[-1].event_id, event.event_id, led_by)


def asks_to_redact(event: Event) -> bool:
    """Return whether an event is the leave or ban of another user with the flag set.

    Nobody redacts by leaving, nor by joining, inviting or knocking. Only the value true asks.

    MSC4293#proposal
    """
    return (
        event.type == "m.room.member"
        and event.state_key is not None
        and event.state_key != event.sender
        and event.content.get("membership") in ("leave", "ban")
        and unstable.REDACT_EVENTS.either(event.content) is True
    )


def may_redact(sender: str, levels: PowerLevels) -> bool:
    """Return whether the sender of a kick or ban has the power to redact by it.

    The sender needs the `redact` level, and the level of `m.room.redaction` events where the room
    sets one. Falling short, the flag is ignored; the kick or ban itself stands.

    MSC4293#proposal
    """
    level = levels.user_level(sender)
    if level < levels.redact:
        return False
    if "m.room.redaction" not in levels.section("events"):
        return True
    return level >= levels.event_level("m.room.redaction", is_state=False)


def joins_leading_to(member: Event, find: Callable[[str], Event | None]) -> list[Event]:
    """Return the joins from a join event back to the one with which its stay began.

    Empty if it is no join. Follows the chain of joins by which the user changed their own profile:
    each cites the one before it. `find` returns an event by its ID, or None if we lack it; the stay
    then begins where our knowledge does. Costs a look-up for each auth event of each join.

    MSC4293#proposal
    """
    joins: list[Event] = []
    before: Event | None = member
    while before is not None and is_own_join(before) and len(joins) <= STAY_JOINS_COUNT_MAX:
        joins.append(before)
        before = _cited_member(before, member.sender, find)
    return joins


def is_own_join(event: Event) -> bool:
    """Return whether an event is its sender's own join, or a change of their profile."""
    return (
        event.type == "m.room.member"
        and event.state_key == event.sender
        and event.content.get("membership") == "join"
    )


def _cited_member(event: Event, user_id: str, find: Callable[[str], Event | None]) -> Event | None:
    """Return the membership of a user that an event cites in its auth events."""
    for event_id in event.auth_event_ids:
        cited = find(event_id)
        if cited is not None and cited.state_key == user_id and cited.type == "m.room.member":
            return cited
    return None


def goes_on(join: Event, after: Mapping[StateKey, Event]) -> bool:
    """Return whether its sender goes on, by a change of profile, in spite of a kick or ban.

    `join` was sent beside the kick or ban, of which it does not know; `after` is the state after
    that, or what of it authorizes the join. It is taken for a return: where anybody may join, who
    is kicked may come back at once, and what they say then is not redacted. Nobody goes on after a
    ban. This is, nearly always, what state resolution finds as well, but it depends on nothing else
    that happens in the room, so that all servers agree whatever else they have seen.

    MSC4293#proposal
    """
    try:
        check_state_dependent(join, after)
    except EventAuthError:
        return False
    return True


def joins_of_stay(
    led_by: Collection[str], members: Iterable[Event], going_on: Collection[str] = ()
) -> frozenset[str]:
    """Return the ids of the join events of a stay, of which some are known: `led_by`.

    `members` are member events of its user, in any order, also such as branch off the others; by
    those that are `going_on` the stay goes on beyond what is asked for. With the ids an event tells
    by itself whether it is of the stay: see `is_of_joins`.

    MSC4293#proposal
    """
    following: dict[str, list[Event]] = {}
    for member in members:
        if is_own_join(member) and member.event_id not in going_on:
            for cited in member.auth_event_ids:
                following.setdefault(cited, []).append(member)
    found, queue = set(led_by), list(led_by)
    while queue:
        for member in following.get(queue.pop(), ()):
            if member.event_id not in found:
                found.add(member.event_id)
                queue.append(member.event_id)
    return frozenset(found)


def is_of_joins(event: Event, user_id: str, join_ids: Collection[str]) -> bool:
    """Return whether an event is one of a stay's joins, or was sent by its user citing one.

    Costs nothing but a look at the event: the stay's joins were followed once (`joins_of_stay`).

    MSC4293#proposal
    """
    return event.sender == user_id and (
        event.event_id in join_ids or any(e in join_ids for e in event.auth_event_ids)
    )


def is_covered(event: Event, *, in_force: bool, spare_control_state: bool = True) -> bool:
    """Return whether an event of a redacted stay loses its content.

    `in_force`: the event is part of the state before the kick or ban, or of the room's current
    state. Everything is covered but, when `spare_control_state`, control state in force.

    MSC4293#proposal
    """
    spared = spare_control_state and in_force and event.is_state and is_control_state(event.type)
    return not spared


def is_control_state(event_type: str) -> bool:
    """Return whether state of this type keeps a room safe: see `CONTROL_STATE`."""
    return event_type in CONTROL_STATE or event_type.startswith("m.policy.")


def read_flag(body: Mapping[str, object]) -> bool | unstable.Disagreement | None:
    """Return the flag that the body of `/kick` or `/ban` gives; absent is False.

    None is `400 M_BAD_JSON`: a value that is no boolean. A disagreement of the two spellings is
    `400 M_INVALID_PARAM`.

    MSC4293#proposal
    """
    if not unstable.REDACT_EVENTS.is_in(body):
        return False
    value = unstable.read(body, unstable.REDACT_EVENTS)
    return value if isinstance(value, unstable.Disagreement | bool) else None
