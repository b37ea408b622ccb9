"""The aiohttp application: one handler that routes, authenticates, and answers in JSON.

Every response carries the CORS headers (Spec: client-server-api#web-browser-clients); unknown paths
are 404 and wrong methods 405, both `M_UNRECOGNIZED` (Spec: client-server-api#api-standards).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import orjson
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.log import server_logger
from multidict import CIMultiDict
from typing_extensions import override

from minihs.api.rate_limits import RateLimiter
from minihs.api.requests import Answer, Request, Signed, access_token, read_body
from minihs.api.router import Router
from minihs.api.routes import R0, ROUTES, V3, Route
from minihs.base import logs
from minihs.base.errors import (
    GuestAccessForbidden,
    InvalidParam,
    MatrixError,
    MissingToken,
    NotJson,
    TooLarge,
    Unavailable,
    Unrecognized,
    UserInteractiveAuthRequired,
)
from minihs.base.limits import BODY_BYTES_MAX, SERVER_BODY_BYTES_MAX
from minihs.base.metrics import stopwatch
from minihs.protocol import unstable
from minihs.protocol.canonical_json import decode_lenient, encode_lenient
from minihs.services.accounts.authentication import Requester, authenticate
from minihs.services.appservices.identity import act_as
from minihs.services.federation.authentication import read_claim, verify_claim
from minihs.services.rooms.server_acls import require_allowed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minihs.services.context import Services

logger = logging.getLogger(__name__)

_OWN_HEADERS = CIMultiDict({"Content-Type": "application/json", "Server": "minihs"})
_HEADERS = CIMultiDict(
    {
        **_OWN_HEADERS,
        "Access-Control-Allow-Origin": "*",
        "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE, PATCH, OPTIONS",
        "Access-Control-Allow-Headers": "X-Requested-With, Content-Type, Authorization",
    }
)


async def _preflight(_request: Request) -> object:
    """Answer a browser that asks whether it may; the headers say so."""
    return {}


# These two, and no others, are not in the table.
PREFLIGHT = Route("OPTIONS", "", _preflight, None, "anybody")
NO_ROUTE = Route("", "", _preflight, None, "anybody")
FOR_PROBES = ("anybody", "anyone_or_user")  # By HEAD: what needs no token.


def build_router() -> Router[Route]:
    """Return the router over the route table."""
    router: Router[Route] = Router()
    for route in ROUTES:
        router.add(route.method, route.path, route)
        if route.path.startswith(V3):  # What v3 was called before the specification had versions.
            router.add(route.method, route.path.replace(V3, R0, 1), route)
    return router


def build_application(services: Services) -> web.Application:
    """Return the aiohttp application that serves `services`."""
    server = _Server(services)
    server_logger.addFilter(_OF_NO_HTTP)
    application = web.Application(client_max_size=BODY_BYTES_MAX)
    application.router.add_route("*", r"/{path:[\s\S]*}", server.handle)  # Lines may end in it.
    return application


class _OfNoHttp(logging.Filter):
    """Leaves out what is logged of bytes that are no HTTP: who sends them may send any number.

    The requester is told. A traceback of ours says no more, but quotes what may be a secret.
    """

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, HttpProcessingError)


_OF_NO_HTTP = _OfNoHttp()
RETRY_AFTER_S = 1  # What is unavailable comes back by itself.


class _Server:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._router = build_router()
        self._limiter = RateLimiter(services.clock) if services.config.rate_limits_on else None
        self._logs_requests = logger.isEnabledFor(logging.DEBUG)

    async def handle(self, http: web.Request) -> web.Response:
        """Answer one request; nothing but a cancellation escapes."""
        began, route = stopwatch(), NO_ROUTE
        logs.request.set((http.method, http.raw_path))
        try:
            route, parameters = self._find(http)
            response = _respond(await self._answer(http, route, parameters))
        except MatrixError as error:
            headers = {}
            if (retry_ms := error.fields.get("retry_after_ms")) is not None:
                headers["Retry-After"] = str(-(-int(str(retry_ms)) // 1000))
            elif error.http_status == Unavailable.status:
                headers["Retry-After"] = str(RETRY_AFTER_S)
            response = _respond(Answer(error.body(), error.http_status, headers))
        except UserInteractiveAuthRequired as required:
            response = _respond(Answer(required.body, 401))
        except web.HTTPRequestEntityTooLarge:
            response = _respond(Answer(TooLarge("The body is too large.").body(), 413))
        except ConnectionResetError:  # Who asked has gone, and will not read this.
            response = _respond(Answer({}, 400))
        except Exception:
            logger.exception("the request failed")
            body = {"errcode": "M_UNKNOWN", "error": "Internal server error."}
            response = _respond(Answer(body, 500))
        if self._services.views.is_closing:  # Nobody is to ask again here.
            response.force_close()
        seconds = stopwatch() - began
        self._services.metrics.observe(route.method, route.path, response.status, seconds)
        if self._logs_requests:
            logger.debug("answered %s in %.1f ms", response.status, seconds * 1000)
        return response

    def _find(self, http: web.Request) -> tuple[Route, Mapping[str, str]]:
        """Return the endpoint that is asked for, and the parameters in its path."""
        if http.method == "OPTIONS":
            return PREFLIGHT, {}
        if "%00" in http.raw_path:  # PostgreSQL's text has no NUL; no name of anything has one.
            raise InvalidParam("There is a NUL in the URL.")
        method = "GET" if http.method == "HEAD" else http.method  # aiohttp leaves the body out.
        path = http.raw_path.partition("?")[0]
        found = self._router.match(method, path)
        if found is None and path.endswith("/"):
            found = self._router.match(method, path.rstrip("/"))
        if found is None:
            raise Unrecognized("Unrecognized request.")
        if isinstance(found, frozenset) or (
            http.method == "HEAD" and found[0].access not in FOR_PROBES
        ):
            raise Unrecognized("This path does not take that method.", status=405)
        return found

    async def _answer(
        self, http: web.Request, route: Route, parameters: Mapping[str, str]
    ) -> object:
        if route.access in ("server", "server_heard_in_room"):
            signed = await self._signed(http)
            if route.access == "server_heard_in_room":
                await require_allowed(self._services, parameters["roomId"], signed.origin)
            return await route.handler(Request(self._services, http, parameters, None, signed))
        requester = await self._requester(http, route)
        if (
            self._limiter is not None
            and route.limit != "none"
            and not self._is_unlimited(http, requester)
        ):
            who = requester.user_id if requester is not None else (http.remote or "")
            if requester is None and (delay_id := parameters.get("delayId")) is not None:
                self._limiter.check("read", who)  # One machine manages the events of many.
                who = f"{who} {delay_id}"
            self._limiter.check(route.limit, who)
        if requester is not None and http.method == "GET":
            # What one process has told a user, every other must know when they read it.
            await self._services.follower.wait_for(requester.position)
        return await route.handler(Request(self._services, http, parameters, requester))

    def _is_unlimited(self, http: web.Request, requester: Requester | None) -> bool:
        """Return whether it is an application service that asks, which may as often as it likes."""
        if requester is not None:
            return not requester.rate_limited
        services = self._services.appservices
        return bool(services) and services.of_token(access_token(http)) is not None

    async def _signed(self, http: web.Request) -> Signed:
        """Return the server that makes the request, and the body that it signed."""
        claim = await read_claim(self._services, http.headers.getall("Authorization", []))
        body = await read_body(http, SERVER_BODY_BYTES_MAX, self._services.clock)
        if not body:
            origin = verify_claim(self._services, claim, http.method, http.raw_path)
            return Signed(origin, {})
        try:
            content = decode_lenient(body)
        except ValueError as error:
            raise NotJson(f"The body is not JSON: {error}") from None
        origin = verify_claim(self._services, claim, http.method, http.raw_path, content)
        return Signed(origin, content)

    async def _requester(self, http: web.Request, route: Route) -> Requester | None:
        if route.access == "anybody":
            return None
        given = access_token(http)
        service = self._services.appservices.of_token(given)
        if service is not None:
            device_id = unstable.APPSERVICE_DEVICE_ID_PARAMETER.either(http.query)
            return await act_as(
                self._services,
                service,
                http.query.get("user_id"),
                None if device_id is None else str(device_id),
            )
        try:
            requester = await authenticate(self._services, given, http.remote or "")
        except MissingToken:
            if route.access == "anyone_or_user":
                return None
            raise
        if requester.guest and route.access == "user":
            raise GuestAccessForbidden("Guests may not do this.")
        return requester


def _respond(answer: object) -> web.Response:
    status, headers = 200, _HEADERS.copy()  # aiohttp adds to what it is given.
    if isinstance(answer, Answer):
        status = answer.status
        if not answer.for_any_origin:
            headers = _OWN_HEADERS.copy()
        headers.update(answer.headers)
        answer = answer.body
    body = answer if isinstance(answer, bytes) else _json(answer)
    return web.Response(body=body, status=status, headers=headers)


def _json(answer: object) -> bytes:
    try:
        return orjson.dumps(answer)
    except TypeError:  # A number that only an event of an old room can have.
        return encode_lenient(answer)
