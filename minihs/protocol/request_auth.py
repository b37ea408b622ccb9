"""How servers sign their requests to each other: the `X-Matrix` authorization scheme.

Signed is a JSON object of the method, the target, both server names and the body. It is never
built: its Canonical JSON is put together from parts that are canonical already, so signing a
request costs one signature and no second pass over the body.

The header is read strictly, by the grammar of RFC 9110, with the one leniency that the
specification asks for: colons need no quotes.

Spec: server-server-api#request-authentication
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nacl.bindings import crypto_sign_open
from nacl.exceptions import CryptoError

from minihs.protocol.canonical_json import (
    CanonicalJsonError,
    encode,
    encode_lenient,
    encode_strict,
)
from minihs.protocol.hashes import decode_base64
from minihs.protocol.identifiers import ServerName, parse_server_name
from minihs.protocol.signatures import ALGORITHM

if TYPE_CHECKING:
    from minihs.protocol.signatures import SigningKey

_SIGNATURE_BYTES: Final = 64
_SCHEME: Final = re.compile(r"X-Matrix +", re.IGNORECASE)
_PARAMETER: Final = re.compile(
    r"""
    ([!\#$%&'*+\-.^_`|~0-9A-Za-z]+)             # A name: a token.
    [ \t]*=[ \t]*
    (?: "((?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\[^\x00-\x08\x0a-\x1f\x7f])*)"   # A quoted string,
      | ([!\#$%&'*+\-.^_`|~0-9A-Za-z:]+) )      # or a token, which may have colons.
    [ \t]*(?=,|\Z)
    """,
    re.VERBOSE,
)
_ESCAPE: Final = re.compile(r"\\(.)")


class RequestAuthError(ValueError):
    """A request is not authenticated: `401 M_UNAUTHORIZED`."""


@dataclass(frozen=True, slots=True)
class XMatrix:
    """What an `Authorization: X-Matrix` header says; nothing of it is verified yet.

    `destination` is None where an older server left it out.
    """

    origin: ServerName
    destination: str | None
    key_id: str
    signature: str


def sign_request(
    key: SigningKey,
    *,
    method: str,
    uri: str,
    origin: str,
    destination: str,
    content: bytes | None = None,
) -> str:
    """Return the value of the `Authorization` header for a request.

    `uri` is the target from `/_matrix` on with its query, as it stands in the request line.
    `content` is the body in Canonical JSON (which may then be sent as it is), None without a body.

    Spec: server-server-api#request-authentication
    """
    signature = key.sign(_signed_bytes(method, uri, origin, destination, content))
    return (
        f'X-Matrix origin="{origin}",destination="{destination}",'
        f'key="{key.key_id}",sig="{signature}"'
    )


def parse_authorization(header: str) -> XMatrix:
    """Return what the value of an `Authorization` header says.

    Unknown parameters are ignored. A parameter given twice is refused: two readers might each
    believe another one.

    Raises:
        RequestAuthError: it is no header of this scheme, or malformed, or incomplete.

    Spec: server-server-api#request-authentication
    """
    scheme = _SCHEME.match(header)
    if scheme is None:
        raise RequestAuthError("the Authorization header is not of the scheme X-Matrix")
    parameters: dict[str, str] = {}
    position = _skip_separators(header, scheme.end())
    while position < len(header):
        found = _PARAMETER.match(header, position)
        if found is None:
            raise RequestAuthError("the Authorization header is malformed")
        name, quoted, token = found.groups()
        value = token if quoted is None else _ESCAPE.sub(r"\1", quoted)
        if name.lower() in parameters:
            raise RequestAuthError(f"the Authorization header gives {name} twice")
        parameters[name.lower()] = value
        position = _skip_separators(header, found.end())
    return _read_parameters(parameters)


def _skip_separators(header: str, position: int) -> int:
    return len(header) - len(header[position:].lstrip(" \t,"))


def _read_parameters(parameters: dict[str, str]) -> XMatrix:
    for name in ("origin", "key", "sig"):
        if name not in parameters:
            raise RequestAuthError(f"the Authorization header gives no {name}")
    origin = parse_server_name(parameters["origin"])
    if origin is None:
        raise RequestAuthError("the origin is not a server name")
    key_id = parameters["key"]
    if not key_id.startswith(f"{ALGORITHM}:"):
        raise RequestAuthError(f"the key is not an {ALGORITHM} key")
    return XMatrix(origin, parameters.get("destination"), key_id, parameters["sig"])


def check_destination(header: XMatrix, server_name: str) -> None:
    """Check that a request is meant for us, as far as it says for whom it is meant.

    Raises:
        RequestAuthError: it is meant for another server: replayed, or misrouted.

    Spec: server-server-api#request-authentication
    """
    if header.destination is not None and header.destination != server_name:
        raise RequestAuthError(f"the request is for {header.destination}, not for {server_name}")


_NO_BODY: Final = object()


def verify_request(
    header: XMatrix,
    verify_key: bytes,
    *,
    method: str,
    uri: str,
    server_name: str,
    content: object = _NO_BODY,
) -> None:
    """Check that the origin signed the request. `verify_key` is its key of the ID `header.key_id`.

    `server_name` is ours; a request without destination was signed without it. `content` is the
    parsed body, left out when there was none. A body may hold events of room versions 1 to 5, and
    so numbers that are outside Canonical JSON; they are then read as those rooms hash them.

    Raises:
        RequestAuthError: the request is for another server, or the signature is wrong.

    Spec: server-server-api#request-authentication
    """
    check_destination(header, server_name)
    signature = decode_base64(header.signature)
    if signature is None or len(signature) != _SIGNATURE_BYTES:
        raise RequestAuthError("the signature is malformed")
    body = None if content is _NO_BODY else _canonical(content)
    try:
        message = _signed_bytes(method, uri, header.origin, header.destination, body)
        crypto_sign_open(signature + message, verify_key)
    except (CryptoError, ValueError) as error:  # A target that is no Unicode text is one too.
        raise RequestAuthError(f"the signature of {header.origin} is wrong") from error


def _canonical(content: object) -> bytes:
    try:
        return encode_strict(content)
    except CanonicalJsonError:
        pass
    try:
        return encode_lenient(content)
    except CanonicalJsonError as error:
        raise RequestAuthError("the body cannot be signed") from error


def _signed_bytes(
    method: str, uri: str, origin: str, destination: str | None, content: bytes | None
) -> bytes:
    """Return the Canonical JSON that is signed: its keys are in order as they stand here."""
    return b'{%b%b"method":%b,"origin":%b,"uri":%b}' % (
        b"" if content is None else b'"content":%b,' % content,
        b"" if destination is None else b'"destination":%b,' % encode(destination),
        encode(method),
        encode(origin),
        encode(uri),
    )
