"""Names of MSCs in two spellings."""

from __future__ import annotations

import pytest

from minihs.protocol import unstable
from minihs.protocol.unstable import Disagreement, Name, read, strip

NAME = Name("stable", "org.example.unstable")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({}, None),
        ({"stable": 1}, 1),
        ({"org.example.unstable": 1}, 1),
        ({"stable": 1, "org.example.unstable": 1}, 1),
        ({"stable": 1, "org.example.unstable": 2}, Disagreement(NAME)),
        # In Python these are equal; in JSON they are not.
        ({"stable": True, "org.example.unstable": 1}, Disagreement(NAME)),
        ({"stable": None, "org.example.unstable": 2}, Disagreement(NAME)),
    ],
)
def test_a_request_may_use_either_spelling_but_not_two_meanings(
    source: dict[str, object], expected: object
) -> None:
    assert read(source, NAME) == expected


def test_a_signed_event_is_read_by_the_spelling_that_others_read() -> None:
    assert NAME.either({"stable": 1, "org.example.unstable": 2}) == 2
    assert NAME.either({"stable": 1}) == 1
    assert NAME.either({}) is None


def test_an_unmerged_name_is_never_written_stable() -> None:
    assert NAME.write(True) == {"org.example.unstable": True}
    assert unstable.REDACT_EVENTS.written == ("org.matrix.msc4293.redact_events",)
    assert unstable.STICKY.written == ("msc4354_sticky",)


def test_a_merged_name_is_written_twice() -> None:
    assert unstable.DELAY_ID.write("d") == {
        "delay_id": "d",
        "org.matrix.msc4140.delay_id": "d",
    }


def test_strip_removes_both_spellings_and_leaves_the_argument() -> None:
    source: dict[str, object] = {"stable": 1, "org.example.unstable": 2, "else": 3}
    assert strip(source, NAME) == {"else": 3}
    assert len(source) == 3


def test_a_disagreement_names_both_spellings() -> None:
    assert Disagreement(NAME).message == "stable and org.example.unstable disagree"
