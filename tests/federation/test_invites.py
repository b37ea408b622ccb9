"""Invites between servers: Alice of hs1 invites Bob of hs2; Mallory's server is ill-behaved."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from minihs.protocol.canonical_json import CanonicalJsonError
from minihs.protocol.events import Event
from minihs.services.federation import resident
from minihs.services.rooms.outsiders import ROOM_STATE_BYTES_MAX
from tests.federation.test_joins import enter, members, two
from tests.helpers.mirror import forge, mirror, push
from tests.helpers.network import raw
from tests.helpers.rooms import MALLORY, Room

if TYPE_CHECKING:
    from tests.helpers.homeserver import Homeserver, User
    from tests.helpers.network import EvilServer, Federation, Received

INVITE = "/_matrix/federation/v2/invite/{roomId}/{eventId}"


async def invite(user: User, room_id: str, target: str) -> tuple[int, str | None]:
    """Invite somebody; return the status and what was wrong."""
    response = await user.request("POST", f"/rooms/{quote(room_id)}/invite", {"user_id": target})
    return response.status, response.json.get("errcode")


def shown(answer: dict, room_id: str, section: str = "invite") -> list[dict]:
    """Return what a sync shows of a room from outside."""
    return answer["rooms"][section][room_id][f"{section}_state"]["events"]


@pytest.mark.parametrize("version", ["1", "6", "11", "12"])
async def test_bob_is_invited_sees_what_the_room_is_and_joins(federation: Federation, version: str):
    hs1, hs2 = await two(federation)
    alice, bob = await hs1.register("alice"), await hs2.register("bob")
    room_id = await alice.create_room(preset="private_chat", name="Tea", room_version=version)
    await bob.sync()

    assert await invite(alice, room_id, bob.user_id) == (200, None)

    events = {(e["type"], e["state_key"]): e for e in shown(await bob.sync(), room_id)}
    assert events["m.room.name", ""]["content"] == {"name": "Tea"}
    assert events["m.room.member", bob.user_id]["content"]["membership"] == "invite"
    assert events["m.room.member", bob.user_id]["sender"] == alice.user_id
    assert "origin_server_ts" in events["m.room.create", ""]  # MSC4311
    assert (await members(alice, room_id))[bob.user_id] == "invite"
    await enter(bob, room_id)  # His server knows whom to ask: who invited him.
    assert await members(alice, room_id) == {alice.user_id: "join", bob.user_id: "join"}
    assert "invite" not in (await bob.sync())["rooms"]


async def test_the_invite_is_signed_by_both_servers(federation: Federation):
    hs1, hs2 = await two(federation)
    alice, bob = await hs1.register("alice"), await hs2.register("bob")
    room_id = await alice.create_room(preset="private_chat")

    await invite(alice, room_id, bob.user_id)

    event = await alice.call(
        "GET", f"/rooms/{quote(room_id)}/state/m.room.member/{bob.user_id}", format="event"
    )
    for server in (hs1, hs2):
        stored = await server.services.events.get(event["event_id"])
        assert stored is not None
        assert set(stored.event.pdu["signatures"]) == {"hs1", "hs2"}


async def test_a_room_is_made_with_guests_from_elsewhere(federation: Federation):
    hs1, hs2 = await two(federation)
    alice, bob = await hs1.register("alice"), await hs2.register("bob")

    room_id = await alice.create_room(
        preset="trusted_private_chat", is_direct=True, invite=[bob.user_id, "@gone:nowhere"]
    )

    events = shown(await bob.sync(), room_id)
    mine = [e for e in events if e["state_key"] == bob.user_id]
    assert mine[0]["content"]["is_direct"] is True
    assert await members(alice, room_id) == {alice.user_id: "join", bob.user_id: "invite"}


async def test_invites_that_cannot_be_delivered_are_not_made(federation: Federation):
    hs1, hs2 = await two(federation)
    alice, bob = await hs1.register("alice"), await hs2.register("bob")
    room_id = await alice.create_room()

    assert await invite(alice, room_id, "@nobody:hs2") == (404, "M_NOT_FOUND")
    assert await invite(alice, room_id, "@gone:nowhere") == (404, "M_NOT_FOUND")
    await bob.call(
        "PUT", f"/user/{bob.user_id}/account_data/m.invite_permission_config",
        {"default_action": "block"},
    )  # fmt: skip
    assert await invite(alice, room_id, bob.user_id) == (403, "M_INVITE_BLOCKED")
    assert await members(alice, room_id) == {alice.user_id: "join"}


async def test_an_invite_that_the_room_forbids_goes_nowhere(federation: Federation):
    hs1, hs2 = await two(federation)
    alice, bob = await hs1.register("alice"), await hs2.register("bob")
    room_id = await alice.create_room()
    await alice.call("POST", f"/rooms/{quote(room_id)}/ban", {"user_id": bob.user_id})

    assert await invite(alice, room_id, bob.user_id) == (403, "M_FORBIDDEN")
    assert not [d for d in federation.network.log if "/invite/" in d.target]


async def test_s09_an_answer_with_another_event_is_refused(federation: Federation):
    hs1 = await federation.start("hs1")
    alice = await hs1.register("alice")
    evil = federation.evil()
    room_id = await alice.create_room()

    def other(received: Received) -> object:
        event = dict(received.content["event"])  # type: ignore[index,call-overload]
        return {"event": {**event, "content": {"membership": "join"}, "depth": 77}}

    for answer, why in (
        (other, "another event"),
        (lambda r: {"event": r.content["event"]}, "not signed"),  # type: ignore[index]
        ({"event": {}}, "nothing"),
        (raw({"event": "x"}), "no event"),
    ):
        evil.on("PUT", INVITE, answer)
        status, _ = await invite(alice, room_id, str(MALLORY))
        assert status == 502, why
    assert await members(alice, room_id) == {alice.user_id: "join"}


# --- invites that others send us ----------------------------------------------------------------


def invited(room: Room, target: str, **changes: object) -> Event:
    """Return Mallory's invite of somebody to her room."""
    content: dict[str, object] = {"membership": "invite"}
    return room.draft(str(MALLORY), "m.room.member", content, state_key=target, **changes)


async def send(
    evil: EvilServer, event: Event, *, room_id: str = "", event_id: str = "",
    version: str = "11", state: object = (), pdu: dict | None = None,
) -> tuple[int, str]:  # fmt: skip
    """Send an invite to hs1; return status and error code."""
    path = (
        f"/_matrix/federation/v2/invite/{quote(room_id or event.room_id)}/"
        f"{quote(event_id or event.event_id)}"
    )
    answer = await evil.request(
        "hs1", "PUT", path,
        {"event": pdu or event.pdu, "room_version": version, "invite_room_state": state},
    )  # fmt: skip
    return (200, "") if isinstance(answer, dict) else (answer.status, answer.errcode)


@pytest.fixture
async def hs1(federation: Federation) -> Homeserver:
    return await federation.start("hs1", default_room_version="11")


class MallorysRoom(Room):
    """A room of Mallory's, whose server signs what she does."""

    def __init__(self, version: str = "11") -> None:
        super().__init__(version)
        self.join(str(MALLORY))
        content = {"users": {MALLORY: 100}} if version != "12" else {"users": {MALLORY: 50}}
        self.send("@alice:hs1", "m.room.power_levels", content, state_key="")


async def test_a11_only_invites_of_our_users_are_signed(
    hs1: Homeserver, alice: User, evil: EvilServer
):
    """What the passage asks for."""
    room = MallorysRoom()
    good = invited(room, alice.user_id)
    kick = room.draft(
        str(MALLORY), "m.room.member", {"membership": "leave"}, state_key=alice.user_id
    )
    message = room.draft(str(MALLORY), "m.room.message", {"body": "x"})
    by_alice = room.draft(
        alice.user_id, "m.room.member", {"membership": "invite"}, state_key="@dora:hs1"
    )
    unsigned = {**good.pdu, "signatures": {}}
    cases = [
        (await send(evil, good, room_id="!other:evil"), "another room in the path"),
        (await send(evil, good, event_id="$other"), "another event in the path"),
        (await send(evil, kick), "a kick"),
        (await send(evil, message), "a message"),
        (await send(evil, by_alice), "a sender of another server"),
        (await send(evil, invited(room, "@bob:hs2")), "a user of another server"),
        (await send(evil, good, pdu=unsigned), "no signature"),
        (await send(evil, good, state="x"), "state that is no list"),
        (await send(evil, good, state=None), "null as state"),
    ]
    for outcome, why in cases:
        assert outcome == (400, "M_INVALID_PARAM"), why
    assert await send(evil, invited(room, "@nobody:hs1")) == (404, "M_NOT_FOUND")
    assert await send(evil, good, version="99") == (400, "M_INCOMPATIBLE_ROOM_VERSION")
    assert (await alice.sync()).get("rooms") is None


async def test_f12_whatever_comes_with_an_invite_sync_goes_on(
    hs1: Homeserver, alice: User, evil: EvilServer
):
    room = MallorysRoom()
    event = invited(room, alice.user_id)
    junk = [None, 7, "x", {}, {"type": "m.room.name"}, {"type": 1, "state_key": [], "content": 2}]
    huge = {
        "type": "m.room.topic", "state_key": "", "sender": str(MALLORY),
        "content": {"topic": "x" * ROOM_STATE_BYTES_MAX},
    }  # fmt: skip
    name = {**huge, "type": "m.room.name", "content": {"name": "Trap"}}
    large = {**name, "content": {"name": 10**30}}

    assert await send(evil, event, state=[*junk, huge, large, name, *[name] * 500]) == (200, "")

    answer = await alice.sync()
    events = shown(answer, event.room_id)
    assert {"type": "m.room.name", "state_key": "", "sender": str(MALLORY),
            "content": {"name": "Trap"}} in events  # fmt: skip
    assert len(events) < 60
    assert events[-1]["state_key"] == alice.user_id


async def test_j13_an_invite_from_the_deepest_place_can_be_rejected(
    hs1: Homeserver, alice: User, evil: EvilServer
):
    """Nobody helps: the leave follows the invite, and nothing is deeper."""
    room = MallorysRoom()
    event = invited(room, alice.user_id)
    deepest = Event.from_pdu(forge(event, depth=2**53 - 1), event.room_version)
    assert await send(evil, deepest) == (200, "")
    assert event.room_id in (await alice.sync())["rooms"]["invite"]
    await alice.leave(event.room_id)
    assert event.room_id in (await alice.sync())["rooms"]["leave"]


@pytest.mark.parametrize("levels", [90, 120, 240, 247, 250, 253, 255, 1_000])
async def test_f12_what_is_nested_deeply_does_not_keep_sync_from_being_written(
    hs1: Homeserver, alice: User, evil: EvilServer, levels: int
):
    """The event itself, what comes with it, and an event of a room that alice is in."""
    deep: object = "bottom"
    for _ in range(levels):
        deep = {"a": deep}
    joined = await alice.create_room(room_version="11")
    copy = await mirror(hs1, joined)
    await push(evil, hs1, [copy.join(MALLORY)])
    room = MallorysRoom()
    event = invited(room, alice.user_id)
    name = {"type": "m.room.name", "state_key": "", "sender": str(MALLORY), "content": {"n": deep}}
    try:
        assert await send(evil, event, state=[name]) == (200, "")
        deepest = forge(event, content={**event.content, "reason": deep})
        reason = Event.from_pdu(deepest, event.room_version)
        assert (await send(evil, reason, state=[name]))[0] in (200, 400)
        draft = copy.draft(MALLORY, "m.room.message", {"body": "x"})
        await push(evil, hs1, [forge(draft, content={"body": "x", "deep": deep})])
    except CanonicalJsonError:  # Evil itself cannot write it.
        assert levels == 1_000

    path = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
    lists = {"a": {"ranges": [[0, 9]], "timeline_limit": 9, "required_state": [["*", "*"]]}}
    for _ in range(2):
        answer = await alice.call("GET", "/sync", timeout="0", full_state="true")
        assert levels == 1_000 or event.room_id in answer["rooms"]["invite"]
        assert joined in answer["rooms"]["join"]
        sliding = await alice.call("POST", path, {"lists": lists}, timeout="0")
        assert answer["rooms"].get("invite", {}).keys() | {joined} == sliding["rooms"].keys()
        await alice.say(joined, "news")


async def test_since_room_version_12_the_create_event_must_come_along(
    hs1: Homeserver, alice: User, evil: EvilServer
):
    room = Room("12")
    join = room.join(str(MALLORY))
    event = invited(room, alice.user_id)
    levels = room.current("m.room.power_levels")
    assert levels is not None

    refused = 400, "M_INVALID_PARAM"
    assert await send(evil, event, version="12", state=[]) == refused
    assert await send(evil, event, version="12", state=[{"type": "m.room.create"}]) == refused
    other = Room("12", {"users_default": 1})
    assert await send(evil, event, version="12", state=[other.create.pdu]) == refused
    assert join is not None


async def test_f13_nobody_drowns_in_invites(
    hs1: Homeserver, alice: User, evil: EvilServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(resident, "INVITES_OF_USER_FROM_SERVER_MAX", 3)
    rooms = []
    for number in range(4):
        room = MallorysRoom()
        room.room_id = f"!room{number}:evil"  # type: ignore[assignment]
        rooms.append(room)
    events = [
        room.draft(str(MALLORY), "m.room.member", {"membership": "invite"}, state_key=alice.user_id)
        for room in rooms
    ]

    outcomes = [await send(evil, event) for event in events]

    assert outcomes == [(200, "")] * 3 + [(429, "M_LIMIT_EXCEEDED")]
    await alice.leave(events[0].room_id)
    assert await send(evil, events[3]) == (200, "")
