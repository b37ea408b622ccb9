"""Filters of /sync, /messages, /context and /search.

A filter arrives as JSON from a client, once; it is then asked about a great many events. So the
JSON is turned into frozen values whose tests are prepared: exact types and types ending in a
star are looked up, and a filter that lets everything through says so (`matches_all`), so that a
caller skips it. A value compares by what it filters, and `signature` is its short form for the
key of a cache or the name of a stored filter.

Spec: client-server-api#filtering
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from minihs.protocol.globs import Glob, compile_glob

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


EventFormat = Literal["client", "federation"]


@dataclass(frozen=True, slots=True)
class TypePatterns:
    """A list of event types, of which some have stars, prepared for asking."""

    patterns: tuple[str, ...]
    _exact: frozenset[str] = field(repr=False, compare=False)
    _prefixes: tuple[str, ...] = field(repr=False, compare=False)
    _globs: tuple[Glob, ...] = field(repr=False, compare=False)

    @staticmethod
    def of(patterns: Iterable[str]) -> TypePatterns:
        """Return the patterns, prepared."""
        ordered = tuple(sorted(set(patterns)))
        exact, prefixes, globs = [], [], []
        for pattern in ordered:
            stars = pattern.count("*")
            if stars == 0:
                exact.append(pattern)
            elif stars == 1 and pattern.endswith("*"):
                prefixes.append(pattern[:-1])
            else:
                globs.append(compile_glob(pattern, question_mark=False, fold_case=False))
        return TypePatterns(ordered, frozenset(exact), tuple(prefixes), tuple(globs))

    def has(self, event_type: str) -> bool:
        """Return whether one of them matches a type."""
        return (
            event_type in self._exact
            or (bool(self._prefixes) and event_type.startswith(self._prefixes))
            or any(glob.matches(event_type) for glob in self._globs)
        )


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events of one section pass, and how they are loaded.

    None stands for a list that was not given, which differs from an empty one: an empty `types`
    lets nothing through. The fields of a room event filter keep their defaults where the section
    has none (presence, global account data).

    Spec: client-server-api#filtering
    """

    types: TypePatterns | None = None
    not_types: TypePatterns | None = None
    senders: frozenset[str] | None = None
    not_senders: frozenset[str] = frozenset()
    rooms: frozenset[str] | None = None
    not_rooms: frozenset[str] = frozenset()
    contains_url: bool | None = None
    related_by_senders: frozenset[str] | None = None
    related_by_rel_types: frozenset[str] | None = None
    rel_types: frozenset[str] | None = None
    not_rel_types: frozenset[str] = frozenset()
    limit: int | None = None
    lazy_load_members: bool = False
    include_redundant_members: bool = False
    unread_thread_notifications: bool = False

    matches_all: bool = field(init=False, compare=False)

    def __post_init__(self) -> None:
        chooses = (
            self.types is not None
            or self.not_types is not None
            or self.senders is not None
            or self.rooms is not None
            or self.rel_types is not None
            or self.contains_url is not None
            or bool(self.not_senders or self.not_rooms or self.not_rel_types)
        )
        object.__setattr__(self, "matches_all", not chooses)

    @property
    def selection(self) -> int:
        """Return a number that tells filters apart that choose other events; 0: all of them."""
        return 0 if self.matches_all else zlib.crc32(repr(self._chooses).encode())

    @property
    def _chooses(self) -> tuple[object, ...]:
        return (
            None if self.types is None else self.types.patterns,
            () if self.not_types is None else self.not_types.patterns,
            _sorted(self.senders),
            _sorted(self.not_senders),
            _sorted(self.rooms),
            _sorted(self.not_rooms),
            self.contains_url,
            _sorted(self.related_by_senders),
            _sorted(self.related_by_rel_types),
            _sorted(self.rel_types),
            _sorted(self.not_rel_types),
        )

    @property
    def signature(self) -> tuple[object, ...]:
        """Return a hashable value that is equal for filters that do the same."""
        return (
            *self._chooses,
            self.limit,
            self.lazy_load_members,
            self.include_redundant_members,
            self.unread_thread_notifications,
        )

    @property
    def matches_nothing(self) -> bool:
        """Return whether no event can pass, so that nothing need be loaded."""
        return (
            self.limit == 0
            or (self.types is not None and not self.types.patterns)
            or (self.senders is not None and not self.senders - self.not_senders)
            or (self.rooms is not None and not self.rooms - self.not_rooms)
        )

    def has_room(self, room_id: str) -> bool:
        """Return whether events of this room may pass at all."""
        return room_id not in self.not_rooms and (self.rooms is None or room_id in self.rooms)

    def has_type(self, event_type: str) -> bool:
        """Return whether events of this type may pass at all."""
        if self.not_types is not None and self.not_types.has(event_type):
            return False
        return self.types is None or self.types.has(event_type)

    def has_sender(self, sender: str) -> bool:
        """Return whether events of this sender may pass at all."""
        return sender not in self.not_senders and (self.senders is None or sender in self.senders)

    def has_relation(self, rel_type: str | None) -> bool:
        """Return whether an event that is itself related to another by `rel_type` may pass.

        MSC3874#proposal
        """
        if rel_type is not None and rel_type in self.not_rel_types:
            return False
        return self.rel_types is None or rel_type in self.rel_types

    def matches(
        self,
        *,
        event_type: str,
        sender: str | None,
        room_id: str | None,
        content: Mapping[str, object],
    ) -> bool:
        """Return whether an event passes; `sender` and `room_id` are None where it has none.

        What an event is related *by* is not known from the event: the caller looks up
        `related_by_senders` and `related_by_rel_types` itself.
        """
        if self.matches_all:
            return True
        if not self.has_type(event_type):
            return False
        if sender is not None and not self.has_sender(sender):
            return False
        if room_id is not None and not self.has_room(room_id):
            return False
        if self.contains_url is not None and self.contains_url is not _has_url(content):
            return False
        if self.rel_types is None and not self.not_rel_types:
            return True
        return self.has_relation(_rel_type(content))


def _has_url(content: Mapping[str, object]) -> bool:
    return isinstance(content.get("url"), str)


def _rel_type(content: Mapping[str, object]) -> str | None:
    match content.get("m.relates_to"):
        case {"rel_type": str(rel_type)}:
            return rel_type
        case _:
            return None


@dataclass(frozen=True, slots=True)
class RoomFilter:
    """Which rooms, and which events of each of their sections.

    Spec: client-server-api#filtering
    """

    rooms: frozenset[str] | None = None
    not_rooms: frozenset[str] = frozenset()
    include_leave: bool = False
    timeline: EventFilter = EventFilter()
    state: EventFilter = EventFilter()
    ephemeral: EventFilter = EventFilter()
    account_data: EventFilter = EventFilter()

    def has_room(self, room_id: str) -> bool:
        """Return whether the room is in the answer at all."""
        return room_id not in self.not_rooms and (self.rooms is None or room_id in self.rooms)


@dataclass(frozen=True, slots=True)
class Filter:
    """A whole filter of /sync.

    `event_fields` are paths of property names, or None for all fields. `delayed_outcomes`: what
    became of delayed events is wanted (MSC4309).

    Spec: client-server-api#filtering
    """

    room: RoomFilter = RoomFilter()
    presence: EventFilter = EventFilter()
    account_data: EventFilter = EventFilter()
    event_format: EventFormat = "client"
    event_fields: tuple[tuple[str, ...], ...] | None = None
    delayed_outcomes: bool = True

    signature: tuple[object, ...] = field(init=False, compare=False, repr=False)
    """A hashable value that is equal for filters that do the same."""

    def __post_init__(self) -> None:
        room = self.room
        signature = (
            _sorted(room.rooms),
            _sorted(room.not_rooms),
            room.include_leave,
            room.timeline.signature,
            room.state.signature,
            room.ephemeral.signature,
            room.account_data.signature,
            self.presence.signature,
            self.account_data.signature,
            self.event_format,
            self.event_fields,
        )
        object.__setattr__(self, "signature", signature)

    @property
    def shapes_events(self) -> bool:
        """Return whether events are written otherwise than as whole client events."""
        return self.event_fields is not None or self.event_format != "client"


def _sorted(names: frozenset[str] | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(sorted(names))
