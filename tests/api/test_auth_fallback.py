"""Stages of authentication that are completed in a browser."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import TYPE_CHECKING

import pytest

from minihs.api.client.auth_fallback import HEADERS
from minihs.base.clock import ManualClock
from minihs.services.accounts.user_interactive_auth import SESSION_LIFETIME_MS
from minihs.storage import registration_tokens
from tests.helpers.browser import chromium, find_chromium
from tests.helpers.homeserver import PASSWORD, running_homeserver

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.homeserver import Homeserver

pytestmark = pytest.mark.spec("client-server-api#fallback")

WISH = {"username": "carol", "password": PASSWORD}


def page_path(stage: str, session: str) -> str:
    return f"/_matrix/client/v3/auth/{stage}/fallback/web?session={session}"


async def begin(homeserver: Homeserver) -> str:
    """Begin to register Carol; return the session."""
    challenge = await homeserver.stranger().request("POST", "/register", WISH)
    assert challenge.status == 401
    return challenge.json["session"]


async def get(homeserver: Homeserver, path: str) -> tuple[int, str]:
    async with homeserver.client.get(path) as answer:
        return answer.status, await answer.text()


async def post(homeserver: Homeserver, path: str, **fields: str) -> tuple[int, str]:
    async with homeserver.client.post(path, data=fields) as answer:
        return answer.status, await answer.text()


async def test_a_registration_goes_on_once_its_stage_is_completed(homeserver: Homeserver) -> None:
    session = await begin(homeserver)
    path = page_path("m.login.dummy", session)
    status, page = await get(homeserver, path)
    assert (status, "<form method" in page, "<script" in page) == (200, True, False)
    early = await homeserver.stranger().request(
        "POST", "/register", {**WISH, "auth": {"session": session}}
    )
    assert early.status == 401

    for answer in (await post(homeserver, path), await get(homeserver, path)):
        status, page = answer
        assert (status, "<form" in page) == (200, False)
        assert "window.onAuthDone()" in page
        assert 'window.opener.postMessage("authDone", "*")' in page

    body = {**WISH, "auth": {"session": session}}
    made = await homeserver.stranger().call("POST", "/register", body)
    assert made["user_id"] == "@carol:hs1"
    assert (await get(homeserver, path))[0] == 404


async def test_a_registration_token_is_shown_in_a_browser(
    database_url: str, tmp_path: Path
) -> None:
    async with running_homeserver(database_url, tmp_path, registration="token") as server:
        await registration_tokens.insert_registration_token(server.services.db, "tea", 1, None)
        session = await begin(server)
        path = page_path("m.login.registration_token", session)
        for wrong in ("coffee", "", "te\0a"):
            status, page = await post(server, path, token=wrong)
            assert (status, "This registration token is not valid." in page) == (401, True)
            assert "<script" not in page
        assert (await post(server, path, token="tea"))[0] == 200
        body = {**WISH, "auth": {"session": session}}
        assert (await server.stranger().call("POST", "/register", body))["user_id"] == "@carol:hs1"
        token = await registration_tokens.fetch_registration_token(server.services.db, "tea")
        assert token is not None
        assert token.completed == 1


async def test_a_password_authorizes_what_its_user_asked_for(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    body = {"devices": [bob.device_id or "X"]}

    async def begin_as_alice() -> str:
        return (await alice.request("POST", "/delete_devices", body)).json["session"]

    session = await begin_as_alice()
    path = page_path("m.login.password", session)
    _, page = await get(homeserver, path)
    assert "Go on only if you have asked it for something just now." in page
    for user, password in (("alice", "wrong"), ("nobody", PASSWORD), ("", ""), ("@a:b", PASSWORD)):
        status, page = await post(homeserver, path, user=user, password=password)
        assert (status, "Wrong password." in page) == (401, True)
    assert (await post(homeserver, path, user="@alice:hs1", password=PASSWORD))[0] == 200
    await alice.call("POST", "/delete_devices", {**body, "auth": {"session": session}})

    session = await begin_as_alice()
    path = page_path("m.login.password", session)
    assert (await post(homeserver, path, user="bob", password=PASSWORD))[0] == 200
    refused = await alice.request("POST", "/delete_devices", {**body, "auth": {"session": session}})
    assert (refused.status, refused.json["errcode"]) == (403, "M_FORBIDDEN")


async def test_a_stage_that_was_not_asked_for_authorizes_nothing(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    session = (await alice.request("POST", "/account/deactivate", {})).json["session"]
    assert (await post(homeserver, page_path("m.login.dummy", session)))[0] == 200
    refused = await alice.request("POST", "/account/deactivate", {"auth": {"session": session}})
    assert refused.status == 401
    assert (await alice.request("GET", "/account/whoami")).status == 200


async def test_stages_and_sessions_that_there_are_not(database_url: str, tmp_path: Path) -> None:
    clock = ManualClock()
    async with running_homeserver(database_url, tmp_path, clock=clock) as server:
        session = await begin(server)
        stranger = server.stranger()
        base = "/_matrix/client/v3/auth/{}/fallback/web"
        for stage, query, status, errcode in (
            ("m.login.sso", {"session": session}, 404, "M_UNRECOGNIZED"),
            ("<b>", {"session": session}, 404, "M_UNRECOGNIZED"),
            ("m.login.dummy", {"session": "none"}, 404, "M_NOT_FOUND"),
            ("m.login.dummy", {}, 400, "M_MISSING_PARAM"),
        ):
            answer = await stranger.request("GET", base.format(stage), **query)
            assert (answer.status, answer.json["errcode"]) == (status, errcode)
        answer = await stranger.request("POST", base.format("m.login.dummy"), {}, session=session)
        assert (answer.status, answer.json["errcode"]) == (400, "M_INVALID_PARAM")
        clock.advance_ms(SESSION_LIFETIME_MS + 1)
        assert (await get(server, page_path("m.login.dummy", session)))[0] == 404


async def test_the_page_may_run_its_one_script_only(homeserver: Homeserver) -> None:
    session = await begin(homeserver)
    path = page_path("m.login.dummy", session)
    _, page = await post(homeserver, path)
    (script,) = re.findall("<script>(.*?)</script>", page)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    async with homeserver.client.get(path) as answer:
        assert dict(HEADERS).items() <= dict(answer.headers).items()
        policy = dict(
            part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; ")
        )
    assert policy == {
        "default-src": "'none'",
        "script-src": f"'sha256-{digest}'",
        "form-action": "'self'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    assert answer.headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.skipif(find_chromium() is None, reason="there is no Chromium on this machine")
async def test_a_browser_tells_the_client_that_the_stage_is_completed(
    homeserver: Homeserver,
) -> None:
    url = homeserver.client.make_url("/")
    path = page_path("m.login.dummy", await begin(homeserver))
    async with chromium() as browser:
        page = await browser.open(str(url).rstrip("/") + path)
        source = "window.onAuthDone = () => { window.isTold = true; };"
        await browser.call("Page.addScriptToEvaluateOnNewDocument", page.session_id, source=source)
        await page.leave_by("document.querySelector('button').click()")
        assert await page.evaluate("window.isTold") is True
        assert page.complaints == []
