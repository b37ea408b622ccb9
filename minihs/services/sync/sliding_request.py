"""What a client asks of sliding sync: lists, subscriptions, and which state of their rooms.

The old and the merged shape of requests are read into the same values.
MSC4186#request-body
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from minihs.protocol.identifiers import EventId, StateKey, UserId
    from minihs.services.accounts.authentication import Requester
    from minihs.services.sync.positions import SyncToken

MEMBER = "m.room.member"

Element = tuple[str | None, str | None]
"""A type and a state key to match; None matches all."""


@dataclass(frozen=True, slots=True)
class _Matcher:
    """What any of some elements matches, found as quickly for thousands of them as for one."""

    everything: bool
    types: frozenset[str]
    keys: frozenset[str]
    pairs: frozenset[StateKey]

    def has(self, key: StateKey) -> bool:
        """Return whether any element matches."""
        return self.everything or key in self.pairs or key[0] in self.types or key[1] in self.keys


def _matcher(elements: Iterable[Element]) -> _Matcher:
    listed = list(elements)
    return _Matcher(
        (None, None) in listed,
        frozenset(t for t, k in listed if t is not None and k is None),
        frozenset(k for t, k in listed if t is None and k is not None),
        frozenset((t, k) for t, k in listed if t is not None and k is not None),
    )


@dataclass(frozen=True, slots=True)
class RequiredState:
    """Which state of a room is wanted.

    With `lazy_members`, members are matched only by elements that name both type and state key.
    MSC4186#requiredstaterequest
    """

    include: tuple[Element, ...] = ()
    exclude: tuple[Element, ...] = ()
    lazy_members: bool = False
    _included: _Matcher = field(init=False, repr=False, compare=False)
    _excluded: _Matcher = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_included", _matcher(self.include))
        object.__setattr__(self, "_excluded", _matcher(self.exclude))

    def has(self, key: StateKey) -> bool:
        """Return whether the entry of a state is wanted."""
        if self.lazy_members and key[0] == MEMBER:
            return key in self._included.pairs and not self._excluded.has(key)
        return self._included.has(key) and not self._excluded.has(key)

    @property
    def has_all_members(self) -> bool:
        """Whether every member is wanted, so that none need be loaded lazily."""
        return not self.lazy_members and any(
            t in (None, MEMBER) and k is None for t, k in self.include
        )

    def select(self, entries: Mapping[StateKey, EventId]) -> dict[StateKey, EventId]:
        """Return those of the entries that are wanted."""
        wanted = self._included
        if wanted.everything or wanted.types or wanted.keys:
            return {key: event_id for key, event_id in entries.items() if self.has(key)}
        return {key: entries[key] for key in wanted.pairs if key in entries and self.has(key)}


@dataclass(frozen=True, slots=True)
class RoomConfig:
    """How much of a room is wanted: of its timeline, and any of several sets of state."""

    timeline_limit: int
    required: tuple[RequiredState, ...]

    @property
    def lazy_members(self) -> bool:
        """Whether members come with what they say. MSC4186#combining-room-configs."""
        return any(r.lazy_members for r in self.required) and not any(
            r.has_all_members for r in self.required
        )

    def has(self, key: StateKey) -> bool:
        """Return whether an entry of the room's state is wanted."""
        return any(required.has(key) for required in self.required)

    def select(self, entries: Mapping[StateKey, EventId]) -> dict[StateKey, EventId]:
        """Return those of the entries that are wanted."""
        chosen: dict[StateKey, EventId] = {}
        for required in self.required:
            chosen |= required.select(entries)
        return chosen


def combine(configs: Iterable[RoomConfig]) -> RoomConfig:
    """Return what satisfies several wishes at once. MSC4186#combining-room-configs."""
    configs = list(configs)
    if len(configs) == 1:
        return configs[0]
    required = {r for config in configs for r in config.required}
    return RoomConfig(
        max(config.timeline_limit for config in configs), tuple(sorted(required, key=repr))
    )


@dataclass(frozen=True, slots=True)
class RoomFilters:
    """Which rooms a list has; None: all. MSC4186#slidingroomfilter."""

    is_dm: bool | None = None
    spaces: tuple[str, ...] | None = None
    is_encrypted: bool | None = None
    is_invited: bool | None = None
    room_types: tuple[str | None, ...] | None = None
    not_room_types: tuple[str | None, ...] = ()
    tags: tuple[str, ...] | None = None
    not_tags: tuple[str, ...] = ()
    room_name_like: str | None = None

    @property
    def needs_facts(self) -> bool:
        """Whether the rooms' state must be known."""
        return (
            self.is_encrypted is not None
            or self.room_types is not None
            or bool(self.not_room_types)
            or self.room_name_like is not None
        )


@dataclass(frozen=True, slots=True)
class RoomList:
    """A list; its windows are inclusive (None: everything)."""

    ranges: tuple[tuple[int, int], ...] | None
    filters: RoomFilters
    config: RoomConfig


@dataclass(frozen=True, slots=True)
class Scope:
    """To which lists and which subscribed rooms an extension applies; None: to all."""

    lists: tuple[str, ...] | None = None
    rooms: tuple[str, ...] | None = None

    def named(self, name: str) -> str:
        """Return what tells an extension with this scope from others."""
        return name if self == Scope() else f"{name} {self.lists} {self.rooms}"


@dataclass(frozen=True, slots=True)
class StickyRequest:
    """How many sticky events are wanted at most, and what the client has of them (MSC4480)."""

    limit: int
    token: SyncToken | None


@dataclass(frozen=True, slots=True)
class ToDeviceRequest:
    """How many messages to the device are wanted at most, and up to where the client has them."""

    limit: int
    received: int = 0


@dataclass(frozen=True, slots=True)
class Position:
    """What a `pos` says: the stream's position, the connection's state, the request's digest."""

    upto: int
    state_nid: int
    digest: str


@dataclass(frozen=True, slots=True)
class SlidingRequest:
    """Who syncs, and what they want.

    `position` is None in a connection's first request; `extensions` are those that were enabled,
    by their names. `merged`: answers take the shape of the merged MSC.
    """

    requester: Requester
    merged: bool
    conn_id: str
    position: Position | None
    timeout_ms: int
    lists: Mapping[str, RoomList] = field(default_factory=dict)
    subscriptions: Mapping[str, RoomConfig] = field(default_factory=dict)
    extensions: Mapping[str, Scope] = field(default_factory=dict)
    sticky: StickyRequest | None = None
    to_device: ToDeviceRequest | None = None

    @property
    def user_id(self) -> UserId:
        """Who syncs."""
        return self.requester.user_id

    @property
    def since(self) -> int | None:
        """The position in the stream up to which the connection has been told what is new."""
        return None if self.position is None else self.position.upto

    def digest(self) -> str:
        """Return what is equal for requests that ask for the same."""
        wishes = (
            self.merged,
            sorted(self.lists.items()),
            sorted(self.subscriptions.items()),
            sorted(self.extensions.items()),
            self.sticky is not None,
        )
        return hashlib.blake2s(repr(wishes).encode(errors="replace"), digest_size=6).hexdigest()
