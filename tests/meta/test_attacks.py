"""The list of attacks tells the truth about which of them are tested."""

from __future__ import annotations

from tools.attacks_page import IDS, page, problems, proofs_by_attack, read_attacks


def test_the_page_is_what_the_tests_say() -> None:
    assert problems() == [], "run `make docs`"


def test_every_attack_has_one_row() -> None:
    names = [attack.name for attack in read_attacks()]
    assert len(names) == len(set(names)) > 100


def test_an_attack_is_open_until_a_test_carries_its_name() -> None:
    attacks = read_attacks()[:2]
    first, second = (attack.name for attack in attacks)
    text = page(attacks, {first: ["tests/api/test_x.py::test_y"]})
    assert f"**1 of {len(attacks)}**" in text
    rows = {line.split(" | ")[0]: line for line in text.splitlines() if line.startswith("| ")}
    assert rows[f"| {first}"].endswith("| `tests/api/test_x.py::test_y` |")
    assert rows[f"| {second}"].endswith("| *open* |")


def test_ids_are_read_from_names() -> None:
    assert IDS.findall("test_C06_C12_deactivated_users_stay_out") == ["C06", "C12"]
    assert IDS.findall("test_room_v11_redactions") == []
    assert all(tests for tests in proofs_by_attack().values())
