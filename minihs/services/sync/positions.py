"""The `since` token: one position of the one stream (D1), and cursors of paged sections behind it.

`s123` is everything up to position 123. `s123_7-90-100-120.8-0` says besides that of the sticky
events (MSC4354) of room 7 only those up to position 90 have been delivered, and of room 8 none:
their backlog did not fit into one answer. Further pairs of numbers are spans that timelines showed
meanwhile: what those let through need not be repeated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from minihs.base.errors import InvalidParam

if TYPE_CHECKING:
    from collections.abc import Mapping

_TOKEN = re.compile(r"s([0-9]{1,19})(?:_([0-9.-]{0,8000}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class StickyBacklog:
    """Sticky events of a room up to `upto` are delivered; so is what timelines showed.

    Of each span (after, upto] of `shown` a timeline showed whatever passed its filter.
    """

    upto: int
    shown: tuple[tuple[int, int], ...] = ()

    def was_shown(self, position: int) -> bool:
        """Return whether a position lies in a span that a timeline showed."""
        return any(after < position <= upto for after, upto in self.shown)


@dataclass(frozen=True, slots=True)
class SyncToken:
    """How much a client has seen; `backlogs` by the room's number in the database."""

    position: int
    backlogs: Mapping[int, StickyBacklog] = field(default_factory=dict)


def format_token(position: int, backlogs: Mapping[int, StickyBacklog] | None = None) -> str:
    """Return the token of a position and of the backlogs that are left."""
    if not backlogs:
        return f"s{position}"
    cursors = (
        "-".join(map(str, (nid, b.upto, *(n for span in b.shown for n in span))))
        for nid, b in sorted(backlogs.items())
    )
    return f"s{position}_{'.'.join(cursors)}"


def parse_token(token: str, head: int) -> SyncToken:
    """Return what a token says that this server handed out.

    Raises:
        InvalidParam: it is not one of ours, or lies in the future.
    """
    found = _TOKEN.fullmatch(token)
    position = int(found[1]) if found else -1
    if found is None or position > head:
        raise InvalidParam("This is not a sync token of this server.")
    backlogs: dict[int, StickyBacklog] = {}
    for cursor in filter(None, (found[2] or "").split(".")):
        parts = cursor.split("-")
        if len(parts) < 2 or len(parts) % 2 or not all(n and len(n) < 19 for n in parts):
            raise InvalidParam("This is not a sync token of this server.")
        nid, upto, *spans = map(int, parts)
        shown = tuple(zip(spans[::2], spans[1::2], strict=True))
        backlogs[nid] = StickyBacklog(upto, shown)
    return SyncToken(position, backlogs)
