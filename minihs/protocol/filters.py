"""Filters of /sync, /messages, /context and /search: read, checked, and matched.

A filter arrives as JSON from a client, once; it is then asked about a great many events. So the
JSON is turned into frozen values whose tests are prepared: exact types and types ending in a
star are looked up, and a filter that lets everything through says so (`matches_all`), so that a
caller skips it. A value compares by what it filters, and `signature` is its short form for the
key of a cache or the name of a stored filter.

Fields that no filter has are ignored. A known field of the wrong shape is an error naming it.

Spec: client-server-api#filtering
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from minihs.protocol import unstable
from minihs.protocol.globs import Glob, compile_glob

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

FILTER_LIST_COUNT_MAX = 10_000  # Ours: entries of one list; a longer one is refused.

EventFormat = Literal["client", "federation"]


class InvalidFilterError(ValueError):
    """A known field of a filter has the wrong shape: `400 M_BAD_JSON`, naming the `path`."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path or 'filter'}: {problem}")
        self.path = path


@dataclass(frozen=True, slots=True)
class _Types:
    """A list of event types, of which some have stars, prepared for asking."""

    patterns: tuple[str, ...]
    _exact: frozenset[str] = field(repr=False, compare=False)
    _prefixes: tuple[str, ...] = field(repr=False, compare=False)
    _globs: tuple[Glob, ...] = field(repr=False, compare=False)

    @staticmethod
    def of(patterns: Iterable[str]) -> _Types:
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
        return _Types(ordered, frozenset(exact), tuple(prefixes), tuple(globs))

    def has(self, event_type: str) -> bool:
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

    types: _Types | None = None
    not_types: _Types | None = None
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


# --- reading ------------------------------------------------------------------------------------


def parse_filter(json: object) -> Filter:
    """Return the filter that `json` describes.

    Raises:
        InvalidFilterError: a known field has the wrong shape.

    Spec: client-server-api#post_matrixclientv3useruseridfilter
    """
    source = _object(json, "")
    event_format = source.get("event_format", "client")
    if event_format not in ("client", "federation"):
        raise InvalidFilterError("event_format", "must be client or federation")
    fields = _strings(source, "event_fields", "")
    outcomes = [_boolean(source, name, "") for name in unstable.DELAYED_EVENT_OUTCOMES.spellings]
    return Filter(
        room=_parse_room_filter(source.get("room")),
        presence=parse_event_filter(source.get("presence"), path="presence"),
        account_data=parse_event_filter(source.get("account_data"), path="account_data"),
        event_format="client" if event_format == "client" else "federation",
        event_fields=None if fields is None else _shortest({split_path(f) for f in fields}),
        delayed_outcomes=False not in outcomes,
    )


def _parse_room_filter(json: object) -> RoomFilter:
    if json is None:
        return RoomFilter()
    source = _object(json, "room")
    return RoomFilter(
        rooms=_ids(source, "rooms", "room", sigil="!"),
        not_rooms=_ids(source, "not_rooms", "room", sigil="!") or frozenset(),
        include_leave=_boolean(source, "include_leave", "room") or False,
        timeline=parse_event_filter(source.get("timeline"), path="room.timeline"),
        state=parse_event_filter(source.get("state"), path="room.state"),
        ephemeral=parse_event_filter(source.get("ephemeral"), path="room.ephemeral"),
        account_data=parse_event_filter(source.get("account_data"), path="room.account_data"),
    )


def parse_event_filter(json: object, *, path: str = "") -> EventFilter:
    """Return the event filter or room event filter that `json` describes; None means all.

    `path` is where in the whole filter it stands, for the error.

    Raises:
        InvalidFilterError: a known field has the wrong shape.

    Spec: client-server-api#post_matrixclientv3useruseridfilter
    """
    if json is None:
        return EventFilter()
    source = _object(json, path)
    types = _strings(source, "types", path)
    not_types = _strings(source, "not_types", path)
    related_by_types = _renamed_strings(source, unstable.RELATED_BY_RELATION_TYPES, path)
    related_by_senders = _renamed_strings(source, unstable.RELATED_BY_SENDERS, path)
    rel_types = _renamed_strings(source, unstable.RELATION_TYPES, path)
    not_rel_types = _renamed_strings(source, unstable.NOT_RELATION_TYPES, path)
    threads = unstable.UNREAD_THREAD_NOTIFICATIONS
    return EventFilter(
        types=None if types is None else _Types.of(types),
        not_types=_Types.of(not_types) if not_types else None,
        senders=_ids(source, "senders", path, sigil="@"),
        not_senders=_ids(source, "not_senders", path, sigil="@") or frozenset(),
        rooms=_ids(source, "rooms", path, sigil="!"),
        not_rooms=_ids(source, "not_rooms", path, sigil="!") or frozenset(),
        contains_url=_boolean(source, "contains_url", path),
        related_by_senders=_set(related_by_senders),
        related_by_rel_types=_set(related_by_types),
        rel_types=_set(rel_types),
        not_rel_types=_set(not_rel_types) or frozenset(),
        limit=_limit(source, path),
        lazy_load_members=_boolean(source, "lazy_load_members", path) or False,
        include_redundant_members=_boolean(source, "include_redundant_members", path) or False,
        unread_thread_notifications=any(
            _boolean(source, spelling, path) for spelling in threads.spellings
        ),
    )


def _sorted(names: frozenset[str] | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(sorted(names))


def _set(names: tuple[str, ...] | None) -> frozenset[str] | None:
    return None if names is None else frozenset(names)


def _at(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _object(json: object, path: str) -> Mapping[str, object]:
    if not isinstance(json, dict):
        raise InvalidFilterError(path, "must be an object")
    return json


def _strings(source: Mapping[str, object], key: str, path: str) -> tuple[str, ...] | None:
    value = source.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise InvalidFilterError(_at(path, key), "must be a list of strings")
    if len(value) > FILTER_LIST_COUNT_MAX:
        raise InvalidFilterError(
            _at(path, key), f"must have at most {FILTER_LIST_COUNT_MAX} entries"
        )
    return tuple(value)


def _renamed_strings(
    source: Mapping[str, object], name: unstable.Name, path: str
) -> tuple[str, ...] | None:
    key = name.unstable if name.unstable in source else name.stable
    return _strings(source, key, path)


def _ids(source: Mapping[str, object], key: str, path: str, *, sigil: str) -> frozenset[str] | None:
    names = _strings(source, key, path)
    if names is None:
        return None
    for name in names:
        if not name.startswith(sigil):
            raise InvalidFilterError(_at(path, key), f"entries must start with {sigil}")
    return frozenset(names)


def _boolean(source: Mapping[str, object], key: str, path: str) -> bool | None:
    value = source.get(key)
    if value is None or isinstance(value, bool):
        return value
    raise InvalidFilterError(_at(path, key), "must be a boolean")


def _limit(source: Mapping[str, object], path: str) -> int | None:
    # The specification asks for more than 0, but clients send 0 for "nothing of this section".
    value = source.get("limit")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidFilterError(_at(path, "limit"), "must be an integer, not negative")
    return value


# --- fields of an event -------------------------------------------------------------------------


def split_path(path: str) -> tuple[str, ...]:
    r"""Return the property names of a dot-separated path: `content.m\.body` is two names.

    Spec: appendices#dot-separated-property-paths
    """
    if "\\" not in path:
        return tuple(path.split("."))
    names: list[str] = []
    name: list[str] = []
    characters = iter(path)
    for character in characters:
        if character == "\\":
            escaped = next(characters, "")
            name.append(escaped if escaped in (".", "\\") else "\\" + escaped)
        elif character == ".":
            names.append("".join(name))
            name.clear()
        else:
            name.append(character)
    names.append("".join(name))
    return tuple(names)


def _shortest(paths: set[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    # `content.body` adds nothing where `content` is asked for.
    return tuple(
        sorted(
            path
            for path in paths
            if not any(path[:length] in paths for length in range(1, len(path)))
        )
    )


def select_fields(
    event: Mapping[str, object], fields: Iterable[tuple[str, ...]]
) -> dict[str, object]:
    """Return the part of a client event that `fields` ask for.

    A path that leads nowhere adds nothing. Stickiness and its time to live are kept beside
    `event_id`: without them a client could not let the event expire.

    Spec: client-server-api#post_matrixclientv3useruseridfilter
    MSC4354#proposal
    """
    chosen: dict[str, object] = {}
    for path in fields:
        _copy_path(event, chosen, path)
    if "event_id" in chosen:
        for spelling in unstable.STICKY.spellings:
            _copy_path(event, chosen, (spelling,))
        for spelling in unstable.STICKY_TTL.spellings:
            _copy_path(event, chosen, ("unsigned", spelling))
    return chosen


def _copy_path(
    source: Mapping[str, object], target: dict[str, object], path: tuple[str, ...]
) -> None:
    value: object = source
    for name in path:
        if not isinstance(value, dict) or name not in value:
            return
        value = value[name]
    for name in path[:-1]:
        whole = source[name]
        inner = target.setdefault(name, {})
        if inner is whole or not isinstance(inner, dict) or not isinstance(whole, dict):
            return  # Already chosen as a whole.
        source, target = whole, inner
    target[path[-1]] = value
