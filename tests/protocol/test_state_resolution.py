"""State resolution: properties over random rooms, and a few rooms told as stories.

The outcomes themselves are held against recorded ones in `test_vectors`.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minihs.protocol.event_auth import EventAuthError
from minihs.protocol.state_resolution import (
    MissingEventsError,
    auth_difference,
    conflicted,
    explain,
    resolve,
)
from minihs.protocol.state_resolution.state_maps import auth_chain
from tests.helpers.rooms import ALICE, BOB, CAROL, Room

if TYPE_CHECKING:
    from minihs.protocol.events import Event
    from minihs.protocol.identifiers import EventId, StateKey

PEOPLE = [ALICE, BOB, CAROL, "@dave:hs2"]
VERSIONS = st.sampled_from(["1", "2", "6", "9", "11", "12"])
ACTIONS = st.sampled_from(
    ["join", "leave", "kick", "ban", "topic", "levels", "rules", "entry", "message"]
)
STEPS = st.lists(
    st.tuples(ACTIONS, st.integers(0, 3), st.integers(0, 3), st.integers(0, 9), st.integers(0, 9)),
    max_size=25,
)


@st.composite
def forked_rooms(draw: st.DrawFn) -> tuple[Room, list[Event]]:
    """Return a room in which things happened side by side, and some of its latest events."""
    room = Room(draw(VERSIONS))
    room.join(BOB)
    for step in draw(STEPS):
        happen(room, *step)
    events = list(room.events.values())
    ends = draw(st.lists(st.sampled_from(events[2:]), min_size=1, max_size=3))
    return room, [*ends, *room.ends]


def happen(room: Room, action: str, who: int, whom: int, after: int, beside: int) -> None:
    """Let somebody try something, somewhere among the latest events of the room."""
    events = list(room.events.values())
    prev = list({events[-1 - min(i, len(events) - 4)] for i in (after, beside)})
    sender, target = PEOPLE[who], PEOPLE[whom]
    attempts: dict[str, tuple[str, dict[str, object], str | None]] = {
        "join": ("m.room.member", {"membership": "join"}, sender),
        "leave": ("m.room.member", {"membership": "leave"}, sender),
        "kick": ("m.room.member", {"membership": "leave"}, target),
        "ban": ("m.room.member", {"membership": "ban"}, target),
        "topic": ("m.room.topic", {"topic": f"{after} {beside}"}, ""),
        "levels": ("m.room.power_levels", levels(room, target, 10 * after), ""),
        "rules": ("m.room.join_rules", {"join_rule": ["public", "invite"][after % 2]}, ""),
        "entry": ("m.entry", {"by": sender}, f"{whom}"),
        "message": ("m.room.message", {}, None),
    }
    event_type, content, state_key = attempts[action]
    try:
        room.send(sender, event_type, content, state_key=state_key, prev=prev)
    except EventAuthError:
        return  # Not everybody may do everything.


def levels(room: Room, target: str, level: int) -> dict[str, object]:
    first: dict[str, int] = {} if room.room_version.creators_are_privileged else {ALICE: 100}
    named: dict[str, int] = {} if target == ALICE else {target: level}
    return {"users": {**first, **named}, "state_default": 0, "events": {"m.entry": 0}}


def states_of(room: Room, ends: list[Event]) -> list[dict[StateKey, EventId]]:
    return [room.state_after[event.event_id] for event in ends]


@given(forked_rooms())
def test_the_order_of_the_states_does_not_matter(forked: tuple[Room, list[Event]]) -> None:
    room, ends = forked
    states = states_of(room, ends[:4])
    outcomes = {
        frozenset(resolve(room.room_version, order, room.events).items())
        for order in itertools.permutations(states)
    }
    assert len(outcomes) == 1


@given(forked_rooms())
def test_equal_states_resolve_to_themselves(forked: tuple[Room, list[Event]]) -> None:
    room, ends = forked
    for state in states_of(room, ends):
        assert resolve(room.room_version, [state], room.events) == state
        assert resolve(room.room_version, [state, dict(state)], room.events) == state
        assert explain(room.room_version, [state, state], room.events).resolved == state


@given(forked_rooms())
def test_nothing_comes_out_that_did_not_go_in(forked: tuple[Room, list[Event]]) -> None:
    room, ends = forked
    states = states_of(room, ends)
    result = explain(room.room_version, states, room.events)
    given_events = {event_id for state in states for event_id in state.values()}
    examined = result.sets.get("full conflicted set", set())
    for key, event_id in result.resolved.items():
        assert event_id in given_events | examined
        assert room.events[event_id].key == key
    for key, event_id in result.unconflicted.items():
        assert result.resolved[key] == event_id


@given(forked_rooms())
def test_what_gets_in_was_allowed(forked: tuple[Room, list[Event]]) -> None:
    room, ends = forked
    result = explain(room.room_version, states_of(room, ends), room.events)
    allowed = {check.event_id for check in result.checks if check.error is None}
    if room.room_version.state_resolution != "v1":  # In v1 the oldest needs no check.
        for key in result.resolved.keys() - result.unconflicted.keys():
            assert result.resolved[key] in allowed


@given(forked_rooms())
def test_a_caller_that_loads_what_is_missing_comes_to_the_same_end(
    forked: tuple[Room, list[Event]],
) -> None:
    room, ends = forked
    states = states_of(room, ends)
    expected = resolve(room.room_version, states, room.events)

    loaded: dict[EventId, Event] = {}
    rounds = 0
    wanted = conflicted(states)
    while True:
        chain = auth_chain(wanted, lambda event_id: room.events[event_id].auth_event_ids)
        loaded.update({event_id: room.events[event_id] for event_id in chain})
        try:
            assert resolve(room.room_version, states, loaded) == expected
            break
        except MissingEventsError as missing:
            wanted = set(missing.event_ids)
            rounds += 1
    assert rounds <= 1

    # With the auth difference at hand, what is not in conflict is needed only where asked for.
    difference = auth_difference(states, lambda event_id: room.events[event_id].auth_event_ids)
    assert resolve(room.room_version, states, loaded, difference=difference) == expected


@given(forked_rooms())
def test_the_auth_difference_is_what_its_definition_says(
    forked: tuple[Room, list[Event]],
) -> None:
    room, ends = forked
    states = states_of(room, ends)

    def auth_events_of(event_id: EventId) -> tuple[EventId, ...]:
        return room.events[event_id].auth_event_ids

    chains = [auth_chain(state.values(), auth_events_of) for state in states]
    expected = set().union(*chains) - set(chains[0]).intersection(*chains[1:])
    assert auth_difference(states, auth_events_of) == expected


@pytest.mark.spec("rooms/v2#state-resolution")
@pytest.mark.parametrize("version", ["2", "11", "12"])
def test_a_ban_beats_what_the_banned_moderator_did_beside_it(version: str) -> None:
    # Given Bob, a moderator, and a room where both sides build on the same event,
    users = {BOB: 50} if version == "12" else {ALICE: 100, BOB: 50}
    room = Room(version, {"users": users})
    fork = room.join(BOB)
    before = room.send(ALICE, "m.room.topic", {"topic": "tea"}, state_key="", prev=[fork])
    # when Alice bans Bob while Bob, with an earlier timestamp, changes topic and power levels,
    ban = room.send(ALICE, "m.room.member", {"membership": "ban"}, state_key=BOB, prev=[before])
    mine = {"users": users, "users_default": 50}
    grab = room.send(
        BOB, "m.room.power_levels", mine, state_key="", prev=[before], origin_server_ts=1
    )
    spam = room.send(
        BOB, "m.room.topic", {"topic": "spam"}, state_key="", prev=[grab], origin_server_ts=2
    )
    # then the ban stands, and nothing of Bob's does.
    resolved = resolve(room.room_version, states_of(room, [ban, spam]), room.events)
    assert resolved["m.room.member", BOB] == ban.event_id
    assert resolved["m.room.topic", ""] == before.event_id
    assert resolved["m.room.power_levels", ""] != grab.event_id


@pytest.mark.spec("rooms/v1#state-resolution")
def test_room_version_1_takes_the_deepest_event_that_is_allowed() -> None:
    room = Room("1")
    fork = room.ends[0]
    short = room.send(ALICE, "m.room.topic", {"topic": "short"}, state_key="", prev=[fork])
    step = room.send(ALICE, "m.room.message", {}, prev=[fork])
    long = room.send(ALICE, "m.room.topic", {"topic": "long"}, state_key="", prev=[step])
    resolved = resolve(room.room_version, states_of(room, [short, long]), room.events)
    assert resolved["m.room.topic", ""] == long.event_id


def test_an_event_that_was_rejected_gets_into_no_state() -> None:
    room = Room("12")
    fork = room.ends[0]
    one = room.send(ALICE, "m.room.topic", {"topic": "one"}, state_key="", prev=[fork])
    two = room.send(ALICE, "m.room.topic", {"topic": "two"}, state_key="", prev=[fork])
    states = states_of(room, [one, two])
    for winner, loser in ((one, two), (two, one)):
        resolved = resolve(room.room_version, states, room.events, rejected={loser.event_id})
        assert resolved["m.room.topic", ""] == winner.event_id
