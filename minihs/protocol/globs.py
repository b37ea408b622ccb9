"""Matching against Matrix globs (`*` and `?`) in time that nobody's pattern can blow up.

A glob translated to a regular expression invites a stranger to write `a*a*a*a*b`. Here a pattern
is cut at its stars into segments, and each segment takes the leftmost place it can get: for globs
that is always right, because an earlier place leaves the following segments more room. A segment
without `?` is found by `str.find`; one with `?` by the Shift-And automaton, whose states are the
bits of one integer and which reads each character once.

Two ways of matching: the whole text, and (for push rules) any part of the text that starts and
ends at a word boundary. Patterns and texts are compared in lower case.

Spec: appendices#glob-style-matching
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

_WORD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")


def is_boundary(text: str, position: int) -> bool:
    """Return whether a word may start or end between `position - 1` and `position` of `text`.

    The start and the end of the text are boundaries, and so is either side of a character that
    is not a letter A to Z, a digit or an underscore.

    Spec: client-server-api#push-rules
    """
    if position == 0 or position == len(text):
        return True
    return text[position - 1] not in _WORD or text[position] not in _WORD


def contains_word(text: str, word: str) -> bool:
    """Return whether `word`, taken literally, lies in `text` between two boundaries.

    Both are in lower case, or whatever case is meant.

    Spec: client-server-api#push-rules
    """
    found = text.find(word)
    while found >= 0:
        if is_boundary(text, found) and is_boundary(text, found + len(word)):
            return True
        found = text.find(word, found + 1)
    return False


@dataclass(frozen=True, slots=True)
class _Segment:
    """A piece of a pattern between two stars: literal characters and `?`."""

    text: str
    masks: dict[str, int] = field(repr=False, compare=False)  # Empty when there is no `?`.
    any_mask: int

    @staticmethod
    def compile(text: str, *, question_mark: bool) -> _Segment:
        if not question_mark or "?" not in text:
            return _Segment(text, {}, 0)
        masks: dict[str, int] = {}
        any_mask = 0
        for position, character in enumerate(text):
            if character == "?":
                any_mask |= 1 << position
            else:
                masks[character] = masks.get(character, 0) | 1 << position
        return _Segment(text, masks, any_mask)

    def is_at(self, text: str, start: int) -> bool:
        if not self.any_mask:
            return text.startswith(self.text, start)
        if start < 0 or start + len(self.text) > len(text):
            return False
        return all(own in ("?", text[start + offset]) for offset, own in enumerate(self.text))

    def find(self, text: str, start: int, end: int) -> int:
        """Return where the segment first lies in `text[start:end]`, or -1."""
        if not self.any_mask:
            return text.find(self.text, start, end)
        accept = 1 << (len(self.text) - 1)
        states = 0
        for position in range(start, end):
            states = (states << 1 | 1) & (self.masks.get(text[position], 0) | self.any_mask)
            if states & accept:
                return position - len(self.text) + 1
        return -1

    def find_word(self, text: str, start: int, *, opens: bool, closes: bool) -> int:
        """Return where the segment first lies from `start` on, at boundaries, or -1.

        `opens`: its start must be a boundary; `closes`: its end must be one.
        """
        length = len(self.text)
        if self.any_mask:
            return self._find_word_with_marks(text, start, opens=opens, closes=closes)
        while (found := text.find(self.text, start)) >= 0:
            if (not opens or is_boundary(text, found)) and (
                not closes or is_boundary(text, found + length)
            ):
                return found
            start = found + 1
        return -1

    def _find_word_with_marks(self, text: str, start: int, *, opens: bool, closes: bool) -> int:
        length = len(self.text)
        accept = 1 << (length - 1)
        states = 0
        for position in range(start, len(text)):
            may_open = 1 if not opens or is_boundary(text, position) else 0
            states = (states << 1 | may_open) & (self.masks.get(text[position], 0) | self.any_mask)
            if states & accept and (not closes or is_boundary(text, position + 1)):
                return position - length + 1
        return -1


@dataclass(frozen=True, slots=True)
class Glob:
    """A compiled pattern; make it with `compile_glob`."""

    pattern: str
    _segments: tuple[_Segment, ...] = field(repr=False, compare=False)

    @property
    def is_literal(self) -> bool:
        """Return whether the pattern has no wildcard, so that equality decides."""
        return len(self._segments) == 1 and not self._segments[0].any_mask

    def matches(self, text: str) -> bool:
        """Return whether the pattern covers the whole of `text`, which is in lower case."""
        first, *rest = self._segments
        if not rest:
            return len(text) == len(first.text) and first.is_at(text, 0)
        last = rest.pop()
        end = len(text) - len(last.text)
        position = len(first.text)
        if end < position or not first.is_at(text, 0) or not last.is_at(text, end):
            return False
        for segment in rest:
            found = segment.find(text, position, end)
            if found < 0:
                return False
            position = found + len(segment.text)
        return True

    def matches_word(self, text: str) -> bool:
        """Return whether the pattern covers a part of `text` that lies at word boundaries.

        `text` is in lower case.

        Spec: client-server-api#push-rules
        """
        position = 0
        final = len(self._segments) - 1
        for index, segment in enumerate(self._segments):
            if not segment.text:
                continue  # The star beside it reaches the start or the end of the text.
            found = segment.find_word(text, position, opens=index == 0, closes=index == final)
            if found < 0:
                return False
            position = found + len(segment.text)
        return True


@lru_cache(maxsize=4096)
def compile_glob(pattern: str, *, question_mark: bool = True, fold_case: bool = True) -> Glob:
    """Return the compiled `pattern`, in lower case unless `fold_case` is False.

    With `question_mark` False only `*` is special, as in the `types` of a filter.
    """
    pieces = (pattern.lower() if fold_case else pattern).split("*")
    segments = tuple(
        _Segment.compile(piece, question_mark=question_mark)
        for index, piece in enumerate(pieces)
        if piece or index in {0, len(pieces) - 1}
    )
    return Glob(pattern, segments)
