"""The arithmetic of sticky events."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minihs.protocol.redaction import redact
from minihs.protocol.room_versions import V11
from minihs.protocol.stickiness import (
    STICKY_DURATION_MS_MAX,
    Stickiness,
    read_sticky_duration,
    stickiness,
    sticky_duration_ms,
    sticky_members,
)

HOUR = STICKY_DURATION_MS_MAX


@pytest.mark.parametrize(
    ("sticky", "expected"),
    [
        ({"duration_ms": 300_000}, 300_000),
        ({"duration_ms": 0}, 0),
        ({"duration_ms": HOUR}, HOUR),
        ({"duration_ms": HOUR + 1}, HOUR),  # Lenient with others.
        ({"duration_ms": 2**53}, HOUR),
        ({"duration_ms": -1}, None),
        ({"duration_ms": True}, None),
        ({"duration_ms": "300000"}, None),
        ({"duration_ms": 3000.5}, None),
        ({"duration_ms": None}, None),
        ({}, None),
        (300_000, None),
        ([300_000], None),
        (None, None),
    ],
)
def test_only_a_whole_number_from_0_on_makes_an_event_sticky(
    sticky: object, expected: int | None
) -> None:
    assert sticky_duration_ms({"msc4354_sticky": sticky}) == expected
    assert sticky_duration_ms({"sticky": sticky}) == expected


def test_an_event_without_the_key_is_ordinary() -> None:
    assert stickiness({"origin_server_ts": 5}, received_ms=5) is None


@pytest.mark.parametrize(
    ("sent_ms", "received_ms", "start_ms"),
    [
        (1_000, 1_500, 1_000),
        (9_000, 1_500, 1_500),  # A clock in the future gains nothing.
        (-5, 1_500, -5),
    ],
)
def test_it_starts_when_sent_or_when_received(
    sent_ms: int, received_ms: int, start_ms: int
) -> None:
    pdu = {"msc4354_sticky": {"duration_ms": 100}, "origin_server_ts": sent_ms}
    assert stickiness(pdu, received_ms) == Stickiness(start_ms, start_ms + 100)


@pytest.mark.parametrize("sent", [None, "1000", True, 1.5])
def test_an_event_without_a_time_is_ordinary(sent: object) -> None:
    pdu = {"msc4354_sticky": {"duration_ms": 100}, "origin_server_ts": sent}
    assert stickiness(pdu, 1_000) is None


@pytest.mark.parametrize(
    ("now_ms", "is_sticky"), [(1_000, True), (1_099, True), (1_100, False), (5_000, False)]
)
def test_it_ends(now_ms: int, is_sticky: bool) -> None:
    assert Stickiness(1_000, 1_100).is_sticky(now_ms) is is_sticky


def test_a_redacted_event_is_ordinary() -> None:
    pdu = {"type": "m.x", "origin_server_ts": 1, **sticky_members(100)}
    assert stickiness(pdu, 1) == Stickiness(1, 101)
    assert stickiness(redact(pdu, V11), 1) is None


def test_what_we_send_is_spelled_as_others_read_it() -> None:
    assert sticky_members(5) == {"msc4354_sticky": {"duration_ms": 5}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", 0), ("300000", 300_000), (str(HOUR), HOUR), (str(HOUR + 1), None)]
    + [(text, None) for text in ("", "-1", "1.5", "1e3", "abc", "٣", "9" * 5_000, " 1", "+1")],
)
def test_the_query_parameter(text: str, expected: int | None) -> None:
    assert read_sticky_duration(text) == expected


@given(st.integers(-(2**53), 2**53), st.integers(-(2**53), 2**53), st.integers())
def test_never_more_than_an_hour_and_never_from_the_future(
    sent_ms: int, received_ms: int, duration_ms: int
) -> None:
    pdu = {"sticky": {"duration_ms": duration_ms}, "origin_server_ts": sent_ms}
    sticky = stickiness(pdu, received_ms)
    if duration_ms < 0:
        assert sticky is None
        return
    assert sticky is not None
    assert sticky.start_ms <= received_ms
    assert 0 <= sticky.end_ms - sticky.start_ms <= HOUR
