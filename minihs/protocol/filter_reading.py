"""Reading filters: from the JSON that clients give, to the values that are applied.

Fields that no filter has are ignored. A known field of the wrong shape is an error naming it.

Spec: client-server-api#filtering
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.protocol import unstable
from minihs.protocol.event_fields import shortest_paths, split_path
from minihs.protocol.filters import EventFilter, Filter, RoomFilter, TypePatterns

if TYPE_CHECKING:
    from collections.abc import Mapping

FILTER_LIST_COUNT_MAX = 10_000  # Ours: entries of one list; a longer one is refused.


class InvalidFilterError(ValueError):
    """A known field of a filter has the wrong shape: `400 M_BAD_JSON`, naming the `path`."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path or 'filter'}: {problem}")
        self.path = path


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
        event_fields=None if fields is None else shortest_paths({split_path(f) for f in fields}),
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
        types=None if types is None else TypePatterns.of(types),
        not_types=TypePatterns.of(not_types) if not_types else None,
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
