#!/usr/bin/env python3
"""Compare a run of Complement with the results that this repository promises.

    complement/compare.py RUN.json…            what is new, what broke; exit 1 if anything broke
    complement/compare.py --write RUN.json…    and make it the promise

A run is what `go test -json` prints, one file a package (complement/run.sh makes them). The
promise is `results.tsv` beside this file: `package/Test/subtest<TAB>pass|fail|skip`, sorted.
Packages that were not run keep what is recorded of them.

Counts are of *leaves*, tests without subtests: the one unit in which two servers can be compared,
as a failed parent says only that one of its children failed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

KINDS = ("pass", "fail", "skip")
RESULTS = Path(__file__).parent / "results.tsv"


def short_package(import_path: str) -> str:
    """Return the last part of a Go import path: `csapi`, `tests`, `msc4140`."""
    return import_path.rsplit("/", 1)[-1]


def read_run(lines: Iterable[str]) -> dict[str, str]:
    """Return the result of every test of a `go test -json` output, by `package/Test/subtest`.

    A test that began and never ended (a panic, a time-out of the package) counts as `fail`.
    Lines that are not JSON, such as those of a failed build, are passed over.
    """
    results: dict[str, str] = {}
    for line in lines:
        try:
            event: object = json.loads(line)  # noqa: TID251 Go's output, not Matrix's JSON
        except ValueError:
            continue
        match event:
            case {"Action": str(action), "Package": str(package), "Test": str(test)}:
                name = f"{short_package(package)}/{test}"
                if action in KINDS:
                    results[name] = action
                elif action == "run":
                    results.setdefault(name, "fail")
            case _:
                pass
    return results


def read_results(text: str) -> dict[str, str]:
    """Return the recorded results.

    Raises:
        ValueError: a line is not `test<TAB>pass|fail|skip`.
    """
    results: dict[str, str] = {}
    for line in text.splitlines():
        test, tab, result = line.rpartition("\t")
        if not tab or result not in KINDS:
            raise ValueError(f"not a line of results: {line!r}")
        results[test] = result
    return results


def write_results(results: Mapping[str, str]) -> str:
    """Return the text of `results.tsv`, sorted so that a diff shows what changed."""
    return "".join(f"{test}\t{results[test]}\n" for test in sorted(results))


def leaves(results: Mapping[str, str]) -> dict[str, str]:
    """Return the results of tests that have no subtests."""
    parents = {
        test[:slash] for test in results for slash, letter in enumerate(test) if letter == "/"
    }
    return {test: result for test, result in results.items() if test not in parents}


def packages(results: Iterable[str]) -> set[str]:
    """Return the packages that tests belong to."""
    return {test.partition("/")[0] for test in results}


def count(results: Mapping[str, str]) -> str:
    """Return `n pass, n fail, n skip`."""
    values = list(results.values())
    return ", ".join(f"{values.count(kind)} {kind}" for kind in KINDS)


def became(result: str, recorded: Mapping[str, str], run: Mapping[str, str]) -> list[str]:
    """Return the tests that had another result, or none, and now have this one.

    A parent whose own subtest is listed is left out: it would say the same again. So is a
    test that fails and was never recorded: nothing was promised of it.
    """
    changed = {
        test
        for test, now in run.items()
        if now == result and recorded.get(test) != result and (result != "fail" or test in recorded)
    }
    return sorted(
        test for test in changed if not any(other.startswith(f"{test}/") for other in changed)
    )


def report(recorded: Mapping[str, str], run: Mapping[str, str]) -> tuple[str, bool]:
    """Return what to print about a run, and whether something that passed now fails."""
    lines = []
    for package in sorted(packages(run)):
        of_package = {test: run[test] for test in run if test.startswith(f"{package}/")}
        lines.append(f"{package}: {count(leaves(of_package))} (leaves)")
    ran = packages(run)
    gone = sorted(test for test in recorded if test not in run and packages([test]) <= ran)
    broken = became("fail", recorded, run)
    sections = (
        ("newly passing", became("pass", recorded, run)),
        ("newly skipped", became("skip", recorded, run)),
        ("recorded, not in this run", gone),
        ("newly failing", broken),
    )
    for title, tests in sections:
        if tests:
            lines.append(f"\n{title}: {len(tests)}")
            lines.extend(f"  {test}" for test in tests)
    return "\n".join(lines) + "\n", bool(broken)


def main(arguments: list[str]) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", nargs="+", type=Path, help="output of `go test -json`")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: %(default)s")
    parser.add_argument("--write", action="store_true", help="record this run as the promise")
    options = parser.parse_args(arguments)

    run: dict[str, str] = {}
    for path in options.run:
        with path.open(encoding="utf-8", errors="replace") as lines:
            run |= read_run(lines)
    if not run:
        sys.stderr.write("no test ran: is this the output of `go test -json`?\n")
        return 2
    recorded: dict[str, str] = {}
    if options.results.exists():
        recorded = read_results(options.results.read_text(encoding="utf-8"))

    text, broken = report(recorded, run)
    sys.stdout.write(text)
    if options.write:
        ran = packages(run)
        kept = {test: result for test, result in recorded.items() if not packages([test]) <= ran}
        options.results.write_text(write_results(kept | run), encoding="utf-8")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
