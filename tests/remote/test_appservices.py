"""Requests to application services: bounded, never redirected, as of old if nothing else helps."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from minihs.base.clock import ManualClock
from minihs.base.limits import APPSERVICE_ANSWER_BYTES_MAX
from minihs.remote.appservices import AppserviceRemote, json_of
from minihs.remote.transport import RawAnswer, RemoteError
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.spec("application-service-api#homeserver--gt-application-service-api")


@dataclass(frozen=True, slots=True)
class Service:
    url: str | None
    id: str = "bridge"
    hs_token: str = "secret"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def remote(clock: ManualClock) -> AsyncIterator[AppserviceRemote]:
    made = AppserviceRemote(clock, is_transaction_open=lambda: False)
    yield made
    await made.close()


class Answering:
    """A service that answers everything in one way, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[web.Request] = []
        self.silent = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request)
        if request.path.endswith("/slow"):
            await self.silent.wait()
        if request.path.endswith("/away"):
            raise web.HTTPFound("/elsewhere")
        if request.path.endswith("/huge"):
            return web.Response(body=b" " * (APPSERVICE_ANSWER_BYTES_MAX + 1))
        if request.path.endswith("/unknown"):
            return web.json_response({"errcode": "M_UNRECOGNIZED"}, status=404)
        if request.path.endswith("/nobody"):
            return web.json_response({"errcode": "M_NOT_FOUND"}, status=404)
        return web.json_response({"path": request.path})


@pytest.fixture
async def answering() -> Answering:
    return Answering()


@pytest.fixture
async def service(answering: Answering) -> AsyncIterator[Service]:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answering.handle)
    async with TestServer(application) as server:
        yield Service(str(server.make_url("/base")))
        answering.silent.set()


async def test_a_service_is_asked_below_its_url(
    remote: AppserviceRemote, service: Service, answering: Answering
):
    answer = await remote.request(service, "GET", "/users/%40a%3Ahs1", query=[("q", "a b&c")])
    assert isinstance(answer, RawAnswer)
    assert json_of(answer) == {"path": "/base/users/@a:hs1"}
    (asked,) = answering.asked
    assert asked.headers["Authorization"] == "Bearer secret"
    assert dict(asked.query) == {"q": "a b&c"}


async def test_redirects_are_not_followed(
    remote: AppserviceRemote, service: Service, answering: Answering
):
    answer = await remote.request(service, "GET", "/away")
    assert isinstance(answer, RemoteError)
    assert (answer.kind, answer.status) == ("refused", 302)
    assert len(answering.asked) == 1


async def test_an_answer_is_read_up_to_a_limit(remote: AppserviceRemote, service: Service):
    answer = await remote.request(service, "GET", "/huge")
    assert isinstance(answer, RemoteError)
    assert answer.kind == "bad_answer"


async def test_an_answer_is_waited_for_up_to_a_limit(
    remote: AppserviceRemote, service: Service, answering: Answering, clock: ManualClock
):
    asking = asyncio.ensure_future(remote.request(service, "GET", "/slow", timeout_ms=1_000))
    await until(lambda: answering.asked)
    clock.advance_ms(1_000)
    answer = await asking
    assert isinstance(answer, RemoteError)
    assert answer.kind == "timed_out"


@pytest.mark.parametrize(
    ("url", "kind"), [(None, "unreachable"), ("http://127.0.0.1:9", "unreachable")]
)
async def test_nobody_there_is_an_outcome(remote: AppserviceRemote, url: str | None, kind: str):
    answer = await remote.request(Service(url), "GET", "/x")
    assert isinstance(answer, RemoteError)
    assert answer.kind == kind


@pytest.mark.spec("application-service-api#legacy-routes")
async def test_what_a_service_does_not_know_is_asked_as_of_old(
    remote: AppserviceRemote, service: Service, answering: Answering
):
    found = await remote.request(service, "GET", "/unknown", legacy="/old")
    assert isinstance(found, RawAnswer)
    assert answering.asked[1].query["access_token"] == "secret"
    refused = await remote.request(service, "GET", "/nobody", legacy="/old")
    assert isinstance(refused, RemoteError)
    assert (refused.status, refused.errcode) == (404, "M_NOT_FOUND")
    assert len(answering.asked) == 3


async def test_no_service_is_asked_in_a_transaction(clock: ManualClock):
    remote = AppserviceRemote(clock, is_transaction_open=lambda: True)
    with pytest.raises(RuntimeError, match="while a transaction is open"):
        await remote.request(Service("http://127.0.0.1:9"), "GET", "/x")
