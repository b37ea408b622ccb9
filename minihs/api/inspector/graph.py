"""Drawing a room's graph: each event is a row, and has a node in one of a few lanes.

Rows go from the newest event down. A lane waits for an event that a row above it follows; the row
of that event takes the lanes that wait for it, and leaves one for each event that it follows
itself. What leaves the page at its bottom goes on in the older page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minihs.services.inspector.events import ShownEvent

ROW = 40  # Pixels, as in the stylesheet.
LANE = 16
LANES_MAX = 14  # More lie upon one another in the last.
COLOURS = 6
MARGIN = 12


@dataclass(frozen=True, slots=True)
class Line:
    """A piece of an edge: an SVG path, its colour, and what is special about it.

    `kind` is empty, `lacking` (its end is not on this server) or `is-refused` (where it begins at
    an event that was rejected or soft-failed).
    """

    path: str
    colour: int
    kind: str = ""


@dataclass(frozen=True, slots=True)
class GraphRow:
    """An event with its piece of the drawing, `width` by `ROW` pixels; the node is at `x`."""

    event: ShownEvent
    x: int
    colour: int
    width: int
    lines: Sequence[Line]


def ordered(graph: Sequence[ShownEvent], refused: Sequence[ShownEvent]) -> list[ShownEvent]:
    """Return accepted events with refused ones put right above the newest one that they follow.

    Both are given newest first. Refused events that follow none of the others are left out.
    """
    rows = list(graph)
    shown = {event.event_id for event in graph}
    for event in reversed(refused):
        followed = set(event.prev_events)
        at = next((n for n, row in enumerate(rows) if row.event_id in followed), None)
        if at is not None and event.event_id not in shown:
            rows.insert(at, event)
            shown.add(event.event_id)
    return rows


def draw(events: Sequence[ShownEvent]) -> list[GraphRow]:
    """Return a row for each event, in the same order; see `ordered`."""
    below = {event.event_id: number for number, event in enumerate(events)}
    lanes: list[str | None] = []
    drawn: list[tuple[ShownEvent, int, list[Line]]] = []
    widest = 1
    for number, event in enumerate(events):
        before = list(lanes)
        arriving = [n for n, awaited in enumerate(lanes) if awaited == event.event_id]
        own = arriving[0] if arriving else _free(lanes)
        for lane in arriving:
            lanes[lane] = None
        lacking = set(event.lacking)
        leaving: list[tuple[int, str]] = []
        for prev_id in event.prev_events:
            if below.get(prev_id, number + 1) <= number:
                continue  # What an event follows is below it; if not, it has come by another way.
            lane = _lane_for(lanes, prev_id, own)
            if prev_id in lacking:
                lanes[lane] = None
            kind = "" if event.status == "accepted" else "is-refused"
            leaving.append((lane, "lacking" if prev_id in lacking else kind))
        lines = [_through(n) for n, awaited in enumerate(before) if _stays(awaited, event)]
        lines += [_curve(lane, 0, own, ROW // 2, lane) for lane in arriving]
        lines += [_curve(own, ROW // 2, lane, ROW, lane, kind) for lane, kind in leaving]
        widest = max(widest, len(before), own + 1, *(lane + 1 for lane, _ in leaving))
        drawn.append((event, own, lines))
        while lanes and lanes[-1] is None:
            lanes.pop()
    width = 2 * MARGIN + LANE * (min(widest, LANES_MAX) - 1)
    return [GraphRow(event, _x(own), own % COLOURS, width, lines) for event, own, lines in drawn]


def _stays(awaited: str | None, event: ShownEvent) -> bool:
    return awaited is not None and awaited != event.event_id


def _free(lanes: list[str | None]) -> int:
    """Return a lane that waits for nothing; a new one, if need be."""
    if None in lanes:
        return lanes.index(None)
    lanes.append(None)
    return len(lanes) - 1


def _lane_for(lanes: list[str | None], event_id: str, near: int) -> int:
    """Return the lane that waits for an event; one that does from now on, if none did."""
    if event_id in lanes:
        return lanes.index(event_id)
    lane = near if lanes[near] is None else _free(lanes)
    lanes[lane] = event_id
    return lane


def _x(lane: int) -> int:
    return MARGIN + LANE * min(lane, LANES_MAX - 1)


def _through(lane: int) -> Line:
    return Line(f"M{_x(lane)} 0V{ROW}", lane % COLOURS)


def _curve(lane: int, y: int, to_lane: int, to_y: int, colour: int, kind: str = "") -> Line:
    x, to_x, middle = _x(lane), _x(to_lane), (y + to_y) // 2
    path = f"M{x} {y}C{x} {middle} {to_x} {middle} {to_x} {to_y}"
    return Line(path, colour % COLOURS, kind)
