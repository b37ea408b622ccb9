"""Sending messages, state and redactions. Spec: client-server-api#sending-events-to-a-room."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from tests.helpers.homeserver import User

if TYPE_CHECKING:
    from tests.helpers.homeserver import Homeserver

TEXT = {"msgtype": "m.text", "body": "hello"}


async def put(user: User, room_id: str, rest: str, content: object) -> tuple[int, str]:
    """Send something; return the status, and the event id or errcode."""
    response = await user.request("PUT", f"/rooms/{quote(room_id)}/{rest}", content)
    return response.status, response.json.get("event_id") or response.json["errcode"]


async def event(user: User, room_id: str, event_id: str) -> dict:
    """Return an event as somebody sees it."""
    return await user.call("GET", f"/rooms/{quote(room_id)}/event/{quote(event_id)}")


async def test_only_those_in_the_room_send(homeserver: Homeserver):
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room()

    assert (await put(alice, room_id, "send/m.room.message/1", TEXT))[0] == 200
    assert await put(bob, room_id, "send/m.room.message/1", TEXT) == (403, "M_FORBIDDEN")
    assert await put(alice, "!no:hs1", "send/m.room.message/1", TEXT) == (404, "M_NOT_FOUND")
    assert await put(bob, room_id, "state/m.room.topic", {"topic": "x"}) == (403, "M_FORBIDDEN")


async def test_a_transaction_id_is_good_for_one_event(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    room_id, other = await alice.create_room(), await alice.create_room()
    body = {"type": "m.login.password", "password": "correct horse battery staple"}
    login = await homeserver.request(
        "POST", "/login", body | {"identifier": {"type": "m.id.user", "user": "alice"}}
    )
    second_device = User(homeserver, alice.user_id, login.json["access_token"])

    _, first = await put(alice, room_id, "send/m.room.message/t", TEXT)

    assert await put(alice, room_id, "send/m.room.message/t", {"body": "x"}) == (200, first)
    others = [
        await put(alice, other, "send/m.room.message/t", TEXT),
        await put(alice, room_id, "send/m.other/t", TEXT),
        await put(second_device, room_id, "send/m.room.message/t", TEXT),
        await put(alice, room_id, f"redact/{quote(first)}/t", {}),
    ]
    assert [status for status, _ in others] == [200] * 4
    assert len({first, *(event_id for _, event_id in others)}) == 5
    again = await put(alice, room_id, f"redact/{quote(first)}/t", {"reason": "again"})
    assert again == others[3]
    assert await put(alice, room_id, f"redact/{quote(others[1][1])}/t", {}) != others[3]


async def test_a_repeated_request_gets_its_first_answer_even_after_leaving(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    room_id = await alice.create_room()
    first = await put(alice, room_id, "send/m.room.message/t", TEXT)
    await alice.leave(room_id)

    assert await put(alice, room_id, "send/m.room.message/t", TEXT) == first
    assert await put(alice, room_id, "send/m.room.message/u", TEXT) == (403, "M_FORBIDDEN")


async def test_requests_at_the_same_time_with_one_transaction_id(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    room_id = await alice.create_room()

    answers = await asyncio.gather(
        *(put(alice, room_id, "send/m.room.message/t", TEXT) for _ in range(6))
    )

    assert len(set(answers)) == 1
    assert answers[0][0] == 200


@pytest.mark.parametrize("where", ["send/m.x/t", "state/m.x"])
async def test_what_cannot_be_an_event(homeserver: Homeserver, where: str):
    alice = await homeserver.register("alice")
    room_id = await alice.create_room()
    table: list[tuple[object, tuple[int, str]]] = [
        (b'"text"', (400, "M_BAD_JSON")),
        (b"[]", (400, "M_BAD_JSON")),
        (b"{", (400, "M_NOT_JSON")),
        (b'{"a": "\xff"}', (400, "M_NOT_JSON")),
        (b'{"a": 1.5}', (400, "M_BAD_JSON")),
        (b'{"a": 1e2}', (400, "M_BAD_JSON")),
        (b'{"a": 9007199254740992}', (400, "M_BAD_JSON")),
        (b'{"a": -9007199254740992}', (400, "M_BAD_JSON")),
        (b'{"a": NaN}', (400, "M_NOT_JSON")),
        ({"a": "x" * 65_536}, (413, "M_TOO_LARGE")),
    ]

    for content, expected in table:
        assert await put(alice, room_id, where, content) == expected, str(content)[:40]
    assert (await put(alice, room_id, where, b'{"a": 9007199254740991, "b": "\\u0000"}'))[0] == 200
    assert (await put(alice, room_id, "send/" + "x" * 256 + "/1", {}))[0] == 413


@pytest.mark.parametrize("path", ["send/m.room.message/1", "state/m.room.topic"])
async def test_an_event_has_a_content(homeserver: Homeserver, path: str):
    alice = await homeserver.register("alice")
    room_id = await alice.create_room()
    assert await put(alice, room_id, path, None) == (400, "M_NOT_JSON")
    assert (await put(alice, room_id, path, {}))[0] == 200


async def test_the_reason_of_a_redaction_is_a_text(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    room_id = await alice.create_room()
    event_id = await alice.say(room_id)
    path = f"redact/{quote(event_id)}"
    assert await put(alice, room_id, f"{path}/1", {"reason": 5}) == (400, "M_BAD_JSON")
    assert (await put(alice, room_id, f"{path}/2", {"reason": "spam"}))[0] == 200
    other = await alice.say(room_id)
    assert (await put(alice, room_id, f"redact/{quote(other)}/3", None))[0] == 200


async def test_state_that_says_the_same_is_not_sent_again(homeserver: Homeserver):
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room()
    await bob.join(room_id)
    await alice.put_state(
        room_id, "m.room.power_levels", {"users": {alice.user_id: 100, bob.user_id: 100}}
    )

    _, first = await put(alice, room_id, "state/m.room.topic", {"topic": "x"})

    for path in ("state/m.room.topic/", "state/m.room.topic"):
        assert await put(alice, room_id, path, {"topic": "x"}) == (200, first)
    others = [
        await put(alice, room_id, "state/m.room.topic/key", {"topic": "x"}),
        await put(bob, room_id, "state/m.room.topic", {"topic": "x"}),
        await put(bob, room_id, "state/m.room.topic", {"topic": "y"}),
    ]
    assert len({first, *(event_id for _, event_id in others)}) == 4
    sent = await event(alice, room_id, others[0][1])
    assert (sent["state_key"], sent["content"]) == ("key", {"topic": "x"})

    await bob.leave(room_id)
    assert (await put(bob, room_id, "state/m.room.topic", {"topic": "y"}))[0] == 403


@pytest.mark.parametrize("version", ["10", "11", "12"])
async def test_rooms_are_created_once(homeserver: Homeserver, version: str):
    alice = await homeserver.register("alice")
    room_id = await alice.create_room(room_version=version)

    for where in ("state/m.room.create", "state/m.room.create/x", "send/m.room.create/1"):
        assert await put(alice, room_id, where, {"room_version": version}) == (400, "M_BAD_JSON")


async def test_power(homeserver: Homeserver):
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room()
    await bob.join(room_id)
    levels = {"users": {alice.user_id: 100}, "events": {"m.special": 10}, "events_default": 0}
    await alice.put_state(room_id, "m.room.power_levels", levels)

    async def may(user: User, where: str) -> bool:
        return (await put(user, room_id, where, {}))[0] == 200

    assert await may(bob, "send/m.room.message/1")
    assert not await may(bob, "send/m.special/1")
    assert not await may(bob, "state/m.room.name")
    assert not await may(bob, f"state/m.x/{quote(alice.user_id)}")
    assert not await may(alice, f"state/m.x/{quote(bob.user_id)}")
    assert await may(alice, f"state/m.x/{quote(alice.user_id)}")
    own = {alice.user_id: 100, bob.user_id: 1}
    assert (await put(bob, room_id, "state/m.room.power_levels", {"users": own}))[0] == 403


async def test_since_version_12_creators_keep_out_of_the_power_levels(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    room_id = await alice.create_room(room_version="12")

    content = {"users": {alice.user_id: 100}}
    assert await put(alice, room_id, "state/m.room.power_levels", content) == (400, "M_BAD_JSON")
    assert (await put(alice, room_id, "state/m.room.power_levels", {"users": {}}))[0] == 200


@pytest.mark.parametrize("version", ["2", "9", "11", "12"])
async def test_redactions(homeserver: Homeserver, version: str):
    alice, bob, carol = [await homeserver.register(name) for name in ("alice", "bob", "carol")]
    room_id, elsewhere = await alice.create_room(room_version=version), await alice.create_room()
    await bob.join(room_id)
    by_alice, by_bob = await alice.say(room_id), await bob.say(room_id)
    own, other = await bob.say(room_id), await alice.say(elsewhere)

    async def redact(user: User, event_id: str) -> tuple[int, str]:
        return await put(user, room_id, f"redact/{quote(event_id)}/r", {"reason": "gone"})

    assert await redact(bob, by_alice) == (403, "M_FORBIDDEN")
    assert await redact(carol, by_alice) == (403, "M_FORBIDDEN")
    assert await redact(alice, other) == (404, "M_NOT_FOUND")
    assert await redact(alice, "unknown") == (404, "M_NOT_FOUND")

    async def redact_unknown() -> tuple[int, str]:
        return await put(alice, room_id, "redact/$unknown/u", {})

    assert (await redact_unknown())[0] == 200  # Other servers may know it.
    assert (await redact(bob, own))[0] == 200
    status, redaction = await redact(alice, by_bob)
    assert status == 200
    seen = await event(alice, room_id, by_bob)
    assert seen["content"] == {}
    assert seen["unsigned"]["redacted_because"]["event_id"] == redaction
    sent = await event(alice, room_id, redaction)
    assert sent["content"]["reason"] == "gone"
    assert by_bob in (sent.get("redacts"), sent["content"].get("redacts"))


@pytest.mark.parametrize("version", ["9", "11"])
async def test_redactions_through_send(homeserver: Homeserver, version: str):
    alice = await homeserver.register("alice")
    room_id = await alice.create_room(room_version=version)
    target = await alice.say(room_id)

    nothing = await put(alice, room_id, "send/m.room.redaction/1", {"reason": "x"})
    assert nothing == (400, "M_BAD_JSON")
    redaction = await alice.send(room_id, "m.room.redaction", {"redacts": target, "reason": "x"})

    assert (await event(alice, room_id, target))["content"] == {}
    stored = await homeserver.services.events.get(redaction)  # type: ignore[arg-type]
    assert stored is not None
    assert ("redacts" in stored.event.pdu) == (version == "9")
    assert ("redacts" in stored.event.content) == (version == "11")


async def test_canonical_aliases_are_checked_when_they_are_new(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    room_id = await alice.create_room(room_alias_name="one")
    await alice.create_room(room_alias_name="other")
    for alias in ("#two:hs1", "#three:hs1"):
        await alice.call("PUT", f"/directory/room/{quote(alias)}", {"room_id": room_id})

    async def name(content: object) -> tuple[int, str | None]:
        path = f"/rooms/{quote(room_id)}/state/m.room.canonical_alias"
        response = await alice.request("PUT", path, content)
        return response.status, response.json.get("errcode")

    table: list[tuple[object, tuple[int, str | None]]] = [
        ({"alias": "#two:hs1", "alt_aliases": ["#one:hs1", "#three:hs1"]}, (200, None)),
        ({"alias": "#missing:hs1"}, (400, "M_BAD_ALIAS")),
        ({"alias": "#other:hs1"}, (400, "M_BAD_ALIAS")),
        ({"alias": "%invalid:hs1"}, (400, "M_INVALID_PARAM")),
        ({"alt_aliases": ["#missing:hs1"]}, (400, "M_BAD_ALIAS")),
        ({"alt_aliases": ["#two:hs1", "invalid"]}, (400, "M_INVALID_PARAM")),
        ({"alt_aliases": [7]}, (400, "M_INVALID_PARAM")),
        ({"alt_aliases": "#two:hs1"}, (400, "M_INVALID_PARAM")),
        ({"alias": None}, (200, None)),
        ({"alias": "#two:hs1"}, (200, None)),
    ]
    for content, expected in table:
        assert await name(content) == expected, content

    await alice.call("DELETE", f"/directory/room/{quote('#two:hs1')}")
    assert await name({"alias": "#two:hs1"}) == (400, "M_BAD_ALIAS")


async def test_a_nul_is_refused_where_the_database_could_not_hold_it(homeserver: Homeserver):
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room()
    allow = [{"type": "m.room_membership", "room_id": "!\0"}]
    thread = {"m.relates_to": {"rel_type": "m.thread", "event_id": "$\0"}}
    profile = {"membership": "join", "displayname": "a\0b", "avatar_url": "\0"}
    table: list[tuple[str, object, int]] = [
        ("send/m.x/1", {"body": "\0"}, 200),
        ("send/m.x/2", thread, 200),
        (f"state/m.room.member/{quote(alice.user_id)}", profile, 200),
        ("state/m.room.name", {"name": "\0"}, 200),
        ("state/m.room.canonical_alias", {"alias": "#\0:hs1"}, 400),
        ("state/m.x/%00", {}, 400),
        ("send/m.x/%00", {}, 400),
        ("send/m.room.redaction/3", {"redacts": "$\0"}, 404),
        ("state/m.room.join_rules", {"join_rule": "restricted", "allow": allow}, 200),
    ]
    for path, content, expected in table:
        assert (await put(alice, room_id, path, content))[0] == expected, path

    member = f"/rooms/{quote(room_id)}/state/m.room.member/{quote(alice.user_id)}"
    assert await alice.call("GET", member) == profile
    assert (await bob.request("POST", f"/join/{quote(room_id)}")).status == 403
    alias = await alice.request("PUT", "/directory/room/%23a:hs1", {"room_id": "!\0"})
    assert alias.status == 400
    options: list[tuple[dict, int]] = [
        ({"room_alias_name": "\0"}, 400),
        ({"initial_state": [{"type": "m.x", "state_key": "\0", "content": {}}]}, 400),
        ({"initial_state": [{"type": "m.\0", "content": {}}]}, 400),
        ({"invite": ["@\0:hs1"]}, 400),
        ({"creation_content": {"predecessor": {"room_id": "!\0"}}}, 200),
        ({"name": "\0", "topic": "\0"}, 200),
    ]
    for body, expected in options:
        assert (await alice.request("POST", "/createRoom", body)).status == expected, body
