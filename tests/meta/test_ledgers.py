"""Ledgers: what they say is obeyed has code and tests, by the names that they give."""

from __future__ import annotations

import ast
import functools
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LEDGERS = sorted((ROOT / "docs/spec").glob("msc*.toml"))
STATUSES = {"yes", "partial", "no", "client"}
FORCES = {"MUST", "MUST NOT", "SHOULD", "SHOULD NOT", "MAY", "ours"}
KEYS = {"number", "force", "heading", "asks", "status", "code", "tests", "note"}


@functools.cache
def names_in(file: str) -> frozenset[str]:
    """Return what a file defines: functions, classes, their members, and constants."""
    found: set[str] = set()

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            match child:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    found.add(prefix + name)
                case ast.ClassDef(name=name):
                    found.add(prefix + name)
                    visit(child, f"{prefix}{name}.")
                case (
                    ast.Assign(targets=[ast.Name(id=name)])
                    | ast.AnnAssign(target=ast.Name(id=name))
                ):
                    found.add(prefix + name)
                case _:
                    pass

    visit(ast.parse((ROOT / file).read_text()), "")
    return frozenset(found)


def problems(ledger: dict[str, Any]) -> list[str]:
    """Return what is wrong with a ledger."""
    found: list[str] = []
    numbers: dict[str, int] = {}
    for entry in ledger["requirement"]:
        number = entry["number"]
        letter, _, count = number.partition("-")
        if int(count) != numbers.get(letter, 0) + 1:
            found.append(f"{number} does not follow the one before")
        numbers[letter] = int(count)
        if entry["status"] not in STATUSES or entry["force"] not in FORCES or entry.keys() - KEYS:
            found.append(f"{number} has another status, force or key")
        if entry["status"] in ("no", "partial") and not entry.get("note"):
            found.append(f"{number} does not say why not")
        if entry["status"] in ("yes", "partial"):
            found += [
                f"{number} has no {kind}" for kind in ("code", "tests") if not entry.get(kind)
            ]
        found += _dangling(number, entry)
    return found


def _dangling(number: str, entry: dict[str, Any]) -> list[str]:
    found: list[str] = []
    for kind, top in (("code", "minihs/"), ("tests", "tests/")):
        for reference in entry.get(kind, ()):
            file, _, name = reference.partition(": ")
            exists = file.startswith(top) and (ROOT / file).is_file() and name in names_in(file)
            if not exists or (kind == "tests" and not name.startswith("test_")):
                found.append(f"{number} refers to {reference}, which is not there")
    return found


@pytest.mark.parametrize("path", LEDGERS, ids=lambda path: path.stem)
def test_what_a_ledger_says_is_there(path: Path) -> None:
    assert problems(tomllib.loads(path.read_text())) == []


def test_there_are_ledgers() -> None:
    assert {"msc3759", "msc4194", "msc4267", "msc4293", "msc4298"} <= {p.stem for p in LEDGERS}


GOOD: dict[str, Any] = {
    "number": "X-1",
    "force": "MUST",
    "asks": "something",
    "status": "yes",
    "code": ["minihs/protocol/redact_on_ban.py: may_redact"],
    "tests": ["tests/meta/test_ledgers.py: test_there_are_ledgers"],
}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"number": "X-2"}, "does not follow"),
        ({"status": "maybe"}, "another status"),
        ({"colour": "red"}, "another status"),
        ({"status": "no"}, "does not say why"),
        ({"status": "no", "note": "later"}, None),
        ({"code": []}, "has no code"),
        ({"tests": []}, "has no tests"),
        ({"code": ["minihs/protocol/redact_on_ban.py: nobody"]}, "not there"),
        ({"code": ["minihs/no_file.py: may_redact"]}, "not there"),
        ({"tests": ["tests/meta/test_ledgers.py: problems"]}, "not there"),
    ],
)
def test_a_ledger_that_is_wrong_is_found_out(change: dict[str, Any], problem: str | None) -> None:
    found = problems({"requirement": [GOOD | change]})
    assert (problem is None) == (found == [])
    assert problem is None or problem in found[0]
