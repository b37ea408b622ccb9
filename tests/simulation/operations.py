"""What people, the network and the machines do: each operation is a line of a trace."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from minihs.protocol.unstable import REDACT_EVENTS, STICKY_DURATION_PARAMETER, STICKY_KEY
from minihs.storage.membership import fetch_membership

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine

    from minihs.base.randomness import Randomness
    from tests.simulation.clients import Client
    from tests.simulation.network import Faults
    from tests.simulation.world import Person, Server, World

LEVELS = "m.room.power_levels"


@dataclass(eq=False)
class Play:
    """A run under way: who takes part, what they did, and what was promised to them."""

    world: World
    chance: Randomness
    names: list[str]
    room_id: str = ""
    trace: list[str] = field(default_factory=list)
    promised: dict[str, str] = field(default_factory=dict)  # event id -> server that said 200
    pending: set[asyncio.Task[None]] = field(default_factory=set)
    sticky: list[str] = field(default_factory=list)  # Those of the promised that are.
    in_doubt: list[Person] = field(default_factory=list)  # Whose join perhaps took place.
    clients: dict[str, Client] = field(default_factory=dict)  # user id -> their client
    forgot: dict[Person, str] = field(default_factory=dict)  # and by which event they had left
    counter: int = 0

    @property
    def servers(self) -> list[Server]:
        """The servers that take part."""
        return [self.world.servers[name] for name in self.names]

    @property
    def people(self) -> list[Person]:
        """The users of these servers."""
        return [person for server in self.servers for person in server.people]

    def note(self, line: str) -> None:
        """Add a line to the trace."""
        from tests.simulation.world import RUN_MS, START_MS

        now_ms = self.world.clock.now_ms() - START_MS - self.world.seed % 100_000 * RUN_MS
        self.trace.append(f"{now_ms / 1000:10.3f}s  {line}")

    def begin(self, coroutine: Coroutine[None, None, None]) -> None:
        """Let an operation go its way, beside others."""
        task: asyncio.Task[None] = self.world.loop.create_task(coroutine)
        self.pending.add(task)
        task.add_done_callback(self.pending.discard)

    # --- what people do -------------------------------------------------------------------------

    async def call(
        self, person: Person, what: str, method: str, path: str, content: object = None
    ) -> dict[str, Any] | None:
        """Make a request as somebody; return its JSON if it succeeds, else None."""
        self.counter += 1
        number = self.counter
        self.note(f"#{number} {person} {what}")
        status, answer = await self.world.servers[person.server].request(
            method, path, person.token, content
        )
        said = (answer or {}).get("event_id") or (answer or {}).get("error") or ""
        self.note(f"#{number} -> {status} {said}")
        assert status < 500 or status in (502, 503), (what, status, answer)
        if status != 200:
            return None
        event_id = answer.get("event_id")
        if event_id:
            self.promised.setdefault(event_id, person.server)
        return answer

    @property
    def room(self) -> str:
        """The room, as in a path."""
        return f"/rooms/{quote(self.room_id)}"

    async def create(self, person: Person, version: str, levels: dict[str, int]) -> None:
        """Create the room of this run."""
        privileged = {u: level for u, level in levels.items() if u != person.user_id}
        if version not in ("12",):
            privileged[person.user_id] = 100
        answer = await self.call(
            person,
            f"creates a room of version {version}, levels {levels}",
            "POST",
            "/createRoom",
            {
                "preset": "public_chat",
                "room_version": version,
                "power_level_content_override": {"users": privileged, "invite": 0},
            },
        )
        assert answer is not None
        self.room_id = answer["room_id"]

    async def join(self, person: Person) -> None:
        via = "&".join(f"server_name={name}" for name in self.names if name != person.server)
        path = f"/join/{quote(self.room_id)}?{via}"
        if await self.call(person, "joins", "POST", path, {}) is None:
            self.in_doubt.append(person)

    async def knock(self, person: Person) -> None:
        via = "&".join(f"server_name={name}" for name in self.names if name != person.server)
        await self.call(person, "knocks", "POST", f"/knock/{quote(self.room_id)}?{via}", {})

    async def leave(self, person: Person) -> None:
        await self.call(person, "leaves", "POST", f"{self.room}/leave", {})

    async def change(
        self, person: Person, verb: str, other: Person, *, redact: bool = False
    ) -> None:
        """Invite, kick, ban or unban somebody; `redact` what they have sent."""
        content: dict[str, object] = {"user_id": other.user_id}
        what = f"{verb}s {other}"
        if redact:
            content |= REDACT_EVENTS.write(value=True)
            what += " and redacts their events"
        await self.call(person, what, "POST", f"{self.room}/{verb}", content)

    async def forget(self, person: Person) -> None:
        if await self.call(person, "forgets", "POST", f"{self.room}/forget", {}) is None:
            return
        server = self.world.servers[person.server]
        if server.is_up:
            row = await fetch_membership(server.running.db, self.room_id, person.user_id)
            if row is not None and row.membership in ("leave", "ban"):
                self.forgot[person] = row.event_id

    async def say(self, person: Person) -> None:
        self.counter += 1
        txn = f"t{self.counter}"
        path = f"{self.room}/send/m.room.message/{txn}"
        await self.call(person, f"says {txn}", "PUT", path, {"msgtype": "m.text", "body": txn})

    async def stick(self, person: Person, key: str, duration_ms: int) -> None:
        """Send a sticky event."""
        self.counter += 1
        txn = f"s{self.counter}"
        parameter = f"{STICKY_DURATION_PARAMETER.unstable}={duration_ms}"
        path = f"{self.room}/send/sim.sticky/{txn}?{parameter}"
        what = f"sticks {txn} as {key} for {duration_ms // 1_000} s"
        answer = await self.call(person, what, "PUT", path, STICKY_KEY.write(key))
        if answer is not None:
            self.sticky.append(answer["event_id"])

    async def set_topic(self, person: Person) -> None:
        self.counter += 1
        topic = f"topic {self.counter}"
        path = f"{self.room}/state/m.room.topic/"
        await self.call(person, f"sets {topic}", "PUT", path, {"topic": topic})

    async def set_join_rule(self, person: Person, rule: str) -> None:
        path = f"{self.room}/state/m.room.join_rules/"
        await self.call(person, f"sets join rule {rule}", "PUT", path, {"join_rule": rule})

    async def set_level(self, person: Person, other: Person, level: int) -> None:
        """Give somebody another power level."""
        status, levels = await self.world.servers[person.server].request(
            "GET", f"{self.room}/state/{LEVELS}/", person.token
        )
        if status != 200:
            return
        levels["users"] = {**levels.get("users", {}), other.user_id: level}
        path = f"{self.room}/state/{LEVELS}/"
        await self.call(person, f"gives {other} level {level}", "PUT", path, levels)

    async def redact(self, person: Person, event_id: str) -> None:
        self.counter += 1
        path = f"{self.room}/redact/{quote(event_id)}/r{self.counter}"
        await self.call(person, f"redacts {event_id}", "PUT", path, {})

    async def read(self, person: Person, event_id: str) -> None:
        path = f"{self.room}/receipt/m.read/{quote(event_id)}"
        await self.call(person, f"has read {event_id}", "POST", path, {})

    # --- what the network and the machines do ----------------------------------------------------

    def partition(self, *parts: list[str]) -> None:
        self.note("network: " + " | ".join(", ".join(part) for part in parts))
        self.world.network.partition(*parts)

    def cut(self, origin: str, destination: str) -> None:
        self.note(f"network: {origin} cannot reach {destination}")
        self.world.network.cut(origin, destination)

    def clog(self, origin: str, destination: str) -> None:
        self.note(f"network: {origin} -> {destination} is clogged")
        self.world.network.clog(origin, destination)

    def unclog(self, origin: str, destination: str) -> None:
        self.note(f"network: {origin} -> {destination} is free")
        self.world.network.unclog(origin, destination)

    def set_faults(self, faults: Faults) -> None:
        self.note(f"network: {faults}")
        self.world.network.faults = faults

    def heal(self) -> None:
        self.note("network: healed")
        self.world.network.heal()

    async def stop(self, server: Server, *, crash: bool) -> None:
        self.note(f"{server.name} {'crashes' if crash else 'stops'}")
        await server.stop(crash=crash)

    async def start(self, server: Server) -> None:
        self.note(f"{server.name} starts")
        await server.start()

    async def crash_soon(self, server: Server, statements: int) -> None:
        """Let a server crash in the middle of whatever is going on, and start it again."""
        self.note(f"{server.name} will crash after {statements} statements")
        await self.world.loop.until_statements(statements)
        if server.is_up:
            await self.stop(server, crash=True)
            await self.start(server)

    async def pass_ms(self, duration_ms: int) -> None:
        await self.world.pass_ms(duration_ms)
