"""Devices. Spec: client-server-api#device-management."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from minihs.base.clock import ManualClock
from minihs.services.accounts.authentication import LAST_SEEN_INTERVAL_MS, LAST_SEEN_TASK
from tests.api.test_account import password_auth
from tests.api.test_login import as_user, status_of
from tests.helpers.homeserver import running_homeserver

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.homeserver import Homeserver


async def test_alice_sees_and_names_her_devices(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    await as_user(homeserver, "alice", device_id="TABLET", initial_device_display_name="Tablet")

    assert (await alice.call("GET", "/devices/TABLET"))["display_name"] == "Tablet"
    await alice.call("PUT", "/devices/TABLET", {"display_name": "Old tablet"})
    await alice.call("PUT", "/devices/TABLET", {})

    listed = (await alice.call("GET", "/devices"))["devices"]
    assert [d["device_id"] for d in listed] == [alice.device_id, "TABLET"]
    assert listed[0]["display_name"] == ""
    assert listed[1]["display_name"] == "Old tablet"
    assert listed[1]["last_seen_ip"] == "127.0.0.1"
    assert listed[1]["last_seen_ts"] > 0


@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_nobody_has_anybody_elses_devices(homeserver: Homeserver, method: str):
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")

    for device_id in (bob.device_id, "unknown"):
        body = {"display_name": "mine"} if method == "PUT" else None
        response = await alice.request(method, f"/devices/{device_id}", body)
        assert (response.status, response.json["errcode"]) == (404, "M_NOT_FOUND")


@pytest.mark.parametrize("name", ["x" * 101, "\0", 1], ids=repr)
async def test_a_name_that_is_none_is_refused(homeserver: Homeserver, name: object):
    alice = await homeserver.register("alice")

    response = await alice.request("PUT", f"/devices/{alice.device_id}", {"display_name": name})

    assert response.status == 400


async def test_a_device_is_deleted_with_its_session_once_the_password_is_given(
    homeserver: Homeserver,
):
    alice = await homeserver.register("alice")
    tablet = await as_user(homeserver, "alice", device_id="TABLET")

    asked = await alice.request("DELETE", "/devices/TABLET")
    wrong = await alice.request(
        "DELETE", "/devices/TABLET", {"auth": password_auth(alice, "wrong")}
    )
    before = await alice.request("GET", "/devices/TABLET")
    right = await alice.request("DELETE", "/devices/TABLET", {"auth": password_auth(alice)})
    again = await alice.request("DELETE", "/devices/TABLET", {"auth": password_auth(alice)})
    after = await alice.request("GET", "/devices/TABLET")

    assert asked.status == 401
    assert {"session", "flows", "params"} <= asked.json.keys()
    assert (wrong.status, wrong.json["errcode"]) == (401, "M_FORBIDDEN")
    assert {"session", "flows", "params", "error"} <= wrong.json.keys()
    assert before.status == 200
    assert (right.status, again.status, after.status) == (200, 200, 404)
    assert await status_of(homeserver, str(tablet.token)) == (401, "M_UNKNOWN_TOKEN")


async def test_C07_somebody_elses_password_deletes_nothing(homeserver: Homeserver):
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    path = f"/devices/{alice.device_id}"

    response = await alice.request("DELETE", path, {"auth": password_auth(bob)})
    of_another = await bob.request("DELETE", path, {"auth": password_auth(bob)})

    assert (response.status, response.json["errcode"]) == (403, "M_FORBIDDEN")
    assert of_another.status == 200  # Bob has no such device: it is as good as deleted.
    assert (await alice.request("GET", path)).status == 200


async def test_C07_a_session_for_one_device_does_not_delete_another(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    for device_id in ("TABLET", "PHONE"):
        await as_user(homeserver, "alice", device_id=device_id)
    session = (await alice.request("DELETE", "/devices/TABLET")).json["session"]

    auth = password_auth(alice, session=session)
    phone = await alice.request("DELETE", "/devices/PHONE", {"auth": auth})
    both = await alice.request(
        "POST", "/delete_devices", {"devices": ["TABLET", "PHONE"], "auth": auth}
    )

    assert (phone.status, both.status) == (403, 403)
    assert len((await alice.call("GET", "/devices"))["devices"]) == 3


async def test_several_devices_go_at_once(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    for device_id in ("TABLET", "PHONE"):
        await as_user(homeserver, "alice", device_id=device_id)

    body = {"devices": ["TABLET", "PHONE", "unknown"]}
    session = (await alice.request("POST", "/delete_devices", body)).json["session"]
    auth = password_auth(alice, session=session)
    assert await alice.call("POST", "/delete_devices", {**body, "auth": auth}) == {}

    assert len((await alice.call("GET", "/devices"))["devices"]) == 1
    missing = await alice.request("POST", "/delete_devices", {})
    assert (missing.status, missing.json["errcode"]) == (400, "M_BAD_JSON")


async def test_a_device_was_last_seen_within_minutes(database_url: str, tmp_path: Path):
    clock = ManualClock()
    async with running_homeserver(database_url, tmp_path, clock=clock) as homeserver:
        alice = await homeserver.register("alice")
        path, seen = f"/devices/{alice.device_id}", []
        for _ in range(3):
            await alice.call("GET", path)
            # It is noted beside the request.
            tasks = [t for worker in homeserver.workers for t in worker.tasks._tasks]
            await asyncio.gather(*(t for t in tasks if t.get_name() == LAST_SEEN_TASK))
            seen.append((await alice.call("GET", path))["last_seen_ts"])
            clock.advance_ms(LAST_SEEN_INTERVAL_MS // 2 + 1)

    assert seen[0] == seen[1]
    assert seen[2] == seen[0] + LAST_SEEN_INTERVAL_MS + 2
