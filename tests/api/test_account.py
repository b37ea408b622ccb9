"""Another password, the end of an account, and what authorizes both.

Spec: client-server-api#user-interactive-authentication-api
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from minihs.base.clock import ManualClock
from minihs.base.errors import Unavailable, UserInteractiveAuthRequired
from minihs.protocol.identifiers import UserId
from minihs.protocol.unstable import DEACTIVATED
from minihs.services.accounts import deactivation
from minihs.services.accounts.user_interactive_auth import (
    SESSION_LIFETIME_MS,
    Operation,
    authorize,
)
from minihs.services.rooms import membership
from minihs.storage import accounts, registration_tokens
from tests.api.test_login import as_user, log_in, status_of
from tests.helpers.homeserver import PASSWORD, running_homeserver

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.homeserver import Homeserver, User


def password_auth(user: User, password: str = PASSWORD, **more: str) -> dict[str, object]:
    """Return the auth of a password stage."""
    identifier = {"type": "m.id.user", "user": user.user_id}
    return {"type": "m.login.password", "identifier": identifier, "password": password, **more}


# --- password -----------------------------------------------------------------------------------


async def test_a_new_password_ends_the_other_sessions(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    tablet = await as_user(homeserver, "alice")

    change = {"new_password": "another", "auth": password_auth(alice)}
    assert await alice.call("POST", "/account/password", change) == {}

    assert (await log_in(homeserver, "alice")).status == 403
    assert (await log_in(homeserver, "alice", password="another")).status == 200
    assert await status_of(homeserver, str(alice.token)) == (200, None)
    assert await status_of(homeserver, str(tablet.token)) == (401, "M_UNKNOWN_TOKEN")


async def test_the_other_sessions_stay_if_asked_to(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    tablet = await as_user(homeserver, "alice")

    change = {"new_password": "another", "logout_devices": False, "auth": password_auth(alice)}
    await alice.call("POST", "/account/password", change)

    assert await status_of(homeserver, str(tablet.token)) == (200, None)


@pytest.mark.parametrize(
    ("body", "errcode"),
    [
        ({"new_password": ""}, "M_WEAK_PASSWORD"),
        ({"new_password": "p" * 513}, "M_INVALID_PARAM"),
        ({"new_password": 1}, "M_BAD_JSON"),
        ({}, "M_MISSING_PARAM"),
    ],
    ids=repr,
)
async def test_C05_an_unacceptable_new_password_changes_nothing(
    homeserver: Homeserver, body: dict, errcode: str
):
    alice = await homeserver.register("alice")

    response = await alice.request(
        "POST", "/account/password", {**body, "auth": password_auth(alice)}
    )

    assert (response.status, response.json["errcode"]) == (400, errcode)
    assert (await log_in(homeserver, "alice")).status == 200


# --- deactivation -------------------------------------------------------------------------------


async def test_a_deactivation_asks_for_the_password_and_then_is_final(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    await alice.call("PUT", f"/profile/{alice.user_id}/displayname", {"displayname": "Alice"})
    await alice.call("PUT", f"/user/{alice.user_id}/account_data/m.direct", {"a": 1})

    asked = await alice.request("POST", "/account/deactivate", {})
    wrong = await alice.request(
        "POST", "/account/deactivate", {"auth": password_auth(alice, "wrong")}
    )
    right = await alice.request(
        "POST", "/account/deactivate", {"erase": True, "auth": password_auth(alice)}
    )

    assert asked.status == 401
    assert asked.json["flows"] == [{"stages": ["m.login.password"]}]
    assert (wrong.status, wrong.json["errcode"]) == (401, "M_FORBIDDEN")
    assert {"flows", "params", "session", "error"} <= wrong.json.keys()
    assert (right.status, right.json) == (200, {"id_server_unbind_result": "success"})
    assert await status_of(homeserver, str(alice.token)) == (401, "M_UNKNOWN_TOKEN")
    profile = await homeserver.request("GET", f"/profile/{alice.user_id}")
    assert (profile.status, profile.json) == (200, {})
    for table in ("account_data", "devices", "profiles", "access_tokens"):
        count = await homeserver.services.db.fetchval(f"SELECT count(*) FROM {table}")  # noqa: S608
        assert (table, count) == (table, 0)
    again = await homeserver.request(
        "POST",
        "/register",
        {"username": "alice", "password": PASSWORD, "auth": {"type": "m.login.dummy"}},
    )
    assert (again.status, again.json["errcode"]) == (400, "M_USER_IN_USE")


async def test_without_erasure_the_profile_stays(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    await alice.call("PUT", f"/profile/{alice.user_id}/displayname", {"displayname": "Alice"})

    await deactivation.deactivate(homeserver.services, UserId(alice.user_id), erase=False)

    profile = await homeserver.request("GET", f"/profile/{alice.user_id}")
    assert profile.json == {"displayname": "Alice"}


@pytest.mark.spec("MSC3759#proposal")
async def test_a_deactivation_leaves_every_room_and_says_why(homeserver: Homeserver):
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    joined, invited = await bob.create_room(), await bob.create_room()
    await alice.join(joined)
    await bob.invite(invited, alice)

    await alice.call("POST", "/account/deactivate", {"auth": password_auth(alice)})

    for room_id in (joined, invited):
        member = await bob.call("GET", f"/rooms/{room_id}/state/m.room.member/{alice.user_id}")
        assert member["membership"] == "leave"
        assert member[DEACTIVATED.unstable] is True


async def test_a_deactivation_that_was_interrupted_goes_on_at_the_next_start(
    homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch
):
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await bob.create_room()
    await alice.join(room_id)
    member = f"/rooms/{room_id}/state/m.room.member/{alice.user_id}"

    async def stop(*_: object, **_kw: object) -> None:
        raise KeyError("the server stops here")

    with monkeypatch.context() as patch:
        patch.setattr(membership, "leave_for_good", stop)
        await alice.call("POST", "/account/deactivate", {"auth": password_auth(alice)})
    interrupted = await bob.call("GET", member)
    await resume(homeserver, alice)
    resumed = await bob.call("GET", member)

    assert await status_of(homeserver, str(alice.token)) == (401, "M_UNKNOWN_TOKEN")
    assert interrupted["membership"] == "join"
    assert resumed["membership"] == "leave"


async def resume(homeserver: Homeserver, user: User) -> None:
    """Let the time come at which a deactivation goes on."""
    services = homeserver.services
    assert await accounts.fetch_parting(services.db, user.user_id) is not None
    await accounts.mark_parting_due(services.db, user.user_id, services.clock.now_ms())
    await deactivation.resume_deactivations(services)


async def test_rooms_that_cannot_be_left_now_are_left_later(
    homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch
):
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await bob.create_room()
    await alice.join(room_id)

    async def fail(*_: object, **_kw: object) -> None:
        raise Unavailable("Not now.")

    with monkeypatch.context() as patch:
        patch.setattr(membership, "leave_for_good", fail)
        await alice.call("POST", "/account/deactivate", {"auth": password_auth(alice)})
    await resume(homeserver, alice)

    member = await bob.call("GET", f"/rooms/{room_id}/state/m.room.member/{alice.user_id}")
    assert member["membership"] == "leave"


# --- user-interactive authentication ------------------------------------------------------------


async def test_C07_a_session_serves_one_request_of_one_user_once(homeserver: Homeserver):
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    body = {"new_password": "another"}
    session = (await alice.request("POST", "/account/password", body)).json["session"]
    auth = password_auth(alice, session=session)

    another_endpoint = await alice.request("POST", "/account/deactivate", {**body, "auth": auth})
    another_body = await alice.request(
        "POST", "/account/password", {"new_password": "mallory's", "auth": auth}
    )
    another_user = await bob.request("POST", "/account/password", {**body, "auth": auth})
    by_another = await alice.request(
        "POST", "/account/password", {**body, "auth": password_auth(bob, session=session)}
    )
    right = await alice.request("POST", "/account/password", {**body, "auth": auth})
    new_auth = password_auth(alice, "another", session=session)
    again = await alice.request("POST", "/account/password", {**body, "auth": new_auth})

    for refused in (another_endpoint, another_body, another_user, by_another):
        assert (refused.status, refused.json["errcode"]) == (403, "M_FORBIDDEN")
    assert right.status == 200
    assert (again.status, again.json["errcode"]) == (401, "M_FORBIDDEN")
    assert again.json["session"] != session


async def test_C07_a_change_of_the_password_ends_sessions_under_way(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    session = (await alice.request("POST", "/account/deactivate", {})).json["session"]
    change = {"new_password": "another", "auth": password_auth(alice)}
    await alice.call("POST", "/account/password", change)

    auth = password_auth(alice, "another", session=session)
    response = await alice.request("POST", "/account/deactivate", {"auth": auth})

    assert (response.status, response.json["errcode"]) == (403, "M_FORBIDDEN")


async def test_C07_a_session_expires_and_is_cleared_away(database_url: str, tmp_path: Path):
    clock = ManualClock()
    async with running_homeserver(database_url, tmp_path, clock=clock) as homeserver:
        alice = await homeserver.register("alice")
        session = (await alice.request("POST", "/account/deactivate", {})).json["session"]
        clock.advance_ms(SESSION_LIFETIME_MS + 1)
        auth = password_auth(alice, session=session)
        late = await alice.request("POST", "/account/deactivate", {"auth": auth})
        left = await homeserver.services.db.fetchval(
            "SELECT count(*) FROM user_interactive_sessions"
        )

    assert (late.status, late.json["errcode"]) == (401, "M_FORBIDDEN")
    assert late.json["session"] != session
    assert left == 1


async def test_C07_of_two_who_use_a_session_at_once_one_succeeds(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    tablet = await as_user(homeserver, "alice")
    body = {"devices": [tablet.device_id or "X"]}
    session = (await alice.request("POST", "/delete_devices", body)).json["session"]
    request = {**body, "auth": password_auth(alice, session=session)}

    answers = await asyncio.gather(
        *(alice.request("POST", "/delete_devices", request) for _ in range(4))
    )

    assert sorted(a.status for a in answers)[0] == 200
    assert [a.status for a in answers].count(200) == 1


async def test_C11_no_password_is_kept_in_the_rows_of_sessions(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    body = {"new_password": "canary-new", "auth": password_auth(alice, "canary-wrong")}
    response = await alice.request("POST", "/account/password", body)
    registering = {"username": "bob", "password": "canary-bob"}
    await homeserver.request("POST", "/register", registering)

    rows = await homeserver.services.db.fetch(
        "SELECT t::text AS row FROM user_interactive_sessions t"
    )

    assert response.status == 401
    assert len(rows) == 2
    for row in rows:
        assert "canary" not in row["row"]
        assert response.json["session"] not in row["row"]


@pytest.mark.parametrize(
    ("auth", "status", "errcode"),
    [
        ([], 400, "M_BAD_JSON"),
        ({"type": 1}, 401, "M_UNRECOGNIZED"),
        ({"type": "m.login.dummy"}, 401, "M_UNRECOGNIZED"),
        ({"type": "m.login.password"}, 400, "M_MISSING_PARAM"),
        ({"type": "m.login.password", "password": "x"}, 400, "M_MISSING_PARAM"),
        ({"session": "unknown"}, 401, "M_FORBIDDEN"),
        ({}, 401, None),
    ],
    ids=repr,
)
async def test_C07_auth_of_another_shape_authorizes_nothing(
    homeserver: Homeserver, auth: object, status: int, errcode: str | None
):
    alice = await homeserver.register("alice")

    response = await alice.request("POST", "/account/deactivate", {"auth": auth})

    assert (response.status, response.json.get("errcode")) == (status, errcode)
    assert await status_of(homeserver, str(alice.token)) == (200, None)


@pytest.mark.spec("client-server-api#user-interactive-authentication-api")
async def test_the_stages_of_a_flow_are_completed_in_order_over_several_requests(
    homeserver: Homeserver,
):
    """No endpoint has a flow of two stages today; the rules for one are the specification's."""
    services = homeserver.services
    await registration_tokens.insert_registration_token(services.db, "t", None, None)
    operation = Operation("test", [("m.login.dummy", "m.login.registration_token")])
    token_stage = {"type": "m.login.registration_token", "token": "t"}

    with pytest.raises(UserInteractiveAuthRequired) as out_of_order:
        await authorize(services, operation, token_stage)
    with pytest.raises(UserInteractiveAuthRequired) as first_done:
        await authorize(services, operation, {"type": "m.login.dummy"})
    session = first_done.value.body["session"]
    with pytest.raises(UserInteractiveAuthRequired) as repeated:
        await authorize(services, operation, {"type": "m.login.dummy", "session": session})
    with pytest.raises(UserInteractiveAuthRequired) as failed:
        await authorize(services, operation, {**token_stage, "token": "wrong", "session": session})
    shown = await authorize(services, operation, {**token_stage, "session": session})

    assert out_of_order.value.body["errcode"] == "M_UNRECOGNIZED"
    assert "completed" not in out_of_order.value.body
    assert first_done.value.body["completed"] == ["m.login.dummy"]
    assert repeated.value.body == first_done.value.body
    assert failed.value.body["completed"] == ["m.login.dummy"]
    assert failed.value.body["errcode"] == "M_UNAUTHORIZED"
    assert shown == "t"
    with pytest.raises(UserInteractiveAuthRequired):
        await authorize(services, operation, {**token_stage, "session": session})


async def test_an_account_has_no_third_party_identifiers(homeserver: Homeserver):
    alice = await homeserver.register("alice")

    assert await alice.call("GET", "/account/3pid") == {"threepids": []}
