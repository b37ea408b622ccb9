"""Asking that an event be sticky. MSC4354#proposal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.base.errors import InvalidParam
from minihs.protocol import unstable
from minihs.protocol.stickiness import read_sticky_duration

if TYPE_CHECKING:
    from minihs.api.requests import Request


def sticky_duration_ms(request: Request) -> int | None:
    """Return for how long the event is to be sticky; None: it is an ordinary event.

    MSC4354#proposal

    Raises:
        InvalidParam: the duration is no number from 0 to an hour, or two are given that differ.
    """
    given = unstable.read(request.http.query, unstable.STICKY_DURATION_PARAMETER)
    if given is None:
        return None
    if isinstance(given, unstable.Disagreement):
        raise InvalidParam(given.message)
    duration_ms = read_sticky_duration(str(given))
    if duration_ms is None:
        name = unstable.STICKY_DURATION_PARAMETER.stable
        raise InvalidParam(f"{name} must be a number of milliseconds, of an hour at the most.")
    return duration_ms
