"""Values to HTML: Jinja2 templates that escape everything, and a few words for times and places.

No template says `safe`, no script or style stands in a page, and strings of strangers stand only in
text and in quoted attributes, links among them only after percent-encoding. `bdi` in the templates
keeps writing direction overrides from reaching beyond their string.
"""

from __future__ import annotations

import datetime
import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from minihs.api.inspector import graph

if TYPE_CHECKING:
    from jinja2 import Environment

FILES = Path(__file__).parent
ROOT = "/_minihs/inspect"
SPECIFICATION = "https://spec.matrix.org/latest/"
PROPOSAL = "https://github.com/matrix-org/matrix-spec-proposals/pull/"
PASSAGE = re.compile(r"(?:[a-z-]+|rooms/v[0-9]+)#[a-z0-9-]+")
YEAR_9999_MS = 253_370_764_800_000
SHORT_CHARS = 80


@functools.cache
def _environment() -> Environment:
    # It takes memory that a server whose inspector is off has better use for.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # noqa: PLC0415

    environment = Environment(
        loader=FileSystemLoader(FILES / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters |= {
        "moment": moment,
        "duration": duration,
        "short": short,
        "passage_link": passage_link,
    }
    environment.globals |= {
        "root": ROOT,
        "room_path": room_path,
        "event_path": event_path,
        "proposal": PROPOSAL,
        "row_height": graph.ROW,
        "draw": lambda room: graph.draw(graph.ordered(room.graph, room.refused)),
    }
    return environment


@functools.cache
def stylesheet() -> bytes:
    """Return the stylesheet."""
    return (FILES / "style.css").read_bytes()


def render(template: str, **values: object) -> bytes:
    """Return a page."""
    text = _environment().get_template(template).render(values)
    # What UTF-8 cannot write cannot be in the database; whoever puts it into a URL sees it so.
    return text.encode(errors="backslashreplace")


def room_path(room_id: str) -> str:
    """Return the path of a room's page."""
    return f"{ROOT}/rooms/{_encoded(room_id)}"


def event_path(room_id: str, event_id: str) -> str:
    """Return the path of an event's page."""
    return f"{room_path(room_id)}/events/{_encoded(event_id)}"


def _encoded(text: str) -> str:
    return quote(text, safe="", errors="replace")


def moment(at_ms: int) -> str:
    """Return a moment in UTC; a number that is no moment as it is."""
    if not 0 <= at_ms < YEAR_9999_MS:
        return f"{at_ms} ms"
    at = datetime.datetime.fromtimestamp(at_ms // 1000, datetime.UTC)
    return f"{at:%Y-%m-%d %H:%M:%S}"


def duration(length_ms: int) -> str:
    """Return a length of time in at most two units."""
    seconds = -(-length_ms // 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    first = next((n for n, (count, _) in enumerate(parts) if count), len(parts) - 1)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2] if count) or "0 s"


def short(text: str) -> str:
    """Return the beginning of a long text."""
    return text if len(text) <= SHORT_CHARS else text[: SHORT_CHARS - 1] + "…"


def passage_link(passage: str) -> str | None:
    """Return the URL of a passage of the specification; None if it has not that form."""
    if PASSAGE.fullmatch(passage) is None:
        return None
    page, _, anchor = passage.partition("#")
    return f"{SPECIFICATION}{page}/#{anchor}"
