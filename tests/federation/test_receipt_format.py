"""PDUs that are not what they should be: J05-J14, S01, S03 of the list of attacks.

Each is pushed between two good events: whatever is wrong with it, the others arrive.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import orjson
import pytest

from minihs.protocol.canonical_json import encode_lenient
from minihs.protocol.events import Event
from tests.helpers.mirror import Absent, forge, id_of, push, refresh
from tests.helpers.rooms import ALICE, MALLORY

if TYPE_CHECKING:
    from minihs.storage.event_store import StoredEvent
    from tests.helpers.homeserver import Homeserver, User
    from tests.helpers.network import EvilServer
    from tests.helpers.rooms import Room

pytestmark = pytest.mark.spec("server-server-api#checks-performed-on-receipt-of-a-pdu")

INTEGER_MAX = 2**53 - 1


def draft(room: Room, content: dict | None = None) -> Event:
    """Return a message that is not in the room."""
    event = room.draft(MALLORY, "m.room.message", content or {"body": "bad"})
    if room.room_version.event_id_source != "server":
        return event
    return Event.from_pdu(forge(event, event_id="$draft:evil"), room.room_version)


async def outcome(
    hs1: Homeserver, evil: EvilServer, room: Room, pdu: dict, event: Event
) -> tuple[str | None, StoredEvent | None]:
    """Push a PDU with good ones around it; return why it was dropped, and what is stored."""
    first = room.send(MALLORY, "m.room.message", {"body": "before"})
    last = room.send(MALLORY, "m.room.message", {"body": "after"}, prev=[first])
    results = await push(evil, hs1, [first, pdu, last])
    assert results[first.event_id] == results[last.event_id] == {}
    for good in (first, last):
        stored = await hs1.services.events.get(good.event_id)
        assert stored is not None
        assert stored.order is not None
    try:
        event_id = id_of(pdu, event)
    except (TypeError, ValueError, KeyError, AttributeError):
        return "it has no id", None
    if "\0" in event_id:  # No such id is stored anywhere.
        return "it has no id", None
    hs1.services.events.forget(event_id)
    result = results.get(event_id, {"error": "it has no id"})
    return result.get("error"), await hs1.services.events.get(event_id)


async def dropped(hs1: Homeserver, evil: EvilServer, room: Room, pdu: dict, event: Event) -> str:
    """Push a PDU that must be dropped; return why it was."""
    error, stored = await outcome(hs1, evil, room, pdu, event)
    assert stored is None
    assert error is not None
    return error


@pytest.mark.parametrize("number", [INTEGER_MAX, -INTEGER_MAX, 0])
async def test_J05_integers_of_canonical_json_are_accepted(
    hs1: Homeserver, evil: EvilServer, room: Room, number: int
):
    event = draft(room, {"body": "number", "n": number})
    error, stored = await outcome(hs1, evil, room, event.pdu, event)
    assert error is None
    assert stored is not None
    assert stored.event.content["n"] == number


@pytest.mark.parametrize(
    "number", [2**53, -(2**53), 10**30, -(10**30), 1.0, 1e2, 1.5, [[{"deep": 0.5}]]]
)
async def test_J05_other_numbers_are_not(
    hs1: Homeserver, evil: EvilServer, room: Room, number: object
):
    event = draft(room)
    pdu = forge(event, content={"body": "number", "n": number})
    assert "Canonical JSON" in await dropped(hs1, evil, room, pdu, event)


@pytest.mark.parametrize("numeral", [b"-0", b"NaN", b"Infinity", b"1e400", b"-1e2", b"00", b"+1"])
async def test_J05_numerals_that_are_none_drop_their_pdu_or_are_no_json(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, numeral: bytes
):
    """As a `-0` reaches us, it is signed as what it counts for: 0."""
    good, bad = draft(room), draft(room, {"body": "numeral", "n": 0})
    text = orjson.dumps(bad.pdu).replace(b'"n":0', b'"n":' + numeral)
    status, answer = await push_raw(hs1, evil, b"[" + text + b"," + orjson.dumps(good.pdu) + b"]")
    if numeral in (b"-0", b"-1e2"):
        assert status == 200
        assert answer["pdus"].pop(good.event_id) == {}
        (result,) = answer["pdus"].values()
        assert "Canonical JSON" in result["error"]
    else:
        assert (status, answer["errcode"]) == (400, "M_NOT_JSON")
    assert await hs1.services.events.get(bad.event_id) is None


@pytest.mark.parametrize("version", ["5"])
async def test_J06_minus_zero_is_zero_there(hs1: Homeserver, evil: EvilServer, room: Room):
    event = draft(room, {"body": "numeral", "n": 0})
    text = orjson.dumps(event.pdu).replace(b'"n":0', b'"n":-0')
    assert await push_raw(hs1, evil, b"[" + text + b"]") == (200, {"pdus": {event.event_id: {}}})
    stored = await hs1.services.events.get(event.event_id)
    assert stored is not None
    assert b'"n":0' in stored.event.json


@pytest.mark.parametrize("version", ["1", "3", "5"])
@pytest.mark.parametrize("number", [2**53, 10**30, 1.0, 1.5, 1e100])
async def test_J06_old_rooms_may_have_them_and_they_are_kept(
    hs1: Homeserver, evil: EvilServer, room: Room, number: float
):
    event = draft(room)
    pdu = forge(event, content={"body": "number", "n": number})
    error, stored = await outcome(hs1, evil, room, pdu, event)
    assert error is None
    assert stored is not None
    assert stored.event.json == encode_lenient(pdu)
    assert stored.event.content["n"] == number


@pytest.mark.parametrize("version", ["1", "4"])
async def test_J06_and_whoever_looks_is_shown_them(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    """Also those outside: what an invite shows of the room has them."""
    levels = {"users": {ALICE: 100, MALLORY: 100}}
    await alice.put_state(room.room_id, "m.room.power_levels", levels)
    await refresh(room, hs1)
    bob = await hs1.register("bob")
    rules = {"join_rule": "invite", "n": 10**30, "x": 1.5}
    draft = room.draft(MALLORY, "m.room.join_rules", {"join_rule": "invite"}, state_key="")
    event = Event.from_pdu(forge(draft, content=rules), room.room_version)
    assert await push(evil, hs1, [event]) == {event.event_id: {}}
    path = f"/rooms/{quote(room.room_id)}"
    await alice.call("POST", f"{path}/invite", {"user_id": bob.user_id})
    answer = await bob.request("GET", "/sync")
    assert room.room_id in answer.json["rooms"]["invite"]
    assert b'"x":1.5' in answer.body
    await bob.join(room.room_id)
    for what in ("/sync", f"{path}/state", f"{path}/messages", f"{path}/state/m.room.join_rules"):
        query = {"dir": "b"} if "messages" in what else {}
        response = await bob.request("GET", what, **query)
        assert response.status == 200
        assert str(10**30).encode() in response.body


async def push_raw(hs1: Homeserver, evil: EvilServer, pdus: bytes) -> tuple[int, dict]:
    """Send a transaction with exactly these bytes for its PDUs; return status and answer."""
    body = b'{"origin": "evil", "origin_server_ts": 1, "pdus": ' + pdus + b"}"
    path = f"/_matrix/federation/v1/send/raw{len(evil.network.log)}"
    answer = await evil.send_bytes(hs1.name, "PUT", path, body)
    return answer.status, orjson.loads(answer.body)


async def test_J07_of_duplicate_keys_one_counts_for_everybody(
    hs1: Homeserver, evil: EvilServer, room: Room
):
    event = draft(room, {"body": "the last"})
    text = orjson.dumps(event.pdu)
    doubled = text.replace(b'{"body":', b'{"body":"the first","body":')
    assert doubled != text
    status, answer = await push_raw(hs1, evil, b"[" + doubled + b"]")
    assert (status, answer) == (200, {"pdus": {event.event_id: {}}})
    stored = await hs1.services.events.get(event.event_id)
    assert stored is not None
    assert stored.event.content == {"body": "the last"}
    assert b"the first" not in stored.event.json


async def test_J07_and_the_hash_is_of_what_counts(hs1: Homeserver, evil: EvilServer, room: Room):
    event = draft(room, {"body": "the first"})
    doubled = orjson.dumps(event.pdu).replace(b'"the first"', b'"the first","body":"the last"')
    status, _ = await push_raw(hs1, evil, b"[" + doubled + b"]")
    assert status == 200
    stored = await hs1.services.events.get(event.event_id)
    assert stored is not None
    assert stored.event.content == {}


async def test_J08_a_nul_in_a_text_is_kept(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    content = {"body": "a\0b", "m.relates_to": {"rel_type": "m.thread", "event_id": "$\0"}}
    event = draft(room, content)
    error, stored = await outcome(hs1, evil, room, event.pdu, event)
    assert error is None
    assert stored is not None
    path = f"/rooms/{quote(room.room_id)}/event/{quote(event.event_id)}"
    assert (await alice.call("GET", path))["content"]["body"] == "a\0b"


async def test_J08_a_nul_in_a_name_is_kept(hs1: Homeserver, evil: EvilServer, room: Room):
    content = {"membership": "join", "displayname": "Mal\0ory", "reason": "\0"}
    event = room.draft(MALLORY, "m.room.member", content, state_key=MALLORY)
    error, stored = await outcome(hs1, evil, room, event.pdu, event)
    assert error is None
    assert stored is not None
    assert stored.event.content["displayname"] == "Mal\0ory"


@pytest.mark.parametrize(
    "changes",
    [
        {"type": "a\0b"},
        {"state_key": "a\0b"},
        {"sender": "@mal\0lory:evil"},
        {"prev_events": ["$\0"]},
        {"auth_events": ["$\0"]},
    ],
)
@pytest.mark.parametrize("version", ["2", "12"])
async def test_J08_a_nul_in_an_identifier_is_not(
    hs1: Homeserver, evil: EvilServer, room: Room, changes: dict
):
    event = draft(room)
    if room.room_version.event_id_source == "server":
        changes = {
            key: [[e, {}] for e in value] if isinstance(value, list) else value
            for key, value in changes.items()
        }
    assert await dropped(hs1, evil, room, forge(event, changes), event)


@pytest.mark.parametrize("version", ["1", "2"])
async def test_J08_nor_in_an_id_that_its_server_chose(
    hs1: Homeserver, evil: EvilServer, room: Room
):
    event = draft(room)
    assert await dropped(hs1, evil, room, forge(event, event_id="$\0:evil"), event)


async def test_J08_a_redaction_of_a_nul_redacts_nothing(
    hs1: Homeserver, evil: EvilServer, room: Room
):
    event = room.draft(MALLORY, "m.room.redaction", {"redacts": "$\0"})
    error, stored = await outcome(hs1, evil, room, event.pdu, event)
    assert error is None
    assert stored is not None


async def test_J09_a_lone_surrogate_is_no_json(hs1: Homeserver, evil: EvilServer, room: Room):
    event = draft(room, {"body": "surrogate"})
    text = orjson.dumps(event.pdu).replace(b'"surrogate"', b'"\\ud800"')
    status, answer = await push_raw(hs1, evil, b"[" + text + b"]")
    assert status == 400, answer
    assert answer["errcode"] in ("M_NOT_JSON", "M_BAD_JSON")


WRONG: dict[str, list[object]] = {
    "type": [1, None, ["m.room.message"], Absent],
    "state_key": [1, None, {}],
    "sender": [1, None, "mallory", "@mallory", Absent],
    "content": ["body", None, [], 1, Absent],
    "depth": ["1", None, 1.5, True, Absent],
    "prev_events": [None, "$a", {}, [1], [None], [["$a"]], [["$a", {}]], Absent],
    "auth_events": [None, "$a", {}, [1], [["$a", {}]], Absent],
    "hashes": [None, "sha256", [], Absent],
    "signatures": [None, "evil", [], {}, {"evil": None}, {"evil": {}}, Absent],
    "origin_server_ts": ["1", None, 1.5, False, Absent],
}


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, value) for key, values in WRONG.items() for value in values],
    ids=repr,
)
async def test_J10_wrong_types_are_dropped_with_a_reason(
    hs1: Homeserver, evil: EvilServer, room: Room, key: str, value: object
):
    event = draft(room)
    assert await dropped(hs1, evil, room, forge(event, {key: value}), event)


@pytest.mark.parametrize("room_id", [1, None, "room", "!" + "a" * 300, "!other:evil", Absent])
async def test_J10_events_of_no_room_are_dropped(
    hs1: Homeserver, evil: EvilServer, room: Room, room_id: object
):
    event = draft(room)
    _, stored = await outcome(hs1, evil, room, forge(event, room_id=room_id), event)
    assert stored is None


@pytest.mark.parametrize("pdu", [None, 1, "pdu", [], [[]], {}])
async def test_J10_what_is_no_event_at_all_is_dropped(
    hs1: Homeserver, evil: EvilServer, room: Room, pdu: object
):
    event = draft(room)
    assert await push(evil, hs1, [pdu, event]) == {event.event_id: {}}  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("version", "accepted"), [("9", True), ("10", True), ("11", False), ("12", False)]
)
async def test_J11_long_fields_are_counted_as_the_room_version_does(
    hs1: Homeserver, evil: EvilServer, room: Room, *, accepted: bool
):
    for count, is_accepted in ((63, True), (64, accepted), (255, accepted), (256, False)):
        event = room.draft(MALLORY, "m.room.message", {"body": "long"})
        pdu = forge(event, type="💥" * count)  # four bytes each
        error, stored = await outcome(hs1, evil, room, pdu, event)
        assert (stored is not None) == is_accepted, (count, error)


@pytest.mark.parametrize(
    "changes",
    [
        {"prev_events": [f"${n}" for n in range(21)]},
        {"auth_events": [f"${n}" for n in range(11)]},
    ],
    ids=["prev_events", "auth_events"],
)
async def test_J12_too_many_references_are_dropped(
    hs1: Homeserver, evil: EvilServer, room: Room, changes: dict
):
    event = draft(room)
    reason = await dropped(hs1, evil, room, forge(event, changes), event)
    assert "more than" in reason


async def test_J12_doubled_auth_events_are_rejected(hs1: Homeserver, evil: EvilServer, room: Room):
    event = draft(room)
    pdu = forge(event, auth_events=[*event.auth_event_ids[:2], event.auth_event_ids[0]])
    error, stored = await outcome(hs1, evil, room, pdu, event)
    assert error is None
    assert stored is not None
    assert await rule_of(hs1, stored) == "auth_events.duplicate"


@pytest.mark.parametrize("version", ["1", "2"])
@pytest.mark.parametrize("key", ["prev_events", "auth_events"])
async def test_J12_events_that_refer_to_themselves_or_each_other_are_dropped(
    hs1: Homeserver, evil: EvilServer, room: Room, key: str
):
    event = draft(room)
    itself = forge(event, {key: [[event.event_id, {}]]})
    assert await dropped(hs1, evil, room, itself, event)
    one = forge(event, {key: [["$two:evil", {}]]}, event_id="$one:evil")
    two = forge(event, {key: [["$one:evil", {}]]}, event_id="$two:evil")
    good = room.send(MALLORY, "m.room.message", {"body": "good"})
    results = await push(evil, hs1, [one, two, good])
    assert results[good.event_id] == {}
    assert "error" in results["$one:evil"]
    assert "error" in results["$two:evil"]


@pytest.mark.parametrize("depth", [-1, 2**53, 2**63 - 1, 10**30])
async def test_J13_impossible_depths_are_dropped(
    hs1: Homeserver, evil: EvilServer, room: Room, depth: int
):
    event = draft(room)
    assert await dropped(hs1, evil, room, forge(event, depth=depth), event)


@pytest.mark.parametrize("depth", [0, INTEGER_MAX])
async def test_J13_depth_decides_no_order_and_the_room_stays_usable(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, depth: int
):
    event = draft(room)
    pdu = forge(event, depth=depth)
    error, stored = await outcome(hs1, evil, room, pdu, event)
    assert error is None
    assert stored is not None
    first, second = await alice.say(room.room_id, "one"), await alice.say(room.room_id, "two")
    page = await alice.call("GET", f"/rooms/{quote(room.room_id)}/messages", dir="b", limit="2")
    assert [event["event_id"] for event in page["chunk"]] == [second, first]


@pytest.mark.parametrize("version", ["1", "4"])
async def test_a_time_beyond_all_times_is_the_last_of_old_rooms(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    event = draft(room)
    event = Event.from_pdu(forge(event, origin_server_ts=10**30), room.room_version)
    error, _ = await outcome(hs1, evil, room, event.pdu, event)
    assert error is None
    await alice.say(room.room_id, "one")
    path = f"/_matrix/client/v1/rooms/{quote(room.room_id)}/timestamp_to_event"
    found = await alice.call("GET", path, ts=str(INTEGER_MAX), dir="b")
    assert found["event_id"] == event.event_id


async def test_J14_unsigned_is_nobodys_word(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    event = room.send(MALLORY, "m.room.message", {"body": "unsigned"})
    unsigned = {
        "redacted_because": {"type": "m.room.redaction", "sender": "@alice:hs1"},
        "m.relations": {"m.thread": {"count": 10**6}},
        "membership": "ban",
        "transaction_id": "mine",
        "age": -(10**9),
        "filler": "x" * 1_000_000,
    }
    assert await push(evil, hs1, [{**event.pdu, "unsigned": unsigned}]) == {event.event_id: {}}
    hs1.services.events.forget(event.event_id)
    stored = await hs1.services.events.get(event.event_id)
    assert stored is not None
    assert len(stored.event.json) < 2_000
    shown = await alice.call("GET", f"/rooms/{quote(room.room_id)}/event/{quote(event.event_id)}")
    assert shown["content"] == {"body": "unsigned"}
    assert "ban" not in shown["unsigned"].values()
    assert shown["unsigned"].get("age", 0) >= 0
    assert not shown["unsigned"].keys() & {"redacted_because", "transaction_id", "filler"}
    assert "m.relations" not in shown["unsigned"]


@pytest.mark.spec("server-server-api#validating-hashes-and-signatures-on-received-events")
@pytest.mark.parametrize("signers", [["evil"], ["hs1", "evil"], []])
async def test_S01_nobody_signs_for_the_users_of_others(
    hs1: Homeserver, evil: EvilServer, room: Room, signers: list[str]
):
    event = draft(room)
    pdu = forge(event, signers=signers, sender="@alice:hs1")
    reason = await dropped(hs1, evil, room, pdu, event)
    assert "signature" in reason
    assert "hs1" in reason


@pytest.mark.spec("server-server-api#validating-hashes-and-signatures-on-received-events")
async def test_S01_a_signature_is_of_one_event(hs1: Homeserver, evil: EvilServer, room: Room):
    event, other = draft(room), draft(room, {"body": "other"})
    pdu = forge(event, signatures=other.pdu["signatures"])
    assert "wrong signature" in await dropped(hs1, evil, room, pdu, event)


@pytest.mark.spec("server-server-api#validating-hashes-and-signatures-on-received-events")
async def test_S03_with_a_wrong_hash_an_event_is_redacted(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    event = draft(room)
    pdu = {**event.pdu, "content": {"body": "changed on the way"}, "extra": "changed"}
    error, stored = await outcome(hs1, evil, room, pdu, event)
    assert error is None
    assert stored is not None
    assert stored.event.content == {}
    assert b"changed" not in stored.event.json
    # The event as it was meant comes too late: what it is has been decided.
    assert await push(evil, hs1, [event]) == {event.event_id: {}}
    shown = await alice.call("GET", f"/rooms/{quote(room.room_id)}/event/{quote(event.event_id)}")
    assert shown["content"] == {}


async def rule_of(hs1: Homeserver, stored: StoredEvent) -> object:
    """Return the rule that refused an event."""
    return await hs1.services.db.fetchval(
        "SELECT rule FROM rejections WHERE event_nid = $1", stored.event_nid
    )
