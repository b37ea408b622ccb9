"""Registration with the shared secret, and deactivation by an administrator."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from typing import TYPE_CHECKING

import pytest

from minihs.base.clock import ManualClock
from minihs.services.accounts.admin import NONCE_LIFETIME_MS
from tests.api.test_login import as_user, status_of
from tests.helpers.homeserver import PASSWORD, User, running_homeserver

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.homeserver import Homeserver, Response

REGISTER = "/_synapse/admin/v1/register"
SECRET = "shared secret"  # that of the fixture


async def nonce_of(homeserver: Homeserver) -> str:
    """Ask for a nonce."""
    return (await homeserver.request("GET", REGISTER)).json["nonce"]


def proof(*parts: str, secret: str = SECRET) -> str:
    """Return the HMAC over the parts."""
    return hmac.new(secret.encode(), "\0".join(parts).encode(), hashlib.sha1).hexdigest()


async def register(
    homeserver: Homeserver, username: str, nonce: str = "", role: str = "notadmin", **body: object
) -> Response:
    """Register with the shared secret; `body` comes on top of what was signed."""
    nonce = nonce or await nonce_of(homeserver)
    mac = proof(nonce, username, PASSWORD, role)
    wish = {"nonce": nonce, "username": username, "password": PASSWORD, "mac": mac}
    return await homeserver.request("POST", REGISTER, {**wish, "admin": role == "admin", **body})


async def test_who_knows_the_secret_registers_an_administrator(homeserver: Homeserver):
    answer = await register(homeserver, "Boss-UPPER", role="admin", displayname="The boss")

    assert answer.status == 200
    assert answer.json["user_id"] == "@boss-upper:hs1"
    assert answer.json["home_server"] == "hs1"
    assert answer.json["device_id"]
    boss = User(homeserver, "@boss-upper:hs1", answer.json["access_token"])
    assert await boss.call("GET", "/profile/@boss-upper:hs1") == {"displayname": "The boss"}
    bob = await homeserver.register("bob")
    path = f"/_synapse/admin/v1/deactivate/{bob.user_id}"
    refused = await bob.request("POST", path, {})
    assert (refused.status, refused.json["errcode"]) == (403, "M_FORBIDDEN")
    for _ in range(2):
        assert await boss.call("POST", path, {"erase": True}) == {
            "id_server_unbind_result": "success"
        }
    assert await status_of(homeserver, str(bob.token)) == (401, "M_UNKNOWN_TOKEN")
    for user_id, status in (("@nobody:hs1", 404), ("@bob:hs2", 400), ("bob", 400)):
        response = await boss.request("POST", f"/_synapse/admin/v1/deactivate/{user_id}", {})
        assert response.status == status


async def test_a_user_without_a_session_can_log_in(homeserver: Homeserver):
    answer = await register(homeserver, "alice", inhibit_login=True)

    assert answer.json == {"user_id": "@alice:hs1", "home_server": "hs1"}
    alice = await as_user(homeserver, "alice")
    path = "/_synapse/admin/v1/deactivate/@alice:hs1"
    assert (await alice.request("POST", path, {})).status == 403


@pytest.mark.parametrize(
    ("name", "errcode"), [("us,er", "M_INVALID_USERNAME"), ("alice", "M_USER_IN_USE")]
)
async def test_the_rules_for_names_hold(homeserver: Homeserver, name: str, errcode: str):
    await homeserver.register("alice")

    answer = await register(homeserver, name)

    assert (answer.status, answer.json["errcode"]) == (400, errcode)


@pytest.mark.parametrize(
    "changed",
    [{"mac": ""}, {"mac": "0" * 40}, {"mac": "é"}, {"admin": True}, {"password": "x"}],
    ids=repr,
)
async def test_C03_a_wrong_hmac_registers_nobody_and_uses_the_nonce_up(
    homeserver: Homeserver, changed: dict
):
    nonce = await nonce_of(homeserver)

    wrong = await register(homeserver, "alice", nonce, **changed)
    right = await register(homeserver, "alice", nonce)

    assert (wrong.status, wrong.json["errcode"]) == (403, "M_FORBIDDEN")
    assert (right.status, right.json["errcode"]) == (400, "M_UNKNOWN")
    assert (await homeserver.request("GET", "/profile/@alice:hs1")).status == 404


async def test_C03_a_nonce_serves_once(homeserver: Homeserver):
    nonce = await nonce_of(homeserver)

    answers = await asyncio.gather(*(register(homeserver, f"user{n}", nonce) for n in range(4)))

    assert sorted(a.status for a in answers) == [200, 400, 400, 400]


async def test_C03_a_nonce_expires(database_url: str, tmp_path: Path):
    clock = ManualClock()
    async with running_homeserver(database_url, tmp_path, clock=clock) as homeserver:
        nonce = await nonce_of(homeserver)
        clock.advance_ms(NONCE_LIFETIME_MS + 1)
        late = await register(homeserver, "alice", nonce)

    assert (late.status, late.json["errcode"]) == (400, "M_UNKNOWN")


async def test_C03_the_session_of_an_authentication_is_no_nonce(homeserver: Homeserver):
    session = (await homeserver.request("POST", "/register", {})).json["session"]

    answer = await register(homeserver, "alice", session)

    assert (answer.status, answer.json["errcode"]) == (400, "M_UNKNOWN")


async def test_C03_a_nul_cannot_move_the_borders_of_what_is_signed(homeserver: Homeserver):
    nonce = await nonce_of(homeserver)
    body = {"nonce": nonce, "username": "alice", "password": "a\0admin"}
    mac = proof(nonce, "alice", "a", "admin", "notadmin")

    answer = await homeserver.request("POST", REGISTER, {**body, "mac": mac})

    assert (answer.status, answer.json["errcode"]) == (400, "M_INVALID_PARAM")


async def test_no_tool_makes_an_account_without_a_password(homeserver: Homeserver):
    nonce = await nonce_of(homeserver)
    body = {"nonce": nonce, "username": "alice", "password": ""}
    mac = proof(nonce, "alice", "", "notadmin")

    answer = await homeserver.request("POST", REGISTER, {**body, "mac": mac})

    assert (answer.status, answer.json["errcode"]) == (400, "M_WEAK_PASSWORD")
    assert (await homeserver.request("GET", "/profile/@alice:hs1")).status == 404


async def test_C03_without_a_secret_there_is_no_such_endpoint(database_url: str, tmp_path: Path):
    async with running_homeserver(
        database_url, tmp_path, registration_shared_secret=""
    ) as homeserver:
        asked = await homeserver.request("GET", REGISTER)
        mac = proof("n", "alice", PASSWORD, "notadmin", secret="")
        body = {"nonce": "n", "username": "alice", "password": PASSWORD, "mac": mac}
        tried = await homeserver.request("POST", REGISTER, body)

    for answer in (asked, tried):
        assert (answer.status, answer.json["errcode"]) == (404, "M_UNRECOGNIZED")
