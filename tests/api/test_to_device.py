"""Messages to devices: each device is given each of them, once, however many there are."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from minihs.services.encryption import to_device
from tests.helpers.homeserver import PASSWORD, User

if TYPE_CHECKING:
    from tests.helpers.homeserver import Homeserver

pytestmark = pytest.mark.spec("client-server-api#send-to-device-messaging")


async def log_in(user: User) -> User:
    """Return the user with another device."""
    body = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": user.user_id},
        "password": PASSWORD,
    }
    answer = await user.homeserver.stranger().call("POST", "/login", body)
    other = User(user.homeserver, user.user_id, answer["access_token"])
    other.device_id = answer["device_id"]
    return other


async def send(sender: User, messages: object, txn_id: str = "t", kind: str = "m.test") -> int:
    path = f"/sendToDevice/{quote(kind, safe='')}/{quote(txn_id, safe='')}"
    return (await sender.request("PUT", path, {"messages": messages})).status


def received(answer: dict) -> list[object]:
    """Return the contents of the messages in a sync."""
    return [event["content"] for event in answer.get("to_device", {}).get("events", [])]


async def test_bob_gets_what_alice_sends_to_his_device(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    await bob.sync()
    content = {"a": 1, "b": {"c": "\0 ü"}}
    assert await send(alice, {bob.user_id: {bob.device_id: content}}) == 200
    answer = await bob.sync()
    assert answer["to_device"]["events"] == [
        {"type": "m.test", "sender": alice.user_id, "content": content}
    ]
    assert "to_device" not in await bob.sync(), "it has been acknowledged"


async def test_until_it_is_acknowledged_it_is_given_again(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    before = (await bob.sync())["next_batch"]
    await send(alice, {bob.user_id: {bob.device_id: {"n": 1}}})
    for _ in range(2):
        assert received(await bob.sync(since=before)) == [{"n": 1}]
    bob.since = None
    assert received(await bob.sync()) == [{"n": 1}], "also to a client that begins anew"
    assert received(await bob.sync()) == []
    assert received(await bob.sync(since=before)) == [], "now it is gone"


async def test_a_repeated_request_sends_nothing(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    await bob.sync()
    first = {bob.user_id: {bob.device_id: {"n": 1}}}
    statuses = await asyncio.gather(*(send(alice, first, "same") for _ in range(8)))
    assert statuses == [200] * 8
    assert await send(alice, {bob.user_id: {bob.device_id: {"n": 2}}}, "same") == 200
    assert received(await bob.sync()) == [{"n": 1}]
    assert await send(alice, first, "same") == 200
    assert received(await bob.sync()) == [], "not even after it was received"


async def test_transaction_ids_are_of_one_device_and_type(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    other = await log_in(alice)
    await bob.sync()
    await send(alice, {bob.user_id: {bob.device_id: {"n": 1}}}, "same")
    await send(other, {bob.user_id: {bob.device_id: {"n": 2}}}, "same")
    await send(alice, {bob.user_id: {bob.device_id: {"n": 3}}}, "same", "m.other")
    assert received(await bob.sync()) == [{"n": 1}, {"n": 2}, {"n": 3}]


async def test_a_star_means_every_device(homeserver: Homeserver) -> None:
    alice, phone = await homeserver.register("alice"), await homeserver.register("bob")
    laptop, tablet = await log_in(phone), await log_in(phone)
    messages = {phone.user_id: {"*": {"n": 1}, tablet.device_id: {"n": 2}, "GONE": {"n": 3}}}
    await send(alice, {**messages, "@nobody:hs1": {"*": {}}, "nonsense": {"*": {}}})
    assert received(await phone.sync()) == [{"n": 1}]
    assert received(await laptop.sync()) == [{"n": 1}]
    assert received(await tablet.sync()) == [{"n": 2}], "a device gets one message of a request"


async def test_many_come_a_hundred_at_a_time(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    await bob.sync()
    for n in range(250):
        await send(alice, {bob.user_id: {bob.device_id: {"n": n}}}, f"t{n}")
    pages = [received(await bob.sync(timeout="60000")) for _ in range(3)]
    assert [len(page) for page in pages] == [100, 100, 50]
    assert [content["n"] for page in pages for content in page] == list(range(250))  # type: ignore[index]
    assert received(await bob.sync()) == []


async def test_what_comes_between_two_pages_comes_last(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    await bob.sync()
    for n in range(150):
        await send(alice, {bob.user_id: {bob.device_id: {"n": n}}}, f"t{n}")
    got = received(await bob.sync())
    await send(alice, {bob.user_id: {bob.device_id: {"n": 150}}}, "last")
    got += received(await bob.sync())
    assert [content["n"] for content in got] == list(range(151))  # type: ignore[index]


async def test_who_waits_is_woken(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    await bob.sync()
    waiting = asyncio.ensure_future(bob.sync(timeout="60000"))
    await send(alice, {bob.user_id: {bob.device_id: {"n": 1}}})
    assert received(await waiting) == [{"n": 1}]


async def test_a_device_that_ends_takes_its_messages_along(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    other = await log_in(bob)
    await send(alice, {bob.user_id: {"*": {"n": 1}}})
    await other.call("POST", "/logout", {})
    left = await homeserver.services.db.fetch("SELECT device_nid FROM to_device_messages")
    assert len(left) == 1
    assert received(await bob.sync()) == [{"n": 1}]


async def test_a_room_that_is_opened_from_a_token_with_a_rest(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room = await bob.create_room()
    await bob.say(room, "hello")
    for n in range(101):
        await send(alice, {bob.user_id: {bob.device_id: {"n": n}}}, f"t{n}")
    token = (await bob.sync())["next_batch"]
    page = await bob.call("GET", f"/rooms/{quote(room)}/messages", dir="b", **{"from": token})
    assert page["chunk"][0]["content"]["body"] == "hello"


@pytest.mark.parametrize(
    "messages",
    [None, [], {"@bob:hs1": []}, {"@bob:hs1": {"D": "x"}}, {"@bob:hs1": {"D": {"n": 1.5}}}],
)
async def test_what_is_no_message_is_refused(homeserver: Homeserver, messages: object) -> None:
    alice = await homeserver.register("alice")
    response = await alice.request("PUT", "/sendToDevice/m.test/t", {"messages": messages})
    assert (response.status, response.json["errcode"]) == (400, "M_BAD_JSON")
    assert (await alice.request("PUT", "/sendToDevice/m.test/t", {})).status == 400


async def test_limits_of_a_request(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    large = {"x": "y" * to_device.MESSAGE_BYTES_MAX}
    assert await send(alice, {bob.user_id: {"*": large}}) == 413
    many = {bob.user_id: {f"D{n}": {} for n in range(to_device.TARGETS_MAX + 1)}}
    assert await send(alice, many) == 413
    for txn_id, kind in (("a\0", "m.test"), ("t", "m.\0"), ("t" * 300, "m.test")):
        assert await send(alice, {}, txn_id, kind) == 400
    assert received(await bob.sync()) == []


async def test_F09_an_inbox_is_bounded(
    homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(to_device, "WAITING_MAX", 5)
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    await bob.sync()
    for n in range(8):
        assert await send(alice, {bob.user_id: {"*": {"n": n}}}, f"t{n}") == 200
    assert [content["n"] for content in received(await bob.sync())] == [0, 1, 2, 3, 4]  # type: ignore[index]
    await bob.sync()
    await send(alice, {bob.user_id: {"*": {"n": 9}}}, "t9")
    assert received(await bob.sync()) == [{"n": 9}], "there is room again"


async def test_F09_deactivated_users_get_nothing(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    auth = {"type": "m.login.password", "user": bob.user_id, "password": PASSWORD}
    await bob.call("POST", "/account/deactivate", {"auth": auth})
    assert await send(alice, {bob.user_id: {"*": {}, bob.device_id: {}}}) == 200
    assert await homeserver.services.db.fetch("SELECT FROM to_device_messages") == []


async def test_requests_are_forgotten_when_nobody_repeats_them(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    await send(alice, {})
    services = homeserver.services
    await to_device.forget_old_sends(services)
    assert len(await services.db.fetch("SELECT FROM to_device_sends")) == 1
    long_ago = services.clock.now_ms() - to_device.REMEMBERED_MS - 1
    await services.db.execute("UPDATE to_device_sends SET sent_ms = $1", long_ago)
    await to_device.forget_old_sends(services)
    assert await services.db.fetch("SELECT FROM to_device_sends") == []


# --- sliding sync -------------------------------------------------------------------------------


async def slide(user: User, pos: str | None, since: str | None, **wishes: object) -> dict:
    """Make a request of sliding sync that asks for messages to the device."""
    extension = {"enabled": True, **wishes} | ({} if since is None else {"since": since})
    query = {"timeout": "0"} if pos is None else {"timeout": "60000", "pos": pos}
    body = {"extensions": {"to_device": extension}}
    return await user.call("POST", "/_matrix/client/v4/sync", body, **query)


@pytest.mark.spec("MSC4186#extensions")
async def test_sliding_sync_gives_them_until_they_are_acknowledged(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    first = await slide(bob, None, None)
    assert first["extensions"]["to_device"]["events"] == []
    since = first["extensions"]["to_device"]["next_batch"]
    waiting = asyncio.ensure_future(slide(bob, first["pos"], since))
    for n in range(5):
        await send(alice, {bob.user_id: {bob.device_id: {"n": n}}}, f"t{n}")
    got = (await waiting)["extensions"]
    assert received(got)[0] == {"n": 0}
    got = (await slide(bob, first["pos"], since))["extensions"]
    assert received(got) == [{"n": n} for n in range(5)], "again, as it was not acknowledged"
    left = await slide(bob, None, got["to_device"]["next_batch"])
    assert received(left["extensions"]) == []
    left = await slide(bob, None, None)
    assert received(left["extensions"]) == [], "gone for good"


@pytest.mark.spec("MSC4186#extensions")
async def test_sliding_sync_gives_as_many_as_are_wanted(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    for n in range(7):
        await send(alice, {bob.user_id: {bob.device_id: {"n": n}}}, f"t{n}")
    answer = await slide(bob, None, None, limit=3)
    pages = [received(answer["extensions"])]
    for _ in range(2):
        since = answer["extensions"]["to_device"]["next_batch"]
        answer = await slide(bob, answer["pos"], since, limit=3)
        pages.append(received(answer["extensions"]))
    assert pages == [[{"n": n} for n in page] for page in ([0, 1, 2], [3, 4, 5], [6])]


@pytest.mark.parametrize(
    "wishes", [{"limit": 0}, {"limit": "3"}, {"since": 5}, {"since": "s999999"}, {"since": "x"}]
)
async def test_sliding_sync_refuses_what_it_cannot_read(
    homeserver: Homeserver, wishes: dict
) -> None:
    alice = await homeserver.register("alice")
    body = {"extensions": {"to_device": {"enabled": True, **wishes}}}
    response = await alice.request("POST", "/_matrix/client/v4/sync", body, timeout="0")
    assert (response.status, response.json["errcode"]) == (400, "M_INVALID_PARAM")
