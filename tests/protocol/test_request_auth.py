"""Signed requests: what we sign others verify, and what they send we read strictly."""

from __future__ import annotations

import json

import pytest
import signedjson.key
import signedjson.sign
from hypothesis import given
from hypothesis import strategies as st

from minihs.protocol.canonical_json import encode
from minihs.protocol.request_auth import (
    RequestAuthError,
    XMatrix,
    parse_authorization,
    sign_request,
    verify_request,
)
from minihs.protocol.signatures import SigningKey, generate_signing_key

KEY = generate_signing_key(bytes(32))
OTHER_KEY = generate_signing_key(bytes([1]) * 32)
URI = "/_matrix/federation/v1/send/1?a=b"
SIG = "A" * 86


def header(**changes: str) -> XMatrix:
    parts = {"origin": "hs1", "destination": "hs2", "key": "ed25519:a", "sig": SIG, **changes}
    return parse_authorization("X-Matrix " + ",".join(f'{k}="{v}"' for k, v in parts.items()))


# --- reading ------------------------------------------------------------------------------------

EXPECTED = XMatrix("hs1:8448", "hs2", "ed25519:a", "abc/+")  # type: ignore[arg-type]  # A literal.


@pytest.mark.parametrize(
    "text",
    [
        'X-Matrix origin="hs1:8448",destination="hs2",key="ed25519:a",sig="abc/+"',
        'X-Matrix origin=hs1:8448,destination=hs2,key=ed25519:a,sig="abc/+"',
        'x-matrix   ORIGIN="hs1:8448" , Destination="hs2"\t,\tkey="ed25519:a", sig="abc/+"',
        'X-Matrix sig="abc/+",key="ed25519:a",destination="hs2",origin="hs1:8448"',
        r'X-Matrix origin="hs1\:8448",destination="\h\s2",key="ed25519:a",sig="abc/+"',
        'X-Matrix origin="hs1:8448",destination="hs2",key="ed25519:a",sig="abc/+",other="1,2=3"',
        'X-Matrix ,origin="hs1:8448",,destination="hs2",key="ed25519:a",sig="abc/+",',
        'X-Matrix origin = "hs1:8448", destination = "hs2", key="ed25519:a", sig="abc/+"',
    ],
)
def test_forms_of_the_same_header(text: str) -> None:
    assert parse_authorization(text) == EXPECTED


def test_an_older_server_leaves_out_the_destination() -> None:
    read = parse_authorization('X-Matrix origin=hs1,key="ed25519:a",sig="abc"')
    assert read.destination is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "X-Matrix",
        "X-Matrix ",
        "Bearer abc",
        'X-Matrixorigin="hs1",key="ed25519:a",sig="abc"',
        'X-Matrix key="ed25519:a",sig="abc"',
        'X-Matrix origin="hs1",sig="abc"',
        'X-Matrix origin="hs1",key="ed25519:a"',
        'X-Matrix origin="hs1",origin="hs1",key="ed25519:a",sig="abc"',
        'X-Matrix origin="hs1",Origin="hs2",key="ed25519:a",sig="abc"',
        'X-Matrix origin="not a name",key="ed25519:a",sig="abc"',
        'X-Matrix origin="",key="ed25519:a",sig="abc"',
        'X-Matrix origin="hs1",key="rsa:a",sig="abc"',
        'X-Matrix origin="hs1" key="ed25519:a",sig="abc"',
        'X-Matrix origin="hs1",key="ed25519:a",sig="abc',
        'X-Matrix origin="hs1",key="ed25519:a",sig=abc/def',
        'X-Matrix origin="hs1",key="ed25519:a",sig=',
        'X-Matrix origin="hs1",key="ed25519:a",="abc"',
        'X-Matrix origin="hs1",key="ed25519:a",sig="a\nb"',
        'X-Matrix origin="hs1",key="ed25519:a",sig="abc"x',
    ],
)
def test_what_is_no_header_of_ours(text: str) -> None:
    with pytest.raises(RequestAuthError):
        parse_authorization(text)


@given(st.text(max_size=40))
def test_reading_never_fails_otherwise(text: str) -> None:
    for candidate in (text, "X-Matrix " + text):
        try:
            parsed = parse_authorization(candidate)
        except RequestAuthError:
            continue
        assert parsed.origin


# --- signing and verifying ----------------------------------------------------------------------


def sign(key: SigningKey = KEY, content: object = None, **changes: str) -> XMatrix:
    about = {"method": "PUT", "uri": URI, "origin": "hs1", "destination": "hs2", **changes}
    body = None if content is None else encode(content)
    return parse_authorization(sign_request(key, **about, content=body))


def test_a_signed_request_is_verified() -> None:
    signed = sign(content={"pdus": []})
    assert signed.key_id == KEY.key_id
    verify_request(
        signed, KEY.public_key, method="PUT", uri=URI, server_name="hs2", content={"pdus": []}
    )
    verify_request(sign(), KEY.public_key, method="PUT", uri=URI, server_name="hs2")


@pytest.mark.parametrize(
    ("changes", "key", "content"),
    [
        ({"method": "GET"}, KEY, {"a": 1}),
        ({"uri": URI + "c"}, KEY, {"a": 1}),
        ({"origin": "hs3"}, KEY, {"a": 1}),
        ({"destination": "hs3"}, KEY, {"a": 1}),
        ({}, KEY, {"a": 2}),
        ({}, KEY, None),
        ({}, OTHER_KEY, {"a": 1}),
    ],
)
def test_whatever_was_changed_is_noticed(
    changes: dict[str, str], key: SigningKey, content: object
) -> None:
    signed = sign(key, content, **changes)
    claimed = XMatrix("hs1", "hs2", signed.key_id, signed.signature)  # type: ignore[arg-type]  # A literal.
    with pytest.raises(RequestAuthError):
        verify_request(
            claimed, KEY.public_key, method="PUT", uri=URI, server_name="hs2", content={"a": 1}
        )


def test_a_request_for_another_server_is_refused() -> None:
    with pytest.raises(RequestAuthError, match="is for hs2"):
        verify_request(sign(), KEY.public_key, method="PUT", uri=URI, server_name="hs3")


@pytest.mark.parametrize("signature", ["", "abc", "!" * 86, "A" * 86, "A" * 400])
def test_a_malformed_signature_is_refused(signature: str) -> None:
    with pytest.raises(RequestAuthError):
        verify_request(
            header(sig=signature), KEY.public_key, method="PUT", uri=URI, server_name="hs2"
        )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text(max_size=5), JSON, max_size=4),
    st.sampled_from(["GET", "PUT", "POST"]),
    st.from_regex(r"/_matrix/[a-z/%?=&é]{0,10}", fullmatch=True),
)
def test_the_same_is_signed_as_by_signedjson(
    content: dict[str, object], method: str, uri: str
) -> None:
    request = {
        "method": method,
        "uri": uri,
        "origin": "hs1",
        "destination": "hs2",
        "content": content,
    }
    key = signedjson.key.decode_signing_key_base64("ed25519", KEY.version, "A" * 43)
    expected = signedjson.sign.sign_json(request, "hs1", key)["signatures"]["hs1"][KEY.key_id]
    assert sign(KEY, content, method=method, uri=uri).signature == expected


def test_numbers_of_old_rooms_are_read_as_they_were_signed() -> None:
    content = json.loads('{"pdus": [{"content": {"float": 1.5, "big": 1180591620717411303424}}]}')
    request = {"method": "PUT", "uri": URI, "origin": "hs1", "destination": "hs2"}
    key = signedjson.key.decode_signing_key_base64("ed25519", KEY.version, "A" * 43)
    signed = signedjson.sign.sign_json({**request, "content": content}, "hs1", key)
    claimed = header(key=KEY.key_id, sig=signed["signatures"]["hs1"][KEY.key_id])
    of_request = {"method": "PUT", "uri": URI, "server_name": "hs2"}
    verify_request(claimed, KEY.public_key, **of_request, content=content)
    with pytest.raises(RequestAuthError):
        verify_request(claimed, KEY.public_key, **of_request, content={"pdus": []})
