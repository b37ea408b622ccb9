"""The grammar of identifiers. Spec: appendices#identifier-grammar."""

from __future__ import annotations

import pytest

from minihs.protocol.identifiers import (
    is_valid_localpart,
    parse_event_id,
    parse_room_alias,
    parse_room_id,
    parse_server_name,
    parse_user_id,
    server_name_of,
)

HASH = "5pBfeuqhs_7y2GFY8NFvYvBVc_P_qHJtg4cUdOfwWXI"


@pytest.mark.spec("appendices#server-name")
@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("matrix.org", True),
        ("matrix.org:8888", True),
        ("MATRIX.org", True),
        ("localhost", True),
        ("hs-1.example", True),
        ("1.2.3.4", True),
        ("1.2.3.4:1234", True),
        ("[1234:5678::abcd]", True),
        ("[1234:5678::abcd]:5678", True),
        ("", False),
        ("matrix.org:", False),
        ("matrix.org:123456", False),
        ("matrix.org:x", False),
        ("matrix org", False),
        ("matrix_org", False),
        ("1.2.3.444", False),
        ("[::g]", False),
        ("[1:2]", False),
        ("matrix.org\n", False),
        ("mätrix.org", False),
        (17, False),
        (None, False),
    ],
)
def test_server_names(text: object, is_one: bool) -> None:
    assert parse_server_name(text) == (text if is_one else None)


@pytest.mark.spec("appendices#user-identifiers", "appendices#historical-user-ids")
@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("@alice:hs1", True),
        ("@a.b_c=d-e/f+0:hs1:8448", True),
        ("@Alice:hs1", True),  # Historical.
        ("@älice und 💬:hs1", True),  # Historical.
        ("@:hs1", True),  # Historical.
        ("@a\0b:hs1", False),
        ("@alice", False),
        ("alice:hs1", False),
        ("#alice:hs1", False),
        ("@alice:", False),
        ("@alice:hs 1", False),
        ("@" + "a" * 250 + ":hs1", True),  # 255 bytes.
        ("@" + "a" * 251 + ":hs1", False),
        ("@" + "ä" * 126 + ":hs1", False),  # 257 bytes of 131 characters.
        ("@\ud800:hs1", False),
        (b"@alice:hs1", False),
    ],
)
def test_user_ids(text: object, is_one: bool) -> None:
    assert parse_user_id(text) == (text if is_one else None)


@pytest.mark.spec("appendices#room-ids", "appendices#event-ids", "appendices#room-aliases")
def test_the_other_identifiers_have_their_own_sigils() -> None:
    assert parse_room_id("!room:hs1") == "!room:hs1"
    assert parse_room_id(f"!{HASH}") == f"!{HASH}"
    assert parse_room_id("!") is None
    assert parse_room_id("!a b") is None
    assert parse_room_id(f"${HASH}") is None
    assert parse_event_id(f"${HASH}") == f"${HASH}"
    assert parse_event_id("$1:hs1") == "$1:hs1"
    assert parse_event_id("$a/b+c") == "$a/b+c"  # Room version 3.
    assert parse_event_id(HASH) is None
    assert parse_room_alias("#tea:hs1") == "#tea:hs1"
    assert parse_room_alias("#tea") is None


def test_identifiers_are_taken_apart_at_the_first_colon() -> None:
    assert server_name_of("@alice:hs1:8448") == "hs1:8448"
    assert server_name_of(f"!{HASH}") == ""


@pytest.mark.spec("appendices#user-identifiers")
@pytest.mark.parametrize("text", ["alice", "a.b_c=d-e/f+0"])
def test_new_users_may_have_these_localparts(text: str) -> None:
    assert is_valid_localpart(text)


@pytest.mark.parametrize("text", ["", "Alice", "älice", "a b", "a:b", "a\n", "@a"])
def test_new_users_may_not_have_those(text: str) -> None:
    assert not is_valid_localpart(text)
