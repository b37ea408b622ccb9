"""Account data, tags, filters. Spec: client-server-api#client-config."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.helpers.homeserver import Homeserver

ROOM = "!room:hs1"


async def test_alice_stores_and_reads_account_data(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    user = f"/user/{alice.user_id}"
    for path in (f"{user}/account_data", f"{user}/rooms/{ROOM}/account_data"):
        assert await alice.call("PUT", f"{path}/org.example.a", {"key": ["\0", 1.5]}) == {}
        assert await alice.call("GET", f"{path}/org.example.a") == {"key": ["\0", 1.5]}
        assert await alice.call("PUT", f"{path}/org.example.a", {}) == {}
        assert await alice.call("GET", f"{path}/org.example.a") == {}
        missing = await alice.request("GET", f"{path}/org.example.b")
        assert (missing.status, missing.json["errcode"]) == (404, "M_NOT_FOUND")


async def test_account_data_is_ones_own(homeserver: Homeserver):
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    user = f"/user/{alice.user_id}"
    for path in (
        f"{user}/account_data/m.direct",
        f"{user}/rooms/{ROOM}/account_data/m.x",
        f"{user}/rooms/{ROOM}/tags/u.x",
        f"{user}/rooms/{ROOM}/tags",
        f"{user}/filter/0",
    ):
        for method in ("GET", "PUT"):
            response = await bob.request(method, path, b"{}" if method == "PUT" else None)
            assert response.status in (403, 405), (method, path)


async def test_nobody_ignores_themselves(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    path = f"/user/{alice.user_id}/account_data/m.ignored_user_list"
    await alice.call("PUT", path, {"ignored_users": {"@spam:elsewhere": {}}})
    response = await alice.request("PUT", path, {"ignored_users": {alice.user_id: {}}})
    assert (response.status, response.json["errcode"]) == (400, "M_INVALID_PARAM")
    assert await alice.call("GET", path) == {"ignored_users": {"@spam:elsewhere": {}}}


@pytest.mark.parametrize("data_type", ["m.push_rules", "m.fully_read"])
async def test_what_the_server_writes_is_not_for_clients_to_write(
    homeserver: Homeserver, data_type: str
):
    alice = await homeserver.register("alice")

    for scope in ("", f"/rooms/{ROOM}"):
        path = f"/user/{alice.user_id}{scope}/account_data/{data_type}"
        response = await alice.request("PUT", path, {})
        assert (response.status, response.json["errcode"]) == (405, "M_BAD_JSON")


@pytest.mark.parametrize(
    ("path", "body", "errcode"),
    [
        ("account_data/a", b"[]", "M_BAD_JSON"),
        ("account_data/a", b"{", "M_NOT_JSON"),
        ("account_data/a", b"", "M_NOT_JSON"),
        ("account_data/" + "a" * 256, {}, "M_INVALID_PARAM"),
        ("account_data/%00", {}, "M_INVALID_PARAM"),
        ("rooms/room/account_data/a", {}, "M_INVALID_PARAM"),
        ("rooms/@room:hs1/account_data/a", {}, "M_INVALID_PARAM"),
        (f"rooms/{ROOM}/tags/a", {"order": "1"}, "M_BAD_JSON"),
        (f"rooms/{ROOM}/tags/" + "a" * 256, {}, "M_INVALID_PARAM"),
        ("rooms/room/tags/a", {}, "M_INVALID_PARAM"),
    ],
)
async def test_what_cannot_be_stored_is_refused(
    homeserver: Homeserver, path: str, body: object, errcode: str
):
    alice = await homeserver.register("alice")

    response = await alice.request("PUT", f"/user/{alice.user_id}/{path}", body)

    assert (response.status, response.json["errcode"]) == (400, errcode)


async def test_tags_come_and_go(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    tags = f"/user/{alice.user_id}/rooms/{ROOM}/tags"
    assert await alice.call("GET", tags) == {"tags": {}}

    await alice.call("PUT", f"{tags}/m.favourite", {"order": 0.1})
    await alice.call("PUT", f"{tags}/u.Work", {})
    assert await alice.call("GET", tags) == {"tags": {"m.favourite": {"order": 0.1}, "u.Work": {}}}
    for _ in range(2):
        assert await alice.call("DELETE", f"{tags}/m.favourite") == {}

    assert await alice.call("GET", tags) == {"tags": {"u.Work": {}}}
    stored = await alice.call("GET", f"/user/{alice.user_id}/rooms/{ROOM}/account_data/m.tag")
    assert stored == {"tags": {"u.Work": {}}}


async def test_tags_that_are_set_at_once_are_all_there(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    tags = f"/user/{alice.user_id}/rooms/{ROOM}/tags"

    await asyncio.gather(*(alice.call("PUT", f"{tags}/u.{n}", {}) for n in range(20)))

    assert len((await alice.call("GET", tags))["tags"]) == 20


# --- filters ------------------------------------------------------------------------------------


async def test_a_filter_is_stored_once_and_given_back(homeserver: Homeserver):
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    one = {"room": {"timeline": {"limit": 10, "types": ["m.*"]}}, "org.example": 1}
    path = f"/user/{alice.user_id}/filter"

    ids = [(await alice.call("POST", path, f))["filter_id"] for f in (one, {}, one)]

    assert ids == ["0", "1", "0"]
    assert await alice.call("GET", f"{path}/0") == one
    assert await alice.call("GET", f"{path}/1") == {}
    assert (await bob.request("GET", f"/user/{bob.user_id}/filter/0")).status == 404


async def test_filters_defined_at_once_get_ids_of_their_own(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    path = f"/user/{alice.user_id}/filter"

    answers = await asyncio.gather(
        *(alice.call("POST", path, {"room": {"timeline": {"limit": n % 4}}}) for n in range(12))
    )

    assert {a["filter_id"] for a in answers} == {"0", "1", "2", "3"}


@pytest.mark.parametrize("filter_id", ["7", "x", "-1", "9" * 30, "%00", "١"])
async def test_a_filter_that_is_not_there_is_a_404(homeserver: Homeserver, filter_id: str):
    alice = await homeserver.register("alice")

    response = await alice.request("GET", f"/user/{alice.user_id}/filter/{filter_id}")

    assert response.status in (400, 404)


@pytest.mark.parametrize(
    "definition",
    [
        {"presence": 1},
        {"room": {"timeline": []}},
        {"room": {"timeline": {"types": "m.room.message"}}},
        {"room": {"timeline": {"types": [1]}}},
        {"room": {"timeline": {"rooms": ["not_a_room_id"]}}},
        {"room": {"timeline": {"senders": ["not_a_sender_id"]}}},
        b"[]",
    ],
    ids=repr,
)
async def test_what_is_no_filter_is_refused(homeserver: Homeserver, definition: object):
    alice = await homeserver.register("alice")

    response = await alice.request("POST", f"/user/{alice.user_id}/filter", definition)

    assert (response.status, response.json["errcode"]) == (400, "M_BAD_JSON")


async def test_C14_a_filter_with_lists_without_end_is_refused(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    bomb = {"room": {"timeline": {"types": ["*a"] * 10_001}}}

    response = await alice.request("POST", f"/user/{alice.user_id}/filter", bomb)

    assert response.status in (400, 413)
