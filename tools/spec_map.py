"""The two-way map between the specification and the code; checks the references it is made of.

    python -m tools.spec_map            rewrite docs/spec/map.md and docs/spec/coverage.md
    python -m tools.spec_map --check    say what is wrong or out of date, and fail if anything is

A reference is `page#anchor` (client-server-api, server-server-api, rooms/v11, appendices …) or
`MSC4354#heading`, in a docstring, a comment or a `spec` marker, in minihs/ or tests/. After
`Spec:` nothing else is accepted, but for the page of a room version as a whole. Anchors are
checked against docs/spec/anchors.txt, endpoints against docs/spec/operations.txt; so this needs
no network.
`todo MSC4354#heading: why` marks a passage that is left out, and is listed as such.

Endpoints come from `minihs.api.routes.ROUTES`: a handler is named as the operationId in
snake_case, under the method and path that the specification gives it.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parents[1]
SPEC = ROOT / "docs/spec"
SITE = "https://spec.matrix.org"
PROPOSALS = "https://github.com/matrix-org/matrix-spec-proposals"

REFERENCE = re.compile(
    r"(?<![\w/#.-])((?:[a-z][a-z-]+(?:/v\d+)?|MSC\d{4})#[A-Za-z0-9](?:[\w.-]*\w)?)"
)
SPEC_WORD = re.compile(r"\bSpec:\s*(\S*)")
TODO = re.compile(r"\btodo\s+(MSC\d{4}\S*?):?\s+(.*)")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a reference stands: a file, and the function or class in it ("" for the module)."""

    file: str
    name: str

    @property
    def label(self) -> str:
        """How it is printed."""
        return f"{self.file}: {self.name}" if self.name else self.file

    @property
    def is_test(self) -> bool:
        """Whether it is a test's reference rather than the code's."""
        return self.file.startswith("tests/")


@dataclass(frozen=True, slots=True)
class Finding:
    """Everything that was read: references, omissions that are owned up to, and mistakes."""

    references: Mapping[str, list[Place]]
    todos: list[tuple[str, str, Place]]
    problems: list[str]


class Route(Protocol):
    """What this needs to know of a row of the route table."""

    @property
    def method(self) -> str: ...  # noqa: D102
    @property
    def path(self) -> str: ...  # noqa: D102
    @property
    def operation(self) -> str | None: ...  # noqa: D102
    @property
    def handler(self) -> Callable[..., object]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Operation:
    """An endpoint as the specification has it; `api` is `client` or `federation`."""

    api: str
    method: str
    path: str
    operation: str


def read_anchors() -> dict[str, list[str]]:
    """Return page or MSC -> its anchors in order, those of its endpoints included."""
    anchors: dict[str, list[str]] = {}
    page = ""
    for line in (SPEC / "anchors.txt").read_text().splitlines():
        if line.startswith("  "):
            anchors[page].append(line.strip())
        elif not line.startswith("#"):
            page = line
            anchors[page] = []
    for operation in read_operations():
        page = "client-server-api" if operation.api == "client" else "server-server-api"
        anchors[page].append(operation.method.lower() + endpoint_slug(operation.path))
    return anchors


def endpoint_slug(path: str) -> str:
    """Return a path as the site writes it in an id: no punctuation but hyphens and underscores."""
    return re.sub(r"[^\w-]", "", path.lower())


def read_operations() -> list[Operation]:
    """Return every endpoint of the client-server and server-server APIs."""
    lines = (SPEC / "operations.txt").read_text().splitlines()
    return [Operation(*line.split()) for line in lines if not line.startswith("#")]


def snake_case(operation: str) -> str:
    """Return an operationId as a Python name: `redirectToSSO` -> `redirect_to_sso`."""
    words = operation.replace("3PID", "_3pid")  # One word, `bind3PID` -> `bind_3pid`.
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", words).lower()


# --- references ---------------------------------------------------------------------------------


def scopes(tree: ast.Module) -> list[tuple[int, int, str]]:
    """Return (first line, last line, qualified name) of each function and class, outer first."""
    found = []

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = prefix + child.name
                first = min([child.lineno, *(d.lineno for d in child.decorator_list)])
                found.append((first, child.end_lineno or first, name))
                visit(child, name + ".")
            else:
                visit(child, prefix)

    visit(tree, "")
    return found


def place_of(line: int, file: str, spans: list[tuple[int, int, str]]) -> Place:
    """Return the innermost function or class around a line."""
    name = ""
    for first, last, qualified in spans:  # Outer before inner: the last that fits is innermost.
        if first <= line <= last:
            name = qualified
    return Place(file, name)


def find_references(files: Iterable[Path], anchors: Mapping[str, list[str]]) -> Finding:
    """Read references out of Python files, and say which of them lead nowhere."""
    known = {page: set(names) for page, names in anchors.items()}
    finding = Finding(defaultdict(list), [], [])
    for path in files:
        file = path.relative_to(ROOT).as_posix()
        text = path.read_text()
        spans = scopes(ast.parse(text))
        lines = text.splitlines()
        for number, line in enumerate(lines, start=1):
            place = place_of(number, file, spans)
            for reference in REFERENCE.findall(line):
                page, anchor = reference.split("#")
                if page not in known:
                    if page.startswith("MSC"):
                        problem = f"{page} is not pinned: add it with tools/spec_anchors.py"
                        finding.problems.append(f"{file}:{number}: {problem}")
                    continue
                if anchor not in known[page]:
                    finding.problems.append(f"{file}:{number}: no anchor {reference}")
                elif place not in finding.references[reference]:
                    finding.references[reference].append(place)
            following = lines[number].strip() if number < len(lines) else ""
            wrapped = line.rstrip() + " " + following if line.rstrip().endswith("Spec:") else line
            finding.problems.extend(misspelt(wrapped, file, number, known.keys()))
            if todo := TODO.search(line):
                finding.todos.append((todo[1], todo[2], place))
    return finding


def misspelt(line: str, file: str, number: int, pages: Iterable[str]) -> Iterator[str]:
    """Yield what follows `Spec:` and is no reference to a page that we know."""
    for word in SPEC_WORD.findall(line):
        found = REFERENCE.match(word)
        if word.startswith(("`", "<")):  # A text about references, such as this file's.
            continue
        if re.fullmatch(r"rooms/v\d+[.,;:]?", word):  # A room version's page as a whole.
            continue
        if found is None or found[1].split("#")[0] not in pages:
            yield f"{file}:{number}: `Spec:` wants page#anchor, and has {word!r}"


def python_files() -> list[Path]:
    """Return the code and the tests, in a stable order."""
    return sorted([*(ROOT / "minihs").rglob("*.py"), *(ROOT / "tests").rglob("*.py")])


def link(reference: str, pins: Mapping[str, list[str]]) -> str:
    """Return a reference as a Markdown link to the text."""
    page, anchor = reference.split("#")
    if page.startswith("MSC"):
        commit, file = pins[page]
        return f"[{anchor}]({PROPOSALS}/blob/{commit}/{file}#{anchor})"
    return f"[{anchor}]({SITE}/{pins['spec'][0]}/{page}/#{anchor})"


def map_page(finding: Finding, anchors: Mapping[str, list[str]]) -> str:
    """Return docs/spec/map.md: passage -> code and tests, then file -> passages."""
    lines = ["# The specification and the code", ""]
    lines += ["Made by `make spec-map` from the references in the code; do not edit.", ""]
    pins = read_pins()
    for page, names in anchors.items():
        used = [f"{page}#{name}" for name in dict.fromkeys(names)]
        used = [reference for reference in used if reference in finding.references]
        if used:
            lines += [f"## {page}", "", "| passage | code | tests |", "| --- | --- | --- |"]
        for reference in used:
            places = sorted(finding.references[reference], key=lambda place: place.label)
            code = "<br>".join(f"`{p.label}`" for p in places if not p.is_test) or "–"
            tests = "<br>".join(f"`{p.label}`" for p in places if p.is_test) or "–"
            lines.append(f"| {link(reference, pins)} | {code} | {tests} |")
        if used:
            lines.append("")
    lines += ["## Left out, and why", ""]
    left_out = [f"- {what}: {why} (`{place.label}`)" for what, why, place in finding.todos]
    lines += left_out or ["Nothing is marked so."]
    lines += ["", "## By file", ""]
    by_file: dict[str, set[str]] = defaultdict(set)
    for reference, places in finding.references.items():
        for place in places:
            by_file[place.file].add(reference)
    lines += [f"- `{file}`: {', '.join(sorted(refs))}" for file, refs in sorted(by_file.items())]
    return "\n".join(lines) + "\n"


def read_pins() -> dict[str, list[str]]:
    """Return docs/spec/VERSION: what is pinned -> the words that say where."""
    lines = (SPEC / "VERSION").read_text().splitlines()
    return {words[0]: words[1:] for line in lines if (words := line.split()) and line[0] != "#"}


# --- endpoints ----------------------------------------------------------------------------------


def shape(path: str) -> str:
    """Return a path with its parameters' names taken out, `/a/{roomId}` -> `/a/{}`."""
    return re.sub(r"\{[^}]*\}", "{}", path)


def load_routes() -> list[Route]:
    """Return the route table, empty while there is none."""
    if importlib.util.find_spec("minihs.api.routes") is None:
        return []
    routes: list[Route] = importlib.import_module("minihs.api.routes").ROUTES
    return routes


def handler_name(route: Route) -> str:
    """Return the module and name of a route's handler, without the common prefix."""
    handler = route.handler
    module = str(getattr(handler, "__module__", "?")).removeprefix("minihs.")
    return f"{module}.{getattr(handler, '__name__', '?')}"


def route_problems(routes: Iterable[Route], operations: Iterable[Operation]) -> list[str]:
    """Say which routes disagree with the specification's list of endpoints."""
    by_operation: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        by_operation[operation.operation].append(operation)
    problems = []
    for route in routes:
        if route.operation is None:
            continue
        where = f"minihs/api/routes.py: {route.method} {route.path}"
        candidates = by_operation.get(route.operation, [])
        if not candidates:
            problems.append(f"{where}: the specification has no operation {route.operation}")
            continue
        name = handler_name(route).rsplit(".", 1)[1]
        if name != snake_case(route.operation):
            problems.append(f"{where}: handler {name} should be {snake_case(route.operation)}")
        if not any(answers(route, operation) for operation in candidates):
            wanted = " or ".join(f"{o.method} {o.path}" for o in candidates)
            problems.append(f"{where}: {route.operation} is {wanted}")
    return problems


def answers(route: Route, operation: Operation) -> bool:
    """Return whether a route is the endpoint, under its present or an older version prefix."""

    def versionless(path: str) -> str:
        # The site has `/pushrules/`, clients ask for either; an empty state key may be left out.
        path = shape(path.removesuffix("/{stateKey}")).rstrip("/")
        return re.sub(r"^(/_matrix/\w+/)(r0|v\d+|unstable)/", r"\1*/", path)

    return route.method == operation.method and (
        versionless(route.path) == versionless(operation.path)
    )


def coverage_page(routes: Sequence[Route], operations: list[Operation]) -> str:
    """Return docs/spec/coverage.md: each endpoint of the specification and who answers it."""
    lines = ["# Endpoints", ""]
    lines += ["Made by `make spec-map` from `minihs/api/routes.py`; do not edit.", ""]
    for api, title in (("client", "Client-server API"), ("federation", "Server-server API")):
        mine = [operation for operation in operations if operation.api == api]
        rows = []
        done = 0
        for operation in mine:
            found = [
                r for r in routes if r.operation == operation.operation and answers(r, operation)
            ]
            done += bool(found)
            by = "<br>".join(dict.fromkeys(f"`{handler_name(r)}`" for r in found)) or "*not yet*"
            rows.append(f"| {operation.method} | `{operation.path}` | {by} |")
        lines += [f"## {title}: {done} of {len(mine)}", ""]
        lines += ["| method | path | handler |", "| --- | --- | --- |", *rows, ""]
    extra = [r for r in routes if r.operation is None]
    lines += [f"## Outside the specification's stable endpoints: {len(extra)}", ""]
    lines += ["| method | path | handler |", "| --- | --- | --- |"]
    lines += [f"| {r.method} | `{r.path}` | `{handler_name(r)}` |" for r in extra]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write or check both pages; return the process's status."""
    parser = argparse.ArgumentParser(description="the map between specification and code")
    parser.add_argument("--check", action="store_true", help="write nothing, fail on differences")
    args = parser.parse_args()

    anchors, operations, routes = read_anchors(), read_operations(), load_routes()
    finding = find_references(python_files(), anchors)
    problems = finding.problems + route_problems(routes, operations)
    pages = {
        SPEC / "map.md": map_page(finding, anchors),
        SPEC / "coverage.md": coverage_page(routes, operations),
    }
    for path, text in pages.items():
        if not args.check:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            problems.append(f"{path.relative_to(ROOT)} is out of date: run `make spec-map`")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
