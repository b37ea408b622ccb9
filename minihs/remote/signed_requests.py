"""Signed requests to other servers, and what comes back: the JSON of a success, or a `RemoteError`.

No request is made while the calling task has a database transaction open: a slow peer must not hold
our rows.

Spec: server-server-api#authentication
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import urlencode

from minihs.base.limits import (
    REMOTE_ANSWER_BYTES_MAX,
    REMOTE_KEYS_BYTES_MAX,
    REMOTE_KEYS_TIMEOUT_MS,
    REMOTE_QUERY_TIMEOUT_MS,
    REMOTE_SEND_TIMEOUT_MS,
    REMOTE_STATE_BYTES_MAX,
    REMOTE_STATE_TIMEOUT_MS,
    REMOTE_TIMEOUT_MS,
)
from minihs.protocol.canonical_json import (
    CanonicalJsonError,
    decode,
    decode_lenient,
    encode_lenient,
    encode_strict,
)
from minihs.protocol.identifiers import parse_server_name
from minihs.protocol.request_auth import sign_request
from minihs.remote.transport import OutgoingRequest, RawAnswer, RemoteError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from minihs.protocol.identifiers import ServerName
    from minihs.protocol.signatures import SigningKey
    from minihs.remote.transport import Transport

Answer: TypeAlias = "dict[str, object] | RemoteError"
Query: TypeAlias = "Sequence[tuple[str, str]]"
Content: TypeAlias = "Mapping[str, object] | bytes"

_SUCCESS = range(200, 300)
_NO_SUCH_ENDPOINT = (400, 404, 405)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long an answer may take and how large it may be; whether it may hold PDUs."""

    timeout_ms: int = REMOTE_TIMEOUT_MS
    answer_bytes_max: int = REMOTE_ANSWER_BYTES_MAX
    holds_pdus: bool = False


PLAIN = Limits()
QUERY = Limits(REMOTE_QUERY_TIMEOUT_MS)
HANDSHAKE = Limits(REMOTE_QUERY_TIMEOUT_MS, holds_pdus=True)
SEND = Limits(REMOTE_SEND_TIMEOUT_MS)
PDUS = Limits(holds_pdus=True)
STATE = Limits(REMOTE_STATE_TIMEOUT_MS, REMOTE_STATE_BYTES_MAX, holds_pdus=True)
KEYS = Limits(REMOTE_KEYS_TIMEOUT_MS, REMOTE_KEYS_BYTES_MAX)


class SignedRequests:
    """What makes our requests.

    `is_transaction_open` says whether the calling task holds a transaction. `is_backing_off` says
    whether a server is known to be down: requests then fail at once, unless they are made to find
    out (`ignore_back_off`).
    """

    def __init__(
        self,
        server_name: ServerName,
        signing_key: SigningKey,
        transport: Transport,
        *,
        is_transaction_open: Callable[[], bool],
        is_backing_off: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._server_name = server_name
        self._signing_key = signing_key
        self._transport = transport
        self._is_transaction_open = is_transaction_open
        self.is_backing_off = is_backing_off

    async def request(
        self, destination: str, method: str, path: str, *, query: Query = (),
        content: Content | None = None, limits: Limits = PLAIN, ignore_back_off: bool = False,
    ) -> Answer:  # fmt: skip
        """Make a request; return the object of a successful answer.

        `path` is percent-encoded. `content` as bytes must be Canonical JSON. Answers that hold PDUs
        are read so that the numbers of old rooms stay as they were signed.

        Raises:
            RuntimeError: a database transaction is open.

        Spec: server-server-api#request-authentication
        """
        answer = await self._json(
            destination, method, path, query, content, limits, ignore_back_off=ignore_back_off
        )
        return _checked(answer, destination, {})

    async def get(
        self, destination: str, path: str, query: Query, limits: Limits, **shape: type
    ) -> Answer:
        """Return the answer to a GET: an object with the keys of `shape`, of their types."""
        answer = await self._json(destination, "GET", path, query, None, limits)
        return _checked(answer, destination, shape)

    async def put(
        self, destination: str, path: str, content: Content, limits: Limits, **shape: type
    ) -> Answer:
        """Return the answer to a PUT, as `get`."""
        answer = await self._json(destination, "PUT", path, (), content, limits)
        return _checked(answer, destination, shape)

    async def put_v1(
        self, destination: str, path: str, content: Content, limits: Limits, **shape: type
    ) -> Answer:
        """Return the answer to a PUT of version 1, which may come as `[200, {…}]`."""
        match await self._json(destination, "PUT", path, (), content, limits):
            case [int(), dict() as body]:
                return _checked(body, destination, shape)
            case answer:
                return _checked(answer, destination, shape)

    async def post(
        self, destination: str, path: str, content: Content, limits: Limits, **shape: type
    ) -> Answer:
        """Return the answer to a POST, as `get`."""
        answer = await self._json(destination, "POST", path, (), content, limits)
        return _checked(answer, destination, shape)

    async def _json(
        self, destination: str, method: str, path: str, query: Query,
        content: Content | None, limits: Limits, *, ignore_back_off: bool = False,
    ) -> object:  # fmt: skip
        """Return the JSON of a successful answer, or a `RemoteError`."""
        if self._is_transaction_open():
            raise RuntimeError(f"a request to {destination!r} while a transaction is open")
        if parse_server_name(destination) is None:
            return RemoteError("unreachable", "?", "not a server name")
        if destination == self._server_name:
            return RemoteError("unreachable", destination, "that is this server")
        if self.is_backing_off(destination) and not ignore_back_off:
            return RemoteError("unreachable", destination, "it was down a moment ago")
        target = f"{path}?{urlencode(query)}" if query else path
        body = content if isinstance(content, bytes) or content is None else _encode(content)
        authorization = sign_request(
            self._signing_key,
            method=method,
            uri=target,
            origin=self._server_name,
            destination=destination,
            content=body,
        )
        headers = {"Authorization": authorization}
        if body is not None:
            headers["Content-Type"] = "application/json"
        answer = await self._transport.send(
            OutgoingRequest(
                destination,
                method,
                target,
                headers,
                body,
                limits.timeout_ms,
                limits.answer_bytes_max,
            )
        )
        if isinstance(answer, RemoteError):
            return answer
        if answer.status not in _SUCCESS:
            return _refusal(destination, answer)
        try:
            return decode_lenient(answer.body) if limits.holds_pdus else decode(answer.body)
        except ValueError as error:
            return RemoteError("bad_answer", destination, f"not JSON: {error}", answer.status)


def _encode(content: Mapping[str, object]) -> bytes:
    """Return the Canonical JSON of a body, which may hold an event with an old room's numbers."""
    try:
        return encode_strict(content)
    except CanonicalJsonError:
        return encode_lenient(content)


def _refusal(destination: str, answer: RawAnswer) -> RemoteError:
    try:
        body = decode(answer.body)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        body = {}
    errcode, message = body.get("errcode"), body.get("error")
    retry_after_ms = body.get("retry_after_ms")
    return RemoteError(
        "refused",
        destination,
        message if isinstance(message, str) else "",
        answer.status,
        errcode if isinstance(errcode, str) else "",
        retry_after_ms if isinstance(retry_after_ms, int) else None,
        body,
    )


def _checked(answer: object, destination: str, shape: Mapping[str, type]) -> Answer:
    """Return the answer if it is an object with these keys of these types."""
    if isinstance(answer, RemoteError):
        return answer
    if not isinstance(answer, dict):
        return RemoteError("bad_answer", destination, "not a JSON object", 200)
    for name, kind in shape.items():
        if type(answer.get(name)) is not kind:  # In Python, true is an integer.
            return RemoteError("bad_answer", destination, f"{name} is missing or wrong", 200)
    return answer


def is_missing(answer: Answer) -> bool:
    """Return whether an answer says that there is no such endpoint."""
    if not isinstance(answer, RemoteError) or answer.kind != "refused":
        return False
    if answer.errcode == "M_UNRECOGNIZED":
        return answer.status in _NO_SUCH_ENDPOINT
    return not answer.errcode and answer.status in (404, 405)
