"""Registration, from the first 401 to the account. Spec: client-server-api#account-registration."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from minihs.services.accounts import registration
from minihs.storage import registration_tokens
from tests.helpers.homeserver import PASSWORD, running_homeserver

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.homeserver import Homeserver, Response

DUMMY = {"type": "m.login.dummy"}
VALIDITY = "/_matrix/client/v1/register/m.login.registration_token/validity"


async def register(homeserver: Homeserver, username: str | None = None, **body: object) -> Response:
    """Ask for an account in one request."""
    named = {"username": username} if username is not None else {}
    body = {"password": PASSWORD, "auth": DUMMY, **named, **body}
    return await homeserver.request("POST", "/register", body)


async def test_a_request_without_auth_is_told_the_flows(homeserver: Homeserver):
    response = await homeserver.request("POST", "/register", {})

    assert response.status == 401
    assert response.json["flows"] == [{"stages": ["m.login.dummy"]}]
    assert response.json["params"] == {}
    assert response.json["session"]
    assert response.headers["Content-Type"] == "application/json"


async def test_alice_registers_in_two_requests_and_her_session_is_used_up(homeserver: Homeserver):
    wish = {"username": "alice", "password": PASSWORD, "device_id": "ALICESPHONE"}
    session = (await homeserver.request("POST", "/register", wish)).json["session"]

    auth = {**DUMMY, "session": session}
    response = await homeserver.request("POST", "/register", {**wish, "auth": auth})
    again = await homeserver.request("POST", "/register", {**wish, "username": "al", "auth": auth})

    assert response.status == 200
    assert response.json["user_id"] == "@alice:hs1"
    assert response.json["device_id"] == "ALICESPHONE"
    assert again.status == 401
    assert again.json["session"] != session


async def test_who_forgets_the_password_keeps_the_session(homeserver: Homeserver):
    session = (await homeserver.request("POST", "/register", {})).json["session"]
    auth = {**DUMMY, "session": session}
    forgot = await homeserver.request("POST", "/register", {"username": "alice", "auth": auth})
    assert (forgot.status, forgot.json["errcode"]) == (400, "M_MISSING_PARAM")
    wish = {"username": "alice", "password": PASSWORD, "auth": auth}
    assert (await homeserver.request("POST", "/register", wish)).status == 200


@pytest.mark.parametrize("name", ["q", "3", ".", "_", "=", "-", "/", "m.login", "a+b"])
async def test_a_name_within_the_grammar_is_taken(homeserver: Homeserver, name: str):
    response = await register(homeserver, name)

    assert response.json["user_id"] == f"@{name}:hs1"


@pytest.mark.parametrize(
    "name", ["", *"!\":?\\@[]{|}£é\n'", "İ", "a" * 252, "@alice:hs1"], ids=repr
)
async def test_a_name_outside_the_grammar_is_refused_with_and_without_auth(
    homeserver: Homeserver, name: str
):
    response = await register(homeserver, name)
    before_auth = await register(homeserver, name, auth=None)
    available = await homeserver.request("GET", "/register/available", query={"username": name})

    for answer in (response, before_auth, available):
        assert (answer.status, answer.json["errcode"]) == (400, "M_INVALID_USERNAME")


async def test_a_name_with_a_nul_reaches_no_database(homeserver: Homeserver):
    response = await register(homeserver, "a\0b")
    available = await homeserver.request("GET", "/register/available?username=a%00b")

    assert (response.status, response.json["errcode"]) == (400, "M_INVALID_USERNAME")
    assert (available.status, available.json["errcode"]) == (400, "M_INVALID_PARAM")


async def test_capitals_become_small_letters(homeserver: Homeserver):
    response = await register(homeserver, "User-UPPER")

    assert response.json["user_id"] == "@user-upper:hs1"


async def test_a_taken_name_is_refused_before_authentication(homeserver: Homeserver):
    await homeserver.register("alice")

    for auth in (DUMMY, None):
        response = await register(homeserver, "ALICE", auth=auth)
        assert (response.status, response.json["errcode"]) == (400, "M_USER_IN_USE")
    available = await homeserver.request("GET", "/register/available", query={"username": "alice"})
    assert (available.status, available.json["errcode"]) == (400, "M_USER_IN_USE")
    free = await homeserver.request("GET", "/register/available", query={"username": "bob"})
    assert free.json == {"available": True}


async def test_names_are_asked_for_while_they_are_typed(database_url: str, tmp_path: Path):
    async with running_homeserver(
        database_url, tmp_path, registration="open", rate_limits="on"
    ) as homeserver:

        async def ask(**query: str) -> tuple[int, object]:
            answer = await homeserver.request("GET", "/register/available", query=query)
            return answer.status, answer.json.get("errcode")

        for end in range(1, 12):
            assert await ask(username="alexander-the"[:end]) == (200, None)
        await register(homeserver, "alice")
        assert await ask(username="alice") == (400, "M_USER_IN_USE")
        assert await ask(username="no name") == (400, "M_INVALID_USERNAME")
        assert await ask() == (400, "M_MISSING_PARAM")


async def test_without_a_name_the_server_chooses_one(homeserver: Homeserver):
    first, second = await register(homeserver), await register(homeserver)

    assert first.status == second.status == 200
    assert first.json["user_id"] != second.json["user_id"]


async def test_no_session_is_begun_if_login_is_inhibited(homeserver: Homeserver):
    response = await register(homeserver, "alice", inhibit_login=True)

    assert response.json == {"user_id": "@alice:hs1"}


@pytest.mark.parametrize(
    ("body", "errcode"),
    [
        pytest.param(b'{"password": "\x81"}', "M_NOT_JSON", id="not UTF-8"),
        pytest.param(b"{", "M_NOT_JSON", id="not JSON"),
        pytest.param(b'"text"', "M_BAD_JSON", id="not an object"),
        pytest.param({"username": 1}, "M_BAD_JSON", id="name is a number"),
        pytest.param({"auth": 1, "password": "x"}, "M_BAD_JSON", id="auth is a number"),
        pytest.param(
            {"auth": {**DUMMY, "session": 1}, "password": "x"}, "M_BAD_JSON", id="session"
        ),
        pytest.param({"auth": DUMMY}, "M_MISSING_PARAM", id="no password"),
        pytest.param({"auth": DUMMY, "password": ""}, "M_WEAK_PASSWORD", id="empty password"),
        pytest.param(
            {"auth": DUMMY, "password": "x", "device_id": "\0"}, "M_INVALID_PARAM", id="NUL"
        ),
    ],
)
async def test_a_body_of_another_shape_is_a_400(homeserver: Homeserver, body: object, errcode: str):
    response = await homeserver.request("POST", "/register", body)

    assert (response.status, response.json["errcode"]) == (400, errcode)


async def test_a_stage_that_is_not_offered_fails_and_the_flows_come_again(homeserver: Homeserver):
    response = await register(homeserver, "alice", auth={"type": "m.login.recaptcha"})

    assert response.status == 401
    assert response.json["errcode"] == "M_UNRECOGNIZED"
    assert response.json["flows"] == [{"stages": ["m.login.dummy"]}]


async def test_two_who_want_one_name_at_once_do_not_both_get_it(homeserver: Homeserver):
    answers = await asyncio.gather(*(register(homeserver, "alice") for _ in range(5)))

    assert sorted(answer.status for answer in answers) == [200, 400, 400, 400, 400]


async def test_guests_are_off_by_default(homeserver: Homeserver):
    response = await homeserver.request("POST", "/register", {}, {"kind": "guest"})

    assert (response.status, response.json["errcode"]) == (403, "M_FORBIDDEN")


@pytest.mark.spec("client-server-api#guest-access")
async def test_a_guest_may_not_do_what_users_do(database_url: str, tmp_path: Path):
    async with running_homeserver(database_url, tmp_path, allow_guests=True) as homeserver:
        guest = await homeserver.request(
            "POST", "/register", {"username": "alice", "device_id": "MINE"}, {"kind": "guest"}
        )
        headers = {"Authorization": f"Bearer {guest.json['access_token']}"}
        whoami = await homeserver.request("GET", "/account/whoami", headers=headers)
        user_id = whoami.json["user_id"]
        path = f"/profile/{user_id}"
        name = await homeserver.request(
            "PUT", f"{path}/displayname", {"displayname": "Guest"}, headers=headers
        )
        zone = await homeserver.request("PUT", f"{path}/m.tz", {"m.tz": "UTC"}, headers=headers)
        devices = await homeserver.request("GET", "/devices", headers=headers)
        direct = await homeserver.request(
            "PUT", f"/user/{user_id}/account_data/m.direct", {}, headers=headers
        )

    assert guest.json["user_id"] != "@alice:hs1"
    assert guest.json["device_id"] != "MINE"
    assert whoami.json["is_guest"] is True
    assert (name.status, devices.status) == (200, 200)
    for refused in (zone, direct):
        assert (refused.status, refused.json["errcode"]) == (403, "M_GUEST_ACCESS_FORBIDDEN")


async def test_C01_registration_is_closed_unless_the_configuration_says_otherwise(
    database_url: str, tmp_path: Path
):
    async with running_homeserver(database_url, tmp_path, registration="closed") as homeserver:
        answers = [
            await register(homeserver, "alice"),
            await register(homeserver, "alice", auth=None),
            await homeserver.request("GET", "/register/available", query={"username": "alice"}),
            await homeserver.request("GET", VALIDITY, query={"token": "t"}),
        ]

    assert [(a.status, a.json["errcode"]) for a in answers] == [(403, "M_FORBIDDEN")] * 4


async def test_C02_the_last_use_of_a_token_goes_to_one_of_those_who_race_for_it(
    database_url: str, tmp_path: Path
):
    async with running_homeserver(database_url, tmp_path, registration="token") as homeserver:
        await registration_tokens.insert_registration_token(homeserver.services.db, "t", 2, None)
        auth = {"type": "m.login.registration_token", "token": "t"}
        first = await register(homeserver, "first", auth=auth)
        racers = await asyncio.gather(
            *(register(homeserver, f"racer{n}", auth=auth) for n in range(4))
        )
        late = await register(homeserver, "late", auth=auth)
        valid = await homeserver.request("GET", VALIDITY, query={"token": "t"})
        names = [await homeserver.request("GET", f"/profile/@racer{n}:hs1") for n in range(4)]

    assert first.status == 200
    assert sorted(r.status for r in racers) == [200, 401, 401, 401]
    assert (late.status, late.json["errcode"]) == (401, "M_UNAUTHORIZED")
    assert late.json["flows"] == [{"stages": ["m.login.registration_token"]}]
    assert valid.json == {"valid": False}
    # Who did not get the last use has no account either.
    assert sorted(n.status for n in names) == [200, 404, 404, 404]


@pytest.mark.parametrize("token", ["wrong", "", "x" * 65, "expired"])
async def test_C02_a_token_that_is_not_valid_registers_nobody(
    database_url: str, tmp_path: Path, token: str
):
    async with running_homeserver(database_url, tmp_path, registration="token") as homeserver:
        services = homeserver.services
        now_ms = homeserver.clock.now_ms()
        await registration_tokens.insert_registration_token(services.db, "expired", None, now_ms)
        response = await register(
            homeserver, "alice", auth={"type": "m.login.registration_token", "token": token}
        )
        valid = await homeserver.request("GET", VALIDITY, query={"token": token})
        dummy = await register(homeserver, "alice")

    assert (response.status, response.json["errcode"]) == (401, "M_UNAUTHORIZED")
    assert valid.json == {"valid": False}
    assert dummy.status == 401


async def test_C02_guessing_tokens_is_slowed_down(database_url: str, tmp_path: Path):
    async with running_homeserver(
        database_url, tmp_path, registration="token", rate_limits="on"
    ) as homeserver:
        statuses = [
            (await homeserver.request("GET", VALIDITY, query={"token": str(n)})).status
            for n in range(15)
        ]

    assert 429 in statuses


async def test_C05_passwords_are_limited_before_they_are_hashed(homeserver: Homeserver):
    longest = await register(homeserver, "alice", password="p" * 512)
    too_long = await register(homeserver, "bob", password="p" * 513)
    too_many_bytes = await register(homeserver, "carol", password="é" * 257)
    with_nul = await register(homeserver, "dave", password="p\0q")

    assert longest.status == 200
    assert (too_long.status, too_long.json["errcode"]) == (400, "M_INVALID_PARAM")
    assert (too_many_bytes.status, too_many_bytes.json["errcode"]) == (400, "M_INVALID_PARAM")
    assert with_nul.status == 200


async def test_an_administrator_can_make_accounts_while_registration_is_closed(
    database_url: str, tmp_path: Path
):
    async with running_homeserver(database_url, tmp_path, registration="closed") as homeserver:
        user_id = await registration.register_account(
            homeserver.services, "Alice", PASSWORD, admin=True
        )
        login = await homeserver.request(
            "POST", "/login", {"type": "m.login.password", "user": "alice", "password": PASSWORD}
        )

    assert user_id == "@alice:hs1"
    assert login.json["user_id"] == "@alice:hs1"
