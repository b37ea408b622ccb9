"""Where events stand in the graph: what is missing, refused, or redacted too early.

S02, A01, A02, A05, A07, A08 and A12-A19 of the list of attacks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from minihs.base.randomness import Randomness
from minihs.protocol.event_assembly import EventDraft
from minihs.protocol.events import Event
from minihs.protocol.identifiers import EventId, RoomId, UserId
from minihs.protocol.room_versions import V11
from minihs.services.rooms import loose_ends, missing, missing_state
from minihs.services.rooms.history_commit import store_history
from minihs.services.rooms.judge import Judge
from minihs.services.rooms.send import send_event
from minihs.services.rooms.visibility import DUMMY_EVENT
from minihs.storage import missing_events
from minihs.storage.event_store import ACCEPTED, REJECTED, SOFT_FAILED, StoredEvent
from minihs.storage.history_writes import HistoryWrite
from tests.helpers.mirror import forge, mirror, push, refresh, serve
from tests.helpers.rooms import ALICE, MALLORY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.helpers.homeserver import Homeserver, User
    from tests.helpers.network import EvilServer, Federation
    from tests.helpers.rooms import Room

pytestmark = pytest.mark.spec("server-server-api#checks-performed-on-receipt-of-a-pdu")

API = "/_matrix/federation/v1"


def say(room: Room, body: str, **options: object) -> Event:
    return room.send(MALLORY, "m.room.message", {"body": body}, **options)  # type: ignore[arg-type]


def rename(room: Room, name: str, **options: object) -> Event:
    content = {"membership": "join", "displayname": name}
    return room.send(MALLORY, "m.room.member", content, state_key=MALLORY, **options)  # type: ignore[arg-type]


async def shown(user: User, room: Room) -> list[str]:
    """Return the ids of the room's messages, oldest first."""
    page = await user.call("GET", f"/rooms/{quote(room.room_id)}/messages", dir="f", limit="1000")
    return [e["event_id"] for e in page["chunk"] if e["type"] == "m.room.message"]


async def stored_as(hs1: Homeserver, event: Event) -> StoredEvent | None:
    """Return an event as the database has it."""
    hs1.services.events.forget(event.event_id)
    return await hs1.services.events.get(event.event_id)


async def ends(hs1: Homeserver, room: Room) -> set[str]:
    """Return the room's forward extremities."""
    rows = await hs1.services.db.fetch(
        """
        SELECT e.event_id FROM rooms r JOIN events e ON e.event_nid = ANY(r.extremities)
        WHERE r.room_id = $1
        """,
        room.room_id,
    )
    return {row[0] for row in rows}


async def refusal(hs1: Homeserver, event: Event) -> tuple[str, str, set[str]]:
    """Return rule, passage and deciding events of a refusal."""
    row = await hs1.services.db.fetchrow(
        """
        SELECT j.rule, j.passage, j.deciding
        FROM rejections j JOIN events e ON e.event_nid = j.event_nid
        WHERE e.event_id = $1
        """,
        event.event_id,
    )
    assert row is not None
    return row[0], row[1], set(row[2])


async def rejected(hs1: Homeserver, evil: EvilServer, event: Event | dict, room: Room) -> str:
    """Push an event that is rejected; return the rule."""
    if isinstance(event, dict):
        event = Event.from_pdu(event, room.room_version)
    assert await push(evil, hs1, [event]) == {event.event_id: {}}
    stored = await stored_as(hs1, event)
    assert stored is not None
    assert (stored.status, stored.order) == (REJECTED, None)
    assert stored.state_after == stored.state_before
    rule, passage, _ = await refusal(hs1, event)
    assert passage == f"rooms/{'v' + room.room_version.identifier}#authorisation-rules"
    return rule


# --- missing prev_events ------------------------------------------------------------------------


@pytest.mark.spec("server-server-api#backfilling-and-retrieving-missing-events")
async def test_what_lies_between_is_asked_for_and_shown_in_order(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    serve(evil, room)
    (last_known,) = await ends(hs1, room)
    events = [say(room, f"{n}") for n in range(6)]
    assert await push(evil, hs1, events[-1:]) == {events[-1].event_id: {}}
    assert await shown(alice, room) == [event.event_id for event in events]
    (asked,) = evil.asked("/get_missing_events/")
    assert asked.content == {
        "earliest_events": [last_known],
        "latest_events": [events[-1].event_id],
        "limit": missing.BETWEEN_EVENTS_MAX,
        "min_depth": 0,
    }
    assert not evil.asked("/state")


@pytest.mark.spec("server-server-api#post_matrixfederationv1get_missing_eventsroomid")
async def test_many_gaps_are_filled_by_a_server_that_counts_what_it_is_asked_about(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    """Dendrite counts it, and fails when that is more than the limit."""
    serve(evil, room, counts_latest=True)
    before = [room.events[EventId(event_id)] for event_id in await ends(hs1, room)]
    gaps = [say(room, f"missed {n}", prev=before) for n in range(25)]
    pushed = [say(room, f"pushed {n}", prev=[event]) for n, event in enumerate(gaps)]
    assert await push(evil, hs1, pushed) == {event.event_id: {} for event in pushed}
    assert set(await shown(alice, room)) == {e.event_id for e in (*gaps, *pushed)}
    asked = [r.content for r in evil.asked("/get_missing_events/") if isinstance(r.content, dict)]
    assert [len(content["latest_events"]) for content in asked] == [10, 10, 5]
    assert not evil.asked("/state")


@pytest.mark.spec("server-server-api#post_matrixfederationv1get_missing_eventsroomid")
async def test_a_gap_is_bridged_with_a_server_that_counts_what_it_is_asked_about(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    serve(evil, room, counts_latest=True)
    events = [say(room, f"{n}") for n in range(50)]
    assert await push(evil, hs1, events[-1:]) == {events[-1].event_id: {}}
    assert await shown(alice, room) == [event.event_id for event in events]
    assert not evil.asked("/state")


async def test_what_stays_missing_drops_an_event_until_it_is_there(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    lost, found = say(room, "lost"), say(room, "found")
    assert await push(evil, hs1, [found]) == {found.event_id: {}}
    assert await stored_as(hs1, found) is None
    assert await push(evil, hs1, [lost]) == {lost.event_id: {}}
    assert await push(evil, hs1, [found]) == {found.event_id: {}}
    assert await shown(alice, room) == [lost.event_id, found.event_id]


async def test_events_between_that_are_bad_are_dropped_with_what_follows_them(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    float_event = room.draft(MALLORY, "m.room.message", {"body": "bad"})
    bad = forge(float_event, content={"body": "float", "n": 1.5})
    good = say(room, "good")
    after_bad = Event.from_pdu(forge(good, prev_events=["$unknown"]), room.room_version)
    evil.on("POST", API + "/get_missing_events/{roomId}", {"events": [bad]})
    assert await push(evil, hs1, [after_bad]) == {after_bad.event_id: {}}
    assert await stored_as(hs1, after_bad) is None
    assert not evil.asked("/state")


async def test_a_long_gap_is_bridged_by_the_state_at_its_far_end(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    serve(evil, room, between=2)
    before = say(room, "before")
    new_name = rename(room, "Mallory the Second")
    far, near, last = (say(room, body) for body in ("far", "near", "last"))
    assert await push(evil, hs1, [last]) == {last.event_id: {}}
    assert await shown(alice, room) == [far.event_id, near.event_id, last.event_id]
    assert [r.query for r in evil.asked("/state_ids/")] == [{"event_id": new_name.event_id}]
    path = f"/rooms/{quote(room.room_id)}/state/m.room.member/{quote(MALLORY)}"
    assert (await alice.call("GET", path))["displayname"] == "Mallory the Second"
    outlier = await stored_as(hs1, new_name)
    assert outlier is not None
    assert outlier.order is None
    assert await stored_as(hs1, before) is None
    # What we had stays an end: nothing has told us what became of it.
    assert len(await ends(hs1, room)) == 2
    answer = await alice.say(room.room_id, "and now")
    assert await ends(hs1, room) == {answer}


async def test_what_comes_after_its_followers_is_no_end_of_the_graph(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    before = await ends(hs1, room)
    serve(evil, room, between=1)
    hidden, between, last = (say(room, body) for body in ("hidden", "between", "last"))
    assert await push(evil, hs1, [last]) == {last.event_id: {}}
    assert await ends(hs1, room) == before | {last.event_id}
    assert await push(evil, hs1, [hidden]) == {hidden.event_id: {}}
    assert await ends(hs1, room) == {last.event_id}
    assert set(await shown(alice, room)) == {e.event_id for e in (hidden, between, last)}


async def test_the_gaps_of_a_room_are_read_once_for_all_events_that_come_together(
    hs1: Homeserver, evil: EvilServer, room: Room, monkeypatch: pytest.MonkeyPatch
):
    readings = 0

    async def list_gaps(*args: object) -> object:
        nonlocal readings
        readings += 1
        return await read(*args)  # type: ignore[arg-type]  # what it takes

    read = missing_events.list_gaps
    monkeypatch.setattr(missing_events, "list_gaps", list_gaps)
    tips = [room.draft(MALLORY, "m.room.message", {"body": f"{n}"}) for n in range(10)]
    assert await push(evil, hs1, tips) == {event.event_id: {} for event in tips}
    assert await ends(hs1, room) >= {event.event_id for event in tips}
    assert readings == 1


async def test_A19_an_endless_gap_is_not_followed(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    answers = serve(evil, room)
    events = [say(room, f"{n}") for n in range(300)]
    other_id = await second_room(hs1, alice)
    other = await mirror(hs1, other_id)
    there = [other.join(MALLORY), say(other, "there")]
    results = await push(evil, hs1, [events[-1], *there])
    assert results == {event.event_id: {} for event in (events[-1], *there)}
    assert len(evil.asked("/get_missing_events/")) == missing.BETWEEN_ROUNDS_MAX
    assert len(evil.asked("/state_ids/")) == 1
    fetched = missing.BETWEEN_ROUNDS_MAX * missing.BETWEEN_EVENTS_MAX
    ids = [event.event_id for event in events[-fetched - 1 :]]
    assert await shown(alice, room) == ids
    # A server that always has something more gets no further.
    answers.hidden.update(event.event_id for event in events[: -fetched - 1])
    assert await push(evil, hs1, [events[-1]]) == {events[-1].event_id: {}}
    assert len(evil.asked("/get_missing_events/")) == missing.BETWEEN_ROUNDS_MAX


async def test_A13_a_state_that_lacks_something_replaces_nothing(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    """Evil gives a state in which Alice has no power, and nobody else is there."""
    await alice.put_state(room.room_id, "m.room.topic", {"topic": "tea"})
    await refresh(room, hs1)
    answers = serve(evil, room, between=1)
    hidden, between, last = (say(room, body) for body in ("hidden", "between", "last"))

    def small(request: object) -> object:
        whole = answers.state_before(hidden.event_id)
        keys = {("m.room.create", ""), ("m.room.member", MALLORY), ("m.room.power_levels", "")}
        ids = [event_id for event_id in whole if room.events[event_id].key in keys]
        return {"pdu_ids": ids, "auth_chain_ids": answers.auth_chain(ids)}

    evil.on("GET", API + "/state_ids/{roomId}", small)
    assert await push(evil, hs1, [last]) == {last.event_id: {}}
    assert await shown(alice, room) == [between.event_id, last.event_id]
    await alice.say(room.room_id, "still here")
    path = f"/rooms/{quote(room.room_id)}/state"
    assert await alice.call("GET", f"{path}/m.room.topic/") == {"topic": "tea"}
    member = await alice.call("GET", f"{path}/m.room.member/{quote(ALICE)}")
    assert member["membership"] == "join"


@pytest.mark.parametrize("what", ["nothing", "no create", "two of a key", "messages"])
async def test_A13_a_state_that_is_none_is_not_believed(
    hs1: Homeserver, evil: EvilServer, room: Room, what: str
):
    answers = serve(evil, room, between=1)
    old = room.current("m.room.member", MALLORY)
    renamed = rename(room, "Mal")
    between, last = say(room, "between"), say(room, "last")
    assert old is not None

    def wrong(_request: object) -> object:
        ids: list[str] = list(answers.state_before(between.event_id))
        match what:
            case "nothing":
                ids = []
            case "no create":
                ids.remove(room.create.event_id)
            case "two of a key":
                ids += [renamed.event_id, old.event_id]
            case _:
                ids += ["$unknown", between.event_id]
        return {"pdu_ids": ids, "auth_chain_ids": []}

    evil.on("GET", API + "/state_ids/{roomId}", wrong)
    assert await push(evil, hs1, [last]) == {last.event_id: {}}
    assert await stored_as(hs1, last) is None
    stored = await stored_as(hs1, between)
    assert stored is None or stored.order is None


async def test_A15_an_outlier_is_shown_only_when_it_has_its_place(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    serve(evil, room, between=1)
    hidden = say(room, "hidden")
    between, last = say(room, "between"), say(room, "last")
    await push(evil, hs1, [last])
    outlier = await stored_as(hs1, hidden)
    assert outlier is not None
    path = f"/rooms/{quote(room.room_id)}/event/{quote(hidden.event_id)}"
    assert (await alice.request("GET", path)).status == 404
    assert hidden.event_id not in await shown(alice, room)
    assert await push(evil, hs1, [hidden]) == {hidden.event_id: {}}
    assert (await alice.call("GET", path))["content"] == {"body": "hidden"}
    again = await stored_as(hs1, hidden)
    assert again is not None
    assert (again.event_nid, again.status) == (outlier.event_nid, ACCEPTED)
    del between


# --- auth events --------------------------------------------------------------------------------


async def with_hidden_auth_event(room: Room) -> tuple[Event, Event]:
    """Return an event that is nobody's prev_event, and one that rests upon it."""
    before = list(room.ends)
    name = rename(room, "hidden")
    event = say(room, "resting")
    pdu = forge(event, prev_events=[e.event_id for e in before])
    return name, Event.from_pdu(pdu, room.room_version)


@pytest.mark.parametrize("endpoint", ["event_auth", "event"])
async def test_auth_events_that_we_lack_are_asked_for(
    hs1: Homeserver, evil: EvilServer, room: Room, endpoint: str
):
    name, event = await with_hidden_auth_event(room)
    answers = serve(evil, room)
    answers.room.events[event.event_id] = event
    if endpoint == "event":
        evil.on("GET", API + "/event_auth/{roomId}/{eventId}", {"auth_chain": []})
    # By its auth events it is allowed, and by the state before it, too.
    assert await push(evil, hs1, [event]) == {event.event_id: {}}
    outlier = await stored_as(hs1, name)
    assert outlier is not None
    assert (outlier.status, outlier.order) == (ACCEPTED, None)
    stored = await stored_as(hs1, event)
    assert stored is not None
    assert stored.status == ACCEPTED
    assert bool(evil.asked("/event/")) == (endpoint == "event")


async def test_without_its_auth_events_nothing_is_said_about_an_event(
    hs1: Homeserver, evil: EvilServer, room: Room
):
    name, event = await with_hidden_auth_event(room)
    assert await push(evil, hs1, [event]) == {event.event_id: {}}
    assert await stored_as(hs1, event) is None
    assert await push(evil, hs1, [name, event]) == {name.event_id: {}, event.event_id: {}}


async def test_A01_auth_events_of_another_room_are_rejected(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    other = await mirror(hs1, await second_room(hs1, alice))
    join = other.join(MALLORY)
    await push(evil, hs1, [join])
    event = room.draft(MALLORY, "m.room.message", {"body": "foreign"})
    pdu = forge(event, auth_events=[*event.auth_event_ids[:1], join.event_id])
    assert await rejected(hs1, evil, pdu, room) == "auth_events.room_id"


@pytest.mark.parametrize("version", ["2", "11", "12"])
@pytest.mark.parametrize("given", [True, False])
async def test_A01_prev_events_of_another_room_let_no_state_of_it_in(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, given: bool
):
    """In Mallory's own room, which hs1 knows, all power is hers."""
    there = await mirror(hs1, await second_room(hs1, alice, version=room.room_version.identifier))
    await push(evil, hs1, [there.join(MALLORY)])
    creators = room.room_version.creators_are_privileged
    levels = {"users": {MALLORY: 90} if creators else {ALICE: 100, MALLORY: 90}}
    await alice.put_state(there.room_id, "m.room.power_levels", levels)
    await refresh(there, hs1)
    path = f"/rooms/{quote(room.room_id)}/state"
    before = await alice.call("GET", path)
    answers = serve(evil, room)
    if not given:
        evil.on("GET", API + "/state_ids/{roomId}", {"pdu_ids": [], "auth_chain_ids": []})
    foreign = there.ends[0].event_id
    references = [[foreign, {}]] if room.room_version.event_id_source == "server" else [foreign]
    event = room.draft(MALLORY, "m.room.message", {"body": "from elsewhere"})
    smuggled = Event.from_pdu(forge(event, prev_events=references), room.room_version)
    answers.room.events[smuggled.event_id] = smuggled
    answers.room.events.setdefault(foreign, there.ends[0])
    answers.room.state_after[foreign] = there.state_after[foreign]
    name = room.draft(MALLORY, "m.room.name", {"name": "Mallory's"}, state_key="", prev=[])
    pdu = forge(name, {"prev_events": references, "auth_events": event.pdu["auth_events"]})
    renamed = Event.from_pdu(pdu, room.room_version)
    await push(evil, hs1, [smuggled, renamed])
    for pushed in (smuggled, renamed):
        assert await stored_as(hs1, pushed) is None or (await stored_as(hs1, pushed)).order is None
    assert await alice.call("GET", path) == before
    assert foreign not in await ends(hs1, room)


@pytest.mark.parametrize("version", ["1", "2"])
async def test_A01_an_id_that_an_event_of_another_room_has_is_taken(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    there = await mirror(hs1, await second_room(hs1, alice, version=room.room_version.identifier))
    await push(evil, hs1, [there.join(MALLORY)])
    event = there.draft(MALLORY, "m.room.message", {"body": "there"})
    known = Event.from_pdu(forge(event, event_id="$same:evil"), there.room_version)
    assert await push(evil, hs1, [known]) == {known.event_id: {}}
    event = room.draft(MALLORY, "m.room.message", {"body": "here"})
    results = await push(evil, hs1, [forge(event, event_id="$same:evil")])
    assert "another room" in results[known.event_id]["error"]
    stored = await stored_as(hs1, known)
    assert stored is not None
    assert stored.event.content == {"body": "there"}


async def test_A02_what_rests_upon_a_rejected_event_is_rejected(
    hs1: Homeserver, evil: EvilServer, room: Room
):
    serve(evil, room)
    levels = room.draft(MALLORY, "m.room.power_levels", {"users": {MALLORY: 100}}, state_key="")
    assert await rejected(hs1, evil, levels, room) == "event.level"
    event = room.draft(MALLORY, "m.room.topic", {"topic": "mine"}, state_key="")
    auth = [e for e in event.auth_event_ids if room.events[e].type == "m.room.member"]
    pdu = forge(event, auth_events=[levels.event_id, *auth])
    resting = Event.from_pdu(pdu, room.room_version)
    assert await rejected(hs1, evil, resting, room) == "auth_events.rejected"
    assert (await refusal(hs1, resting))[2] == {levels.event_id}


async def test_A02_also_if_it_is_an_outlier(hs1: Homeserver, evil: EvilServer, room: Room):
    levels = room.draft(MALLORY, "m.room.power_levels", {"users": {MALLORY: 100}}, state_key="")
    await rejected(hs1, evil, levels, room)
    join = room.current("m.room.member", MALLORY)
    assert join is not None
    content = {"membership": "join", "displayname": "outlier"}
    named = room.draft(MALLORY, "m.room.member", content, state_key=MALLORY)
    rules = room.current("m.room.join_rules")
    assert rules is not None
    auth = [levels.event_id, rules.event_id, join.event_id]
    outlier = Event.from_pdu(forge(named, auth_events=auth), room.room_version)
    current_levels = room.current("m.room.power_levels")
    assert current_levels is not None
    event = room.draft(MALLORY, "m.room.message", {"body": "resting"})
    auth = [current_levels.event_id, outlier.event_id]
    resting = Event.from_pdu(forge(event, auth_events=auth), room.room_version)
    chain = {"auth_chain": [e.pdu for e in (current_levels, join, rules, levels, outlier)]}
    evil.on("GET", API + "/event_auth/{roomId}/{eventId}", chain)
    assert await rejected(hs1, evil, resting, room) == "auth_events.rejected"
    stored = await stored_as(hs1, outlier)
    assert stored is not None
    assert (stored.status, stored.order) == (REJECTED, None)
    # A good event that follows the rejected one is accepted, and is then the only end.
    event = room.draft(MALLORY, "m.room.message", {"body": "good"})
    good = Event.from_pdu(forge(event, prev_events=[resting.event_id]), room.room_version)
    assert await push(evil, hs1, [good]) == {good.event_id: {}}
    assert await ends(hs1, room) == {good.event_id}


@pytest.mark.spec("rooms/v12#authorisation-rules")
async def test_A05_creators_have_no_level_and_the_create_event_is_not_named(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    levels = {"users": {MALLORY: 50}}
    await alice.put_state(room.room_id, "m.room.power_levels", levels)
    await refresh(room, hs1)
    content = {"users": {MALLORY: 50, ALICE: 0}}
    event = room.draft(MALLORY, "m.room.power_levels", content, state_key="")
    assert await rejected(hs1, evil, event, room) == "power_levels.creators"
    event = room.draft(MALLORY, "m.room.message", {"body": "named"})
    auth = [*event.auth_event_ids[:-1], room.create.event_id]
    assert await rejected(hs1, evil, forge(event, auth_events=auth), room) in (
        "auth_events.selection",
        "auth_events.duplicate",
    )


@pytest.mark.parametrize("version", ["11", "12"])
async def test_A05_a_room_is_created_once(hs1: Homeserver, evil: EvilServer, room: Room):
    content = {"room_version": room.room_version.identifier, "additional_creators": [MALLORY]}
    event = room.draft(MALLORY, "m.room.create", content, state_key="", prev=[])
    pdu = forge(event, room_id=room.room_id)
    results = await push(evil, hs1, [pdu])
    assert all("error" in result for result in results.values())
    assert await ends(hs1, room) == {end.event_id for end in room.ends}


@pytest.mark.spec("rooms/v12#state-resolution")
@pytest.mark.parametrize("version", ["11", "12"])
@pytest.mark.parametrize("seed", range(8))
async def test_A06_a_ban_stays_in_whatever_order_the_rest_arrives(
    federation: Federation, hs1: Homeserver, alice: User, evil: EvilServer, room: Room, seed: int
):
    """Mallory, a moderator, does what she can beside her ban; Carol, who saw it, builds upon it."""
    chance = Randomness(seed)
    hs2 = federation.evil("hs2")
    carol = "@carol:hs2"
    join = room.join(carol)
    assert await push(hs2, hs1, [join]) == {join.event_id: {}}
    first = {} if room.room_version.creators_are_privileged else {ALICE: 100}
    levels = {"users": {**first, MALLORY: 50, carol: 50}, "ban": 50}
    await alice.put_state(room.room_id, "m.room.power_levels", levels)
    await refresh(room, hs1)
    fork = list(room.ends)
    await alice.call("POST", f"/rooms/{quote(room.room_id)}/ban", {"user_id": MALLORY})
    await alice.put_state(room.room_id, "m.room.topic", {"topic": "tea"})
    await refresh(room, hs1)
    beside = fork
    grabbed = {**levels, "users_default": 40, "ban": 40}
    made: list[Event] = []
    for kind, content, state_key in (
        ("m.room.topic", {"topic": "spam"}, ""),
        ("m.room.power_levels", grabbed, ""),
        ("m.room.member", {"membership": "ban"}, "@dave:hs3"),
        ("m.room.member", {"membership": "join", "displayname": "me"}, MALLORY),
        ("m.room.power_levels", levels, ""),
    ):
        event = room.send(MALLORY, kind, content, state_key=state_key, prev=beside)
        beside = [event]
        made.append(event)
    carols = [
        room.send(carol, "m.room.message", {"body": f"{n}"}, prev=[end])
        for n, end in enumerate(made)
    ]
    serve(evil, room)
    serve(hs2, room)
    events = [(evil, e) for e in made] + [(hs2, e) for e in carols]
    events.sort(key=lambda _: chance.between(0, 2**30))
    for server, event in [*events, *events]:
        assert (await push(server, hs1, [event])).get(event.event_id) == {}
    merged = room.send(carol, "m.room.message", {"body": "both"}, prev=list(room.ends))
    assert await push(hs2, hs1, [merged]) == {merged.event_id: {}}
    path = f"/rooms/{quote(room.room_id)}/state/m.room"
    assert (await alice.call("GET", f"{path}.member/{quote(MALLORY)}"))["membership"] == "ban"
    assert await alice.call("GET", f"{path}.topic/") == {"topic": "tea"}
    assert (await alice.call("GET", f"{path}.power_levels/")).get("users_default", 0) == 0
    entries = {event["event_id"] for event in await alice.call("GET", path.removesuffix("/m.room"))}
    assert entries == set(room.state_of([merged]).values())


async def test_A07_an_auth_chain_is_bounded(
    hs1: Homeserver, evil: EvilServer, room: Room, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(missing, "AUTH_CHAIN_MAX", 20)
    before = list(room.ends)
    for n in range(60):
        rename(room, f"{n}")
    event = say(room, "bomb")
    pdu = forge(event, prev_events=[e.event_id for e in before])
    bomb = Event.from_pdu(pdu, room.room_version)
    serve(evil, room).room.events[bomb.event_id] = bomb
    count = "SELECT count(*) FROM events"
    rows = await hs1.services.db.fetchval(count)
    assert await push(evil, hs1, [bomb]) == {bomb.event_id: {}}
    assert await stored_as(hs1, bomb) is None
    assert await hs1.services.db.fetchval(count) == rows
    assert len(evil.asked("/event/")) <= missing_state.SINGLE_EVENTS_MAX


async def test_A08_many_ends_are_merged(hs1: Homeserver, alice: User, evil: EvilServer, room: Room):
    base = list(room.ends)
    tips = [say(room, f"{n}", prev=base) for n in range(100)]
    for start in (0, 50):
        await push(evil, hs1, tips[start : start + 50])
    assert len(await ends(hs1, room)) == 100
    for n in range(12):
        await alice.say(room.room_id, f"{n}")
    assert len(await ends(hs1, room)) == 1
    assert len(await shown(alice, room)) == 112


async def test_A08_where_nobody_speaks_the_ends_are_tied_by_events_that_nobody_sees(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    base = list(room.ends)
    tips = [say(room, f"{n}", prev=base) for n in range(45)]
    await push(evil, hs1, tips)
    await alice.sync()
    await loose_ends.tie_loose_ends(hs1.services)
    left = await ends(hs1, room)
    assert len(left) <= loose_ends.ENDS_MAX
    (tie,) = left - {tip.event_id for tip in tips}
    stored = await hs1.services.events.get(EventId(tie))
    assert stored is not None
    assert (stored.event.type, stored.event.content) == (DUMMY_EVENT, {})
    assert await shown(alice, room) == [tip.event_id for tip in tips]
    page = await alice.call("GET", f"/rooms/{quote(room.room_id)}/messages", dir="b", limit="3")
    assert [event["event_id"] for event in page["chunk"]] == [
        tip.event_id for tip in reversed(tips[-3:])
    ]
    path = f"/rooms/{quote(room.room_id)}/event/{quote(tie)}"
    assert (await alice.request("GET", path)).status == 404
    assert DUMMY_EVENT not in str(await alice.sync())
    # There is nothing more to do, and where nobody may speak, nothing is done.
    await loose_ends.tie_loose_ends(hs1.services)
    assert await ends(hs1, room) == left


async def test_A08_where_nobody_may_speak_they_stay_loose(
    hs1: Homeserver, alice: User, evil: EvilServer
):
    room = await mirror(hs1, await alice.create_room(room_version="11"))
    await push(evil, hs1, [room.join(MALLORY)])
    levels = {"users": {MALLORY: 100, ALICE: 0}, "events_default": 50}
    await alice.put_state(room.room_id, "m.room.power_levels", levels)
    await refresh(room, hs1)
    base = list(room.ends)
    await push(evil, hs1, [say(room, f"{n}", prev=base) for n in range(20)])
    await loose_ends.tie_loose_ends(hs1.services)
    assert len(await ends(hs1, room)) == 20


async def test_A14_redactions_of_what_must_stay_do_nothing(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    other = await mirror(hs1, await second_room(hs1, alice))
    elsewhere = await alice.say(other.room_id)
    path = f"/rooms/{quote(room.room_id)}/event"
    topic = await alice.put_state(room.room_id, "m.room.topic", {"topic": "tea"})
    await refresh(room, hs1)
    for target in (room.create.event_id, elsewhere, topic, "$unknown"):
        event = room.send(MALLORY, "m.room.redaction", {"redacts": target})
        assert await push(evil, hs1, [event]) == {event.event_id: {}}
    assert (await alice.call("GET", f"{path}/{quote(topic)}"))["content"] == {"topic": "tea"}
    content = (await alice.call("GET", f"{path}/{quote(room.create.event_id)}"))["content"]
    assert content["room_version"] == "12"
    other_path = f"/rooms/{quote(other.room_id)}/event/{quote(elsewhere)}"
    assert (await alice.call("GET", other_path))["content"]["body"] == "hello"


@pytest.mark.parametrize("version", ["10", "11"])
async def test_A14_nobody_redacts_in_the_rooms_of_others(hs1: Homeserver, alice: User, room: Room):
    """Bob has all power in his room, and names an event of Alice's there."""
    said = await alice.say(room.room_id)
    bob = await hs1.register("bob")
    await bob.join(room.room_id)
    own = await bob.create_room(room_version=room.room_version.identifier)
    draft = EventDraft(
        room_id=RoomId(own),
        sender=UserId(bob.user_id),
        type="m.room.redaction",
        content={},
        origin_server_ts=1,
        redacts=EventId(said),
    )
    await send_event(hs1.services, draft)
    path = f"/rooms/{quote(room.room_id)}/event/{quote(said)}"
    for _ in range(2):  # From memory, and from the database.
        assert (await alice.call("GET", path))["content"]["body"] == "hello"
        hs1.services.events.forget(EventId(said))


@pytest.mark.parametrize("version", ["2"])
async def test_A14_redactions_of_each_other_come_to_an_end(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    event = room.draft(MALLORY, "m.room.redaction", {})
    ids = ("$one:evil", "$two:evil")
    pdus = [forge(event, event_id=own, redacts=other) for own, other in (ids, reversed(ids))]
    assert await push(evil, hs1, pdus) == {event_id: {} for event_id in ids}
    for own, other in (ids, reversed(ids)):
        path = f"/rooms/{quote(room.room_id)}/event/{quote(own)}"
        assert (await alice.call("GET", path))["unsigned"]["redacted_because"]["event_id"] == other


@pytest.mark.spec("rooms/v11#handling-redactions")
@pytest.mark.parametrize("version", ["10", "11", "12"])
@pytest.mark.parametrize("by", ["same server", "power", "nobody"])
async def test_redactions_that_come_before_their_events(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, by: str
):
    bob = await hs1.register("bob")
    await bob.join(room.room_id)
    if by == "power":
        users = (
            {MALLORY: 50}
            if room.room_version.creators_are_privileged
            else ({ALICE: 100, MALLORY: 50})
        )
        await alice.put_state(room.room_id, "m.room.power_levels", {"users": users})
    await refresh(room, hs1)
    if by == "same server":
        target = room.send(MALLORY, "m.room.message", {"body": "regretted"})
    else:  # Of a user of a third server, whose event comes late.
        join = room.join("@carol:hs2")
        target = room.send("@carol:hs2", "m.room.message", {"body": "regretted"})
        hs2 = type(evil)(evil.network, "hs2")
        await push(hs2, hs1, [join])
    before = [room.events[e] for e in target.prev_event_ids]
    content = {"redacts": target.event_id} if room.room_version.redacts_is_in_content else {}
    redaction = room.send(
        MALLORY, "m.room.redaction", content, prev=before, redacts=target.event_id
    )
    assert await push(evil, hs1, [redaction]) == {redaction.event_id: {}}
    assert await push(evil, hs1, [target]) == {target.event_id: {}}
    for _ in range(2):  # From memory, and from the database.
        stored = await hs1.services.events.get(target.event_id)
        assert stored is not None
        assert stored.redacted_by == (None if by == "nobody" else redaction.event_id)
        hs1.services.events.forget(target.event_id)
    path = f"/rooms/{quote(room.room_id)}/event/{quote(target.event_id)}"
    expected = {"body": "regretted"} if by == "nobody" else {}
    assert (await alice.call("GET", path))["content"] == expected


@pytest.mark.spec("rooms/v11#handling-redactions")
async def test_a_redaction_waits_for_its_event_to_find_its_place(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    base = list(room.ends)
    serve(evil, room, between=1)
    hidden = say(room, "hidden")
    say(room, "between")
    last = say(room, "last")
    content = {"redacts": hidden.event_id}
    redaction = room.send(MALLORY, "m.room.redaction", content, prev=base)
    for event in (redaction, last, hidden):  # The second brings the third as an outlier.
        assert await push(evil, hs1, [event]) == {event.event_id: {}}
    path = f"/rooms/{quote(room.room_id)}/event/{quote(hidden.event_id)}"
    for _ in range(2):  # From memory, and from the database.
        assert (await alice.call("GET", path))["content"] == {}
        hs1.services.events.forget(hidden.event_id)


async def test_an_event_that_another_process_has_just_stored_keeps_its_number(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, monkeypatch: pytest.MonkeyPatch
):
    """What is known is read before the other process stores the event as an outlier."""
    event = say(room, "twice")
    number = 2**40
    load = Judge._load

    async def load_too_early(judge: Judge, events: Sequence[Event]) -> None:
        await load(judge, events)
        monkeypatch.undo()
        other = StoredEvent(event, number)
        await store_history(hs1.services, judge.head.cursor.room_nid, [HistoryWrite(other)])
        hs1.services.events.forget(event.event_id)

    monkeypatch.setattr(Judge, "_load", load_too_early)
    assert await push(evil, hs1, [event]) == {event.event_id: {}}
    stored = await stored_as(hs1, event)
    assert stored is not None
    assert (stored.event_nid, stored.status) == (number, ACCEPTED)
    assert await ends(hs1, room) == {event.event_id}
    await alice.say(room.room_id, "after it")


@pytest.mark.parametrize("version", ["9"])
async def test_A16_the_room_version_is_that_of_our_create_event(
    hs1: Homeserver, evil: EvilServer, room: Room
):
    """In version 9 a redaction keeps `origin`, so it is signed; since 11 it is not."""
    event = room.draft(MALLORY, "m.room.message", {"body": "other rules"})
    as_v11 = Event.from_pdu(event.pdu, V11)
    pdu = forge(as_v11, origin="evil", room_version="11")
    results = await push(evil, hs1, [pdu])
    assert all("wrong signature" in result["error"] for result in results.values())
    assert len(results) == 1


@pytest.mark.spec("rooms/v8#authorisation-rules")
@pytest.mark.parametrize("signers", [["evil"], ["evil", "hs1"]])
async def test_A17_who_vouches_for_a_join_must_sign_it(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, signers: list[str]
):
    rules = {
        "join_rule": "restricted",
        "allow": [{"type": "m.room_membership", "room_id": "!other:hs1"}],
    }
    await alice.put_state(room.room_id, "m.room.join_rules", rules)
    await refresh(room, hs1)
    eve = "@eve:evil"
    content = {"membership": "join", "join_authorised_via_users_server": ALICE}
    draft = room.draft(eve, "m.room.member", content, state_key=eve)
    pdu = forge(draft, signers=signers)  # The key of hs1 that we have here is not the true one.
    event = Event.from_pdu(pdu, room.room_version)
    assert "signature" in (await push(evil, hs1, [event]))[event.event_id]["error"]
    assert await stored_as(hs1, event) is None


@pytest.mark.spec("server-server-api#soft-failure")
async def test_A18_soft_failed_events_are_kept_but_not_shown(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    base = list(room.ends)
    await alice.call("POST", f"/rooms/{quote(room.room_id)}/ban", {"user_id": MALLORY})
    await alice.sync()
    evasion = say(room, "evasion", prev=base)
    name = rename(room, "evasive", prev=[evasion])
    before = await ends(hs1, room)
    results = await push(evil, hs1, [evasion, name])
    assert results == {evasion.event_id: {}, name.event_id: {}}
    for event in (evasion, name):
        stored = await stored_as(hs1, event)
        assert stored is not None
        assert (stored.status, stored.order, stored.position) == (SOFT_FAILED, None, None)
        path = f"/rooms/{quote(room.room_id)}/event/{quote(event.event_id)}"
        assert (await alice.request("GET", path)).status == 404
    assert await ends(hs1, room) == before
    assert "rooms" not in await alice.sync()
    assert await shown(alice, room) == []
    rule, _, deciding = await refusal(hs1, evasion)
    assert rule == "sender.not-joined"
    ban = await current_member(hs1, room, MALLORY)
    assert ban in deciding
    # What we send next does not name it.
    answer = await alice.say(room.room_id, "good")
    sent = await hs1.services.events.get(EventId(answer))
    assert sent is not None
    assert set(sent.event.prev_event_ids) == before
    # A repetition changes nothing.
    assert await push(evil, hs1, [evasion]) == {evasion.event_id: {}}
    assert await shown(alice, room) == [answer]


@pytest.mark.spec("server-server-api#soft-failure")
async def test_A18_state_after_a_soft_failed_event_counts_where_others_build_upon_it(
    federation: Federation, hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    carol = "@carol:hs2"
    hs2 = federation.evil("hs2")
    join = room.join(carol)
    assert await push(hs2, hs1, [join]) == {join.event_id: {}}
    base = list(room.ends)
    await alice.call("POST", f"/rooms/{quote(room.room_id)}/ban", {"user_id": MALLORY})
    name = rename(room, "evasive", prev=base)
    await push(evil, hs1, [name])
    event = room.send(carol, "m.room.message", {"body": "I saw it"}, prev=[name])
    assert await push(hs2, hs1, [event]) == {event.event_id: {}}
    stored, soft_failed = await stored_as(hs1, event), await stored_as(hs1, name)
    assert stored is not None
    assert soft_failed is not None
    assert stored.status == ACCEPTED
    assert stored.state_before == soft_failed.state_after
    before = await hs1.services.states.get(stored.state_before or 0)
    assert before.get("m.room.member", MALLORY) == name.event_id
    # Mallory stays banned, whatever was built upon.
    member = await alice.call(
        "GET", f"/rooms/{quote(room.room_id)}/state/m.room.member/{quote(MALLORY)}"
    )
    assert member["membership"] == "ban"
    assert await shown(alice, room) == [event.event_id]


async def test_rejected_events_are_known_when_they_come_again(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    name = room.draft(MALLORY, "m.room.name", {"name": "mine"}, state_key="")
    assert await rejected(hs1, evil, name, room) == "event.level"
    assert await rejected(hs1, evil, name, room) == "event.level"
    rule, _, deciding = await refusal(hs1, name)
    assert rule == "event.level"
    assert deciding == set(name.auth_event_ids)
    path = f"/rooms/{quote(room.room_id)}"
    assert (await alice.request("GET", f"{path}/event/{quote(name.event_id)}")).status == 404
    assert (await alice.request("GET", f"{path}/state/m.room.name/")).status == 404
    assert (await alice.sync()).get("rooms", {}).get("join", {}) == {}


async def test_what_the_state_before_forbids_is_rejected(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    await alice.call("POST", f"/rooms/{quote(room.room_id)}/ban", {"user_id": MALLORY})
    draft = room.draft(MALLORY, "m.room.message", {"body": "I know I am banned"})
    pdu = forge(draft, prev_events=sorted(await ends(hs1, room)))
    assert await rejected(hs1, evil, pdu, room) == "sender.not-joined"


# --- every way on which an event can come --------------------------------------------------------


def unsigned_by_its_sender(room: Room) -> Event:
    """Return a state event of Alice that Mallory made."""
    draft = room.draft(ALICE, "m.room.power_levels", {"users": {MALLORY: 100}}, state_key="")
    pdu = forge(draft, signers=["evil"])
    event = Event.from_pdu(pdu, room.room_version)
    room.events[event.event_id] = event
    before = room.state_of(room.ends)
    room.state_after[event.event_id] = {**before, event.key: event.event_id}
    room.ends = [event]
    return event


WAYS: Sequence[str] = ("get_missing_events", "event", "state", "event_auth")


@pytest.mark.spec("server-server-api#validating-hashes-and-signatures-on-received-events")
@pytest.mark.parametrize("way", WAYS)
async def test_S02_signatures_are_checked_on_every_way(
    hs1: Homeserver,
    evil: EvilServer,
    room: Room,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
):
    base = list(room.ends)
    forged = unsigned_by_its_sender(room)
    event = say(room, "resting upon it")
    if way in ("event", "state"):
        say(room, "hidden")
        say(room, "between")
        last = say(room, "last")
        serve(evil, room, between=1)
        if way == "state":
            monkeypatch.setattr(missing_state, "SINGLE_EVENTS_MAX", 0)
    elif way == "event_auth":
        pdu = forge(event, prev_events=[e.event_id for e in base])
        last = Event.from_pdu(pdu, room.room_version)
        room.events[last.event_id] = last
        serve(evil, room)
    else:
        last = event
        serve(evil, room)
    await push(evil, hs1, [last])
    assert evil.asked(f"/{way}/"), evil.received
    assert await stored_as(hs1, forged) is None
    assert await stored_as(hs1, last) is None


# --- help ---------------------------------------------------------------------------------------


async def second_room(hs1: Homeserver, alice: User, version: str = "12") -> str:
    hs1.clock.advance_ms(1)  # type: ignore[attr-defined]  # a manual one; else it were the same room
    return await alice.create_room(room_version=version)


async def current_member(hs1: Homeserver, room: Room, user_id: str) -> object:
    return await hs1.services.db.fetchval(
        """
        SELECT m.event_id FROM memberships m JOIN rooms r ON r.room_nid = m.room_nid
        WHERE r.room_id = $1 AND m.user_id = $2
        """,
        room.room_id,
        user_id,
    )
