"""The servers of a simulation, and the time in which they live.

A `World` is made once for many runs: five whole servers on databases of their own, with users whose
tokens stay valid. Each run has rooms of its own, and begins at a moment that follows from its seed,
so that its events, and what state resolution makes of them, are the same whatever ran before.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import zlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import orjson
from typing_extensions import override

from minihs.app import build_services
from minihs.base.clock import ManualClock
from minihs.base.config import Config
from minihs.base.randomness import Randomness
from minihs.remote.transport import OutgoingRequest, RawAnswer
from minihs.workers import federation_delivery, housekeeping, runner
from tests.simulation.event_loop import SimulationLoop
from tests.simulation.network import SimulatedNetwork, SimulatedTransport
from tests.simulation.node import node_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from minihs.services.context import Services
    from tests.simulation.network import Incarnation

logger = logging.getLogger(__name__)

CLIENT = "/_matrix/client/v3"
START_MS = 1_750_000_000_000
RUN_MS = 10 * 86_400_000  # No run is longer: the next one begins after it.
SERVERS = ("hs1", "hs2", "hs3", "hs4", "hs5")
PEOPLE = ("alice", "bob", "carol")
REQUEST_MS = 30_000
STEPS_MAX = 2  # In which a stretch of time passes; the more, the more every loop goes round.
STEP_MS_MIN = 250
LEASE_INTERVAL_MS = 6_000  # Instead of 2 s: the work of every step; leases last 10 s.
RARER = 40  # Housekeeping goes on, but less often: it would be most of the work of a run.


@dataclass(frozen=True, slots=True)
class Person:
    """A user of one of the servers."""

    user_id: str
    server: str
    token: str

    @override
    def __str__(self) -> str:
        return self.user_id


@dataclass(eq=False)
class Server:
    """A server, running or not."""

    world: World
    name: str
    dsn: str
    directory: Path
    clock: ManualClock
    people: list[Person] = field(default_factory=list)
    starts: int = 0
    services: Services | None = None
    incarnation: Incarnation | None = None
    _stack: contextlib.AsyncExitStack | None = None

    @property
    def is_up(self) -> bool:
        """Whether it runs."""
        return self.services is not None

    @property
    def running(self) -> Services:
        """Its services, which must be there."""
        assert self.services is not None, f"{self.name} is down"
        return self.services

    async def start(self) -> None:
        """Start it as `minihs run` does, on the database that it has."""
        world, self._stack = self.world, contextlib.AsyncExitStack()
        self.starts += 1
        config = Config(
            server_name=self.name,
            data_dir=str(self.directory),
            registration="open",
            rate_limits="off",
            password_hash_memory_kib=8,
            password_hash_iterations=1,
            database_connections=4,
            presence_enabled=False,  # It would go to servers of former runs.
        )
        services = await self._stack.enter_async_context(
            build_services(
                config,
                self.dsn,
                clock=self.clock,
                randomness=Randomness(
                    zlib.crc32(f"{self.name} {world.seed} {self.starts}".encode())
                ),
                transport=SimulatedTransport(world.network, self.name),
            )
        )
        runner.start(
            services,
            [replace(loop, interval_ms=loop.interval_ms * RARER) for loop in housekeeping.LOOPS],
        )
        federation_delivery.start(services)
        self.services = services
        self.incarnation = world.network.attach(self.name, node_of(services))

    async def stop(self, *, crash: bool = False) -> None:
        """End it: as SIGTERM does, or as SIGKILL does, in the middle of whatever it is doing."""
        services, incarnation, stack = self.services, self.incarnation, self._stack
        assert services is not None
        assert incarnation is not None
        assert stack is not None
        self.world.network.detach(self.name)
        self.services = self.incarnation = self._stack = None
        if not crash:
            await incarnation.stop()
            await stack.aclose()
            return
        self.world.crashing += 1  # Who is killed has no last words.
        services.db._pool.terminate()
        if services.committer._connection is not None:
            services.committer._connection.terminate()
        await incarnation.stop()
        await stack.aclose()
        self.world.crashing -= 1

    async def request(
        self, method: str, path: str, token: str, content: object = None
    ) -> tuple[int, Any]:
        """Make a client's request; return status and JSON. 0: the server went away."""
        if self.incarnation is None:
            return 0, None
        incarnation = self.incarnation
        body = None if content is None else orjson.dumps(content)
        target = path if path.startswith("/_") else CLIENT + path
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        task = asyncio.get_running_loop().create_task(
            incarnation.node(
                OutgoingRequest(self.name, method, target, headers, body, REQUEST_MS, 2**24)
            )
        )
        incarnation.handling.add(task)
        task.add_done_callback(incarnation.handling.discard)
        await asyncio.wait([task])
        if task.cancelled():
            return 0, None
        answer: RawAnswer = task.result()
        return answer.status, orjson.loads(answer.body)


class World:
    """Servers, network and time. `seed` is that of the present run, `playing` who takes part.

    Each server has a clock of its own. Those of the others stand still.
    """

    def __init__(self) -> None:
        self.clock = ManualClock(START_MS)
        self.network = SimulatedNetwork(self.clock)
        self.seed = 0
        self.servers: dict[str, Server] = {}
        self.playing: list[Server] = []
        self.crashing = 0

    @property
    def loop(self) -> SimulationLoop:
        """The event loop of the simulation."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulationLoop)
        return loop

    async def begin(self, seed: int, names: Sequence[str]) -> None:
        """Begin a run of some servers. Runs come in the order of their seeds."""
        self.seed = seed
        self.playing = [self.servers[name] for name in names]
        start_ms = START_MS + (seed % 100_000) * RUN_MS
        assert start_ms > self.clock.now_ms(), "an earlier run was too long, or came later"
        await self.idle()
        for clock in self._clocks():
            clock.advance_ms(start_ms - clock.now_ms())
        await self.idle()
        self.network.begin(seed)
        for server in self.playing:
            if not server.is_up:
                await server.start()
            randomness = Randomness(zlib.crc32(f"{server.name} {seed}".encode()))
            server.running.randomness._source = randomness._source
            server.starts = 0
        await self.idle()

    # --- time -----------------------------------------------------------------------------------

    def _clocks(self) -> list[ManualClock]:
        return [self.clock, *(server.clock for server in self.playing)]

    async def idle(self) -> None:
        """Let everything happen that happens without time passing."""
        await self.loop.until_idle()

    async def pass_ms(self, duration_ms: int, *, steps_max: int = STEPS_MAX) -> None:
        """Let time pass in a few steps; what was to happen during one happens at its end."""
        await self.idle()
        left_ms, steps = duration_ms, max(1, min(steps_max, duration_ms // STEP_MS_MIN))
        for left in range(steps, 0, -1):
            step_ms = left_ms // left
            left_ms -= step_ms
            for clock in self._clocks():
                clock.advance_ms(step_ms)
            await self.idle()


@contextlib.asynccontextmanager
async def running_world(dsns: Sequence[str], directory: Path) -> AsyncIterator[World]:
    """Yield a world whose servers live on these databases, migrated and empty."""
    world = World()
    for name, dsn in zip(SERVERS, dsns, strict=False):
        own = directory / name
        own.mkdir()
        world.servers[name] = Server(world, name, dsn, own, ManualClock(START_MS))
    try:
        for server in world.servers.values():
            await server.start()
            for localpart in PEOPLE:
                status, answer = await server.request(
                    "POST",
                    "/register",
                    "",
                    {
                        "username": localpart,
                        "password": "x" * 12,
                        "auth": {"type": "m.login.dummy"},
                    },
                )
                assert status == 200, answer
                server.people.append(Person(answer["user_id"], server.name, answer["access_token"]))
        yield world
    finally:
        await world.network.settle()
        for server in world.servers.values():
            if server.is_up:
                await server.stop()
