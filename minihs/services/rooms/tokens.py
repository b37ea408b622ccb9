"""Places in a room's history, and the tokens that name them to clients.

A place lies between events: directly after every event whose order is not above it (see
`storage.schema` on order). `t<major>_<minor>` is written; a sync token `s<position>`, with or
without cursors of its own, is read as well: it is the place after everything up to that position.
So any `next_batch`, `prev_batch`, `start` or `end` works in any parameter that takes a token.

Spec: client-server-api#pagination
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from minihs.base.errors import InvalidParam

if TYPE_CHECKING:
    from minihs.storage.event_store import StoredEvent

MAJOR_MAX = 2**63 - 1
MINOR_MIN, MINOR_MAX = -(2**31), 2**31 - 1

_PLACE = re.compile(r"t([0-9]{1,19})_(-?[0-9]{1,10})", re.ASCII)
_SYNC = re.compile(r"s([0-9]{1,19})(?:_[A-Za-z0-9_.-]*)?", re.ASCII)


class Place(NamedTuple):
    """Directly after everything whose (order_major, order_minor) is not above this one."""

    major: int
    minor: int = 0


START = Place(0, MINOR_MIN)


def place_after(stored: StoredEvent) -> Place:
    """Return the place directly after an event that is no outlier."""
    major, minor = stored.order or START
    return Place(major, minor)


def place_before(stored: StoredEvent) -> Place:
    """Return the place directly before an event that is no outlier: a timeline's `prev_batch`."""
    major, minor = stored.order or START
    return Place(major, max(minor - 1, MINOR_MIN))


def format_place(place: Place) -> str:
    """Return the token of a place."""
    return f"t{place.major}_{place.minor}"


def parse_place(token: str, *, newest: int = MAJOR_MAX) -> Place:
    """Return the place that a token names; `newest` is the highest position given out so far.

    Raises:
        InvalidParam: it is no token of ours, or from a future that has not come.
    """
    if found := _SYNC.fullmatch(token):
        place = Place(int(found[1]))
    elif found := _PLACE.fullmatch(token):
        place = Place(int(found[1]), int(found[2]))
    else:
        raise InvalidParam("This is not a pagination token of this server.")
    if place.major > newest or not MINOR_MIN <= place.minor <= MINOR_MAX:
        raise InvalidParam("This pagination token is out of range.")
    return place
