"""Finding the handler of a path: a tree of path segments, walked once.

Paths are matched as they came over the wire, percent-encoded, so that an encoded slash in a room
alias or state key stays inside its segment; parameters are decoded after the match.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Mapping

R = TypeVar("R")


@dataclass(slots=True)
class _Node(Generic[R]):
    fixed: dict[str, _Node[R]] = field(default_factory=dict)
    parameter: _Node[R] | None = None
    methods: dict[str, tuple[R, tuple[str, ...]]] = field(default_factory=dict)


class Router(Generic[R]):
    """Routes by method and path; `{name}` in a path matches one segment, possibly empty."""

    def __init__(self) -> None:
        self._root: _Node[R] = _Node()

    def add(self, method: str, path: str, route: R) -> None:
        """Add a route.

        Raises:
            ValueError: there is one already.
        """
        node, names = self._root, []
        for segment in path.split("/")[1:]:
            if segment.startswith("{"):
                names.append(segment[1:-1])
                if node.parameter is None:
                    node.parameter = _Node()
                node = node.parameter
            else:
                node = node.fixed.setdefault(segment, _Node())
        if method in node.methods:
            raise ValueError(f"two routes for {method} {path}")
        node.methods[method] = (route, tuple(names))

    def match(
        self, method: str, raw_path: str
    ) -> tuple[R, Mapping[str, str]] | frozenset[str] | None:
        """Return a route and its parameters; the allowed methods if only those differ; or None."""
        node, values = self._root, []
        for segment in raw_path.split("/")[1:]:
            found = node.fixed.get(segment)
            if found is None:
                found = node.parameter
                if found is None:
                    return None
                values.append(unquote(segment) if "%" in segment else segment)
            node = found
        if not node.methods:
            return None
        entry = node.methods.get(method)
        if entry is None:
            return frozenset(node.methods)
        route, names = entry
        return route, dict(zip(names, values, strict=True))
