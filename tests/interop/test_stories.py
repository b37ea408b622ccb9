"""The stories that two servers in one room live through, with the room on either side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from tests.interop.peers import Account, eventually

if TYPE_CHECKING:
    from tests.interop.conftest import Pair, Peers

MEMBER = "m.room.member"


async def test_joins_and_both_have_the_same_state(pair: Pair) -> None:
    room_id = await pair.shared_room(name="Town square")
    assert await pair.guest.membership(room_id, pair.host) == "join"
    assert await pair.guest.state(room_id, "m.room.name") == {"name": "Town square"}
    assert await pair.guest.whole_state(room_id) == await pair.host.whole_state(room_id)


async def test_messages_go_both_ways(pair: Pair) -> None:
    room_id = await pair.shared_room()
    for number in range(3):
        for sender, reader in ((pair.host, pair.guest), (pair.guest, pair.host)):
            text = f"{number} from {sender.user_id} ♥"
            event = await reader.sees(room_id, await sender.say(room_id, text))
            assert event["content"]["body"] == text
            assert event["sender"] == sender.user_id
    assert await pair.host.texts(room_id) == await pair.guest.texts(room_id)


async def test_state_goes_both_ways(pair: Pair) -> None:
    room_id = await pair.shared_room()
    levels = await pair.host.state(room_id, "m.room.power_levels")
    levels["users"] = {**levels.get("users", {}), pair.guest.user_id: 50}
    await pair.guest.sees(
        room_id, await pair.host.set_state(room_id, "m.room.power_levels", levels)
    )
    topic = await pair.guest.set_state(room_id, "m.room.topic", {"topic": "by the guest"})
    await pair.host.sees(room_id, topic)
    assert (await pair.host.state(room_id, "m.room.topic"))["topic"] == "by the guest"
    name = await pair.host.set_state(room_id, "m.room.name", {"name": "by the host"})
    await pair.guest.sees(room_id, name)
    assert await pair.guest.whole_state(room_id) == await pair.host.whole_state(room_id)


async def test_an_invite_is_shown_and_accepted(pair: Pair) -> None:
    room_id = await pair.host.create_room(pair.version, preset="private_chat", name="Parlour")
    assert (await pair.guest.join(room_id, pair.host)).status == 403
    await pair.host.do("invite", room_id, pair.guest)
    await eventually(pair.guest.invites)
    shown = (await pair.guest.invites())[room_id]["invite_state"]["events"]
    contents: dict[str, Any] = {event["type"]: event["content"] for event in shown}
    assert contents["m.room.name"] == {"name": "Parlour"}
    assert contents["m.room.join_rules"]["join_rule"] == "invite"
    assert contents[MEMBER]["membership"] in ("invite", "join")
    await pair.guest.enter(room_id, pair.host)
    await pair.host.sees_member(room_id, pair.guest, "join")
    await pair.host.sees(room_id, await pair.guest.say(room_id, "thank you"))


async def test_an_invite_is_rejected(pair: Pair) -> None:
    room_id = await pair.host.create_room(pair.version, preset="private_chat")
    await pair.host.do("invite", room_id, pair.guest)
    await eventually(pair.guest.invites)
    await pair.guest.leave(room_id)
    await pair.host.sees_member(room_id, pair.guest, "leave")
    assert await pair.guest.invites() == {}


async def test_an_invite_is_taken_back(pair: Pair) -> None:
    room_id = await pair.host.create_room(pair.version, preset="private_chat")
    await pair.host.do("invite", room_id, pair.guest)
    await eventually(pair.guest.invites)
    await pair.host.do("kick", room_id, pair.guest)

    async def is_gone() -> bool:
        return await pair.guest.invites() == {}

    await eventually(is_gone)
    assert (await pair.guest.join(room_id, pair.host)).status == 403


async def test_redactions_go_both_ways(pair: Pair) -> None:
    room_id = await pair.shared_room()
    by_guest = await pair.guest.say(room_id, "a slip")
    another = await pair.guest.say(room_id, "an insult")
    await pair.host.sees(room_id, another)
    await pair.guest.redact(room_id, by_guest)
    await pair.host.redact(room_id, another)
    for reader in (pair.host, pair.guest):
        for event_id in (by_guest, another):

            async def is_empty(reader: Account = reader, event_id: str = event_id) -> bool:
                event = await reader.event(room_id, event_id)
                return event is not None and event["content"] == {}

            await eventually(is_empty)
            assert await is_empty(), "it stays so"


async def test_a_guest_is_kicked_and_comes_back(pair: Pair) -> None:
    room_id = await pair.shared_room()
    await pair.host.do("kick", room_id, pair.guest)
    await pair.guest.is_put_out(room_id)
    path = f"/rooms/{quote(room_id)}/send/m.room.message/x"
    assert (await pair.guest.request("PUT", path, {"body": "?"})).status == 403
    await pair.guest.enter(room_id, pair.host)
    await pair.host.sees_member(room_id, pair.guest, "join")
    await pair.guest.sees(room_id, await pair.host.say(room_id, "welcome back"))
    await pair.host.sees(room_id, await pair.guest.say(room_id, "hello again"))


async def test_a_guest_is_banned_and_forgiven(pair: Pair) -> None:
    room_id = await pair.shared_room()
    await pair.host.do("ban", room_id, pair.guest)
    await pair.guest.is_put_out(room_id)
    path = f"/rooms/{quote(room_id)}/send/m.room.message/x"
    assert (await pair.guest.request("PUT", path, {"body": "?"})).status == 403
    assert (await pair.guest.join(room_id, pair.host)).status == 403
    await pair.host.do("unban", room_id, pair.guest)
    await pair.guest.enter(room_id, pair.host)
    await pair.host.sees_member(room_id, pair.guest, "join")


async def test_a_guest_leaves(pair: Pair) -> None:
    room_id = await pair.shared_room()
    await pair.guest.leave(room_id)
    await pair.host.sees_member(room_id, pair.guest, "leave")
    await pair.host.say(room_id, "alone")
    await pair.guest.enter(room_id, pair.host)
    await pair.host.sees_member(room_id, pair.guest, "join")
    assert await pair.host.membership(room_id, pair.guest) == "join", "and it stays so"


async def test_who_comes_late_pages_back_to_the_beginning(pair: Pair) -> None:
    room_id = await pair.host.create_room(pair.version)
    said = [f"number {number}" for number in range(60)]
    for text in said:
        await pair.host.say(room_id, text)
    await pair.guest.enter(room_id, pair.host)
    await pair.host.sees_member(room_id, pair.guest, "join")
    assert await pair.guest.texts(room_id) == said[::-1]


async def test_somebody_knocks_and_is_let_in(pair: Pair) -> None:
    room_id = await pair.host.create_room(
        pair.version,
        preset="private_chat",
        initial_state=[{"type": "m.room.join_rules", "content": {"join_rule": "knock"}}],
    )
    assert (await pair.guest.join(room_id, pair.host)).status == 403
    path = f"/knock/{quote(room_id)}"
    await pair.guest.call(
        "POST", path, {"reason": "it rains"}, server_name=pair.host.peer.name,
        via=pair.host.peer.name,
    )  # fmt: skip
    await pair.host.sees_member(room_id, pair.guest, "knock")
    await pair.host.do("invite", room_id, pair.guest)
    await eventually(pair.guest.invites)
    await pair.guest.enter(room_id, pair.host)
    await pair.host.sees_member(room_id, pair.guest, "join")


async def test_members_of_a_room_may_enter_another(pair: Pair, peers: Peers) -> None:
    lobby = await pair.shared_room()
    inner = await pair.host.create_room(
        pair.version,
        preset="private_chat",
        initial_state=[
            {
                "type": "m.room.join_rules",
                "content": {
                    "join_rule": "restricted",
                    "allow": [{"type": "m.room_membership", "room_id": lobby}],
                },
            }
        ],
    )
    await pair.guest.enter(inner, pair.host)
    await pair.host.sees_member(inner, pair.guest, "join")
    member = await pair.host.state(inner, MEMBER, pair.guest.user_id)
    assert member["join_authorised_via_users_server"] == pair.host.user_id
    await pair.host.sees(inner, await pair.guest.say(inner, "I am in"))
    stranger = await Account.make(pair.guest.peer, "stranger")
    refused = await stranger.join(inner, pair.host)
    assert refused.status == 403, refused.json


async def test_members_of_a_room_enter_another_and_others_knock(pair: Pair) -> None:
    lobby = await pair.shared_room()
    rule = {
        "join_rule": "knock_restricted",
        "allow": [{"type": "m.room_membership", "room_id": lobby}],
    }
    inner = await pair.host.create_room(
        pair.version,
        preset="private_chat",
        initial_state=[{"type": "m.room.join_rules", "content": rule}],
    )
    stranger = await Account.make(pair.guest.peer, "stranger")
    assert (await stranger.join(inner, pair.host)).status == 403
    name = pair.host.peer.name
    await stranger.call("POST", f"/knock/{quote(inner)}", {}, server_name=name, via=name)
    await pair.host.sees_member(inner, stranger, "knock")
    await pair.guest.enter(inner, pair.host)
    await pair.host.sees_member(inner, pair.guest, "join")
    await pair.host.do("kick", inner, stranger)  # No, thank you.
    await pair.guest.sees_member(inner, stranger, "leave")


async def test_a_space_is_walked_into_the_rooms_of_its_server(pair: Pair) -> None:
    inner = await pair.host.create_room(pair.version, name="Inner")
    below = await pair.host.create_room(
        pair.version, name="Below", creation_content={"type": "m.space"}
    )
    secret = await pair.host.create_room(pair.version, preset="private_chat", name="Secret")
    top = await pair.guest.create_room(
        pair.version, name="Top", creation_content={"type": "m.space"}
    )
    via = {"via": [pair.host.peer.name]}
    for parent, child, owner in ((below, inner, pair.host), (below, secret, pair.host)):
        await owner.set_state(parent, "m.space.child", via, child)
    await pair.guest.set_state(top, "m.space.child", via, below)
    path = f"/_matrix/client/v1/rooms/{quote(top)}/hierarchy"
    rooms = (await pair.guest.call("GET", path))["rooms"]
    assert [room["room_id"] for room in rooms] == [top, below, inner]
    assert [room["name"] for room in rooms] == ["Top", "Below", "Inner"]
    assert [len(room["children_state"]) for room in rooms] == [1, 2, 0]
    path = f"/_matrix/client/v1/room_summary/{quote(inner)}"
    summary = await pair.guest.call("GET", path, via=pair.host.peer.name)
    assert (summary["name"], summary["membership"]) == ("Inner", "leave")


async def test_who_comes_late_jumps_to_a_date(pair: Pair) -> None:
    room_id = await pair.host.create_room(pair.version)
    said = [await pair.host.say(room_id, f"number {number}") for number in range(30)]
    sent_ms = (await pair.host.event(room_id, said[3]))["origin_server_ts"]
    await pair.guest.enter(room_id, pair.host)
    path = f"/_matrix/client/v1/rooms/{quote(room_id)}/timestamp_to_event"
    found = await pair.guest.call("GET", path, ts=str(sent_ms), dir="b")
    assert found["event_id"] in said[3:6]  # Several may be of one millisecond.
    assert (await pair.guest.sees(room_id, found["event_id"]))["origin_server_ts"] == sent_ms


async def test_rooms_are_found_by_alias_and_in_the_directory(pair: Pair) -> None:
    name = pair.host.user_id[1:].partition(":")[0]
    room_id = await pair.host.create_room(pair.version, room_alias_name=name, visibility="public")
    alias = f"#{name}:{pair.host.peer.name}"
    found = await pair.guest.call("GET", f"/directory/room/{quote(alias, safe='')}")
    assert found["room_id"] == room_id
    rooms = await pair.guest.call(  # A search, since Synapse remembers whole lists for a while.
        "POST",
        "/publicRooms",
        {"filter": {"generic_search_term": name}},
        server=pair.host.peer.name,
    )
    assert [room["room_id"] for room in rooms["chunk"]] == [room_id]
    assert (await pair.guest.join(alias)).status == 200
    await pair.host.sees_member(room_id, pair.guest, "join")


async def test_profiles_are_asked_for_and_change_in_rooms(pair: Pair) -> None:
    room_id = await pair.shared_room()
    for who, other in ((pair.host, pair.guest), (pair.guest, pair.host)):
        path = f"/profile/{quote(who.user_id)}/displayname"
        await who.call("PUT", path, {"displayname": f"Dr. {who.user_id}"})
        answer = await other.call("GET", path)
        assert answer == {"displayname": f"Dr. {who.user_id}"}

        async def is_renamed(who: Account = who, other: Account = other) -> bool:
            member = await other.state(room_id, MEMBER, who.user_id)
            return bool(member.get("displayname") == f"Dr. {who.user_id}")

        await eventually(is_renamed)


async def test_typing_and_receipts_go_both_ways(pair: Pair) -> None:
    room_id = await pair.shared_room()
    for who, other in ((pair.host, pair.guest), (pair.guest, pair.host)):
        event_id = await other.say(room_id, "read this")
        await who.sees(room_id, event_id)
        await who.call("POST", f"/rooms/{quote(room_id)}/receipt/m.read/{quote(event_id)}", {})
        path = f"/rooms/{quote(room_id)}/typing/{quote(who.user_id)}"
        await who.call("PUT", path, {"typing": True, "timeout": 30_000})

        async def is_told(
            who: Account = who, other: Account = other, event_id: str = event_id
        ) -> bool:
            answer = await other.call("GET", "/sync", timeout="0")
            events = answer["rooms"]["join"][room_id]["ephemeral"]["events"]
            contents = {event["type"]: event["content"] for event in events}
            readers = contents.get("m.receipt", {}).get(event_id, {}).get("m.read", {})
            return who.user_id in readers and who.user_id in contents.get("m.typing", {}).get(
                "user_ids", ()
            )

        await eventually(is_told)
        assert await is_told(), "it stays so"
        await who.call("PUT", path, {"typing": False})


async def test_servers_that_a_room_denies_stay_out(pair: Pair) -> None:
    room_id = await pair.shared_room()
    name = pair.guest.peer.name
    # Ports are no part of what is matched: deny by the name's whole form is of no use here.
    acl = {"allow": ["*"], "deny": [name.partition(":")[0]], "allow_ip_literals": True}
    await pair.guest.sees(room_id, await pair.host.set_state(room_id, "m.room.server_acl", acl))
    said = await pair.guest.request(
        "PUT", f"/rooms/{quote(room_id)}/send/m.room.message/denied", {"body": "?"}
    )
    seen = await pair.host.event(room_id, str(said.json.get("event_id", "$none")))
    assert seen is None


@pytest.mark.parametrize("which", ["minihs", "synapse"])
async def test_what_was_sent_while_a_server_was_away_arrives(
    peers: Peers, version: str, which: str
) -> None:
    ours, theirs = (
        await Account.make(peers.minihs, "alice"),
        await Account.make(peers.synapse, "bob"),
    )
    here, there = (ours, theirs) if which == "synapse" else (theirs, ours)
    room_id = await here.create_room(version)
    await there.enter(room_id, here)
    await here.sees_member(room_id, there, "join")
    await there.peer.stop()
    said = [f"while you were away {number}" for number in range(25)]
    for text in said:
        await here.say(room_id, text)
    topic = await here.set_state(room_id, "m.room.topic", {"topic": "missed"})
    await there.peer.start()
    await there.sees(room_id, topic)

    async def has_all() -> bool:  # What is behind a gap comes when it is paged to.
        return await there.texts(room_id) == said[::-1]

    await eventually(has_all)
    await here.sees(room_id, await there.say(room_id, "back again"))
    assert await there.whole_state(room_id) == await here.whole_state(room_id)


async def test_servers_that_missed_each_other_agree_again(peers: Peers, version: str) -> None:
    """Both change the same state while the other is away, and one bans who changed it."""
    alice = await Account.make(peers.minihs, "alice")
    bob, carol = [await Account.make(peers.synapse, name) for name in ("bob", "carol")]
    room_id = await alice.create_room(version)
    for guest in (bob, carol):
        await guest.enter(room_id, alice)
        await alice.sees_member(room_id, guest, "join")
    levels = await alice.state(room_id, "m.room.power_levels")
    levels["users"] = {**levels.get("users", {}), bob.user_id: 50, carol.user_id: 50}
    event_id = await alice.set_state(room_id, "m.room.power_levels", levels)
    await bob.sees(room_id, event_id)
    await peers.synapse.stop()
    await alice.do("ban", room_id, carol)
    await alice.set_state(room_id, "m.room.name", {"name": "by alice"})
    await peers.minihs.stop()
    await peers.synapse.start()
    await carol.set_state(room_id, "m.room.name", {"name": "by carol"})
    await carol.set_state(room_id, "m.room.topic", {"topic": "by carol"})
    await bob.set_state(room_id, "m.room.avatar", {"url": "mxc://bob/1"})
    await peers.minihs.start()

    async def agree() -> bool:
        states = [await who.whole_state(room_id) for who in (alice, bob)]
        return states[0] == states[1] and ("m.room.avatar", "") in states[0]

    await alice.say(room_id, "are you there?")
    await bob.say(room_id, "I am")
    await eventually(agree)
    assert await bob.state(room_id, "m.room.name") == {"name": "by alice"}
    assert await alice.state(room_id, "m.room.topic") is None
    assert await bob.membership(room_id, carol) == "ban"
    event_id = await bob.say(room_id, "all is well")
    await alice.sees(room_id, event_id)
