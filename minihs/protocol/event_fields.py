"""Fields of events by their dotted paths, as filters and push rules name them.

Spec: appendices#dot-separated-property-paths
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.protocol import unstable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


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


def shortest_paths(paths: set[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    """Return paths, without those that add nothing: `content.body` where `content` is asked for."""
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
