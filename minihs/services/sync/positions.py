"""The `since` token: one position of the one stream (D1), and cursors of paged sections behind it.

`s123` is everything up to position 123. `s123_7-90-100-120.8-0` says besides that of the sticky
events (MSC4354) of room 7 only those up to position 90 have been delivered, and of room 8 none:
their backlog did not fit into one answer. Further pairs of numbers are spans that timelines showed
meanwhile: what those let through need not be repeated; `_f5` says which events that were, if the
filter was one of events (`EventFilter.selection`). `s123_7-90_100-57` says that users are owed
whom the client had ignored till after position 100: what they sent up to there that is sticky, of
which those up to position 57 have been delivered; `s123_7-90_100-57.110-0` the same, and of those
whom it had ignored till after position 110. `s123_d90` says that of the messages to the device only
those up to position 90 have been delivered.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from minihs.base.errors import InvalidParam

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CURSORS_CHARS_MAX = 100_000  # Those of /sync are shorter, as they are a part of its URL.
UNIGNORED_MAX = 8  # In one token.
_PAIR = "[0-9]{1,18}-[0-9]{1,18}"
_TOKEN = re.compile(
    rf"s([0-9]{{1,19}})(?:_([0-9.-]{{0,{CURSORS_CHARS_MAX}}})"
    rf"(?:_({_PAIR}(?:\.{_PAIR}){{0,{UNIGNORED_MAX - 1}}}))?)?"
    r"(?:_f([0-9]{1,10}))?(?:_d([0-9]{1,18}))?",
    re.ASCII,
)


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
class Unignored:
    """Sticky events of users who are ignored no longer, since a position after `since`.

    They are owed those that lie up to `since`, of which those up to `upto` have been delivered.
    Where several follow one another, each is of those who ceased to be ignored before the next.
    """

    since: int
    upto: int = 0


@dataclass(frozen=True, slots=True)
class SyncToken:
    """How much a client has seen; `backlogs` by the room's number in the database.

    `selection` is that of the filter of the timelines that showed parts of backlogs. `to_device` is
    up to where it has the messages to its device, if more of them were left.
    """

    position: int
    backlogs: Mapping[int, StickyBacklog] = field(default_factory=dict)
    unignored: tuple[Unignored, ...] = ()
    to_device: int | None = None
    selection: int = 0

    @property
    def has_rest(self) -> bool:
        """Whether there is something that earlier answers had no place for."""
        return bool(self.backlogs) or bool(self.unignored) or self.to_device is not None

    def backlogs_under(self, selection: int) -> Mapping[int, StickyBacklog]:
        """Return the backlogs for a request whose filter has this selection.

        Under another filter, what timelines showed is unknown: better it comes twice than never.
        """
        if selection == self.selection:
            return self.backlogs
        return {nid: StickyBacklog(backlog.upto) for nid, backlog in self.backlogs.items()}


def format_token(
    position: int,
    backlogs: Mapping[int, StickyBacklog] | None = None,
    unignored: Sequence[Unignored] = (),
    to_device: int | None = None,
    selection: int = 0,
) -> str:
    """Return the token of a position, and of what is left of backlogs and messages."""
    messages = "" if to_device is None else f"_d{to_device}"
    if not backlogs and not unignored:
        return f"s{position}{messages}"
    cursors = (
        "-".join(map(str, (nid, b.upto, *(n for span in b.shown for n in span))))
        for nid, b in sorted((backlogs or {}).items())
    )
    owed = ".".join(f"{of_some.since}-{of_some.upto}" for of_some in unignored)
    rest = f"_{owed}" if owed else ""
    shown_by = f"_f{selection}" if selection and backlogs else ""
    return f"s{position}_{'.'.join(cursors)}{rest}{shown_by}{messages}"


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
    owed = [pair.split("-") for pair in found[3].split(".")] if found[3] else []
    unignored = tuple(Unignored(int(since), int(upto)) for since, upto in owed)
    to_device = int(found[5]) if found[5] else None
    return SyncToken(position, backlogs, unignored, to_device, int(found[4] or 0))
