"""The network of a simulation: what becomes of each request is a function of the seed.

A draw is a hash of the seed, of what is sent, and of how often the same has been sent before. It
does not depend on the order of unrelated requests. Keys can be had whatever is wrong with a link,
as from a notary; but not those of a server that is down.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from minihs.remote.transport import RawAnswer, RemoteError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from minihs.base.clock import Clock
    from minihs.remote.transport import OutgoingRequest
    from tests.helpers.network import Node

PERMILLE = 1_000
KEYS = "/_matrix/key/"


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong, in thousandths of the requests.

    `lost`: the request never arrives. `unanswered`: it is carried out, but its answer is lost.
    `doubled`: it is carried out twice, the second time up to `late_ms` later. `delay_ms`: the
    longest delay, in each direction.
    """

    lost: int = 0
    unanswered: int = 0
    doubled: int = 0
    late_ms: int = 0
    delay_ms: int = 0


PERFECT = Faults()


@dataclass(eq=False)
class Incarnation:
    """A server from its start to its end: what handles requests, and what it is handling."""

    node: Node
    handling: set[asyncio.Task[RawAnswer]] = field(default_factory=set)

    async def stop(self) -> None:
        """Give up whatever is being handled."""
        tasks = list(self.handling)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class SimulatedNetwork:
    """Carries requests between the servers of one simulation."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.watch: Callable[[str], None] = print
        self._nodes: dict[str, Incarnation] = {}
        self._late: set[asyncio.Task[None]] = set()
        self.begin(0)

    def begin(self, seed: int) -> None:
        """Forget the last run."""
        self.seed = seed
        self.faults = PERFECT
        self._times: Counter[bytes] = Counter()
        self._cut: set[tuple[str, str]] = set()
        self._clogged: set[tuple[str, str]] = set()
        self._unclogged = asyncio.Event()

    # --- who is there ---------------------------------------------------------------------------

    def attach(self, name: str, node: Node) -> Incarnation:
        """Put a server on the network."""
        self._nodes[name] = incarnation = Incarnation(node)
        return incarnation

    def detach(self, name: str) -> None:
        """Take a server off the network."""
        self._nodes.pop(name, None)

    # --- links ----------------------------------------------------------------------------------

    def partition(self, *parts: Sequence[str]) -> None:
        """Let servers reach only those of their own part."""
        names = [name for part in parts for name in part]
        part_of = {name: number for number, part in enumerate(parts) for name in part}
        self._cut = {(a, b) for a in names for b in names if part_of[a] != part_of[b]}

    def cut(self, origin: str, destination: str) -> None:
        """Let requests of one server to another fail at once; not those the other way."""
        self._cut.add((origin, destination))

    def clog(self, origin: str, destination: str) -> None:
        """Hold requests back until `unclog`, or until their time is over."""
        self._clogged.add((origin, destination))

    def unclog(self, origin: str, destination: str) -> None:
        """Let requests that were held back go on."""
        self._clogged.discard((origin, destination))
        self._unclogged.set()
        self._unclogged = asyncio.Event()

    def heal(self) -> None:
        """Let everybody reach everybody, and nothing go wrong any more."""
        self._cut.clear()
        self.faults = PERFECT
        for link in list(self._clogged):
            self.unclog(*link)

    @property
    def is_whole(self) -> bool:
        """Whether no link is cut or clogged."""
        return not self._cut and not self._clogged

    # --- requests -------------------------------------------------------------------------------

    async def carry(self, origin: str, request: OutgoingRequest) -> RawAnswer | RemoteError:
        """Deliver a request, if things go well."""
        outcome = await self._carry(origin, request)
        said = outcome.status if isinstance(outcome, RawAnswer) else outcome.kind
        path, _, _ = request.target.partition("?")
        self.watch(f"    {origin} -> {request.destination}: {request.method} {path}: {said}")
        return outcome

    async def _carry(self, origin: str, request: OutgoingRequest) -> RawAnswer | RemoteError:
        destination = request.destination
        link = origin, destination
        draws = self._draws(origin, request)
        faults = self.faults
        if request.target.startswith(KEYS):  # Without them servers could do little to each other.
            answer = await self._handle(request)
            return answer or RemoteError("unreachable", destination, "not on the network")
        if link in self._cut or destination not in self._nodes:
            return RemoteError("unreachable", destination, "not on the network")
        left_ms = request.timeout_ms
        if link in self._clogged and not await self._unclog_within(link, left_ms):
            return RemoteError("timed_out", destination, "held back on the way")
        delay_ms = next(draws) % (faults.delay_ms + 1)
        if delay_ms:
            await self.clock.sleep_ms(delay_ms)
        if next(draws) % PERMILLE < faults.lost:
            await self.clock.sleep_ms(left_ms)
            return RemoteError("timed_out", destination, "lost on the way")
        if next(draws) % PERMILLE < faults.doubled:
            self._later(self._again(request, next(draws) % (faults.late_ms + 1)))
        answer = await self._handle(request)
        if answer is None:
            return RemoteError("unreachable", destination, "the connection broke")
        delay_ms = next(draws) % (faults.delay_ms + 1)
        if delay_ms:
            await self.clock.sleep_ms(delay_ms)
        if next(draws) % PERMILLE < faults.unanswered or (destination, origin) in self._cut:
            await self.clock.sleep_ms(left_ms)
            return RemoteError("timed_out", destination, "the answer was lost")
        return answer

    async def _unclog_within(self, link: tuple[str, str], duration_ms: int) -> bool:
        timer = self.clock.call_later_ms(duration_ms, lambda: self._over(link))
        until_ms = self.clock.now_ms() + duration_ms
        while link in self._clogged and self.clock.now_ms() < until_ms:
            await self._unclogged.wait()
        timer.cancel()
        return link not in self._clogged

    def _over(self, _link: tuple[str, str]) -> None:
        self._unclogged.set()
        self._unclogged = asyncio.Event()

    async def _again(self, request: OutgoingRequest, delay_ms: int) -> None:
        await self.clock.sleep_ms(delay_ms)
        await self._handle(request)

    def _later(self, work: object) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)  # type: ignore[arg-type]
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    async def _handle(self, request: OutgoingRequest) -> RawAnswer | None:
        """Return what a server answers, in a task of its own; None if it ends before."""
        incarnation = self._nodes.get(request.destination)
        if incarnation is None:
            return None
        task = asyncio.get_running_loop().create_task(incarnation.node(request))
        incarnation.handling.add(task)
        task.add_done_callback(incarnation.handling.discard)
        await asyncio.wait([task])  # Whoever asked may go away; the server carries on.
        if task.cancelled():
            return None
        return task.result()

    def _draws(self, origin: str, request: OutgoingRequest) -> Iterator[int]:
        """Yield the numbers that decide what becomes of a request."""
        path, _, _ = request.target.partition("/send/")  # A transaction's id is not its content.
        body = request.body or b""
        what = f"{self.seed} {origin} {request.destination} {request.method} {path}".encode() + body
        digest = hashlib.blake2b(what, digest_size=16).digest()
        self._times[digest] += 1
        stream = hashlib.blake2b(digest + self._times[digest].to_bytes(8, "big"), digest_size=64)
        numbers = stream.digest()
        return (int.from_bytes(numbers[start : start + 8], "big") for start in range(0, 64, 8))

    async def settle(self) -> None:
        """Let nothing of a run be left over for the next."""
        for task in list(self._late):
            task.cancel()
        await asyncio.gather(*self._late, return_exceptions=True)


class SimulatedTransport:
    """The network as one server uses it."""

    def __init__(self, network: SimulatedNetwork, origin: str) -> None:
        self._network = network
        self._origin = origin

    async def send(self, request: OutgoingRequest) -> RawAnswer | RemoteError:
        """Make a request; it ends when its time is over."""
        return await self._network.carry(self._origin, request)

    async def close(self) -> None:
        """Do nothing: there is no connection."""
