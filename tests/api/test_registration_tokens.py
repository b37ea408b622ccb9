"""Registration tokens: administrators make and keep them, and each serves as often as it says."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from minihs.base.clock import ManualClock
from minihs.services.accounts import registration_tokens
from tests.helpers.homeserver import PASSWORD, running_homeserver
from tests.helpers.inspected_room import make_admin
from tests.helpers.waiting import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.helpers.homeserver import Homeserver, Response, User

TOKENS = "/_synapse/admin/v1/registration_tokens"
HOUR_MS = 3_600_000


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def homeserver(
    database_url: str, tmp_path: Path, clock: ManualClock
) -> AsyncIterator[Homeserver]:
    """A homeserver with open registration, so that there is an administrator to begin with."""
    async with running_homeserver(database_url, tmp_path, clock=clock) as server:
        yield server


@pytest.fixture
async def admin(homeserver: Homeserver) -> User:
    return await make_admin(homeserver, "alice")


async def make(admin: User, **wish: object) -> dict:
    return await admin.call("POST", f"{TOKENS}/new", wish)


def row(token: str, **differing: object) -> dict:
    plain = {"uses_allowed": None, "pending": 0, "completed": 0, "expiry_time": None}
    return {"token": token, **plain, **differing}


async def test_a_token_is_made_shown_changed_and_deleted(admin: User, clock: ManualClock) -> None:
    end_ms = clock.now_ms() + HOUR_MS
    made = await make(admin, token="tea-party", uses_allowed=3, expiry_time=end_ms)
    assert made == row("tea-party", uses_allowed=3, expiry_time=end_ms)
    path = f"{TOKENS}/tea-party"
    assert await admin.call("GET", path) == made
    changed = await admin.call("PUT", path, {"uses_allowed": 1})
    assert changed == row("tea-party", uses_allowed=1, expiry_time=end_ms)
    assert await admin.call("PUT", path, {"expiry_time": None}) == row("tea-party", uses_allowed=1)
    assert await admin.call("PUT", path, {}) == row("tea-party", uses_allowed=1)
    assert await admin.call("DELETE", path) == {}
    for method in ("GET", "PUT", "DELETE"):
        gone = await admin.request(method, path, {} if method == "PUT" else None)
        assert (gone.status, gone.json["errcode"]) == (404, "M_NOT_FOUND")


async def test_random_tokens_have_the_length_that_was_asked_for(admin: User) -> None:
    first, second = await make(admin), await make(admin, length=64)
    assert [len(first["token"]), len(second["token"])] == [16, 64]


async def test_the_list_tells_valid_tokens_from_others(admin: User, clock: ManualClock) -> None:
    await make(admin, token="ends", expiry_time=clock.now_ms() + HOUR_MS)
    await make(admin, token="stays")
    await make(admin, token="used-up", uses_allowed=0)
    clock.advance_ms(HOUR_MS)

    async def listed(**query: str) -> list[str]:
        answer = await admin.call("GET", TOKENS, **query)
        return [token["token"] for token in answer["registration_tokens"]]

    assert await listed() == ["ends", "stays", "used-up"]
    assert await listed(valid="true") == ["stays"]
    assert await listed(valid="false") == ["ends", "used-up"]


@pytest.mark.parametrize(
    "wish",
    [
        {"token": ""},
        {"token": "a b"},
        {"token": "x" * 65},
        {"token": "taken"},
        {"length": 0},
        {"length": 65},
        {"uses_allowed": -1},
        {"uses_allowed": 2**60},
        {"expiry_time": 1},
    ],
    ids=repr,
)
async def test_what_cannot_be_a_token_is_refused(admin: User, wish: dict) -> None:
    await make(admin, token="taken")
    refused = await admin.request("POST", f"{TOKENS}/new", wish)
    assert (refused.status, refused.json["errcode"]) == (400, "M_INVALID_PARAM")


async def test_a_change_that_cannot_be_changes_nothing(admin: User) -> None:
    await make(admin, token="tea", uses_allowed=2)
    for change in ({"uses_allowed": -1}, {"uses_allowed": 5, "expiry_time": 1}):
        refused = await admin.request("PUT", f"{TOKENS}/tea", change)
        assert (refused.status, refused.json["errcode"]) == (400, "M_INVALID_PARAM")
    assert await admin.call("GET", f"{TOKENS}/tea") == row("tea", uses_allowed=2)


async def test_tokens_are_for_administrators(homeserver: Homeserver, admin: User) -> None:
    await make(admin, token="tea")
    bob = await homeserver.register("bob")
    requests = [
        ("GET", TOKENS),
        ("POST", f"{TOKENS}/new"),
        ("GET", f"{TOKENS}/tea"),
        ("PUT", f"{TOKENS}/tea"),
        ("DELETE", f"{TOKENS}/tea"),
    ]
    for method, path in requests:
        refused = await bob.request(method, path, None if method == "GET" else {})
        assert (refused.status, refused.json["errcode"]) == (403, "M_FORBIDDEN")
        nobody = await homeserver.stranger().request(method, path)
        assert nobody.status == 401
    assert await admin.call("GET", f"{TOKENS}/tea") == row("tea")


async def test_a_token_lets_as_many_register_as_it_says(
    database_url: str, tmp_path: Path, clock: ManualClock
) -> None:
    async with running_homeserver(database_url, tmp_path, clock=clock) as open_one:
        admin = await make_admin(open_one, "alice")
        await make(admin, token="tea", uses_allowed=1)
    async with running_homeserver(
        database_url, tmp_path, clock=clock, registration="token"
    ) as homeserver:
        admin.homeserver = homeserver

        async def register(name: str) -> Response:
            auth = {"type": "m.login.registration_token", "token": "tea"}
            body = {"username": name, "password": PASSWORD, "auth": auth}
            return await homeserver.request("POST", "/register", body)

        assert (await register("bob")).status == 200
        assert (await register("carol")).status == 401
        assert (await admin.call("GET", f"{TOKENS}/tea"))["completed"] == 1
        await admin.call("PUT", f"{TOKENS}/tea", {"uses_allowed": 2})
        assert (await register("carol")).status == 200


async def test_a_token_that_many_use_at_once_serves_one_and_holds_up_nobody(
    database_url: str, tmp_path: Path, clock: ManualClock
) -> None:
    """All of them find it valid; to refuse one must not need a second connection."""
    async with running_homeserver(
        database_url,
        tmp_path,
        clock=clock,
        workers=1,
        registration="token",
        database_connections=4,
    ) as homeserver:
        services = homeserver.services
        await registration_tokens.make_token(services, "tea", uses_allowed=1, expires_ms=None)

        async def register(number: int) -> Response:
            auth = {"type": "m.login.registration_token", "token": "tea"}
            body = {"username": f"user{number}", "password": PASSWORD, "auth": auth}
            return await homeserver.request("POST", "/register", body)

        async with asyncio.timeout(PATIENCE_S):
            answers = await asyncio.gather(*(register(number) for number in range(16)))

        assert sorted(answer.status for answer in answers) == [200, *[401] * 15]
