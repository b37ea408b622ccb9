"""Which events are sticky, and until when: the arithmetic of MSC4354.

An event is sticky from when it was sent, or received if that is earlier, for as long as it asks,
an hour at the most. Everything here is a pure function of the event and of times given by the
caller, in milliseconds since the Unix epoch. When an event was received is written down once and
never computed again, so its end is a fixed moment: restarts and clocks that step change nothing.

MSC4354#proposal
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from minihs.protocol.unstable import STICKY

if TYPE_CHECKING:
    from collections.abc import Mapping

STICKY_DURATION_MS_MAX: Final = 3_600_000  # MSC4354#proposal: one hour.


@dataclass(frozen=True, slots=True)
class Stickiness:
    """The interval during which an event is sticky; `end_ms` itself is outside it."""

    start_ms: int
    end_ms: int

    def is_sticky(self, now_ms: int) -> bool:
        """Return whether the event is still sticky at `now_ms`."""
        return now_ms < self.end_ms


def sticky_duration_ms(pdu: Mapping[str, object]) -> int | None:
    """Return for how long an event asks to be sticky, or None when it is an ordinary event.

    An integer from 0 on, of which one hour counts at the most. Anything else (a boolean is no
    integer, though Python thinks so) makes the event ordinary; it never makes it invalid. We
    never send more than an hour ourselves, but are lenient with those who do.

    MSC4354#proposal
    """
    match STICKY.either(pdu):
        case {"duration_ms": int(duration_ms)} if not isinstance(duration_ms, bool):
            return min(duration_ms, STICKY_DURATION_MS_MAX) if duration_ms >= 0 else None
        case _:
            return None


def stickiness(pdu: Mapping[str, object], received_ms: int) -> Stickiness | None:
    """Return when an event is sticky, or None when it is an ordinary event.

    `pdu` is the event as accepted: one that was redacted has lost its stickiness.

    MSC4354#proposal
    """
    duration_ms = sticky_duration_ms(pdu)
    sent_ms = pdu.get("origin_server_ts")
    if duration_ms is None or not isinstance(sent_ms, int) or isinstance(sent_ms, bool):
        return None
    start_ms = min(received_ms, sent_ms)  # A clock in the future gains nothing.
    return Stickiness(start_ms, start_ms + duration_ms)


def read_sticky_duration(value: str) -> int | None:
    """Return the milliseconds that the query parameter `sticky_duration_ms` asks for.

    None when it is no decimal integer from 0 to an hour: `400 M_INVALID_PARAM`. More than an hour
    is refused and not shortened, because servers differ in what they make of such an event.

    MSC4354#proposal
    """
    if not (value.isascii() and value.isdecimal()) or len(value) > 9:
        return None
    duration_ms = int(value)
    return duration_ms if duration_ms <= STICKY_DURATION_MS_MAX else None


def sticky_members(duration_ms: int) -> dict[str, object]:
    """Return what a sticky PDU has at its top level, as names and values.

    Outside `content`, so that encrypted events can be sticky; hashed and signed with the rest.

    MSC4354#proposal
    """
    return STICKY.write({"duration_ms": duration_ms})
