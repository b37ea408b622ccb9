"""Canonical JSON. Spec: appendices#canonical-json."""

from __future__ import annotations

import gzip
from pathlib import Path

import canonicaljson
import pytest
from hypothesis import given

from minihs.protocol.canonical_json import (
    DEPTH_MAX,
    INTEGER_MAX,
    CanonicalJsonError,
    JsonError,
    canonicalize,
    check,
    decode,
    decode_lenient,
    encode,
    encode_lenient,
    encode_strict,
)
from tests.helpers.json_values import CANONICAL_VALUES


@given(CANONICAL_VALUES)
def test_all_encoders_write_what_canonicaljson_writes(value: object) -> None:
    expected = canonicaljson.encode_canonical_json(value)
    assert encode(value) == encode_strict(value) == encode_lenient(value) == expected
    assert decode_lenient(expected) == decode(expected) == value


def nested(depth: int) -> object:
    value: object = 0
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        1.0,
        1e2,
        float("nan"),
        float("inf"),
        INTEGER_MAX + 1,
        -INTEGER_MAX - 1,
        2**64,
        "\ud800",
        {"\ud800": 1},
        {1: 2},
        {None: 2},
        b"bytes",
        {1, 2},
        nested(DEPTH_MAX + 1),
    ],
    ids=repr,
)
def test_values_without_canonical_json_are_refused_at_any_depth(value: object) -> None:
    for wrapped in (value, [value], {"a": {"b": [0, value]}}):
        with pytest.raises(CanonicalJsonError):
            encode_strict(wrapped)
        with pytest.raises(CanonicalJsonError):
            check(wrapped)


def test_the_limits_themselves_are_allowed() -> None:
    value = [INTEGER_MAX, -INTEGER_MAX, nested(DEPTH_MAX - 1)]
    check(value)
    assert decode(encode_strict(value)) == value


@pytest.mark.parametrize(
    "text",
    ["1.0", "1e2", "-0.0", "9007199254740992", "123456789012345678901234567890"],
)
def test_numbers_are_refused_as_they_are_written(text: str) -> None:
    with pytest.raises(CanonicalJsonError):
        check(decode(f'{{"a":{text}}}'))


@pytest.mark.parametrize(
    "text",
    ["", "{", "{'a':1}", "[1,]", "NaN", "[Infinity]", "1E400", '"\\ud800"', "01", "\x00", b"\xff"],
)
def test_what_is_not_json_is_refused(text: str | bytes) -> None:
    for decoder in (decode, decode_lenient):
        with pytest.raises(JsonError):
            decoder(text)


def test_old_rooms_keep_their_numbers_exactly() -> None:
    text = b'{"big":123456789012345678901234567890,"exponent":1e+22,"float":50.57}'
    assert encode_lenient(decode_lenient(text)) == text
    assert decode_lenient("[18446744073709551616]") == [2**64]
    assert decode_lenient("1.5") == 1.5


@pytest.mark.spec("appendices#canonical-json")
def test_the_examples_of_the_specification() -> None:
    path = Path(__file__).parent / "vectors" / "public-canonical-json.json.gz"
    cases = decode(gzip.decompress(path.read_bytes()))
    assert isinstance(cases, list)
    for case in cases:
        assert canonicalize(case["json"]).decode() == case["canonical"]


@pytest.mark.parametrize("text", ["1.5", "1e-1", "9007199254740992.0", "1e300", "2e999999999"])
def test_numbers_that_are_no_integers_have_no_canonical_form(text: str) -> None:
    with pytest.raises(ValueError, match=r"integer|infinity"):
        canonicalize(text)


def test_negative_zero_is_zero() -> None:
    assert encode(decode('{"a":-0}')) == b'{"a":0}'


def test_old_rooms_have_no_infinity_either() -> None:
    with pytest.raises(CanonicalJsonError):
        encode_lenient({"a": float("inf")})
    with pytest.raises(CanonicalJsonError):
        encode({"a": "\ud800"})
