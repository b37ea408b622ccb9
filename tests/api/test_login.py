"""Login, refresh and logout. Spec: client-server-api#login."""

from __future__ import annotations

import asyncio
import logging
import threading
import unicodedata
from typing import TYPE_CHECKING

import pytest

from minihs.base.clock import ManualClock
from minihs.base.errors import UnknownToken
from minihs.services.accounts import passwords
from minihs.services.accounts.authentication import ACCESS_TOKEN_LIFETIME_MS, authenticate
from minihs.services.sync.v3 import wait
from minihs.storage.streams import FETCH_POSITION
from tests.helpers.homeserver import PASSWORD, User, running_homeserver
from tests.helpers.waiting import PATIENCE_S, until

if TYPE_CHECKING:
    from pathlib import Path

    from minihs.base.config import Config
    from tests.helpers.homeserver import Homeserver, Response


async def log_in(homeserver: Homeserver, user: str, **body: object) -> Response:
    """Log in with the password that everybody has."""
    identifier = {"type": "m.id.user", "user": user}
    return await homeserver.request(
        "POST",
        "/login",
        {"type": "m.login.password", "identifier": identifier, "password": PASSWORD, **body},
    )


async def as_user(homeserver: Homeserver, user: str, **body: object) -> User:
    """Log in and return who can act then."""
    response = await log_in(homeserver, user, **body)
    assert response.status == 200, response.json
    return User(homeserver, response.json["user_id"], response.json["access_token"])


async def status_of(homeserver: Homeserver, token: str) -> tuple[int, object]:
    """Return how the server greets a token."""
    response = await User(homeserver, "", token).request("GET", "/account/whoami")
    return response.status, response.json.get("errcode")


async def test_the_password_flow_is_offered(homeserver: Homeserver):
    response = await homeserver.request("GET", "/login")

    assert response.json == {"flows": [{"type": "m.login.password"}]}


@pytest.mark.parametrize(
    "body",
    [
        {"identifier": {"type": "m.id.user", "user": "alice"}},
        {"identifier": {"type": "m.id.user", "user": "@alice:hs1"}},
        {"identifier": {"type": "m.id.user", "user": "@ALICE:hs1"}},
        {"user": "alice"},
        {"user": "@alice:hs1"},
    ],
    ids=repr,
)
async def test_alice_is_known_by_every_form_of_her_name(homeserver: Homeserver, body: dict):
    await homeserver.register("alice")

    response = await homeserver.request(
        "POST", "/login", {"type": "m.login.password", "password": PASSWORD, **body}
    )

    assert response.json["user_id"] == "@alice:hs1"
    assert await status_of(homeserver, response.json["access_token"]) == (200, None)


@pytest.mark.parametrize(
    ("body", "status", "errcode"),
    [
        ({"password": "wrong"}, 403, "M_FORBIDDEN"),
        ({"password": "p" * 513}, 403, "M_FORBIDDEN"),
        ({"password": None}, 400, "M_MISSING_PARAM"),
        ({"password": 1}, 400, "M_BAD_JSON"),
        ({"type": "m.login.token"}, 400, "M_UNKNOWN"),
        ({"type": None}, 400, "M_BAD_JSON"),
        ({"identifier": None}, 400, "M_MISSING_PARAM"),
        ({"identifier": 1}, 400, "M_BAD_JSON"),
        ({"identifier": {"type": "m.id.user"}}, 400, "M_BAD_JSON"),
        ({"identifier": {"type": "org.example.id"}}, 400, "M_UNKNOWN"),
        ({"identifier": {"type": "m.id.user", "user": "bob"}}, 403, "M_FORBIDDEN"),
        ({"identifier": {"type": "m.id.user", "user": "@alice:hs2"}}, 403, "M_FORBIDDEN"),
        ({"identifier": {"type": "m.id.user", "user": "a\0"}}, 403, "M_FORBIDDEN"),
        (
            {"identifier": {"type": "m.id.thirdparty", "medium": "email", "address": "a@b.c"}},
            403,
            "M_FORBIDDEN",
        ),
        ({"identifier": {"type": "m.id.phone", "country": "DE", "phone": "1"}}, 403, "M_FORBIDDEN"),
        ({"identifier": None, "medium": "email", "address": "a@b.c"}, 403, "M_FORBIDDEN"),
        ({"device_id": ""}, 400, "M_INVALID_PARAM"),
        ({"device_id": "a\0"}, 400, "M_INVALID_PARAM"),
    ],
    ids=repr,
)
async def test_a_login_that_is_not_right_is_refused(
    homeserver: Homeserver, body: dict, status: int, errcode: str
):
    await homeserver.register("alice")

    response = await log_in(homeserver, "alice", **body)

    assert (response.status, response.json["errcode"]) == (status, errcode)


async def test_a_second_login_with_the_same_device_replaces_the_first(homeserver: Homeserver):
    alice = await homeserver.register("alice")

    again = await as_user(homeserver, "alice", device_id=alice.device_id)
    other = await as_user(homeserver, "alice", initial_device_display_name="Tablet\0" + "x" * 200)

    assert await status_of(homeserver, str(alice.token)) == (401, "M_UNKNOWN_TOKEN")
    devices = (await again.call("GET", "/devices"))["devices"]
    assert len(devices) == 2
    assert devices[1]["display_name"] == "Tablet" + "x" * 94
    assert await other.call("GET", "/account/whoami") == {
        "user_id": "@alice:hs1",
        "device_id": devices[1]["device_id"],
    }


async def test_null_is_as_if_nothing_was_said(homeserver: Homeserver):
    await homeserver.register("alice")
    nothing = {"device_id": None, "initial_device_display_name": None, "refresh_token": None}
    answer = await log_in(homeserver, "alice", **nothing)
    assert answer.status == 200
    assert "refresh_token" not in answer.json


async def test_the_same_letters_typed_otherwise_are_the_same_password(homeserver: Homeserver):
    composed = unicodedata.normalize("NFC", "pässwörd")
    decomposed = unicodedata.normalize("NFD", "pässwörd")
    assert composed != decomposed
    auth = {"type": "m.login.dummy"}
    await homeserver.request(
        "POST", "/register", {"username": "alice", "password": composed, "auth": auth}
    )

    response = await log_in(homeserver, "alice", password=decomposed)

    assert response.status == 200


async def test_login_tells_where_the_server_is(database_url: str, tmp_path: Path):
    async with running_homeserver(
        database_url, tmp_path, public_base_url="https://matrix.hs1"
    ) as homeserver:
        await homeserver.register("alice")
        response = await log_in(homeserver, "alice")

    assert response.json["well_known"] == {"m.homeserver": {"base_url": "https://matrix.hs1"}}


async def test_logout_ends_one_session_and_logout_all_the_others(homeserver: Homeserver):
    first = await homeserver.register("alice")
    second, third = [await as_user(homeserver, "alice") for _ in range(2)]
    bob = await homeserver.register("bob")

    assert await first.call("POST", "/logout") == {}
    assert await status_of(homeserver, str(first.token)) == (401, "M_UNKNOWN_TOKEN")
    assert len((await second.call("GET", "/devices"))["devices"]) == 2
    assert await second.call("POST", "/logout/all", {}) == {}

    for gone in (second, third):
        assert await status_of(homeserver, str(gone.token)) == (401, "M_UNKNOWN_TOKEN")
    assert await status_of(homeserver, str(bob.token)) == (200, None)


@pytest.mark.parametrize(
    "how", ["logout", "logout/all", "delete", "password", "login", "deactivate"]
)
@pytest.mark.parametrize("sliding", [False, True])
async def test_who_is_logged_out_waits_for_news_no_longer(
    homeserver: Homeserver, how: str, sliding: bool
):
    alice = await homeserver.register("alice")
    phone = await as_user(homeserver, "alice", device_id="PHONE")
    await phone.sync()
    path = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
    lists = {"lists": {"all": {"ranges": [[0, 9]], "timeline_limit": 1, "required_state": []}}}
    if sliding:
        pos = (await phone.call("POST", path, lists))["pos"]
        request = phone.request("POST", path, lists, pos=pos, timeout="300000")
    else:
        request = phone.request(
            "GET", "/sync", since=str(phone.since), timeout="300000", set_presence="offline"
        )
    waiting = asyncio.ensure_future(request)
    await until(lambda: any(services.views.waiting for services in homeserver.workers))
    auth = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": "alice"},
        "password": PASSWORD,
    }
    if how.startswith("logout"):
        await phone.call("POST", f"/{how}")
    elif how == "delete":
        await alice.call("POST", "/delete_devices", {"devices": ["PHONE"], "auth": auth})
    elif how == "password":
        await alice.call("POST", "/account/password", {"new_password": "another", "auth": auth})
    elif how == "login":
        await as_user(homeserver, "alice", device_id="PHONE")
    else:
        await alice.call("POST", "/account/deactivate", {"auth": auth})
    answer = await asyncio.wait_for(waiting, PATIENCE_S)
    assert (answer.status, answer.json["errcode"]) == (401, "M_UNKNOWN_TOKEN")
    assert answer.json["soft_logout"] is False


async def test_who_was_logged_out_unheard_waits_until_we_hear_again(
    homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch
):
    """The connection by which processes hear of logouts may have been away."""
    alice = await homeserver.register("alice")
    phone = await as_user(homeserver, "alice", device_id="PHONE")
    login = (await log_in(homeserver, "alice", refresh_token=True)).json
    tablet = User(homeserver, login["user_id"], login["access_token"])
    waiting = []
    for number, user in enumerate((alice, phone, tablet), 1):
        await user.sync()
        request = user.request(
            "GET", "/sync", since=str(user.since), timeout="300000", set_presence="offline"
        )
        waiting.append(asyncio.ensure_future(request))

        def all_wait(number: int = number) -> bool:
            return sum(services.views.waiting for services in homeserver.workers) >= number

        await until(all_wait)
    for services in homeserver.workers:
        monkeypatch.setattr(services.follower, "_on_logout", None)
    await phone.call("POST", "/logout")
    renewed = (await refresh(homeserver, login["refresh_token"])).json
    assert await status_of(homeserver, renewed["access_token"]) == (200, None)
    services = homeserver.services
    listening = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = $1"
    await services.db.execute(listening, FETCH_POSITION)

    answer = await asyncio.wait_for(waiting[1], PATIENCE_S)

    assert (answer.status, answer.json["soft_logout"]) == (401, False)
    await alice.create_room()
    for stays in (waiting[0], waiting[2]):
        assert (await asyncio.wait_for(stays, PATIENCE_S)).status == 200


async def test_who_stays_logged_in_waits_on_when_another_device_goes(homeserver: Homeserver):
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room()
    await bob.join(room_id)
    phone = await as_user(homeserver, "alice", device_id="PHONE")
    await alice.sync()
    await alice.sync()
    waiting = asyncio.ensure_future(alice.sync(timeout="300000"))
    await until(lambda: any(services.views.waiting for services in homeserver.workers))
    await phone.call("POST", "/logout")
    await bob.say(room_id)
    answer = await asyncio.wait_for(waiting, PATIENCE_S)
    assert room_id in answer["rooms"]["join"]


async def test_who_has_refreshed_their_token_is_not_logged_out_with_another_device(
    homeserver: Homeserver,
):
    await homeserver.register("alice")
    login = (await log_in(homeserver, "alice", refresh_token=True)).json
    phone = await as_user(homeserver, "alice", device_id="PHONE")
    old = User(homeserver, login["user_id"], login["access_token"])
    await old.sync()
    unseen = {"set_presence": "offline"}  # Else there is news: that they are there.
    request = old.request("GET", "/sync", since=str(old.since), timeout="300000", **unseen)
    waiting = asyncio.ensure_future(request)
    await until(lambda: any(services.views.waiting for services in homeserver.workers))
    renewed = (await refresh(homeserver, login["refresh_token"])).json
    assert await status_of(homeserver, renewed["access_token"]) == (200, None)
    assert (await status_of(homeserver, login["access_token"]))[0] == 401
    await phone.call("POST", "/logout")
    await User(homeserver, login["user_id"], renewed["access_token"]).create_room()
    assert (await asyncio.wait_for(waiting, PATIENCE_S)).status == 200


async def test_who_is_logged_out_while_news_is_looked_for_does_not_wait(homeserver: Homeserver):
    await homeserver.register("alice")
    phone = await as_user(homeserver, "alice", device_id="PHONE")
    looking = []
    for services in homeserver.workers:
        requester = await authenticate(services, phone.token, "127.0.0.1")
        await services.views.get(requester.user_id)
        looking.append((services, requester))
    await phone.call("POST", "/logout")

    def have_noticed() -> bool:
        return all(
            # Or it began to listen after that.
            services.views.may_be_logged_out(requester)
            or services.views.may_have_gone_unheard(requester)
            for services, requester in looking
        )

    await until(have_noticed)
    for services, requester in looking:
        noticing = wait(services, requester, services.follower.head, 600_000)
        with pytest.raises(UnknownToken):
            await asyncio.wait_for(noticing, PATIENCE_S)


async def test_a_hash_with_outdated_parameters_is_replaced(database_url: str, tmp_path: Path):
    async with running_homeserver(database_url, tmp_path) as homeserver:
        await homeserver.register("alice")
    async with running_homeserver(database_url, tmp_path, password_hash_iterations=2) as homeserver:
        query = "SELECT password_hash FROM accounts"
        before = await homeserver.services.db.fetchval(query)
        assert (await log_in(homeserver, "alice")).status == 200
        after = await homeserver.services.db.fetchval(query)
        assert (await log_in(homeserver, "alice")).status == 200

    assert "t=1" in str(before)
    assert "t=2" in str(after)


# --- refresh tokens -----------------------------------------------------------------------------


async def refresh(homeserver: Homeserver, token: str) -> Response:
    """Ask for the next tokens."""
    return await homeserver.request("POST", "/refresh", {"refresh_token": token})


async def test_an_access_token_that_can_be_refreshed_expires(database_url: str, tmp_path: Path):
    clock = ManualClock()
    async with running_homeserver(database_url, tmp_path, clock=clock) as homeserver:
        await homeserver.register("alice")
        login = (await log_in(homeserver, "alice", refresh_token=True)).json
        assert login["expires_in_ms"] == ACCESS_TOKEN_LIFETIME_MS

        clock.advance_ms(ACCESS_TOKEN_LIFETIME_MS)
        late = await User(homeserver, "", login["access_token"]).request("GET", "/devices")
        renewed = (await refresh(homeserver, login["refresh_token"])).json
        alice = User(homeserver, "@alice:hs1", renewed["access_token"])
        whoami = await alice.call("GET", "/account/whoami")

    assert (late.status, late.json["errcode"]) == (401, "M_UNKNOWN_TOKEN")
    assert late.json["soft_logout"] is True
    assert whoami["device_id"] == login["device_id"]


async def test_the_old_refresh_token_is_good_until_a_new_token_is_used(homeserver: Homeserver):
    await homeserver.register("alice")
    login = (await log_in(homeserver, "alice", refresh_token=True)).json

    # The answer to the first refresh is lost on its way, so the client asks again.
    lost = (await refresh(homeserver, login["refresh_token"])).json
    assert await status_of(homeserver, login["access_token"]) == (200, None)
    found = (await refresh(homeserver, login["refresh_token"])).json
    assert await status_of(homeserver, lost["access_token"]) == (401, "M_UNKNOWN_TOKEN")
    assert (await refresh(homeserver, lost["refresh_token"])).status == 401

    # The use of the new access token ends what was before it.
    assert await status_of(homeserver, found["access_token"]) == (200, None)
    assert await status_of(homeserver, login["access_token"]) == (401, "M_UNKNOWN_TOKEN")
    assert (await refresh(homeserver, login["refresh_token"])).json["errcode"] == "M_UNKNOWN_TOKEN"
    assert (await refresh(homeserver, found["refresh_token"])).status == 200


async def test_the_use_of_the_new_refresh_token_ends_the_old_one(homeserver: Homeserver):
    await homeserver.register("alice")
    first = (await log_in(homeserver, "alice", refresh_token=True)).json["refresh_token"]

    second = (await refresh(homeserver, first)).json["refresh_token"]
    third = (await refresh(homeserver, second)).json["refresh_token"]

    assert (await refresh(homeserver, first)).status == 401
    assert (await refresh(homeserver, third)).status == 200


async def test_logout_ends_the_refresh_token_too(homeserver: Homeserver):
    await homeserver.register("alice")
    login = (await log_in(homeserver, "alice", refresh_token=True)).json

    await User(homeserver, "@alice:hs1", login["access_token"]).call("POST", "/logout")

    assert (await refresh(homeserver, login["refresh_token"])).status == 401
    assert (await refresh(homeserver, "")).status == 401


# --- attacks ------------------------------------------------------------------------------------


async def test_C04_an_unknown_user_costs_as_much_as_a_wrong_password(
    homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch
):
    """Time is argon2's: so many hashes, with the same parameters, are what is compared."""
    await homeserver.register("alice")
    work: list[str] = []
    hasher = passwords._hasher(homeserver.services.config)
    for name in ("hash", "verify"):
        original = getattr(type(hasher), name)

        def count(
            self: object, *args: object, original: object = original, name: str = name
        ) -> object:
            work.append(name)
            return original(self, *args)  # type: ignore[operator]

        monkeypatch.setattr(type(hasher), name, count)

    answers = [
        await log_in(homeserver, user, password="wrong")
        for user in ("alice", "nobody", "@alice:hs2")
    ]

    assert work == ["verify", "hash", "hash"]
    assert [(a.status, a.json) for a in answers] == [(403, answers[0].json)] * 3


async def test_C04_ten_thousand_tries_are_not_to_be_had(database_url: str, tmp_path: Path):
    async with running_homeserver(database_url, tmp_path, rate_limits="on") as homeserver:
        tries = [await log_in(homeserver, "alice", password=str(n)) for n in range(12)]

    refused = [t for t in tries if t.status == 429]
    assert refused
    assert refused[0].json["retry_after_ms"] > 0
    assert int(refused[0].headers["Retry-After"]) > 0


async def test_C04_a_flood_of_logins_does_not_queue_without_end(
    homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(passwords, "QUEUE_MAX", 2)
    is_refused, hasher = threading.Event(), passwords._hasher

    def takes_its_time(config: Config) -> object:
        is_refused.wait()
        return hasher(config)

    monkeypatch.setattr(passwords, "_hasher", takes_its_time)
    asking = [asyncio.ensure_future(log_in(homeserver, "nobody")) for _ in range(20)]
    try:
        await until(lambda: any(one.done() for one in asking))
    finally:
        is_refused.set()
    answers = await asyncio.gather(*asking)

    assert {a.status for a in answers} == {403, 429}


@pytest.mark.parametrize("header", ["Bearer ", "Bearer", "Basic abc", "", "Bearer \udcff"])
async def test_C06_an_empty_or_strange_token_is_nobodys(homeserver: Homeserver, header: str):
    await homeserver.register("alice")

    response = await homeserver.request("GET", "/account/whoami", headers={"Authorization": header})

    assert (response.status, response.json["errcode"]) == (401, "M_UNKNOWN_TOKEN")


async def test_C06_no_token_and_an_empty_query_parameter(homeserver: Homeserver):
    missing = await homeserver.request("GET", "/account/whoami")
    empty = await homeserver.request("GET", "/account/whoami", query={"access_token": ""})

    assert (missing.status, missing.json["errcode"]) == (401, "M_MISSING_TOKEN")
    assert (empty.status, empty.json["errcode"]) == (401, "M_UNKNOWN_TOKEN")


async def test_C06_a_refresh_token_is_no_access_token(homeserver: Homeserver):
    await homeserver.register("alice")
    login = (await log_in(homeserver, "alice", refresh_token=True)).json

    assert (await status_of(homeserver, login["refresh_token"]))[0] == 401
    assert (await refresh(homeserver, login["access_token"])).status == 401


async def test_C09_tokens_are_long_and_only_their_hashes_are_stored(homeserver: Homeserver):
    await homeserver.register("alice")
    login = (await log_in(homeserver, "alice", refresh_token=True)).json
    tokens = [login["access_token"], login["refresh_token"]]

    stored = ""
    for table in ("access_tokens", "refresh_tokens", "devices", "accounts"):
        query = f"SELECT string_agg(t::text, ' ') FROM {table} t"  # noqa: S608  # names above
        stored += str(await homeserver.services.db.fetchval(query))

    assert all(len(token) == 43 and token.isalnum() for token in tokens)  # 43 * log2(62) = 256
    assert not any(token in stored for token in tokens)
    assert "argon2id" in stored


async def test_C10_neither_passwords_nor_tokens_reach_the_log(
    homeserver: Homeserver, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    secrets = [PASSWORD, "canary-of-a-wrong-password"]
    alice = await homeserver.register("alice")
    for password in secrets:
        response = await log_in(homeserver, "alice", password=password, refresh_token=True)
        secrets += [str(v) for k, v in response.json.items() if k.endswith("_token")]
    body = {"auth": {"type": "m.login.password", "user": "alice", "password": PASSWORD}}
    response = await alice.request("POST", "/account/password", {**body, "new_password": "canary"})

    assert response.status == 200
    assert len(secrets) == 4
    for secret in [*secrets, "canary", str(alice.token)]:
        assert secret not in caplog.text


async def test_C12_a_deactivated_user_does_not_log_in(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    login = (await log_in(homeserver, "alice", refresh_token=True)).json
    auth = {"type": "m.login.password", "user": "alice", "password": PASSWORD}
    await alice.call("POST", "/account/deactivate", {"auth": auth})

    response = await log_in(homeserver, "alice")

    assert (response.status, response.json["errcode"]) == (403, "M_USER_DEACTIVATED")
    assert (await refresh(homeserver, login["refresh_token"])).status == 401
    for token in (str(alice.token), login["access_token"]):
        assert await status_of(homeserver, token) == (401, "M_UNKNOWN_TOKEN")
