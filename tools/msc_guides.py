"""Write docs/msc: for each proposal what it asks, where that is obeyed, who tells it, and why so.

    python -m tools.msc_guides            rewrite the pages
    python -m tools.msc_guides --check    fail if one is out of date

A page is made of what is there, so that it cannot go stale: the ledger docs/spec/mscNNNN.toml (what
is asked, in our words, and what was chosen), the first lines of the docstrings of the code that the
ledger names, the names of the tests, and `minihs/protocol/unstable.py` for what to write on the
wire. A ledger may have an `overview`, an `example` to try, and its requirements the `heading` that
they stand under, as `MSC4354#proposal`. See docs/spec/README.md.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
import tomllib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from minihs.protocol import unstable
from tools.spec_map import (
    ROOT,
    Place,
    find_references,
    link,
    python_files,
    read_anchors,
    read_pins,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

LEDGERS = ROOT / "docs/spec"
PAGES = ROOT / "docs/msc"
TITLE = re.compile(r"# (MSC\d{4}), (.+?)(?:: .*)?\.?$", re.MULTILINE)
NAMES = ROOT / "minihs/protocol/unstable.py"
NAME = re.compile(r"^([A-Z_]+) = .*?(?:  # (.*))?$", re.MULTILINE)
STORY = re.compile(r"^test_(?:[a-z]{1,2}_\d+(?:_and_\d+)?_)?")
STATUSES = {
    "yes": "obeyed",
    "partial": "obeyed in part",
    "no": "not obeyed",
    "client": "for clients",
}

BEGIN_LINK = (
    "With the variables of [Before you begin](README.md#before-you-begin): Ada made the room, Bob "
    "is in it."
)
BEGIN = r"""
## Before you begin

What a guide shows under *Try it* wants a server that runs (`make run`), two users and a room. In
another terminal, in the directory of the project:

```
SERVER=http://127.0.0.1:8008 NAME=bob PASSWORD=correct-horse
echo $PASSWORD | .venv/bin/minihs register-user ada --admin --password-stdin
echo $PASSWORD | .venv/bin/minihs register-user $NAME --password-stdin
field() { python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' $1; }
login() {
  curl -s $SERVER/_matrix/client/v3/login -d '{"type": "m.login.password",
    "identifier": {"type": "m.id.user", "user": "'$1'"}, "password": "'$PASSWORD'"}' |
    field access_token
}
ADMIN_TOKEN=$(login ada) TOKEN=$(login $NAME)
ROOM=$(curl -s -H "Authorization: Bearer $ADMIN_TOKEN" -d '{"preset": "public_chat"}' \
  $SERVER/_matrix/client/v3/createRoom | field room_id)
curl -X POST -H "Authorization: Bearer $TOKEN" -d '{}' \
  "$SERVER/_matrix/client/v3/rooms/$ROOM/join"
```

`$ADMIN_TOKEN` is Ada's, who made `$ROOM` and may do everything in it, and on the server; `$TOKEN`
is Bob's. Some guides end with Bob outside the room, or without an account: then do this again with
another `NAME` (that Ada's name is taken does no harm). Where the server listens elsewhere, write
that for `127.0.0.1:8008`; where it has another name, that for `localhost`.
""".strip()


@dataclass(frozen=True, slots=True)
class Requirement:
    """An entry of a ledger; `code` and `tests` are references `file: name`."""

    number: str
    force: str
    asks: str
    status: str
    code: Sequence[str] = ()
    tests: Sequence[str] = ()
    note: str = ""
    heading: str = ""


@dataclass(frozen=True, slots=True)
class Ledger:
    """What a proposal asks; `title` says what it is about."""

    msc: str
    title: str
    overview: str
    requirements: Sequence[Requirement] = field(default=())
    example: str = ""


def read_ledger(path: Path) -> Ledger:
    """Return a ledger.

    Raises:
        ValueError: its first line does not say what it is about.
    """
    text = path.read_text()
    found = TITLE.match(text)
    if found is None:
        raise ValueError(f"{path.name} does not begin with `# MSC1234, its subject: …`")
    content = tomllib.loads(text)
    requirements = [Requirement(**entry) for entry in content["requirement"]]
    overview, example = (content.get(part, "").strip() for part in ("overview", "example"))
    return Ledger(found[1], found[2], overview, requirements, example)


@functools.cache
def definitions(file: str) -> Mapping[str, ast.stmt]:
    """Return what a file defines, by qualified name."""
    found: dict[str, ast.stmt] = {}

    def visit(nodes: Sequence[ast.stmt], prefix: str) -> None:
        for node in nodes:
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    found[prefix + name] = node
                case ast.ClassDef(name=name, body=body):
                    found[prefix + name] = node
                    visit(body, f"{prefix}{name}.")
                case (
                    ast.Assign(targets=[ast.Name(id=name)])
                    | ast.AnnAssign(target=ast.Name(id=name))
                ):
                    found[prefix + name] = node
                case _:
                    pass

    visit(ast.parse((ROOT / file).read_text()).body, "")
    return found


def summary(reference: str) -> str:
    """Return the first sentence of what a reference leads to; of a constant, its value."""
    file, _, name = reference.partition(": ")
    node = definitions(file).get(name)
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            text = (ast.get_docstring(node) or "").split("\n\n")[0].replace("\n", " ")
            return re.split(r"(?<=[.]) (?=[A-Z`])", text)[0]
        case ast.Assign(value=value) | ast.AnnAssign(value=ast.expr() as value):
            written = ast.unparse(value)
            return f"`{written}`" if len(written) <= 60 else ""
        case _:
            return ""


def file_link(file: str, text: str) -> str:
    """Return a link from a page to a file of the project."""
    return f"[{text}](../../{file})"


def story_link(reference: str) -> str:
    """Return a link to a test, whose name is read as a sentence."""
    file, _, name = reference.partition(": ")
    return file_link(file, STORY.sub("", name).replace("_", " "))


def page(ledger: Ledger, elsewhere: Mapping[str, list[Place]]) -> str:
    """Return the page of a ledger; `elsewhere` are all references in the code, by passage."""
    pins = read_pins()
    commit, file = pins[ledger.msc]
    proposal = f"https://github.com/matrix-org/matrix-spec-proposals/blob/{commit}/{file}"
    lines = [
        f"# {ledger.msc}: {ledger.title}",
        "",
        f"<!-- Made by `make docs` from docs/spec/{ledger.msc.lower()}.toml, docstrings and the "
        "names of tests. -->",
        "",
        f"What [the proposal]({proposal}) asks, in our words and its order; where the code does "
        f"it; the tests that tell it. {_counts(ledger)}",
    ]
    if ledger.overview:
        lines += ["", ledger.overview]
    if ledger.example:
        lines += ["", "## Try it", "", BEGIN_LINK, "", ledger.example]
    names = list(_names(ledger.msc))
    if names:
        lines += ["", "## Names", "", *names]
    heading = ""
    if not any(requirement.heading for requirement in ledger.requirements):
        lines += ["", "## Requirements"]
    for requirement in _in_order(ledger.requirements):
        if requirement.heading and requirement.heading != heading:
            heading = requirement.heading
            lines += ["", f"## {_words(heading)}", "", f"The text: {heading.partition('#')[0]} "
                      f"{link(heading, pins)}"]  # fmt: skip
        lines += ["", *_entry(requirement)]
    others = list(_others(ledger, elsewhere))
    if others:
        lines += ["", "## Also in the code", "", *others]
    return "\n".join(lines) + "\n"


def _names(msc: str) -> Iterator[str]:
    """Yield a table of what a proposal's names are on the wire, from the sections of their file."""
    for section in NAMES.read_text().split("\n\n# ")[1:]:
        head = section.partition("\n\n")[0]
        comment = re.match(r"(?:.*\n)(?:#.*\n)*", head)
        if comment is None or msc not in comment[0]:
            continue
        yield "What the server reads in either spelling, it writes as in the second column."
        yield ""
        yield "| in the text | here |"
        yield "| --- | --- |"
        for name, where in NAME.findall(head):
            value = getattr(unstable, name)
            known = isinstance(value, unstable.Name)
            stable = f"`{value.stable}`" if known else "–"
            written = ", ".join(f"`{w}`" for w in (value.written if known else (value,)))
            yield f"| {stable}{f' ({where})' if where else ''} | {written} |"


def _in_order(requirements: Sequence[Requirement]) -> list[Requirement]:
    """Return requirements as their headings follow one another in the text."""
    anchors = [f"{msc}#{anchor}" for msc, of_msc in read_anchors().items() for anchor in of_msc]
    places = {heading: place for place, heading in enumerate(anchors)}
    return sorted(requirements, key=lambda requirement: places.get(requirement.heading, -1))


def _counts(ledger: Ledger) -> str:
    counts = dict.fromkeys(STATUSES, 0)
    for requirement in ledger.requirements:
        counts[requirement.status] += 1
    parts = [f"{count} {STATUSES[status]}" for status, count in counts.items() if count]
    count = len(ledger.requirements)
    return f"Of {count} requirement{'s' if count > 1 else ''}: {', '.join(parts)}."


def _words(heading: str) -> str:
    words = heading.partition("#")[2].replace("-", " ")
    return words[:1].upper() + words[1:]


def _entry(requirement: Requirement) -> Iterator[str]:
    status = "" if requirement.status == "yes" else f", {STATUSES[requirement.status]}"
    yield f"**{requirement.number}** ({requirement.force}{status}). {requirement.asks}"
    if requirement.note:
        yield ""
        yield f"> {requirement.note}"
    yield ""
    for reference in requirement.code:
        file, _, name = reference.partition(": ")
        what = summary(reference)
        yield f"- {file_link(file, f'`{file}::{name}`')}" + (f": {what}" if what else "")
    if requirement.tests:
        yield f"- Told by: {'; '.join(map(story_link, requirement.tests))}"


def _others(ledger: Ledger, elsewhere: Mapping[str, list[Place]]) -> Iterator[str]:
    """Yield the code that refers to the proposal, and that no requirement names."""
    named = {tuple(ref.split(": ")) for r in ledger.requirements for ref in r.code}
    for reference in sorted(elsewhere):
        if not reference.startswith(f"{ledger.msc}#"):
            continue
        for place in elsewhere[reference]:
            key = (place.file, place.name)
            if place.is_test or not place.name or key in named:
                continue
            named.add(key)
            what = summary(f"{place.file}: {place.name}")
            text = file_link(place.file, f"`{place.file}::{place.name}`")
            yield f"- {text}" + (f": {what}" if what else "")


def index(ledgers: Sequence[Ledger]) -> str:
    """Return the page that lists the others."""
    lines = [
        "# Reading guides",
        "",
        "<!-- Made by `make docs`. -->",
        "",
        "From a proposal's text to the code that carries it out, and to the tests that tell so.",
        "",
    ]
    lines += [
        f"- [{ledger.msc}, {ledger.title}]({ledger.msc[3:]}.md): {_counts(ledger)}"
        for ledger in ledgers
    ]
    lines += ["", BEGIN]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the pages, or compare them."""
    references = find_references(python_files(), read_anchors()).references
    ledgers = [read_ledger(path) for path in sorted(LEDGERS.glob("msc*.toml"))]
    pages = {PAGES / f"{ledger.msc[3:]}.md": page(ledger, references) for ledger in ledgers}
    pages[PAGES / "README.md"] = index(ledgers)
    if "--check" in sys.argv[1:]:
        stale = [p for p, text in pages.items() if not p.is_file() or p.read_text() != text]
        stale += [path for path in PAGES.glob("*.md") if path not in pages]
        for path in stale:
            print(f"{path.relative_to(ROOT)} is out of date: make docs", file=sys.stderr)
        return 1 if stale else 0
    PAGES.mkdir(exist_ok=True)
    for path, text in pages.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
