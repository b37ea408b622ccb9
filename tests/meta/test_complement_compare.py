"""The tool that judges a run of Complement: what it counts, what it calls broken."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

COMPARE = Path(__file__).parents[2] / "complement" / "compare.py"
PACKAGE = "github.com/matrix-org/complement/tests/csapi"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("complement_compare", COMPARE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


compare: Any = load()


def go_test_output(results: dict[str, str], package: str = PACKAGE) -> str:
    """Write what `go test -json` prints; a test with the result `run` never ends."""
    events: list[dict[str, str]] = [{"Action": "start", "Package": package}]
    events += [{"Action": "run", "Package": package, "Test": test} for test in results]
    events += [
        {"Action": result, "Package": package, "Test": test}
        for test, result in results.items()
        if result != "run"
    ]
    events.append({"Action": "fail", "Package": package})
    return "".join(json.dumps(event) + "\n" for event in events)


def test_a_run_gives_each_test_its_result_under_its_package() -> None:
    text = go_test_output({"TestA": "pass", 'TestA/says_"x/y"': "skip", "TestB": "fail"})
    assert compare.read_run(text.splitlines()) == {
        "csapi/TestA": "pass",
        'csapi/TestA/says_"x/y"': "skip",
        "csapi/TestB": "fail",
    }


def test_a_test_that_never_ended_has_failed() -> None:
    text = go_test_output({"TestA": "pass", "TestB": "run"}) + "panic: not JSON\n"
    assert compare.read_run(text.splitlines())["csapi/TestB"] == "fail"


def test_only_tests_without_subtests_are_leaves() -> None:
    results = {"csapi/TestA": "fail", "csapi/TestA/x": "pass", "csapi/TestAB": "pass"}
    assert compare.leaves(results) == {"csapi/TestA/x": "pass", "csapi/TestAB": "pass"}


def test_a_slash_in_the_name_of_a_subtest_makes_no_second_parent() -> None:
    results = {"csapi/T": "pass", "csapi/T/GET_/login": "pass"}
    assert compare.count(compare.leaves(results)) == "1 pass, 0 fail, 0 skip"


@pytest.mark.parametrize(
    ("recorded", "now", "status", "heading"),
    [
        ("pass", "pass", 0, None),
        ("fail", "pass", 0, "newly passing: 1"),
        (None, "pass", 0, "newly passing: 1"),
        ("fail", "fail", 0, None),
        (None, "fail", 0, None),
        ("pass", "skip", 0, "newly skipped: 1"),
        ("pass", "fail", 1, "newly failing: 1"),
        ("skip", "fail", 1, "newly failing: 1"),
        ("pass", "run", 1, "newly failing: 1"),
    ],
)
def test_what_passed_and_fails_now_is_broken(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    recorded: str | None,
    now: str,
    status: int,
    heading: str | None,
) -> None:
    results = tmp_path / "results.tsv"
    results.write_text(f"csapi/TestA\t{recorded}\n" if recorded else "")
    run = tmp_path / "run.json"
    run.write_text(go_test_output({"TestA": now}))
    assert compare.main(["--results", str(results), str(run)]) == status
    printed = capsys.readouterr().out
    headings = [line for line in printed.splitlines() if line.startswith("newly")]
    assert headings == ([heading] if heading else [])


def test_a_broken_subtest_is_named_without_its_parents() -> None:
    recorded = dict.fromkeys(["csapi/T", "csapi/T/group", "csapi/T/group/x"], "pass")
    run = dict.fromkeys(recorded, "fail")
    assert compare.became("fail", recorded, run) == ["csapi/T/group/x"]


def test_recording_a_run_keeps_the_packages_that_were_not_run(tmp_path: Path) -> None:
    results = tmp_path / "results.tsv"
    results.write_text("csapi/TestGone\tpass\nmsc4140/TestDelayed\tpass\n")
    run = tmp_path / "run.json"
    run.write_text(go_test_output({"TestB": "pass", "TestA": "fail"}))
    assert compare.main(["--write", "--results", str(results), str(run)]) == 0
    assert (
        results.read_text() == "csapi/TestA\tfail\ncsapi/TestB\tpass\nmsc4140/TestDelayed\tpass\n"
    )


def test_an_output_without_tests_is_an_error(tmp_path: Path) -> None:
    run = tmp_path / "run.json"
    run.write_text("FAIL: build failed\n")
    assert compare.main(["--results", str(tmp_path / "none.tsv"), str(run)]) == 2


def test_a_spoilt_record_is_refused() -> None:
    with pytest.raises(ValueError, match="not a line of results"):
        compare.read_results("csapi/TestA pass\n")


def test_the_committed_record_can_be_read_and_is_sorted() -> None:
    committed = COMPARE.parent / "results.tsv"
    text = committed.read_text(encoding="utf-8")
    assert compare.write_results(compare.read_results(text)) == text
