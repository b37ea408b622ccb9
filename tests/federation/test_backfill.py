"""History that we were not there for: A12 of the list of attacks, and the honest ways.

A room of evil's is joined by Alice of hs1, who then reads what was said before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from minihs.protocol.events import Event
from minihs.storage import missing_events
from minihs.storage.event_store import ACCEPTED, REJECTED
from tests.helpers.mirror import Answers, forge, push, serve
from tests.helpers.rooms import ALICE, MALLORY, Room

if TYPE_CHECKING:
    from minihs.storage.event_store import StoredEvent
    from tests.helpers.homeserver import Homeserver, User
    from tests.helpers.network import EvilServer, Received

pytestmark = pytest.mark.spec(
    "server-server-api#backfilling-and-retrieving-missing-events",
    "server-server-api#get_matrixfederationv1backfillroomid",
)

API = "/_matrix/federation/v1"


class Past:
    """A room of evil's with a past, and what evil answers about it."""

    def __init__(self, evil: EvilServer, version: str) -> None:
        self.evil = evil
        self.room = room = Room(version, creator=MALLORY)
        self.said = [self.say(f"{n}") for n in range(30)]
        self.answers: Answers = serve(evil, room)

    def say(self, body: str) -> Event:
        return self.room.send(MALLORY, "m.room.message", {"body": body})

    def make_join(self, _request: Received) -> object:
        draft = self.room.draft(ALICE, "m.room.member", {"membership": "join"}, state_key=ALICE)
        event = {k: v for k, v in draft.pdu.items() if k not in ("hashes", "signatures")}
        return {"room_version": self.room.room_version.identifier, "event": event}

    def send_join(self, request: Received) -> object:
        pdu = request.content
        assert isinstance(pdu, dict)
        event = Event.from_pdu(pdu, self.room.room_version)
        before = self.room.state_of(self.room.ends)
        self.room.accept(event)
        state = list(before.values())
        return {
            "state": self.answers.pdus(state),
            "auth_chain": self.answers.pdus(self.answers.auth_chain(state)),
            "origin": self.evil.name,
        }


async def join(user: User, evil: EvilServer, past: Past) -> None:
    """Let a user of hs1 join the room."""
    evil.on("GET", API + "/make_join/{roomId}/{userId}", past.make_join)
    evil.on("PUT", "/_matrix/federation/v2/send_join/{roomId}/{eventId}", past.send_join)
    room_id = quote(past.room.room_id, safe="")
    await user.call("POST", f"/join/{room_id}", {}, server_name="evil")


@pytest.fixture
async def past(alice: User, evil: EvilServer, version: str) -> Past:
    """A room that Alice has joined after thirty messages."""
    past = Past(evil, version)
    await join(alice, evil, past)
    return past


async def page(user: User, past: Past, limit: int, **query: str) -> dict:
    path = f"/rooms/{quote(past.room.room_id)}/messages"
    return await user.call("GET", path, dir="b", limit=str(limit), **query)


async def pages(user: User, past: Past, limit: int) -> list[str]:
    """Return the ids of all events, newest first, read page by page."""
    ids: list[str] = []
    query: dict[str, str] = {}
    for _ in range(50):
        answer = await page(user, past, limit, **query)
        ids += [event["event_id"] for event in answer["chunk"]]
        if "end" not in answer or not answer["chunk"]:
            return ids
        query = {"from": answer["end"]}
    raise AssertionError("the pages do not come to an end")


def history(past: Past) -> list[str]:
    """Return the ids of the room's events, newest first."""
    return list(reversed(past.room.events))


async def stored_as(hs1: Homeserver, event: Event) -> StoredEvent:
    hs1.services.events.forget(event.event_id)
    stored = await hs1.services.events.get(event.event_id)
    assert stored is not None
    return stored


@pytest.mark.parametrize("limit", [1, 7, 100])
@pytest.mark.parametrize("version", ["11", "12"])
async def test_the_past_is_fetched_when_it_is_read(
    alice: User, evil: EvilServer, past: Past, limit: int
):
    assert not evil.asked("/backfill/")
    assert await pages(alice, past, limit) == history(past)
    assert len(evil.asked("/backfill/")) == 1
    # Now it is ours.
    assert await pages(alice, past, limit) == history(past)
    assert len(evil.asked("/backfill/")) == 1
    forward = await alice.call(
        "GET", f"/rooms/{quote(past.room.room_id)}/messages", dir="f", limit="100"
    )
    assert [event["event_id"] for event in forward["chunk"]] == list(past.room.events)


async def test_a_long_past_is_fetched_bit_by_bit(
    hs1: Homeserver, alice: User, evil: EvilServer, past: Past
):
    def three(request: Received) -> object:
        ids = past.answers.backwards([request.query["v"]], 3, ())
        return {"pdus": past.answers.pdus(ids)}

    evil.on("GET", API + "/backfill/{roomId}", three)
    assert await pages(alice, past, 5) == history(past)
    assert len(evil.asked("/backfill/")) == -(-(len(past.room.events) - 1) // 3)
    oldest = await stored_as(hs1, past.room.create)
    newest = await stored_as(hs1, past.said[-1])
    assert oldest.order is not None
    assert newest.order is not None
    assert oldest.order < newest.order
    gaps = "SELECT count(*) FROM gaps"
    assert await hs1.services.db.fetchval(gaps) == 0


async def test_state_is_known_at_every_event_of_the_past(hs1: Homeserver, alice: User, past: Past):
    await pages(alice, past, 100)
    for event in past.room.events.values():
        stored = await stored_as(hs1, event)
        before = await hs1.services.states.get(stored.state_before or 0)
        prev = [past.room.events[e] for e in event.prev_event_ids]
        assert dict(before.entries) == past.room.state_of(prev), event


async def test_who_may_not_see_the_past_does_not(alice: User, evil: EvilServer, version: str):
    past = Past(evil, version)
    past.room.send(
        MALLORY, "m.room.history_visibility", {"history_visibility": "joined"}, state_key=""
    )
    hidden = past.say("hidden")
    await join(alice, evil, past)
    ids = await pages(alice, past, 10)
    assert hidden.event_id not in ids
    assert past.said[0].event_id in ids


async def test_a_server_that_is_away_costs_only_the_past(alice: User, evil: EvilServer, past: Past):
    first = (await alice.say(past.room.room_id), next(reversed(past.room.events)))
    evil.network.isolate("evil")
    answer = await page(alice, past, 10)
    assert [event["event_id"] for event in answer["chunk"]] == list(first)
    assert "end" in answer
    again = await page(alice, past, 10, **{"from": answer["end"]})
    assert again["chunk"] == []
    evil.network.heal()
    again = await page(alice, past, 5, **{"from": answer["end"]})
    assert [event["event_id"] for event in again["chunk"]] == history(past)[1:6]


async def test_a_gap_in_the_middle_is_filled_where_it_is(
    hs1: Homeserver, alice: User, evil: EvilServer, past: Past
):
    past.answers.between = 2
    lost = [past.say(f"lost {n}") for n in range(5)]
    found = [past.say(f"found {n}") for n in range(3)]
    await push(evil, hs1, [found[-1]])
    answer = await alice.say(past.room.room_id)
    ids = await pages(alice, past, 4)
    assert ids == [answer, *history(past)]
    assert lost[0].event_id in ids


@pytest.mark.spec("client-server-api#threading")
async def test_threads_of_the_past_are_known(
    hs1: Homeserver, alice: User, evil: EvilServer, version: str
):
    past = Past(evil, version)
    root = past.said[3]
    relation = {"rel_type": "m.thread", "event_id": root.event_id}
    content = {"body": "in the thread", "m.relates_to": relation}
    threaded = past.room.send(MALLORY, "m.room.message", content)
    await join(alice, evil, past)
    await pages(alice, past, 100)
    assert (await stored_as(hs1, threaded)).thread_root == root.event_id
    assert (await stored_as(hs1, root)).thread_root is None


async def test_redactions_of_the_past_apply(
    hs1: Homeserver, alice: User, evil: EvilServer, version: str
):
    past = Past(evil, version)
    targets = [past.said[0], past.said[-1]]
    for target in targets:
        content = {"redacts": target.event_id}
        past.room.send(MALLORY, "m.room.redaction", content)
    await join(alice, evil, past)

    def ten(request: Received) -> object:
        ids = past.answers.backwards([request.query["v"]], 10, ())
        return {"pdus": past.answers.pdus(ids)}

    evil.on("GET", API + "/backfill/{roomId}", ten)
    assert await pages(alice, past, 20) == history(past)
    for target in targets:
        path = f"/rooms/{quote(past.room.room_id)}/event/{quote(target.event_id)}"
        assert (await alice.call("GET", path))["content"] == {}
        assert (await stored_as(hs1, target)).redacted_by is not None


# --- what a malicious server may try ------------------------------------------------------------


async def test_A12_history_goes_on_past_rejected_events(
    hs1: Homeserver, alice: User, evil: EvilServer, version: str
):
    """A page full of events that nobody was allowed to send, with good ones before it."""
    past = Past(evil, version)
    good = list(past.room.events)
    eve = "@eve:evil"
    bad: list[Event] = []
    for n in range(10):
        draft = past.room.draft(eve, "m.room.message", {"body": f"bad {n}"})
        bad.append(draft)
        past.room.events[draft.event_id] = draft
        past.room.state_after[draft.event_id] = past.room.state_of(past.room.ends)
        past.room.ends = [draft]
    await join(alice, evil, past)

    def five(request: Received) -> object:
        ids = past.answers.backwards([request.query["v"]], 5, ())
        return {"pdus": past.answers.pdus(ids)}

    evil.on("GET", API + "/backfill/{roomId}", five)
    ids = await pages(alice, past, 8)
    assert ids[1:] == good[::-1]
    for event in bad:
        stored = await stored_as(hs1, event)
        assert stored.status == REJECTED
        path = f"/rooms/{quote(past.room.room_id)}/event/{quote(event.event_id)}"
        assert (await alice.request("GET", path)).status == 404


async def test_A12_what_does_not_belong_is_not_stored(
    hs1: Homeserver, alice: User, evil: EvilServer, past: Past
):
    """Another room's events, unrelated ones, forged ones, and some from the far future."""
    other = Room("12", creator=MALLORY)
    foreign = other.send(MALLORY, "m.room.message", {"body": "foreign"})
    unrelated = past.room.draft(MALLORY, "m.room.message", {"body": "later"})
    forged = Event.from_pdu(
        forge(unrelated, sender=ALICE, content={"body": "forged"}, signers=["evil"]),
        past.room.room_version,
    )
    ids = past.answers.backwards([past.said[-1].event_id], 5, ())
    pdus = [foreign.pdu, unrelated.pdu, forged.pdu, None, 1, {}]

    def poisoned(_request: Received) -> object:
        return {"pdus": [*pdus, *past.answers.pdus(ids)]}

    evil.on("GET", API + "/backfill/{roomId}", poisoned)
    answer = await page(alice, past, 4)
    assert [event["event_id"] for event in answer["chunk"]] == history(past)[:4]
    for event in (foreign, unrelated, forged):
        hs1.services.events.forget(event.event_id)
        assert await hs1.services.events.get(event.event_id) is None


@pytest.mark.parametrize("answer", [{"pdus": []}, {"pdus": {}}, {}, {"pdus": [None] * 1000}])
async def test_A12_who_gives_nothing_of_use_is_asked_no_more_than_once_a_page(
    alice: User, evil: EvilServer, past: Past, answer: dict
):
    evil.on("GET", API + "/backfill/{roomId}", answer)
    first = await page(alice, past, 10)
    assert len(first["chunk"]) == 1
    assert len(evil.asked("/backfill/")) == 1


@pytest.mark.spec("server-server-api#validating-hashes-and-signatures-on-received-events")
async def test_S02_signatures_of_the_past_are_checked(
    hs1: Homeserver, alice: User, evil: EvilServer, past: Past
):
    victim = past.said[10]
    changed = forge(victim, content={"body": "never said"}, signers=[])
    wrong_content = {**past.said[20].pdu, "content": {"body": "never said"}}

    def tampered(request: Received) -> object:
        ids = past.answers.backwards([request.query["v"]], 100, ())
        swap = {str(victim.event_id): changed, str(past.said[20].event_id): wrong_content}
        return {"pdus": [swap.get(e, past.room.events[e].pdu) for e in map(str, ids)]}  # type: ignore[index]

    evil.on("GET", API + "/backfill/{roomId}", tampered)
    ids = await pages(alice, past, 100)
    assert past.said[11].event_id in ids
    assert victim.event_id not in ids
    shown = await stored_as(hs1, past.said[20])
    assert (shown.status, shown.event.content) == (ACCEPTED, {})


async def test_a_gap_whose_event_never_came_says_nothing(
    hs1: Homeserver, alice: User, evil: EvilServer, past: Past
):
    services = hs1.services
    nid = await services.db.fetchval(
        "SELECT room_nid FROM rooms WHERE room_id = $1", past.room.room_id
    )
    await missing_events.insert_gaps(services.db, int(str(nid)), [2**40])
    assert await pages(alice, past, 100) == history(past)
    assert len(evil.asked("/backfill/")) == 1
