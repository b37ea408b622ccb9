"""Asking a web server who serves its name: anybody's web server."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING

import aiohttp
import pytest
from aiohttp import web

from minihs.remote.well_known import (
    BYTES_MAX,
    PATH,
    REDIRECTS_MAX,
    TIMEOUT_MS,
    WellKnown,
    fetch_well_known,
)
from tests.remote.names import FakeDns

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from minihs.base.clock import ManualClock
    from tests.remote.conftest import TlsServer

pytestmark = pytest.mark.spec("server-server-api#getwell-knownmatrixserver")

GOOD = '{"m.server": "to.example:443"}'


@pytest.fixture
async def session(ca_file: str) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(
        ssl=ssl.create_default_context(cafile=ca_file),
        resolver=FakeDns({"hs2.test": ["127.0.0.1"]}).addresses,
    )
    async with aiohttp.ClientSession(connector=connector) as session:
        yield session


async def ask(
    session: aiohttp.ClientSession, server: TlsServer, clock: ManualClock
) -> WellKnown | None:
    return await fetch_well_known(session, f"https://hs2.test:{server.port}{PATH}", clock)


def answer_with(
    server: TlsServer, body: str, status: int = 200, headers: Mapping[str, str] | None = None
) -> None:
    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.Response(text=body, status=status, headers=headers)

    server.handler = answer


@pytest.mark.parametrize(
    ("headers", "lifetime_ms"),
    [
        ({}, None),
        ({"Content-Type": "text/plain"}, None),
        ({"Cache-Control": "max-age=60"}, 60_000),
        ({"Cache-Control": 'public, Max-Age="60"'}, 60_000),
        ({"Cache-Control": "max-age=" + "9" * 100}, 9_999_999_999_000),
        ({"Cache-Control": "max-age=-1"}, None),
        ({"Cache-Control": "no-store"}, 0),
        ({"Cache-Control": "no-cache, max-age=60"}, 0),
        ({"Expires": "Sun, 15 Jun 2025 15:07:40 GMT"}, 60_000),
        ({"Expires": "0"}, 0),
        ({"Expires": "Sun, 15 Jun 2025 15:07:40 GMT", "Cache-Control": "max-age=5"}, 5_000),
    ],
)
async def test_valid_answers(
    session: aiohttp.ClientSession,
    hs2: TlsServer,
    clock: ManualClock,
    headers: dict[str, str],
    lifetime_ms: int | None,
) -> None:
    answer_with(hs2, GOOD, headers=headers)
    assert await ask(session, hs2, clock) == WellKnown("to.example:443", lifetime_ms)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (GOOD, 404),
        (GOOD, 500),
        (GOOD, 201),
        ("", 200),
        ("<html>", 200),
        ("[]", 200),
        ("null", 200),
        ("{}", 200),
        ('{"m.server": null}', 200),
        ('{"m.server": 1}', 200),
        ('{"m.server": ""}', 200),
        ('{"m.server": "https://to.example"}', 200),
        ('{"m.server": "to.example/path"}', 200),
        ('{"m.server": "to.example:port"}', 200),
        ('{"m.server": "to example"}', 200),
    ],
)
async def test_answers_of_no_use(
    session: aiohttp.ClientSession, hs2: TlsServer, clock: ManualClock, body: str, status: int
) -> None:
    answer_with(hs2, body, status)
    assert await ask(session, hs2, clock) is None


def redirect(server: TlsServer, times: int, location: str = "/{n}", final: str = GOOD) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        done = len(server.received)
        if done > times:
            return web.Response(text=final)
        headers = {"Location": location.format(n=done, port=server.port)}
        return web.Response(status=(301, 302, 303, 307, 308)[done % 5], headers=headers)

    server.handler = answer


@pytest.mark.parametrize(
    "location", ["/{n}", "https://hs2.test:{port}/x?y={n}", "//hs2.test:{port}"]
)
async def test_a_few_redirects_are_followed(
    session: aiohttp.ClientSession, hs2: TlsServer, clock: ManualClock, location: str
) -> None:
    redirect(hs2, REDIRECTS_MAX, location)
    assert await ask(session, hs2, clock) == WellKnown("to.example:443", None)


async def test_f15_redirects_end(
    session: aiohttp.ClientSession, hs2: TlsServer, clock: ManualClock
) -> None:
    redirect(hs2, REDIRECTS_MAX + 1)
    assert await ask(session, hs2, clock) is None
    assert len(hs2.received) == 1 + REDIRECTS_MAX


@pytest.mark.parametrize(
    "location",
    ["http://hs2.test:{port}/", "file:///etc/passwd", "ftp://hs2.test/", "", "https://["],
)
async def test_f14_redirects_lead_to_https_only(
    session: aiohttp.ClientSession, hs2: TlsServer, clock: ManualClock, location: str
) -> None:
    redirect(hs2, 1, location)
    answer = await ask(session, hs2, clock)
    assert answer is None or location == ""  # An empty one is the same page again.
    assert len(hs2.received) == (2 if location == "" else 1)


async def test_f15_a_redirect_to_a_large_file_is_cut(
    session: aiohttp.ClientSession, hs2: TlsServer, clock: ManualClock
) -> None:
    redirect(hs2, 1, final=GOOD + " " * (BYTES_MAX - len(GOOD)))
    assert await ask(session, hs2, clock) is not None
    hs2.received.clear()
    redirect(hs2, 1, final=GOOD + " " * (BYTES_MAX - len(GOOD) + 1))
    assert await ask(session, hs2, clock) is None


async def test_f15_f16_a_slow_answer_is_not_waited_for(
    session: aiohttp.ClientSession, hs2: TlsServer, clock: ManualClock
) -> None:
    leave = asyncio.Event()

    async def answer(_request: web.Request) -> web.StreamResponse:
        await leave.wait()
        return web.Response(text=GOOD)

    hs2.handler = answer
    asking = asyncio.ensure_future(ask(session, hs2, clock))
    await hs2.arrived.wait()
    clock.advance_ms(TIMEOUT_MS)
    assert await asking is None
    leave.set()
    assert TIMEOUT_MS <= 30_000
