"""What other servers are told of rooms: events, history, states, and what they rest upon."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from minihs.api.routes import ROUTES
from minihs.protocol import unstable
from minihs.protocol.events import Event
from minihs.protocol.room_versions import ROOM_VERSIONS
from minihs.protocol.signatures import verify_event_signature
from tests.federation.test_joins import ALL_VERSIONS, enter, two
from tests.helpers.mirror import forge, mirror, push

if TYPE_CHECKING:
    from minihs.base.clock import ManualClock
    from minihs.remote.signed_requests import Answer
    from tests.helpers.homeserver import Homeserver, User
    from tests.helpers.network import EvilServer, Federation

V1 = "/_matrix/federation/v1"
MALLORY = "@mallory:evil"


@pytest.fixture
async def hs1(federation: Federation) -> Homeserver:
    return await federation.start("hs1", default_room_version="11")


@pytest.fixture
async def alice(hs1: Homeserver) -> User:
    return await hs1.register("alice")


@pytest.fixture
def evil(federation: Federation) -> EvilServer:
    return federation.evil()


async def ask(evil: EvilServer, path: str, *query: tuple[str, str]) -> Answer:
    """Ask hs1 something."""
    return await evil.request("hs1", "GET", V1 + path, query=query)


async def told(evil: EvilServer, path: str, *query: tuple[str, str]) -> dict:
    """Return what hs1 answers, which must be a success."""
    answer = await ask(evil, path, *query)
    assert isinstance(answer, dict), answer
    return answer


async def refusal(evil: EvilServer, path: str, *query: tuple[str, str]) -> tuple[int, str]:
    """Return how hs1 refuses to answer."""
    answer = await ask(evil, path, *query)
    assert not isinstance(answer, dict), answer
    return answer.status, answer.errcode


async def let_in(evil: EvilServer, room_id: str, user_id: str = MALLORY) -> dict:
    """Join Mallory to a room of hs1, as a good server would; return the answer to send_join."""
    made = await told(evil, f"/make_join/{quote(room_id)}/{user_id}", *ALL_VERSIONS)
    return await take(evil, "send_join", room_id, made)


async def take(evil: EvilServer, endpoint: str, room_id: str, made: dict) -> dict:
    """Sign a template and send it; return the answer."""
    event = sign(evil, made)
    answer = await evil.request(
        "hs1", "PUT",
        f"/_matrix/federation/v2/{endpoint}/{quote(room_id)}/{quote(event.event_id)}",
        event.pdu,
    )  # fmt: skip
    assert isinstance(answer, dict), answer
    return answer


def sign(evil: EvilServer, made: dict) -> Event:
    """Return a template as an event of Mallory's server."""
    import hashlib

    from minihs.protocol.canonical_json import encode_strict
    from minihs.protocol.hashes import encode_base64, signed_bytes
    from minihs.protocol.signatures import with_signature

    version = ROOM_VERSIONS[made["room_version"]]
    pdu = dict(made["event"])
    pdu["hashes"] = {"sha256": encode_base64(hashlib.sha256(encode_strict(pdu)).digest())}
    signature = evil.key.sign(signed_bytes(pdu, version))
    return Event.from_pdu(with_signature(pdu, evil.name, evil.key.key_id, signature), version)


def ids(pdus: list[dict], version: str = "11") -> list[str]:
    """Return the ids of PDUs."""
    return [Event.from_pdu(pdu, ROOM_VERSIONS[version]).event_id for pdu in pdus]


def kinds(pdus: list[dict]) -> set[tuple[str, str]]:
    """Return the keys of state events."""
    return {(pdu["type"], pdu["state_key"]) for pdu in pdus}


# --- joining -----------------------------------------------------------------------------------


async def test_a_join_is_answered_with_the_state_and_signed_by_the_resident(
    hs1: Homeserver, alice: User, evil: EvilServer
):
    room_id = await alice.create_room(name="Tea")

    answer = await let_in(evil, room_id)

    assert ("m.room.name", "") in kinds(answer["state"])
    assert ("m.room.member", MALLORY) not in kinds(answer["state"])
    assert ("m.room.create", "") in kinds(answer["auth_chain"])
    assert set(answer["event"]["signatures"]) == {"hs1", "evil"}
    key = hs1.services.signing_key
    join = Event.from_pdu(answer["event"], ROOM_VERSIONS["11"])
    verify_event_signature(join, hs1.services.server_name, {key.key_id: key.public_key})
    again = await alice.call("GET", f"/rooms/{quote(room_id)}/members")
    assert MALLORY in {event["state_key"] for event in again["chunk"]}


@pytest.mark.spec("server-server-api#put_matrixfederationv2send_joinroomideventid")
async def test_members_are_left_out_for_who_wants_few(
    hs1: Homeserver, alice: User, evil: EvilServer
):
    room_id = await alice.create_room()
    for name in ("bob", "carol", "dora", "emil", "fred", "gina"):
        await (await hs1.register(name)).join(room_id)
    made = await told(evil, f"/make_join/{quote(room_id)}/{MALLORY}", *ALL_VERSIONS)
    event = sign(evil, made)

    answer = await evil.request(
        "hs1", "PUT",
        f"/_matrix/federation/v2/send_join/{quote(room_id)}/{quote(event.event_id)}",
        event.pdu, query=[("omit_members", "true")],
    )  # fmt: skip

    assert isinstance(answer, dict)
    state, chain = answer["state"], answer["auth_chain"]
    assert isinstance(state, list)
    assert isinstance(chain, list)
    assert answer["members_omitted"] is True
    assert answer["servers_in_room"] == ["hs1"]
    assert len([key for key in kinds(state) if key[0] == "m.room.member"]) == 5  # The heroes.
    assert not set(ids(state)) & set(ids(chain))


async def test_a11_only_the_membership_that_was_asked_for_is_taken(
    hs1: Homeserver, alice: User, evil: EvilServer
):
    """What the passages ask for."""
    room_id = await alice.create_room()
    other = await alice.create_room()
    made = await told(evil, f"/make_join/{quote(room_id)}/{MALLORY}", *ALL_VERSIONS)
    good = sign(evil, made)

    async def send(event: Event, endpoint: str = "send_join", room: str = room_id) -> object:
        path = f"/_matrix/federation/v2/{endpoint}/{quote(room)}/{quote(event.event_id)}"
        answer = await evil.request("hs1", "PUT", path, event.pdu)
        return answer if isinstance(answer, dict) else (answer.status, answer.errcode)

    def changed(**changes: object) -> Event:
        return sign(evil, {**made, "event": {**made["event"], **changes}})

    bad = 400, "M_INVALID_PARAM"
    stateless = {k: v for k, v in made["event"].items() if k != "state_key"}
    table = [
        (changed(type="m.room.message"), "another type"),
        (sign(evil, {**made, "event": stateless}), "no state"),
        (changed(state_key="@alice:hs1"), "another member"),
        (changed(sender="@alice:hs1"), "another sender"),
        (changed(sender="@alice:hs1", state_key="@alice:hs1"), "a member of ours"),
        (changed(content={"membership": "leave"}), "another membership"),
        (changed(room_id=other), "another room"),
        (changed(depth="x"), "no event"),
    ]
    for event, why in table:
        assert await send(event) == bad, why
    assert await send(good, room=other) == bad
    assert await send(good, endpoint="send_leave") == bad
    unsigned = Event.from_pdu({**good.pdu, "signatures": {}}, good.room_version)
    assert await send(unsigned) == bad
    assert await send(good, room="!nothing:hs1") == (404, "M_NOT_FOUND")
    assert isinstance(await send(good), dict)
    assert isinstance(await send(good), dict)  # A repetition: its first answer was lost.


async def test_templates_are_for_ones_own_users_only(
    hs1: Homeserver, alice: User, evil: EvilServer
):
    room_id = await alice.create_room()
    closed = await alice.create_room(preset="private_chat")
    path = f"/make_join/{quote(room_id)}"

    assert await refusal(evil, f"{path}/@bob:hs2", *ALL_VERSIONS) == (403, "M_FORBIDDEN")
    assert await refusal(evil, f"{path}/nonsense", *ALL_VERSIONS) == (403, "M_FORBIDDEN")
    assert await refusal(evil, f"{path}/{MALLORY}") == (400, "M_INCOMPATIBLE_ROOM_VERSION")
    assert await refusal(evil, f"/make_join/!no:hs1/{MALLORY}") == (404, "M_NOT_FOUND")
    assert await refusal(evil, f"/make_join/{quote(closed)}/{MALLORY}", *ALL_VERSIONS) == (
        403,
        "M_FORBIDDEN",
    )
    assert await refusal(evil, f"/make_leave/{quote(room_id)}/{MALLORY}") == (403, "M_FORBIDDEN")
    assert await refusal(evil, f"/make_knock/{quote(room_id)}/{MALLORY}", *ALL_VERSIONS) == (
        403,
        "M_FORBIDDEN",
    )


# --- who may ask -------------------------------------------------------------------------------


async def test_a10_only_servers_in_the_room_are_told_of_it(
    hs1: Homeserver, alice: User, evil: EvilServer
):
    room_id = await alice.create_room()
    event_id = await alice.say(room_id)
    of_room, of_event = quote(room_id), quote(event_id)
    questions: list[tuple[str, *tuple[tuple[str, str], ...]]] = [
        (f"/event/{of_event}",),
        (f"/state/{of_room}", ("event_id", event_id)),
        (f"/state_ids/{of_room}", ("event_id", event_id)),
        (f"/event_auth/{of_room}/{of_event}",),
        (f"/backfill/{of_room}", ("v", event_id), ("limit", "5")),
        (f"/timestamp_to_event/{of_room}", ("ts", "1"), ("dir", "f")),
    ]
    for path, *query in questions:
        assert await refusal(evil, path, *query) == (403, "M_FORBIDDEN"), path
    await let_in(evil, room_id)
    for path, *query in questions:
        assert await told(evil, path, *query), path
    made = await told(evil, f"/make_leave/{quote(room_id)}/{MALLORY}")
    await take(evil, "send_leave", room_id, made)
    for path, *query in questions:  # What was before its stay, it is not told after it.
        status, _ = await refusal(evil, path, *query)
        assert status in (403, 404), path


async def test_a09_events_of_other_rooms_are_not_found(
    hs1: Homeserver, alice: User, evil: EvilServer
):
    open_room, closed = await alice.create_room(), await alice.create_room(preset="private_chat")
    secret = await alice.say(closed)
    known = await alice.say(open_room)
    await let_in(evil, open_room)
    of_room = quote(open_room)

    for event_id in (secret, "$nothing", "nonsense"):
        for endpoint in ("state", "state_ids"):
            path, query = f"/{endpoint}/{of_room}", ("event_id", event_id)
            assert await refusal(evil, path, query) == (404, "M_NOT_FOUND")
        path = f"/event_auth/{of_room}/{quote(event_id)}"
        assert await refusal(evil, path) == (404, "M_NOT_FOUND")
        page = await told(evil, f"/backfill/{of_room}", ("v", event_id), ("limit", "5"))
        assert page["pdus"] == []
    assert (await refusal(evil, f"/event/{quote(secret)}"))[0] == 403
    assert ids((await told(evil, f"/event/{quote(known)}"))["pdus"]) == [known]


@pytest.mark.parametrize("version", ["11", "12"])
async def test_a09_nor_is_their_state_told_because_a_rejected_event_names_it(
    hs1: Homeserver, alice: User, evil: EvilServer, version: str
):
    """Mallory has come to know the ids of a room that she is not in, and rests an event on them."""
    closed = await alice.create_room(preset="private_chat", room_version=version)
    secrets = [event["event_id"] for event in await alice.call("GET", f"/rooms/{closed}/state")]
    hs1.clock.advance_ms(1)  # type: ignore[attr-defined]  # a manual one
    room = await mirror(hs1, await alice.create_room(room_version=version))
    await push(evil, hs1, [room.join(MALLORY)])
    contents: list[tuple[dict, str | None]] = [({"body": "x"}, None), ({"topic": "x"}, "")]
    for content, state_key in contents:
        draft = room.draft(MALLORY, "org.example", content, state_key=state_key)
        pdu = forge(draft, auth_events=secrets[:5])
        event = Event.from_pdu(pdu, room.room_version)
        assert await push(evil, hs1, [event]) == {event.event_id: {}}
        of_room, of_event = quote(room.room_id), quote(event.event_id)
        path = f"/event_auth/{of_room}/{of_event}"
        assert await refusal(evil, path) == (404, "M_NOT_FOUND")
        for endpoint in ("state", "state_ids"):
            path, query = f"/{endpoint}/{of_room}", ("event_id", event.event_id)
            assert await refusal(evil, path, query) == (404, "M_NOT_FOUND")
        assert (await refusal(evil, f"/event/{of_event}"))[0] == 404


async def test_f04_f05_a_room_listens_to_whom_its_acl_allows(
    hs1: Homeserver, alice: User, evil: EvilServer
):
    """Every endpoint that must be protected, whatever it is about."""
    room_id = await alice.create_room()
    event_id = await alice.say(room_id)
    await let_in(evil, room_id)
    await alice.put_state(
        room_id, "m.room.server_acl", {"allow": ["*"], "deny": ["E?il"], "allow_ip_literals": True}
    )
    protected = {
        "make_join", "send_join", "make_leave", "send_leave", "invite", "make_knock", "send_knock",
        "state", "state_ids", "backfill", "event_auth", "get_missing_events",
    }  # fmt: skip
    seen = set()
    for route in ROUTES:
        name = route.path.split("/")[4] if "/federation/" in route.path else ""
        if name in protected:
            seen.add(name)
            path = (
                route.path.replace("{roomId}", quote(room_id))
                .replace("{eventId}", quote(event_id))
                .replace("{userId}", MALLORY)
            )
            content = None if route.method == "GET" else {}
            answer = await evil.request("hs1", route.method, path, content=content)
            assert not isinstance(answer, dict)
            assert (answer.status, answer.errcode) == (403, "M_FORBIDDEN"), path
    assert seen == protected
    await alice.put_state(room_id, "m.room.server_acl", {"allow": ["*"]})
    assert await told(evil, f"/state_ids/{quote(room_id)}", ("event_id", event_id))


# --- what they are told ------------------------------------------------------------------------


async def test_states_are_those_before_the_event(hs1: Homeserver, alice: User, evil: EvilServer):
    room_id = await alice.create_room()
    await let_in(evil, room_id)
    first = await alice.put_state(room_id, "m.room.name", {"name": "Tea"})
    second = await alice.put_state(room_id, "m.room.name", {"name": "Coffee"})

    answer = await told(evil, f"/state_ids/{quote(room_id)}", ("event_id", second))
    whole = await told(evil, f"/state/{quote(room_id)}", ("event_id", second))

    assert first in answer["pdu_ids"]
    assert second not in answer["pdu_ids"]
    assert sorted(ids(whole["pdus"])) == sorted(answer["pdu_ids"])
    assert sorted(ids(whole["auth_chain"])) == sorted(answer["auth_chain_ids"])
    before = await told(evil, f"/state_ids/{quote(room_id)}", ("event_id", first))
    assert first not in before["pdu_ids"]
    assert len(before["pdu_ids"]) == len(answer["pdu_ids"]) - 1


async def test_auth_chains_have_all_that_an_event_rests_upon_and_no_more(
    hs1: Homeserver, alice: User, evil: EvilServer
):
    room_id = await alice.create_room()
    first = (await let_in(evil, room_id))["event"]
    made = await told(evil, f"/make_leave/{quote(room_id)}/{MALLORY}")
    await take(evil, "send_leave", room_id, made)
    again = (await let_in(evil, room_id))["event"]
    message = await alice.say(room_id)

    chain = (await told(evil, f"/event_auth/{quote(room_id)}/{quote(ids([again])[0])}"))[
        "auth_chain"
    ]
    of_message = (await told(evil, f"/event_auth/{quote(room_id)}/{quote(message)}"))["auth_chain"]

    memberships = [p["content"]["membership"] for p in chain if p.get("state_key") == MALLORY]
    assert sorted(memberships) == ["join", "leave"]
    assert ids([first])[0] in ids(chain)
    assert {key[0] for key in kinds(chain)} == {
        "m.room.create", "m.room.member", "m.room.power_levels", "m.room.join_rules"
    }  # fmt: skip
    assert kinds(of_message) == {
        ("m.room.create", ""), ("m.room.power_levels", ""), ("m.room.member", alice.user_id)
    }  # fmt: skip


async def test_backfill_goes_back_from_the_given_events(
    hs1: Homeserver, alice: User, evil: EvilServer
):
    room_id = await alice.create_room()
    await let_in(evil, room_id)
    said = [await alice.say(room_id, str(n)) for n in range(8)]

    page = await told(evil, f"/backfill/{quote(room_id)}", ("v", said[5]), ("limit", "4"))
    rest = await told(evil, f"/backfill/{quote(room_id)}", ("v", said[7]), ("limit", "1000"))

    assert ids(page["pdus"]) == said[5:1:-1]
    assert page["origin"] == "hs1"
    assert ids(rest["pdus"])[:8] == said[::-1]
    assert rest["pdus"][-1]["type"] == "m.room.create"


async def missing(evil: EvilServer, room_id: str, **content: object) -> list[str]:
    """Return the ids that get_missing_events answers."""
    answer = await evil.request(
        "hs1", "POST", f"{V1}/get_missing_events/{quote(room_id)}",
        {"earliest_events": [], **content},
    )  # fmt: skip
    assert isinstance(answer, dict), answer
    return ids(answer["events"])  # type: ignore[arg-type]


async def test_what_lies_between_is_told_oldest_first(
    hs1: Homeserver, alice: User, evil: EvilServer
):
    room_id = await alice.create_room()
    await let_in(evil, room_id)
    said = [await alice.say(room_id, str(n)) for n in range(30)]

    between = await missing(evil, room_id, earliest_events=[said[2]], latest_events=[said[6]])
    assert between == said[3:6]
    assert await missing(evil, room_id, latest_events=[said[6]], limit=2) == said[4:6]
    assert await missing(evil, room_id, latest_events=[said[29]]) == said[19:29]
    assert len(await missing(evil, room_id, latest_events=[said[29]], limit=999)) == 20
    assert await missing(evil, room_id, latest_events=[said[29]], limit=-1) == []
    stored = await hs1.services.events.get(said[4])  # type: ignore[arg-type]
    assert stored is not None
    depth = stored.event.depth
    only = await missing(evil, room_id, latest_events=[said[6]], min_depth=depth)
    assert only == said[4:6]
    assert await missing(evil, room_id, latest_events=["$nothing", "x\0"]) == []


@pytest.mark.spec("client-server-api#room-history-visibility")
async def test_a10_what_nobody_of_a_server_could_see_is_sent_redacted(
    hs1: Homeserver, alice: User, evil: EvilServer
):
    room_id = await alice.create_room()
    await alice.put_state(room_id, "m.room.history_visibility", {"history_visibility": "joined"})
    hidden = await alice.say(room_id, "before")
    await let_in(evil, room_id)
    shown = await alice.say(room_id, "after")

    page = await told(evil, f"/backfill/{quote(room_id)}", ("v", shown), ("limit", "3"))
    (single,) = (await told(evil, f"/event/{quote(hidden)}"))["pdus"]
    by_time = await told(
        evil, f"/timestamp_to_event/{quote(room_id)}", ("ts", str(2**50)), ("dir", "b")
    )

    contents = {event_id: pdu["content"] for event_id, pdu in zip(
        ids(page["pdus"]), page["pdus"], strict=True
    )}  # fmt: skip
    assert contents[shown]["body"] == "after"
    assert contents[hidden] == {}
    assert single["content"] == {}
    assert ids([single]) == [hidden]
    assert by_time["event_id"] == shown


async def test_s_15_what_is_sticky_is_hidden_from_no_server_in_the_room(
    hs1: Homeserver, alice: User, evil: EvilServer, clock: ManualClock
):
    room_id = await alice.create_room()
    await alice.put_state(room_id, "m.room.history_visibility", {"history_visibility": "joined"})
    path = f"/rooms/{quote(room_id)}/send/m.room.message/s"
    duration = {unstable.STICKY_DURATION_PARAMETER.unstable: "60000"}
    sticky = (await alice.call("PUT", path, {"body": "sticky"}, **duration))["event_id"]
    plain = await alice.say(room_id, "plain")
    await let_in(evil, room_id)
    shown = await alice.say(room_id, "after")

    async def bodies() -> dict[str, object]:
        page = await told(evil, f"/backfill/{quote(room_id)}", ("v", shown), ("limit", "4"))
        (single,) = (await told(evil, f"/event/{quote(sticky)}"))["pdus"]
        pdus = [*page["pdus"], single]
        return {e: p["content"].get("body") for e, p in zip(ids(pdus), pdus, strict=True)}

    found = await bodies()
    assert (found[sticky], found[plain], found[shown]) == ("sticky", None, "after")
    between = await missing(evil, room_id, latest_events=[shown], limit=4)
    assert sticky in between
    clock.advance_ms(60_000)
    assert (await bodies())[sticky] is None, "it is an ordinary event now"


async def test_redacted_events_stay_redacted(hs1: Homeserver, alice: User, evil: EvilServer):
    room_id = await alice.create_room()
    await let_in(evil, room_id)
    event_id = await alice.say(room_id, "a secret")
    await alice.call("PUT", f"/rooms/{quote(room_id)}/redact/{quote(event_id)}/1", {})

    (pdu,) = (await told(evil, f"/event/{quote(event_id)}"))["pdus"]

    assert pdu["content"] == {}
    assert ids([pdu]) == [event_id]


async def test_a_server_that_has_left_is_no_authority(federation: Federation):
    hs1, hs2 = await two(federation)
    alice, bob = await hs1.register("alice"), await hs2.register("bob")
    room_id = await alice.create_room()
    event_id = await alice.say(room_id)
    await enter(bob, room_id, "hs1")
    await bob.leave(room_id)

    answer = await hs1.services.remote.get_state_ids("hs2", room_id, event_id)

    assert not isinstance(answer, dict)
    assert (answer.status, answer.errcode) == (404, "M_NOT_FOUND")
