"""Servers with certificates, on the loopback interface."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING

import pytest
import trustme
from aiohttp import web

from minihs.base.clock import ManualClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class TlsServer:
    """A web server with a certificate: `handler` answers, `received` has every request."""

    def __init__(self) -> None:
        self.received: list[web.Request] = []
        self.bodies: list[bytes] = []
        self.arrived = asyncio.Event()
        self.connections: set[object] = set()
        self.handler: Handler = self._empty
        self.port = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.received.append(request)
        self.connections.add(request.transport)
        self.bodies.append(await request.read())
        self.arrived.set()
        return await self.handler(request)

    @staticmethod
    async def _empty(_request: web.Request) -> web.StreamResponse:
        return web.json_response({})


@contextlib.asynccontextmanager
async def tls_server(certificate: trustme.LeafCert) -> AsyncIterator[TlsServer]:
    """Run a server with a certificate."""
    server = TlsServer()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(application, shutdown_timeout=0)
    await runner.setup()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    server.port = runner.addresses[0][1]
    try:
        yield server
    finally:
        await runner.cleanup()


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """The certificate authority that the tests trust."""
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture
async def hs2(authority: trustme.CA) -> AsyncIterator[TlsServer]:
    """A server with the right certificate for `hs2.test`."""
    async with tls_server(authority.issue_cert("hs2.test")) as server:
        yield server


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()
