"""A whole homeserver in the test's own process, and people who use it over HTTP."""

from __future__ import annotations

import contextlib
import itertools
import os
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import orjson
from aiohttp.test_utils import TestClient, TestServer

from minihs.api.server import build_application
from minihs.app import build_services
from minihs.base.config import Config
from minihs.base.randomness import Randomness

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from pathlib import Path

    from minihs.base.clock import Clock
    from minihs.remote.transport import Transport
    from minihs.services.context import Services

CLIENT = "/_matrix/client/v3"
PASSWORD = "correct horse battery staple"  # of users who live for one test


class Response:
    """Status and JSON of an answer."""

    def __init__(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.status = status
        self.body = body
        self.headers = headers
        self.json: Any = orjson.loads(body) if body else None


class User:
    """Somebody with a client. Paths are below /_matrix/client/v3 unless they begin with /_."""

    _txn = itertools.count()

    def __init__(self, homeserver: Homeserver, user_id: str, token: str | None) -> None:
        self.homeserver = homeserver
        self.user_id = user_id
        self.token = token
        self.device_id = ""
        self.since: str | None = None

    async def request(self, method: str, path: str, body: object = None, **query: str) -> Response:
        """Make a request and return whatever comes back."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token is not None else {}
        return await self.homeserver.request(method, path, body, query, headers)

    async def call(self, method: str, path: str, body: object = None, **query: str) -> dict:
        """Make a request that must succeed; return its JSON."""
        response = await self.request(method, path, body, **query)
        assert response.status == 200, (method, path, response.status, response.json)
        return response.json

    async def create_room(self, **options: object) -> str:
        """Create a room; return its id."""
        return (await self.call("POST", "/createRoom", {"preset": "public_chat", **options}))[
            "room_id"
        ]

    async def join(self, room_id: str) -> None:
        """Join a room."""
        await self.call("POST", f"/join/{quote(room_id, safe='')}", {})

    async def invite(self, room_id: str, user: User) -> None:
        """Invite somebody."""
        await self.call("POST", f"/rooms/{quote(room_id)}/invite", {"user_id": user.user_id})

    async def leave(self, room_id: str) -> None:
        """Leave a room."""
        await self.call("POST", f"/rooms/{quote(room_id)}/leave", {})

    async def say(self, room_id: str, body: str = "hello", **content: object) -> str:
        """Send a text; return the event id."""
        message = {"msgtype": "m.text", "body": body, **content}
        return await self.send(room_id, "m.room.message", message)

    async def send(self, room_id: str, event_type: str, content: object) -> str:
        """Send an event; return its id."""
        path = f"/rooms/{quote(room_id)}/send/{quote(event_type)}/t{next(self._txn)}"
        return (await self.call("PUT", path, content))["event_id"]

    async def put_state(
        self, room_id: str, event_type: str, content: object, state_key: str = ""
    ) -> str:
        """Set state; return the event id."""
        path = f"/rooms/{quote(room_id)}/state/{quote(event_type)}/{quote(state_key, safe='')}"
        return (await self.call("PUT", path, content))["event_id"]

    async def sync(self, **query: str) -> dict:
        """Sync from where the last call ended, without waiting and unseen; return the answer."""
        query.setdefault("timeout", "0")
        query.setdefault("set_presence", "offline")
        if self.since is not None:
            query.setdefault("since", self.since)
        answer = await self.call("GET", "/sync", **query)
        self.since = answer["next_batch"]
        return answer


class Homeserver:
    """One server under test: one or several `Services` over one database, as its processes are.

    Requests go to the workers in turn, so that with two of them every test also tells whether what
    one has written is there for the next.
    """

    def __init__(self, workers: Sequence[tuple[Services, TestClient]]) -> None:
        self.workers = [services for services, _ in workers]
        self.services, self.client = workers[0]
        self.clock = self.services.clock
        self.name = self.services.server_name
        self._turns = itertools.cycle([client for _, client in workers])

    async def request(
        self,
        method: str,
        path: str,
        body: object = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Make a request; `body` is JSON-able, or bytes to send as they are."""
        if not path.startswith("/_") and not path.startswith("/.well-known"):
            path = CLIENT + path
        data = body if isinstance(body, bytes) or body is None else orjson.dumps(body)
        async with next(self._turns).request(
            method, path, data=data, params=query or {}, headers=headers or {}
        ) as answer:
            return Response(answer.status, await answer.read(), answer.headers)

    async def register(self, localpart: str) -> User:
        """Register a user, who has one device and a token."""
        response = await self.request(
            "POST",
            "/register",
            {"username": localpart, "password": PASSWORD, "auth": {"type": "m.login.dummy"}},
        )
        assert response.status == 200, response.json
        user = User(self, response.json["user_id"], response.json["access_token"])
        user.device_id = response.json["device_id"]
        return user

    def stranger(self) -> User:
        """Return somebody without a token."""
        return User(self, "", None)


WORKERS = "MINIHS_TEST_WORKERS"


@contextlib.asynccontextmanager
async def running_homeserver(
    database_url: str,
    directory: Path,
    *,
    clock: Clock | None = None,
    seed: int | None = 1,
    workers: int | None = None,
    transport: Transport | None = None,
    **options: object,
) -> AsyncIterator[Homeserver]:
    """Run a homeserver on a database; options are those of the configuration.

    `workers` is how many share it: by default what the environment says, else one. Rate limits are
    each worker's own, so a test about them gets one.
    """
    settings: dict[str, object] = {
        "server_name": "hs1",
        "data_dir": str(directory),
        "registration": "open",
        "rate_limits": "off",
        "password_hash_memory_kib": 8,
        "password_hash_iterations": 1,
        "default_room_version": "11",
        "registration_shared_secret": "shared secret",
    }
    config = Config(**(settings | options))  # type: ignore[arg-type]
    if workers is None:
        workers = 1 if config.rate_limits_on else int(os.environ.get(WORKERS, "1"))
    async with contextlib.AsyncExitStack() as stack:
        running = []
        for number in range(workers):
            randomness = Randomness(None if seed is None else seed + 1_000 * number)
            services = await stack.enter_async_context(
                build_services(
                    config, database_url, clock=clock, randomness=randomness, transport=transport
                )
            )
            client = TestClient(TestServer(build_application(services)))
            stack.push_async_callback(client.close)
            await client.start_server()
            running.append((services, client))
        yield Homeserver(running)
