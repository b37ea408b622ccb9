"""Reading rooms over HTTP: pages, single events, state, and who is shown what."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import orjson
import pytest

from minihs.services.rooms import history

if TYPE_CHECKING:
    from tests.helpers.homeserver import Homeserver, User


def at(room_id: str, *rest: str) -> str:
    return "/".join(["/rooms", quote(room_id, safe=""), *(quote(r, safe="") for r in rest)])


async def bodies(user: User, room_id: str, **query: str) -> list[str]:
    page = await user.call("GET", at(room_id, "messages"), **query)
    return [e["content"].get("body") for e in page["chunk"] if e["type"] == "m.room.message"]


async def set_visibility(user: User, room_id: str, value: str) -> str:
    return await user.put_state(room_id, "m.room.history_visibility", {"history_visibility": value})


async def test_alice_walks_back_through_the_whole_room_and_forward_again(
    homeserver: Homeserver,
) -> None:
    alice = await homeserver.register("alice")
    room = await alice.create_room()
    sent = [await alice.say(room, f"m{n}") for n in range(25)]

    async def walk(direction: str, limit: int) -> list[str]:
        found: list[str] = []
        query = {"dir": direction, "limit": str(limit)}
        for _ in range(50):
            page = await alice.call("GET", at(room, "messages"), **query)
            assert len(page["chunk"]) <= limit
            found += [event["event_id"] for event in page["chunk"]]
            if "end" not in page:
                return found
            query["from"] = page["end"]
        pytest.fail("the walk does not end")

    back = await walk("b", 7)
    assert back[:25] == sent[::-1]
    assert len(back) == len(set(back))
    assert await walk("f", 4) == back[::-1]
    assert await walk("b", len(back)) == back


async def test_both_kinds_of_token_bound_a_page(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    room = await alice.create_room()
    await alice.say(room, "m1")
    first = (await alice.sync())["next_batch"]
    await alice.say(room, "m2")
    await alice.say(room, "m3")
    second = (await alice.sync())["next_batch"]
    await alice.say(room, "m4")
    assert await bodies(alice, room, dir="f", **{"from": first}) == ["m2", "m3", "m4"]
    assert await bodies(alice, room, dir="f", **{"from": first, "to": second}) == ["m2", "m3"]
    assert await bodies(alice, room, dir="b", **{"from": second, "to": first}) == ["m3", "m2"]
    page = await alice.call("GET", at(room, "messages"), dir="b", **{"from": second, "limit": "1"})
    assert page["start"] == second
    assert page["end"].startswith("t")
    assert await bodies(alice, room, dir="b", to=first, **{"from": page["end"]}) == ["m2"]
    assert await bodies(alice, room, dir="b", limit="0", **{"from": second}) == []


@pytest.mark.parametrize("token", ["", "x", "s-1", "t1", "s9223372036854775808", "s99999999"])
async def test_C13_a_bad_token_is_refused(homeserver: Homeserver, token: str) -> None:
    alice = await homeserver.register("alice")
    room = await alice.create_room()
    for name in ("from", "to"):
        answer = await alice.request("GET", at(room, "messages"), None, dir="b", **{name: token})
        assert (answer.status, answer.json["errcode"]) == (400, "M_INVALID_PARAM")
    answer = await alice.request("GET", at(room, "members"), None, at=token)
    assert (answer.status, answer.json["errcode"]) == (400, "M_INVALID_PARAM")


async def test_parameters_of_messages_are_checked_after_the_right_to_read(
    homeserver: Homeserver,
) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room = await alice.create_room(preset="private_chat")
    for room_id in (room, "!nowhere:hs1"):
        for query in ({}, {"dir": "b"}):
            answer = await bob.request("GET", at(room_id, "messages"), None, **query)
            assert (answer.status, answer.json["errcode"]) == (403, "M_FORBIDDEN")
    for query, errcode in (
        ({}, "M_MISSING_PARAM"),
        ({"dir": "x"}, "M_INVALID_PARAM"),
        ({"dir": "b", "limit": "-1"}, "M_INVALID_PARAM"),
        ({"dir": "b", "limit": "1_0"}, "M_INVALID_PARAM"),
        ({"dir": "b", "limit": "\u0661"}, "M_INVALID_PARAM"),
        ({"dir": "b", "limit": "9" * 5000}, "M_INVALID_PARAM"),
        ({"dir": "b", "filter": "{"}, "M_INVALID_PARAM"),
        ({"dir": "b", "filter": '{"types":1}'}, "M_BAD_JSON"),
    ):
        answer = await alice.request("GET", at(room, "messages"), None, **query)
        assert (answer.status, answer.json["errcode"]) == (400, errcode)


async def test_a_filter_finds_what_lies_far_back(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    room = await alice.create_room()
    wanted = await alice.send(room, "a.rare.type", {"n": 1})
    for n in range(230):
        await alice.say(room, f"m{n}")
    rare = orjson.dumps({"types": ["a.rare.type"]}).decode()
    page = await alice.call("GET", at(room, "messages"), dir="b", limit="5", filter=rare)
    assert [event["event_id"] for event in page["chunk"]] == [wanted]
    assert "end" not in page
    nothing = orjson.dumps({"types": []}).decode()
    page = await alice.call("GET", at(room, "messages"), dir="b", filter=nothing)
    assert page["chunk"] == []


async def test_C14_a_page_has_a_largest_size(
    homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "PAGE_LIMIT_MAX", 3)
    monkeypatch.setattr(history, "CONTEXT_LIMIT_MAX", 2)
    alice = await homeserver.register("alice")
    room = await alice.create_room()
    ids = [await alice.say(room, f"m{n}") for n in range(5)]
    for limit in ("1000000000", str(2**70)):
        page = await alice.call("GET", at(room, "messages"), dir="b", limit=limit)
        assert len(page["chunk"]) == 3
        around = await alice.call("GET", at(room, "context", ids[2]), limit=limit)
        assert len(around["events_before"] + around["events_after"]) == 2


async def test_lazy_loading_gives_the_senders_members(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room = await alice.create_room()
    before = (await alice.sync())["next_batch"]
    await bob.join(room)
    await bob.say(room)
    after = (await alice.sync())["next_batch"]
    lazy = orjson.dumps({"lazy_load_members": True}).decode()
    there = {"dir": "f", "from": before, "to": after}
    back = {"dir": "b", "from": after, "to": before}
    for query in (there, back):
        page = await alice.call("GET", at(room, "messages"), filter=lazy, **query)
        assert len(page["chunk"]) == 2
        assert [event["state_key"] for event in page["state"]] == [bob.user_id]
        assert page["state"][0]["content"]["membership"] == "join"


async def test_bob_who_left_reads_up_to_his_leave(homeserver: Homeserver) -> None:
    alice, bob, carol = [await homeserver.register(name) for name in ("alice", "bob", "carol")]
    room = await alice.create_room(
        initial_state=[
            {
                "type": "m.room.history_visibility",
                "state_key": "",
                "content": {"history_visibility": "joined"},
            }
        ]
    )
    await bob.join(room)
    await alice.put_state(room, "m.room.name", {"name": "before"})
    await alice.say(room, "m1")
    await alice.say(room, "m2")
    await bob.leave(room)
    left = (await bob.sync())["next_batch"]
    await carol.join(room)
    await alice.put_state(room, "m.room.name", {"name": "after"})
    late = await alice.say(room, "m3")

    page = await bob.call("GET", at(room, "messages"), dir="b", limit="3", **{"from": left})
    assert [e["content"].get("body") for e in page["chunk"]] == [None, "m2", "m1"]
    assert page["chunk"][0]["state_key"] == bob.user_id
    assert (await bodies(bob, room, dir="b", limit="2")) == ["m2"]
    page = await bob.call("GET", at(room, "messages"), dir="f", **{"from": left})
    assert page["chunk"] == []
    assert (await bob.call("GET", at(room, "state", "m.room.name") + "/")) == {"name": "before"}
    assert (await alice.call("GET", at(room, "state", "m.room.name"))) == {"name": "after"}
    members = (await bob.call("GET", at(room, "members")))["chunk"]
    assert {e["state_key"]: e["content"]["membership"] for e in members} == {
        alice.user_id: "join",
        bob.user_id: "leave",
    }
    state = await bob.call("GET", at(room, "state"))
    assert carol.user_id not in {event["state_key"] for event in state}
    assert (await bob.request("GET", at(room, "event", late))).status == 404
    assert (await bob.request("GET", at(room, "context", late))).status == 404
    assert (await bob.request("GET", at(room, "joined_members"))).status == 403

    await bob.call("POST", at(room, "forget"), {})
    assert (await bob.request("GET", at(room, "messages"))).status == 403
    assert (await bob.request("GET", at(room, "state"))).status == 403
    assert (await bob.request("GET", at(room, "members"))).status == 403


async def test_an_invited_user_and_one_who_declined_read_nothing(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room = await alice.create_room(preset="private_chat", invite=[bob.user_id])
    await set_visibility(alice, room, "invited")
    secret = await alice.say(room, "secret")
    for _ in range(2):
        for path in ("messages", "state", "members", "joined_members"):
            assert (await bob.request("GET", at(room, path), None, dir="b")).status == 403
        assert (await bob.request("GET", at(room, "event", secret))).status == 404
        await bob.leave(room)


async def test_everybody_reads_a_world_readable_room(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room = await alice.create_room()
    hidden = await alice.say(room, "hidden")
    await set_visibility(alice, room, "world_readable")
    open_event = await alice.say(room, "open")
    assert await bodies(bob, room, dir="b") == ["open"]
    event = await bob.call("GET", at(room, "event", open_event))
    assert event["unsigned"]["membership"] == "leave"
    assert (await bob.request("GET", at(room, "event", hidden))).status == 404
    assert (await bob.call("GET", at(room, "state", "m.room.join_rules"))) == {
        "join_rule": "public"
    }
    assert (await bob.request("GET", at(room, "joined_members"))).status == 403
    closed = await set_visibility(alice, room, "joined")
    assert (await bob.request("GET", at(room, "messages"), None, dir="b")).status == 403
    # What anybody might see when it was sent, they may still, and how that came to its end.
    assert (await bob.call("GET", at(room, "event", open_event)))["content"]["body"] == "open"
    assert (await bob.call("GET", at(room, "event", closed)))["type"] == "m.room.history_visibility"
    private = await alice.say(room, "private")
    assert (await bob.request("GET", at(room, "event", private))).status == 404
    assert (await bob.request("GET", at(room, "context", open_event))).status == 404


async def test_a_room_is_previewed_before_anybody_joins_it(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room = await alice.create_room(visibility="public")
    assert (await bob.request("GET", at(room, "initialSync"))).status == 403
    await set_visibility(alice, room, "world_readable")
    for n in range(4):
        await alice.say(room, f"{n}")
    seen = await bob.call("GET", at(room, "initialSync"), limit="3")
    assert seen["room_id"] == room
    assert seen["visibility"] == "public"
    assert seen["account_data"] == []
    assert "membership" not in seen
    assert [e["content"]["body"] for e in seen["messages"]["chunk"]] == ["1", "2", "3"]
    assert "m.room.create" in {e["type"] for e in seen["state"]}
    assert await bodies(bob, room, dir="b", **{"from": seen["messages"]["start"]}) == ["0"]
    assert await bodies(bob, room, dir="f", **{"from": seen["messages"]["end"]}) == []
    await bob.join(room)
    note = f"/user/{bob.user_id}/rooms/{room}/account_data/org.example.note"
    await bob.call("PUT", note, {"a": 1})
    seen = await bob.call("GET", at(room, "initialSync"), limit="100")
    assert seen["membership"] == "join"
    assert seen["account_data"] == [{"type": "org.example.note", "content": {"a": 1}}]
    assert "start" not in seen["messages"]
    await bob.leave(room)
    await alice.say(room, "unseen")
    seen = await bob.call("GET", at(room, "initialSync"), limit="1")
    assert seen["membership"] == "leave"
    assert seen["messages"]["chunk"][0]["state_key"] == bob.user_id


async def test_history_visibility_decides_what_a_newcomer_sees(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room = await alice.create_room(preset="private_chat")
    ids = {}
    for value in ("shared", "invited", "joined"):
        await set_visibility(alice, room, value)
        ids[value] = await alice.say(room, value)
    await set_visibility(alice, room, "invited")
    await alice.invite(room, bob)
    between = await alice.say(room, "between")
    await bob.join(room)
    after = await alice.say(room, "after")
    assert await bodies(bob, room, dir="b", limit="100") == ["after", "between", "shared"]
    for event_id in (ids["invited"], ids["joined"]):
        assert (await bob.request("GET", at(room, "event", event_id))).status == 404
    memberships = [
        (await bob.call("GET", at(room, "event", event_id)))["unsigned"]["membership"]
        for event_id in (ids["shared"], between, after)
    ]
    assert memberships == ["leave", "invite", "join"]


async def test_one_event_has_what_clients_need(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room = await alice.create_room()
    await bob.join(room)
    event_id = await alice.say(room, "hello")
    event = await alice.call("GET", at(room, "event", event_id))
    assert event["room_id"] == room
    assert event["sender"] == alice.user_id
    assert event["content"]["body"] == "hello"
    assert "transaction_id" in event["unsigned"]
    seen = await bob.call("GET", at(room, "event", event_id))
    assert "transaction_id" not in seen["unsigned"]
    other = await alice.create_room()
    assert (await alice.request("GET", at(other, "event", event_id))).status == 404
    assert (await alice.request("GET", at(room, "event", "$nothing"))).status == 404


async def test_context_shows_what_is_around_and_where_to_go_on(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    room = await alice.create_room()
    ids = [await alice.say(room, f"m{n}") for n in range(9)]
    around = await alice.call("GET", at(room, "context", ids[4]), limit="4")
    assert around["event"]["event_id"] == ids[4]
    assert [e["event_id"] for e in around["events_before"]] == [ids[3], ids[2]]
    assert [e["event_id"] for e in around["events_after"]] == [ids[5], ids[6]]
    assert {"m.room.create", "m.room.member"} <= {e["type"] for e in around["state"]}
    assert await bodies(alice, room, dir="b", limit="1", **{"from": around["start"]}) == ["m1"]
    assert await bodies(alice, room, dir="f", limit="1", **{"from": around["end"]}) == ["m7"]
    alone = await alice.call("GET", at(room, "context", ids[4]), limit="0")
    assert alone["events_before"] == alone["events_after"] == []
    assert await bodies(alice, room, dir="b", limit="1", **{"from": alone["end"]}) == ["m4"]
    assert await bodies(alice, room, dir="f", limit="1", **{"from": alone["start"]}) == ["m4"]
    lazy = orjson.dumps({"lazy_load_members": True, "types": ["m.room.member"]}).decode()
    few = await alice.call("GET", at(room, "context", ids[4]), filter=lazy)
    assert [e["state_key"] for e in few["state"]] == [alice.user_id]


async def test_members_now_filtered_and_at_a_point(homeserver: Homeserver) -> None:
    alice, bob, carol = [await homeserver.register(name) for name in ("alice", "bob", "carol")]
    room = await alice.create_room()
    first = (await alice.sync())["rooms"]["join"][room]["timeline"]["prev_batch"]
    await bob.join(room)
    then = (await alice.sync())["next_batch"]
    await carol.join(room)
    await bob.leave(room)

    async def who(**query: str) -> set[str]:
        chunk = (await alice.call("GET", at(room, "members"), **query))["chunk"]
        assert all(event["room_id"] == room for event in chunk)
        return {event["state_key"] for event in chunk}

    everyone = {alice.user_id, bob.user_id, carol.user_id}
    assert await who() == everyone
    assert await who(membership="join") == everyone - {bob.user_id}
    assert await who(not_membership="leave") == everyone - {bob.user_id}
    assert await who(membership="leave", not_membership="leave") == everyone
    assert await who(at=then) == {alice.user_id, bob.user_id}
    assert await who(at=then, membership="join") == {alice.user_id, bob.user_id}
    assert await who(at=first) == {alice.user_id}
    answer = await alice.request("GET", at(room, "members"), None, membership="gone")
    assert (answer.status, answer.json["errcode"]) == (400, "M_INVALID_PARAM")


async def test_joined_members_have_names_and_avatars(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    for user, name in ((alice, "Alice"), (bob, "Bob")):
        profile = f"/profile/{user.user_id}"
        await user.call("PUT", f"{profile}/displayname", {"displayname": name})
        await user.call("PUT", f"{profile}/avatar_url", {"avatar_url": f"mxc://hs1/{name}"})
    room = await alice.create_room()
    await bob.join(room)
    assert (await alice.call("GET", at(room, "joined_members")))["joined"] == {
        alice.user_id: {"display_name": "Alice", "avatar_url": "mxc://hs1/Alice"},
        bob.user_id: {"display_name": "Bob", "avatar_url": "mxc://hs1/Bob"},
    }


async def test_state_by_key_as_content_or_event(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    room = await alice.create_room(name="tea")
    await alice.put_state(room, "a.b", {"n": 1}, "k/ü")
    assert await alice.call("GET", at(room, "state", "a.b", "k/ü")) == {"n": 1}
    assert await alice.call("GET", at(room, "state", "m.room.name")) == {"name": "tea"}
    event = await alice.call("GET", at(room, "state", "m.room.name") + "/", format="event")
    assert (event["sender"], event["room_id"]) == (alice.user_id, room)
    assert event["content"] == {"name": "tea"}
    state = await alice.call("GET", at(room, "state"))
    assert ("a.b", "k/ü") in {(e["type"], e["state_key"]) for e in state}
    for path in (("m.room.name", "x"), ("a.b",), ("no.such",)):
        answer = await alice.request("GET", at(room, "state", *path))
        assert (answer.status, answer.json["errcode"]) == (404, "M_NOT_FOUND")
    answer = await alice.request("GET", at(room, "state", "m.room.name"), None, format="x")
    assert answer.status == 400


async def test_messages_of_ignored_users_are_left_out(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room = await alice.create_room()
    await bob.join(room)
    await bob.say(room, "noise")
    await alice.say(room, "signal")
    await alice.call(
        "PUT",
        f"/user/{alice.user_id}/account_data/m.ignored_user_list",
        {"ignored_users": {bob.user_id: {}}},
    )
    assert await bodies(alice, room, dir="b") == ["signal"]
    page = await alice.call("GET", at(room, "messages"), dir="b")
    assert bob.user_id in {event["sender"] for event in page["chunk"]}, "state stays"
    assert await bodies(bob, room, dir="b") == ["signal", "noise"]


async def test_a_redacted_event_is_shown_redacted(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    room = await alice.create_room()
    event_id = await alice.say(room, "oops")
    path = at(room, "redact", event_id, "r1")
    redaction = (await alice.call("PUT", path, {"reason": "typo"}))["event_id"]
    event = await alice.call("GET", at(room, "event", event_id))
    assert event["content"] == {}
    assert event["unsigned"]["redacted_because"]["event_id"] == redaction
    page = await alice.call("GET", at(room, "messages"), dir="b", limit="2")
    assert page["chunk"][1]["content"] == {}


async def test_jumping_to_a_date(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room = await alice.create_room(preset="private_chat")
    ids = [await alice.say(room, f"m{n}") for n in range(3)]
    times = [
        (await alice.call("GET", at(room, "event", event_id)))["origin_server_ts"]
        for event_id in ids
    ]
    path = "/_matrix/client/v1" + at(room, "timestamp_to_event")
    # What the content says of times is nobody's business.
    await alice.put_state(room, "a.state", {"origin_server_ts": 1, '"origin_server_ts":1,': 2})
    ids.append(await alice.say(room, "last"))
    last = await alice.call("GET", at(room, "event", ids[-1]))
    times.append(last["origin_server_ts"])
    found = await alice.call("GET", path, ts=str(times[-1] + 1000), dir="b")
    assert found == {"event_id": ids[-1], "origin_server_ts": times[-1]}
    found = await alice.call("GET", path, ts="0", dir="f")
    create = await alice.call("GET", at(room, "event", found["event_id"]))
    assert create["type"] == "m.room.create"
    for query in ({"ts": "0", "dir": "b"}, {"ts": str(times[-1] + 1000), "dir": "f"}):
        answer = await alice.request("GET", path, None, **query)
        assert (answer.status, answer.json["errcode"]) == (404, "M_NOT_FOUND")
    assert (await bob.request("GET", path, None, ts="0", dir="f")).status == 403
    assert (await alice.request("GET", path, None, dir="f")).status == 400


async def test_an_erased_user_is_seen_redacted_by_who_was_not_there(
    homeserver: Homeserver,
) -> None:
    alice, bob, carol = [await homeserver.register(name) for name in ("alice", "bob", "carol")]
    room = await alice.create_room()
    await bob.join(room)
    event_id = await bob.say(room, "personal")
    auth = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": bob.user_id},
        "password": "correct horse battery staple",
    }
    await bob.call("POST", "/account/deactivate", {"auth": auth, "erase": True})
    await carol.join(room)
    seen = await carol.call("GET", at(room, "event", event_id))
    assert seen["content"] == {}
    page = await carol.call("GET", at(room, "messages"), dir="b", limit="100")
    assert "personal" not in str(page)
    kept = await alice.call("GET", at(room, "event", event_id))
    assert kept["content"]["body"] == "personal"
