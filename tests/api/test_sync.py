"""`GET /sync`, told as stories. Spec: client-server-api#syncing."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from tests.helpers.waiting import PATIENCE_S

if TYPE_CHECKING:
    from tests.helpers.homeserver import Homeserver, User


def room_of(answer: dict, room_id: str, section: str = "join") -> dict:
    return answer["rooms"][section][room_id]


def bodies(answer: dict, room_id: str, section: str = "join") -> list[str]:
    events = room_of(answer, room_id, section)["timeline"]["events"]
    return [e["content"]["body"] for e in events if e["type"] == "m.room.message"]


def state_keys(part: dict, name: str = "state") -> set[tuple[str, str]]:
    return {(e["type"], e["state_key"]) for e in part.get(name, {"events": []})["events"]}


async def remove(moderator: User, room_id: str, how: str, user: User) -> None:
    path = f"/rooms/{quote(room_id)}/{how}"
    await moderator.call("POST", path, {"user_id": user.user_id})


async def filtered(user: User, filter_: object, **query: str) -> dict:
    return await user.sync(filter=json.dumps(filter_), **query)


async def test_alice_sees_her_own_message_once_and_then_nothing(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    room_id = await alice.create_room()
    await alice.sync()
    await alice.say(room_id, "one")
    answer = await alice.sync()
    assert bodies(answer, room_id) == ["one"]
    assert room_of(answer, room_id)["timeline"]["limited"] is False
    event = room_of(answer, room_id)["timeline"]["events"][0]
    assert "transaction_id" in event["unsigned"]
    assert event["unsigned"]["membership"] == "join"
    assert "rooms" not in await alice.sync()


async def test_bob_waits_and_is_woken_by_alices_message(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room()
    await bob.join(room_id)
    await bob.sync()
    waiting = asyncio.ensure_future(bob.sync(timeout="300000"))
    await alice.sync()  # A request of its own, so that Bob's is under way.
    await alice.say(room_id, "wake up")
    answer = await asyncio.wait_for(waiting, PATIENCE_S)
    assert bodies(answer, room_id) == ["wake up"]
    assert "transaction_id" not in room_of(answer, room_id)["timeline"]["events"][0]["unsigned"]


async def test_a_sync_without_news_comes_back_after_its_timeout(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    await alice.sync()
    token = alice.since
    answer = await alice.sync(timeout="20")
    assert answer == {"next_batch": token}


async def test_all_members_get_the_same_events_whoever_asks_first(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    room_id = await alice.create_room()
    members = [await homeserver.register(f"member{n}") for n in range(5)]
    for member in members:
        await member.join(room_id)
    for user in (alice, *members):
        await user.sync()
    sent = [await alice.say(room_id, f"message {n}") for n in range(3)]
    for user in (*members, alice):
        events = room_of(await user.sync(), room_id)["timeline"]["events"]
        assert [e["event_id"] for e in events] == sent
        own = [e["unsigned"].get("transaction_id") is not None for e in events]
        assert own == [user is alice] * 3  # Nobody learns another device's transaction ids.


async def test_a_gap_is_limited_and_prev_batch_leads_into_it(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room()
    await bob.join(room_id)
    await bob.sync()
    for n in range(8):
        await alice.say(room_id, str(n))
    await alice.put_state(room_id, "m.room.topic", {"topic": "in the gap"})
    for n in range(8, 11):
        await alice.say(room_id, str(n))
    answer = await filtered(bob, {"room": {"timeline": {"limit": 2}}})
    part = room_of(answer, room_id)
    assert bodies(answer, room_id) == ["9", "10"]
    assert part["timeline"]["limited"] is True
    assert state_keys(part) == {("m.room.topic", "")}
    page = await bob.call(
        "GET",
        f"/rooms/{quote(room_id)}/messages",
        dir="b",
        limit="3",
        **{"from": part["timeline"]["prev_batch"]},
    )
    found = [e["content"].get("body", e["type"]) for e in page["chunk"]]
    assert found == ["8", "m.room.topic", "7"]


async def test_state_in_the_timeline_is_not_in_the_state_section(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    room_id = await alice.create_room(name="first")
    await alice.sync()
    await alice.put_state(room_id, "m.room.name", {"name": "second"})
    part = room_of(await alice.sync(), room_id)
    assert state_keys(part) == set()
    (event,) = part["timeline"]["events"]
    assert event["unsigned"]["prev_content"] == {"name": "first"}
    assert event["unsigned"]["replaces_state"].startswith("$")


@pytest.mark.parametrize("prefix", ["", "org.matrix.msc4222."])
async def test_use_state_after_gives_the_state_at_the_end_of_the_timeline(
    homeserver: Homeserver, prefix: str
) -> None:
    alice = await homeserver.register("alice")
    room_id = await alice.create_room()
    since = (await alice.sync())["next_batch"]
    await alice.put_state(room_id, "m.room.name", {"name": "new"})
    plain = room_of(await alice.sync(since=since), room_id)
    part = room_of(await alice.sync(since=since, **{f"{prefix}use_state_after": "true"}), room_id)
    assert set(part) - set(plain) == {f"{prefix}state_after"}
    assert "state" not in part
    assert ("m.room.name", "") in state_keys(part, f"{prefix}state_after")


@pytest.mark.parametrize("limit", [0, 10])
@pytest.mark.parametrize("how", ["kick and ban", "ban", "retracted invite", "declined invite"])
async def test_use_state_after_tells_who_is_outside_why(
    homeserver: Homeserver, how: str, limit: int
) -> None:
    """MSC4222: clients that ask for it take the state from nowhere else."""
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room(name="Tea", preset="private_chat")
    await alice.invite(room_id, bob)
    if how in ("kick and ban", "ban"):
        await bob.join(room_id)
    await bob.sync()
    if how == "declined invite":
        await bob.leave(room_id)
    else:
        await remove(alice, room_id, "ban" if how == "ban" else "kick", bob)
    if how == "kick and ban":
        await bob.sync()
        await remove(alice, room_id, "ban", bob)
    timeline = {"room": {"timeline": {"limit": limit}}}
    part = room_of(await filtered(bob, timeline, use_state_after="true"), room_id, "leave")
    (own,) = [e for e in part["state_after"]["events"] if e.get("state_key") == bob.user_id]
    assert own["content"]["membership"] == ("ban" if how in ("kick and ban", "ban") else "leave")


async def test_full_state_shows_the_state_of_quiet_rooms(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    room_id = await alice.create_room(name="quiet")
    await alice.sync()
    assert "rooms" not in await alice.sync()
    part = room_of(await alice.sync(full_state="true"), room_id)
    assert {("m.room.name", ""), ("m.room.create", "")} <= state_keys(part)
    assert part["timeline"]["events"] == []


async def test_bob_joins_and_gets_the_whole_state_and_a_limited_timeline(
    homeserver: Homeserver,
) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room(name="the room")
    await bob.sync()
    for n in range(15):
        await alice.say(room_id, str(n))
    await bob.join(room_id)
    part = room_of(await bob.sync(), room_id)
    assert part["timeline"]["limited"] is True
    assert {("m.room.create", ""), ("m.room.name", "")} <= state_keys(part)
    memberships = [e["unsigned"]["membership"] for e in part["timeline"]["events"]]
    assert memberships == ["leave"] * 9 + ["join"]


async def test_an_invite_shows_stripped_state_and_goes_away_once_accepted(
    homeserver: Homeserver,
) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room(preset="private_chat", name="secret")
    await bob.sync()
    await alice.invite(room_id, bob)
    shown = room_of(await bob.sync(), room_id, "invite")["invite_state"]["events"]
    by_type = {e["type"]: e for e in shown}
    assert by_type["m.room.name"]["content"] == {"name": "secret"}
    assert by_type["m.room.member"]["content"]["membership"] == "invite"
    assert "event_id" not in by_type["m.room.name"]
    await bob.join(room_id)
    answer = await bob.sync()
    assert "invite" not in answer["rooms"]
    assert room_id in answer["rooms"]["join"]


async def test_a_rejected_invite_appears_under_leave_once(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room(preset="private_chat")
    await alice.invite(room_id, bob)
    await bob.sync()
    await bob.leave(room_id)
    part = room_of(await bob.sync(), room_id, "leave")
    assert [e["state_key"] for e in part["timeline"]["events"]] == [bob.user_id]
    assert "rooms" not in await bob.sync()


async def test_bob_leaves_and_sees_nothing_of_what_comes_after(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room()
    await bob.join(room_id)
    await bob.sync()
    await alice.say(room_id, "before")
    await bob.leave(room_id)
    await alice.say(room_id, "after")
    answer = await bob.sync()
    assert bodies(answer, room_id, "leave") == ["before"]
    assert "rooms" not in await bob.sync()
    assert room_id not in (await bob.sync(since="s0")).get("rooms", {}).get("join", {})


async def test_joined_and_left_between_two_syncs_still_has_its_state(
    homeserver: Homeserver,
) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room(name="brief")
    await bob.sync()
    await bob.join(room_id)
    for n in range(12):
        await alice.say(room_id, str(n))
    await bob.leave(room_id)
    part = room_of(await bob.sync(), room_id, "leave")
    assert ("m.room.name", "") in state_keys(part)
    assert part["timeline"]["limited"] is True


async def test_left_rooms_are_in_an_initial_sync_only_if_asked_for(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    room_id = await alice.create_room()
    await alice.say(room_id, "old times")
    await alice.leave(room_id)
    assert "rooms" not in await alice.sync()
    alice.since = None
    answer = await filtered(alice, {"room": {"include_leave": True}})
    assert "old times" in bodies(answer, room_id, "leave")


@pytest.mark.parametrize("how", ["ban", "retracted invite"])
async def test_who_never_was_in_a_room_is_shown_nothing_of_it(
    homeserver: Homeserver, how: str
) -> None:
    alice, mallory = await homeserver.register("alice"), await homeserver.register("mallory")
    await mallory.sync()
    room_id = await alice.create_room(name="Secret plans", preset="private_chat")
    await alice.say(room_id, "Secret words")
    if how == "retracted invite":
        await alice.invite(room_id, mallory)
        await remove(alice, room_id, "kick", mallory)
    else:
        await remove(alice, room_id, "ban", mallory)
    later = await mallory.sync()
    mallory.since = None
    first = await filtered(mallory, {"room": {"include_leave": True}})
    for part in (room_of(later, room_id, "leave"), room_of(first, room_id, "leave")):
        assert [e["state_key"] for e in part["timeline"]["events"]] == [mallory.user_id]
        assert part["state"]["events"] == []


async def test_who_is_banned_after_leaving_is_shown_the_room_as_they_left_it(
    homeserver: Homeserver,
) -> None:
    alice, mallory = await homeserver.register("alice"), await homeserver.register("mallory")
    room_id = await alice.create_room(name="Tea")
    await mallory.join(room_id)
    await mallory.leave(room_id)
    await mallory.sync()
    await alice.put_state(room_id, "m.room.name", {"name": "Secret plans"})
    await remove(alice, room_id, "ban", mallory)
    parts = [room_of(await mallory.sync(), room_id, "leave")]
    for limit in (1, 20):
        mallory.since = None
        shown = {"include_leave": True, "timeline": {"limit": limit}}
        parts.append(room_of(await filtered(mallory, {"room": shown}), room_id, "leave"))
    for part in parts:
        events = part["timeline"]["events"]
        assert events[-1]["content"]["membership"] == "ban"
        named = [e for e in events + part["state"]["events"] if e["type"] == "m.room.name"]
        assert [e["content"]["name"] for e in named] == ["Tea"]


async def test_a_forgotten_room_is_in_no_initial_sync(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    room_id = await alice.create_room()
    await alice.leave(room_id)
    await alice.call("POST", f"/rooms/{quote(room_id)}/forget", {})
    assert "rooms" not in await filtered(alice, {"room": {"include_leave": True}})


FILTERS = [
    ("types", {"types": ["m.room.topic"]}, []),
    ("globs", {"types": ["m.room.mess*"]}, ["from alice", "from bob"]),
    ("not_types", {"not_types": ["m.room.message"]}, []),
    ("senders", {"senders": ["@bob:hs1"]}, ["from bob"]),
    ("not_senders", {"not_senders": ["@bob:hs1"]}, ["from alice"]),
    ("not_rooms", {"not_rooms": ["!elsewhere:hs1"]}, ["from alice", "from bob"]),
    ("contains_url", {"contains_url": True}, []),
]


@pytest.mark.parametrize(("name", "timeline", "wanted"), FILTERS, ids=[f[0] for f in FILTERS])
async def test_timeline_filters_let_through_what_they_name(
    homeserver: Homeserver, name: str, timeline: dict, wanted: list[str]
) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room()
    await bob.join(room_id)
    await alice.sync()
    await alice.say(room_id, "from alice")
    await bob.say(room_id, "from bob")
    answer = await filtered(alice, {"room": {"timeline": timeline}})
    found = bodies(answer, room_id) if wanted else []
    assert found == wanted, name
    events = answer.get("rooms", {}).get("join", {}).get(room_id, {}).get("timeline", {})
    if not wanted:
        assert events.get("events", []) == []


async def test_a_filter_that_lets_little_through_looks_further_back(
    homeserver: Homeserver,
) -> None:
    alice = await homeserver.register("alice")
    room_id = await alice.create_room()
    await alice.say(room_id, "the needle")
    for n in range(150):
        await alice.send(room_id, "org.example.hay", {"n": n})
    answer = await filtered(alice, {"room": {"timeline": {"types": ["m.room.message"]}}})
    assert bodies(answer, room_id) == ["the needle"]


@pytest.mark.shapes_events
async def test_event_fields_and_event_format_shape_events(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    room_id = await alice.create_room()
    await alice.sync()
    token = alice.since
    await alice.say(room_id, "hello")
    answer = await filtered(alice, {"event_fields": ["content.body", "event_id"]})
    (event,) = room_of(answer, room_id)["timeline"]["events"]
    assert event.keys() == {"content", "event_id"}
    assert event["content"] == {"body": "hello"}
    alice.since = token
    answer = await filtered(alice, {"event_format": "federation"})
    (event,) = room_of(answer, room_id)["timeline"]["events"]
    assert event["hashes"]
    assert event["signatures"]["hs1"]


async def test_lazy_loading_sends_the_members_who_speak(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    room_id = await alice.create_room(name="Nobody need be named")
    members = [await homeserver.register(f"member{n}") for n in range(4)]
    for member in members:
        await member.join(room_id)
    await members[2].say(room_id, "I speak")
    lazy = {"room": {"state": {"lazy_load_members": True}, "timeline": {"limit": 1}}}
    part = room_of(await filtered(alice, lazy), room_id)
    names = {key for kind, key in state_keys(part) if kind == "m.room.member"}
    assert names == {alice.user_id, members[2].user_id}
    await members[3].say(room_id, "so do I")
    part = room_of(await filtered(alice, lazy), room_id)
    names = {key for kind, key in state_keys(part) if kind == "m.room.member"}
    assert names == {members[3].user_id}


def members_shown(part: dict, section: str = "state") -> set[str]:
    return {key for kind, key in state_keys(part, section) if kind == "m.room.member"}


async def test_who_loads_members_lazily_gets_those_that_a_room_is_named_after(
    homeserver: Homeserver,
) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    carol, dave = await homeserver.register("carol"), await homeserver.register("dave")
    room_id = await alice.create_room()
    await bob.join(room_id)
    await carol.join(room_id)
    for n in range(3):
        await alice.say(room_id, f"{n}")
    lazy = {"room": {"state": {"lazy_load_members": True}, "timeline": {"limit": 2}}}
    part = room_of(await filtered(alice, lazy), room_id)
    assert part["summary"]["m.heroes"] == [bob.user_id, carol.user_id]
    assert members_shown(part) == {alice.user_id, bob.user_id, carol.user_id}
    after = room_of(await filtered(bob, lazy, use_state_after="true"), room_id)
    assert members_shown(after, "state_after") == {alice.user_id, bob.user_id, carol.user_id}
    await dave.join(room_id)
    part = room_of(await filtered(alice, lazy), room_id)
    assert part["summary"]["m.heroes"] == [bob.user_id, carol.user_id, dave.user_id]
    assert members_shown(part) == {bob.user_id, carol.user_id}  # Dave is in the timeline.
    await dave.say(room_id)
    part = room_of(await filtered(alice, lazy), room_id)
    assert "summary" not in part
    assert members_shown(part) == {dave.user_id}
    nobody = {"room": {"state": {"lazy_load_members": True, "not_types": ["m.room.member"]}}}
    assert members_shown(room_of(await filtered(bob, nobody), room_id)) == set()


async def test_who_loads_members_lazily_gets_those_that_changed_in_a_gap(
    homeserver: Homeserver,
) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    carol, dave = await homeserver.register("carol"), await homeserver.register("dave")
    room_id = await alice.create_room(name="Here")
    for user in (bob, carol, dave):
        await user.join(room_id)
    lazy = {"room": {"state": {"lazy_load_members": True}, "timeline": {"limit": 1}}}
    begin = (await filtered(alice, lazy))["next_batch"]
    await bob.leave(room_id)
    member = {"membership": "join", "displayname": "Carola"}
    await carol.put_state(room_id, "m.room.member", member, carol.user_id)
    await dave.say(room_id, "not shown")
    await alice.say(room_id, "shown")
    part = room_of(await filtered(alice, lazy, since=begin), room_id)
    assert part["timeline"]["limited"]
    assert members_shown(part) == {alice.user_id, bob.user_id, carol.user_id}
    assert part["summary"]["m.joined_member_count"] == 3
    part = room_of(await filtered(alice, lazy, since=begin, use_state_after="true"), room_id)
    assert members_shown(part, "state_after") == {alice.user_id, bob.user_id, carol.user_id}
    part = room_of(await filtered(alice, lazy, since=begin, full_state="true"), room_id)
    assert members_shown(part) == {alice.user_id, bob.user_id, carol.user_id}


async def test_those_who_left_are_heroes_only_of_a_room_that_nobody_else_is_in(
    homeserver: Homeserver,
) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    carol = await homeserver.register("carol")
    room_id = await alice.create_room()
    await bob.join(room_id)
    await carol.join(room_id)
    await bob.leave(room_id)
    assert room_of(await alice.sync(), room_id)["summary"]["m.heroes"] == [carol.user_id]
    await carol.leave(room_id)
    heroes = room_of(await alice.sync(), room_id)["summary"]["m.heroes"]
    assert heroes == [bob.user_id, carol.user_id]


async def test_a_room_that_loses_its_name_gets_heroes(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room(name="Here")
    await bob.join(room_id)
    assert "m.heroes" not in room_of(await alice.sync(), room_id)["summary"]
    await bob.say(room_id)
    assert "summary" not in room_of(await alice.sync(), room_id)
    await alice.put_state(room_id, "m.room.name", {})
    assert room_of(await alice.sync(), room_id)["summary"]["m.heroes"] == [bob.user_id]


@pytest.mark.parametrize("event_type", ["m.room.name", "m.room.canonical_alias"])
async def test_a_room_whose_name_is_redacted_gets_heroes(
    homeserver: Homeserver, event_type: str
) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room(room_alias_name="here")
    await alice.put_state(room_id, "m.room.canonical_alias", {})
    await bob.join(room_id)
    content = {"name": "Here", "alias": "#here:hs1"}
    name_id = await alice.put_state(room_id, event_type, content)
    message_id = await bob.say(room_id)
    since = (await alice.sync())["next_batch"]
    await bob.call("PUT", f"/rooms/{quote(room_id)}/redact/{quote(message_id)}/r1", {})
    assert "summary" not in room_of(await alice.sync(), room_id)
    await alice.call("PUT", f"/rooms/{quote(room_id)}/redact/{quote(name_id)}/r2", {})
    assert room_of(await alice.sync(), room_id)["summary"]["m.heroes"] == [bob.user_id]
    for services in homeserver.workers:
        services.follower.floor = services.follower.head
    part = room_of(await alice.sync(since=since), room_id)
    assert part["summary"]["m.heroes"] == [bob.user_id]


async def test_the_summary_counts_and_names_heroes(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    carol = await homeserver.register("carol")
    room_id = await alice.create_room()
    await bob.join(room_id)
    await alice.invite(room_id, carol)
    summary = room_of(await alice.sync(), room_id)["summary"]
    assert summary["m.joined_member_count"] == 2
    assert summary["m.invited_member_count"] == 1
    assert summary["m.heroes"] == [bob.user_id, carol.user_id]
    await alice.say(room_id)
    assert "summary" not in room_of(await alice.sync(), room_id)
    await bob.leave(room_id)
    summary = room_of(await alice.sync(), room_id)["summary"]
    assert summary["m.joined_member_count"] == 1


async def test_ignored_users_say_nothing_and_invite_in_vain(homeserver: Homeserver) -> None:
    alice, mallory = await homeserver.register("alice"), await homeserver.register("mallory")
    room_id = await alice.create_room()
    await mallory.join(room_id)
    await alice.call(
        "PUT",
        f"/user/{quote(alice.user_id)}/account_data/m.ignored_user_list",
        {"ignored_users": {mallory.user_id: {}}},
    )
    await alice.sync()
    await mallory.say(room_id, "listen to me")
    trap = await mallory.create_room()
    await mallory.invite(trap, alice)
    assert "rooms" not in await alice.sync()


async def test_unread_counts_grow_with_messages_and_end_with_a_receipt(
    homeserver: Homeserver,
) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room()
    await bob.join(room_id)
    await bob.sync()
    await alice.say(room_id, "one")
    last = await alice.say(room_id, "bob: two", **{"m.mentions": {"user_ids": [bob.user_id]}})
    counts = room_of(await bob.sync(), room_id)["unread_notifications"]
    assert counts == {"notification_count": 2, "highlight_count": 1}
    counts = room_of(await alice.sync(), room_id)["unread_notifications"]
    assert counts == {"notification_count": 0, "highlight_count": 0}  # Who speaks has read.
    await bob.call("POST", f"/rooms/{quote(room_id)}/receipt/m.read/{quote(last)}", {})
    part = room_of(await bob.sync(), room_id)
    assert part["unread_notifications"] == {"notification_count": 0, "highlight_count": 0}
    (receipt,) = part["ephemeral"]["events"]
    assert receipt["content"][last]["m.read"][bob.user_id]["ts"] > 0


@pytest.mark.parametrize("version", ["11", "12"])
async def test_who_speaks_to_the_whole_room_is_heard_by_everybody(
    homeserver: Homeserver, version: str
) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    carol = await homeserver.register("carol")
    room_id = await alice.create_room(room_version=version)
    await bob.join(room_id)
    await carol.join(room_id)
    deaf = "/pushrules/global/override/.m.rule.is_room_mention/enabled"
    await carol.call("PUT", deaf, {"enabled": False})
    for services in homeserver.workers:  # Each applies a change of rules once it has heard of it.
        await services.follower.wait_for(await services.follower.fetch_position())
    await alice.say(room_id, "@room", **{"m.mentions": {"room": True}})
    await bob.say(room_id, "@room", **{"m.mentions": {"room": True}})  # He may not.

    async def counts(user: User) -> dict:
        return room_of(await user.sync(), room_id)["unread_notifications"]

    assert await counts(bob) == {"notification_count": 0, "highlight_count": 0}  # He has spoken.
    assert await counts(carol) == {"notification_count": 2, "highlight_count": 0}
    event_id = await alice.say(room_id, "@room", **{"m.mentions": {"room": True}})
    assert await counts(bob) == {"notification_count": 1, "highlight_count": 1}
    await bob.call("POST", f"/rooms/{quote(room_id)}/receipt/m.read/{quote(event_id)}", {})
    assert await counts(bob) == {"notification_count": 0, "highlight_count": 0}
    assert await counts(alice) == {"notification_count": 0, "highlight_count": 0}


async def test_threads_have_counts_of_their_own_when_asked_for(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room()
    await bob.join(room_id)
    await bob.sync()
    root = await alice.say(room_id, "root")
    relation = {"m.relates_to": {"rel_type": "m.thread", "event_id": root}}
    await alice.say(room_id, "in the thread", **relation)
    token = bob.since
    part = room_of(await bob.sync(), room_id)
    assert part["unread_notifications"]["notification_count"] == 2
    bob.since = token
    by_thread = {"room": {"timeline": {"unread_thread_notifications": True}}}
    part = room_of(await filtered(bob, by_thread), room_id)
    assert part["unread_notifications"]["notification_count"] == 1
    assert part["unread_thread_notifications"][root]["notification_count"] == 1


async def test_account_data_and_push_rules_are_told(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    room_id = await alice.create_room()
    answer = await alice.sync()
    (rules,) = [e for e in answer["account_data"]["events"] if e["type"] == "m.push_rules"]
    assert rules["content"]["global"]["override"]
    user = quote(alice.user_id)
    await alice.call("PUT", f"/user/{user}/account_data/org.example", {"a": 1})
    await alice.call("PUT", f"/user/{user}/rooms/{quote(room_id)}/tags/u.work", {"order": 0.5})
    answer = await alice.sync()
    assert answer["account_data"]["events"] == [{"type": "org.example", "content": {"a": 1}}]
    tags = room_of(answer, room_id)["account_data"]["events"]
    assert tags == [{"type": "m.tag", "content": {"tags": {"u.work": {"order": 0.5}}}}]


async def test_what_was_noted_of_a_room_comes_with_it(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id, other = await alice.create_room(), await alice.create_room()
    await bob.join(other)
    for room in (room_id, other):
        path = f"/user/{bob.user_id}/rooms/{room}/account_data/org.example.note"
        await bob.call("PUT", path, {"of": room})
    await bob.sync()
    await bob.join(room_id)
    answer = await bob.sync()
    notes = room_of(answer, room_id)["account_data"]["events"]
    assert notes == [{"type": "org.example.note", "content": {"of": room_id}}]
    assert other not in answer["rooms"]["join"]
    await alice.say(room_id)
    assert room_of(await bob.sync(), room_id)["account_data"]["events"] == []


async def test_filters_of_sections_name_rooms(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    here, there = await alice.create_room(), await alice.create_room()
    for room_id in (here, there):
        path = f"/user/{alice.user_id}/rooms/{room_id}/account_data/org.example.note"
        await alice.call("PUT", path, {})
        receipt = f"/rooms/{quote(room_id)}/receipt/m.read/{quote(await alice.say(room_id))}"
        await alice.call("POST", receipt, {})
    for section in ("ephemeral", "account_data"):
        alice.since = None
        elsewhere = {"room": {section: {"not_rooms": [here]}}}
        joined = (await filtered(alice, elsewhere))["rooms"]["join"]
        assert joined[here][section]["events"] == []
        assert joined[there][section]["events"]
    for room_id in (here, there):
        path = f"/rooms/{quote(room_id)}/typing/{alice.user_id}"
        await alice.call("PUT", path, {"typing": True, "timeout": 30_000})
    typing = {"room": {"ephemeral": {"rooms": [there]}}}
    assert set((await filtered(alice, typing))["rooms"]["join"]) == {there}


async def test_a_redacted_message_is_shown_without_its_body(homeserver: Homeserver) -> None:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room()
    await bob.join(room_id)
    await bob.sync()
    event_id = await alice.say(room_id, "oops")
    path = f"/rooms/{quote(room_id)}/redact/{quote(event_id)}/r1"
    await alice.call("PUT", path, {"reason": "typo"})
    first, redaction = room_of(await bob.sync(), room_id)["timeline"]["events"]
    assert first["content"] == {}
    assert first["unsigned"]["redacted_because"]["content"]["reason"] == "typo"
    assert redaction["content"]["redacts"] == event_id


@pytest.mark.parametrize("token", ["x", "s-1", "s99999999999999999999", "s9000000", "", "s0_"])
async def test_C13_garbage_and_future_tokens_are_refused(
    homeserver: Homeserver, token: str
) -> None:
    alice = await homeserver.register("alice")
    response = await alice.request("GET", "/sync", since=token)
    assert response.status in (200, 400), response.json
    if response.status == 400:
        assert response.json["errcode"] == "M_INVALID_PARAM"
    assert (response.status == 200) is (token == "s0_"), token


async def test_a_chain_of_syncs_shows_each_event_once(homeserver: Homeserver) -> None:
    """Between(a, b) and between(b, c) together are between(a, c)."""
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room()
    await bob.join(room_id)
    await bob.sync()
    start = bob.since
    seen: list[str] = []
    for n in range(20):
        await alice.say(room_id, str(n))
        if n % 3 == 0:
            seen += bodies(await bob.sync(), room_id)
    seen += bodies(await bob.sync(), room_id)
    assert seen == [str(n) for n in range(20)]
    bob.since = start
    answer = await filtered(bob, {"room": {"timeline": {"limit": 100}}})
    assert bodies(answer, room_id) == seen


async def test_a_new_display_name_is_no_new_join_for_a_process_that_sees_the_user_first(
    homeserver: Homeserver,
) -> None:
    alice = await homeserver.register("alice")
    room_id = await alice.create_room(name="the room")
    await alice.sync()
    path = f"/profile/{quote(alice.user_id)}/displayname"
    await alice.call("PUT", path, {"displayname": "Alice"})
    homeserver.services.views.reset()  # As after a restart.
    part = room_of(await alice.sync(), room_id)
    assert part["timeline"]["limited"] is False
    assert [e["content"]["displayname"] for e in part["timeline"]["events"]] == ["Alice"]
