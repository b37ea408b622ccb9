"""MSC4293 at every place that shows events: none shows what a kick or ban has redacted.

Mallory has set the room's name, topic and alias list, spoken, and changed her own name, everywhere
with the same word. After the ban no answer to anybody, client or server, has that word in it, be it
before the content is taken out of the database or after.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import orjson
import pytest

from minihs.protocol.identifiers import EventId
from minihs.services.rooms import redact_on_ban
from tests.conformance.test_msc4186 import Client
from tests.federation.test_joins import ALL_VERSIONS
from tests.helpers import deliveries
from tests.helpers.deliveries import Peer
from tests.helpers.mirror import mirror, push, refresh

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from minihs.base.clock import ManualClock
    from tests.helpers.homeserver import Homeserver, User
    from tests.helpers.network import EvilServer, Federation
    from tests.helpers.rooms import Room

pytestmark = pytest.mark.spec("MSC4293#proposal")

FLAG = "org.matrix.msc4293.redact_events"
SECRET = "buy-my-pills"
FED = "/_matrix/federation/v1"
V2 = "/_matrix/federation/v2"
OLDER_SYNC = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
STICKY = {"org.matrix.msc4354.sticky_duration_ms": "3600000"}
WITNESS = "@witness:evil"


class Place(NamedTuple):
    """Where events are shown: who asks, and what is answered."""

    name: str
    ask: Callable[[Stage], Awaitable[object]]


class Stage:
    """Alice's room after Mallory's ban, with Bob, and a server that watches."""

    def __init__(self, hs1: Homeserver, alice: User, bob: User, evil: EvilServer) -> None:
        self.hs1, self.alice, self.bob, self.evil = hs1, alice, bob, evil
        self.room_id = self.path = ""
        self.events: dict[str, str] = {}
        self.ban_id = self.after_id = ""
        self.before_spam = ""
        self.copy: Room

    async def get(self, what: str, **query: str) -> object:
        """Return what Bob reads of the room."""
        return await self.bob.call("GET", f"{self.path}/{what}", **query)

    async def fetch(self, what: str, *query: tuple[str, str]) -> object:
        """Return what another server is told."""
        answer = await self.evil.request("hs1", "GET", FED + what, query=query)
        assert isinstance(answer, dict), answer
        return answer

    async def post(self, what: str, content: dict[str, object]) -> object:
        answer = await self.evil.request("hs1", "POST", FED + what, content)
        assert isinstance(answer, dict), answer
        return answer

    @property
    def room(self) -> str:
        return quote(self.room_id)


@pytest.fixture
async def stage(hs1: Homeserver, alice: User, evil: EvilServer) -> Stage:
    """Everything that Mallory did, and her ban."""
    bob, mallory = await hs1.register("bob"), await hs1.register("mallory")
    stage = Stage(hs1, alice, bob, evil)
    stage.room_id = room_id = await alice.create_room(visibility="public")
    stage.path = f"/rooms/{stage.room}"
    stage.copy = await mirror(hs1, room_id)
    await push(evil, hs1, [stage.copy.join(WITNESS)])
    await bob.join(room_id)
    await mallory.join(room_id)
    levels = {"users": {mallory.user_id: 50}, "events": {}, "state_default": 50}
    await alice.put_state(room_id, "m.room.power_levels", levels)
    stage.before_spam = (await bob.sync())["next_batch"]
    profile = f"/profile/{mallory.user_id}/displayname"
    await mallory.call("PUT", profile, {"displayname": SECRET})
    for event_type, content in {
        "m.room.name": {"name": SECRET},
        "m.room.topic": {"topic": SECRET},
        "m.room.avatar": {"url": f"mxc://hs1/{SECRET}"},
        "m.room.pinned_events": {"pinned": [SECRET]},
        "org.example.state": {"x": SECRET},
    }.items():
        stage.events[event_type] = await mallory.put_state(room_id, event_type, content)
    stage.events["message"] = await mallory.say(room_id, SECRET)
    path = f"{stage.path}/send/m.room.message/sticky"
    sticky = await mallory.call("PUT", path, {"msgtype": "m.text", "body": SECRET}, **STICKY)
    stage.events["sticky"] = sticky["event_id"]
    stage.events["mention"] = await mallory.say(
        room_id, f"bob: {SECRET}", **{"m.mentions": {"user_ids": [bob.user_id]}}
    )
    relation = {"rel_type": "m.thread", "event_id": stage.events["message"]}
    stage.events["threaded"] = await mallory.say(room_id, SECRET, **{"m.relates_to": relation})
    stage.after_id = await bob.say(room_id, "hm")
    wish = {"user_id": mallory.user_id, "reason": "spam", FLAG: True}
    await alice.call("POST", f"{stage.path}/ban", wish)
    await refresh(stage.copy, hs1)
    stage.ban_id = stage.copy.ends[-1].event_id
    return stage


# --- what clients are shown ---------------------------------------------------------------------


async def initial_sync(stage: Stage) -> object:
    stage.bob.since = None
    return await stage.bob.sync()


async def sync_from_before(stage: Stage) -> object:
    return await stage.bob.sync(since=stage.before_spam)


async def sync_in_federation_format(stage: Stage) -> object:
    return await stage.bob.sync(
        since=stage.before_spam, filter='{"event_format":"federation"}', full_state="true"
    )


async def sync_state_after(stage: Stage) -> object:
    short = '{"room":{"timeline":{"limit":1}}}'
    return await stage.bob.sync(since=stage.before_spam, filter=short, use_state_after="true")


async def sliding_sync(stage: Stage) -> object:
    everything = {"include": [{}]}
    wish = {"range": [0, 9], "timeline_limit": 50, "required_state": everything}
    sticky = {"org.matrix.msc4354.sticky_events": {"enabled": True}}
    return await Client(stage.bob).sync(lists={"all": wish}, extensions=sticky)


async def older_sliding_sync(stage: Stage) -> object:
    wish = {"ranges": [[0, 9]], "timeline_limit": 50, "required_state": [["*", "*"]]}
    return await stage.bob.call("POST", OLDER_SYNC, {"lists": {"all": wish}})


async def invited(stage: Stage) -> object:
    """Somebody is invited now: stripped state."""
    guest = await stage.hs1.register("invited")
    await stage.alice.invite(stage.room_id, guest)
    return [await guest.sync(), await Client(guest).sync()]


async def public_rooms(stage: Stage) -> object:
    body: dict[str, object] = {"filter": {"generic_search_term": SECRET}}
    found = await stage.bob.call("POST", "/publicRooms", body)
    assert found["chunk"] == [], "nor can it be found"
    return await stage.bob.call("GET", "/publicRooms")


async def each_event(stage: Stage) -> object:
    return [await stage.get(f"event/{quote(e)}") for e in stage.events.values()]


async def each_context(stage: Stage) -> object:
    ids = [*stage.events.values(), stage.after_id]
    return [await stage.get(f"context/{quote(e)}", limit="50") for e in ids]


async def each_entry_of_state(stage: Stage) -> object:
    kinds = [kind for kind in stage.events if "." in kind]
    contents = [await stage.get(f"state/{kind}") for kind in kinds]
    assert contents == [{}] * len(kinds)
    return [await stage.get(f"state/{kind}", format="event") for kind in kinds]


CLIENT = [
    Place("initial /sync", initial_sync),
    Place("incremental /sync", sync_from_before),
    Place("/sync in the federation's format", sync_in_federation_format),
    Place("/sync with state_after", sync_state_after),
    Place("sliding sync", sliding_sync),
    Place("sliding sync in its older shape", older_sliding_sync),
    Place("stripped state", invited),
    Place("/publicRooms", public_rooms),
    Place("/event", each_event),
    Place("/context", each_context),
    Place("/messages backwards", lambda stage: stage.get("messages", dir="b", limit="100")),
    Place("/messages forwards", lambda stage: stage.get("messages", dir="f", limit="100")),
    Place("/state", lambda stage: stage.get("state")),
    Place("/state of one type", each_entry_of_state),
    Place("/members", lambda stage: stage.get("members")),
]


# --- what other servers are told ----------------------------------------------------------------


async def each_pdu(stage: Stage) -> object:
    return [await stage.fetch(f"/event/{quote(e)}") for e in stage.events.values()]


async def room_state(stage: Stage) -> object:
    return await stage.fetch(f"/state/{stage.room}", ("event_id", stage.ban_id))


async def auth_chain(stage: Stage) -> object:
    ids = [stage.after_id, stage.ban_id, *stage.events.values()]
    return [await stage.fetch(f"/event_auth/{stage.room}/{quote(e)}") for e in ids]


async def backfill(stage: Stage) -> object:
    return await stage.fetch(f"/backfill/{stage.room}", ("v", stage.ban_id), ("limit", "50"))


async def missing_events(stage: Stage) -> object:
    content: dict[str, object] = {
        "latest_events": [stage.ban_id],
        "earliest_events": [],
        "limit": 20,
    }
    return await stage.post(f"/get_missing_events/{stage.room}", content)


async def joining(stage: Stage) -> object:
    """Somebody else of evil joins: the whole state, and what it rests upon."""
    await refresh(stage.copy, stage.hs1)
    newcomer = "@newcomer:evil"
    path = f"/make_join/{stage.room}/{newcomer}"
    made = await stage.evil.request("hs1", "GET", FED + path, query=ALL_VERSIONS)
    join = stage.copy.join(newcomer)
    path = f"{V2}/send_join/{stage.room}/{quote(join.event_id)}"
    answer = await stage.evil.request("hs1", "PUT", path, join.pdu)
    assert isinstance(answer, dict), answer
    assert {pdu["type"] for pdu in answer["state"]} >= {"m.room.name", "m.room.topic"}  # type: ignore[attr-defined, index]
    return [made, answer]


async def invite(stage: Stage) -> object:
    """Somebody of evil is invited: what comes with the invite."""
    stage.evil.on("PUT", V2 + "/invite/{roomId}/{eventId}", {"event": {}})
    body = {"user_id": "@friend:evil"}
    await stage.alice.request("POST", f"{stage.path}/invite", body)
    (asked,) = stage.evil.asked("/invite/")
    return asked.content


SERVER = [
    Place("/event", each_pdu),
    Place("/state", room_state),
    Place("/event_auth", auth_chain),
    Place("/backfill", backfill),
    Place("/get_missing_events", missing_events),
    Place("/make_join and /send_join", joining),
    Place("/invite", invite),
    Place("/publicRooms", lambda stage: stage.fetch("/publicRooms")),
    Place("/hierarchy", lambda stage: stage.fetch(f"/hierarchy/{stage.room}")),
]


def shown_events(answer: object) -> list[dict[str, Any]]:
    """Return whatever in an answer looks like an event with an id."""
    found: list[dict[str, Any]] = []
    match answer:
        case dict():
            if "event_id" in answer and "content" in answer and "sender" in answer:
                found.append(answer)
            for value in answer.values():
                found += shown_events(value)
        case list():
            for value in answer:
                found += shown_events(value)
        case _:
            pass
    return found


async def purge(stage: Stage, clock: ManualClock) -> None:
    """Take the content out of the database, and everything out of memory."""
    clock.advance_ms(redact_on_ban.PURGE_AFTER_MS)
    await redact_on_ban.purge_redacted(stage.hs1.services)
    rows = await stage.hs1.services.db.fetch("SELECT event_id, json FROM events")
    for event_id, json in rows:
        assert SECRET not in json
        stage.hs1.services.events.forget(EventId(event_id))


@pytest.mark.shapes_events
@pytest.mark.parametrize("purged", [False, True], ids=["at once", "after the purge"])
@pytest.mark.parametrize("place", CLIENT, ids=[place.name for place in CLIENT])
async def test_r_1_no_client_is_shown_it(
    stage: Stage, clock: ManualClock, place: Place, purged: bool
) -> None:
    if purged:
        await purge(stage, clock)
    answer = await place.ask(stage)
    assert SECRET not in orjson.dumps(answer).decode()
    for event in shown_events(answer):
        if event["event_id"] in stage.events.values() and "unsigned" in event:
            because = event["unsigned"]["redacted_because"]
            assert because["event_id"] == stage.ban_id
            assert because["content"]["reason"] == "spam"


@pytest.mark.parametrize("purged", [False, True], ids=["at once", "after the purge"])
@pytest.mark.parametrize("place", SERVER, ids=[place.name for place in SERVER])
async def test_r_12_no_server_is_told_it(
    stage: Stage, clock: ManualClock, place: Place, purged: bool
) -> None:
    if purged:
        await purge(stage, clock)
    answer = await place.ask(stage)
    assert SECRET not in orjson.dumps(answer).decode()


async def test_r_12_what_waits_to_be_delivered_is_delivered_redacted(
    stage: Stage, hs1: Homeserver
) -> None:
    """The deliveries begin after the ban, as after a time in which evil was down."""
    peer = Peer(stage.evil)
    await deliveries.begin(hs1.services)
    await deliveries.settled(hs1.services)
    await stage.alice.say(stage.room_id, "now")
    await deliveries.settled(hs1.services)
    assert peer.taken
    assert SECRET not in orjson.dumps([received.content for received in peer.taken]).decode()


async def test_r_12_a_third_server_that_joins_later_gets_redacted_copies(
    federation: Federation, stage: Stage
) -> None:
    """hs3 was not there; what it is given, by hs1, has been redacted."""
    hs3 = await federation.start("hs3")
    dora = await hs3.register("dora")
    await dora.call("POST", f"/join/{stage.room}", {}, via="hs1")
    page = await dora.call("GET", f"{stage.path}/messages", dir="b", limit="100")
    state = await dora.call("GET", f"{stage.path}/state")
    text = orjson.dumps([page, state, await dora.sync()]).decode()
    assert SECRET not in text
    assert stage.ban_id in text
    rows = await hs3.services.db.fetch("SELECT json FROM events")
    assert not any(SECRET in row[0] for row in rows)
