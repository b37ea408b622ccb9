"""An application service that lives in the test's process, and answers as it is told."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import orjson
from aiohttp import web
from aiohttp.test_utils import TestServer

from minihs.services.appservices.delivery import AppserviceDelivery
from tests.helpers.homeserver import Homeserver, Response, User
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from minihs.services.context import Services

AS_TOKEN, HS_TOKEN = "as-token-of-the-bridge", "hs-token-of-the-bridge"


@dataclass(slots=True)
class Asked:
    """A request that came: `body` is its JSON, None if it has none."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


@dataclass(slots=True)
class Bridge:
    """An application service. It takes everything, unless `answer` says otherwise: (status, JSON).

    `file` is where its registration is; `asked` is every request, in order.
    """

    file: Path
    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    answer: Callable[[Asked], Any] = lambda _: None

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        asked = Asked(
            request.method,
            request.path,
            dict(request.query),
            dict(request.headers),
            orjson.loads(body) if body else None,
        )
        self.asked.append(asked)
        answer = self.answer(asked)
        if hasattr(answer, "__await__"):
            answer = await answer
        status, json = answer or (200, {})
        return web.Response(status=status, body=orjson.dumps(json), content_type="application/json")

    @property
    def transactions(self) -> list[Asked]:
        """The transactions that came, taken or not."""
        return [one for one in self.asked if one.path.startswith("/_matrix/app/v1/transactions/")]

    @property
    def txn_ids(self) -> list[str]:
        """Their ids."""
        return [one.path.rpartition("/")[2] for one in self.transactions]

    @property
    def events(self) -> list[dict]:
        """The events of all transactions."""
        return [event for one in self.transactions for event in one.body["events"]]

    @property
    def texts(self) -> list[str]:
        """What the messages among them say."""
        return [e["content"]["body"] for e in self.events if e["type"] == "m.room.message"]

    def ephemeral(self, event_type: str) -> list[dict]:
        """What of a type came beside events."""
        return [
            event
            for one in self.transactions
            for event in one.body.get("ephemeral", ())
            if event["type"] == event_type
        ]

    def register(self, **changes: object) -> Path:
        """Write the registration file; return where it is."""
        registration = {
            "id": "bridge",
            "url": self.url,
            "as_token": AS_TOKEN,
            "hs_token": HS_TOKEN,
            "sender_localpart": "_bridge",
            "namespaces": {
                "users": [{"regex": "@_bridge_.*", "exclusive": True}],
                "aliases": [{"regex": "#_bridge_.*", "exclusive": True}],
                "rooms": [],
            },
            **changes,
        }
        self.file.write_bytes(msgspec.yaml.encode(registration))
        return self.file


@contextlib.asynccontextmanager
async def running_bridge(directory: Path) -> AsyncIterator[Bridge]:
    """Run an application service, registered in a file in a directory."""
    bridge = Bridge(directory / "bridge.yaml")
    application = web.Application(client_max_size=2**24)
    application.router.add_route("*", "/{path:.*}", bridge.handle)
    async with TestServer(application) as server:
        bridge.url = str(server.make_url("")).rstrip("/")
        bridge.register()
        yield bridge


class BridgeUser(User):
    """A user as whom the application service acts: with its token, and their name in the query."""

    def __init__(self, homeserver: Homeserver, user_id: str, token: str = AS_TOKEN) -> None:
        super().__init__(homeserver, user_id, token)

    async def request(  # type: ignore[explicit-override]
        self, method: str, path: str, body: object = None, **query: str
    ) -> Response:
        return await super().request(method, path, body, user_id=self.user_id, **query)


def sender(homeserver: Homeserver, token: str = AS_TOKEN) -> User:
    """Return the application service itself."""
    return User(homeserver, f"@_bridge:{homeserver.name}", token)


async def make_ghost(homeserver: Homeserver, localpart: str) -> BridgeUser:
    """Return a user whom the application service has made."""
    made = await sender(homeserver).request(
        "POST",
        "/register",
        {"type": "m.login.application_service", "username": localpart, "inhibit_login": True},
    )
    assert made.status == 200, made.json
    return BridgeUser(homeserver, made.json["user_id"])


async def begin(services: Services, holder: str = "first") -> AppserviceDelivery:
    """Let a process take part in the delivery."""
    delivery = AppserviceDelivery(services, holder)
    services.follower.subscribe(delivery.follow, delivery.reset)
    await delivery.hold()
    return delivery


async def settled(delivery: AppserviceDelivery) -> None:
    """Return when everything committed has been taken, or nothing is tried any more."""
    services = delivery._services
    head = await services.follower.fetch_position()

    def idle() -> bool:
        now_ms = services.clock.now_ms()
        return all(
            # What it has done is written down when it waits for news.
            q.news._waiters
            and (q.retry_at_ms > now_ms or (q.pending is None and q.position >= head))
            for q in delivery._queues.values()
        )

    await until(idle)
