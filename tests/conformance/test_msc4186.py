"""MSC4186, simplified sliding sync, told as stories. MSC4186#proposal."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from minihs.base.caching import BoundedCache
from minihs.services.sync import sliding_memory
from tests.helpers.waiting import PATIENCE_S, until

if TYPE_CHECKING:
    from tests.helpers.homeserver import Homeserver, Response, User

MERGED = "/_matrix/client/v4/sync"
OLDER = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
EVERYTHING: dict[str, Any] = {"include": [{}]}


class Client:
    """A client of one user with one connection; it goes on where its last answer ended."""

    def __init__(self, user: User, *, conn_id: str = "main") -> None:
        self.user = user
        self.conn_id = conn_id
        self.pos: str | None = None

    async def ask(self, **body: object) -> Response:
        """Return whatever comes back; lists and the like are arguments."""
        given: dict[str, Any] = {"conn_id": self.conn_id, **body}
        if self.pos is not None:
            given.setdefault("pos", self.pos)
        return await self.user.request("POST", MERGED, given)

    async def sync(self, **body: object) -> dict:
        """Return an answer; by default of one list of all rooms."""
        if "lists" not in body and "room_subscriptions" not in body:
            body["lists"] = {"all": a_list()}
        response = await self.ask(**body)
        assert response.status == 200, response.json
        self.pos = response.json["pos"]
        return response.json


def a_list(
    first: int = 0,
    last: int = 19,
    limit: int = 10,
    required: dict[str, Any] | None = None,
    **filters: object,
) -> dict:
    return {
        "range": [first, last],
        "timeline_limit": limit,
        "required_state": required or {},
        "filters": filters,
    }


def subscription(limit: int = 10, required: dict[str, Any] | None = None) -> dict:
    return {"timeline_limit": limit, "required_state": required or {}}


def bodies(room: dict) -> list[str]:
    return [e["content"]["body"] for e in room["timeline"] if e["type"] == "m.room.message"]


def keys(room: dict) -> set[tuple[str, str]]:
    return {(e["type"], e["state_key"]) for e in room.get("required_state", ())}


def forget_stream(homeserver: Homeserver) -> None:
    """Let every process know only what comes from now on."""
    for services in homeserver.workers:
        services.follower._reset(services.follower.head)


async def ignore(user: User, other: User) -> None:
    path = f"/user/{quote(user.user_id)}/account_data/m.ignored_user_list"
    await user.call("PUT", path, {"ignored_users": {other.user_id: {}}})


async def test_a_first_answer_describes_the_room(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room(name="The room")
    await bob.join(room_id)
    await alice.say(room_id, "hello")
    answer = await Client(alice).sync(lists={"all": a_list(limit=2, required=EVERYTHING)})
    assert answer["lists"] == {"all": {"count": 1}}
    room = answer["rooms"][room_id]
    assert room["initial"] is True
    assert room["name"] == "The room"
    assert room["membership"] == "join"
    assert room["lists"] == ["all"]
    assert (room["joined_count"], room["invited_count"]) == (2, 0)
    assert room["limited"] is True
    assert room["num_live"] == 0
    assert "heroes" not in room
    assert bodies(room) == ["hello"]
    assert len(room["timeline"]) == 2
    assert {("m.room.create", ""), ("m.room.member", bob.user_id)} <= keys(room)


async def test_prev_batch_and_pos_lead_into_the_history(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    room_id = await alice.create_room()
    for n in range(4):
        await alice.say(room_id, str(n))
    client = Client(alice)
    room = (await client.sync(lists={"all": a_list(limit=2)}))["rooms"][room_id]
    assert client.pos is not None
    for token, wanted in ((room["prev_batch"], ["1", "0"]), (client.pos, ["3", "2"])):
        page = await alice.call(
            "GET", f"/rooms/{quote(room_id)}/messages", dir="b", limit="2", **{"from": token}
        )
        assert [e["content"]["body"] for e in page["chunk"]] == wanted


async def test_afterwards_only_what_is_new_comes(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    room_id = await alice.create_room(name="first")
    other = await alice.create_room()
    client, lists = Client(alice), {"all": a_list(required=EVERYTHING)}
    await client.sync(lists=lists)
    await alice.say(room_id, "news")
    answer = await client.sync(lists=lists)
    room = answer["rooms"][room_id]
    assert other not in answer["rooms"]
    assert bodies(room) == ["news"]
    assert room["num_live"] == 1
    assert room.keys() == {"timeline", "prev_batch", "num_live", "bump_stamp", "lists"}
    assert "transaction_id" in room["timeline"][0]["unsigned"]
    await alice.put_state(room_id, "m.room.name", {"name": "second"})
    room = (await client.sync(lists=lists))["rooms"][room_id]
    assert room["name"] == "second"
    assert keys(room) == {("m.room.name", "")}
    await alice.put_state(room_id, "m.room.name", {})
    room = (await client.sync(lists=lists))["rooms"][room_id]
    assert room["name"] is None
    assert room["heroes"] == []
    assert (await client.sync(lists=lists))["rooms"] == {}


async def test_a_gap_is_limited(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    room_id = await alice.create_room()
    client, lists = Client(alice), {"all": a_list(limit=2, required=EVERYTHING)}
    await client.sync(lists=lists)
    await alice.put_state(room_id, "m.room.topic", {"topic": "in the gap"})
    for n in range(4):
        await alice.say(room_id, str(n))
    room = (await client.sync(lists=lists))["rooms"][room_id]
    assert room["limited"] is True
    assert bodies(room) == ["2", "3"]
    assert keys(room) == {("m.room.topic", "")}


@pytest.mark.parametrize("limit", [0, 1])
async def test_a_short_timeline_says_what_it_leaves_out(homeserver: Homeserver, limit: int) -> None:
    alice = await homeserver.register("alice")
    room_id = await alice.create_room()
    await alice.say(room_id, "one")
    client = Client(alice)
    room = (await client.sync(lists={"all": a_list(limit=limit)}))["rooms"][room_id]
    assert len(room["timeline"]) == limit
    assert room["limited"] is True
    page = await alice.call(
        "GET", f"/rooms/{quote(room_id)}/messages", dir="b", **{"from": room["prev_batch"]}
    )
    assert ("m.room.message" in [e["type"] for e in page["chunk"]]) == (limit == 0)


async def test_the_newest_rooms_are_in_the_window(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    rooms = [await alice.create_room() for _ in range(4)]
    client = Client(alice)
    answer = await client.sync(lists={"top": a_list(0, 1)})
    assert answer["lists"]["top"]["count"] == 4
    assert set(answer["rooms"]) == {rooms[3], rooms[2]}
    await alice.say(rooms[0], "up")
    answer = await client.sync(lists={"top": a_list(0, 1)})
    assert set(answer["rooms"]) == {rooms[0]}
    assert answer["rooms"][rooms[0]]["initial"] is True
    assert answer["rooms"][rooms[0]]["num_live"] == 1
    answer = await client.sync(lists={"top": a_list(0, 9)})
    assert set(answer["rooms"]) == {rooms[1]}  # The others had been sent.
    assert (await client.sync(lists={"top": a_list(0, 9)}))["rooms"] == {}


async def test_what_happened_outside_the_window_is_told_on_return(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    rooms = [await alice.create_room() for _ in range(2)]
    client, one = Client(alice), {"top": a_list(0, 0)}
    await client.sync(lists={"top": a_list()})
    await alice.say(rooms[0], "missed")
    await alice.say(rooms[1], "seen")
    assert set((await client.sync(lists=one))["rooms"]) == {rooms[1]}
    await alice.say(rooms[1], "seen too")
    assert set((await client.sync(lists=one))["rooms"]) == {rooms[1]}
    answer = await client.sync(lists={"top": a_list()})
    assert set(answer["rooms"]) == {rooms[0]}
    room = answer["rooms"][rooms[0]]
    assert "initial" not in room
    assert bodies(room) == ["missed"]
    assert room["num_live"] == 0


async def test_quiet_rooms_cost_no_row(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    room_id = await alice.create_room()
    client = Client(alice)
    await client.sync()
    before = await homeserver.services.db.fetchval("SELECT max(state_nid) FROM sliding_states")
    for n in range(3):
        await alice.say(room_id, str(n))
        assert bodies((await client.sync())["rooms"][room_id]) == [str(n)]
    after = await homeserver.services.db.fetchval("SELECT max(state_nid) FROM sliding_states")
    assert after == before


async def test_who_was_away_for_long_is_told_from_the_database(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    rooms = [await alice.create_room() for _ in range(4)]
    for room_id in rooms:
        await bob.join(room_id)
    told, read, left, _ = rooms
    last = await alice.say(read)
    client = Client(bob)
    wishes: dict[str, Any] = {
        "lists": {"all": a_list(required=EVERYTHING)},
        "extensions": {n: {"enabled": True} for n in ("account_data", "receipts", "typing")},
    }
    await client.sync(**wishes)
    await alice.say(told, "while you were away")
    await alice.put_state(told, "m.room.topic", {"topic": "news"})
    await alice.call("POST", f"/rooms/{quote(read)}/receipt/m.read/{quote(last)}", {})
    user = f"/user/{quote(bob.user_id)}"
    await bob.call("PUT", f"{user}/account_data/org.example", {"a": 1})
    await bob.leave(left)
    new = await bob.create_room()
    forget_stream(homeserver)
    answer = await client.sync(**wishes)
    assert set(answer["rooms"]) == {told, left, new}
    assert bodies(answer["rooms"][told]) == ["while you were away"]
    assert keys(answer["rooms"][told]) == {("m.room.topic", "")}
    assert answer["rooms"][left]["membership"] == "leave"
    found = answer["extensions"]
    assert found["account_data"]["global"] == [{"type": "org.example", "content": {"a": 1}}]
    assert set(found["receipts"]["rooms"]) == {read}
    answer = await client.sync(**wishes)
    assert (answer["rooms"], answer["extensions"]) == ({}, {})


async def test_a_request_is_repeated_with_the_same_result(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    await alice.create_room()
    client = Client(alice)
    await client.sync()
    room_id = await alice.create_room()
    pos = client.pos
    first = await client.sync(lists={"all": a_list(limit=50)})
    for _ in range(6):
        client.pos = pos
        again = await client.sync(lists={"all": a_list(limit=50)})
        assert set(again["rooms"]) == set(first["rooms"])
        ids = [e["event_id"] for e in again["rooms"][room_id]["timeline"]]
        assert ids == [e["event_id"] for e in first["rooms"][room_id]["timeline"]]
    assert (await client.sync(lists={"all": a_list(limit=50)}))["rooms"] == {}
    rows = await homeserver.services.db.fetchval("SELECT count(*) FROM sliding_states")
    assert isinstance(rows, int)
    assert rows <= 6


async def test_a_pos_belongs_to_one_connection_of_one_device(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room()
    await bob.join(room_id)
    client = Client(alice)
    await client.sync()
    for user, conn_id, pos in (
        (bob, "main", client.pos),
        (alice, "other", client.pos),
        (alice, "main", "s1"),
        (alice, "main", "s99999999_1.0123456789ab"),
        (alice, "main", ""),
        (alice, "main", (client.pos or "").replace("s", "s9999", 1)),
    ):
        stranger = Client(user, conn_id=conn_id)
        stranger.pos = pos
        response = await stranger.ask()
        assert (response.status, response.json["errcode"]) == (400, "M_UNKNOWN_POS")


async def test_connections_are_independent(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    room_id = await alice.create_room()
    one, two = Client(alice, conn_id="one"), Client(alice, conn_id="two")
    await one.sync()
    await two.sync()
    await alice.say(room_id, "for both")
    for client in (one, two):
        assert bodies((await client.sync())["rooms"][room_id]) == ["for both"]


async def test_the_oldest_connections_of_a_device_expire(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    clients = [Client(alice, conn_id=str(n)) for n in range(45)]
    for client in clients:
        await client.sync()
    rows = await homeserver.services.db.fetchval("SELECT count(*) FROM sliding_states")
    assert rows == 40
    for process in homeserver.workers:
        process.sliding.connections = BoundedCache(0)  # Memory may know them for longer.
    assert (await clients[44].ask()).status == 200
    response = await clients[0].ask()
    assert (response.status, response.json["errcode"]) == (400, "M_UNKNOWN_POS")


async def test_a_long_poll_is_woken(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room()
    await bob.join(room_id)
    client = Client(bob)
    await client.sync()
    waiting = asyncio.ensure_future(client.sync(timeout=300_000))
    await alice.sync()  # A request of its own, so that Bob's is under way.
    await alice.say(room_id, "wake up")
    answer = await asyncio.wait_for(waiting, PATIENCE_S)
    assert bodies(answer["rooms"][room_id]) == ["wake up"]


async def test_without_news_it_comes_back_after_its_timeout(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    await alice.create_room()
    client = Client(alice)
    await client.sync()
    answer = await client.sync(timeout=20)
    assert (answer["rooms"], answer["extensions"]) == ({}, {})
    # Extensions with a position of their own give it in every answer.
    messages = {"to_device": {"enabled": True}}
    first = (await client.sync(extensions=messages))["extensions"]["to_device"]
    messages["to_device"]["since"] = first["next_batch"]
    second = (await client.sync(extensions=messages))["extensions"]["to_device"]
    # What moves it may be that she is seen to be there.
    assert (second["events"], "next_batch" in second) == ([], True)


async def test_changes_elsewhere_do_not_end_a_long_poll(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    quiet, loud = await alice.create_room(), await alice.create_room()
    client, wishes = Client(alice), {"room_subscriptions": {quiet: subscription()}}
    await client.sync(**wishes)
    waiting = asyncio.ensure_future(client.sync(timeout=300_000, **wishes))
    await alice.sync()
    await alice.say(loud, "not asked for")
    await alice.say(quiet, "asked for")
    answer = await asyncio.wait_for(waiting, PATIENCE_S)
    assert set(answer["rooms"]) == {quiet}


async def test_subscriptions_to_rooms_one_is_not_in_are_ignored(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    secret = await alice.create_room(preset="private_chat", name="secret")
    public = await alice.create_room(name="public")
    wishes = {
        room_id: subscription(required=EVERYTHING)
        for room_id in (secret, public, "!nowhere:hs1", "nonsense", "!zero\0:hs1")
    }
    client = Client(bob)
    assert (await client.sync(room_subscriptions=wishes))["rooms"] == {}
    await alice.say(secret, "for us alone")
    answer = await client.sync(room_subscriptions=wishes, lists={"all": a_list()})
    assert answer["rooms"] == {}
    assert answer["lists"]["all"]["count"] == 0


async def test_history_from_before_the_join_stays_hidden(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    hidden = {
        "type": "m.room.history_visibility",
        "state_key": "",
        "content": {"history_visibility": "joined"},
    }
    room_id = await alice.create_room(initial_state=[hidden])
    await alice.say(room_id, "before")
    await bob.join(room_id)
    await alice.say(room_id, "after")
    room = (await Client(bob).sync(lists={"all": a_list(limit=50)}))["rooms"][room_id]
    assert bodies(room) == ["after"]


async def test_a_room_that_several_rules_match_gets_what_any_asks_for(
    homeserver: Homeserver,
) -> None:
    alice = await homeserver.register("alice")
    room_id = await alice.create_room(name="The room")
    for n in range(5):
        await alice.say(room_id, str(n))
    answer = await Client(alice).sync(
        lists={
            "short": a_list(limit=1, required={"include": [{"type": "m.room.create"}]}),
            "lazy": a_list(limit=0, required={"lazy_members": True}),
        },
        room_subscriptions={
            room_id: subscription(3, {"include": [{"type": "m.room.name", "state_key": ""}]})
        },
    )
    room = answer["rooms"][room_id]
    assert bodies(room) == ["2", "3", "4"]
    assert keys(room) == {
        ("m.room.create", ""), ("m.room.name", ""), ("m.room.member", alice.user_id),
    }  # fmt: skip


async def test_a_larger_timeline_limit_brings_older_events(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    room_id = await alice.create_room()
    for n in range(5):
        await alice.say(room_id, str(n))
    client = Client(alice)
    await client.sync(lists={"all": a_list(limit=1)})
    wishes = {"room_subscriptions": {room_id: subscription(3)}, "lists": {"all": a_list(limit=1)}}
    room = (await client.sync(**wishes))["rooms"][room_id]
    assert room["expanded_timeline"] is True
    assert "initial" not in room
    assert bodies(room) == ["2", "3", "4"]
    assert room["num_live"] == 0
    assert (await client.sync(**wishes))["rooms"] == {}
    await client.sync(lists={"all": a_list(limit=1)})
    await alice.say(room_id, "5")
    room = (await client.sync(**wishes))["rooms"][room_id]
    assert bodies(room) == ["5"]  # The three before it have been sent.


async def test_more_required_state_is_sent_at_once(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    room_id = await alice.create_room(topic="weather")
    client = Client(alice)
    narrow = {"include": [{"type": "m.room.create", "state_key": ""}]}
    wide = {"include": [{"type": "m.room.create", "state_key": ""}, {"type": "m.room.topic"}]}
    room = (await client.sync(lists={"all": a_list(required=narrow)}))["rooms"][room_id]
    assert keys(room) == {("m.room.create", "")}
    room = (await client.sync(lists={"all": a_list(required=wide)}))["rooms"][room_id]
    assert keys(room) == {("m.room.topic", "")}
    assert "timeline" not in room
    await client.sync(lists={"all": a_list(required=narrow)})
    await alice.put_state(room_id, "m.room.topic", {"topic": "tea"})
    room = (await client.sync(lists={"all": a_list(required=narrow)}))["rooms"][room_id]
    assert keys(room) == set()
    room = (await client.sync(lists={"all": a_list(required=wide)}))["rooms"][room_id]
    assert [e["content"] for e in room["required_state"]] == [{"topic": "tea"}]


REQUIRED = [
    ("nothing", {}, set()),
    (
        "all but one",
        {"include": [{}], "exclude": [{"type": "m.room.create"}]},
        {"m.room.name", "m.room.member"},
    ),
    ("by key", {"include": [{"state_key": ""}]}, {"m.room.create", "m.room.name"}),
    ("by type", {"include": [{"type": "m.room.member"}]}, {"m.room.member"}),
    ("lazy", {"include": [{}], "lazy_members": True}, {"m.room.create", "m.room.name"}),
]


@pytest.mark.parametrize(("name", "required", "wanted"), REQUIRED, ids=[r[0] for r in REQUIRED])
async def test_required_state_is_what_was_asked_for(
    homeserver: Homeserver, name: str, required: dict, wanted: set[str]
) -> None:
    alice = await homeserver.register("alice")
    room_id = await alice.create_room(name="The room")
    answer = await Client(alice).sync(lists={"all": a_list(limit=0, required=required)})
    types = {kind for kind, _ in keys(answer["rooms"][room_id])}
    assert types & {"m.room.create", "m.room.name", "m.room.member"} == wanted, name


async def test_lazy_members_come_with_what_they_say(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    room_id = await alice.create_room()
    members = [await homeserver.register(f"member{n}") for n in range(3)]
    for member in members:
        await member.join(room_id)
    await members[1].say(room_id, "I speak")
    client = Client(alice)
    lists = {"all": a_list(limit=1, required={"lazy_members": True})}
    room = (await client.sync(lists=lists))["rooms"][room_id]
    assert keys(room) == {("m.room.member", members[1].user_id)}
    await members[2].leave(room_id)
    room = (await client.sync(lists=lists))["rooms"][room_id]
    assert keys(room) == {("m.room.member", members[2].user_id)}
    assert room["joined_count"] == 3


async def test_lazy_members_are_not_repeated(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room()
    await bob.join(room_id)
    await bob.say(room_id, "one")
    client = Client(alice)
    lists = {"all": a_list(limit=2, required={"lazy_members": True})}
    of_bob = {("m.room.member", bob.user_id)}

    async def what_is_new() -> set[tuple[str, str]]:
        return keys((await client.sync(lists=lists))["rooms"][room_id])

    assert await what_is_new() == of_bob
    await bob.say(room_id, "two")
    assert await what_is_new() == set()
    await alice.say(room_id, "three")
    before = client.pos
    of_alice = {("m.room.member", alice.user_id)}
    assert await what_is_new() == of_alice
    client.pos = before  # That answer was lost.
    assert await what_is_new() == of_alice
    await alice.say(room_id, "four")
    assert await what_is_new() == set()
    await bob.call("PUT", f"/profile/{quote(bob.user_id)}/displayname", {"displayname": "Bob"})
    assert await what_is_new() == of_bob
    await bob.say(room_id, "five")
    assert await what_is_new() == set()
    for text in ("six", "seven", "eight"):  # A gap: the client forgets whom it knew.
        await bob.say(room_id, text)
    assert await what_is_new() == of_bob
    await alice.say(room_id, "nine")
    assert await what_is_new() == of_alice
    await alice.leave(room_id)
    await what_is_new()
    await alice.join(room_id)
    assert of_alice <= await what_is_new()
    await bob.say(room_id, "ten")
    assert await what_is_new() == of_bob  # And so it does where the room comes anew.


async def test_of_many_lazy_members_some_come_again(
    homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sliding_memory, "MEMBERS_OF_A_ROOM_MAX", 2)
    alice = await homeserver.register("alice")
    others = [await homeserver.register(f"other{n}") for n in range(3)]
    room_id = await alice.create_room()
    for other in others:
        await other.join(room_id)
    client = Client(alice)
    lists = {"all": a_list(limit=1, required={"lazy_members": True})}
    await others[2].say(room_id, "hello")
    await client.sync(lists=lists)
    told = []
    for other in (others[1], others[0], others[2], others[2]):
        await other.say(room_id, "hello")
        room = (await client.sync(lists=lists))["rooms"][room_id]
        told.append(("m.room.member", other.user_id) in keys(room))
    assert told == [True, True, True, False]


async def test_a_nameless_room_has_heroes(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    await bob.call("PUT", f"/profile/{quote(bob.user_id)}/displayname", {"displayname": "Bob"})
    room_id = await alice.create_room()
    await bob.join(room_id)
    client = Client(alice)
    room = (await client.sync())["rooms"][room_id]
    assert room["heroes"] == [{"user_id": bob.user_id, "displayname": "Bob"}]
    await alice.say(room_id)
    assert "heroes" not in (await client.sync())["rooms"][room_id]
    await bob.leave(room_id)
    room = (await client.sync())["rooms"][room_id]
    assert room["joined_count"] == 1
    assert room["heroes"] == [{"user_id": bob.user_id}]
    carol = await homeserver.register("carol")
    await carol.join(room_id)
    room = (await client.sync())["rooms"][room_id]
    assert room["heroes"] == [{"user_id": carol.user_id}]  # Bob has gone, and she has not.


async def test_a_name_and_an_avatar_that_are_redacted_are_gone(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room(name="Here")
    await bob.join(room_id)
    avatar_id = await alice.put_state(room_id, "m.room.avatar", {"url": "mxc://hs1/x"})
    client = Client(alice)
    room = (await client.sync())["rooms"][room_id]
    assert (room["name"], room["avatar"]) == ("Here", "mxc://hs1/x")
    path = f"/rooms/{quote(room_id)}/state/m.room.name"
    name_id = (await alice.call("GET", path, format="event"))["event_id"]
    redact = f"/rooms/{quote(room_id)}/redact/"
    await alice.call("PUT", f"{redact}{quote(name_id)}/r1", {})
    for _ in range(12):  # More than the timeline shows.
        await bob.say(room_id)
    room = (await client.sync())["rooms"][room_id]
    assert (room["name"], room["heroes"]) == (None, [{"user_id": bob.user_id}])
    assert "avatar" not in room
    await alice.call("PUT", f"{redact}{quote(avatar_id)}/r2", {})
    room = (await client.sync())["rooms"][room_id]
    assert (room["avatar"], "name" in room, "heroes" in room) == (None, False, False)
    await bob.say(room_id)
    room = (await client.sync())["rooms"][room_id]
    assert ("avatar" in room, "name" in room) == (False, False)


async def test_an_avatar_comes_and_goes(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    room_id = await alice.create_room()
    client = Client(alice)
    assert "avatar" not in (await client.sync())["rooms"][room_id]
    for content, shown in (({"url": "mxc://hs1/a"}, "mxc://hs1/a"), ({}, None)):
        await alice.put_state(room_id, "m.room.avatar", content)
        assert (await client.sync())["rooms"][room_id]["avatar"] == shown
    await alice.say(room_id)
    assert "avatar" not in (await client.sync())["rooms"][room_id]


async def test_state_that_is_gone_leaves_a_stub(
    homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only state resolution removes state: here the comparison of two states says it did."""
    alice = await homeserver.register("alice")
    room_id = await alice.create_room(topic="gone soon")
    client, lists = Client(alice), {"all": a_list(required={"include": [{"type": "m.room.topic"}]})}
    await client.sync(lists=lists)
    gone = [("m.room.topic", ""), ("org.example.unwanted", "")]
    memory = homeserver.services.sliding
    monkeypatch.setattr(memory, "changes", lambda *_: sliding_memory.Changes({}, gone))
    await alice.say(room_id)
    room = (await client.sync(lists=lists))["rooms"][room_id]
    assert room["required_state"] == [{"type": "m.room.topic", "state_key": ""}]


async def test_an_invite_shows_stripped_state_until_it_is_accepted(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    client = Client(bob)
    await client.sync()
    room_id = await alice.create_room(preset="private_chat", name="secret")
    await alice.invite(room_id, bob)
    await alice.say(room_id, "not yet")
    room = (await client.sync(lists={"all": a_list(required=EVERYTHING)}))["rooms"][room_id]
    assert room["membership"] == "invite"
    assert {e["type"] for e in room["stripped_state"]} >= {"m.room.name", "m.room.member"}
    assert room.keys() == {"initial", "bump_stamp", "stripped_state", "membership", "lists"}
    await alice.say(room_id, "still not")
    assert (await client.sync(lists={"all": a_list(required=EVERYTHING)}))["rooms"] == {}
    await bob.join(room_id)
    room = (await client.sync(lists={"all": a_list(required=EVERYTHING)}))["rooms"][room_id]
    assert room["initial"] is True
    assert room["membership"] == "join"
    assert ("m.room.create", "") in keys(room)


async def test_a_declined_invite_is_told_once(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room(preset="private_chat")
    await alice.invite(room_id, bob)
    client = Client(bob)
    await client.sync()
    await bob.leave(room_id)
    room = (await client.sync())["rooms"][room_id]
    assert room["membership"] == "leave"
    assert "timeline" not in room
    assert (await client.sync())["rooms"] == {}
    assert (await Client(bob, conn_id="new").sync())["rooms"] == {}


@pytest.mark.parametrize("how", ["declined", "kick", "ban"])
async def test_the_stripped_state_of_an_invite_that_ended_says_so(
    homeserver: Homeserver, how: str
) -> None:
    """It is not what they were shown of themselves at the time."""
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room(preset="private_chat", name="Tea")
    await alice.invite(room_id, bob)
    client = Client(bob)
    await client.sync()
    if how == "declined":
        await bob.leave(room_id)
    else:
        await alice.call("POST", f"/rooms/{quote(room_id)}/{how}", {"user_id": bob.user_id})
    stripped = (await client.sync())["rooms"][room_id]["stripped_state"]
    (own,) = [event for event in stripped if event["state_key"] == bob.user_id]
    assert own["content"]["membership"] == ("ban" if how == "ban" else "leave")
    assert [e["content"] for e in stripped if e["type"] == "m.room.name"] == [{"name": "Tea"}]


async def test_who_is_banned_after_a_kick_is_told(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room()
    await bob.join(room_id)
    client = Client(bob)
    lists = {"all": a_list(required=EVERYTHING)}
    await client.sync(lists=lists)
    for how, membership in (("kick", "leave"), ("ban", "ban"), ("unban", "leave")):
        await alice.call("POST", f"/rooms/{quote(room_id)}/{how}", {"user_id": bob.user_id})
        room = (await client.sync(lists=lists))["rooms"][room_id]
        (own,) = [e for e in room["required_state"] if e["state_key"] == bob.user_id]
        assert own["content"]["membership"] == room["membership"] == membership


async def test_a_withdrawn_invite_is_told_once(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room(preset="private_chat")
    await alice.invite(room_id, bob)
    client = Client(bob)
    await client.sync()
    await alice.call("POST", f"/rooms/{quote(room_id)}/kick", {"user_id": bob.user_id})
    room = (await client.sync())["rooms"][room_id]
    assert room["membership"] == "leave"
    assert room.keys().isdisjoint({"timeline", "required_state"})
    assert (await Client(bob, conn_id="new").sync())["rooms"] == {}


async def test_a_knock_shows_stripped_state_until_it_is_refused(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    rules = {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}
    room_id = await alice.create_room(preset="private_chat", name="a door", initial_state=[rules])
    await bob.call("POST", f"/knock/{quote(room_id)}", {})
    await alice.say(room_id, "not for those outside")
    client, lists = Client(bob), {"all": a_list(required=EVERYTHING)}
    room = (await client.sync(lists=lists))["rooms"][room_id]
    assert room["membership"] == "knock"
    assert {e["type"] for e in room["stripped_state"]} >= {"m.room.name", "m.room.member"}
    assert room.keys() == {"initial", "bump_stamp", "stripped_state", "membership", "lists"}
    await alice.call("POST", f"/rooms/{quote(room_id)}/kick", {"user_id": bob.user_id})
    room = (await client.sync(lists=lists))["rooms"][room_id]
    assert room["membership"] == "leave"
    assert room.keys().isdisjoint({"timeline", "required_state"})
    assert (await client.sync(lists=lists))["rooms"] == {}


async def test_invites_of_ignored_users_do_not_show(homeserver: Homeserver) -> None:
    alice, mallory = await homeserver.register("alice"), await homeserver.register("mallory")
    await ignore(alice, mallory)
    room_id = await mallory.create_room()
    await mallory.invite(room_id, alice)
    answer = await Client(alice).sync()
    assert (answer["rooms"], answer["lists"]["all"]["count"]) == ({}, 0)


async def test_who_leaves_is_shown_that_and_nothing_after(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room()
    await bob.join(room_id)
    client, lists = Client(bob), {"all": a_list(required=EVERYTHING)}
    await client.sync(lists=lists)
    await alice.say(room_id, "before")
    await bob.leave(room_id)
    await alice.say(room_id, "after")
    await alice.put_state(room_id, "m.room.topic", {"topic": "after"})
    room = (await client.sync(lists=lists))["rooms"][room_id]
    assert room["membership"] == "leave"
    assert bodies(room) == ["before"]
    assert keys(room) == {("m.room.member", bob.user_id)}
    await alice.say(room_id, "later")
    assert (await client.sync(lists=lists))["rooms"] == {}
    new = Client(bob, conn_id="new")
    assert (await new.sync(lists=lists))["rooms"] == {}
    wishes = {room_id: subscription(required=EVERYTHING)}
    room = (await new.sync(room_subscriptions=wishes))["rooms"][room_id]
    assert bodies(room) == ["before"]
    assert ("m.room.topic", "") not in keys(room)


async def test_who_was_kicked_still_has_the_room_in_the_list(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room()
    await bob.join(room_id)
    await alice.say(room_id, "for bob, too")
    await alice.call("POST", f"/rooms/{quote(room_id)}/kick", {"user_id": bob.user_id})
    await alice.say(room_id, "not for bob")
    answer = await Client(bob).sync(lists={"all": a_list(limit=2, required=EVERYTHING)})
    assert answer["lists"]["all"]["count"] == 1
    room = answer["rooms"][room_id]
    assert room["membership"] == "leave"
    assert bodies(room) == ["for bob, too"]
    assert room["timeline"][-1]["content"]["membership"] == "leave"


@pytest.mark.parametrize("how", ["kick", "ban", "leave"])
async def test_what_others_say_tells_nothing_to_who_is_outside(
    homeserver: Homeserver, how: str
) -> None:
    """Nor is the room told again as it was, whenever the client is told something else."""
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id, other_id = await alice.create_room(), await alice.create_room()
    await bob.join(room_id)
    await bob.join(other_id)
    client, top = Client(bob), {"all": a_list(0, 0), "every": a_list()}
    subscriptions = {room_id: subscription()}
    await client.sync(lists=top, room_subscriptions=subscriptions)
    if how == "leave":
        await bob.leave(room_id)
    else:
        await alice.call("POST", f"/rooms/{quote(room_id)}/{how}", {"user_id": bob.user_id})
    told = await client.sync(lists=top, room_subscriptions=subscriptions)
    assert told["rooms"].keys() == {room_id}
    for wishes in (subscriptions, {}, subscriptions):
        await alice.say(room_id, "not for bob")
        await alice.say(other_id, "for bob")
        told = await client.sync(lists=top, room_subscriptions=wishes)
        assert told["rooms"].keys() == {other_id}


async def test_who_was_banned_still_has_the_room_in_the_list(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    carol = await homeserver.register("carol")
    room_id = await alice.create_room()
    await bob.join(room_id)
    await alice.say(room_id, "before")
    for user in (bob, carol):
        body = {"user_id": user.user_id}
        await alice.call("POST", f"/rooms/{quote(room_id)}/ban", body)
    await alice.say(room_id, "after")
    room = (await Client(bob).sync())["rooms"][room_id]
    assert room["membership"] == "ban"
    assert bodies(room) == ["before"]
    assert (await Client(carol).sync())["rooms"] == {}  # She never was in it.
    await bob.call("POST", f"/rooms/{quote(room_id)}/forget", {})
    assert (await Client(bob, conn_id="new").sync())["rooms"] == {}


async def test_a_ban_after_leaving_shows_no_more_of_the_room(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room()
    await bob.join(room_id)
    await bob.leave(room_id)
    await alice.put_state(room_id, "m.room.topic", {"topic": "between"})
    await alice.call("POST", f"/rooms/{quote(room_id)}/ban", {"user_id": bob.user_id})
    room = (await Client(bob).sync(lists={"all": a_list(required=EVERYTHING)}))["rooms"][room_id]
    assert room["membership"] == "ban"
    assert ("m.room.topic", "") not in keys(room)


async def test_a_room_forgotten_at_once_is_told_to_who_had_it(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room()
    await bob.join(room_id)
    client = Client(bob)
    await client.sync()
    await bob.leave(room_id)
    await bob.call("POST", f"/rooms/{quote(room_id)}/forget", {})
    assert (await client.sync())["rooms"][room_id]["membership"] == "leave"
    assert (await client.sync(lists={"all": a_list(limit=1)}))["lists"]["all"]["count"] == 0


async def test_who_comes_back_gets_the_room_anew(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room(name="The room")
    await bob.join(room_id)
    client = Client(bob)
    await client.sync()
    await bob.leave(room_id)
    await alice.say(room_id, "meanwhile")
    await bob.join(room_id)
    room = (await client.sync())["rooms"][room_id]
    assert room["initial"] is True
    assert room["name"] == "The room"


async def test_filters_choose_rooms(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    encryption = {
        "type": "m.room.encryption",
        "state_key": "",
        "content": {"algorithm": "m.megolm.v1.aes-sha2"},
    }
    plain = await alice.create_room(name="Plain")
    sealed = await alice.create_room(initial_state=[encryption])
    space = await alice.create_room(creation_content={"type": "m.space"})
    dm = await alice.create_room(name="Bob")
    invite = await bob.create_room(preset="private_chat")
    await bob.invite(invite, alice)
    await alice.put_state(space, "m.space.child", {"via": ["hs1"]}, plain)
    await alice.put_state(space, "m.space.child", {}, sealed)
    user = f"/user/{quote(alice.user_id)}"
    await alice.call("PUT", f"{user}/account_data/m.direct", {bob.user_id: [dm]})
    await alice.call("PUT", f"{user}/rooms/{quote(dm)}/tags/m.favourite", {"order": 0.1})
    stories: list[tuple[dict, set[str]]] = [
        ({}, {plain, sealed, space, dm, invite}),
        ({"is_dm": True}, {dm}),
        ({"is_dm": False}, {plain, sealed, space, invite}),
        ({"is_encrypted": True}, {sealed}),
        ({"is_encrypted": False, "is_invited": False}, {plain, space, dm}),
        ({"is_invited": True}, {invite}),
        ({"room_types": ["m.space"]}, {space}),
        ({"room_types": [None], "is_invited": False}, {plain, sealed, dm}),
        ({"room_types": ["m.space", None], "not_room_types": ["m.space"]},
         {plain, sealed, dm, invite}),
        ({"spaces": [space, "!nowhere:hs1"]}, {plain}),
        ({"tags": ["m.favourite", "u.none"]}, {dm}),
        ({"not_tags": ["m.favourite"], "tags": ["m.favourite"]}, set()),
        ({"room_name_like": "pLA"}, {plain}),
    ]  # fmt: skip
    lists = {str(n): a_list(**filters) for n, (filters, _) in enumerate(stories)}
    answer = await Client(alice).sync(lists=lists)
    for n, (filters, wanted) in enumerate(stories):
        found = {r for r, room in answer["rooms"].items() if str(n) in room["lists"]}
        assert found == wanted, filters
        assert answer["lists"][str(n)]["count"] == len(wanted)
    assert answer["rooms"][dm]["is_dm"] is True
    assert "is_dm" not in answer["rooms"][plain]


async def test_a_room_that_becomes_a_direct_one_says_so(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    room_id = await alice.create_room()
    client = Client(alice)
    await client.sync()
    path = f"/user/{quote(alice.user_id)}/account_data/m.direct"
    await alice.call("PUT", path, {"@bob:hs1": [room_id]})
    assert (await client.sync())["rooms"][room_id]["is_dm"] is True
    await alice.call("PUT", path, {})
    assert (await client.sync())["rooms"][room_id]["is_dm"] is False
    assert (await client.sync())["rooms"] == {}


async def test_only_proper_activity_bumps_a_room(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    room_id = await alice.create_room()
    await alice.say(room_id)
    client, lists = Client(alice), {"all": a_list(limit=1)}
    first = (await client.sync(lists=lists))["rooms"][room_id]["bump_stamp"]
    await alice.put_state(room_id, "m.room.topic", {"topic": "no bump"})
    assert "bump_stamp" not in (await client.sync(lists=lists))["rooms"][room_id]
    await alice.send(room_id, "org.example.quiet", {})
    again = await Client(alice, conn_id="x").sync(lists=lists)
    assert again["rooms"][room_id]["bump_stamp"] == first
    await alice.say(room_id)
    assert (await client.sync(lists=lists))["rooms"][room_id]["bump_stamp"] > first


async def test_ignored_users_say_nothing(homeserver: Homeserver) -> None:
    alice, mallory = await homeserver.register("alice"), await homeserver.register("mallory")
    room_id = await alice.create_room()
    await mallory.join(room_id)
    await ignore(alice, mallory)
    client = Client(alice)
    await mallory.say(room_id, "listen")
    room = (await client.sync())["rooms"][room_id]
    assert bodies(room) == []
    await mallory.say(room_id, "to me")
    assert bodies((await client.sync())["rooms"].get(room_id, {"timeline": []})) == []


async def test_account_data_receipts_and_typing_are_extensions(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room()
    await bob.join(room_id)
    last = await alice.say(room_id)
    user, room_path = f"/user/{quote(alice.user_id)}", f"/rooms/{quote(room_id)}"
    await alice.call("PUT", f"{user}/account_data/org.example", {"a": 1})
    await alice.call("PUT", f"{user}/rooms/{quote(room_id)}/account_data/org.room", {"b": 1})
    await bob.call("POST", f"{room_path}/receipt/m.read/{quote(last)}", {})
    await bob.call(
        "PUT", f"{room_path}/typing/{quote(bob.user_id)}", {"typing": True, "timeout": 30_000}
    )
    client = Client(alice)
    wishes = {
        "lists": {"all": a_list()},
        "extensions": {n: {"enabled": True} for n in ("account_data", "receipts", "typing")},
    }
    found = (await client.sync(**wishes))["extensions"]
    assert {"type": "org.example", "content": {"a": 1}} in found["account_data"]["global"]
    assert "m.push_rules" in {e["type"] for e in found["account_data"]["global"]}
    (of_room,) = found["account_data"]["rooms"][room_id]
    assert of_room == {"type": "org.room", "content": {"b": 1}}
    receipt = found["receipts"]["rooms"][room_id]
    assert receipt["content"][last]["m.read"].keys() == {bob.user_id}
    assert found["typing"]["rooms"][room_id]["content"] == {"user_ids": [bob.user_id]}
    assert (await client.sync(**wishes))["extensions"] == {}
    await bob.call("PUT", f"{room_path}/typing/{quote(bob.user_id)}", {"typing": False})
    await alice.call("PUT", f"{user}/account_data/org.example", {"a": 2})
    answer = await client.sync(**wishes)
    assert answer["rooms"] == {}
    assert answer["extensions"] == {
        "account_data": {"global": [{"type": "org.example", "content": {"a": 2}}]},
        "typing": {"rooms": {room_id: {"type": "m.typing", "content": {"user_ids": []}}}},
    }


async def test_an_extension_that_comes_later_begins_at_the_beginning(
    homeserver: Homeserver,
) -> None:
    alice = await homeserver.register("alice")
    room_id = await alice.create_room()
    await alice.call("PUT", f"/user/{quote(alice.user_id)}/rooms/{quote(room_id)}/tags/u.x", {})
    client = Client(alice)
    await client.sync()
    wishes = {"lists": {"all": a_list()}, "extensions": {"account_data": {"enabled": True}}}
    found = (await client.sync(**wishes))["extensions"]["account_data"]
    assert found["rooms"][room_id] == [{"type": "m.tag", "content": {"tags": {"u.x": {}}}}]
    assert (await client.sync(**wishes))["extensions"] == {}


async def test_extensions_are_confined_to_lists_and_rooms(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    rooms = {name: await alice.create_room() for name in ("one", "two", "listed")}
    for room_id in rooms.values():
        path = f"/user/{quote(alice.user_id)}/rooms/{quote(room_id)}/account_data/org.room"
        await alice.call("PUT", path, {})
    names = {room_id: name for name, room_id in rooms.items()}
    wishes = {
        "lists": {"top": a_list(0, 0)},
        "room_subscriptions": {rooms[name]: subscription() for name in ("one", "two")},
    }
    scopes: list[tuple[dict[str, Any], set[str]]] = [
        ({}, {"one", "two", "listed"}),
        ({"lists": [], "rooms": []}, set()),
        ({"lists": []}, {"one", "two"}),
        ({"lists": [], "rooms": ["*"]}, {"one", "two"}),
        ({"lists": [], "rooms": [rooms["one"]]}, {"one"}),
        ({"lists": ["top"], "rooms": []}, {"listed"}),
        ({"lists": ["*"], "rooms": [rooms["two"]]}, {"two", "listed"}),
        ({"lists": ["another"], "rooms": ["!another:hs1"]}, set()),
    ]
    for n, (scope, expected) in enumerate(scopes):
        extension = {"account_data": {"enabled": True, **scope}}
        answer = await Client(alice, conn_id=str(n)).sync(**wishes, extensions=extension)
        told = answer["extensions"]["account_data"].get("rooms", {})
        assert {names[room_id] for room_id in told} == expected, scope


async def test_a_poll_says_whether_the_user_is_there(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room()
    await bob.join(room_id)
    path = f"/presence/{quote(alice.user_id)}/status"
    for wish, wanted in (
        ({"set_presence": "offline"}, "offline"),
        ({"set_presence": "unavailable"}, "unavailable"),
        ({}, "online"),
    ):
        await Client(alice, conn_id=wanted).sync(**wish)

        async def is_so(wanted: str = wanted) -> bool:
            return (await bob.call("GET", path))["presence"] == wanted

        await until(is_so)
        assert (await bob.call("GET", path))["presence"] == wanted  # And it stays so.


async def test_receipts_of_rooms_outside_the_window_are_not_lost(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    old = await alice.create_room()
    await bob.join(old)
    last = await alice.say(old)
    await alice.create_room()
    client = Client(alice)
    receipts = {"receipts": {"enabled": True}}
    await client.sync(lists={"all": a_list()}, extensions=receipts)
    await bob.call("POST", f"/rooms/{quote(old)}/receipt/m.read/{quote(last)}", {})
    answer = await client.sync(lists={"all": a_list(0, 0)}, extensions=receipts)
    assert answer["extensions"] == {}
    answer = await client.sync(lists={"all": a_list()}, extensions=receipts)
    assert answer["extensions"] == {}  # Not on an event of this answer's timeline.
    answer = await client.sync(lists={"all": a_list(limit=20)}, extensions=receipts)
    assert answer["rooms"][old]["expanded_timeline"] is True


async def test_what_encryption_will_need_is_empty(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    wishes = {"extensions": {"to_device": {"enabled": True}, "e2ee": {"enabled": True}}}
    found = (await Client(alice).sync(lists={}, **wishes))["extensions"]
    assert found["to_device"]["events"] == []
    assert found["e2ee"]["device_one_time_keys_count"] == {}


REFUSED: list[tuple[str, dict]] = [
    ("lists", {"lists": {str(n): a_list() for n in range(101)}}),
    ("rooms", {"room_subscriptions": {f"!{n}:hs1": subscription() for n in range(101)}}),
    ("range", {"lists": {"a": a_list(5, 4)}}),
    ("negative range", {"lists": {"a": a_list(-1, 4)}}),
    ("limit", {"lists": {"a": a_list(limit=-1)}}),
    (
        "required state",
        {"lists": {"a": a_list(required={"include": [{"type": str(n)} for n in range(5_001)]})}},
    ),
    ("filter", {"lists": {"a": a_list(tags=[str(n) for n in range(5_001)])}}),
    ("list key", {"lists": {"a b": a_list()}}),
    ("empty list key", {"lists": {"": a_list()}}),
    ("long list key", {"lists": {"a" * 256: a_list()}}),
    ("timeout", {"timeout": -1}),
    ("presence", {"set_presence": "busy"}),
]


@pytest.mark.parametrize(("name", "body"), REFUSED, ids=[r[0] for r in REFUSED])
async def test_nonsense_is_refused(homeserver: Homeserver, name: str, body: dict) -> None:
    alice = await homeserver.register("alice")
    response = await Client(alice).ask(**body)
    assert (response.status, response.json["errcode"]) == (400, "M_INVALID_PARAM"), name


async def older(user: User, body: dict, **query: str) -> dict:
    return await user.call("POST", OLDER, body, **query)


async def test_the_older_shape_is_understood(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room(name="The room")
    await bob.join(room_id)
    for text in ("one", "two"):
        await bob.say(room_id, text)
    invite = await bob.create_room(preset="private_chat")
    await bob.invite(invite, alice)
    body = {
        "lists": {
            "a": {
                "ranges": [[0, 0], [1, 5]],
                "required_state": [
                    ["m.room.create", ""], ["m.room.member", "$ME"], ["m.room.member", "$LAZY"]
                ],
                "timeline_limit": 1,
            }
        }
    }  # fmt: skip
    answer = await older(alice, body)
    assert answer["lists"] == {"a": {"count": 2}}
    assert answer["rooms"][invite]["invite_state"]
    room = answer["rooms"][room_id]
    assert keys(room) == {
        ("m.room.create", ""),
        ("m.room.member", alice.user_id),
        ("m.room.member", bob.user_id),
    }
    assert (room["notification_count"], room["highlight_count"]) == (2, 0)
    body["lists"]["a"]["timeline_limit"] = 2
    answer = await older(alice, body, pos=answer["pos"], timeout="0")
    assert answer["rooms"][room_id]["unstable_expanded_timeline"] is True
    last = answer["rooms"][room_id]["timeline"][-1]["event_id"]
    await alice.call("POST", f"/rooms/{quote(room_id)}/receipt/m.read/{quote(last)}", {})
    answer = await older(alice, body, pos=answer["pos"], timeout="0")
    assert answer["rooms"][room_id] == {"notification_count": 0, "highlight_count": 0}


@pytest.mark.parametrize("how", ["declined", "kick", "ban", "refused"])
async def test_what_is_no_invite_any_more_has_no_invite_state_in_the_older_shape(
    homeserver: Homeserver, how: str
) -> None:
    """A client such as matrix-rust-sdk takes whatever has any for an invite, or for a knock."""
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    rules = {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}
    room_id = await alice.create_room(preset="private_chat", name="Tea", initial_state=[rules])
    if how == "refused":
        await bob.call("POST", f"/knock/{quote(room_id)}", {})
    else:
        await alice.invite(room_id, bob)
    required = [["m.room.name", ""], ["m.room.member", "$ME"]]
    body = {"lists": {"a": {"ranges": [[0, 9]], "required_state": required, "timeline_limit": 1}}}
    answer = await older(bob, body)
    assert "required_state" not in answer["rooms"][room_id]
    names = [e["content"] for e in answer["rooms"][room_id]["invite_state"] if "name" in e["type"]]
    assert names == [{"name": "Tea"}]
    if how == "declined":
        await bob.leave(room_id)
    else:
        verb = "ban" if how == "ban" else "kick"
        await alice.call("POST", f"/rooms/{quote(room_id)}/{verb}", {"user_id": bob.user_id})
    room = (await older(bob, body, pos=answer["pos"]))["rooms"][room_id]
    assert room.keys() == {"initial", "bump_stamp", "required_state"}
    (own,) = room["required_state"]
    assert (own["type"], own["state_key"]) == ("m.room.member", bob.user_id)
    assert own["content"]["membership"] == ("ban" if how == "ban" else "leave")
    assert own["event_id"].startswith("$")


async def test_everything_can_be_required_in_the_older_shape(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room()
    await bob.join(room_id)
    subscriptions = {room_id: {"required_state": [["*", "*"]], "timeline_limit": 1}}
    answer = await older(alice, {"room_subscriptions": subscriptions})
    assert {("m.room.create", ""), ("m.room.member", bob.user_id)} <= keys(answer["rooms"][room_id])
