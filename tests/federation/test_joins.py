"""Joining rooms of other servers, and letting their users join ours.

Alice is on hs1, Bob on hs2, Carol on hs3; Mallory's server `evil` is ill-behaved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from minihs.protocol.events import Event
from minihs.protocol.identifiers import EventId
from minihs.protocol.state_resolution import MissingEventsError
from minihs.services.rooms import commit, receive
from tests.helpers.network import raw
from tests.helpers.rooms import ALICE, Room
from tests.helpers.waiting import PATIENCE_S, until

if TYPE_CHECKING:
    from minihs.base.clock import ManualClock
    from minihs.services.context import Services
    from minihs.services.rooms.commit import Plan, PlannedEvent
    from minihs.storage.event_store import StoredEvent
    from tests.helpers.homeserver import Homeserver, User
    from tests.helpers.network import EvilServer, Federation, Received

MAKE_JOIN = "/_matrix/federation/v1/make_join/{roomId}/{userId}"
SEND_JOIN = "/_matrix/federation/v2/send_join/{roomId}/{eventId}"
ALL_VERSIONS = [("ver", str(number)) for number in range(1, 13)]


async def enter(user: User, room: str, *via: str) -> str:
    """Join a room through servers; return its id."""
    path = f"/join/{quote(room, safe='')}?" + "&".join(f"via={server}" for server in via)
    return (await user.call("POST", path, {}))["room_id"]


async def refused(user: User, room: str, *via: str) -> tuple[int, str]:
    """Return how joining is refused."""
    path = f"/join/{quote(room, safe='')}?" + "&".join(f"via={server}" for server in via)
    response = await user.request("POST", path, {})
    return response.status, response.json.get("errcode")


async def pass_on(sender: Homeserver, receiver: Homeserver, user: User, room_id: str) -> None:
    """Deliver a user's own member event to another server, as it would be in time."""
    event = await user.call(
        "GET", f"/rooms/{quote(room_id)}/state/m.room.member/{user.user_id}", format="event"
    )
    stored = await sender.services.events.get(event["event_id"])
    assert stored is not None
    answer = await sender.services.remote.send_transaction(
        receiver.name, event["event_id"][1:20],
        {"origin": sender.name, "origin_server_ts": 1, "pdus": [stored.event.pdu]},
    )  # fmt: skip
    assert answer == {"pdus": {event["event_id"]: {}}}


async def members(user: User, room_id: str) -> dict[str, str]:
    """Return what everybody is in a room, as a user sees it."""
    events = (await user.call("GET", f"/rooms/{quote(room_id)}/members"))["chunk"]
    return {event["state_key"]: event["content"]["membership"] for event in events}


async def two(federation: Federation, **options: object) -> tuple[Homeserver, Homeserver]:
    return await federation.start("hs1", **options), await federation.start("hs2", **options)


@pytest.mark.parametrize("version", ["1", "3", "6", "10", "11", "12"])
async def test_bob_joins_alices_room_and_has_all_of_its_state(federation: Federation, version: str):
    hs1, hs2 = await two(federation)
    alice, bob = await hs1.register("alice"), await hs2.register("bob")
    room_id = await alice.create_room(name="Tea", room_version=version)
    await bob.sync()

    assert await enter(bob, room_id, "hs1") == room_id

    assert await members(alice, room_id) == {"@alice:hs1": "join", "@bob:hs2": "join"}
    assert await members(bob, room_id) == {"@alice:hs1": "join", "@bob:hs2": "join"}
    answer = (await bob.sync())["rooms"]["join"][room_id]
    state = {(e["type"], e["state_key"]): e["content"] for e in answer["state"]["events"]}
    assert state["m.room.name", ""] == {"name": "Tea"}
    assert state["m.room.create", ""]["room_version"] == version
    timeline = answer["timeline"]
    assert [(e["type"], e["state_key"]) for e in timeline["events"]] == [
        ("m.room.member", "@bob:hs2")
    ]
    assert timeline["limited"]
    assert answer["summary"]["m.joined_member_count"] == 2


async def test_bob_may_speak_at_once_and_carol_joins_through_either(federation: Federation):
    hs1, hs2 = await two(federation)
    hs3 = await federation.start("hs3")
    alice, bob, carol = [
        await server.register(name)
        for server, name in ((hs1, "alice"), (hs2, "bob"), (hs3, "carol"))
    ]
    room_id = await alice.create_room()
    await enter(bob, room_id, "hs1")
    await bob.say(room_id)

    await enter(carol, room_id, "hs2")

    everybody = {"@alice:hs1": "join", "@bob:hs2": "join", "@carol:hs3": "join"}
    assert await members(carol, room_id) == everybody
    assert await members(bob, room_id) == everybody


async def test_a_second_user_of_a_server_needs_no_other_server(federation: Federation):
    hs1, hs2 = await two(federation)
    alice, bob, dora = (
        await hs1.register("alice"), await hs2.register("bob"), await hs2.register("dora"),
    )  # fmt: skip
    room_id = await alice.create_room()
    await enter(bob, room_id, "hs1")
    made = len([d for d in federation.network.log if "make_join" in d.target])

    await enter(dora, room_id)

    assert len([d for d in federation.network.log if "make_join" in d.target]) == made
    assert (await members(bob, room_id))["@dora:hs2"] == "join"


async def test_rooms_are_found_by_aliases_of_other_servers(federation: Federation):
    hs1, hs2 = await two(federation)
    alice, bob = await hs1.register("alice"), await hs2.register("bob")
    room_id = await alice.create_room(room_alias_name="tea")

    found = await bob.call("GET", f"/directory/room/{quote('#tea:hs1')}")

    assert found == {"room_id": room_id, "servers": ["hs1"]}
    assert await enter(bob, "#tea:hs1") == room_id
    assert await refused(bob, "#coffee:hs1") == (404, "M_NOT_FOUND")


async def test_the_next_server_is_asked_where_one_does_not_help(federation: Federation):
    hs1, hs2 = await two(federation)
    alice, bob = await hs1.register("alice"), await hs2.register("bob")
    evil = federation.evil()
    evil.on("GET", MAKE_JOIN, raw({"errcode": "M_NOT_FOUND", "error": "no"}, 404))
    room_id = await alice.create_room()

    await enter(bob, room_id, "gone", "evil", "hs1")

    assert (await members(alice, room_id))["@bob:hs2"] == "join"


async def test_who_is_not_invited_or_banned_stays_outside(federation: Federation):
    hs1, hs2 = await two(federation)
    alice, bob = await hs1.register("alice"), await hs2.register("bob")
    closed = await alice.create_room(preset="private_chat", room_version="11")
    with_ban = await alice.create_room()
    await alice.call("POST", f"/rooms/{quote(with_ban)}/ban", {"user_id": bob.user_id})

    assert await refused(bob, closed, "hs1") == (403, "M_FORBIDDEN")
    assert await refused(bob, with_ban, "hs1") == (403, "M_FORBIDDEN")
    assert await refused(bob, "!nothing:hs1", "hs1") == (404, "M_NOT_FOUND")
    assert (await bob.sync()).get("rooms") is None


async def test_bob_leaves_and_comes_back_to_what_the_room_has_become(
    federation: Federation, clock: ManualClock
):
    hs1, hs2 = await two(federation)
    alice, bob = await hs1.register("alice"), await hs2.register("bob")
    room_id = await alice.create_room(name="Tea")
    await enter(bob, room_id, "hs1")
    federation.network.isolate("hs2")
    clock.advance_ms(1)  # In state resolution the later of two events wins.
    await bob.leave(room_id)
    federation.network.heal()
    await alice.put_state(room_id, "m.room.name", {"name": "Coffee"})

    # A join that hs1 took for another of somebody who is in could be undone by the leave.
    assert await refused(bob, room_id, "hs1") == (502, "M_UNKNOWN")
    await pass_on(hs2, hs1, bob, room_id)
    await enter(bob, room_id, "hs1")

    name = await bob.call("GET", f"/rooms/{quote(room_id)}/state/m.room.name")
    assert name == {"name": "Coffee"}
    assert await members(bob, room_id) == {"@alice:hs1": "join", "@bob:hs2": "join"}
    await bob.say(room_id)


async def test_who_comes_back_while_another_process_writes_is_in_all_the_same(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
):
    """What the join is being built upon is not committed after all: another process was faster."""
    hs1, hs2 = await two(federation)
    alice, bob = await hs1.register("alice"), await hs2.register("bob")
    room_id = await alice.create_room()
    await enter(bob, room_id, "hs1")
    await bob.leave(room_id)
    await pass_on(hs2, hs1, bob, room_id)
    add_event, overtaken = commit.add_event, []

    async def overtaken_once(services: Services, plan: Plan, planned: PlannedEvent) -> StoredEvent:
        if services is hs2.services and not overtaken:
            plan.head.cursor.generation += 1
            overtaken.append(plan)
            raise MissingEventsError([EventId("$gone")])
        return await add_event(services, plan, planned)

    monkeypatch.setattr(commit, "add_event", overtaken_once)
    await enter(bob, room_id, "hs1")

    assert overtaken
    assert await members(bob, room_id) == {"@alice:hs1": "join", "@bob:hs2": "join"}


async def test_a_room_of_an_unknown_version_is_not_joined(federation: Federation):
    hs1 = await federation.start("hs1")
    alice = await hs1.register("alice")
    evil = federation.evil()
    room_id = await alice.create_room(room_version="11")

    answer = await evil.request(
        "hs1", "GET", f"/_matrix/federation/v1/make_join/{quote(room_id)}/@mallory:evil",
        query=[("ver", "1"), ("ver", "2")],
    )  # fmt: skip

    assert (answer.status, answer.errcode) == (400, "M_INCOMPATIBLE_ROOM_VERSION")
    assert answer.body["room_version"] == "11"


# --- restricted rooms --------------------------------------------------------------------------


async def restricted_room(alice: User, allowed: str) -> str:
    """Make a room for the members of another."""
    rule = {
        "join_rule": "restricted",
        "allow": [{"type": "m.room_membership", "room_id": allowed}],
    }
    return await alice.create_room(
        initial_state=[{"type": "m.room.join_rules", "content": rule, "state_key": ""}],
        room_version="11",
    )


@pytest.mark.spec("server-server-api#restricted-rooms")
async def test_members_of_one_room_may_join_another_by_the_word_of_its_server(
    federation: Federation,
):
    hs1, hs2 = await two(federation)
    alice, bob = await hs1.register("alice"), await hs2.register("bob")
    space = await alice.create_room()
    room_id = await restricted_room(alice, space)

    assert await refused(bob, room_id, "hs1") == (403, "M_FORBIDDEN")
    await enter(bob, space, "hs1")
    await enter(bob, room_id, "hs1")

    join = await bob.call(
        "GET", f"/rooms/{quote(room_id)}/state/m.room.member/@bob:hs2", format="event"
    )
    assert join["content"]["join_authorised_via_users_server"] == "@alice:hs1"
    stored = await hs2.services.events.get(join["event_id"])
    assert stored is not None
    assert set(stored.event.pdu["signatures"]) == {"hs1", "hs2"}


@pytest.mark.spec("server-server-api#restricted-rooms")
async def test_a_server_where_nobody_may_invite_sends_its_user_to_another(federation: Federation):
    hs1, hs2 = await two(federation)
    alice, bob, dora = (
        await hs1.register("alice"), await hs2.register("bob"), await hs2.register("dora"),
    )  # fmt: skip
    space = await alice.create_room()
    room_id = await restricted_room(alice, space)
    levels = await alice.call("GET", f"/rooms/{quote(room_id)}/state/m.room.power_levels")
    await alice.put_state(room_id, "m.room.power_levels", {**levels, "invite": 50})
    for room in (space, room_id):
        await enter(bob, room, "hs1")

    assert await refused(dora, room_id) == (403, "M_FORBIDDEN")
    await enter(dora, space, "hs1")
    await pass_on(hs2, hs1, dora, space)
    await enter(dora, room_id, "hs2")  # Her client knows of no other server.

    assert (await members(alice, room_id))["@dora:hs2"] == "join"
    assert (await members(bob, room_id))["@dora:hs2"] == "join"


async def test_a17_a_forged_voucher_lets_nobody_in(federation: Federation):
    """Mallory claims that Alice vouches for her, and brings no signature of hs1."""
    hs1 = await federation.start("hs1")
    alice = await hs1.register("alice")
    evil = federation.evil()
    space = await alice.create_room(room_version="11")
    room_id = await restricted_room(alice, space)
    made = await evil.request(
        "hs1", "GET", f"/_matrix/federation/v1/make_join/{quote(space)}/@mallory:evil",
        query=ALL_VERSIONS,
    )  # fmt: skip
    assert isinstance(made, dict)
    assert isinstance(made["event"], dict)
    asked = await evil.request(
        "hs1", "GET", f"/_matrix/federation/v1/make_join/{quote(room_id)}/@mallory:evil",
        query=ALL_VERSIONS,
    )  # fmt: skip
    assert (asked.status, asked.errcode) == (403, "M_FORBIDDEN")

    join = await signed_join(evil, hs1, room_id, {"join_authorised_via_users_server": "@alice:hs1"})
    answer = await evil.request(
        "hs1", "PUT", f"/_matrix/federation/v2/send_join/{quote(room_id)}/{quote(join.event_id)}",
        join.pdu,
    )  # fmt: skip

    assert (answer.status, answer.errcode) == (403, "M_FORBIDDEN")
    assert "@mallory:evil" not in await members(alice, room_id)


async def signed_join(evil: EvilServer, server: Homeserver, room_id: str, content: dict):
    """Return a join of Mallory as the end of a room, as if made from a template."""
    from minihs.protocol.event_assembly import EventDraft, build_event
    from minihs.protocol.event_auth import select_auth_keys
    from minihs.services.rooms.heads import load_head

    head = await load_head(server.services, room_id)
    content = {"membership": "join", **content}
    keys = select_auth_keys(
        head.room_version, "@mallory:evil", "m.room.member", "@mallory:evil", content
    )
    return build_event(
        EventDraft(
            room_id=room_id, sender="@mallory:evil", type="m.room.member", content=content,
            origin_server_ts=server.clock.now_ms(), state_key="@mallory:evil",
        ),
        room_version=head.room_version,
        depth=50,
        prev_event_ids=[end.event_id for end in head.extremities],
        auth_event_ids=[head.state.entries[key] for key in keys if key in head.state.entries],
        server_name=evil.name,
        signing_key=evil.key,
    )  # fmt: skip


# --- what is wrong with templates and answers ----------------------------------------------------


class Resident:
    """A room that exists only as what the server `hs1` of our own making says of it."""

    def __init__(self, federation: Federation, version: str = "11") -> None:
        self.server = federation.evil("hs1")
        self.room = Room(version)
        self.room_id = self.room.room_id
        self.template: dict[str, object] = {}
        self.state: list[dict] | None = None
        self.chain: list[dict] | None = None
        self.version = version
        self.server.on("GET", MAKE_JOIN, self._make_join)
        self.server.on("PUT", SEND_JOIN, self._send_join)

    @property
    def was_joined(self) -> bool:
        return bool(self.server.asked("/send_join/"))

    def current(self) -> list[dict]:
        return [self.room.events[e].pdu for e in self.room.state_of(self.room.ends).values()]

    def _make_join(self, received: Received) -> object:
        user_id = received.path["userId"]
        draft = self.room.draft(user_id, "m.room.member", {"membership": "join"}, state_key=user_id)
        event = {k: v for k, v in draft.pdu.items() if k not in ("hashes", "signatures")}
        return {"room_version": self.version, "event": {**event, **self.template}}

    def _send_join(self, _: Received) -> object:
        everything = [event.pdu for event in self.room.events.values()]
        return {
            "state": self.current() if self.state is None else self.state,
            "auth_chain": everything if self.chain is None else self.chain,
        }


@pytest.fixture
def resident(federation: Federation) -> Resident:
    return Resident(federation)


@pytest.fixture
async def bob(federation: Federation) -> User:
    hs2 = await federation.start("hs2")
    return await hs2.register("bob")


async def test_a_room_is_joined_as_it_is_told(bob: User, resident: Resident):
    resident.room.send(ALICE, "m.room.name", {"name": "Tea"}, state_key="")

    await enter(bob, resident.room_id, "hs1")

    assert await members(bob, resident.room_id) == {ALICE: "join", bob.user_id: "join"}
    assert [r.target.split("/")[4] for r in resident.server.received if "_join" in r.target] == [
        "make_join", "send_join",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ({"type": "m.room.power_levels"}, "another type"),
        ({"sender": "@dora:hs2"}, "another user as its sender"),
        ({"state_key": "@dora:hs2"}, "another user as its member"),
        ({"room_id": "!other:hs1"}, "another room"),
        ({"content": {"membership": "leave"}}, "another membership"),
        ({"content": "join"}, "no content"),
        ({"prev_events": [7]}, "what are no events"),
        ({"depth": -1}, "a depth that is none"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_s08_a_template_of_something_else_is_not_signed(
    bob: User, resident: Resident, template: dict, why: str
):
    """What is signed is the join that was asked for, or nothing."""
    resident.template = template

    status, _ = await refused(bob, resident.room_id, "hs1")

    assert status == 502, why
    assert not resident.was_joined


async def test_s08_of_a_template_only_its_place_in_the_graph_is_taken(
    bob: User, resident: Resident
):
    resident.template = {
        "content": {"membership": "join", "displayname": "Fool", "avatar_url": "mxc://evil/x"},
        "origin_server_ts": 7,
        "redacts": "$something",
        "dev.evil": True,
    }

    await enter(bob, resident.room_id, "hs1")

    (sent,) = resident.server.asked("/send_join/")
    assert isinstance(sent.content, dict)
    assert sent.content["content"] == {"membership": "join"}
    assert sent.content["origin_server_ts"] != 7
    assert {"redacts", "dev.evil"}.isdisjoint(sent.content)


async def test_s01_s02_events_that_nobody_signed_are_not_part_of_the_room(
    bob: User, resident: Resident
):
    """No signature, a wrong one, one of somebody else."""
    room = resident.room
    name = room.send(ALICE, "m.room.name", {"name": "Tea"}, state_key="")
    topic = room.send(ALICE, "m.room.topic", {"topic": "of tea"}, state_key="")
    carol = room.join("@carol:hs3")
    good = [p for p in resident.current() if p["type"] not in ("m.room.name", "m.room.topic")]
    forged = {**topic.pdu["signatures"]["hs1"]}  # type: ignore[index]
    resident.state = [
        *(p for p in good if p.get("state_key") != "@carol:hs3"),
        {**name.pdu, "signatures": {}},
        {**topic.pdu, "signatures": {"hs1": dict.fromkeys(forged, "A" * 86)}},
        {**carol.pdu, "signatures": {"evil": {"ed25519:x": "A" * 86}}},
    ]
    resident.chain = [p for p in good if p["type"] != "m.room.member" or p["sender"] == ALICE]

    await enter(bob, resident.room_id, "hs1")

    state = await bob.call("GET", f"/rooms/{quote(resident.room_id)}/state")  # type: ignore[func-returns-value]
    kinds = {event["type"] for event in state}
    assert kinds == {
        "m.room.create", "m.room.member", "m.room.power_levels", "m.room.join_rules"
    }  # fmt: skip
    assert await members(bob, resident.room_id) == {ALICE: "join", bob.user_id: "join"}


async def test_s03_changed_content_is_as_good_as_redacted(bob: User, resident: Resident):
    name = resident.room.send(ALICE, "m.room.name", {"name": "Tea"}, state_key="")
    resident.state = [
        {**pdu, "content": {"name": "Poison"}} if pdu["type"] == "m.room.name" else pdu
        for pdu in resident.current()
    ]
    resident.chain = [e.pdu for e in resident.room.events.values() if e != name]

    await enter(bob, resident.room_id, "hs1")

    response = await bob.call("GET", f"/rooms/{quote(resident.room_id)}/state/m.room.name")
    assert response == {}


def without(pdus: list[dict], kind: str) -> list[dict]:
    return [pdu for pdu in pdus if pdu["type"] != kind]


@pytest.mark.parametrize("version", ["11", "12"])
async def test_a16_what_is_no_room_is_not_joined(bob: User, federation: Federation, version: str):
    resident = Resident(federation, version)
    other = Room(version)
    other.send(ALICE, "m.room.name", {"name": "Other"}, state_key="")
    table: list[tuple[list[dict], str]] = [
        ([], "nothing"),
        (without(resident.current(), "m.room.create"), "no create event"),
        ([other.create.pdu | {"depth": 3}], "a create event that nobody signed"),
    ]
    for state, why in table:
        resident.state = resident.chain = state
        assert (await refused(bob, resident.room_id, "hs1"))[0] == 502, why
    resident.state = resident.chain = None
    resident.version = "10"
    assert (await refused(bob, resident.room_id, "hs1"))[0] == 502, "another version"
    assert (await bob.sync()).get("rooms") is None

    resident.version = version
    await enter(bob, resident.room_id, "hs1")


async def test_a_room_that_bans_bob_is_not_his(bob: User, resident: Resident):
    resident.room.send(ALICE, "m.room.member", {"membership": "ban"}, state_key=bob.user_id)
    resident.template = {
        "auth_events": [
            e.event_id for e in resident.room.events.values() if e.state_key != bob.user_id
        ],
    }

    assert (await refused(bob, resident.room_id, "hs1"))[0] == 502


@pytest.mark.parametrize(
    ("status", "errcode", "told"),
    [
        (403, "M_FORBIDDEN", (403, "M_FORBIDDEN")),
        (403, "COM.EXAMPLE.TEA_ONLY", (403, "COM.EXAMPLE.TEA_ONLY")),
        (403, "M_UNKNOWN_TOKEN", (403, "M_FORBIDDEN")),
        (403, "M_USER_DEACTIVATED", (403, "M_FORBIDDEN")),
        (400, "M_BAD_STATE", (400, "M_BAD_STATE")),
        (400, "M_UNKNOWN_TOKEN", (502, "M_UNKNOWN")),
        (400, "M_INVALID_PARAM", (502, "M_UNKNOWN")),
        (400, "M_MISSING_PARAM", (502, "M_UNKNOWN")),
        (401, "M_UNKNOWN_TOKEN", (502, "M_UNKNOWN")),
        (500, "M_UNKNOWN", (502, "M_UNKNOWN")),
    ],
)
@pytest.mark.spec("server-server-api#put_matrixfederationv2send_joinroomideventid")
async def test_refusals_are_passed_on_but_none_of_bobs_session(
    bob: User, resident: Resident, status: int, errcode: str, told: tuple[int, str]
):
    """A client that hears `M_UNKNOWN_TOKEN` logs out."""
    refusal = raw({"errcode": errcode, "error": "no"}, status)
    for method, path in (("PUT", SEND_JOIN), ("GET", MAKE_JOIN)):
        resident.server.on(method, path, refusal)
        assert await refused(bob, resident.room_id, "hs1") == told


async def test_a_join_is_asked_for_once_by_whoever_wants_it(bob: User, resident: Resident):
    import asyncio

    await asyncio.gather(*(enter(bob, resident.room_id, "hs1") for _ in range(5)))

    assert len(resident.server.asked("/make_join/")) == 1
    assert len(resident.server.asked("/send_join/")) == 1


@pytest.mark.parametrize("workers", [1, 2])
async def test_what_is_said_while_the_join_is_on_its_way_back_is_not_lost(
    federation: Federation,
    resident: Resident,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
):
    """The room has taken the join, and its answer is still under way when somebody speaks.

    Each of two processes is told something, and one of them does not wait for the answer.
    """
    import asyncio

    monkeypatch.setattr(receive, "JOIN_TIMEOUT_S", PATIENCE_S)
    hs2 = await federation.start("hs2", workers=workers)
    bob = await hs2.register("bob")
    room, server = resident.room, resident.server
    answered, said = asyncio.Event(), asyncio.Event()

    async def send_join(received: Received) -> object:
        answer = resident._send_join(received)
        assert isinstance(received.content, dict)
        join = Event.from_pdu(received.content, room.room_version)
        room.accept(join)
        answered.set()
        await said.wait()
        return answer

    server.on("PUT", SEND_JOIN, send_join)
    joining = asyncio.ensure_future(enter(bob, resident.room_id, "hs1"))
    await answered.wait()
    joined = [event for event in room.events.values() if event.state_key == bob.user_id]
    messages = [  # Neither follows the other: they come at once.
        room.send(ALICE, "m.room.message", {"msgtype": "m.text", "body": body}, prev=joined)
        for body in ("Hello!", "Welcome!")
    ]
    pushing = [
        asyncio.ensure_future(
            server.request(
                "hs2",
                "PUT",
                f"/_matrix/federation/v1/send/{number}",
                {"origin": "hs1", "origin_server_ts": 1, "pdus": [message.pdu]},
            )
        )
        for number, message in enumerate(messages)
    ]
    await asyncio.wait(pushing, timeout=0.2)  # If one were answered now, it would be lost.
    said.set()
    await joining

    async def are_answered() -> bool:
        clock.advance_ms(50)
        return all(push.done() for push in pushing)

    await until(are_answered)
    answers = await asyncio.gather(*pushing)
    assert answers == [{"pdus": {message.event_id: {}}} for message in messages]
    events = (await bob.sync())["rooms"]["join"][resident.room_id]["timeline"]["events"]
    assert {e["event_id"] for e in events[-2:]} == {message.event_id for message in messages}
