"""MSC4267: forgetting rooms, when users ask for it and when the server does it on its own."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote

import pytest

from minihs.services.rooms import forget
from tests.conformance.test_msc4186 import Client
from tests.helpers import deliveries
from tests.helpers.appservices import begin, make_ghost, running_bridge, sender, settled
from tests.helpers.homeserver import User, running_homeserver
from tests.helpers.mirror import mirror, push, refresh
from tests.helpers.rooms import MALLORY

if TYPE_CHECKING:
    from pathlib import Path

    from minihs.base.clock import ManualClock
    from tests.helpers.homeserver import Homeserver
    from tests.helpers.network import Federation

pytestmark = pytest.mark.spec("MSC4267#proposal")

CAPABILITY = "m.forget_forced_upon_leave"
UNSTABLE_CAPABILITY = "org.matrix.msc4267.forget_forced_upon_leave"
FORGOTTEN = "dev.minihs.forgotten"
WITH_LEFT_ROOMS = '{"room":{"include_leave":true}}'
DAY_MS = 86_400_000


@pytest.fixture
async def forgetful(federation: Federation) -> Homeserver:
    """A server where to leave is to forget."""
    return await federation.start("hs1", forget_rooms_on_leave=True)


@pytest.fixture
async def remembering(federation: Federation) -> Homeserver:
    """A server that leaves it to its users."""
    return await federation.start("hs1")


async def people(server: Homeserver) -> tuple[User, User, str]:
    """Return Alice, Bob, and a room of hers that he has joined."""
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await alice.create_room()
    await bob.join(room_id)
    await alice.say(room_id)
    return alice, bob, room_id


async def a_guest(server: Homeserver) -> User:
    """Register a guest."""
    made = await server.request("POST", "/register", {}, {"kind": "guest"})
    return User(server, made.json["user_id"], made.json["access_token"])


async def remove(moderator: User, room_id: str, how: str, user: User) -> None:
    path = f"/rooms/{quote(room_id)}/{how}"
    await moderator.call("POST", path, {"user_id": user.user_id})


async def ask_to_forget(user: User, room_id: str) -> tuple[int, str | None]:
    answer = await user.request("POST", f"/rooms/{quote(room_id)}/forget", {})
    return answer.status, answer.json.get("errcode")


async def may_read(user: User, room_id: str) -> bool:
    """Return whether a user gets at the history of a room."""
    answer = await user.request("GET", f"/rooms/{quote(room_id)}/messages", dir="b")
    assert answer.status in (200, 403)
    return bool(answer.status == 200)


async def sections(user: User, room_id: str, **query: str) -> list[str]:
    """Return in which sections of a sync the room is."""
    rooms = (await user.sync(**query)).get("rooms", {})
    return [name for name, section in rooms.items() if room_id in section]


async def initial_sections(user: User, room_id: str) -> list[str]:
    user.since = None
    return await sections(user, room_id, filter=WITH_LEFT_ROOMS)


# --- F-1, F-5: to leave is to forget, however it comes about ------------------------------------


async def test_f_1_who_leaves_forgets(forgetful: Homeserver):
    _, bob, room_id = await people(forgetful)
    await bob.leave(room_id)
    assert not await may_read(bob, room_id)
    assert await initial_sections(bob, room_id) == []


@pytest.mark.parametrize("how", ["kick", "ban"])
async def test_f_5_who_is_removed_forgets(forgetful: Homeserver, how: str):
    alice, bob, room_id = await people(forgetful)
    await remove(alice, room_id, how, bob)
    assert not await may_read(bob, room_id)
    assert await initial_sections(bob, room_id) == []


@pytest.mark.parametrize("membership", ["leave", "ban"])
async def test_f_5_who_is_removed_by_another_server_forgets(
    federation: Federation, forgetful: Homeserver, membership: str
):
    alice, bob, room_id = await people(forgetful)
    evil = federation.evil()
    room = await mirror(forgetful, room_id)
    await push(evil, forgetful, [room.join(MALLORY)])
    await alice.put_state(room_id, "m.room.power_levels", {"users": {MALLORY: 50}})
    await refresh(room, forgetful)
    removal = {"membership": membership}
    await push(
        evil,
        forgetful,
        [room.send(MALLORY, "m.room.member", removal, state_key=bob.user_id)],
    )
    assert not await may_read(bob, room_id)
    assert await initial_sections(bob, room_id) == []


async def test_f_5_who_is_removed_by_a_server_that_hosts_the_room_forgets(
    federation: Federation, forgetful: Homeserver
):
    """hs2's room: one user of ours is kicked from it, another banned while invited."""
    hs2 = await federation.start("hs2")
    carol = await hs2.register("carol")
    alice, bob = await forgetful.register("alice"), await forgetful.register("bob")
    room_id = await carol.create_room(preset="private_chat")
    for user in (alice, bob):
        await carol.invite(room_id, user)
    await alice.join(room_id)
    await alice.say(room_id)
    await deliveries.begin(hs2.services)
    for how, user in (("kick", alice), ("ban", bob)):
        await remove(carol, room_id, how, user)
    await deliveries.settled(hs2.services)
    for user in (alice, bob):
        assert not await may_read(user, room_id)
        assert await initial_sections(user, room_id) == []


async def test_f_1_who_rejects_an_invite_forgets(forgetful: Homeserver):
    alice, _, room_id = await people(forgetful)
    carol = await forgetful.register("carol")
    await alice.invite(room_id, carol)
    await carol.leave(room_id)
    assert await initial_sections(carol, room_id) == []


async def test_f_1_who_retracts_a_knock_forgets(forgetful: Homeserver):
    alice, _, room_id = await people(forgetful)
    await alice.put_state(room_id, "m.room.join_rules", {"join_rule": "knock"})
    carol = await forgetful.register("carol")
    await carol.call("POST", f"/knock/{quote(room_id)}", {})
    await carol.leave(room_id)
    assert await initial_sections(carol, room_id) == []


async def test_f_1_who_is_banned_while_invited_forgets(forgetful: Homeserver):
    alice, _, room_id = await people(forgetful)
    carol = await forgetful.register("carol")
    await alice.invite(room_id, carol)
    await remove(alice, room_id, "ban", carol)
    assert await initial_sections(carol, room_id) == []


async def test_f_1_who_was_never_there_has_nothing_to_forget(forgetful: Homeserver):
    alice, _, room_id = await people(forgetful)
    carol = await forgetful.register("carol")
    await carol.sync()
    await remove(alice, room_id, "ban", carol)
    assert FORGOTTEN not in await sections(carol, room_id)


async def test_f_1_switching_it_on_sweeps_nothing(
    federation: Federation, remembering: Homeserver, monkeypatch: pytest.MonkeyPatch
):
    """What was left before stays readable, also if its reader is banned later."""
    alice, bob, room_id = await people(remembering)
    await bob.leave(room_id)
    config = type(remembering.services.config)
    monkeypatch.setattr(config, "forget_rooms_on_leave", True)
    await remove(alice, room_id, "ban", bob)
    assert await may_read(bob, room_id)
    await remove(alice, room_id, "unban", bob)
    await bob.join(room_id)
    await bob.leave(room_id)
    assert not await may_read(bob, room_id)


async def test_f_1_switching_it_off_brings_nothing_back(
    forgetful: Homeserver, monkeypatch: pytest.MonkeyPatch
):
    _, bob, room_id = await people(forgetful)
    await bob.leave(room_id)
    monkeypatch.setattr(type(forgetful.services.config), "forget_rooms_on_leave", False)
    assert not await may_read(bob, room_id)
    assert await initial_sections(bob, room_id) == []
    await bob.join(room_id)
    await bob.leave(room_id)
    assert await may_read(bob, room_id)


async def test_f_1_the_other_process_knows_at_once(database_url: str, tmp_path: Path):
    """Requests go to two processes in turn."""
    async with running_homeserver(
        database_url, tmp_path, workers=2, forget_rooms_on_leave=True
    ) as server:
        alice, bob, room_id = await people(server)
        for _ in range(3):
            await bob.sync()
            await bob.leave(room_id)
            assert [await may_read(bob, room_id) for _ in range(2)] == [False, False]
            since = bob.since
            for _ in range(2):
                bob.since = since
                assert sorted(await sections(bob, room_id)) == [FORGOTTEN, "leave"]
                assert await initial_sections(bob, room_id) == []
            await alice.invite(room_id, bob)
            await bob.join(room_id)
            assert [await may_read(bob, room_id) for _ in range(2)] == [True, True]


# --- state resolution takes a membership back, and gives it ------------------------------------


EVE = "@eve:evil"


async def test_f_5_who_loses_their_membership_by_state_resolution_forgets(
    federation: Federation, forgetful: Homeserver
):
    """Before Bob joined, so another server says, Mallory closed the room: he never could.

    Then it turns out that Eve had taken Mallory's power before that: he could after all.
    """
    evil = federation.evil()
    alice, bob = await forgetful.register("alice"), await forgetful.register("bob")
    room_id = await alice.create_room(room_version="11")
    levels = await alice.call("GET", f"/rooms/{quote(room_id)}/state/m.room.power_levels")
    room = await mirror(forgetful, room_id)
    await push(evil, forgetful, [room.join(user) for user in (MALLORY, EVE)])
    levels["users"] |= {MALLORY: 90, EVE: 100}
    await alice.put_state(room_id, "m.room.power_levels", levels)
    await refresh(room, forgetful)
    before = list(room.ends)
    await bob.join(room_id)
    await bob.sync()
    await alice.sync()
    closed = room.send(
        MALLORY, "m.room.join_rules", {"join_rule": "invite"}, state_key="", prev=before
    )
    await push(evil, forgetful, [closed])
    assert not await may_read(bob, room_id)
    assert sorted(await sections(bob, room_id)) == [FORGOTTEN, "leave"]
    assert await initial_sections(bob, room_id) == []

    levels["users"][MALLORY] = 0
    demoted = room.send(EVE, "m.room.power_levels", levels, state_key="", prev=before)
    await push(evil, forgetful, [demoted])
    assert await may_read(bob, room_id)
    assert await initial_sections(bob, room_id) == ["join"]


# --- F-2, F-3: the capability -------------------------------------------------------------------


@pytest.mark.parametrize("enabled", [True, False])
async def test_f_2_the_capability_says_what_the_option_says(
    federation: Federation,
    tmp_path: Path,
    enabled: bool,
):
    async with running_bridge(tmp_path) as bridge:
        server = await federation.start(
            "hs1",
            forget_rooms_on_leave=enabled,
            allow_guests=True,
            appservice_files=str(bridge.file),
        )
        for who in (
            await server.register("alice"),
            await a_guest(server),
            await make_ghost(server, "_bridge_g"),
            sender(server),
        ):
            capabilities = (await who.call("GET", "/capabilities"))["capabilities"]
            assert capabilities[CAPABILITY] == {"enabled": enabled}
            assert capabilities[UNSTABLE_CAPABILITY] == {"enabled": enabled}


async def test_f_5_users_of_a_bridge_forget_too_and_the_bridge_is_told_of_the_leave(
    federation: Federation, tmp_path: Path
):
    async with running_bridge(tmp_path) as bridge:
        server = await federation.start(
            "hs1", forget_rooms_on_leave=True, appservice_files=str(bridge.file)
        )
        alice, ghost = await server.register("alice"), await make_ghost(server, "_bridge_g")
        room_id = await alice.create_room()
        for how in ("leave", "kick"):
            await ghost.join(room_id)
            if how == "leave":
                await ghost.leave(room_id)
            else:
                await remove(alice, room_id, how, ghost)
            assert not await may_read(ghost, room_id)
        await settled(await begin(server.services))
        members = [e["content"] for e in bridge.events if e["state_key"] == ghost.user_id]
        assert [c["membership"] for c in members] == ["join", "leave"] * 2


# --- F-6, F-7: history --------------------------------------------------------------------------


READS = [
    "messages?dir=b",
    "state",
    "state/m.room.create",
    "state/m.room.create/",
    "members",
    "joined_members",
    "timestamp_to_event?ts=1&dir=f",
]


@pytest.mark.parametrize("path", READS)
async def test_f_6_nothing_of_a_forgotten_room_can_be_read(remembering: Homeserver, path: str):
    _, bob, room_id = await people(remembering)
    await bob.leave(room_id)
    assert await ask_to_forget(bob, room_id) == (200, None)
    name, _, query = path.partition("?")
    base = "/_matrix/client/v1" if name == "timestamp_to_event" else ""
    answer = await bob.request(
        "GET",
        f"{base}/rooms/{quote(room_id)}/{name}",
        None,
        **dict(parse_qsl(query)),
    )
    assert (answer.status, answer.json["errcode"]) == (403, "M_FORBIDDEN")


@pytest.mark.parametrize("kind", ["event", "context"])
async def test_f_6_no_event_of_a_forgotten_room_can_be_read(remembering: Homeserver, kind: str):
    alice, bob, room_id = await people(remembering)
    event_id = await alice.say(room_id)
    await bob.leave(room_id)
    path = f"/rooms/{quote(room_id)}/{kind}/{quote(event_id)}"
    assert (await bob.request("GET", path)).status == 200
    await ask_to_forget(bob, room_id)
    answer = await bob.request("GET", path)
    assert (answer.status, answer.json["errcode"]) == (403, "M_FORBIDDEN")
    stranger = await remembering.register("stranger")
    answer = await stranger.request("GET", path)
    assert answer.status == 404, "who never was there cannot tell"


async def test_f_6_what_an_old_token_led_to_is_out_of_reach(forgetful: Homeserver):
    """A device kept the token of a page, and of a sync."""
    alice, bob, room_id = await people(forgetful)
    for n in range(15):
        await alice.say(room_id, f"{n}")
    room = (await bob.sync())["rooms"]["join"][room_id]
    await bob.leave(room_id)
    path = f"/rooms/{quote(room_id)}/messages"
    for start in (room["timeline"]["prev_batch"], bob.since or ""):
        answer = await bob.request("GET", path, **{"dir": "b", "from": start})
        assert (answer.status, answer.json["errcode"]) == (403, "M_FORBIDDEN")


async def test_f_6_what_is_world_readable_stays_so(remembering: Homeserver):
    """Bob may read what anybody may, but it is not his room any more."""
    alice, bob, room_id = await people(remembering)
    visibility = {"history_visibility": "world_readable"}
    await alice.put_state(room_id, "m.room.history_visibility", visibility)
    await bob.leave(room_id)
    await ask_to_forget(bob, room_id)
    assert await may_read(bob, room_id)
    assert await initial_sections(bob, room_id) == []


async def test_f_7_without_the_option_a_left_room_stays_readable(remembering: Homeserver):
    _, bob, room_id = await people(remembering)
    await bob.leave(room_id)
    assert await may_read(bob, room_id)
    assert await initial_sections(bob, room_id) == ["leave"]


# --- F-8: the endpoint --------------------------------------------------------------------------


async def test_f_8_a_room_must_be_left_first(remembering: Homeserver):
    alice, bob, room_id = await people(remembering)
    assert await ask_to_forget(bob, room_id) == (400, "M_UNKNOWN")
    carol, dora = await remembering.register("carol"), await remembering.register("dora")
    await alice.invite(room_id, carol)
    await alice.put_state(room_id, "m.room.join_rules", {"join_rule": "knock"})
    await dora.call("POST", f"/knock/{quote(room_id)}", {})
    for user in (carol, dora):
        assert await ask_to_forget(user, room_id) == (400, "M_UNKNOWN")
        await user.leave(room_id)
        for _ in range(2):
            assert await ask_to_forget(user, room_id) == (200, None)


async def test_f_8_what_was_left_can_be_forgotten_and_again(remembering: Homeserver):
    alice, bob, room_id = await people(remembering)
    for how in ("kick", "ban"):
        await remove(alice, room_id, how, bob)
        for _ in range(2):
            assert await ask_to_forget(bob, room_id) == (200, None)
    stranger = await remembering.register("stranger")
    assert await ask_to_forget(stranger, room_id) == (200, None)


async def test_f_8_guests_may_forget_too(federation: Federation):
    server = await federation.start("hs1", allow_guests=True)
    alice, guest = await server.register("alice"), await a_guest(server)
    may_come = {"type": "m.room.guest_access", "content": {"guest_access": "can_join"}}
    room_id = await alice.create_room(initial_state=[may_come])
    await guest.join(room_id)
    assert await ask_to_forget(guest, room_id) == (400, "M_UNKNOWN")
    await guest.leave(room_id)
    assert await ask_to_forget(guest, room_id) == (200, None)
    assert not await may_read(guest, room_id)


# --- F-9, F-10: what a sync shows ---------------------------------------------------------------


async def test_f_9_an_initial_sync_does_not_show_what_is_forgotten(remembering: Homeserver):
    _, bob, room_id = await people(remembering)
    await bob.leave(room_id)
    await ask_to_forget(bob, room_id)
    assert await initial_sections(bob, room_id) == []


@pytest.mark.parametrize("long_ago", [False, True])
async def test_f_10_a_device_that_was_away_is_shown_the_leave_once(
    forgetful: Homeserver,
    long_ago: bool,
):
    """`long_ago`: the stream's window in memory does not reach back to where the device was."""
    _, bob, room_id = await people(forgetful)
    await bob.sync()
    await bob.leave(room_id)
    if long_ago:
        forgetful.services.follower.floor = forgetful.services.follower.head
    assert sorted(await sections(bob, room_id)) == [FORGOTTEN, "leave"]
    assert await sections(bob, room_id) == []


# --- F-11: remembering --------------------------------------------------------------------------


async def test_f_11_an_invite_ends_the_forgetting(forgetful: Homeserver):
    alice, bob, room_id = await people(forgetful)
    await bob.leave(room_id)
    await bob.sync()
    await alice.invite(room_id, bob)
    assert await sections(bob, room_id) == ["invite"]
    assert await initial_sections(bob, room_id) == ["invite"]
    await bob.join(room_id)
    assert await may_read(bob, room_id)
    assert await initial_sections(bob, room_id) == ["join"]


async def test_f_11_who_comes_back_at_once_is_in_the_room(forgetful: Homeserver):
    _, bob, room_id = await people(forgetful)
    await bob.sync()
    await bob.leave(room_id)
    await bob.join(room_id)
    assert "join" in await sections(bob, room_id)
    assert await initial_sections(bob, room_id) == ["join"]


async def test_f_11_a_knock_ends_the_forgetting(forgetful: Homeserver):
    alice, bob, room_id = await people(forgetful)
    await alice.put_state(room_id, "m.room.join_rules", {"join_rule": "knock"})
    await bob.leave(room_id)
    await bob.sync()
    await bob.call("POST", f"/knock/{quote(room_id)}", {})
    assert await sections(bob, room_id) == ["knock"]
    assert await initial_sections(bob, room_id) == ["knock"]


async def test_f_11_who_comes_back_while_the_room_is_being_forgotten_is_in_it(
    remembering: Homeserver, monkeypatch: pytest.MonkeyPatch
):
    """Between the look at the membership and the mark, another device joins."""
    _, bob, room_id = await people(remembering)
    await bob.leave(room_id)
    await bob.sync()
    committer = remembering.services.committer
    commit_rows = committer.commit_rows

    async def late(rows: object) -> object:
        await bob.join(room_id)
        return await commit_rows(rows)  # type: ignore[arg-type]  # what it was given

    with monkeypatch.context() as patch:
        patch.setattr(committer, "commit_rows", late)
        assert await ask_to_forget(bob, room_id) == (400, "M_UNKNOWN")
    assert "join" in await sections(bob, room_id)
    assert await initial_sections(bob, room_id) == ["join"]
    assert await may_read(bob, room_id)


async def test_f_11_a_ban_is_no_reason_to_remember(remembering: Homeserver):
    alice, bob, room_id = await people(remembering)
    await bob.leave(room_id)
    await ask_to_forget(bob, room_id)
    await remove(alice, room_id, "ban", bob)
    assert await initial_sections(bob, room_id) == []


async def test_f_11_who_has_heard_of_the_forgetting_hears_of_no_later_ban(remembering: Homeserver):
    """Else the room would be back on that device, and nothing would take it away again."""
    alice, bob, room_id = await people(remembering)
    client = Client(bob)
    await client.sync()
    await bob.sync()
    await bob.leave(room_id)
    await client.sync()
    await ask_to_forget(bob, room_id)
    await client.sync()
    assert FORGOTTEN in await sections(bob, room_id)
    for how in ("ban", "unban"):
        await remove(alice, room_id, how, bob)
        assert await sections(bob, room_id) == []
        assert room_id not in (await client.sync())["rooms"]
    assert await initial_sections(bob, room_id) == []


# --- F-12: rooms that everybody forgot ----------------------------------------------------------


ROWS = """
    SELECT
      (SELECT count(*) FROM events e JOIN rooms r USING (room_nid) WHERE r.room_id = $1)
      + (SELECT count(*) FROM memberships m JOIN rooms r USING (room_nid) WHERE r.room_id = $1)
"""


async def rows_of(server: Homeserver, room_id: str) -> int:
    """Return how many events and memberships of a room there are."""
    return int(str(await server.services.db.fetchval(ROWS, room_id)))


async def pass_days(server: Homeserver, clock: ManualClock, days: int) -> None:
    """Let the loop notice what is forgotten, and again after some days."""
    await forget.purge_forgotten(server.services)
    clock.advance_ms(days * DAY_MS)
    await forget.purge_forgotten(server.services)


async def test_f_12_a_room_that_everybody_forgot_is_deleted_after_a_while(
    forgetful: Homeserver, clock: ManualClock
):
    alice, bob, room_id = await people(forgetful)
    clock.advance_ms(1)
    other = await alice.create_room()
    await bob.leave(room_id)
    await alice.leave(room_id)
    await pass_days(forgetful, clock, 6)
    assert await rows_of(forgetful, room_id) > 0
    await pass_days(forgetful, clock, 1)
    assert await rows_of(forgetful, room_id) == 0
    assert await rows_of(forgetful, other) > 0
    left = await forgetful.services.db.fetchval(
        "SELECT count(*) FROM states s WHERE NOT EXISTS (SELECT FROM events e WHERE "
        "s.state_id IN (e.state_before, e.state_after, e.room_state_before, e.room_state_after))"
    )
    assert left == 0


async def test_f_12_a_room_that_somebody_remembers_is_kept(
    forgetful: Homeserver, clock: ManualClock
):
    alice, bob, room_id = await people(forgetful)
    await bob.leave(room_id)
    await pass_days(forgetful, clock, 30)
    assert await may_read(alice, room_id)


async def test_f_12_a_room_to_which_somebody_is_invited_is_kept(
    forgetful: Homeserver, clock: ManualClock
):
    alice, bob, room_id = await people(forgetful)
    carol = await forgetful.register("carol")
    await bob.leave(room_id)
    await forget.purge_forgotten(forgetful.services)
    await alice.invite(room_id, carol)
    await alice.leave(room_id)
    await pass_days(forgetful, clock, 30)
    await carol.join(room_id)
    assert await may_read(carol, room_id)


async def test_f_12_a_stranger_who_was_banned_keeps_no_room(
    forgetful: Homeserver, clock: ManualClock
):
    alice, bob, room_id = await people(forgetful)
    carol = await forgetful.register("carol")
    await remove(alice, room_id, "ban", carol)
    assert await initial_sections(carol, room_id) == []
    for user in (alice, bob):
        await user.leave(room_id)
    await pass_days(forgetful, clock, 8)
    assert await rows_of(forgetful, room_id) == 0


async def test_f_12_a_room_that_is_remembered_at_the_last_moment_is_kept(
    forgetful: Homeserver, clock: ManualClock
):
    alice, bob, room_id = await people(forgetful)
    for user in (alice, bob):
        await user.leave(room_id)
    await forget.purge_forgotten(forgetful.services)
    await bob.join(room_id)
    clock.advance_ms(8 * DAY_MS)
    await forget.purge_forgotten(forgetful.services)
    assert await may_read(bob, room_id)
    await bob.leave(room_id)
    await forget.purge_forgotten(forgetful.services)
    assert await rows_of(forgetful, room_id) > 0, "the time begins anew"


async def test_f_12_a_reported_room_is_kept(forgetful: Homeserver, clock: ManualClock):
    alice, bob, room_id = await people(forgetful)
    await bob.call("POST", f"/rooms/{quote(room_id)}/report", {"reason": "look"})
    for user in (alice, bob):
        await user.leave(room_id)
    await pass_days(forgetful, clock, 30)
    assert await rows_of(forgetful, room_id) > 0


async def test_f_12_without_the_option_users_forget_rooms_until_they_are_deleted(
    remembering: Homeserver, clock: ManualClock
):
    alice, bob, room_id = await people(remembering)
    for user in (alice, bob):
        await user.leave(room_id)
    await ask_to_forget(bob, room_id)
    await pass_days(remembering, clock, 30)
    assert await may_read(alice, room_id)
    await ask_to_forget(alice, room_id)
    await pass_days(remembering, clock, 30)
    assert await rows_of(remembering, room_id) == 0


async def test_f_12_an_interrupted_deletion_is_finished_by_whoever_needs_the_room(
    forgetful: Homeserver, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
):
    alice, bob, room_id = await people(forgetful)
    for user in (alice, bob):
        await user.leave(room_id)
    await forget.purge_forgotten(forgetful.services)
    clock.advance_ms(8 * DAY_MS)

    async def die(*_: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(forget, "finish_purge", die)
        with pytest.raises(RuntimeError):
            await forget.purge_forgotten(forgetful.services)
    assert await rows_of(forgetful, room_id) > 0
    assert not await may_read(bob, room_id)
    answer = await bob.request("POST", f"/join/{quote(room_id)}", {})
    assert answer.status in (403, 404)
    await forget.purge_forgotten(forgetful.services)
    assert await rows_of(forgetful, room_id) == 0


async def test_f_12_who_is_invited_to_a_deleted_room_finds_it_on_another_server(
    federation: Federation, clock: ManualClock
):
    hs1 = await federation.start("hs1", forget_rooms_on_leave=True)
    hs2 = await federation.start("hs2")
    alice, bob = await hs1.register("alice"), await hs2.register("bob")
    room_id = await bob.create_room()
    await bob.invite(room_id, alice)
    await alice.call("POST", f"/join/{quote(room_id)}", {}, via="hs2")
    await alice.say(room_id, "before")
    await alice.leave(room_id)
    await deliveries.begin(hs1.services)
    await deliveries.settled(hs1.services)
    await pass_days(hs1, clock, 8)
    assert await rows_of(hs1, room_id) == 0
    await bob.invite(room_id, alice)
    await alice.call("POST", f"/join/{quote(room_id)}", {}, via="hs2")
    after = await alice.say(room_id, "after")
    path = f"/rooms/{quote(room_id)}/event/{quote(after)}"
    assert (await alice.call("GET", path))["content"]["body"] == "after"
    members = await alice.call("GET", f"/rooms/{quote(room_id)}/joined_members")
    assert set(members["joined"]) == {alice.user_id, bob.user_id}


# --- F-13: the other devices are told -----------------------------------------------------------


@pytest.mark.parametrize("long_ago", [False, True])
async def test_f_13_a_sync_tells_what_was_forgotten_elsewhere(
    remembering: Homeserver,
    long_ago: bool,
):
    _, bob, room_id = await people(remembering)
    await bob.leave(room_id)
    await bob.sync()
    await ask_to_forget(bob, room_id)
    if long_ago:
        remembering.services.follower.floor = remembering.services.follower.head
    answer = await bob.sync()
    assert answer["rooms"] == {FORGOTTEN: {room_id: {}}}
    assert await sections(bob, room_id) == []


EXTENSION = "dev.minihs.forgotten_rooms"


@pytest.mark.parametrize("long_ago", [False, True])
async def test_f_13_sliding_sync_tells_it_too(forgetful: Homeserver, long_ago: bool):
    """Whoever had the room is shown the leave once, and told; a new connection hears of neither."""
    alice, bob, room_id = await people(forgetful)
    client, other = Client(bob), Client(bob, conn_id="other")
    wish = {EXTENSION: {"enabled": True}}
    first = await client.sync(extensions=wish)
    assert EXTENSION not in first["extensions"]
    await other.sync()
    await remove(alice, room_id, "kick", bob)
    if long_ago:
        forgetful.services.follower.floor = forgetful.services.follower.head
    answer = await client.sync(extensions=wish)
    assert answer["rooms"][room_id]["membership"] == "leave"
    assert answer["extensions"][EXTENSION] == {"rooms": {room_id: {}}}
    again = await client.sync(extensions=wish)
    assert (again["rooms"], again["extensions"]) == ({}, {})
    assert EXTENSION not in (await other.sync())["extensions"], "it did not ask"
    new = await Client(bob, conn_id="new").sync(extensions=wish)
    assert (new["rooms"], new["extensions"]) == ({}, {})


async def test_f_13_sliding_sync_tells_nothing_of_rooms_that_were_joined_again(
    forgetful: Homeserver,
):
    _, bob, room_id = await people(forgetful)
    client, wish = Client(bob), {EXTENSION: {"enabled": True}}
    await client.sync(extensions=wish)
    await bob.leave(room_id)
    await bob.join(room_id)
    answer = await client.sync(extensions=wish)
    assert EXTENSION not in answer["extensions"]
    assert answer["rooms"][room_id]["membership"] == "join"


async def test_f_13_what_was_forgotten_and_joined_again_is_joined(remembering: Homeserver):
    _, bob, room_id = await people(remembering)
    await bob.leave(room_id)
    await bob.sync()
    await ask_to_forget(bob, room_id)
    await bob.join(room_id)
    assert await sections(bob, room_id) == ["join"]


async def test_f_13_what_users_noted_about_a_room_is_dropped(remembering: Homeserver):
    _, bob, room_id = await people(remembering)
    path = f"/user/{quote(bob.user_id)}/rooms/{quote(room_id)}"
    await bob.call("PUT", f"{path}/tags/m.favourite", {"order": 0.5})
    await bob.call("PUT", f"{path}/account_data/org.example", {"a": 1})
    await bob.leave(room_id)
    await ask_to_forget(bob, room_id)
    assert (await bob.call("GET", f"{path}/tags"))["tags"] == {}
    assert (await bob.request("GET", f"{path}/account_data/org.example")).status == 404


async def test_f_13_push_rules_of_a_room_are_kept(remembering: Homeserver):
    """They are the user's wishes and no history."""
    _, bob, room_id = await people(remembering)
    path = f"/pushrules/global/room/{quote(room_id, safe='')}"
    await bob.call("PUT", path, {"actions": []})
    await bob.leave(room_id)
    await ask_to_forget(bob, room_id)
    assert (await bob.call("GET", path))["actions"] == []


# --- F-14: no moment in between -----------------------------------------------------------------


async def test_f_14_leaving_and_forgetting_are_one_transaction(
    forgetful: Homeserver, monkeypatch: pytest.MonkeyPatch
):
    """Were the forgetting written later, the leave would be there without it."""
    _, bob, room_id = await people(forgetful)
    committer = forgetful.services.committer

    async def nothing_more(*_: object) -> int:
        raise AssertionError

    monkeypatch.setattr(committer, "commit_rows", nothing_more)
    await bob.leave(room_id)
    row = await forgetful.services.db.fetchrow(
        "SELECT membership, forgotten FROM memberships WHERE user_id = $1", bob.user_id
    )
    assert row is not None
    assert tuple(row) == ("leave", True)
