"""Pagination tokens: what is written is read back, and nothing else is accepted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minihs.base.errors import InvalidParam
from minihs.services.rooms.tokens import (
    MAJOR_MAX,
    MINOR_MAX,
    MINOR_MIN,
    Place,
    format_place,
    parse_place,
)
from minihs.services.sync.positions import StickyBacklog, Unignored, format_token


@given(st.integers(0, MAJOR_MAX), st.integers(MINOR_MIN, MINOR_MAX))
def test_a_place_survives_its_token(major: int, minor: int) -> None:
    assert parse_place(format_place(Place(major, minor))) == Place(major, minor)


@pytest.mark.parametrize("token", ["s17", "s17_3", "s17_a.b-c", "t17_0"])
def test_sync_tokens_are_places_after_their_position(token: str) -> None:
    assert parse_place(token) == Place(17, 0)


def test_a_sync_token_is_one_however_much_it_says_of_what_is_left() -> None:
    backlogs = {nid: StickyBacklog(nid, ((nid, nid + 1),)) for nid in range(64)}
    token = format_token(17, backlogs, [Unignored(16, 5), Unignored(17)], to_device=3, selection=4)
    assert parse_place(token) == Place(17, 0)


@pytest.mark.parametrize(
    "token",
    [
        "", "s", "t", "s-1", "t-1_0", "t1", "t1_", "t1_0_0", "1", "s1 ", " s1", "s1\n", "x1",
        "s9223372036854775808", "t9223372036854775808_0", "t1_2147483648", "t1_-2147483649",
        "s99999999999999999999", "s١", "s1_\x00", "null", "END",
    ],
)  # fmt: skip
def test_anything_else_is_refused(token: str) -> None:
    with pytest.raises(InvalidParam):
        parse_place(token)


def test_a_token_from_the_future_is_refused() -> None:
    assert parse_place("s8", newest=8) == Place(8)
    with pytest.raises(InvalidParam):
        parse_place("s9", newest=8)
