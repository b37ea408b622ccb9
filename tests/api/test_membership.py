"""Joining, inviting, leaving, kicking, banning, knocking, forgetting.

Spec: client-server-api#room-membership
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from minihs.protocol.unstable import DEACTIVATED
from minihs.services.rooms import membership
from tests.helpers.homeserver import User, running_homeserver

if TYPE_CHECKING:
    from pathlib import Path

    from minihs.protocol.identifiers import UserId
    from tests.helpers.homeserver import Homeserver


async def people(homeserver: Homeserver, *names: str) -> list[User]:
    """Register users."""
    return [await homeserver.register(name) for name in names]


async def member(user: User, room_id: str, whom: User) -> dict | None:
    """Return the content of somebody's member event, as `user` sees it."""
    path = f"/rooms/{quote(room_id)}/state/m.room.member/{quote(whom.user_id)}"
    response = await user.request("GET", path)
    return response.json if response.status == 200 else None


async def act(user: User, room_id: str, what: str, **body: object) -> tuple[int, str | None]:
    """Change a membership; return status and errcode."""
    response = await user.request("POST", f"/rooms/{quote(room_id)}/{what}", body)
    return response.status, response.json.get("errcode")


async def enter(user: User, room: str) -> tuple[int, str | None]:
    """Join by id or alias; return status and errcode."""
    response = await user.request("POST", f"/join/{quote(room, safe='')}")
    return response.status, response.json.get("errcode")


async def rooms_of(user: User) -> list[str]:
    """Return the rooms that somebody is joined to."""
    return (await user.call("GET", "/joined_rooms"))["joined_rooms"]


OK = (200, None)
FORBIDDEN = (403, "M_FORBIDDEN")


async def test_bob_joins_a_public_room_by_id_and_carol_by_alias(homeserver: Homeserver):
    alice, bob, carol = await people(homeserver, "alice", "bob", "carol")
    room_id = await alice.create_room(room_alias_name="pub")

    by_id = await bob.call("POST", f"/rooms/{quote(room_id)}/join", {"foo": "bar", "reason": "!"})
    by_alias = await carol.call("POST", f"/join/{quote('#pub:hs1')}", {"via": ["hs1"]})

    assert by_id == by_alias == {"room_id": room_id}
    assert (await member(alice, room_id, bob)) == {
        "membership": "join",
        "foo": "bar",
        "reason": "!",
    }
    assert await rooms_of(carol) == [room_id]


async def test_joining_twice_is_the_same_as_once(homeserver: Homeserver):
    alice, bob = await people(homeserver, "alice", "bob")
    room_id = await alice.create_room()

    await asyncio.gather(*(bob.join(room_id) for _ in range(5)))

    page = await alice.call("GET", f"/rooms/{quote(room_id)}/messages", dir="b", limit="100")
    joins = [e for e in page["chunk"] if e.get("state_key") == bob.user_id]
    assert len(joins) == 1


async def test_rooms_that_nobody_here_knows(homeserver: Homeserver):
    alice = await homeserver.register("alice")

    assert await enter(alice, "!nowhere:elsewhere") == (404, "M_NOT_FOUND")
    assert await enter(alice, "#nowhere:hs1") == (404, "M_NOT_FOUND")
    assert await enter(alice, "#room:elsewhere") == (404, "M_NOT_FOUND")
    assert await enter(alice, "nonsense") == (400, "M_INVALID_PARAM")
    assert await act(alice, "!nowhere:hs1", "leave") == (404, "M_NOT_FOUND")
    assert await act(alice, "nonsense", "leave") == (400, "M_INVALID_PARAM")


async def test_a_private_room_takes_an_invite(homeserver: Homeserver):
    alice, bob, carol = await people(homeserver, "alice", "bob", "carol")
    room_id = await alice.create_room(preset="private_chat")

    assert await enter(bob, room_id) == FORBIDDEN
    assert await act(bob, room_id, "invite", user_id=bob.user_id) == FORBIDDEN
    assert await act(alice, room_id, "invite", user_id=alice.user_id) == FORBIDDEN
    assert await act(alice, room_id, "invite", user_id=bob.user_id, reason="come") == OK
    assert (await member(alice, room_id, bob)) == {"membership": "invite", "reason": "come"}
    assert await enter(bob, room_id) == OK
    assert await act(alice, room_id, "invite", user_id=bob.user_id) == FORBIDDEN
    assert await act(bob, room_id, "invite", user_id=carol.user_id) == OK  # invite takes 0 here


async def test_invites_that_cannot_be(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    room_id = await alice.create_room()

    assert await act(alice, room_id, "invite") == (400, "M_MISSING_PARAM")
    assert await act(alice, room_id, "invite", user_id="bob") == (400, "M_INVALID_PARAM")
    assert await act(alice, room_id, "invite", user_id=7) == (400, "M_BAD_JSON")
    elsewhere = await act(alice, room_id, "invite", user_id="@bob:elsewhere")
    assert elsewhere == (404, "M_NOT_FOUND")
    by_mail = {"id_server": "id.example", "id_access_token": "t", "medium": "email"}
    refused = await act(alice, room_id, "invite", **by_mail, address="bob@example.org")
    assert refused == (403, "M_THREEPID_DENIED")
    response = await alice.request(
        "POST", f"/rooms/{quote(room_id)}/join", {"third_party_signed": {"mxid": "@a:b"}}
    )
    assert response.status == 403


async def test_bob_wants_no_invites(homeserver: Homeserver):
    alice, bob = await people(homeserver, "alice", "bob")
    room_id = await alice.create_room()
    path = f"/user/{quote(bob.user_id)}/account_data/m.invite_permission_config"
    await bob.call("PUT", path, {"default_action": "block"})

    assert await act(alice, room_id, "invite", user_id=bob.user_id) == (403, "M_INVITE_BLOCKED")
    response = await alice.request("POST", "/createRoom", {"invite": [bob.user_id]})
    assert (response.status, response.json["errcode"]) == (403, "M_INVITE_BLOCKED")

    await bob.call("PUT", path, {})
    assert await act(alice, room_id, "invite", user_id=bob.user_id) == OK


async def test_bob_rejects_an_invite_after_everybody_left(homeserver: Homeserver):
    alice, bob = await people(homeserver, "alice", "bob")
    room_id = await alice.create_room(preset="private_chat", invite=[bob.user_id])
    await alice.leave(room_id)

    assert await act(bob, room_id, "leave", reason="no, thanks") == OK

    assert (await member(alice, room_id, bob)) == {"membership": "invite"}  # as alice left it
    assert await act(bob, room_id, "leave") == OK
    assert await enter(bob, room_id) == FORBIDDEN


async def test_who_was_never_there_cannot_leave(homeserver: Homeserver):
    alice, bob = await people(homeserver, "alice", "bob")
    room_id = await alice.create_room()

    assert await act(bob, room_id, "leave") == FORBIDDEN


async def test_kicks_bans_and_unbans(homeserver: Homeserver):
    alice, bob, carol = await people(homeserver, "alice", "bob", "carol")
    room_id = await alice.create_room()
    await bob.join(room_id)

    assert await act(bob, room_id, "kick", user_id=alice.user_id) == FORBIDDEN
    assert await act(carol, room_id, "ban", user_id=bob.user_id) == FORBIDDEN
    assert await act(alice, room_id, "kick", user_id=carol.user_id) == FORBIDDEN  # not there
    assert await act(alice, room_id, "kick", user_id=bob.user_id, reason="loud") == OK
    assert await member(alice, room_id, bob) == {"membership": "leave", "reason": "loud"}
    assert await act(alice, room_id, "kick", user_id=bob.user_id) == FORBIDDEN  # no longer
    assert await act(alice, room_id, "unban", user_id=bob.user_id) == FORBIDDEN  # no ban
    assert await act(alice, room_id, "ban", user_id=bob.user_id, reason="spam") == OK
    assert await member(alice, room_id, bob) == {"membership": "ban", "reason": "spam"}
    assert await enter(bob, room_id) == FORBIDDEN
    assert await act(bob, room_id, "leave") == FORBIDDEN
    assert await act(alice, room_id, "kick", user_id=bob.user_id) == FORBIDDEN  # a ban stays
    assert await act(alice, room_id, "unban", user_id=bob.user_id) == OK
    assert await member(alice, room_id, bob) == {"membership": "leave"}
    assert await enter(bob, room_id) == OK
    assert await act(alice, room_id, "ban", user_id="@mallory:elsewhere") == OK


async def test_member_events_can_be_set_as_state(homeserver: Homeserver):
    alice, bob, carol = await people(homeserver, "alice", "bob", "carol")
    room_id = await alice.create_room(preset="private_chat")

    async def put(user: User, whom: str, content: dict) -> int:
        path = f"/rooms/{quote(room_id)}/state/m.room.member/{quote(whom)}"
        return (await user.request("PUT", path, content)).status

    assert await put(alice, bob.user_id, {"membership": "invite"}) == 200
    assert await put(bob, bob.user_id, {"membership": "join", "displayname": "Bobby"}) == 200
    assert await member(alice, room_id, bob) == {"membership": "join", "displayname": "Bobby"}
    assert await put(alice, carol.user_id, {"membership": "leave"}) == 403  # was never there
    assert await put(alice, bob.user_id, {"membership": "join"}) == 403
    assert await put(alice, bob.user_id, {"membership": "ban", "reason": "x"}) == 200
    assert await put(alice, bob.user_id, {"membership": "leave"}) == 200  # lifts the ban
    assert await put(alice, bob.user_id, {}) == 400
    assert await put(alice, bob.user_id, {"membership": "dance"}) == 400
    assert await put(alice, "bob", {"membership": "invite"}) == 400


async def test_the_profile_is_in_the_member_event_and_follows_its_changes(homeserver: Homeserver):
    alice, bob = await people(homeserver, "alice", "bob")
    path = f"/profile/{quote(bob.user_id)}"
    await bob.call("PUT", f"{path}/displayname", {"displayname": "Bob"})
    rooms = [await alice.create_room() for _ in range(3)]
    await bob.join(rooms[0])
    await bob.join(rooms[1])
    await alice.invite(rooms[2], bob)
    assert await member(alice, rooms[2], bob) == {"membership": "invite", "displayname": "Bob"}

    await bob.call("PUT", f"{path}/avatar_url", {"avatar_url": "mxc://hs1/bob"})
    await membership.update_profile_in_rooms(homeserver.services, bob.user_id)  # type: ignore[arg-type]

    new = {"membership": "join", "displayname": "Bob", "avatar_url": "mxc://hs1/bob"}
    assert await member(alice, rooms[0], bob) == new
    assert await member(alice, rooms[1], bob) == new
    assert await member(alice, rooms[2], bob) == {"membership": "invite", "displayname": "Bob"}


async def test_knocking(homeserver: Homeserver):
    alice, bob = await people(homeserver, "alice", "bob")
    knock = [{"type": "m.room.join_rules", "content": {"join_rule": "knock"}}]
    room_id = await alice.create_room(initial_state=knock, room_alias_name="door")
    public = await alice.create_room()

    async def knocks(user: User, room: str) -> tuple[int, str | None]:
        response = await user.request("POST", f"/knock/{quote(room)}", {"reason": "let me in"})
        return response.status, response.json.get("errcode")

    assert await knocks(bob, public) == FORBIDDEN
    assert await knocks(bob, "!nowhere:hs1") == (404, "M_NOT_FOUND")
    assert await enter(bob, room_id) == FORBIDDEN
    assert await knocks(bob, "#door:hs1") == OK
    assert await member(alice, room_id, bob) == {"membership": "knock", "reason": "let me in"}
    assert await enter(bob, room_id) == FORBIDDEN
    await alice.invite(room_id, bob)
    assert await enter(bob, room_id) == OK
    assert await knocks(bob, room_id) == FORBIDDEN  # is in already


@pytest.mark.parametrize(("version", "rule"), [("8", "restricted"), ("12", "knock_restricted")])
async def test_restricted_rooms(homeserver: Homeserver, version: str, rule: str):
    alice, bob = await people(homeserver, "alice", "bob")
    club = await alice.create_room()
    allow: object = [{"type": "m.room_membership", "room_id": club}, "invalid", {"type": "x"}]

    room_id = await alice.create_room(
        room_version=version,
        preset="private_chat",
        initial_state=[
            {"type": "m.room.join_rules", "content": {"join_rule": rule, "allow": allow}}
        ],
    )

    assert await enter(bob, room_id) == FORBIDDEN
    await bob.join(club)
    assert await enter(bob, room_id) == OK
    content = await member(alice, room_id, bob)
    assert content is not None
    assert content["join_authorised_via_users_server"] == alice.user_id
    changed = {"membership": "join", "displayname": "B", "join_authorised_via_users_server": "x"}
    await bob.put_state(room_id, "m.room.member", changed, bob.user_id)
    assert await member(alice, room_id, bob) == {"membership": "join", "displayname": "B"}

    await bob.leave(club)
    await bob.leave(room_id)
    assert await enter(bob, room_id) == FORBIDDEN
    await alice.invite(room_id, bob)
    assert await enter(bob, room_id) == OK

    await bob.leave(room_id)
    await bob.join(club)
    for nobody in ("invalid", ["invalid"], []):
        content = {"join_rule": rule, "allow": nobody}
        await alice.put_state(room_id, "m.room.join_rules", content)
        assert await enter(bob, room_id) == FORBIDDEN


async def test_nobody_vouches_who_may_not_invite(homeserver: Homeserver):
    alice, bob, carol = await people(homeserver, "alice", "bob", "carol")
    club = await alice.create_room()
    await bob.join(club)
    await carol.join(club)
    allow = [{"type": "m.room_membership", "room_id": club}]
    room_id = await alice.create_room(
        initial_state=[
            {"type": "m.room.join_rules", "content": {"join_rule": "restricted", "allow": allow}}
        ],
    )
    assert await enter(bob, room_id) == OK
    await alice.leave(room_id)

    assert await enter(carol, room_id) == FORBIDDEN


async def test_forgetting(homeserver: Homeserver):
    alice, bob = await people(homeserver, "alice", "bob")
    room_id = await alice.create_room(preset="private_chat", invite=[bob.user_id])

    assert await act(bob, room_id, "forget") == (400, "M_UNKNOWN")  # invited
    await bob.join(room_id)
    assert await act(bob, room_id, "forget") == (400, "M_UNKNOWN")
    await bob.leave(room_id)
    assert await act(bob, room_id, "forget") == OK
    assert await act(bob, room_id, "forget") == OK
    assert await act(bob, "!never:hs1", "forget") == OK
    messages = await bob.request("GET", f"/rooms/{quote(room_id)}/messages", dir="b")
    assert (messages.status, messages.json["errcode"]) == FORBIDDEN
    assert await enter(bob, room_id) == FORBIDDEN

    await alice.invite(room_id, bob)
    assert await enter(bob, room_id) == OK
    assert (await bob.request("GET", f"/rooms/{quote(room_id)}/messages", dir="b")).status == 200


async def test_a_deactivated_user_leaves_everything_and_says_so(homeserver: Homeserver):
    alice, bob = await people(homeserver, "alice", "bob")
    joined = await alice.create_room()
    invited = await alice.create_room()
    banned = await alice.create_room()
    knocked = await alice.create_room(
        initial_state=[{"type": "m.room.join_rules", "content": {"join_rule": "knock"}}]
    )
    await bob.join(joined)
    await alice.invite(invited, bob)
    await bob.join(banned)
    await act(alice, banned, "ban", user_id=bob.user_id)
    await bob.call("POST", f"/knock/{quote(knocked)}")
    forged = {DEACTIVATED.unstable: True, DEACTIVATED.stable: True}
    await bob.call("POST", f"/rooms/{quote(joined)}/join", forged)
    assert await member(alice, joined, bob) == {"membership": "join"}

    services = homeserver.services
    await membership.leave_for_good(services, bob.user_id, erased=False)  # type: ignore[arg-type]
    await membership.leave_for_good(services, bob.user_id, erased=False)  # type: ignore[arg-type]

    for room_id in (joined, invited, knocked):
        assert await member(alice, room_id, bob) == {
            "membership": "leave",
            DEACTIVATED.unstable: True,
        }
    assert await member(alice, banned, bob) == {"membership": "ban"}
    assert await rooms_of(bob) == []


async def test_nobody_can_claim_to_be_deactivated(homeserver: Homeserver):
    alice, bob = await people(homeserver, "alice", "bob")
    room_id = await alice.create_room()
    await bob.join(room_id)

    content = {"membership": "leave", DEACTIVATED.unstable: True, DEACTIVATED.stable: True}
    await bob.put_state(room_id, "m.room.member", content, bob.user_id)

    assert await member(alice, room_id, bob) == {"membership": "leave"}


async def test_guests_come_and_go_with_the_guest_access(database_url: str, tmp_path: Path):
    async with running_homeserver(database_url, tmp_path, allow_guests=True) as homeserver:
        alice, bob = await people(homeserver, "alice", "bob")
        answer = await homeserver.request("POST", "/register", {}, {"kind": "guest"})
        guest = User(homeserver, answer.json["user_id"], answer.json["access_token"])
        public = await alice.create_room()  # guest_access: forbidden
        private = await alice.create_room(preset="private_chat")  # guest_access: can_join
        await alice.put_state(private, "m.room.join_rules", {"join_rule": "public"})
        await bob.join(private)

        assert await act(guest, public, "join") == (403, "M_GUEST_ACCESS_FORBIDDEN")
        assert await act(guest, private, "join") == OK
        assert await rooms_of_guest(homeserver, guest) == [private]

        await alice.put_state(private, "m.room.guest_access", {"guest_access": "forbidden"})

        assert await rooms_of_guest(homeserver, guest) == []
        assert await member(alice, private, guest) == {"membership": "leave"}
        assert await rooms_of(bob) == [private]


async def rooms_of_guest(homeserver: Homeserver, guest: User) -> list[str]:
    """Return the rooms that a guest, who may not ask, is joined to."""
    user_id: UserId = guest.user_id  # type: ignore[assignment]
    return [*await membership.list_joined_rooms(homeserver.services, user_id)]
