"""Server ACLs, against the slow reading of the specification."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minihs.protocol.globs import compile_glob
from minihs.protocol.server_acl import compile_server_acl


@pytest.mark.parametrize(
    ("content", "server", "allowed"),
    [
        ({"allow": ["*"]}, "good.org", True),
        ({}, "good.org", False),
        ({"deny": ["evil.org"]}, "good.org", False),
        ({"allow": ["*"], "deny": ["evil.org"]}, "evil.org", False),
        ({"allow": ["*"], "deny": ["evil.org"]}, "EVIL.org", False),
        ({"allow": ["*"], "deny": ["Evil.ORG"]}, "evil.org", False),
        ({"allow": ["*"], "deny": ["evil.org"]}, "evil.org:8448", False),
        ({"allow": ["*"], "deny": ["evil.org"]}, "sub.evil.org", True),
        ({"allow": ["*"], "deny": ["*.evil.org"]}, "sub.evil.org", False),
        ({"allow": ["*"], "deny": ["*.evil.org"]}, "a.b.evil.org:1", False),
        ({"allow": ["*"], "deny": ["*.evil.org"]}, "evil.org", True),
        ({"allow": ["*"], "deny": ["*.evil.org"]}, "notevil.org", True),
        ({"allow": ["*"], "deny": ["*evil.org"]}, "notevil.org", False),
        ({"allow": ["*"], "deny": ["ev?l.org"]}, "evil.org", False),
        ({"allow": ["*"], "deny": ["*.ev?l.org"]}, "a.evil.org", False),
        ({"allow": ["*"], "deny": ["**"]}, "evil.org", False),
        ({"allow": ["*"], "deny": [""]}, "evil.org", True),
        ({"allow": ["good.org"], "deny": []}, "good.org", True),
        ({"allow": ["good.org"]}, "other.org", False),
        # Literals.
        ({"allow": ["*"], "allow_ip_literals": False}, "1.2.3.4", False),
        ({"allow": ["*"], "allow_ip_literals": False}, "1.2.3.4:8448", False),
        ({"allow": ["*"], "allow_ip_literals": False}, "[::1]", False),
        ({"allow": ["*"], "allow_ip_literals": False}, "[2001:db8::1]:8448", False),
        ({"allow": ["*"], "allow_ip_literals": False}, "1.2.3.4.org", True),
        ({"allow": ["*"], "allow_ip_literals": True}, "1.2.3.4", True),
        ({"allow": ["*"], "allow_ip_literals": "no"}, "1.2.3.4", True),
        ({"allow": ["*"]}, "[::1]", True),
        ({"allow": ["*"], "deny": ["[::1]"]}, "[::1]:8448", False),
        # Malformed lists.
        ({"allow": "*"}, "good.org", False),
        ({"allow": {"*": 1}}, "good.org", False),
        ({"allow": [1, None, "*"]}, "good.org", True),
        ({"allow": ["*"], "deny": "evil.org"}, "evil.org", True),
        ({"allow": ["*"], "deny": [["evil.org"], "evil.org"]}, "evil.org", False),
    ],
)
def test_F04_names_are_compared_by_host_whatever_their_case_and_denials_come_first(
    content: dict[str, object], server: str, allowed: bool
) -> None:
    assert compile_server_acl(content).allows(server) is allowed


def test_F06_a_pattern_made_to_hurt_is_answered_soon() -> None:
    hurting = ["*a" * 2_000 + "b", "?*" * 2_000, "*" * 4_000 + "x"]
    acl = compile_server_acl({"allow": ["*"], "deny": hurting})
    started = time.process_time()
    for _ in range(100):
        assert acl.allows("a" * 220 + ".org")
    assert time.process_time() - started < 10  # Trying every way would not come to an end.


ENTRIES = st.lists(st.text("ab.*?", max_size=6), max_size=4)


@given(
    ENTRIES, ENTRIES, st.from_regex(r"[abAB]{1,3}(\.[ab]{1,2}){0,2}(:[0-9]{1,4})?", fullmatch=True)
)
def test_looking_up_agrees_with_matching_one_by_one(
    allow: list[str], deny: list[str], server: str
) -> None:
    host = server.split(":")[0].lower()

    def matched(entries: list[str]) -> bool:
        return any(compile_glob(entry).matches(host) for entry in entries)

    expected = not matched(deny) and matched(allow)
    assert compile_server_acl({"allow": allow, "deny": deny}).allows(server) is expected


def test_F06_a_list_of_50_000_entries_is_asked_quickly() -> None:
    deny = [f"{kind}server{number}.org" for number in range(25_000) for kind in ("", "*.")]
    acl = compile_server_acl({"allow": ["*"], "deny": deny})
    started = time.process_time()
    for number in range(1_000):
        assert acl.allows(f"some.other{number}.example.org")
        assert not acl.allows(f"a.server{number}.org")
    assert time.process_time() - started < 5  # One by one it would be minutes.
