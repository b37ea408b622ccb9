"""One row for each authorization rule: an event that it refuses, and one as like it as possible.

A03 of the list of attacks. Each row is played in every room version that has the rule; a rule of
the code without a row fails here. The many combinations are in the tables that `test_vectors`
replays, and the rules about proofs of third parties in `test_event_auth`.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from minihs.protocol import event_auth
from minihs.protocol.canonical_json import INTEGER_MAX
from minihs.protocol.event_auth import (
    check_against_auth_events,
    check_state_dependent,
    check_state_independent,
)
from minihs.protocol.events import Event
from minihs.protocol.signatures import sign_json
from tests.helpers.mirror import forge
from tests.helpers.rooms import ALICE, BOB, CAROL, MALLORY, Room, signing_key
from tests.protocol.test_event_auth import MEMBER, MODERATED, crowded, refusal, state

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

POWER = "m.room.power_levels"
EVE, DAVE = "@eve:hs1", "@dave:hs1"
VERSIONS = [str(number) for number in range(1, 13)]


@dataclass(frozen=True, slots=True)
class Attempt:
    """What somebody tries; `changes` are made to the finished event."""

    sender: str
    type: str
    content: Mapping[str, object]
    state_key: str | None = None
    changes: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A rule: who breaks it, and who does not; since and until when there is such a rule."""

    bad: Attempt
    good: Attempt
    since: int = 1
    until: int = 12
    arrange: Callable[[Room], object] | None = None


def member(sender: str, target: str, membership: object, **more: object) -> Attempt:
    content = {"membership": membership, **more}
    return Attempt(sender, MEMBER, content, target)


def power(sender: str = BOB, **changes: object) -> Attempt:
    return Attempt(sender, POWER, {**MODERATED, "users": {BOB: 50}, **changes}, "")


def rule(name: str, **more: object) -> Callable[[Room], object]:
    content = {"join_rule": name, **more}
    return lambda room: room.send(ALICE, "m.room.join_rules", content, state_key="")


def with_dave(room: Room) -> None:
    """A second moderator, and a room of whoever knocks."""
    room.join(DAVE)
    users = {BOB: 50, DAVE: 50}
    if not room.room_version.creators_are_privileged:
        users[ALICE] = 100
    room.send(ALICE, POWER, {**MODERATED, "users": users}, state_key="")


def address_invited(room: Room) -> None:
    """Bob has invited somebody by an address."""
    keys = [{"public_key": signing_key("id.test").public_key_base64}]
    content = {"display_name": "e", "public_keys": keys}
    room.send(BOB, "m.room.third_party_invite", content, state_key="token")


def proof(mxid: str = EVE, of: str = "token", **more: object) -> dict[str, object]:
    return sign_json({"mxid": mxid, "token": of}, "id.test", signing_key("id.test")) | more  # type: ignore[return-value]


def by_address(signed: object, sender: str = BOB, target: str = EVE) -> Attempt:
    return member(sender, target, "invite", third_party_invite={"signed": signed})


MESSAGE = Attempt(CAROL, "m.room.message", {"body": "tea?"})
VOUCHED = {"join_authorised_via_users_server": BOB}

STATE_DEPENDENT: dict[str, list[Row]] = {
    "sender.not-joined": [Row(Attempt(EVE, "m.room.message", {}), MESSAGE)],
    "event.level": [
        Row(
            Attempt(CAROL, "m.room.topic", {}, ""), Attempt(BOB, "m.room.topic", {}, "")
        )
    ],
    "state_key.user": [
        Row(Attempt(BOB, "m.test", {}, CAROL), Attempt(BOB, "m.test", {}, BOB)),
    ],
    "third_party_invite.level": [
        Row(
            Attempt(CAROL, "m.room.third_party_invite", {}, "t"),
            Attempt(BOB, "m.room.third_party_invite", {}, "t"),
        )
    ],
    "aliases.state_key": [
        Row(
            Attempt(CAROL, "m.room.aliases", {}, "hs1"),
            Attempt(CAROL, "m.room.aliases", {}, "hs2"),
            until=5,
        ),
        Row(
            Attempt(CAROL, "m.room.aliases", {}),
            Attempt(CAROL, "m.room.aliases", {}, "hs2"),
            until=5,
        ),
    ],
    "redaction.level": [
        Row(
            Attempt(CAROL, "m.room.redaction", {}, None, {"redacts": "$a:hs1"}),
            Attempt(CAROL, "m.room.redaction", {}, None, {"redacts": "$a:hs2"}),
            until=2,
        ),
        Row(
            Attempt(CAROL, "m.room.redaction", {}, None, {"redacts": "$a:hs1"}),
            Attempt(BOB, "m.room.redaction", {}, None, {"redacts": "$a:hs2"}),
            until=2,
        ),
    ],
    "member.form": [
        Row(Attempt(CAROL, MEMBER, {"membership": "join"}), member(CAROL, CAROL, "join")),
        Row(member(CAROL, CAROL, 1), member(CAROL, CAROL, "join")),
        Row(Attempt(CAROL, MEMBER, {}, CAROL), member(CAROL, CAROL, "join")),
    ],
    "member.unknown": [
        Row(member(CAROL, CAROL, "hover"), member(CAROL, CAROL, "leave")),
        Row(member(EVE, EVE, "knock"), member(EVE, EVE, "join"), until=6),
    ],
    "member.join.sender": [Row(member(BOB, EVE, "join"), member(EVE, EVE, "join"))],
    "member.join.banned": [Row(member(MALLORY, MALLORY, "join"), member(EVE, EVE, "join"))],
    "member.join.invite": [
        Row(member(EVE, EVE, "join"), member(CAROL, CAROL, "join"), arrange=rule("invite")),
        Row(
            member(EVE, EVE, "join"), member(CAROL, CAROL, "join"), 7, arrange=rule("knock")
        ),
    ],
    "member.join.restricted": [
        Row(
            member(EVE, EVE, "join"),
            member(EVE, EVE, "join", **VOUCHED),
            8,
            arrange=rule("restricted", allow=[]),
        ),
        Row(
            member(EVE, EVE, "join", join_authorised_via_users_server=CAROL),
            member(EVE, EVE, "join", **VOUCHED),
            8,
            arrange=rule("restricted", allow=[]),
        ),
        Row(
            member(EVE, EVE, "join", join_authorised_via_users_server=MALLORY),
            member(CAROL, CAROL, "join"),
            10,
            arrange=rule("knock_restricted", allow=[]),
        ),
    ],
    "member.join.rule": [
        Row(member(EVE, EVE, "join"), member(ALICE, EVE, "invite"), arrange=rule("private")),
        Row(
            member(EVE, EVE, "join", **VOUCHED),
            member(ALICE, EVE, "invite"),
            until=7,
            arrange=rule("restricted", allow=[]),
        ),
        Row(
            member(EVE, EVE, "join", **VOUCHED),
            member(ALICE, EVE, "invite"),
            until=9,
            arrange=rule("knock_restricted", allow=[]),
        ),
    ],
    "member.invite.sender": [Row(member(EVE, DAVE, "invite"), member(BOB, DAVE, "invite"))],
    "member.invite.target": [
        Row(member(BOB, CAROL, "invite"), member(BOB, EVE, "invite")),
        Row(member(BOB, MALLORY, "invite"), member(BOB, EVE, "invite")),
    ],
    "member.invite.level": [Row(member(CAROL, EVE, "invite"), member(BOB, EVE, "invite"))],
    "member.invite.third-party.banned": [
        Row(by_address(proof(MALLORY), target=MALLORY), by_address(proof()),
            arrange=address_invited),
    ],
    "member.invite.third-party.form": [
        Row(by_address({"mxid": EVE, "token": "token"}), by_address(proof()),
            arrange=address_invited),
        Row(by_address(None), by_address(proof()), arrange=address_invited),
    ],
    "member.invite.third-party.mxid": [
        Row(by_address(proof(CAROL)), by_address(proof()), arrange=address_invited),
    ],
    "member.invite.third-party.token": [
        Row(by_address(proof(of="x")), by_address(proof()), arrange=address_invited),
    ],
    "member.invite.third-party.sender": [
        Row(by_address(proof(), sender=ALICE), by_address(proof()), arrange=address_invited),
    ],
    "member.invite.third-party.signature": [
        Row(by_address(proof(more=1)), by_address(proof()), arrange=address_invited),
    ],
    "member.leave.own": [
        Row(member(EVE, EVE, "leave"), member(CAROL, CAROL, "leave")),
        Row(member(MALLORY, MALLORY, "leave"), member(CAROL, CAROL, "leave")),
    ],
    "member.leave.sender": [Row(member(EVE, CAROL, "leave"), member(BOB, CAROL, "leave"))],
    "member.leave.unban": [
        Row(member(CAROL, MALLORY, "leave"), member(BOB, MALLORY, "leave")),
    ],
    "member.leave.kick": [
        Row(member(CAROL, BOB, "leave"), member(BOB, CAROL, "leave")),
        Row(member(BOB, ALICE, "leave"), member(ALICE, BOB, "leave")),
        Row(member(BOB, DAVE, "leave"), member(BOB, CAROL, "leave"), arrange=with_dave),
    ],
    "member.ban.sender": [Row(member(EVE, CAROL, "ban"), member(BOB, CAROL, "ban"))],
    "member.ban.level": [
        Row(member(CAROL, EVE, "ban"), member(BOB, EVE, "ban")),
        Row(member(BOB, DAVE, "ban"), member(BOB, CAROL, "ban"), arrange=with_dave),
    ],
    "member.knock.rule": [
        Row(member(EVE, EVE, "knock"), member(EVE, EVE, "join"), 7),
        Row(
            member(EVE, EVE, "knock"),
            member(BOB, EVE, "invite"),
            7,
            9,
            rule("knock_restricted", allow=[]),
        ),
    ],
    "member.knock.sender": [
        Row(member(BOB, EVE, "knock"), member(EVE, EVE, "knock"), 7, arrange=rule("knock")),
        Row(
            member(BOB, EVE, "knock"),
            member(EVE, EVE, "knock"),
            10,
            arrange=rule("knock_restricted", allow=[]),
        ),
    ],
    "member.knock.membership": [
        Row(member(CAROL, CAROL, "knock"), member(EVE, EVE, "knock"), 7, arrange=rule("knock")),
        Row(
            member(MALLORY, MALLORY, "knock"), member(EVE, EVE, "knock"), 7, arrange=rule("knock")
        ),
    ],
    "power_levels.integers": [
        Row(power(ban="50"), power(ban=50), 10),
        Row(power(ban=50.0), power(ban=50), 10),
        Row(power(ban=True), power(ban=50), 10),
        Row(power(events={"m.x": "1"}), power(events={"m.x": 1}), 10),
        Row(power(events=[]), power(events={}), 10),
        Row(power(users={BOB: "50"}), power(), 10),
    ],
    "power_levels.users": [
        Row(power(users={BOB: 50, "carol": 1}), power(users={BOB: 50, CAROL: 1})),
        Row(power(users=[]), power(), until=9),
        Row(power(users={BOB: 50, CAROL: "high"}), power(users={BOB: 50, CAROL: "1"}), until=9),
    ],
    "power_levels.creators": [
        Row(power(ALICE, users={BOB: 50, ALICE: 50}), power(ALICE, users={BOB: 51}), 12),
    ],
    "power_levels.change": [
        Row(power(users={BOB: 51}), power(users={BOB: 49})),
        Row(power(ban=60), power(ban=40)),
        Row(power(events={"m.x": 51}), power(events={"m.x": 50})),
        Row(power(notifications={"room": 51}), power(notifications={"room": 50}), 6),
        Row(
            power(users={BOB: 50, CAROL: 51}), power(users={BOB: 50, CAROL: 50}),
        ),
    ],
    "power_levels.equal": [
        Row(power(users={BOB: 50, DAVE: 0}), power(users={DAVE: 50, BOB: 0}), arrange=with_dave),
    ],
}  # fmt: skip


def played(rows: Mapping[str, list[Row]]) -> list[tuple[str, int, str]]:
    return [
        (name, number, version)
        for name, some in rows.items()
        for number, row in enumerate(some)
        for version in VERSIONS
        if row.since <= int(version) <= row.until
    ]


def with_alice(version: str, attempt: Attempt) -> Mapping[str, object]:
    """Return the content; where creators are not above all, their level must not be taken away."""
    users = attempt.content.get("users")
    if attempt.type != POWER or not isinstance(users, dict) or int(version) == 12:
        return attempt.content
    return {**attempt.content, "users": {ALICE: 100, **users}}


def tried(room: Room, attempt: Attempt) -> Event:
    """Return the event that somebody tries to send, its numbers as they are."""
    version = room.room_version
    content = with_alice(version.identifier, attempt)
    if attempt.type == POWER and DAVE in room_members(room) and DAVE not in content["users"]:  # type: ignore[operator]
        content = {**content, "users": {**content["users"], DAVE: 50}}  # type: ignore[dict-item]
    draft = room.draft(attempt.sender, attempt.type, {}, state_key=attempt.state_key)
    event_id = draft.event_id if version.event_id_source == "server" else None
    pdu = forge(draft, {**(attempt.changes or {}), "content": content})
    return Event.from_pdu(pdu, version, event_id)


def room_members(room: Room) -> set[str]:
    return {key for kind, key in room.state_of(room.ends) if kind == MEMBER}


@pytest.mark.spec(*(f"rooms/v{version}#authorisation-rules" for version in VERSIONS))
@pytest.mark.parametrize(("name", "number", "version"), played(STATE_DEPENDENT))
def test_A03_each_rule_refuses_what_it_is_for_and_nothing_else(
    name: str, number: int, version: str
) -> None:
    row = STATE_DEPENDENT[name][number]
    room = crowded(version)
    if row.arrange is not None:
        row.arrange(room)
    bad, good = tried(room, row.bad), tried(room, row.good)
    assert refusal(check_state_dependent, bad, state(room)) == name
    assert refusal(check_state_dependent, good, state(room)) is None


# --- rules that need no state -------------------------------------------------------------------


def of_create(version: str) -> dict[str, tuple[dict[str, object], ...]]:
    """Return what makes a create event a bad one, by rule."""
    old, new = int(version) < 12, int(version) >= 12
    content: dict[str, object] = {"room_version": version}
    prev: object = [["$e:hs1", {}]] if int(version) < 3 else ["$e"]
    if int(version) < 11:
        content["creator"] = ALICE
    changes: dict[str, tuple[dict[str, object], ...]] = {
        "create.prev_events": ({"prev_events": prev},),
        "create.room_id": ({"room_id": "!room:hs2"} if old else {"room_id": "!room:hs1"},),
        "create.room_version": (
            {"content": {**content, "room_version": "999"}},
            {"content": {**content, "room_version": ["1"]}},
        ),
    }
    if int(version) < 11:
        changes["create.creator"] = ({"content": {"room_version": version}},)
    if new:
        changes["create.additional_creators"] = tuple(
            {"content": {**content, "additional_creators": wrong}}
            for wrong in (BOB, ["bob"], [1], {}, [BOB, None])
        )
    return changes


@pytest.mark.spec(*(f"rooms/v{version}#authorisation-rules" for version in VERSIONS))
@pytest.mark.parametrize("version", VERSIONS)
def test_A03_A05_rules_of_create_events(version: str) -> None:
    create = Room(version).create
    assert refusal(check_state_independent, create, []) is None
    for name, wrong in of_create(version).items():
        for changes in wrong:
            pdu = {**create.pdu, **changes}
            event = Event.from_pdu(pdu, create.room_version, create.event_id)
            assert refusal(check_state_independent, event, []) == name, changes


@pytest.mark.spec(*(f"rooms/v{version}#authorisation-rules" for version in VERSIONS))
@pytest.mark.parametrize("version", VERSIONS)
def test_A03_rules_of_auth_events(version: str) -> None:
    room = crowded(version)
    message = room.send(BOB, "m.room.message", {"body": "x"})
    topic = room.send(BOB, "m.room.topic", {"topic": "x"}, state_key="")
    event = room.draft(BOB, "m.room.message", {"body": "y"})
    auth = [room.events[e] for e in event.auth_event_ids]
    assert refusal(check_against_auth_events, event, auth) is None

    def naming(*named: Event) -> Event:
        ids: list[object] = [one.event_id for one in named]
        if room.room_version.event_id_source == "server":
            ids = [[event_id, {}] for event_id in ids]
        return Event.from_pdu(
            forge(event, auth_events=ids), room.room_version,
            event.event_id if room.room_version.event_id_source == "server" else None,
        )  # fmt: skip

    def refused(named: list[Event], rejected: Event | None = None) -> str | None:
        ids = () if rejected is None else (rejected.event_id,)
        attempt = naming(*named)
        known = [*named, room.create]
        return refusal(check_state_independent, attempt, known, ids)

    implied = room.room_version.room_id_is_create_event_id
    named = [one for one in auth if not implied or one.key != ("m.room.create", "")]
    assert refused(named) is None
    assert refused([*named, named[-1]]) == "auth_events.duplicate"
    assert refused([*named, topic]) == "auth_events.selection"
    assert refused([*named, message]) == "auth_events.selection"
    assert refused(named, named[-1]) == "auth_events.rejected"
    assert refusal(check_state_independent, naming(*named), [room.create]) == "auth_events.unknown"
    pdu = {**named[-1].pdu, "room_id": "!elsewhere:hs1"}
    foreign = Event.from_pdu(pdu, room.room_version, named[-1].event_id)
    assert refused([*named[:-1], foreign]) == "auth_events.room_id"
    if implied:
        assert refused(named, room.create) == "room_id.create"
        lie = Event.from_pdu(
            {**event.pdu, "room_id": "!" + message.event_id[1:]}, room.room_version
        )
        known = [*auth, message]
        assert refusal(check_state_independent, lie, known) == "room_id.create"
        assert refused([*named, room.create]) == "auth_events.selection"
    else:
        without = [one for one in named if one.key != ("m.room.create", "")]
        assert refused(without) == "auth_events.create"
    unsigned = Event.from_pdu({**event.pdu, "signatures": {}}, room.room_version, event.event_id)
    assert refusal(check_against_auth_events, unsigned, auth) == "signatures.missing"


@pytest.mark.parametrize("version", VERSIONS)
def test_A03_rules_of_the_create_event_for_others(version: str) -> None:
    room = crowded(version)
    event = room.draft(BOB, "m.room.message", {"body": "x"})
    whole = state(room)
    without = {key: e for key, e in whole.items() if key != ("m.room.create", "")}
    assert refusal(check_state_dependent, event, without) == "room.create"
    content = {**room.create.content, "m.federate": False}
    closed = Event.from_pdu(
        {**room.create.pdu, "content": content}, room.room_version, room.create.event_id
    )
    whole[closed.key] = closed
    foreign = room.draft(CAROL, "m.room.message", {"body": "x"})
    assert refusal(check_state_dependent, foreign, whole) == "room.federate"
    invite = room.draft(ALICE, MEMBER, {"membership": "invite"}, state_key="@eve:hs2")
    assert refusal(check_state_dependent, invite, whole) == "member.federate"
    assert refusal(check_state_dependent, event, whole) is None


def test_A03_every_rule_has_a_row() -> None:
    """Each name that the code gives to a rule is a key of the tables, or stands in a test here."""
    names: set[str] = set()
    package = Path(str(event_auth.__file__)).parent
    for path in package.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Name(id="rejection"), args=[_, ast.Constant(str(name)), *_]):
                    names.add(name)
                case ast.Call(func=ast.Name(id="_no"), args=[_, ast.Constant(str(name)), *_]):
                    names.add(f"member.{name}")
                case _:
                    pass
    here = Path(__file__).read_text()
    assert len(names) > 40
    assert {name for name in names if f'"{name}"' not in here} == set()
    # Of `_check_sender_joined` each membership is a rule of its own.
    assert {"member.invite.sender", "member.leave.sender", "member.ban.sender"} <= set(
        STATE_DEPENDENT
    )


# --- levels that are none -----------------------------------------------------------------------

ODD = ["50", " 50 ", "+50", 50.0, 50.9, True, "high", None, [], {}, 10**30, "9" * 400, -1]


@pytest.mark.spec(
    "rooms/v1#mroompower_levels-events-accept-values-as-strings",
    "rooms/v10#values-in-mroompower_levels-events-must-be-integers",
)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("odd", ODD, ids=lambda odd: repr(odd)[:12])
@pytest.mark.parametrize("place", ["ban", "users", "events", "notifications", "users_default"])
def test_A04_odd_levels_give_nobody_power(version: str, odd: object, place: str) -> None:
    """Until v9 some count as numbers; since v10 none does. Nobody gets more than they may give."""
    if odd == 10**30 and int(version) >= 6:  # Since v6 an event with such a number is none.
        odd = INTEGER_MAX
    value = {"users": {BOB: 50, CAROL: odd}, "events": {"m.x": odd}, "notifications": {"room": odd}}
    room = crowded(version)
    event = tried(room, power(**{place: value.get(place, odd)}))
    name = refusal(check_state_dependent, event, state(room))
    if int(version) >= 10:
        if type(odd) is not int:
            assert name == "power_levels.integers"
        elif odd > 50:
            assert name == "power_levels.change"
        return
    assert name in (None, "power_levels.change", "power_levels.users")
    if name is None:
        after = {**state(room), event.key: event}
        topic = room.draft(CAROL, "m.room.topic", {"topic": "x"}, state_key="")
        ban = room.draft(CAROL, MEMBER, {"membership": "ban"}, state_key=ALICE)
        assert refusal(check_state_dependent, ban, after) == "member.ban.level"
        has_fifty = place in ("users", "users_default") and odd in ("50", " 50 ", "+50", 50.0, 50.9)
        assert (refusal(check_state_dependent, topic, after) is None) == has_fifty
