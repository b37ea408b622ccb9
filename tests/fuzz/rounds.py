"""One round: a fresh room of alice's at hs1, in which evil's users are, and what evil does to it.

An input is one request of evil's, or one answer that it gives, made of valid JSON that a `Mutator`
has changed; most events are hashed and signed anew, so that they get past the first door. After
each input nothing may have failed or hung; at the end of the round the database is examined, and
the room must still be of use to those who are in it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import orjson
from typing_extensions import override

from minihs.base.clock import ManualClock
from minihs.protocol.canonical_json import CanonicalJsonError, encode_lenient
from minihs.protocol.event_auth import EventAuthError
from minihs.protocol.events import Event
from minihs.protocol.identifiers import parse_user_id, server_name_of
from minihs.protocol.room_versions import ROOM_VERSIONS
from tests.fuzz.checks import database_problems
from tests.fuzz.mutations import Mutator
from tests.helpers.mirror import Answers, mirror, refresh, seal
from tests.helpers.network import EvilServer, Federation, raw, running_federation
from tests.helpers.rooms import MALLORY, Room
from tests.simulation.node import node_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path
    from random import Random

    from minihs.remote.transport import RawAnswer
    from tests.helpers.homeserver import Homeserver, User
    from tests.helpers.network import Received

V1, V2 = "/_matrix/federation/v1", "/_matrix/federation/v2"
EVE = "@eve:evil"
INPUT_SECONDS_MAX = 180.0  # However busy the machine is.
ROUND_MS = 60_000
# With 502, a user is told that another server was of no help.
CLIENT_5XX = frozenset({502})
VERSIONS = ("12", "11", "10", "12", "11", "12", "9", "8", "7", "6", "5", "4", "3", "2", "1")


class FuzzFailure(AssertionError):
    """Something that no input may bring about."""


class Complaints(logging.Handler):
    """Keeps what the server complains about."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    @override
    def emit(self, record: logging.LogRecord) -> None:
        """Take a line of the log."""
        self.lines.append(self.format(record))


@dataclass
class World:
    """hs1 with alice and bob, and evil; rounds are played in it one after the other."""

    federation: Federation
    hs1: Homeserver
    evil: EvilServer
    alice: User
    bob: User
    clock: ManualClock
    complaints: Complaints
    start_ms: int
    transactions: itertools.count[int] = field(default_factory=itertools.count)

    def next_round(self) -> int:
        """Return the number of a round that can be played after those that have been."""
        return (self.clock.now_ms() - self.start_ms) // ROUND_MS + 1


@asynccontextmanager
async def running_world(
    database: Callable[[], AbstractAsyncContextManager[str]], directory: Path
) -> AsyncIterator[World]:
    """Yield a world. `database` opens a fresh database."""
    clock = ManualClock()
    complaints = Complaints()
    logger = logging.getLogger("minihs")
    level = logger.level
    logger.addHandler(complaints)
    logger.setLevel(logging.ERROR)
    try:
        async with running_federation(database, directory, clock=clock) as federation:
            hs1 = await federation.start("hs1")
            federation.network.add("hs1", node_of(hs1.services))
            alice, bob = await hs1.register("alice"), await hs1.register("bob")
            evil = federation.evil()
            yield World(federation, hs1, evil, alice, bob, clock, complaints, clock.now_ms())
    finally:
        logger.removeHandler(complaints)
        logger.setLevel(level)


async def play_round(world: World, number: int, chance: Random, inputs: int) -> dict[str, int]:
    """Play one round; return how many inputs of each kind there were, and changes in them.

    Raises:
        FuzzFailure: something failed.
    """
    # A round is the same whatever was played before it.
    moment_ms = world.start_ms + number * ROUND_MS
    world.clock.advance_ms(max(0, moment_ms - world.clock.now_ms()))
    world.hs1.services.randomness._source.seed(number)
    play = Round(world, chance)
    await play.begin()
    counts: dict[str, int] = {}
    for count in range(inputs):
        kind = play.choose()
        name = kind.__name__.strip("_")
        counts[name] = counts.get(name, 0) + 1
        play.note(f"{count}: {name}")
        await play.guarded(kind(play))
    await play.guarded(play.end())
    counts["changes"] = play.mutator.changes
    world.evil.received.clear()
    world.federation.network.log.clear()
    return counts


class Round:
    """One round's room, as evil sees it, and what evil can do."""

    def __init__(self, world: World, chance: Random) -> None:
        self.world = world
        self.hs1, self.evil, self.alice = world.hs1, world.evil, world.alice
        self.chance = chance
        self.mutator = Mutator(chance)
        self.trace: list[str] = []
        self.foreign: list[str] = []
        self.withheld = False
        self.room: Room
        self.rooms: list[str] = []

    def note(self, text: str) -> None:
        self.trace.append(text[:2_000])

    def often(self, permille: int) -> bool:
        return self.mutator.often(permille)

    def choose(self) -> Callable[[Round], Awaitable[None]]:
        """Return what happens next."""
        draw = self.chance.randrange(sum(weight for weight, _ in KINDS))
        for weight, kind in KINDS:
            draw -= weight
            if draw < 0:
                return kind
        raise AssertionError("weights")

    # --- what must not happen ---------------------------------------------------------------------

    async def guarded(self, doing: Awaitable[None]) -> None:
        """Wait for something that must come to an end, and about which nobody may complain."""
        lines = self.world.complaints.lines
        lines.clear()
        try:
            async with asyncio.timeout(INPUT_SECONDS_MAX):
                await doing
        except TimeoutError as error:
            raise self.failure("it hangs") from error
        except FuzzFailure:
            raise
        except Exception as error:
            raise self.failure(f"it ends with {error!r}") from error
        if lines:
            raise self.failure("the log complains:")

    def failure(self, text: str) -> FuzzFailure:
        done = ["--- the last of what was done:", *self.trace[-6:]]
        return FuzzFailure("\n".join([text, *self.world.complaints.lines, *done]))

    async def send(self, method: str, target: str, content: object = b"") -> RawAnswer:
        """Let evil make a request, and hold the answer against what may be answered."""
        body = None if method == "GET" else _encoded(content)
        self.note(f"   {method} {target} {body!r}")
        began = time.monotonic()
        answer = await self.evil.send_bytes("hs1", method, target, body)
        self.note(f"   -> {answer.status} {answer.body[:300]!r} {time.monotonic() - began:.1f} s")
        if answer.status == 503 and self.withheld:
            self.note("   (evil shall come again, as it did not answer itself)")
        elif answer.status >= 500:
            raise self.failure("a request of another server is answered with a 5xx")
        self.withheld = False
        return answer

    async def call(self, user: User, method: str, path: str, body: object = None, **query: str):
        """Let a user make a request, and hold the answer against what may be answered."""
        response = await user.request(method, path, body, **query)
        self.note(f"   {user.user_id} {method} {path} {query} -> {response.status}")
        if response.status >= 500 and response.status not in CLIENT_5XX:
            raise self.failure(f"a user is answered with {response.status}: {response.json}")
        return response

    # --- beginning and end ------------------------------------------------------------------------

    async def begin(self) -> None:
        """Make the room, let evil's users join, and give one of them power."""
        version = str(self.mutator.pick(VERSIONS))
        levels = {MALLORY: self.mutator.pick((100, 100, 100, 50, 0)), EVE: 50}
        if not ROOM_VERSIONS[version].creators_are_privileged:
            levels[self.alice.user_id] = 100
        room_id = await self.alice.create_room(
            room_version=version, power_level_content_override={"users": levels}
        )
        # Of a room of alice's alone, others may know no more than ids.
        self.world.clock.advance_ms(1)
        other = await self.alice.create_room(room_version=version)
        self.foreign = list((await mirror(self.hs1, other)).events)
        self.rooms = [room_id, other]
        await self.world.bob.join(room_id)
        self.room = await mirror(self.hs1, room_id)
        for user_id in (MALLORY, EVE):
            join = self.room.join(user_id)
            await self._push([join.pdu])
        self.answers = answers = Answers(self.room, (), 0)
        for method, path, answer in (
            ("POST", "/get_missing_events/{roomId}", answers.missing_events),
            ("GET", "/state_ids/{roomId}", answers.state_ids),
            ("GET", "/state/{roomId}", answers.state),
            ("GET", "/event/{eventId}", answers.event),
            ("GET", "/event_auth/{roomId}/{eventId}", answers.event_auth),
            ("GET", "/backfill/{roomId}", answers.backfill),
        ):
            self.evil.on(method, V1 + path, self._perhaps_changed(answer))
        self._learn()
        await self.alice.sync()

    async def _push(self, pdus: Sequence[object], edus: Sequence[object] = ()) -> RawAnswer:
        content = {"origin": "evil", "origin_server_ts": 1, "pdus": pdus, "edus": list(edus)}
        return await self.send("PUT", self._transaction(), content)

    def _transaction(self) -> str:
        return f"{V1}/send/fuzz{next(self.world.transactions)}"

    def _learn(self) -> None:
        """Let the mutator know the ids that mean something here."""
        recent = list(self.room.events)[-12:]
        self.mutator.words = [
            self.room.room_id, *recent, self.room.create.event_id, MALLORY, EVE,
            self.alice.user_id, [e.event_id for e in self.room.ends], [recent[-1]],
        ]  # fmt: skip

    async def end(self) -> None:
        """Examine what has become of the database, and of those who are in the room."""
        services = self.hs1.services
        await services.follower.wait_for(await services.follower.fetch_position())
        for room_id in self.rooms:
            problems = await database_problems(self.hs1, room_id)
            if problems:
                raise self.failure("\n".join(["the database is not whole:", *problems]))
        for user in (self.alice, self.world.bob):
            await self._use(user)
        for room_id in self.rooms:
            for user in (self.alice, self.world.bob):
                path = f"/rooms/{quote(room_id, safe='')}"
                await self.call(user, "POST", f"{path}/leave", {})
                await self.call(user, "POST", f"{path}/forget", {})
        await self._decline()

    async def _use(self, user: User) -> None:
        """Let somebody look at everything, and say something."""
        whole = await self.call(user, "GET", "/sync", timeout="0", full_state="true")
        assert whole.status == 200
        sliding = {"lists": {"all": {"ranges": [[0, 9]], "timeline_limit": 5,
                                     "required_state": [["*", "*"]]}}}  # fmt: skip
        path = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
        await self.call(user, "POST", path, sliding, timeout="0")
        for room_id in self.rooms:
            path = f"/rooms/{quote(room_id, safe='')}"
            for what in ("state", "members", "joined_members"):
                await self.call(user, "GET", f"{path}/{what}")
            said = await self.call(
                user, "PUT", f"{path}/send/m.room.message/z{self._txn()}", {"body": "!"}
            )
            if said.status not in (200, 403, 404):
                raise self.failure(f"{user.user_id} can say nothing: {said.status} {said.json}")
            found: list[str] = []
            for direction in ("b", "f"):
                page = await self.call(user, "GET", f"{path}/messages", dir=direction, limit="500")
                if page.status == 200:
                    found += [event["event_id"] for event in page.json["chunk"]]
            if said.status == 200:
                event_id = said.json["event_id"]
                if event_id not in found:
                    raise self.failure(f"{user.user_id} does not see what they said")
                await self.call(user, "GET", f"{path}/context/{quote(event_id)}", limit="20")
                since = {} if user.since is None else {"since": user.since}
                news = await self.call(user, "GET", "/sync", timeout="0", **since)
                user.since = news.json["next_batch"]
                if event_id.encode() not in news.body:
                    raise self.failure(f"{user.user_id} is not told what they said")

    def _txn(self) -> int:
        return next(self.world.transactions)

    # --- material ---------------------------------------------------------------------------------

    def _draft(self) -> Event:
        """Return a valid event, or one that is at least well made."""
        room, pick = self.room, self.mutator.pick
        sender = str(pick((MALLORY, MALLORY, EVE)))
        prev = None
        if self.often(200):  # A fork, from anywhere.
            events = list(room.events.values())
            prev = [events[self.chance.randrange(len(events))]]
        some_id = str(pick(list(room.events)[-20:]))
        kind, content, state_key = self._what(sender, some_id)
        return room.draft(
            sender, kind, content, state_key=state_key, prev=prev,
            redacts=some_id if kind == "m.room.redaction" else None,  # type: ignore[arg-type]
        )  # fmt: skip

    def _what(self, sender: str, some_id: str) -> tuple[str, dict[str, Any], str | None]:
        """Return type, content and state key of an event."""
        number = self.chance.randrange(1000)
        others: str = str(self.mutator.pick(("@bob:hs1", "@alice:hs1", EVE, "@new:hs1", "@x:y")))
        some_level = self.mutator.pick((0, 50, 100))
        choices: Sequence[tuple[int, str, dict[str, Any], str | None]] = (
            (250, "m.room.message", {"msgtype": "m.text", "body": f"{number}"}, None),
            (60, "m.room.message", {
                "body": "threaded", "m.relates_to": {"rel_type": "m.thread", "event_id": some_id}
            }, None),
            (30, "m.room.message", {
                "body": "*", "m.new_content": {"body": "edited"},
                "m.relates_to": {"rel_type": "m.replace", "event_id": some_id},
            }, None),
            (40, "m.reaction", {
                "m.relates_to": {"rel_type": "m.annotation", "event_id": some_id, "key": "+"}
            }, None),
            (40, "m.room.message", {
                "body": "@alice:hs1 @room", "m.mentions": {"user_ids": ["@alice:hs1"], "room": True}
            }, None),
            (60, "m.room.redaction", {"redacts": some_id, "reason": "so"}, None),
            (100, "m.room.member", {"membership": "join", "displayname": f"M {number}"}, sender),
            (20, "m.room.member", {"membership": "leave", "reason": "bye"}, sender),
            (20, "m.room.member", {"membership": "knock"}, sender),
            (40, "m.room.member", {"membership": "invite", "is_direct": True}, others),
            (20, "m.room.member", {"membership": "ban", "reason": "so"}, others),
            (20, "m.room.member", {"membership": "leave"}, others),
            (60, "m.room.topic", {"topic": f"{number}"}, ""),
            (30, "m.room.name", {"name": f"{number}"}, ""),
            (40, "m.room.power_levels", {
                "users": {MALLORY: 100, EVE: some_level, "@alice:hs1": 100}, "ban": some_level,
                "events": {"m.room.name": some_level}, "notifications": {"room": some_level},
            }, ""),
            (20, "m.room.join_rules", {"join_rule": self.mutator.pick(("public", "knock"))}, ""),
            (20, "m.room.join_rules", {
                "join_rule": "restricted",
                "allow": [{"type": "m.room_membership", "room_id": self.room.room_id}],
            }, ""),
            (20, "m.room.history_visibility", {
                "history_visibility": self.mutator.pick(("joined", "shared", "world_readable"))
            }, ""),
            (20, "m.room.server_acl", {"allow": ["*"], "deny": ["*.bad"]},
             ""),
            (20, "m.room.tombstone", {"body": "gone", "replacement_room": self.room.room_id}, ""),
            (20, "m.room.third_party_invite", {
                "display_name": "b…", "key_validity_url": "https://evil/", "public_key": "AAAA",
                "public_keys": [{"public_key": "AAAA"}],
            }, "token"),
            (20, "m.space.child", {"via": ["evil"], "order": "a", "suggested": True}, some_id),
            (20, "m.room.canonical_alias", {"alias": "#a:hs1", "alt_aliases": ["#b:evil"]}, ""),
            (20, "m.room.pinned_events", {"pinned": [some_id]}, ""),
            (20, "m.room.encryption", {"algorithm": "m.megolm.v1.aes-sha2"}, ""),
            (10, "m.room.create", {"room_version": "11", "creator": MALLORY}, ""),
            (10, "m.room.avatar", {"url": "mxc://evil/a", "info": {"w": 1}}, ""),
            (10, "m.room.aliases", {"aliases": ["#a:evil"]}, "evil"),
            (20, f"com.example.{number % 5}", {"a": number}, f"{number % 7}"),
        )  # fmt: skip
        draw = self.chance.randrange(sum(choice[0] for choice in choices))
        for weight, kind, content, state_key in choices:
            draw -= weight
            if draw < 0:
                return kind, content, state_key
        raise AssertionError("weights")

    def _changed(self, pdu: dict) -> object:
        """Return a PDU that has been changed, mostly hashed and signed anew."""
        if self.often(300):  # What is not changed at random everywhere, but where it matters.
            field_name = str(
                self.mutator.pick(
                    ("prev_events", "auth_events", "content", "depth", "state_key", "type")
                )
            )
            changed: object = {**pdu, field_name: self.mutator.json(pdu.get(field_name))}
        else:
            changed = self.mutator.json(pdu)
        if isinstance(changed, dict) and self.often(850):
            return self._sealed(changed)
        return changed

    def _sealed(self, pdu: dict) -> dict:
        """Return a PDU signed by evil, as far as such a thing can be signed."""
        sender = parse_user_id(pdu.get("sender"))
        server = server_name_of(sender) if sender is not None else "evil"
        names = ["evil"] if self.often(900) else ["evil", server]
        try:
            return seal(pdu, self.room.room_version, names)
        except (CanonicalJsonError, TypeError, ValueError, KeyError, AttributeError):
            return pdu

    def _sticky(self, pdu: dict) -> dict:
        return seal(
            {**pdu, "msc4354_sticky": {"duration_ms": 60_000}}, self.room.room_version, ["evil"]
        )

    # --- inputs -----------------------------------------------------------------------------------

    async def pdus(self) -> None:
        """Push changed events, with good ones around them."""
        good = self._draft().pdu
        pdus: list[object] = [
            self._changed(self._draft().pdu) for _ in range(1 + self.chance.randrange(4))
        ]
        if self.often(50):
            pdus.append(self._sticky(good))
        if self.often(100):
            pdus = [pdus[0], *pdus]
        if self.often(300):
            pdus.insert(self.chance.randrange(len(pdus) + 1), good)
        await self._push(pdus)
        await self._follow()

    async def good(self) -> None:
        """Push valid events, so that the room moves on, in whatever order."""
        pdus: list[object] = []
        for _ in range(1 + self.chance.randrange(4)):
            event = self._draft()
            try:
                self.room.accept(event)
            except (EventAuthError, KeyError):
                self.note("   (against the rules)")
            pdus.append(event.pdu)
        if self.often(300):
            self.chance.shuffle(pdus)
        if self.often(200):
            pdus = pdus[1:] or pdus
        await self._push(pdus)
        await self._follow()

    async def graph(self) -> None:
        """Push an event that names whatever there is, or is not, in the graph."""
        pdu = dict(self._draft().pdu)
        known: list[str] = list(self.room.events)
        if self.often(100):
            known = [str(event_id) for event_id in self.foreign]
        for key, most in (("prev_events", 21), ("auth_events", 11)):
            if self.often(600):
                count = self.mutator.pick((0, 1, 1, 2, 3, 5, most))
                names: list[object] = [
                    self.mutator.pick(known) if self.often(800) else "$unknown"
                    for _ in range(count)
                ]
                if self.room.room_version.event_id_source == "server":
                    names = [[name, {"sha256": ""}] for name in names]
                pdu[key] = names
        pdu["depth"] = self.mutator.pick((0, 1, pdu["depth"], 2**53 - 1, 7))
        await self._push([self._sealed(pdu)])
        await self._follow()

    async def gaps(self) -> None:
        """Push an event behind a gap, or upon hidden auth events; answers may be changed."""
        before = list(self.room.ends)
        last: Event | None = None
        self.answers.between = self.chance.randrange(4)
        for _ in range(1 + self.chance.randrange(5)):
            event = self._draft()
            try:
                self.room.accept(event)
            except (EventAuthError, KeyError):
                continue
            last = event
        if last is None:
            return
        pdu = last.pdu
        if self.often(200):
            ids: list[object] = [event.event_id for event in before]
            if self.room.room_version.event_id_source == "server":
                ids = [[event_id, {"sha256": ""}] for event_id in ids]
            pdu = self._sealed({**pdu, "prev_events": ids})
        await self._push([pdu])
        await self._follow()

    async def raw_bytes(self) -> None:
        """Push a transaction whose bytes were changed on the way."""
        content = {
            "origin": "evil", "origin_server_ts": 1, "pdus": [self._draft().pdu, self._draft().pdu],
            "edus": [self._edu()],
        }  # fmt: skip
        await self.send("PUT", self._transaction(), self.mutator.bytes(orjson.dumps(content)))
        await self._follow()

    async def transaction(self) -> None:
        """Push a transaction that is none."""
        content = {"origin": "evil", "pdus": [self._draft().pdu], "edus": [self._edu()]}
        await self.send("PUT", self._transaction(), self.mutator.json(content))
        await self._follow()

    def _edu(self) -> dict:
        room_id, last = self.room.room_id, self.room.ends[-1].event_id
        device = {"user_id": MALLORY, "device_id": "D", "stream_id": 1, "prev_id": [],
                  "deleted": False, "keys": {"user_id": MALLORY, "device_id": "D", "keys": {},
                                             "algorithms": [], "signatures": {}}}  # fmt: skip
        contents = {
            "m.typing": {"room_id": room_id, "user_id": MALLORY, "typing": True},
            "m.receipt": {room_id: {"m.read": {MALLORY: {
                "event_ids": [last], "data": {"ts": 1, "thread_id": "main"}
            }}}},
            "m.presence": {"push": [{
                "user_id": MALLORY, "presence": "online", "last_active_ago": 1,
                "currently_active": True, "status_msg": "!",
            }]},
            "m.direct_to_device": {
                "sender": MALLORY, "type": "m.room_key", "message_id": f"{self._txn()}",
                "messages": {"@alice:hs1": {"*": {"a": 1}}},
            },
            "m.device_list_update": device,
            "m.signing_key_update": {"user_id": MALLORY, "master_key": {
                "user_id": MALLORY, "usage": ["master"], "keys": {"ed25519:a": "a"}
            }},
        }  # fmt: skip
        kind = str(self.mutator.pick(list(contents)))
        return {"edu_type": kind, "content": contents[kind]}

    async def edus(self) -> None:
        """Push changed EDUs."""
        edus = [self.mutator.json(self._edu()) for _ in range(1 + self.chance.randrange(3))]
        await self._push([], edus)

    async def membership(self) -> None:
        """Make, and send, changed memberships."""
        what = str(self.mutator.pick(("join", "leave", "knock")))
        user_id = str(self.mutator.pick((MALLORY, EVE, "@another:evil", "@bob:hs1")))
        room = quote(self.room.room_id, safe="")
        target = f"{V1}/make_{what}/{room}/{quote(user_id)}"
        versions = "&".join(f"ver={version}" for version in ROOM_VERSIONS)
        made = await self.send("GET", f"{target}?{versions}")
        pdu: dict = self._draft().pdu
        if made.status == 200:
            pdu = orjson.loads(made.body)["event"]
        changed = pdu if self.often(300) else self.mutator.json(pdu)
        if isinstance(changed, dict):
            changed = self._sealed(changed)
        event_id = self._id_of(changed)
        target = f"/send_{what}/{room}/{quote(event_id, safe='')}"
        version = V1 if what == "knock" or self.often(200) else V2
        flag = "?omit_members=true" if self.often(300) else ""
        await self.send("PUT", version + target + flag, changed)
        await self._follow()

    def _id_of(self, pdu: object) -> str:
        try:
            return Event.from_pdu(pdu, self.room.room_version).event_id  # type: ignore[arg-type]
        except (ValueError, TypeError, KeyError, AttributeError):
            return "$none"

    async def invite(self) -> None:
        """Invite somebody to a room of evil's, with changes."""
        version = str(self.mutator.pick(VERSIONS))
        room = Room(version, creator=MALLORY, name=f"room{self._txn()}")
        invited = str(self.mutator.pick(("@alice:hs1", "@bob:hs1", "@nobody:hs1", EVE)))
        event = room.draft(MALLORY, "m.room.member", {"membership": "invite"}, state_key=invited)
        pdu: object = event.pdu if self.often(400) else self._changed(event.pdu)
        create = {**room.create.pdu, "room_id": room.room_id}
        shown = [
            create,
            *({**e.pdu, "room_id": room.room_id} for e in list(room.events.values())[1:]),
        ]
        content: object = {"event": pdu, "room_version": version, "invite_room_state": shown}
        if self.often(500):
            content = self.mutator.json(content)
        if self.often(100):
            content = self.mutator.bytes(_encoded(content))
        first = self.often(100)
        target = f"/invite/{quote(room.room_id, safe='')}/{quote(event.event_id, safe='')}"
        await self.send("PUT", (V1 if first else V2) + target, pdu if first else content)
        await self._decline()

    async def _decline(self) -> None:
        """Let alice and bob see their invites, and be rid of them."""
        self.evil.on(
            "GET", V1 + "/make_leave/{roomId}/{userId}", self._perhaps_changed(self._leave)
        )
        self.evil.on("PUT", V2 + "/send_leave/{roomId}/{eventId}", self._perhaps_changed({}))
        for user in (self.alice, self.world.bob):
            news = await self.call(user, "GET", "/sync", timeout="0", since=user.since or "")
            if news.status != 200:
                news = await self.call(user, "GET", "/sync", timeout="0")
            user.since = news.json["next_batch"]
            for room_id in news.json.get("rooms", {}).get("invite", {}):
                await self.call(user, "POST", f"/rooms/{quote(room_id, safe='')}/leave", {})

    def _leave(self, request: Received) -> object:
        room = Room("11", creator=MALLORY)
        user_id = request.path["userId"]
        event = room.draft(MALLORY, "m.room.member", {"membership": "leave"}, state_key=user_id)
        pdu = {**event.pdu, "room_id": request.path["roomId"], "sender": user_id}
        return {"room_version": "11", "event": pdu}

    async def questions(self) -> None:
        """Ask for events and states, in ways that nobody asks."""
        pick, room = self.mutator.pick, quote(self.room.room_id, safe="")
        words = [str(word) for word in self.mutator.words]
        event_id = quote(
            str(pick(words)) if self.often(700) else str(self.mutator.value()), safe=""
        )
        number = quote(str(self.mutator.value()), safe="")
        body = {"earliest_events": [], "latest_events": [str(pick(words))], "limit": 10}
        questions = (
            ("GET", f"/state/{room}?event_id={event_id}"),
            ("GET", f"/state_ids/{room}?event_id={event_id}"),
            ("GET", f"/event/{event_id}"),
            ("GET", f"/event_auth/{room}/{event_id}"),
            ("GET", f"/backfill/{room}?v={event_id}&limit={number}"),
            ("GET", f"/timestamp_to_event/{room}?ts={number}&dir=b"),
            ("POST", f"/get_missing_events/{room}"),
            ("GET", f"/hierarchy/{room}?suggested_only={number}"),
            ("GET", f"/query/profile?user_id={event_id}&field={number}"),
            ("GET", f"/query/directory?room_alias={event_id}"),
            ("GET", f"/publicRooms?limit={number}&since={event_id}"),
            ("POST", "/publicRooms"),
            ("GET", f"/user/devices/{event_id}"),
            ("POST", "/user/keys/query"),
            ("POST", "/user/keys/claim"),
            ("GET", f"/make_join/{event_id}/{number}?ver={number}"),
        )
        method, target = pick(questions)
        content = self.mutator.json(body) if method == "POST" else b""
        await self.send(method, V1 + target, content)

    async def joins(self) -> None:
        """Let alice join a room of evil's, whose answers are changed; then read its past."""
        version = str(self.mutator.pick(VERSIONS))
        self.world.clock.advance_ms(1)
        if version in ("1", "2"):  # The ids of its events would be those of an earlier one.
            version = "3"
        there = Room(version, creator=MALLORY, name=f"room{self._txn()}")
        if self.often(500):
            topic = {"topic": f"{self._txn()}"}
            there.send(MALLORY, "m.room.topic", topic, state_key="")
        for number in range(5):
            there.send(MALLORY, "m.room.message", {"body": f"{number}"})
        answers, left = Answers(there, (), 0), self.chance.randrange(3)

        def make_join(request: Received) -> object:
            user_id = request.path["userId"]
            draft = there.draft(user_id, "m.room.member", {"membership": "join"}, state_key=user_id)
            event = {k: v for k, v in draft.pdu.items() if k not in ("hashes", "signatures")}
            return {"room_version": there.room_version.identifier, "event": event}

        def send_join(request: Received) -> object:
            state = list(there.state_of(there.ends).values())
            chain = answers.pdus(answers.auth_chain(state))
            return {"state": answers.pdus(state), "auth_chain": chain, "event": request.content}

        self.evil.on("GET", V1 + "/make_join/{roomId}/{userId}",
                     self._perhaps_changed(make_join) if left == 0 else make_join)  # fmt: skip
        self.evil.on("PUT", V2 + "/send_join/{roomId}/{eventId}",
                     self._perhaps_changed(send_join) if left else send_join)  # fmt: skip
        room_id = there.room_id
        path = f"/join/{quote(room_id, safe='')}"
        joined = await self.call(self.alice, "POST", path, {}, server_name="evil")
        if joined.status == 200 and room_id not in self.rooms:
            self.rooms.append(room_id)
            self.evil.on("GET", V1 + "/backfill/{roomId}", self._perhaps_changed(answers.backfill))
            path = f"/rooms/{quote(room_id, safe='')}/messages"
            await self.call(self.alice, "GET", path, dir="b", limit="20")

    def _perhaps_changed(self, answer: object) -> Callable[[Received], object]:
        """Return an answer that is changed now and then."""

        def give(request: Received) -> object:
            try:
                given = answer(request) if callable(answer) else answer
            except (KeyError, AssertionError, TypeError, ValueError):
                return raw({"errcode": "M_NOT_FOUND", "error": "no"}, 404)
            if not isinstance(given, dict):
                return given
            if self.often(400):
                return raw(_encoded(given))
            return self._changed_answer(given)

        return give

    def _changed_answer(self, given: dict) -> object:
        lists = [k for k, v in given.items() if isinstance(v, list) and v]
        kind = self.chance.randrange(10)
        if lists and kind < 6:
            key = str(self.mutator.pick(lists))
            values = list(given[key])
            at = self.chance.randrange(len(values))
            if kind < 3:
                one = values[at]
                values[at] = self._changed(one) if isinstance(one, dict) else self.mutator.json(one)
            elif kind == 3:
                del values[at]
            elif kind == 4:
                self.chance.shuffle(values)
            else:
                values += [*values, self.mutator.value()]
            return raw(_encoded({**given, key: values}))
        self.withheld = True  # What is not JSON, or lacks what was asked for, is no answer.
        if kind == 6:
            return raw(self.mutator.bytes(_encoded(given)))
        if kind == 7:
            status = self.mutator.pick((200, 400, 403, 404, 429, 500, 502, 302, 204))
            return raw(_encoded(self.mutator.json(given)), status)
        return raw(_encoded(self.mutator.json(given)))

    async def _follow(self) -> None:
        """Let evil's copy have what hs1 has accepted; now and then, let alice look."""
        try:
            await refresh(self.room, self.hs1)
        except (EventAuthError, KeyError, ValueError):
            self.note("   (evil's copy of the room is not hs1's any more)")
        self._learn()
        for user_id in (MALLORY, EVE):
            await self._come_back(user_id)
        if self.often(100):
            news = await self.call(
                self.alice, "GET", "/sync", timeout="0", since=self.alice.since or ""
            )
            assert news.status == 200
            self.alice.since = news.json["next_batch"]

    async def _come_back(self, user_id: str) -> None:
        """Let a user of evil's join again who is out of the room."""
        member = self.room.current("m.room.member", user_id)
        if member is not None and member.content.get("membership") == "join":
            return
        if self.often(300):
            try:
                join = self.room.join(user_id)
            except (EventAuthError, KeyError):
                return
            await self._push([join.pdu])


def _encoded(content: object) -> bytes:
    """Return JSON, or bytes as they are; what has no JSON becomes something that is none."""
    if isinstance(content, bytes):
        return content
    try:
        return encode_lenient(content)
    except CanonicalJsonError:
        return repr(content).encode(errors="replace")


KINDS: Sequence[tuple[int, Callable[[Round], Awaitable[None]]]] = (
    (450, Round.pdus),
    (100, Round.good),
    (100, Round.graph),
    (80, Round.gaps),
    (80, Round.raw_bytes),
    (30, Round.transaction),
    (40, Round.edus),
    (40, Round.membership),
    (30, Round.invite),
    (30, Round.questions),
    (40, Round.joins),
)
