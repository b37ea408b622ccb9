"""Pages on which a stage of authentication is completed, for clients that do not know it.

A page is a form, and once the stage is completed the script that tells the client: the only one
that the page may run. Nothing that comes with a request is repeated in it.

Spec: client-server-api#fallback
"""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import TYPE_CHECKING

from minihs.api.requests import Answer
from minihs.services.accounts import user_interactive_auth
from minihs.services.accounts.user_interactive_auth import DUMMY, PASSWORD, REGISTRATION_TOKEN

if TYPE_CHECKING:
    from minihs.api.requests import Request

SCRIPT = (
    "if (window.onAuthDone) { window.onAuthDone(); } "
    "else if (window.opener && window.opener.postMessage) "
    '{ window.opener.postMessage("authDone", "*"); }'
)
SCRIPT_HASH = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": (
        f"default-src 'none'; script-src 'sha256-{SCRIPT_HASH}'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",  # The session is in the URL.
    "Cache-Control": "no-store",
}
FIELDS = {
    DUMMY: "<p>Nothing has to be typed.</p>",
    PASSWORD: (  # What it is for is not known here, and anybody may hand out a link to the page.
        "<p>With your password you let the client that sent you here do what you asked it for. "
        "Go on only if you have asked it for something just now.</p>"
        '<p><label>User name <input name="user" autocomplete="username" required></label></p>'
        '<p><label>Password <input name="password" type="password" '
        'autocomplete="current-password" required></label></p>'
    ),
    REGISTRATION_TOKEN: (
        '<p><label>Registration token <input name="token" autocomplete="off" required></label></p>'
    ),
}


async def get_page(request: Request) -> Answer:
    """GET /_matrix/client/v3/auth/{authType}/fallback/web - the form of a stage.

    Spec: client-server-api#fallback
    """
    stage = request.path["authType"]
    session_id = request.required_query("session")
    if await user_interactive_auth.is_completed(request.services, session_id, stage):
        return _done(request)
    return _form(request, stage)


async def complete_stage(request: Request) -> Answer:
    """POST /_matrix/client/v3/auth/{authType}/fallback/web - what was typed into it.

    Spec: client-server-api#fallback
    """
    stage = request.path["authType"]
    session_id = request.required_query("session")
    fields = await request.form()
    auth = {
        "identifier": {"type": "m.id.user", "user": fields.get("user", "")},
        "password": fields.get("password", ""),
        "token": fields.get("token", ""),
    }
    failure = await user_interactive_auth.complete_in_browser(
        request.services, session_id, stage, auth
    )
    return _done(request) if failure is None else _form(request, stage, failure)


def _form(request: Request, stage: str, failure: str | None = None) -> Answer:
    said = "" if failure is None else f"<p><strong>{escape(failure)}</strong></p>"
    form = f'<form method="post">{FIELDS[stage]}<p><button>Continue</button></p></form>'
    return Answer(_page(request, said + form), 200 if failure is None else 401, HEADERS)


def _done(request: Request) -> Answer:
    text = f"<p>Thank you. You can go back to your client.</p><script>{SCRIPT}</script>"
    return Answer(_page(request, text), headers=HEADERS)


def _page(request: Request, content: str) -> bytes:
    name = escape(request.services.server_name)
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{name}</title></head><body><h1>{name}</h1>{content}</body></html>"
    ).encode()
