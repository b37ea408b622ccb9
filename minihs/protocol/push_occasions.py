"""Occasions: one event in its room, as push rules look at it, and those who may be meant by it.

Spec: client-server-api#push-rules
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from minihs.protocol.globs import contains_word
from minihs.protocol.identifiers import localpart_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from minihs.protocol.events import Event
    from minihs.protocol.power_levels import PowerLevels

_ABSENT: Final = object()
_WORDS: Final = re.compile("[a-z0-9_]+")


class Occasion:
    """One event in its room, with what has been found out about it so far.

    `member_count` is the number of joined members; `power` the power levels in force; `held` which
    `Conditions` hold, as far as they do not depend on the reader.
    """

    __slots__ = ("_content", "_top", "_words", "body", "event", "held", "member_count", "power")

    def __init__(self, event: Event, *, member_count: int, power: PowerLevels) -> None:
        self.event = event
        self.member_count = member_count
        self.power = power
        self._content = event.content
        body = event.content.get("body")
        self.body: str | None = body.lower() if isinstance(body, str) else None
        self._top: dict[str, object] | None = None
        self.held: dict[object, bool] = {}
        self._words: frozenset[str] | None = None

    @property
    def words(self) -> frozenset[str]:
        """Return the words of the body, each a run of letters A to Z, digits and underscores."""
        if self._words is None:
            self._words = frozenset(_WORDS.findall(self.body or ""))
        return self._words

    def value_at(self, path: Sequence[str]) -> object:
        """Return the value of a property of the event, or a mark that equals nothing in JSON."""
        if path[0] == "content":
            value: object = self._content
        else:
            if self._top is None:
                self._top = {
                    **self.event.pdu,
                    "event_id": self.event.event_id,
                    "room_id": self.event.room_id,
                }
            value = self._top.get(path[0], _ABSENT)
        for name in path[1:]:
            if not isinstance(value, dict):
                return _ABSENT
            value = value.get(name, _ABSENT)
        return value


@dataclass(frozen=True, slots=True)
class Reader:
    """The user whose rules are asked, under the display name in this room."""

    user_id: str
    display_name: str | None


class MemberNames:
    """The local members of a room, arranged so that a text finds whom it names.

    A name is looked up by its longest word, so that a message costs as much as it has words and
    not as much as the room has members; the index is made when a text is first searched. Include
    whoever the event invites.
    """

    __slots__ = ("_display_names", "_localparts", "_members")

    def __init__(self, members: Mapping[str, str | None]) -> None:
        self._members = members
        self._display_names: _WordIndex | None = None
        self._localparts: _WordIndex | None = None

    def __contains__(self, user_id: object) -> bool:
        return user_id in self._members

    def named_by_display_name(self, occasion: Occasion) -> Iterator[str]:
        """Yield the members whose display name is in the body."""
        if not occasion.body:
            return iter(())
        if self._display_names is None:
            self._display_names = _WordIndex(
                (name, user_id) for user_id, name in self._members.items() if name
            )
        return self._display_names.find(occasion)

    def named_by_localpart(self, occasion: Occasion) -> Iterator[str]:
        """Yield the members whose localpart is in the body."""
        if not occasion.body:
            return iter(())
        if self._localparts is None:
            self._localparts = _WordIndex((localpart_of(user), user) for user in self._members)
        return self._localparts.find(occasion)


class _WordIndex:
    """Texts by their longest word; those without one (other scripts, emoji) are tried in turn."""

    __slots__ = ("_by_word", "_wordless")

    def __init__(self, named: Iterable[tuple[str, str]]) -> None:
        self._by_word: dict[str, list[tuple[str, str]]] = {}
        self._wordless: list[tuple[str, str]] = []
        for text, user_id in named:
            lowered = text.lower()
            words = _WORDS.findall(lowered)
            if words:
                self._by_word.setdefault(max(words, key=len), []).append((lowered, user_id))
            elif lowered.strip():
                self._wordless.append((lowered, user_id))

    def find(self, occasion: Occasion) -> Iterator[str]:
        body = occasion.body
        if not body:
            return
        for word in occasion.words & self._by_word.keys():
            for text, user_id in self._by_word[word]:
                if contains_word(body, text):
                    yield user_id
        for text, user_id in self._wordless:
            if contains_word(body, text):
                yield user_id
