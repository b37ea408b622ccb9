"""Canonical JSON: the one encoding of a value that is hashed and signed.

The encoding is the shortest UTF-8 text with keys sorted by code point, and orjson writes exactly
that. What Canonical JSON has no form for is refused here: floats (`1.0` and `1e2` are floats too),
NaN, integers beyond 2^53-1, lone surrogates, keys that are not strings, and nesting deeper than any
honest event.

Rooms of versions 1 to 5 were made before these limits were enforced, so their events may hold such
numbers. For them `encode_lenient` and `decode_lenient` keep numbers as they are, at a slower pace.

Spec: appendices#canonical-json
"""

from __future__ import annotations

import json
import re
from decimal import Decimal

import canonicaljson
import orjson

INTEGER_MAX = 2**53 - 1
"""The largest integer of Canonical JSON; the smallest is its negative."""

DEPTH_MAX = 254
"""How deep values may be nested (the limit of orjson)."""

_STRICT = (
    orjson.OPT_SORT_KEYS
    | orjson.OPT_STRICT_INTEGER
    | orjson.OPT_PASSTHROUGH_DATACLASS
    | orjson.OPT_PASSTHROUGH_DATETIME
    | orjson.OPT_PASSTHROUGH_SUBCLASS
)

# A number that orjson would not keep as it is written: a float, too many digits for 64 bits, or
# minus zero. Found inside a string it only costs the slower path.
_DELICATE_NUMBER = re.compile(rb"(?:^|[:,\[])\s*-?(?:[0-9]{18}|[0-9]+[.eE]|(?<=-)0)")


class MinusZero(int):
    """`-0`, which Canonical JSON does not have: no integer to `check`, 0 to everything else."""


class JsonError(ValueError):
    """The text is not JSON."""


class CanonicalJsonError(ValueError):
    """The value has no Canonical JSON."""


def encode(value: object) -> bytes:
    """Return the Canonical JSON of a value that has been checked (or that we made ourselves).

    Raises:
        CanonicalJsonError: If the value cannot be written at all. Floats are *not* noticed here.
    """
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError as error:
        raise CanonicalJsonError(str(error)) from error


def encode_strict(value: object) -> bytes:
    """Return the Canonical JSON of any value.

    Raises:
        CanonicalJsonError: If the value has none: see the first paragraph of this module.
    """
    try:
        text = orjson.dumps(value, option=_STRICT)
    except TypeError as error:
        raise CanonicalJsonError(str(error)) from error
    _refuse_floats(value)
    return text


def check(value: object) -> None:
    """Refuse a value that has no Canonical JSON.

    Raises:
        CanonicalJsonError: If so.
    """
    encode_strict(value)


def encode_lenient(value: object) -> bytes:
    """Return the JSON of a value as room versions 1 to 5 hash it: floats and big integers pass.

    Raises:
        CanonicalJsonError: If the value cannot be written (NaN, lone surrogates).
    """
    try:
        return canonicaljson.encode_canonical_json(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise CanonicalJsonError(str(error)) from error


def encode_any(value: object) -> bytes:
    """Return the JSON of a value that may hold numbers of old rooms, which are kept as they are.

    Raises:
        CanonicalJsonError: If the value cannot be written at all.
    """
    try:
        return encode(value)
    except CanonicalJsonError:
        return encode_lenient(value)


def decode(data: bytes | str) -> object:
    """Return the value of a JSON text. Integers beyond 64 bits become floats.

    Raises:
        JsonError: If the text is not JSON.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise JsonError(str(error)) from error


def decode_lenient(data: bytes | str) -> object:
    """Return the value of a JSON text with its numbers kept exactly, of whatever size.

    For bodies that may hold events of room versions 1 to 5, where `encode_lenient` must find the
    numbers that were signed.

    Raises:
        JsonError: If the text is not JSON.
    """
    text = data.encode() if isinstance(data, str) else data
    value = decode(text)  # Also refuses what Python's parser is too kind to (NaN, lone surrogates).
    if _DELICATE_NUMBER.search(text) is None:
        return value
    try:
        return json.loads(text, parse_int=_integer)  # noqa: TID251  This module is the wrapper.
    except (ValueError, RecursionError) as error:
        raise JsonError(str(error)) from error


def is_shallow(value: object, depth_max: int) -> bool:
    """Return whether no value is nested more than so many levels deep."""
    level = [value] if isinstance(value, (dict, list)) else []
    depth = 0
    while level and depth <= depth_max:
        depth += 1
        level = [
            inner
            for item in level
            for inner in (item.values() if isinstance(item, dict) else item)
            if isinstance(inner, (dict, list))
        ]
    return depth <= depth_max


def canonicalize(text: bytes | str) -> bytes:
    """Return the Canonical JSON of a JSON text, its numbers taken by their value.

    So `1e10` is 10000000000, as in the examples of the specification. Servers may not rely on it:
    in events such a number is refused, by us (`check`) and by others.

    Raises:
        JsonError: If the text is not JSON.
        CanonicalJsonError: If the value is outside Canonical JSON.
    """
    decode(text)  # Refuses what Python's parser is too kind to.
    return encode_strict(json.loads(text, parse_float=_integer_if_one))  # noqa: TID251  As above.


def _integer(numeral: str) -> int:
    return MinusZero() if numeral == "-0" else int(numeral)


def _integer_if_one(numeral: str) -> int | float:
    value = Decimal(numeral)
    if abs(value) <= INTEGER_MAX and value == value.to_integral_value():
        return int(value)
    return float(numeral)


def _refuse_floats(value: object) -> None:
    """Walk the value, level by level, and refuse any float. Cycles cannot come this far."""
    queue = [value]
    for item in queue:
        if isinstance(item, str):
            continue
        if isinstance(item, dict):
            queue.extend(item.values())
        elif isinstance(item, (list, tuple)):
            queue.extend(item)
        elif isinstance(item, float):
            raise CanonicalJsonError(f"{item!r} is not an integer")
