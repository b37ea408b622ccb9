"""History visibility, as the table of the specification's module has it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minihs.protocol.events import Event
from minihs.protocol.history_visibility import (
    HistoryVisibility,
    ReaderState,
    history_visibility,
    may_see_erased,
    may_server_see,
    may_user_see,
    state_after,
)
from minihs.protocol.identifiers import EventId
from minihs.protocol.room_versions import V11

ALICE = "@alice:hs1"
BOB = "@bob:hs1"
WORLD, SHARED, INVITED, JOINED = HistoryVisibility


def event(
    event_type: str = "m.room.message",
    content: dict[str, object] | None = None,
    state_key: str | None = None,
) -> Event:
    pdu: dict[str, object] = {"type": event_type, "sender": ALICE, "content": content or {}}
    if state_key is not None:
        pdu["state_key"] = state_key
    return Event.from_pdu(pdu, V11, EventId("$event"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, SHARED),
        ({}, SHARED),
        ({"history_visibility": "joined"}, JOINED),
        ({"history_visibility": "invited"}, INVITED),
        ({"history_visibility": "world_readable"}, WORLD),
        ({"history_visibility": "unheard_of"}, SHARED),
        ({"history_visibility": ["joined"]}, SHARED),
        ({"history_visibility": None}, SHARED),
    ],
)
def test_visibility_that_is_not_understood_is_shared(
    content: dict[str, object] | None, expected: HistoryVisibility
) -> None:
    assert history_visibility(content) is expected


@pytest.mark.parametrize(
    ("visibility", "membership", "joined_since", "seen"),
    [
        (WORLD, "leave", False, True),
        (WORLD, "ban", False, True),
        (SHARED, "join", False, True),
        (SHARED, "leave", False, False),
        (SHARED, "leave", True, True),
        (SHARED, "invite", False, False),
        (SHARED, "invite", True, True),
        (SHARED, "ban", True, True),
        (INVITED, "join", False, True),
        (INVITED, "invite", False, True),
        (INVITED, "invite", True, True),
        (INVITED, "leave", True, False),
        (INVITED, "knock", True, False),
        (JOINED, "join", False, True),
        (JOINED, "invite", True, False),
        (JOINED, "leave", True, False),
        (JOINED, "ban", True, False),
    ],
)
def test_message(
    visibility: HistoryVisibility, membership: str, joined_since: bool, seen: bool
) -> None:
    before = ReaderState(visibility, membership)
    assert may_user_see(event(), BOB, before, joined_since=joined_since) is seen


@pytest.mark.parametrize(
    ("before", "after", "seen"),
    [
        ("world_readable", "joined", True),
        ("joined", "world_readable", True),
        ("joined", "invited", False),
    ],
)
def test_visibility_event_is_seen_if_before_or_after_allows(
    before: str, after: str, seen: bool
) -> None:
    change = event("m.room.history_visibility", {"history_visibility": after}, state_key="")
    state = ReaderState(HistoryVisibility(before))
    assert may_user_see(change, BOB, state, joined_since=False) is seen


def test_visibility_event_with_another_state_key_changes_nothing() -> None:
    change = event("m.room.history_visibility", {"history_visibility": "world_readable"}, "other")
    assert not may_user_see(change, BOB, ReaderState(JOINED), joined_since=False)


@pytest.mark.parametrize(
    ("before", "after", "seen"),
    [
        ("leave", "join", True),
        ("join", "leave", True),
        ("join", "ban", True),
        ("invite", "leave", False),
        ("leave", "ban", False),
    ],
)
def test_own_member_event_is_seen_if_before_or_after_allows(
    before: str, after: str, seen: bool
) -> None:
    member = event("m.room.member", {"membership": after}, state_key=BOB)
    assert may_user_see(member, BOB, ReaderState(JOINED, before), joined_since=False) is seen


def test_member_event_of_another_does_not_help() -> None:
    member = event("m.room.member", {"membership": "join"}, state_key=ALICE)
    assert not may_user_see(member, BOB, ReaderState(JOINED), joined_since=False)


def test_sticky_event_overrides_visibility_for_a_member() -> None:
    assert may_user_see(
        event(), BOB, ReaderState(JOINED), joined_since=False, sticky_to_member=True
    )


def test_state_after_a_message_is_the_state_before() -> None:
    before = ReaderState(JOINED, "join")
    assert state_after(event(), before, BOB) is before


@pytest.mark.parametrize(
    ("visibility", "memberships", "seen"),
    [
        (WORLD, [], True),
        (SHARED, [], True),
        (INVITED, ["leave", "invite"], True),
        (INVITED, ["leave", "ban"], False),
        (JOINED, ["invite"], False),
        (JOINED, ["leave", "join"], True),
    ],
)
def test_server(visibility: HistoryVisibility, memberships: list[str], seen: bool) -> None:
    assert may_server_see(visibility, memberships) is seen


def test_erased_content_stays_with_those_who_were_there() -> None:
    assert may_see_erased("join")
    assert may_see_erased("invite", "join")
    assert not may_see_erased("invite")
    assert not may_see_erased("leave", "leave")


@given(
    st.sampled_from(HistoryVisibility),
    st.sampled_from(["join", "invite", "leave", "ban", "knock"]),
    st.booleans(),
)
def test_what_a_user_may_see_its_server_may_see(
    visibility: HistoryVisibility, membership: str, joined_since: bool
) -> None:
    if ReaderState(visibility, membership).allows(joined_since=joined_since):
        assert may_server_see(visibility, [membership])


@given(st.sampled_from(["join", "invite", "leave", "ban", "knock"]), st.booleans())
def test_a_more_open_room_never_shows_less(membership: str, joined_since: bool) -> None:
    seen = [
        ReaderState(visibility, membership).allows(joined_since=joined_since)
        for visibility in (JOINED, SHARED, WORLD)
    ]
    assert seen == sorted(seen)
