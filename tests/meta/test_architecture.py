"""Pages for readers name files and functions that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from minihs.__main__ import _COMMANDS

ROOT = Path(__file__).parents[2]
PAGES = [
    "ARCHITECTURE.md",
    "README.md",
    "docs/developing.md",
    "docs/inspector.md",
    "docs/operating.md",
    *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs/decisions").glob("*.md"))),
]
NAMED = re.compile(r"`((?:\w+/)*\w+\.py)(?:: (\w+))?`")
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


def names_in(file: Path) -> set[str]:
    """Return the functions and classes that a module defines at its top level."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return {n.name for n in ast.parse(file.read_text()).body if isinstance(n, kinds)}


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    missing = []
    for path, name in NAMED.findall(text):
        found = [f for f in (ROOT / "minihs" / path, ROOT / path) if f.exists()]
        found = found or list((ROOT / "minihs").rglob(path))
        if not found or (name and name not in names_in(found[0])):
            missing.append(f"{path}: {name}" if name else path)
    assert missing == []


@pytest.mark.parametrize("page", [*PAGES, "SECURITY.md", "bench/README.md"])
def test_links_between_pages_lead_somewhere(page: str) -> None:
    directory = (ROOT / page).parent
    links = LINK.findall((ROOT / page).read_text())
    assert [link for link in links if not (directory / link).exists()] == []


def test_operators_read_of_every_command_and_of_what_supervisors_ask() -> None:
    page = (ROOT / "docs/operating.md").read_text()
    names = [f"minihs {command}" for command in (*_COMMANDS, "dag")]
    names += [f"GET /{path}" for path in ("health", "ready", "metrics")]
    assert [name for name in names if name not in page] == []
