"""Filters: what is refused, what passes, and which fields remain."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minihs.protocol.event_fields import select_fields, split_path
from minihs.protocol.filter_reading import InvalidFilterError, parse_event_filter, parse_filter
from minihs.protocol.filters import EventFilter, Filter

ALICE = "@alice:hs1"
ROOM = "!room:hs1"


@pytest.mark.parametrize(
    ("json", "path"),
    [
        ([], ""),
        ("0", ""),
        ({"presence": "no"}, "presence"),
        ({"account_data": 1}, "account_data"),
        ({"room": []}, "room"),
        ({"room": {"timeline": "no"}}, "room.timeline"),
        ({"room": {"state": "no"}}, "room.state"),
        ({"room": {"ephemeral": "no"}}, "room.ephemeral"),
        ({"room": {"account_data": "no"}}, "room.account_data"),
        ({"room": {"timeline": {"rooms": "no"}}}, "room.timeline.rooms"),
        ({"room": {"timeline": {"not_rooms": "no"}}}, "room.timeline.not_rooms"),
        ({"room": {"timeline": {"senders": "no"}}}, "room.timeline.senders"),
        ({"room": {"timeline": {"types": [1]}}}, "room.timeline.types"),
        ({"room": {"timeline": {"types": {"a": 1}}}}, "room.timeline.types"),
        ({"room": {"timeline": {"rooms": ["room:hs1"]}}}, "room.timeline.rooms"),
        ({"room": {"timeline": {"senders": ["alice"]}}}, "room.timeline.senders"),
        ({"room": {"timeline": {"limit": -1}}}, "room.timeline.limit"),
        ({"room": {"timeline": {"limit": True}}}, "room.timeline.limit"),
        ({"room": {"timeline": {"limit": "10"}}}, "room.timeline.limit"),
        ({"room": {"timeline": {"limit": 1.5}}}, "room.timeline.limit"),
        ({"room": {"state": {"lazy_load_members": "yes"}}}, "room.state.lazy_load_members"),
        ({"room": {"include_leave": 1}}, "room.include_leave"),
        ({"room": {"rooms": ["#alias:hs1"]}}, "room.rooms"),
        ({"event_format": "xml"}, "event_format"),
        ({"event_format": None}, "event_format"),
        ({"event_fields": "content"}, "event_fields"),
        ({"presence": {"types": ["m"] * 10_001}}, "presence.types"),
    ],
)
def test_a_known_field_of_the_wrong_shape_is_named(json: object, path: str) -> None:
    with pytest.raises(InvalidFilterError) as raised:
        parse_filter(json)
    assert raised.value.path == path
    assert str(raised.value).startswith(path or "filter")


def test_unknown_fields_are_ignored() -> None:
    assert parse_filter({"colour": 1, "room": {"timeline": {"shape": "round"}}}) == Filter()


def test_the_empty_filter_matches_all_and_says_so() -> None:
    parsed = parse_filter({})
    assert parsed.room.timeline.matches_all
    assert not parsed.shapes_events
    assert parsed.signature == Filter().signature


def test_how_much_to_load_is_no_choice_of_events() -> None:
    parsed = parse_event_filter({"limit": 10, "lazy_load_members": True, "not_types": []})
    assert parsed.matches_all
    assert (parsed.limit, parsed.lazy_load_members) == (10, True)


@pytest.mark.parametrize(
    ("json", "passes"),
    [
        ({"types": ["m.room.message"]}, True),
        ({"types": ["m.room.*"]}, True),
        ({"types": ["*message"]}, True),
        ({"types": ["m.*.message"]}, True),
        ({"types": ["*"]}, True),
        ({"types": ["m.room.messag?"]}, False),  # Only the star is special in a filter.
        ({"types": ["M.ROOM.MESSAGE"]}, False),
        ({"types": ["m.room.member"]}, False),
        ({"types": []}, False),
        ({"types": ["m.room.message"], "not_types": ["m.room.*"]}, False),
        ({"not_types": ["m.room.member"]}, True),
        ({"senders": [ALICE]}, True),
        ({"senders": ["@bob:hs1"]}, False),
        ({"senders": []}, False),
        ({"senders": [ALICE], "not_senders": [ALICE]}, False),
        ({"rooms": [ROOM]}, True),
        ({"rooms": ["!other:hs1"]}, False),
        ({"rooms": [ROOM], "not_rooms": [ROOM]}, False),
        ({"contains_url": True}, False),
        ({"contains_url": False}, True),
        ({"rel_types": ["m.thread"]}, True),
        ({"org.matrix.msc3874.rel_types": ["m.annotation"]}, False),
        ({"not_rel_types": ["m.thread"]}, False),
    ],
)
def test_a_threaded_message_of_alice(json: object, passes: bool) -> None:
    parsed = parse_event_filter(json)
    content: dict[str, object] = {"body": "hi", "m.relates_to": {"rel_type": "m.thread"}}
    assert (
        parsed.matches(event_type="m.room.message", sender=ALICE, room_id=ROOM, content=content)
        is passes
    )


@pytest.mark.parametrize(
    ("content", "has_url"), [({"url": "mxc://hs1/a"}, True), ({"url": 1}, False), ({}, False)]
)
def test_contains_url_looks_at_the_content(content: dict[str, object], has_url: bool) -> None:
    for wanted in (True, False):
        parsed = parse_event_filter({"contains_url": wanted})
        passed = parsed.matches(event_type="m.image", sender=ALICE, room_id=ROOM, content=content)
        assert passed is (wanted is has_url)


@pytest.mark.parametrize(
    ("json", "nothing"),
    [
        ({}, False),
        ({"types": []}, True),
        ({"limit": 0}, True),
        ({"senders": [ALICE], "not_senders": [ALICE]}, True),
        ({"rooms": []}, True),
        ({"rooms": [ROOM]}, False),
    ],
)
def test_a_filter_that_lets_nothing_through_says_so(json: object, nothing: bool) -> None:
    assert parse_event_filter(json).matches_nothing is nothing


def test_the_signature_forgets_order_and_repetition() -> None:
    one = parse_filter({"room": {"timeline": {"types": ["a", "b", "a"]}, "rooms": ["!b", "!a"]}})
    other = parse_filter({"room": {"timeline": {"types": ["b", "a"]}, "rooms": ["!a", "!b"]}})
    assert one.signature == other.signature
    assert one == other
    assert hash(one.signature) == hash(other.signature)


def test_room_selection() -> None:
    room = parse_filter({"room": {"rooms": ["!a", "!b"], "not_rooms": ["!b"]}}).room
    assert [room.has_room(room_id) for room_id in ("!a", "!b", "!c")] == [True, False, False]


def test_either_name_of_threaded_counts() -> None:
    for name in ("unread_thread_notifications", "org.matrix.msc3773.unread_thread_notifications"):
        assert parse_event_filter({name: True}).unread_thread_notifications
    assert not parse_event_filter({}).unread_thread_notifications


def test_relations_asked_for_are_kept_for_the_caller() -> None:
    parsed = parse_event_filter(
        {"related_by_senders": [ALICE], "related_by_rel_types": ["m.thread"]}
    )
    assert parsed.related_by_senders == frozenset({ALICE})
    assert parsed.related_by_rel_types == frozenset({"m.thread"})
    assert parsed.signature != EventFilter().signature


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "types": st.lists(st.sampled_from(["a", "b*", "*"])),
            "not_types": st.lists(st.sampled_from(["a", "bc", "*b"])),
            "senders": st.lists(st.sampled_from([ALICE, "@b:hs1"])),
            "not_senders": st.lists(st.sampled_from([ALICE, "@b:hs1"])),
            "contains_url": st.booleans(),
        },
    ),
    st.sampled_from(["a", "b", "bc", "c"]),
)
def test_skipping_a_filter_that_matches_all_changes_nothing(
    json: dict[str, object], event_type: str
) -> None:
    parsed = parse_event_filter(json)
    careful = replace(parsed)
    object.__setattr__(careful, "matches_all", False)
    arguments: dict[str, object] = {"url": "mxc://hs1/a"}
    assert parsed.matches(
        event_type=event_type, sender=ALICE, room_id=ROOM, content=arguments
    ) is careful.matches(event_type=event_type, sender=ALICE, room_id=ROOM, content=arguments)


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("content.body", ("content", "body")),
        (r"content.m\.relates_to", ("content", "m.relates_to")),
        (r"content.m\\foo", ("content", r"m\foo")),
        (r"content.\x", ("content", r"\x")),
        ("a\\", ("a\\",)),
        ("", ("",)),
        ("a..b", ("a", "", "b")),
    ],
)
def test_paths(path: str, names: tuple[str, ...]) -> None:
    assert split_path(path) == names


@given(st.lists(st.text("ab.\\", max_size=4), min_size=1, max_size=4))
def test_an_escaped_path_is_read_back(names: list[str]) -> None:
    escaped = [name.replace("\\", "\\\\").replace(".", "\\.") for name in names]
    assert split_path(".".join(escaped)) == tuple(names)


EVENT: dict[str, object] = {
    "content": {"body": "hi", "m.relates_to": {"rel_type": "m.thread", "event_id": "$e"}},
    "event_id": "$event",
    "sender": ALICE,
    "type": "m.room.message",
    "msc4354_sticky": {"duration_ms": 5},
    "unsigned": {"age": 1, "msc4354_sticky_duration_ttl_ms": 3},
}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([], {}),
        (["type"], {"type": "m.room.message"}),
        (["content.body"], {"content": {"body": "hi"}}),
        (["content.nothing", "content.body.deeper", "nothing"], {}),
        (
            ["content.body", r"content.m\.relates_to.rel_type"],
            {"content": {"body": "hi", "m.relates_to": {"rel_type": "m.thread"}}},
        ),
        (["content.body", "content"], {"content": EVENT["content"]}),
        # Without these a client could not let a sticky event expire.
        (
            ["event_id"],
            {
                "event_id": "$event",
                "msc4354_sticky": {"duration_ms": 5},
                "unsigned": {"msc4354_sticky_duration_ttl_ms": 3},
            },
        ),
        (
            ["event_id", "unsigned"],
            {
                "event_id": "$event",
                "msc4354_sticky": {"duration_ms": 5},
                "unsigned": {"age": 1, "msc4354_sticky_duration_ttl_ms": 3},
            },
        ),
    ],
)
def test_event_fields(fields: list[str], expected: dict[str, object]) -> None:
    parsed = parse_filter({"event_fields": fields})
    assert parsed.shapes_events
    assert parsed.event_fields is not None
    before = repr(EVENT)
    assert select_fields(EVENT, parsed.event_fields) == expected
    assert repr(EVENT) == before
