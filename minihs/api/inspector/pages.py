"""The inspector over HTTP: `/_minihs/inspect/`, for administrators, if it is switched on.

Each page is HTML, or with `?format=json` (or `Accept: application/json`) the same values as JSON.
Scripts send `Authorization: Bearer`; a browser signs in with an access token and gets a cookie that
no other site can make it send. Nothing can be changed here but to sign in and out.
"""

from __future__ import annotations

import hmac
import logging
from typing import TYPE_CHECKING

from minihs.api.inspector import rendering
from minihs.api.requests import Answer
from minihs.base.errors import (
    Forbidden,
    MatrixError,
    MissingToken,
    NotFound,
    Unrecognized,
)
from minihs.services.inspector import access, rooms

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from minihs.api.requests import Request

logger = logging.getLogger(__name__)

COOKIE = "minihs_inspector"
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Vary": "Accept, Authorization, Cookie",
}
HTML = {**HEADERS, "Content-Type": "text/html; charset=utf-8"}


async def get_rooms(request: Request) -> Answer:
    """GET /_minihs/inspect/ - the rooms; `?room=` leads to one of them."""

    async def view() -> object:
        return await rooms.list_rooms(request.services, request.query_integer("after", 0))

    wanted = (request.query("room") or "").strip()
    if wanted and _is_on(request):
        return _see_other(rendering.room_path(wanted))
    return await _answer(request, "rooms.html", view)


async def get_room(request: Request) -> Answer:
    """GET /_minihs/inspect/rooms/{roomId} - a room as it is, and its graph before `?before=`."""

    async def view() -> object:
        return await rooms.view_room(request.services, request.path["roomId"], _before(request))

    return await _answer(request, "room.html", view)


async def get_event(request: Request) -> Answer:
    """GET /_minihs/inspect/rooms/{roomId}/events/{eventId} - one event, and why it is refused."""

    async def view() -> object:
        room_id, event_id = request.path["roomId"], request.path["eventId"]
        return await rooms.view_event_of_room(request.services, room_id, event_id)

    return await _answer(request, "event.html", view)


async def get_stylesheet(request: Request) -> Answer:
    """GET /_minihs/inspect/style.css."""
    _require_on(request)
    headers = {**HEADERS, "Content-Type": "text/css; charset=utf-8"}
    return Answer(rendering.stylesheet(), headers=headers, for_any_origin=False)


async def sign_in(request: Request) -> Answer:
    """POST /_minihs/inspect/login - begin a session with an access token."""
    _require_on(request)
    try:
        _require_same_origin(request)
        token = (await request.form()).get("token", "").strip()
        session = await access.begin_session(request.services, token, request.ip)
    except MatrixError as error:
        return _error(request, error)
    logger.info("the inspector has been opened from %s", request.ip)
    lifetime_s = access.SESSION_LIFETIME_MS // 1000
    return _see_other(rendering.ROOT + "/", _cookie(request, session, lifetime_s))


async def sign_out(request: Request) -> Answer:
    """POST /_minihs/inspect/logout - end the session."""
    _require_on(request)
    try:
        _require_same_origin(request)
        session = request.http.cookies.get(COOKIE, "")
        proof = (await request.form()).get("proof", "")
        expected = access.proof_of_session(session)
        if not hmac.compare_digest(proof.encode(errors="replace"), expected.encode()):
            raise Forbidden("This form was not made for the session.")
        await access.end_session(request.services, session)
    except MatrixError as error:
        return _error(request, error)
    return _see_other(rendering.ROOT + "/", _cookie(request, "", 0))


async def _answer(request: Request, template: str, view: Callable[[], Awaitable[object]]) -> Answer:
    """Return what an administrator asked for, and note that they did."""
    _require_on(request)
    try:
        user_id, session = await _admin(request)
        shown = await view()
    except MatrixError as error:
        return _error(request, error)
    # For whoever must answer for it; the line says at which page.
    logger.info("%s looks at the inspector", user_id)
    if _wants_json(request):
        return Answer(shown, headers=HEADERS, for_any_origin=False)
    proof = access.proof_of_session(session) if session else ""
    page = rendering.render(template, view=shown, user_id=user_id, proof=proof)
    return Answer(page, headers=HTML, for_any_origin=False)


async def _admin(request: Request) -> tuple[str, str]:
    """Return the administrator who asks, and their session (empty: they sent their token)."""
    header = request.http.headers.get("Authorization")
    if header is not None:
        scheme, _, token = header.partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else ""
        return await access.admin_of_token(request.services, given, request.ip), ""
    session = request.http.cookies.get(COOKIE)
    if not session:
        raise MissingToken("Sign in with an administrator's access token.")
    return await access.admin_of_session(request.services, session), session


def _error(request: Request, error: MatrixError) -> Answer:
    """Return an error: with the form to sign in, where that is what is missing."""
    if _wants_json(request):
        return Answer(error.body(), error.http_status, HEADERS, for_any_origin=False)
    page = rendering.render(
        "error.html",
        status=error.http_status,
        message=error.message,
        may_sign_in=error.http_status in (401, 403),
        is_new=isinstance(error, MissingToken) and request.http.method == "GET",
        proof="",
        user_id="",
    )
    return Answer(page, error.http_status, HTML, for_any_origin=False)


def _is_on(request: Request) -> bool:
    return request.services.config.inspector


def _require_on(request: Request) -> None:
    if not _is_on(request):
        raise Unrecognized("Unrecognized request.")


def _require_same_origin(request: Request) -> None:
    """Refuse a form that another site sent: browsers say where a request comes from."""
    if request.http.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        raise Forbidden("The form comes from another site.")


def _cookie(request: Request, session: str, lifetime_s: int) -> Mapping[str, str]:
    """Return the header that hands a session to the browser, or with no time to live, takes it."""
    https = (
        request.http.secure
        or request.http.headers.get("X-Forwarded-Proto") == "https"
        or request.services.config.public_base_url.startswith("https:")
    )
    parts = f"{COOKIE}={session}; Path={rendering.ROOT}; Max-Age={lifetime_s}; HttpOnly"
    return {"Set-Cookie": parts + "; SameSite=Strict" + ("; Secure" if https else "")}


def _see_other(path: str, more: Mapping[str, str] | None = None) -> Answer:
    headers = {**HTML, "Location": path, **(more or {})}
    return Answer(b"", 303, headers, for_any_origin=False)


def _wants_json(request: Request) -> bool:
    if (wanted := request.query("format")) is not None:
        return wanted == "json"
    accept = request.http.headers.get("Accept", "")
    return "application/json" in accept and "text/html" not in accept


def _before(request: Request) -> tuple[int, int] | None:
    """Return the place in the room that `?before=` names, `major.minor`.

    Raises:
        NotFound: there is no such place.
    """
    text = request.query("before")
    if text is None:
        return None
    try:
        major, minor = map(int, text[:40].split(".", 1))
    except ValueError:
        raise NotFound("There is no such place in the room.") from None
    if abs(major) >= 2**62 or abs(minor) >= 2**31 - 1:
        raise NotFound("There is no such place in the room.")
    return major, minor
