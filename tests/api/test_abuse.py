"""Users who want too much, or what is not theirs: C14, C16, C17, C19, C20 of the list of attacks.

What is missing of C19 are uploads of keys: who stores keys bounds them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import orjson
import pytest

from minihs.api.client import sliding_sync
from minihs.api.routes import ROUTES
from minihs.protocol import push_rule_edits
from minihs.protocol.globs import compile_glob
from minihs.services.accounts import account_data, filters, sessions
from minihs.services.rooms import aliases
from minihs.services.sync.streams import timeline
from tests.helpers.homeserver import PASSWORD

if TYPE_CHECKING:
    from tests.helpers.homeserver import Homeserver, User

SLIDING = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
FULL = "M_RESOURCE_LIMIT_EXCEEDED"


@pytest.fixture
async def alice(homeserver: Homeserver) -> User:
    return await homeserver.register("alice")


@pytest.fixture
async def bob(homeserver: Homeserver) -> User:
    return await homeserver.register("bob")


# --- bounds of what is asked for ------------------------------------------------------------------


@pytest.mark.parametrize("limit", [10**9, 2**53 - 1])
async def test_C14_no_filter_makes_a_timeline_larger_than_the_largest(
    homeserver: Homeserver, alice: User, monkeypatch: pytest.MonkeyPatch, limit: int
):
    monkeypatch.setattr(timeline, "TIMELINE_LIMIT_MAX", 3)
    monkeypatch.setattr(sliding_sync, "SLIDING_TIMELINE_LIMIT_MAX", 3)
    room = await alice.create_room()
    for number in range(8):
        await alice.say(room, f"{number}")
    bomb = {"room": {"timeline": {"limit": limit}, "state": {"limit": limit}}, "limit": limit}
    answer = await alice.sync(filter=orjson.dumps(bomb).decode())
    assert len(answer["rooms"]["join"][room]["timeline"]["events"]) == 3
    one = {"ranges": [[0, limit]], "timeline_limit": limit, "required_state": []}
    response = await alice.request("POST", SLIDING, {"lists": {"a": one}}, timeout="0")
    if response.status == 200:
        assert len(response.json["rooms"][room]["timeline"]) == 3
    else:
        assert response.status == 400


@pytest.mark.shapes_events
@pytest.mark.parametrize(
    "bomb",
    [
        {"room": {"timeline": {"types": ["*a"] * 10_001}}},
        {"room": {"timeline": {"senders": [f"@{n}:hs1" for n in range(40_000)]}}},
        {"room": {"rooms": [f"!{n}:hs1" for n in range(40_000)]}},
        {"room": {"timeline": {"contains_url": [[[[[True]]]]]}}},
        {"room": {"timeline": {"contains_url": {"a": {"b": True}}}}},
        {"room": {"timeline": {"limit": -1}}},
        {"room": {"timeline": {"limit": 10**400}}},
        {"event_fields": ["a." * 10_000] * 10},
        {"event_fields": ["a"] * 10_001},
        {"room": {"timeline": {"types": ["*" * 100_000]}}},
    ],
    ids=lambda bomb: str(bomb)[:40],
)
async def test_C14_filters_that_are_bombs_are_refused_or_harmless(alice: User, bomb: object):
    room = await alice.create_room()
    await alice.say(room)
    try:
        text = orjson.dumps(bomb)
    except TypeError:
        text = b'{"room":{"timeline":{"limit":1%b}}}' % (b"0" * 400)
    made = await alice.request("POST", f"/user/{quote(alice.user_id)}/filter", text)
    assert made.status in (200, 400, 413)
    if len(text) < 6_000:
        inline = await alice.request("GET", "/sync", filter=text.decode(), timeout="0")
        assert inline.status in (200, 400)
    if made.status == 200:
        answer = await alice.request(
            "GET", "/sync", filter=made.json["filter_id"], timeout="0", full_state="true"
        )
        assert answer.status == 200


# --- what is not theirs ---------------------------------------------------------------------------


@pytest.mark.parametrize("was", ["never there", "left", "kicked", "banned"])
@pytest.mark.parametrize("visibility", ["shared", "joined"])
async def test_C16_a_subscription_to_a_room_that_one_is_not_in_tells_nothing_of_it(
    alice: User, bob: User, was: str, visibility: str
):
    room = await alice.create_room(preset="private_chat")
    content = {"history_visibility": visibility}
    await alice.put_state(room, "m.room.history_visibility", content)
    if was != "never there":
        await alice.invite(room, bob)
        await bob.join(room)
        await bob.say(room, "I was here")
    path = f"/rooms/{quote(room)}"
    match was:
        case "left":
            await bob.leave(room)
        case "kicked" | "banned":
            verb = was.removesuffix("ed").removesuffix("n") if was == "banned" else "kick"
            await alice.call("POST", f"{path}/{verb}", {"user_id": bob.user_id})
        case _:
            pass
    await alice.put_state(room, "m.room.topic", {"topic": "secret"})
    await alice.say(room, "secret")
    wanted = {"timeline_limit": 20, "required_state": [["*", "*"]]}
    body = {
        "room_subscriptions": {room: wanted},
        "lists": {"all": {**wanted, "ranges": [[0, 20]]}},
        "extensions": {"receipts": {"enabled": True}, "typing": {"enabled": True},
                       "account_data": {"enabled": True}},
    }  # fmt: skip
    query: dict[str, str] = {}
    for _ in range(2):
        response = await bob.request("POST", SLIDING, body, timeout="0", **query)
        assert response.status == 200
        assert b"secret" not in response.body
        if was == "never there":
            assert room.encode() not in response.body
        await alice.say(room, "secret again")
        await alice.call("PUT", f"{path}/typing/{quote(alice.user_id)}", {"typing": True})
        query = {"pos": response.json["pos"]}


# --- quotas ---------------------------------------------------------------------------------------


async def test_C19_account_data_has_an_end(alice: User, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(account_data, "ACCOUNT_DATA_OF_USER_MAX", 5)
    path = f"/user/{quote(alice.user_id)}/account_data"
    for number in range(5):
        await alice.call("PUT", f"{path}/org.example.{number}", {"n": number})
    refused = await alice.request("PUT", f"{path}/org.example.6", {})
    assert (refused.status, refused.json["errcode"]) == (403, FULL)
    await alice.call("PUT", f"{path}/org.example.0", {"n": "changed"})
    monkeypatch.setattr(account_data, "ACCOUNT_DATA_BYTES_OF_USER_MAX", 100)
    await alice.call("PUT", f"{path}/org.example.0", {"n": "x" * 200})
    refused = await alice.request("PUT", f"{path}/org.example.1", {})
    assert (refused.status, refused.json["errcode"]) == (403, FULL)
    await alice.call("PUT", f"{path}/org.example.0", {})  # What is too much can be taken back.
    await alice.call("PUT", f"{path}/org.example.1", {})


async def test_C19_filters_have_an_end(alice: User, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(filters, "FILTERS_PER_USER_MAX", 3)
    path = f"/user/{quote(alice.user_id)}/filter"
    for limit in (1, 2, 3, 3, 2, 1):
        await alice.call("POST", path, {"room": {"timeline": {"limit": limit}}})
    refused = await alice.request("POST", path, {"room": {"timeline": {"limit": 4}}})
    assert (refused.status, refused.json["errcode"]) == (403, FULL)


async def test_C19_devices_have_an_end(alice: User, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sessions, "DEVICES_OF_USER_MAX", 3)
    identifier = {"type": "m.id.user", "user": alice.user_id}
    login = {"type": "m.login.password", "identifier": identifier, "password": PASSWORD}
    for device_id in ("A", "B", "B", "A"):
        assert (await alice.call("POST", "/login", {**login, "device_id": device_id}))["user_id"]
    refused = await alice.request("POST", "/login", {**login, "device_id": "C"})
    assert (refused.status, refused.json["errcode"]) == (403, FULL)
    refused = await alice.request("POST", "/login", login)
    assert refused.status == 403
    assert len((await alice.call("GET", "/devices"))["devices"]) == 3


async def test_C19_a_room_has_an_end_of_names(alice: User, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(aliases, "ALIASES_OF_ROOM_MAX", 2)
    room = await alice.create_room()
    path = f"/directory/room/{quote('#')}"
    for name in ("a", "b"):
        await alice.call("PUT", f"{path}{name}:hs1", {"room_id": room})
    refused = await alice.request("PUT", f"{path}c:hs1", {"room_id": room})
    assert (refused.status, refused.json["errcode"]) == (403, FULL)
    await alice.call("DELETE", f"{path}a:hs1")
    await alice.call("PUT", f"{path}c:hs1", {"room_id": room})


async def test_C17_C19_push_rules_and_their_patterns_have_an_end(
    alice: User, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(push_rule_edits, "OWN_RULES_COUNT_MAX", 3)
    path = "/pushrules/global/content"
    rule = {"actions": ["notify"], "pattern": "x"}
    for number in range(3):
        await alice.call("PUT", f"{path}/r{number}", rule)
    assert (await alice.request("PUT", f"{path}/r4", rule)).status == 400
    for pattern in ("x" * (push_rule_edits.PATTERN_LENGTH_MAX + 1), "*" * 1_000_000):
        refused = await alice.request("PUT", f"{path}/r0", {**rule, "pattern": pattern})
        assert refused.status in (400, 413)
    rules = (await alice.call("GET", "/pushrules/"))["global"]["content"]
    assert [r["pattern"] for r in rules if r["rule_id"].startswith("r")] == ["x"] * 3


@pytest.mark.parametrize("pattern", ["a*" * 512, "*a" * 512, "?*" * 512, "*" * 1024, "a?" * 512])
def test_C17_no_pattern_takes_longer_than_reading_the_text(pattern: str):
    """A matcher that tries every way would not come to an end on the first of these."""
    for text in ("a" * 60_000, "a" * 60_000 + "b", "ab" * 30_000):
        glob = compile_glob(pattern + "c")
        assert not glob.matches(text)


async def test_C17_a_rule_made_to_hurt_lets_messages_through(alice: User, bob: User):
    room = await alice.create_room()
    await bob.join(room)
    await bob.call(
        "PUT", "/pushrules/global/content/evil",
        {"actions": ["notify"], "pattern": "a*" * 511 + "c"},
    )  # fmt: skip
    await bob.sync()
    event_id = await alice.say(room, "a" * 60_000)
    joined = (await bob.sync())["rooms"]["join"][room]
    assert [event["event_id"] for event in joined["timeline"]["events"]] == [event_id]


# --- administration -------------------------------------------------------------------------------

ADMIN = sorted(
    (route.method, route.path)
    for route in ROUTES
    if "/admin/" in route.path and not route.path.endswith("/v1/register")
)


@pytest.mark.parametrize(("method", "path"), ADMIN)
async def test_C20_administration_takes_an_administrators_own_token(
    homeserver: Homeserver, alice: User, method: str, path: str
):
    """Not a user's, nor a server's, nor nobody's. (What needs a shared secret is C03.)"""
    where = path.replace("{userId}", quote("@bob:hs1")).replace("{token}", "t")
    body = {} if method in ("POST", "PUT") else None
    refused = await alice.request(method, where, body)
    assert (refused.status, refused.json["errcode"]) == (403, "M_FORBIDDEN")
    refused = await homeserver.stranger().request(method, where, body)
    assert refused.status == 401
    signed = 'X-Matrix origin="hs1",destination="hs1",key="ed25519:1",sig="AAAA"'
    refused = await homeserver.request(method, where, body, headers={"Authorization": signed})
    assert refused.status == 401


async def test_C20_what_is_said_in_a_room_is_never_a_command(homeserver: Homeserver, alice: User):
    """There is no room whose messages the server obeys, whoever sends them."""
    bob = await homeserver.register("bob")
    room = await alice.create_room(invite=[bob.user_id], room_alias_name="admins")
    for text in ("!admin users deactivate @bob:hs1", "/deactivate @bob:hs1", "\\!admin shutdown"):
        await alice.say(room, text)
        await alice.send(room, "org.matrix.admin.command", {"command": text})
    assert (await bob.call("GET", "/account/whoami"))["user_id"] == bob.user_id
    members = await alice.call("GET", f"/rooms/{quote(room)}/members")
    assert {m["sender"] for m in members["chunk"]} == {alice.user_id}
