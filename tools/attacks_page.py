"""Write docs/security/attacks.md: each attack of docs/security/attacks.txt, and who tests it.

    python -m tools.attacks_page            rewrite it
    python -m tools.attacks_page --check    fail if it is out of date, or a test names no attack

A test defends against an attack when its name carries the id: `test_J05_integers_out_of_range…`,
`test_C06_C12_…`; or when the attack's row names it, as it tells a story that has an id of its own:
`see test_s_01_…, test_s_02_…`. What a test leaves open is said in its docstring. A row without a
test says what it waits for: `waits for media`.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "docs/security/attacks.txt"
PAGE = ROOT / "docs/security/attacks.md"
IDS = re.compile(r"(?<=_)([acdefjlmprs]\d\d)(?=_)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Attack:
    """One row: a section's title, the id, what is tried, and what must happen.

    `see` are tests of other names, `waits_for` is why there is none.
    """

    section: str
    name: str
    attack: str
    must: str
    see: tuple[str, ...] = ()
    waits_for: str = ""


def read_attacks() -> list[Attack]:
    """Return the list, in order."""
    attacks = []
    section = ""
    for line in LIST.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            name, attack, must, *more = line.split(" | ")
            remark = more[0] if more else ""
            named = remark.removeprefix("see ").split(", ") if remark.startswith("see ") else ()
            waits_for = remark.removeprefix("waits for ") if not named else ""
            attacks.append(Attack(section, name, attack, must, tuple(named), waits_for))
    return attacks


def proofs_by_attack() -> dict[str, list[str]]:
    """Return id -> the tests that carry it in their names, or that its row names; `file::test`."""
    found: dict[str, list[str]] = defaultdict(list)
    named = [(test, attack.name) for attack in read_attacks() for test in attack.see]
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                ids = IDS.findall(node.name) if node.name.startswith("test_") else []
                ids += [name for test, name in named if test == node.name]
                for name in ids:
                    found[name.upper()].append(f"{path.relative_to(ROOT).as_posix()}::{node.name}")
    return found


def page(attacks: list[Attack], tests: dict[str, list[str]]) -> str:
    """Return the whole page."""
    tested = sum(attack.name in tests for attack in attacks)
    lines = [
        "# Attacks",
        "",
        "Made by `make docs` from `attacks.txt` and from the names of the tests; do not edit.",
        "What has no test is *open*: it may hold, but nobody has proved it. Where a row waits for",
        "a part that this server does not have yet, it says so: the attack has nothing to attack,",
        "and its test comes with the part. Beside the rows, `make fuzz` sends and answers what",
        "nobody thought of.",
        "",
        f"**{tested} of {len(attacks)}** have a test.",
    ]
    section = ""
    for attack in attacks:
        if attack.section != section:
            section = attack.section
            header = ["| id | attack | must | test |", "| --- | --- | --- | --- |"]
            lines += ["", f"## {section}", "", *header]
        proof = "<br>".join(f"`{test}`" for test in tests.get(attack.name, []))
        proof = proof or (f"*open*: waits for {attack.waits_for}" if attack.waits_for else "*open*")
        lines.append(f"| {attack.name} | {attack.attack} | {attack.must} | {proof} |")
    return "\n".join(lines) + "\n"


def problems() -> list[str]:
    """Return what `--check` complains about."""
    attacks, tests = read_attacks(), proofs_by_attack()
    unknown = sorted(tests.keys() - {attack.name for attack in attacks})
    found = [f"{tests[name][0]}: there is no attack {name} in {LIST.name}" for name in unknown]
    for attack in attacks:
        known = {test.partition("::")[2] for test in tests.get(attack.name, [])}
        found += [f"{attack.name}: there is no test {t}" for t in attack.see if t not in known]
        if attack.waits_for and attack.name in tests:
            found.append(f"{attack.name} waits for {attack.waits_for}, but has a test")
    if not PAGE.exists() or PAGE.read_text() != page(attacks, tests):
        found.append("docs/security/attacks.md is out of date: run `make docs`")
    return found


def main() -> int:
    """Write or check the page; return the process's status."""
    if "--check" not in sys.argv:
        PAGE.write_text(page(read_attacks(), proofs_by_attack()))
        return 0
    found = problems()
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
