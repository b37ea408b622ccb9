"""The rules of the house that no other tool checks, and the import contracts."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from minihs.base.config import describe_options
from tools.configuration_page import page

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "minihs").rglob("*.py"))
# Prefixes of names that belong to proposals; with a dot (org.matrix.msc4354) or without.
UNSTABLE_NAME = re.compile(r"org\.matrix\.msc\d{4}|(?<![\w#])msc\d{4}_|org\.matrix\.simplified_msc")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def plain_strings(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of each string literal that is no docstring."""
    tree = ast.parse(source)
    bodies = [n.body for n in ast.walk(tree) if hasattr(n, "body") and isinstance(n.body, list)]
    docstrings = {
        statement.value.lineno
        for body in bodies
        for statement in body
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    }
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.STRING and token.start[0] not in docstrings:
            yield token.start[0], token.string


def test_import_contracts_are_kept() -> None:
    command = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    done = subprocess.run(  # noqa: S603  # our own interpreter, our own words
        [sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", MODULES, ids=relative)
def test_every_file_says_what_it_is_for(module: Path) -> None:
    docstring = ast.get_docstring(ast.parse(module.read_text()))
    assert docstring, f"{relative(module)} has no docstring"


def test_the_protocol_never_waits() -> None:
    waiting = [
        f"{relative(module)}:{node.lineno}"
        for module in MODULES
        if module.is_relative_to(ROOT / "minihs/protocol")
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.AsyncFunctionDef | ast.Await)
    ]
    assert waiting == []


def test_unstable_names_are_spelled_in_one_file() -> None:
    elsewhere = [
        f"{relative(module)}:{line}: {text}"
        for module in MODULES
        if relative(module) != "minihs/protocol/unstable.py"
        for line, text in plain_strings(module.read_text())
        if UNSTABLE_NAME.search(text)
    ]
    assert elsewhere == []


def test_every_option_is_documented() -> None:
    assert [name for name, _, _, description in describe_options() if not description] == []
    assert (ROOT / "docs/configuration.md").read_text() == page(), "run `make docs`"
