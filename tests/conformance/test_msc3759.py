"""MSC3759: what the leaves of deactivated users say, and that nobody else's leaves say so."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from minihs.base.errors import Unavailable
from minihs.protocol.identifiers import RoomId, UserId
from minihs.services.accounts import deactivation
from minihs.services.rooms import membership
from minihs.storage import accounts, devices
from tests.federation.test_invites import MallorysRoom, invited, send
from tests.helpers import deliveries
from tests.helpers.appservices import make_ghost, running_bridge
from tests.helpers.homeserver import PASSWORD, User
from tests.helpers.mirror import mirror, push, refresh
from tests.helpers.rooms import MALLORY
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.helpers.appservices import Bridge
    from tests.helpers.homeserver import Homeserver
    from tests.helpers.network import Federation

pytestmark = pytest.mark.spec("MSC3759#proposal")

KEY = "org.matrix.msc3759.deactivated"
STABLE_KEY = "m.deactivated"
ERASED = "dev.minihs.erased"
FORGED: dict[str, object] = {KEY: True, STABLE_KEY: True, ERASED: True}
GONE = {"membership": "leave", KEY: True}


async def deactivate(user: User, **wish: object) -> None:
    """Let a user deactivate their account."""
    identifier = {"type": "m.id.user", "user": user.user_id}
    auth = {"type": "m.login.password", "identifier": identifier, "password": PASSWORD}
    await user.call("POST", "/account/deactivate", {"auth": auth, **wish})


async def member(reader: User, room_id: str, user: User) -> dict[str, Any]:
    """Return the content of a user's member event."""
    path = f"/rooms/{quote(room_id)}/state/m.room.member/{quote(user.user_id)}"
    return await reader.call("GET", path)


async def member_event(reader: User, room_id: str, user: User) -> dict[str, Any]:
    """Return a user's member event."""
    state = await reader.call("GET", f"/rooms/{quote(room_id)}/state")
    return next(e for e in state if (e["type"], e["state_key"]) == ("m.room.member", user.user_id))


async def another_room(creator: User, **options: object) -> str:
    """Create a room, a moment after the last: what a create event says is the room's id."""
    creator.homeserver.clock.advance_ms(1)  # type: ignore[attr-defined]  # the test's own clock
    return await creator.create_room(**options)


@pytest.fixture
async def bob(hs1: Homeserver) -> User:
    """Somebody with a name and a picture, who will be gone."""
    bob = await hs1.register("bob")
    for field, value in (("displayname", "Bob"), ("avatar_url", "mxc://hs1/bob")):
        await bob.call("PUT", f"/profile/{bob.user_id}/{field}", {field: value})
    return bob


# --- A-1 …: the leaves of deactivated users ---------------------------------------


async def test_a_1_each_leave_of_a_deactivation_says_so(hs1: Homeserver, alice: User, bob: User):
    rooms = [await another_room(alice) for _ in range(3)]
    for room_id in rooms:
        await bob.join(room_id)
    await deactivate(bob)
    for room_id in rooms:
        event = await member_event(alice, room_id, bob)
        assert event["content"] == GONE
        assert event["sender"] == bob.user_id, "A-2: or nobody would believe it"


async def test_a_3_the_leave_has_no_name_and_no_picture(hs1: Homeserver, alice: User, bob: User):
    room_id = await alice.create_room()
    await bob.join(room_id)
    assert (await member(alice, room_id, bob))["displayname"] == "Bob"
    await alice.sync()
    await deactivate(bob, erase=True)
    assert not {"displayname", "avatar_url"} & (await member(alice, room_id, bob)).keys()
    timeline = (await alice.sync())["rooms"]["join"][room_id]["timeline"]["events"]
    assert len(timeline) == 1, "one event, and no change of profile before it"


async def test_a_5_rejected_invites_and_retracted_knocks_say_so(
    hs1: Homeserver, alice: User, bob: User
):
    knocking = {"type": "m.room.join_rules", "content": {"join_rule": "knock"}}
    invited = await another_room(alice)
    knocked = await another_room(alice, initial_state=[knocking])
    await alice.invite(invited, bob)
    await bob.call("POST", f"/knock/{quote(knocked)}", {})
    await deactivate(bob)
    for room_id in (invited, knocked):
        assert await member(alice, room_id, bob) == GONE


async def test_a_5_an_invite_of_another_server_is_rejected_and_says_so(
    federation: Federation, hs1: Homeserver, bob: User
):
    hs2 = await federation.start("hs2")
    carol = await hs2.register("carol")
    room_id = await carol.create_room()
    await carol.invite(room_id, bob)
    await deactivate(bob)
    assert await member(carol, room_id, bob) == GONE


@pytest.mark.parametrize("how", ["the user", "an administrator", "the command line"])
async def test_a_6_it_does_not_matter_who_deactivates(
    hs1: Homeserver, alice: User, bob: User, how: str
):
    room_id = await alice.create_room()
    await bob.join(room_id)
    match how:
        case "the user":
            await deactivate(bob)
        case "an administrator":
            admin = await admin_of(hs1)
            path = f"/_synapse/admin/v1/deactivate/{quote(bob.user_id)}"
            await admin.call("POST", path, {"erase": False})
        case _:
            await deactivation.deactivate_by_admin(hs1.services, bob.user_id, erase=False)
    assert await member(alice, room_id, bob) == GONE


# --- nobody else's leaves say so ------------------------------------------------------


def leave_by_endpoint(room_id: str) -> tuple[str, str, dict[str, object]]:
    return "POST", f"/rooms/{quote(room_id)}/leave", FORGED


def leave_by_state(room_id: str) -> tuple[str, str, dict[str, object]]:
    path = f"/rooms/{quote(room_id)}/state/m.room.member/{quote('@bob:hs1')}"
    return "PUT", path, {"membership": "leave", **FORGED}


def join_by_endpoint(room_id: str) -> tuple[str, str, dict[str, object]]:
    return "POST", f"/rooms/{quote(room_id)}/join", FORGED


def join_by_state(room_id: str) -> tuple[str, str, dict[str, object]]:
    path = f"/rooms/{quote(room_id)}/state/m.room.member/{quote('@bob:hs1')}"
    return "PUT", path, {"membership": "join", "x": 1, **FORGED}


@pytest.mark.parametrize(
    "forge", [leave_by_endpoint, leave_by_state, join_by_endpoint, join_by_state]
)
async def test_a_4_users_cannot_fake_their_own_death(
    hs1: Homeserver,
    alice: User,
    bob: User,
    forge: Callable[[str], tuple[str, str, dict[str, object]]],
):
    room_id = await alice.create_room()
    if forge is not join_by_endpoint:
        await bob.join(room_id)
    await bob.call(*forge(room_id))
    content = await member(alice, room_id, bob)
    assert not content.keys() & FORGED.keys()
    assert content["membership"] == ("join" if "join" in forge.__name__ else "leave")


async def test_a_4_nor_by_creating_rooms(hs1: Homeserver, bob: User):
    forged = {"type": "m.room.member", "state_key": bob.user_id, "content": dict(FORGED)}
    answer = await bob.request("POST", "/createRoom", {"initial_state": [forged]})
    assert answer.status == 400


async def test_a_4_nor_by_their_profile(hs1: Homeserver, alice: User, bob: User):
    room_id = await alice.create_room()
    await bob.join(room_id)
    await bob.request("PUT", f"/profile/{bob.user_id}/{KEY}", {KEY: True})
    await bob.call("PUT", f"/profile/{bob.user_id}/displayname", {"displayname": "Robert"})
    assert (await member(alice, room_id, bob))["displayname"] == "Robert"
    assert KEY not in await member(alice, room_id, bob)


@pytest.mark.parametrize("generation", ["query parameter", "endpoint"])
async def test_a_4_nor_by_delayed_events(hs1: Homeserver, alice: User, bob: User, generation: str):
    room_id = await alice.create_room()
    await bob.join(room_id)
    content = {"membership": "leave", **FORGED}
    if generation == "query parameter":
        path = f"/rooms/{quote(room_id)}/state/m.room.member/{quote(bob.user_id)}"
        delay = {"org.matrix.msc4140.delay": "10000"}
        made = await bob.call("PUT", path, content, **delay)
    else:
        path = f"/rooms/{quote(room_id)}/delayed_event/m.room.member/1"
        wish = {"delay_ms": 10_000, "state_key": bob.user_id, "content": content}
        made = await bob.call("PUT", path, wish)
    await bob.call("POST", f"/_matrix/client/v1/delayed_events/{made['delay_id']}/send", {})
    assert await member(alice, room_id, bob) == {"membership": "leave"}


async def test_a_4_nor_by_knocking(hs1: Homeserver, alice: User, bob: User):
    room_id = await alice.create_room()
    await alice.put_state(room_id, "m.room.join_rules", {"join_rule": "knock"})
    await bob.call("POST", f"/knock/{quote(room_id)}", FORGED)
    content = await member(alice, room_id, bob)
    assert content["membership"] == "knock"
    assert not content.keys() & FORGED.keys()


async def test_a_4_nor_does_another_server_say_so_of_them(federation: Federation, hs1: Homeserver):
    """What it proposes for the leave that rejects its invite is not what is signed."""
    alice, evil = await hs1.register("alice"), federation.evil()
    event = invited(MallorysRoom(), alice.user_id)
    assert await send(evil, event) == (200, "")
    template = {
        "type": "m.room.member", "room_id": event.room_id, "sender": alice.user_id,
        "state_key": alice.user_id, "content": {"membership": "leave", **FORGED}, "depth": 9,
        "prev_events": [event.event_id], "auth_events": list(event.auth_event_ids),
        "origin_server_ts": 7,
    }  # fmt: skip
    proposal = {"room_version": event.room_version.identifier, "event": template}
    evil.on("GET", "/_matrix/federation/v1/make_leave/{roomId}/{userId}", proposal)
    evil.on("PUT", "/_matrix/federation/v2/send_leave/{roomId}/{eventId}", {})

    await alice.leave(event.room_id)

    (sent,) = evil.asked("/send_leave/")
    assert isinstance(sent.content, dict)
    assert sent.content["content"] == {"membership": "leave"}


async def test_a_2_moderators_cannot_declare_others_dead(hs1: Homeserver, alice: User, bob: User):
    room_id = await alice.create_room()
    await bob.join(room_id)
    forged = {"membership": "leave", **FORGED}
    await alice.put_state(room_id, "m.room.member", forged, bob.user_id)
    assert await member(alice, room_id, bob) == {"membership": "leave"}


async def test_a_2_what_another_server_signed_is_passed_on_unchanged(
    federation: Federation, hs1: Homeserver, alice: User, bob: User
):
    """And believed by nobody here: only the sender's own server can say so."""
    room_id = await alice.create_room()
    evil, room = federation.evil(), await mirror(hs1, room_id)
    await push(evil, hs1, [room.join(MALLORY)])
    await alice.put_state(room_id, "m.room.power_levels", {"users": {MALLORY: 50}})
    await bob.join(room_id)
    await refresh(room, hs1)
    kick = room.send(
        MALLORY, "m.room.member", {"membership": "leave", KEY: True}, state_key=bob.user_id
    )
    await push(evil, hs1, [kick])
    assert await member(alice, room_id, bob) == GONE
    row = await hs1.services.db.fetchrow(
        "SELECT forgotten FROM memberships WHERE user_id = $1", bob.user_id
    )
    assert row is not None
    assert row[0] is False, "a kick is not a deactivation"


@pytest.mark.parametrize("how", ["kick", "ban"])
async def test_a_7_who_is_removed_is_not_deactivated(
    hs1: Homeserver, alice: User, bob: User, how: str
):
    room_id = await alice.create_room()
    await bob.join(room_id)
    wish = {"user_id": bob.user_id, **FORGED}
    await alice.call("POST", f"/rooms/{quote(room_id)}/{how}", wish)
    assert not (await member(alice, room_id, bob)).keys() & FORGED.keys()


@pytest.mark.parametrize("how", ["logout", "logout/all", "delete_devices"])
async def test_a_7_who_logs_out_stays(hs1: Homeserver, alice: User, bob: User, how: str):
    room_id = await alice.create_room()
    await bob.join(room_id)
    if how == "delete_devices":
        auth = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": bob.user_id},
            "password": PASSWORD,
        }
        await bob.call("POST", "/delete_devices", {"devices": [bob.device_id], "auth": auth})
    else:
        await bob.call("POST", f"/{how}", {})
    assert (await bob.request("GET", "/account/whoami")).status == 401
    assert (await member(alice, room_id, bob))["membership"] == "join"


async def test_a_7_an_ordinary_leave_does_not_say_so(hs1: Homeserver, alice: User, bob: User):
    room_id = await alice.create_room()
    await bob.join(room_id)
    await bob.leave(room_id)
    assert not (await member(alice, room_id, bob)).keys() & FORGED.keys()


async def test_a_4_what_is_left_out_is_logged(
    hs1: Homeserver, alice: User, bob: User, caplog: pytest.LogCaptureFixture
):
    room_id = await alice.create_room()
    await bob.join(room_id)
    with caplog.at_level("INFO", logger="minihs.services.rooms.membership"):
        await bob.call(*leave_by_state(room_id))
    assert f"{bob.user_id} may not say {ERASED}, {STABLE_KEY}, {KEY}: left out" in caplog.text


# --- guests, and the users of bridges -----------------------------------------------------------


async def test_a_1_a_guest_that_is_deactivated_says_so(federation: Federation):
    server = await federation.start("hs1", allow_guests=True)
    alice, admin = await server.register("alice"), await admin_of(server)
    made = await server.request("POST", "/register", {}, {"kind": "guest"})
    guest = User(server, made.json["user_id"], made.json["access_token"])
    may_come = {"type": "m.room.guest_access", "content": {"guest_access": "can_join"}}
    room_id = await alice.create_room(initial_state=[may_come])
    await guest.join(room_id)
    await admin.call("POST", f"/_synapse/admin/v1/deactivate/{quote(guest.user_id)}", {})
    assert await member(alice, room_id, guest) == GONE


@pytest.fixture
async def bridge(tmp_path: Path) -> AsyncIterator[Bridge]:
    """An application service, which is told what happens."""
    async with running_bridge(tmp_path) as service:
        yield service


async def test_a_4_a_bridge_may_say_so_of_users_that_it_owns_alone(
    federation: Federation, bridge: Bridge
):
    """They are gone from the other network."""
    server = await federation.start("hs1", appservice_files=str(bridge.file))
    alice, bob = await server.register("alice"), await server.register("bob")
    ghost = await make_ghost(server, "_bridge_bob")
    room_id = await alice.create_room()
    for user in (bob, ghost):
        await user.join(room_id)
        leave = {"membership": "leave", **FORGED}
        await user.put_state(room_id, "m.room.member", leave, user.user_id)
    assert await member(alice, room_id, ghost) == {**GONE, ERASED: True}
    assert not (await member(alice, room_id, bob)).keys() & FORGED.keys()
    await ghost.join(room_id)
    joined = await member(alice, room_id, ghost)
    assert not joined.keys() & FORGED.keys(), "who is there is not gone"
    kick = {"user_id": bob.user_id, **FORGED}
    await bob.join(room_id)
    await alice.put_state(room_id, "m.room.power_levels", {"users": {ghost.user_id: 100}})
    await ghost.call("POST", f"/rooms/{quote(room_id)}/kick", kick)
    assert not (await member(alice, room_id, bob)).keys() & FORGED.keys()


# --- ours ---------------------------------------------------------------------------------------


async def test_erasure_can_be_told_apart(hs1: Homeserver, alice: User, bob: User):
    room_id = await alice.create_room()
    await bob.join(room_id)
    await deactivate(bob, erase=True)
    assert await member(alice, room_id, bob) == {**GONE, ERASED: True}


async def test_an_administrator_may_keep_it_to_the_server(federation: Federation):
    server = await federation.start("hs1", deactivation_metadata=False)
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await alice.create_room()
    await bob.join(room_id)
    await deactivate(bob, erase=True)
    assert await member(alice, room_id, bob) == {"membership": "leave"}


async def pass_time(server: Homeserver, duration_ms: int) -> None:
    """Let time pass, and the loop look after deactivations."""
    server.clock.advance_ms(duration_ms)  # type: ignore[attr-defined]  # a clock of the test's own
    await deactivation.resume_deactivations(server.services)


async def admin_of(server: Homeserver) -> User:
    admin = await server.register("admin")
    await server.services.db.execute(
        "UPDATE accounts SET admin = true WHERE user_id = $1", admin.user_id
    )
    return admin


async def progress(admin: User, user: User) -> tuple[object, ...]:
    """Return how many rooms are left, whether it is done, and whether it was given up."""
    told = await admin.call("GET", f"/_synapse/admin/v1/deactivate/{quote(user.user_id)}")
    return told["rooms_left"], told["done"], told["given_up"]


async def test_after_a_crash_the_remaining_leaves_say_so_too(
    hs1: Homeserver, alice: User, bob: User, monkeypatch: pytest.MonkeyPatch
):
    rooms = [await another_room(alice) for _ in range(4)]
    for room_id in rooms:
        await bob.join(room_id)
    change, left = membership.change_membership, 2

    async def crash_after_two(*arguments: Any) -> object:
        nonlocal left
        if left == 0:
            raise RuntimeError("the server stops here")
        left -= 1
        return await change(*arguments)

    monkeypatch.setattr(membership, "ROOMS_AT_ONCE", 1)
    with monkeypatch.context() as patch:
        patch.setattr(membership, "change_membership", crash_after_two)
        await deactivate(bob)
    contents = [await member(alice, room_id, bob) for room_id in rooms]
    assert [content["membership"] for content in contents].count("leave") == 2
    admin = await admin_of(hs1)
    assert await progress(admin, bob) == (2, False, False)
    await pass_time(hs1, deactivation.RETRY_MIN_MS)
    assert [await member(alice, room_id, bob) for room_id in rooms] == [GONE] * 4
    assert await progress(admin, bob) == (0, True, False)
    asked = await alice.request("GET", f"/_synapse/admin/v1/deactivate/{quote(bob.user_id)}")
    assert asked.status == 403


async def test_a_room_that_cannot_be_left_is_tried_less_and_less_and_then_given_up(
    hs1: Homeserver, alice: User, bob: User, monkeypatch: pytest.MonkeyPatch
):
    room_id = await alice.create_room()
    await bob.join(room_id)
    tries = 0

    async def fail(*_: object, **_kw: object) -> None:
        nonlocal tries
        tries += 1
        raise Unavailable("not now")

    admin = await admin_of(hs1)
    with monkeypatch.context() as patch:
        patch.setattr(membership, "change_membership", fail)
        await deactivate(bob)
        for hours, expected in ((1, 2), (1, 3), (1, 3), (1, 4), (20 * 24, 5), (11 * 24, 6)):
            await pass_time(hs1, hours * 3_600_000)
            assert tries == expected, hours
    assert await progress(admin, bob) == (1, False, True)
    await pass_time(hs1, 86_400_000)
    assert await member(alice, room_id, bob) != GONE, "given up"
    path = f"/_synapse/admin/v1/deactivate/{quote(bob.user_id)}"
    await admin.call("POST", path, {})
    assert await member(alice, room_id, bob) == GONE, "unless the administrator asks again"


async def test_whoever_is_in_many_rooms_is_answered_before_the_last_was_left(
    hs1: Homeserver, alice: User, bob: User, monkeypatch: pytest.MonkeyPatch
):
    rooms = [await another_room(alice) for _ in range(3)]
    for room_id in rooms:
        await bob.join(room_id)
    change, admin, may_go_on = membership.change_membership, await admin_of(hs1), asyncio.Event()

    async def takes_long(*arguments: Any) -> object:
        await may_go_on.wait()
        return await change(*arguments)

    monkeypatch.setattr(membership, "change_membership", takes_long)
    asking = asyncio.create_task(deactivate(bob))

    async def is_answered() -> bool:
        hs1.clock.advance_ms(100)  # type: ignore[attr-defined]  # a clock of the test's own
        return asking.done()

    await until(is_answered)
    await asking
    assert (await bob.request("GET", "/account/whoami")).status == 401
    assert await progress(admin, bob) == (3, False, False)
    may_go_on.set()

    async def is_done() -> bool:
        return await progress(admin, bob) == (0, True, False)

    await until(is_done)
    assert [await member(alice, room_id, bob) for room_id in rooms] == [GONE] * 3


async def test_who_comes_back_by_a_request_that_was_under_way_leaves_again(
    hs1: Homeserver, alice: User, bob: User
):
    room_id = await alice.create_room()
    await deactivate(bob)
    change = membership.MembershipChange(
        RoomId(room_id), UserId(bob.user_id), UserId(bob.user_id), "join"
    )
    await membership.change_membership(hs1.services, change)
    assert (await member(alice, room_id, bob))["membership"] == "join"
    await pass_time(hs1, deactivation.LOOK_MIN_MS)
    assert await member(alice, room_id, bob) == GONE
    await pass_time(hs1, deactivation.SETTLED_MS)
    parting = await accounts.fetch_parting(hs1.services.db, bob.user_id)
    assert parting is not None
    assert parting.due_ms is None


async def test_nobody_is_invited_who_could_not_answer(hs1: Homeserver, alice: User, bob: User):
    """An invite would stay for ever: the deactivation that would reject it is over."""
    room_id = await alice.create_room()
    await deactivate(bob)
    ask = {"user_id": bob.user_id}
    answers = [
        await alice.request("POST", f"/rooms/{quote(room_id)}/invite", ask),
        await alice.request("POST", "/createRoom", {"invite": [bob.user_id]}),
        await alice.request(
            "PUT",
            f"/rooms/{quote(room_id)}/state/m.room.member/{quote(bob.user_id)}",
            {"membership": "invite"},
        ),
    ]
    assert [(a.status, a.json["errcode"]) for a in answers] == [(403, "M_FORBIDDEN")] * 3
    assert await progress(await admin_of(hs1), bob) == (0, True, False)


async def test_who_is_locked_out_cannot_come_back_in_between(
    hs1: Homeserver, alice: User, bob: User
):
    """The moment between the two steps: locked out, and still in the room."""
    room_id, services = await alice.create_room(), hs1.services
    await bob.join(room_id)
    async with services.db.transaction() as tx:
        await accounts.mark_deactivated(tx, UserId(bob.user_id), 1, erase=False, parting_due_ms=1)
        await devices.delete_devices_except(tx, UserId(bob.user_id), None)
    answer = await bob.request("POST", f"/rooms/{quote(room_id)}/leave", {})
    assert answer.status == 401
    await deactivation.resume_deactivations(services)
    assert await member(alice, room_id, bob) == GONE


async def test_the_rooms_of_a_deactivated_user_are_forgotten(
    hs1: Homeserver, alice: User, bob: User
):
    """Whatever the option says: nobody is left who could ask for it."""
    joined, left = await another_room(alice), await another_room(alice)
    for room_id in (joined, left):
        await bob.join(room_id)
    await bob.leave(left)
    await deactivate(bob)
    rows = await hs1.services.db.fetch(
        "SELECT forgotten FROM memberships WHERE user_id = $1", bob.user_id
    )
    assert [row[0] for row in rows] == [True, True]


async def test_where_the_user_was_banned_nothing_is_sent(hs1: Homeserver, alice: User, bob: User):
    room_id = await alice.create_room()
    await bob.join(room_id)
    await alice.call("POST", f"/rooms/{quote(room_id)}/ban", {"user_id": bob.user_id})
    await deactivate(bob)
    assert (await member(alice, room_id, bob))["membership"] == "ban"


async def test_delayed_events_are_cancelled_before_the_leaves(
    hs1: Homeserver, alice: User, bob: User
):
    room_id = await alice.create_room()
    await bob.join(room_id)
    path = f"/rooms/{quote(room_id)}/state/m.room.member/{quote(bob.user_id)}"
    await bob.call("PUT", path, {"membership": "join"}, **{"org.matrix.msc4140.delay": "1000"})
    await deactivate(bob)
    hs1.clock.advance_ms(5_000)  # type: ignore[attr-defined]  # a clock of the test's own
    assert await member(alice, room_id, bob) == GONE


async def test_erasure_ends_what_is_sticky(hs1: Homeserver, alice: User, bob: User):
    room_id = await alice.create_room()
    await bob.join(room_id)
    path = f"/rooms/{quote(room_id)}/send/m.room.message/1"
    sticky = {"org.matrix.msc4354.sticky_duration_ms": "600000"}
    await bob.call("PUT", path, {"body": "still here"}, **sticky)
    await deactivate(bob, erase=True)
    count = await hs1.services.db.fetchval("SELECT count(*) FROM sticky_events")
    assert count == 0


async def test_the_other_servers_of_a_room_hear_of_it(
    federation: Federation, hs1: Homeserver, bob: User
):
    hs2 = await federation.start("hs2")
    carol = await hs2.register("carol")
    room_id = await carol.create_room()
    await carol.invite(room_id, bob)
    await bob.call("POST", f"/join/{quote(room_id)}", {}, via="hs2")
    await deliveries.begin(hs1.services)
    await deactivate(bob)
    await deliveries.settled(hs1.services)
    assert await member(carol, room_id, bob) == GONE
