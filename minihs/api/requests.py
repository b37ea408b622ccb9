"""What a handler is given, and what it may answer.

A handler is `async def handler(request: Request) -> object`: it returns the JSON body of a 200, or
an `Answer` for anything else, and raises `MatrixError` for errors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import parse_qs

import msgspec

from minihs.base.clock import time_limit
from minihs.base.errors import (
    BadJson,
    InvalidParam,
    MissingParam,
    NotJson,
    RequestTimeout,
    TooLarge,
)
from minihs.base.limits import BODY_BYTES_MAX, BODY_TIMEOUT_MS, JSON_DEPTH_MAX
from minihs.protocol import canonical_json
from minihs.protocol.identifiers import parse_room_id

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp import web

    from minihs.base.clock import Clock
    from minihs.protocol.identifiers import RoomId, ServerName
    from minihs.services.accounts.authentication import Requester
    from minihs.services.context import Services

T = TypeVar("T")

INTEGER = re.compile(r"-?[0-9]{1,100}", re.ASCII)
FORM_BYTES_MAX = 8_192
FORM_FIELDS_MAX = 10


@dataclass(frozen=True, slots=True)
class Answer:
    """A response other than a 200 with JSON. `body` is JSON-able, or bytes to send as they are.

    `for_any_origin`: a page of another web site may read it, as it may read the client API.
    """

    body: object
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    for_any_origin: bool = True


@dataclass(frozen=True, slots=True)
class Signed:
    """What a server's signature covers: who it is, and the body as it was verified.

    `content` is the parsed body, an empty object if there was none. Numbers of old rooms' events
    are as they came.
    """

    origin: ServerName
    content: object


def access_token(http: web.Request) -> str | None:
    """Return the access token of a request, empty if it is none; None: there is not any.

    Spec: client-server-api#using-access-tokens
    """
    header = http.headers.get("Authorization")
    if header is None:
        return http.query.get("access_token")
    scheme, _, token = header.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


async def read_body(http: web.Request, bytes_max: int, clock: Clock) -> bytes:
    """Return the raw body, decompressed.

    Raises:
        NotJson: it is declared as a form, which no JSON endpoint takes.
        TooLarge: it has more than `bytes_max` bytes; the rest is not read.
        RequestTimeout: it does not come to its end.
    """
    if not http.can_read_body:
        return b""
    if http.content_type.startswith("multipart/"):
        raise NotJson("The body must be JSON, not a form.")
    too_large = TooLarge(f"The body may have {bytes_max} bytes.")
    if http.content_length is not None and http.content_length > bytes_max:
        raise too_large
    body = bytearray()
    try:
        async with time_limit(clock, BODY_TIMEOUT_MS):
            while piece := await http.content.readany():
                body += piece
                if len(body) > bytes_max:
                    raise too_large
    except TimeoutError:
        raise RequestTimeout("The body did not arrive in time.") from None
    return bytes(body)


class Request:
    """One request: path parameters, query, body, and who makes it."""

    __slots__ = ("_body", "_requester", "_signed", "http", "path", "services")

    def __init__(
        self,
        services: Services,
        http: web.Request,
        path: Mapping[str, str],
        requester: Requester | None,
        signed: Signed | None = None,
    ) -> None:
        self.services = services
        self.http = http
        self.path = path
        self._requester = requester
        self._signed = signed
        self._body: bytes | None = None

    @property
    def requester(self) -> Requester:
        """Who makes the request, on routes that demand an access token."""
        if self._requester is None:
            raise LookupError("this route does not authenticate")
        return self._requester

    @property
    def maybe_requester(self) -> Requester | None:
        """Who makes the request, on routes where an access token is optional."""
        return self._requester

    @property
    def origin(self) -> ServerName:
        """The server that signed the request, on routes that only servers may call."""
        if self._signed is None:
            raise LookupError("this route does not authenticate servers")
        return self._signed.origin

    @property
    def access_token(self) -> str | None:
        """The access token, on routes where it need not be a user's; None: there is none."""
        return access_token(self.http)

    @property
    def ip(self) -> str:
        """The address that the request came from."""
        return self.http.remote or ""

    def query(self, name: str) -> str | None:
        """Return a query parameter, or None."""
        return self.http.query.get(name)

    def query_all(self, name: str) -> list[str]:
        """Return every value of a repeated query parameter."""
        return list(self.http.query.getall(name, []))

    def room_id(self) -> RoomId:
        """Return the room of the path.

        Raises:
            InvalidParam: it is none.
        """
        room_id = parse_room_id(self.path["roomId"])
        if room_id is None:
            raise InvalidParam("The path does not have a room id.")
        return room_id

    def required_query(self, name: str) -> str:
        """Return a query parameter.

        Raises:
            MissingParam: it was not given.
        """
        value = self.http.query.get(name)
        if value is None:
            raise MissingParam(f"Query parameter {name} is missing.")
        return value

    def query_integer(self, name: str, default: int, *, low: int = 0, high: int = 2**53 - 1) -> int:
        """Return a numeric query parameter, capped at `high`.

        Raises:
            InvalidParam: it is not a number, or below `low`.
        """
        text = self.http.query.get(name)
        if text is None:
            return default
        if INTEGER.fullmatch(text) is None:  # `int` takes more: 1_0, spaces, digits of any script.
            raise InvalidParam(f"Query parameter {name} must be an integer.")
        value = int(text)
        if value < low:
            raise InvalidParam(f"Query parameter {name} must be at least {low}.")
        return min(value, high)

    def query_flag(self, name: str) -> bool:
        """Return a boolean query parameter, False where it is not given.

        Raises:
            InvalidParam: it is neither `true` nor `false`.
        """
        text = self.http.query.get(name, "false")
        if text not in ("true", "false"):
            raise InvalidParam(f"Query parameter {name} must be true or false.")
        return text == "true"

    async def body(self) -> bytes:
        """Return the raw body.

        Raises:
            TooLarge: it is larger than any endpoint takes.
            RequestTimeout: it does not come to its end.
            NotJson: it is declared as a form, which no JSON endpoint takes.
        """
        if self._body is None:
            self._body = await read_body(self.http, BODY_BYTES_MAX, self.services.clock)
        return self._body

    async def _shallow_body(self) -> bytes:
        """Return the raw body, if what is in it can be written again: that has a largest depth.

        Raises:
            JsonError: it is not JSON.
            BadJson: it is nested too deeply.
        """
        data = await self.body()
        if data.count(b"[") + data.count(b"{") > JSON_DEPTH_MAX and not canonical_json.is_shallow(
            canonical_json.decode(data), JSON_DEPTH_MAX
        ):
            raise BadJson(f"The body is nested more than {JSON_DEPTH_MAX} levels deep.")
        return data

    async def json(self, kind: type[T]) -> T:
        """Return the body as a msgspec struct; no body counts as an empty object.

        Raises:
            NotJson: the body is not JSON.
            BadJson: it is JSON of another shape; the message names the key.
        """
        try:
            if self._signed is not None:
                return msgspec.convert(self._signed.content, kind)
            data = await self._shallow_body() or b"{}"
            return msgspec.json.decode(data, type=kind)
        except msgspec.ValidationError as error:
            raise BadJson(str(error)) from None
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise NotJson(f"The body is not JSON: {error}") from None

    async def content(self) -> dict[str, object]:
        """Return the body as a JSON object that must be given, as what is to be stored.

        Raises:
            NotJson, BadJson: as `json_object`, and if there is no body.

        Spec: client-server-api#api-standards
        """
        if not await self.body():
            raise NotJson("There is no body; it must be a JSON object.")
        return await self.json_object()

    async def json_and_auth(self, kind: type[T]) -> tuple[T, dict[str, object], object]:
        """Return the body as a struct, as an object without `auth`, and `auth` (None: none).

        For endpoints with user-interactive authentication, which belongs to one body.

        Raises:
            NotJson, BadJson: as `json`.
        """
        body = await self.json_object()
        auth = body.pop("auth", None)
        try:
            return msgspec.convert(body, kind), body, auth
        except msgspec.ValidationError as error:
            raise BadJson(str(error)) from None

    async def form(self) -> dict[str, str]:
        """Return the fields of a form that a browser sent, of each the last value.

        Raises:
            InvalidParam: the body is no form, or one of too many fields.
            TooLarge, RequestTimeout: as `body`.
        """
        if self.http.content_type != "application/x-www-form-urlencoded":
            raise InvalidParam("The body must be a form.")
        body = await read_body(self.http, FORM_BYTES_MAX, self.services.clock)
        try:
            fields = parse_qs(body.decode(errors="replace"), max_num_fields=FORM_FIELDS_MAX)
        except ValueError:
            raise InvalidParam("The form has too many fields.") from None
        return {name: values[-1] for name, values in fields.items()}

    async def json_object(self) -> dict[str, object]:
        """Return the body as a JSON object, whatever it holds; no body counts as an empty one.

        Raises:
            NotJson: the body is not JSON.
            BadJson: it is JSON, but not an object.
        """
        if self._signed is not None:
            value = self._signed.content
        else:
            try:
                value = canonical_json.decode(await self._shallow_body() or b"{}")
            except ValueError as error:
                raise NotJson(f"The body is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise BadJson("The body must be a JSON object.")
        return value
