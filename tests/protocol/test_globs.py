"""Globs, against a slow and obvious matcher, and against patterns made to hurt."""

from __future__ import annotations

import re
import time
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minihs.protocol.globs import compile_glob, is_boundary

PATTERNS = st.text("ab-*?", max_size=8)
TEXTS = st.text("ab-", max_size=10)


def slow_match(pattern: str, text: str) -> bool:
    @cache
    def match(p: int, t: int) -> bool:
        if p == len(pattern):
            return t == len(text)
        if pattern[p] == "*":
            return match(p + 1, t) or (t < len(text) and match(p, t + 1))
        return t < len(text) and pattern[p] in ("?", text[t]) and match(p + 1, t + 1)

    return match(0, 0)


def slow_word_match(pattern: str, text: str) -> bool:
    boundaries = [at for at in range(len(text) + 1) if is_boundary(text, at)]
    return any(
        slow_match(pattern, text[start:end])
        for start in boundaries
        for end in boundaries
        if start <= end
    )


@given(PATTERNS, TEXTS)
def test_a_glob_covers_the_whole_text(pattern: str, text: str) -> None:
    assert compile_glob(pattern).matches(text) is slow_match(pattern, text)


@given(PATTERNS, TEXTS)
def test_a_word_glob_covers_a_part_at_boundaries(pattern: str, text: str) -> None:
    assert compile_glob(pattern).matches_word(text) is slow_word_match(pattern, text)


@given(st.text("ab?*.", max_size=8), st.text("ab?.", max_size=8))
def test_without_question_mark_only_the_star_is_special(pattern: str, text: str) -> None:
    expected = re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text) is not None
    assert compile_glob(pattern, question_mark=False).matches(text) is expected


@pytest.mark.parametrize(
    ("pattern", "text", "matched"),
    [
        # The specification's own examples.
        ("lunc?*", "lunch plans", True),
        ("lunc?*", "lunch", True),
        ("lunc?*", " lunch", False),
        ("lunc?*", "lunc", False),
        ("LUNC?*", "lunch", True),
        ("", "", True),
        ("", "a", False),
        ("*", "", True),
        ("?", "", False),
        ("é?", "éa", True),
    ],
)
def test_examples(pattern: str, text: str, matched: bool) -> None:
    assert compile_glob(pattern).matches(text) is matched


@pytest.mark.parametrize(
    ("pattern", "text", "matched"),
    [
        ("ex*ple", "an example event.", True),
        ("ex*ple", "exple", True),
        ("ex*ple", "an exciting triple-whammy", True),
        ("ex*ple", "annexample", False),
        ("cake", "cakes", False),
        ("cake", "cake_", False),
        ("cake", "(cake)", True),
        ("cake", "cakes and cake", True),
        ("@room", "hello @room!", True),
        ("@room", "@rooms", False),
        ("alice", "élalice", False),
        ("alice", "éalice", True),  # é is not in the sets of the specification.
    ],
)
def test_word_examples(pattern: str, text: str, matched: bool) -> None:
    assert compile_glob(pattern).matches_word(text) is matched


def test_case_is_kept_when_asked() -> None:
    assert not compile_glob("A*", fold_case=False).matches("ab")
    assert compile_glob("A*", fold_case=False).matches("Ab")


def test_a_literal_says_so() -> None:
    assert compile_glob("m.room").is_literal
    assert not compile_glob("m.*").is_literal
    assert not compile_glob("m.?").is_literal


@pytest.mark.parametrize(
    "pattern",
    ["a*" * 500 + "b", "?a" * 500 + "b", "*?a*" * 250 + "b", "a" * 1000 + "b", "-?" * 500],
)
def test_a_pattern_made_to_hurt_is_answered_soon(pattern: str) -> None:
    text = "a" * 60_000 + "c"
    started = time.process_time()
    glob = compile_glob(pattern)
    assert not glob.matches(text)
    assert not glob.matches_word(text)
    assert time.process_time() - started < 10  # Backtracking would take years.
