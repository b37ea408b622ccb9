"""Reading guides: each ledger has its page, which says what the code and the tests are called."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING

import pytest

from tools import msc_guides
from tools.spec_map import ROOT, Place

if TYPE_CHECKING:
    from pathlib import Path

LEDGERS = sorted(msc_guides.LEDGERS.glob("msc*.toml"))


@pytest.mark.parametrize("path", LEDGERS, ids=lambda path: path.stem)
def test_a_ledger_becomes_a_page_that_leads_to_code_and_tests(path: Path) -> None:
    page = msc_guides.page(msc_guides.read_ledger(path), {})
    for entry in tomllib.loads(path.read_text())["requirement"]:
        assert f"**{entry['number']}** ({entry['force']}" in page
        assert entry["asks"] in page
    links = re.findall(r"\]\(\.\./\.\./([^)]+)\)", page)
    assert links
    assert all((ROOT / link).is_file() for link in links)


def test_code_is_told_by_its_first_sentence_and_constants_by_their_value() -> None:
    stickiness = "minihs/protocol/stickiness.py: "
    assert msc_guides.summary(f"{stickiness}stickiness").startswith(
        "Return when an event is sticky"
    )
    assert msc_guides.summary(f"{stickiness}STICKY_DURATION_MS_MAX") == "`3600000`"
    assert msc_guides.summary(f"{stickiness}Stickiness.is_sticky").endswith("sticky at `now_ms`.")


def test_a_tests_name_is_read_as_a_sentence() -> None:
    link = msc_guides.story_link("tests/x.py: test_s_07_a_server_that_joins")
    assert link == "[a server that joins](../../tests/x.py)"


def test_code_that_refers_to_the_proposal_is_listed_once() -> None:
    requirement = msc_guides.Requirement(
        "X-1", "MUST", "something", "yes", code=["minihs/protocol/stickiness.py: stickiness"]
    )
    ledger = msc_guides.Ledger("MSC4354", "sticky events", "", [requirement])
    file = "minihs/protocol/stickiness.py"
    places = [Place(file, "stickiness"), Place(file, "sticky_members"), Place("tests/x.py", "y")]
    page = msc_guides.page(ledger, {"MSC4354#proposal": places, "MSC4293#proposal": places})
    assert page.count("::stickiness`") == 1
    assert page.count("::sticky_members`") == 1
    assert "tests/x.py" not in page


def test_requirements_stand_under_their_headings_in_the_order_of_the_text() -> None:
    headings = ["MSC4354#rate-limits", "MSC4354#proposal", "MSC4354#rate-limits"]
    requirements = [
        msc_guides.Requirement(f"X-{n}", "MUST", "something", "client", heading=heading)
        for n, heading in enumerate(headings, 1)
    ]
    page = msc_guides.page(msc_guides.Ledger("MSC4354", "sticky events", "", requirements), {})
    found = re.findall(r"## .*|X-\d", page)
    assert found == ["## Names", "## Proposal", "X-2", "## Rate limits", "X-1", "X-3"]


def test_a_ledger_that_does_not_say_what_it_is_about_is_found_out(tmp_path: Path) -> None:
    path = tmp_path / "msc1234.toml"
    path.write_text('[[requirement]]\nnumber = "X-1"\n')
    with pytest.raises(ValueError, match="does not begin"):
        msc_guides.read_ledger(path)
