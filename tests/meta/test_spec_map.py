"""References between code and specification lead somewhere; the tool notices when they do not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tools import spec_map
from tools.spec_anchors import headings, slug
from tools.spec_map import (
    Operation,
    find_references,
    load_routes,
    python_files,
    read_anchors,
    read_operations,
    route_problems,
    snake_case,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


async def get_room_state(_request: object) -> object:
    """GET /rooms/{roomId}/state: a handler for the tests below."""
    return {}


@dataclass(frozen=True)
class Row:
    """A row of a route table."""

    method: str
    path: str
    handler: Callable[..., object]
    operation: str | None


STATE = Operation("client", "GET", "/_matrix/client/v3/rooms/{roomId}/state", "getRoomState")


def test_every_reference_leads_to_a_passage() -> None:
    assert find_references(python_files(), read_anchors()).problems == []


def test_every_route_is_an_endpoint_of_the_specification() -> None:
    routes = load_routes()
    assert routes
    assert route_problems(routes, read_operations()) == []


def test_no_endpoint_is_routed_twice() -> None:
    shapes = [(route.method, spec_map.shape(route.path)) for route in load_routes()]
    assert len(shapes) == len(set(shapes))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("# appendices" + "#no-such-heading", "no anchor"),
        ("# MSC4354" + "#no-such-heading", "no anchor"),
        ("# MSC0001" + "#proposal", "not pinned"),
        ("# Spec" + ": the appendices", "wants page#anchor"),
        ("# Spec" + ": server-server-api", "wants page#anchor"),
        ("# Spec" + ": no-such-page#heading", "wants page#anchor"),
    ],
)
def test_a_reference_that_leads_nowhere_is_reported(
    line: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spec_map, "ROOT", tmp_path)
    (tmp_path / "module.py").write_text(f"x = 1  {line}\n")
    problems = find_references([tmp_path / "module.py"], read_anchors()).problems
    assert len(problems) == 1
    assert problem in problems[0]
    assert problems[0].startswith("module.py:1: ")


def test_a_reference_belongs_to_the_innermost_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spec_map, "ROOT", tmp_path)
    (tmp_path / "module.py").write_text(
        '"""Spec: appendices#signing-json."""\n'
        "class A:\n    def f(self):\n        # MSC4354#rate-limits, MSC4354#time\n        pass\n"
        "@mark('appendices#signing-json')\ndef g():\n    pass\n"
    )
    found = find_references([tmp_path / "module.py"], read_anchors())
    assert found.problems == []
    labels = {ref: [place.label for place in places] for ref, places in found.references.items()}
    assert labels == {
        "appendices#signing-json": ["module.py", "module.py: g"],
        "MSC4354#rate-limits": ["module.py: A.f"],
        "MSC4354#time": ["module.py: A.f"],
    }


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (Row("GET", STATE.path, get_room_state, "getRoomState"), None),
        (Row("GET", "/_matrix/client/r0/rooms/{id}/state", get_room_state, "getRoomState"), None),
        (Row("GET", STATE.path + "/", get_room_state, "getRoomState"), None),
        (Row("PUT", STATE.path, get_room_state, "getRoomState"), "is GET"),
        (Row("GET", "/_matrix/client/v3/state", get_room_state, "getRoomState"), "is GET"),
        (Row("GET", STATE.path, get_room_state, "getState"), "no operation getState"),
        (Row("GET", STATE.path, python_files, "getRoomState"), "should be get_room_state"),
        (Row("GET", "/health", python_files, None), None),
    ],
)
def test_a_route_that_disagrees_is_reported(row: Row, problem: str | None) -> None:
    problems = route_problems([row], [STATE])
    assert len(problems) == (problem is not None)
    assert problem is None or problem in problems[0]


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        ("getRoomState", "get_room_state"),
        ("redirectToSSO", "redirect_to_sso"),
        ("uploadContentToMXC", "upload_content_to_mxc"),
        ("bind3PID", "bind_3pid"),
        ("sync", "sync"),
    ],
)
def test_an_operation_id_in_snake_case(operation: str, name: str) -> None:
    assert snake_case(operation) == name


def test_heading_ids_are_made_as_the_site_makes_them() -> None:
    assert slug("`m.room.member` [events](/x#y)") == "mroommember-events"
    assert slug("Rooms & [Spaces]") == "rooms--spaces"
    assert slug("Knocking upon a room {#knocking-rooms}") == "knocking-rooms"
    text = "# One\n```\n# Not a heading\n```\n## Two\n## Two\n"
    assert headings(text) == ["one", "two", "two-1"]
