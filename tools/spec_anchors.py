"""Note which anchors the pinned texts of the specification have, in docs/spec/anchors.txt.

    python -m tools.spec_anchors --spec MATRIX_SPEC --proposals MATRIX_SPEC_PROPOSALS [MSC…]

Both are git repositories of the same name (matrix-org). What is pinned stands in
docs/spec/VERSION: the specification's commit, and one commit for each MSC. Numbers given on the
command line are added to it, at the newest commit of their text on any branch; `--spec-commit`
moves the pin of the specification. Only facts are written down: pages and the ids of their
headings. `tools/spec_map.py` checks references against them, so it needs none of this.

Ids are made as the site's generator (Hugo) makes them: a heading in lower case, without
punctuation, hyphens for spaces, and -1, -2 … for what has been on the page before; events and
object definitions have ids made of their names.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSION = ROOT / "docs/spec/VERSION"
ANCHORS = ROOT / "docs/spec/anchors.txt"

PAGES = {
    "appendices": "content/appendices.md",
    "application-service-api": "content/application-service-api.md",
    "client-server-api": "content/client-server-api/_index.md",
    "identity-service-api": "content/identity-service-api.md",
    "push-gateway-api": "content/push-gateway-api.md",
    "rooms": "content/rooms/_index.md",
    "server-server-api": "content/server-server-api.md",
    **{f"rooms/v{number}": f"content/rooms/v{number}.md" for number in range(1, 13)},
}

INCLUDE = re.compile(
    r"\{\{% *(?:(cs-module) [^%]*?filename|(rver-fragment) name)=\"([^\"]+)\"[^%]*%\}\}"
)
INCLUDED_FROM = {
    "cs-module": "content/client-server-api/modules",
    "rver-fragment": "content/rooms/fragments",
}
EVENT = re.compile(r"\{\{% *event event=\"([^\"]+)\"")
EVENT_GROUP = re.compile(r"\{\{% *event-group group_name=\"([^\"]+)\"")
DEFINITION = re.compile(r"\{\{% *definition path=\"([^\"]+)\"")
PREFIXED_API = re.compile(
    r"\{\{% *http-api spec=\"([^\"]+)\" api=\"([^\"]+)\" anchor_base=\"([^\"]+)\""
)
FENCE = re.compile(r"^ {0,3}(```|~~~).*?^ {0,3}\1[^\n]*$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^ {0,3}#{1,6} +(.+?)(?: +#+)? *$", re.MULTILINE)
EXPLICIT_ID = re.compile(r"\{ *(?:#|id=\")([\w-]+)\"? *\} *$")
EVENT_SCHEMAS = "data/event-schemas/schema"


class Repository:
    """One commit of a git repository, read without a work tree."""

    def __init__(self, path: str, commit: str) -> None:
        self.path = path
        self.commit = git(path, "rev-parse", f"{commit}^{{commit}}").strip()

    def read(self, file: str) -> str:
        """Return the text of one file."""
        return git(self.path, "show", f"{self.commit}:{file}")

    def names(self, directory: str) -> list[str]:
        """Return what is in one directory."""
        return git(self.path, "ls-tree", "--name-only", f"{self.commit}:{directory}").split("\n")


def git(path: str, *args: str) -> str:
    """Return what git prints."""
    command = ["git", "-C", path, *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603  # git, with our arguments


def slug(heading: str) -> str:
    """Return the id that a heading gets, before it is made unique on its page."""
    if found := EXPLICIT_ID.search(heading):
        return found[1]
    text = re.sub(r"\{\{.*?\}\}", "", heading)
    text = re.sub(r"!?\[([^\]]*)\](\([^)]*\)|\[[^\]]*\])?", r"\1", text)
    text = re.sub(r"<[^>]*>", "", text)
    text = re.sub(r"\\([^\w\s])", r"\1", text)
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


def headings(text: str) -> list[str]:
    """Return the ids of a Markdown page's headings, in order, each unique."""
    seen: Counter[str] = Counter()
    found = []
    for match in HEADING.finditer(FENCE.sub("", text)):
        name = slug(match[1])
        found.append(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


def page_text(spec: Repository, file: str) -> str:
    """Return a page with the modules and fragments that it includes in their places."""
    text = re.sub(r"\A---\n.*?\n---\n", "", spec.read(file), flags=re.DOTALL)
    return INCLUDE.sub(lambda m: page_text(spec, f"{INCLUDED_FROM[m[1] or m[2]]}/{m[3]}.md"), text)


def endpoint_anchors(text: str) -> list[str]:
    """Return the ids of an API description's endpoints, read by their indentation."""
    base = re.search(r"^ +default: *(/\S+)$", text, re.MULTILINE)
    prefix = base[1] if base else ""
    found = []
    path = ""
    for line in text.splitlines():
        if match := re.match(r"  \"?(/[^\":]*)\"?: *$", line):
            path = prefix + match[1]
        elif match := re.match(r"    (get|put|post|delete): *$", line):
            found.append(match[1] + re.sub(r"[^\w-]", "", path.lower()))
    return found


def page_anchors(spec: Repository, file: str) -> list[str]:
    """Return every id of a page: its headings, then its events and definitions."""
    text = page_text(spec, file)
    names = EVENT.findall(text)
    schemas = [name.removesuffix(".yaml") for name in spec.names(EVENT_SCHEMAS)]
    for group in EVENT_GROUP.findall(text):
        names += [name for name in schemas if name.startswith(group)]
    if "{{% msgtypes" in text:
        names += [name.split("$")[1] for name in schemas if name.startswith("m.room.message$")]
    found = headings(text) + [slug(name) for name in names]
    for spec_name, api, prefix in PREFIXED_API.findall(text):
        endpoints = endpoint_anchors(spec.read(f"data/api/{spec_name}/{api}.yaml"))
        found += [f"{prefix}_{anchor}" for anchor in endpoints]
    for path in DEFINITION.findall(text):
        if title := re.search(
            r"^title: *[\"']?(.+?)[\"']? *$", spec.read(f"data/{path}.yaml"), re.M
        ):
            found.append("definition-" + slug(title[1]))
    return list(dict.fromkeys(found))


def newest_text(proposals: str, number: str) -> tuple[str, str]:
    """Return (commit, file) of an MSC's newest text, whichever branch it is on."""
    pattern = f"proposals/{number}-*.md"
    commit = git(proposals, "log", "--all", "-1", "--format=%H", "--diff-filter=AM", "--", pattern)
    if not commit.strip():
        raise SystemExit(f"no text of MSC{number} in {proposals}")
    changed = git(proposals, "ls-tree", "--name-only", commit.strip(), "proposals/").split("\n")
    file = next(name for name in changed if name.startswith(f"proposals/{number}-"))
    return commit.strip(), file


def read_pins() -> dict[str, list[str]]:
    """Return docs/spec/VERSION: what is pinned -> the words that say where."""
    lines = VERSION.read_text().splitlines() if VERSION.exists() else []
    return {words[0]: words[1:] for line in lines if (words := line.split()) and line[0] != "#"}


def main() -> None:
    """Rewrite docs/spec/VERSION and docs/spec/anchors.txt."""
    parser = argparse.ArgumentParser(description="note the anchors of the pinned texts")
    parser.add_argument("--spec", required=True, help="a clone of matrix-org/matrix-spec")
    parser.add_argument("--spec-commit", help="pin the specification here")
    parser.add_argument("--proposals", required=True, help="… matrix-org/matrix-spec-proposals")
    parser.add_argument("msc", nargs="*", help="numbers of proposals to add")
    args = parser.parse_args()

    pins = read_pins()
    commit = args.spec_commit or pins["spec"][1]
    spec = Repository(args.spec, commit)
    release = git(args.spec, "describe", "--tags", "--abbrev=0", spec.commit).strip()
    pins["spec"] = [release, spec.commit]
    for number in args.msc:
        pins[f"MSC{number}"] = list(newest_text(args.proposals, number))

    lines = ["# Made by tools/spec_anchors.py from what VERSION pins."]
    for page, file in PAGES.items():
        lines += [page, *(f"  {anchor}" for anchor in page_anchors(spec, file))]
    for name in sorted(pins.keys() - {"spec"}):
        commit, file = pins[name]
        text = Repository(args.proposals, commit).read(file)
        lines += [name, *(f"  {anchor}" for anchor in headings(text))]
    ANCHORS.write_text("\n".join(lines) + "\n")
    VERSION.write_text(
        "# What references in the code are checked against: commits of matrix-org/matrix-spec\n"
        "# and matrix-org/matrix-spec-proposals. Rewritten by tools/spec_anchors.py.\n"
        + "".join(
            f"{name} {' '.join(pins[name])}\n" for name in ["spec", *sorted(pins.keys() - {"spec"})]
        )
    )


if __name__ == "__main__":
    main()
