"""Several servers in one process, and the network between them, which obeys the test.

    async with running_federation(database, tmp_path) as federation:
        hs1, hs2 = await federation.start("hs1"), await federation.start("hs2")
        evil = federation.evil("evil")
        federation.network.isolate("hs2")

Requests are signed, routed, verified and answered by the code under test; only the wire is missing.
Faults are drawn from a seed, one request after the other, so a seed is a run (as far as the order
in which the servers make their requests is one).
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from unittest import mock
from urllib.parse import parse_qsl

import orjson
from aiohttp.base_protocol import BaseProtocol
from aiohttp.streams import StreamReader
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from minihs.api.router import Router
from minihs.api.server import build_application
from minihs.base.clock import Clock, SystemClock
from minihs.base.randomness import Randomness
from minihs.protocol.canonical_json import decode_lenient, encode_lenient
from minihs.protocol.identifiers import ServerName
from minihs.protocol.request_auth import parse_authorization, sign_request
from minihs.protocol.signatures import SigningKey, sign_json
from minihs.remote.client import Remote
from minihs.remote.signed_requests import Answer, SignedRequests
from minihs.remote.transport import OutgoingRequest, RawAnswer, RemoteError
from tests.helpers.homeserver import Homeserver, running_homeserver
from tests.helpers.rooms import signing_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from minihs.services.context import Services

PERMILLE = 1_000
DAY_MS = 86_400_000


class Node(Protocol):
    """A server, as the network sees it."""

    async def __call__(self, request: OutgoingRequest) -> RawAnswer:
        """Answer a request."""
        ...


@dataclass(frozen=True, slots=True)
class Delivery:
    """A request that somebody made: what became of it is a status, or why there is none."""

    origin: str
    destination: str
    method: str
    target: str
    outcome: int | str


@dataclass(slots=True)
class Faults:
    """What goes wrong, in thousandths of the requests.

    `lost`: the request never arrives. `unanswered`: it is carried out, but its answer is lost.
    `doubled`: it is carried out twice. `delay_ms`: the shortest and the longest delay.
    """

    lost: int = 0
    unanswered: int = 0
    doubled: int = 0
    delay_ms: tuple[int, int] = (0, 0)


class InMemoryNetwork:
    """Carries requests between servers of one process.

    `log` has every request, in the order of their ends; `unanswered` is how many of them servers
    that are silent have taken, and will not answer in time.
    """

    def __init__(self, clock: Clock | None = None, seed: int = 0) -> None:
        self.clock = clock or SystemClock()
        self.faults = Faults()
        self.log: list[Delivery] = []
        self._randomness = Randomness(seed)
        self._nodes: dict[str, Node] = {}
        self._parts: list[frozenset[str]] = []
        self._silent: frozenset[str] = frozenset()
        self.unanswered = 0

    def add(self, name: str, node: Node) -> None:
        """Put a server on the network, or replace it."""
        self._nodes[name] = node

    def remove(self, name: str) -> None:
        """Take a server off the network."""
        del self._nodes[name]

    def is_under_test(self, name: str) -> bool:
        """Return whether a server is minihs, and not one that does as the test says."""
        node = self._nodes.get(name)
        return node is not None and not isinstance(getattr(node, "__self__", None), EvilServer)

    def transport(self, origin: str) -> InMemoryTransport:
        """Return what carries the requests of a server."""
        return InMemoryTransport(self, origin)

    def partition(self, *parts: Sequence[str]) -> None:
        """Let servers reach only those of their own part; who is in none reaches nobody."""
        self._parts = [frozenset(part) for part in parts]

    def silence(self, *names: str) -> None:
        """Let servers take requests and never answer."""
        self._silent = frozenset(names)

    def isolate(self, *names: str) -> None:
        """Cut servers off from everybody."""
        self._parts = [frozenset(self._nodes) - frozenset(names)]

    def heal(self) -> None:
        """Let everybody reach everybody, and nothing go wrong."""
        self._parts = []
        self._silent = frozenset()
        self.faults = Faults()

    async def carry(self, origin: str, request: OutgoingRequest) -> RawAnswer | RemoteError:
        """Deliver a request, if things go well."""
        outcome = await self._carry(origin, request)
        self.log.append(
            Delivery(
                origin,
                request.destination,
                request.method,
                request.target,
                outcome.status if isinstance(outcome, RawAnswer) else outcome.kind,
            )
        )
        return outcome

    async def _carry(self, origin: str, request: OutgoingRequest) -> RawAnswer | RemoteError:
        destination = request.destination
        node = self._nodes.get(destination)
        if node is None or not self._is_connected(origin, destination):
            return RemoteError("unreachable", destination, "not on the network")
        if destination in self._silent:
            self.unanswered += 1
            try:
                await self.clock.sleep_ms(request.timeout_ms)
            finally:
                self.unanswered -= 1
            return RemoteError("timed_out", destination, "silent")
        faults = self.faults
        delay_ms = self._randomness.between(*faults.delay_ms)
        lost, unanswered, doubled = (
            self._randomness.between(0, PERMILLE - 1) < permille
            for permille in (faults.lost, faults.unanswered, faults.doubled)
        )
        if delay_ms:
            await self.clock.sleep_ms(min(delay_ms, request.timeout_ms))
        if lost or delay_ms >= request.timeout_ms:
            return RemoteError("timed_out", destination, "lost on the way")
        if doubled:
            await node(request)
        answer = await node(request)
        if unanswered:
            return RemoteError("timed_out", destination, "the answer was lost")
        if len(answer.body) > request.answer_bytes_max:
            return RemoteError("bad_answer", destination, "too large", answer.status)
        return answer

    def _is_connected(self, one: str, other: str) -> bool:
        return not self._parts or any(one in part and other in part for part in self._parts)


class InMemoryTransport:
    """The network as one server uses it."""

    def __init__(self, network: InMemoryNetwork, origin: str) -> None:
        self._network = network
        self._origin = origin

    async def send(self, request: OutgoingRequest) -> RawAnswer | RemoteError:
        """Make a request."""
        return await self._network.carry(self._origin, request)

    async def close(self) -> None:
        """Do nothing: there is no connection."""


def node_of(services: Services) -> Node:
    """Return a server under test as a node: the real application, called without a socket."""
    application = build_application(services)
    application.freeze()

    async def answer(request: OutgoingRequest) -> RawAnswer:
        loop = asyncio.get_running_loop()
        payload = StreamReader(
            mock.Mock(spec=BaseProtocol, _reading_paused=False), 2**16, loop=loop
        )
        headers = CIMultiDict(request.headers)
        if request.body is not None:
            headers["Content-Length"] = str(len(request.body))
            payload.feed_data(request.body)
        payload.feed_eof()
        http = make_mocked_request(
            request.method, request.target, headers, app=application, payload=payload
        )
        response = await application._handle(http)
        body = response.body  # type: ignore[attr-defined]  # never a streamed one
        return RawAnswer(response.status, bytes(body or b""), response.content_type)

    return answer


# --- a server that does as the test says --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Received:
    """A request that an `EvilServer` got; `path` are the parameters of the path."""

    method: str
    target: str
    path: Mapping[str, str]
    query: Mapping[str, str]
    content: object
    origin: str | None


@dataclass(frozen=True, slots=True)
class _Scripted:
    """A JSON value, bytes, a `RawAnswer`, or a function of the request that returns one of them."""

    answer: object

    async def give(self, received: Received) -> RawAnswer:
        answer = self.answer
        if callable(answer):
            answer = answer(received)
            if inspect.isawaitable(answer):
                answer = await answer
        return answer if isinstance(answer, RawAnswer) else raw(answer)


def raw(answer: object, status: int = 200) -> RawAnswer:
    """Return an answer of JSON, or of bytes as they are."""
    return RawAnswer(status, answer if isinstance(answer, bytes) else orjson.dumps(answer))


class EvilServer:
    """A server of our own making. It publishes its key; everything else is scripted with `on`.

    Its key is that of `tests.helpers.rooms`, so events made there by its users are signed by it.
    """

    def __init__(
        self, network: InMemoryNetwork, name: str = "evil", key: SigningKey | None = None
    ) -> None:
        self.network = network
        self.name = ServerName(name)
        self.key = key or signing_key(name)
        self.received: list[Received] = []
        self._script: dict[tuple[str, str], _Scripted] = {}
        self.transport = network.transport(name)
        self.requests = SignedRequests(
            self.name, self.key, self.transport, is_transaction_open=lambda: False
        )
        self.remote = Remote(self.requests)
        self.on("GET", "/_matrix/key/v2/server", lambda _: self.key_object())
        network.add(name, self._answer)

    def on(self, method: str, path: str, answer: object) -> None:
        """Script an endpoint; `path` may have parameters, `{roomId}`. The last script holds.

        `answer` is a JSON value, bytes, a `RawAnswer` (see `raw`), or a function of what was
        received that returns one, perhaps after a wait.
        """
        self._script[method, path] = _Scripted(answer)

    async def request(
        self, destination: str, method: str, path: str, content: Mapping[str, object] | None = None,
        query: Sequence[tuple[str, str]] = (),
    ) -> Answer:  # fmt: skip
        """Make a well-signed request; return the JSON object of a success."""
        return await self.requests.request(destination, method, path, query=query, content=content)

    async def send_raw(
        self, destination: str, method: str, target: str, headers: Mapping[str, str],
        body: bytes | None = None,
    ) -> RawAnswer:  # fmt: skip
        """Make a request with whatever headers."""
        answer = await self.transport.send(
            OutgoingRequest(destination, method, target, headers, body, 30_000, 2**24)
        )
        assert isinstance(answer, RawAnswer), answer
        return answer

    async def send_bytes(
        self, destination: str, method: str, target: str, body: bytes | None
    ) -> RawAnswer:
        """Make a request with exactly this body; it is signed as far as the body is JSON."""
        try:
            content = None if body is None else encode_lenient(decode_lenient(body))
        except ValueError:
            content = b"{}"
        authorization = sign_request(
            self.key,
            method=method,
            uri=target,
            origin=self.name,
            destination=destination,
            content=content,
        )
        headers = {"Authorization": authorization, "Content-Type": "application/json"}
        return await self.send_raw(destination, method, target, headers, body)

    def key_object(self, **changes: object) -> dict[str, object]:
        """Return the key object as it should be, but for the changes; signed."""
        published = {
            "server_name": self.name,
            "valid_until_ts": self.network.clock.now_ms() + DAY_MS,
            "verify_keys": {self.key.key_id: {"key": self.key.public_key_base64}},
            "old_verify_keys": {},
        }
        return sign_json({**published, **changes}, self.name, self.key)

    def asked(self, path_part: str) -> list[Received]:
        """Return the requests whose target contains that."""
        return [request for request in self.received if path_part in request.target]

    async def _answer(self, request: OutgoingRequest) -> RawAnswer:
        raw_path, _, query = request.target.partition("?")
        router: Router[_Scripted] = Router()
        for (method, path), scripted in self._script.items():
            router.add(method, path, scripted)
        found = router.match(request.method, raw_path)
        authorization = request.headers.get("Authorization")
        received = Received(
            method=request.method,
            target=request.target,
            path=found[1] if isinstance(found, tuple) else {},
            query=dict(parse_qsl(query)),
            content=orjson.loads(request.body) if request.body else None,
            origin=parse_authorization(authorization).origin if authorization else None,
        )
        self.received.append(received)
        if not isinstance(found, tuple):
            return raw({"errcode": "M_UNRECOGNIZED", "error": "not scripted"}, 404)
        return await found[0].give(received)


# --- whole servers ------------------------------------------------------------------------------


class Federation:
    """Servers on one network. `start` runs another, each with a database of its own."""

    def __init__(
        self,
        network: InMemoryNetwork,
        stack: contextlib.AsyncExitStack,
        database: Callable[[], AbstractAsyncContextManager[str]],
        directory: Path,
    ) -> None:
        self.network = network
        self._stack = stack
        self._database = database
        self._directory = directory
        self.servers: dict[str, Homeserver] = {}

    async def start(self, name: str, *, workers: int = 1, **options: object) -> Homeserver:
        """Run a homeserver; options are those of the configuration.

        Of several `workers` the first is asked by other servers.
        """
        dsn = await self._stack.enter_async_context(self._database())
        directory = self._directory / name.replace(":", "_")
        directory.mkdir()
        server = await self._stack.enter_async_context(
            running_homeserver(
                dsn,
                directory,
                clock=self.network.clock,
                seed=zlib.crc32(name.encode()),  # of the signing key, among others
                transport=self.network.transport(name),
                workers=workers,
                **{"server_name": name, "default_room_version": "12", **options},
            )
        )
        self.network.add(name, node_of(server.services))
        self.servers[name] = server
        return server

    def evil(self, name: str = "evil") -> EvilServer:
        """Put a server on the network that does as the test says."""
        return EvilServer(self.network, name)


@contextlib.asynccontextmanager
async def running_federation(
    database: Callable[[], AbstractAsyncContextManager[str]],
    directory: Path,
    *,
    clock: Clock | None = None,
    seed: int = 0,
) -> AsyncIterator[Federation]:
    """Yield a federation without servers. `database` opens a fresh database."""
    async with contextlib.AsyncExitStack() as stack:
        yield Federation(InMemoryNetwork(clock, seed), stack, database, directory)
