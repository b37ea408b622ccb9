"""The real wire: TLS, addresses, limits of size and time."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import gzip
import logging
import shutil
import tracemalloc
import zlib
from typing import TYPE_CHECKING

import trustme
from aiohttp import web

from minihs.base.clock import Clock, ManualClock, SystemClock
from minihs.base.config import Config
from minihs.base.randomness import Randomness
from minihs.remote.dns import SrvRecord
from minihs.remote.http import HttpTransport
from minihs.remote.transport import OutgoingRequest, RawAnswer, RemoteError
from tests.remote.conftest import TlsServer, tls_server
from tests.remote.names import FakeDns

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    import pytest

MEGABYTE = 1_048_576
LOCAL = {"hs2.test": ["127.0.0.1"], "box.test": ["127.0.0.1"], "other.test": ["127.0.0.1"]}


@contextlib.asynccontextmanager
async def transport(
    ca_file: str,
    *,
    clock: Clock | None = None,
    dns: FakeDns | None = None,
    verify: bool = True,
    private: bool = True,
) -> AsyncIterator[HttpTransport]:
    config = Config(
        federation_ca_file=ca_file,
        federation_verify_tls=verify,
        federation_allow_private_addresses=private,
    )
    running = HttpTransport(config, clock or SystemClock(), Randomness(1), dns or FakeDns(LOCAL))
    try:
        yield running
    finally:
        await running.close()


def get(
    destination: str, target: str = "/_matrix/a?b=c%20d", *, timeout_ms: int = 30_000,
    bytes_max: int = MEGABYTE,
) -> OutgoingRequest:  # fmt: skip
    return OutgoingRequest(destination, "GET", target, {}, None, timeout_ms, bytes_max)


def assert_unreachable(answer: RawAnswer | RemoteError, *servers: TlsServer) -> str:
    """Check that nothing was asked of anybody; return why."""
    assert isinstance(answer, RemoteError)
    assert answer.kind == "unreachable"
    assert all(server.received == [] for server in servers)
    return answer.message


async def test_a_request_arrives_as_it_was_signed(ca_file: str, hs2: TlsServer) -> None:
    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.json_response({"a": "ü"}, status=403)

    hs2.handler = answer
    name = f"hs2.test:{hs2.port}"
    target = "/_matrix/federation/v1/x/%21a%2Fb%3Ahs?q=%2B+%C3%BC"
    request = OutgoingRequest(
        name, "PUT", target, {"Authorization": "X-Matrix abc"}, b'{"z":1}', 30_000, MEGABYTE
    )
    async with transport(ca_file) as wire:
        assert await wire.send(request) == RawAnswer(403, b'{"a": "\\u00fc"}')
    (received,) = hs2.received
    assert (received.method, received.raw_path, received.host) == ("PUT", target, name)
    assert received.headers["Authorization"] == "X-Matrix abc"
    assert hs2.bodies == [b'{"z":1}']


async def test_connections_are_kept(ca_file: str, hs2: TlsServer) -> None:
    async with transport(ca_file) as wire:
        for _ in range(5):
            assert isinstance(await wire.send(get(f"hs2.test:{hs2.port}")), RawAnswer)
    assert (len(hs2.received), len(hs2.connections)) == (5, 1)


async def test_srv_records_lead_to_other_hosts_with_the_certificate_of_the_name(
    ca_file: str, hs2: TlsServer
) -> None:
    dns = FakeDns(LOCAL)
    closed = SrvRecord("box.test", 1, 0, 0, 60)  # Nobody listens: the next one is tried.
    dns.records["_matrix-fed._tcp.hs2.test"] = [closed, SrvRecord("box.test", hs2.port, 1, 0, 60)]
    async with transport(ca_file, dns=dns) as wire:
        assert isinstance(await wire.send(get("hs2.test")), RawAnswer)
    assert [request.host for request in hs2.received] == ["hs2.test"]


async def test_f17_a_connection_for_one_name_is_no_connection_for_another(
    ca_file: str, hs2: TlsServer
) -> None:
    """Somebody points their SRV record at our friend's box, to which we hold a connection."""
    dns = FakeDns(LOCAL)
    for name in ("hs2.test", "other.test"):
        dns.records[f"_matrix-fed._tcp.{name}"] = [SrvRecord("box.test", hs2.port, 0, 0, 60)]
    async with transport(ca_file, dns=dns) as wire:
        assert isinstance(await wire.send(get("hs2.test")), RawAnswer)
        hs2.received.clear()
        assert_unreachable(await wire.send(get("other.test")), hs2)


async def test_authorities_that_are_gone_after_the_start_fail_a_request_and_no_more(
    ca_file: str, hs2: TlsServer, tmp_path: Path
) -> None:
    """They are read for the first request, which tells; the next one tries again."""
    authorities = tmp_path / "authorities.pem"
    async with transport(str(authorities)) as wire:
        request = get(f"hs2.test:{hs2.port}")
        assert "authorities.pem cannot be used" in assert_unreachable(await wire.send(request), hs2)
        shutil.copyfile(ca_file, authorities)
        assert isinstance(await wire.send(request), RawAnswer)


async def test_redirects_are_not_followed(ca_file: str, hs2: TlsServer) -> None:
    async def answer(_request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound(f"https://other.test:{hs2.port}/")

    hs2.handler = answer
    async with transport(ca_file) as wire:
        answered = await wire.send(get(f"hs2.test:{hs2.port}"))
    assert isinstance(answered, RawAnswer)
    assert (answered.status, len(hs2.received)) == (302, 1)


async def test_names_that_lead_nowhere(ca_file: str) -> None:
    async with transport(ca_file) as wire:
        for name in ("nobody.test:1", "nobody.test", "box.test:1", "a..b:1", "-:1", "hs2.test:0"):
            assert assert_unreachable(await wire.send(get(name))), "it says why"


# --- certificates -------------------------------------------------------------------------------


def yesterday() -> datetime.datetime:
    return datetime.datetime.now(tz=datetime.UTC) - datetime.timedelta(days=1)


async def certificates(authority: trustme.CA) -> Sequence[tuple[trustme.LeafCert, str]]:
    return [
        (authority.issue_cert("other.test"), "hs2.test"),
        (authority.issue_cert("sub.hs2.test"), "hs2.test"),
        (authority.issue_cert("127.0.0.1"), "hs2.test"),
        (authority.issue_cert("hs2.test"), "127.0.0.1"),
        (trustme.CA().issue_cert("hs2.test"), "hs2.test"),
        (authority.issue_cert("hs2.test", not_after=yesterday()), "hs2.test"),
    ]


async def test_f17_certificates_that_prove_nothing_are_refused(
    ca_file: str, authority: trustme.CA
) -> None:
    for certificate, name in await certificates(authority):
        async with tls_server(certificate) as server, transport(ca_file) as wire:
            why = assert_unreachable(await wire.send(get(f"{name}:{server.port}")), server)
            assert "certificate" in why.lower()


async def test_f17_addresses_have_certificates_too(ca_file: str, authority: trustme.CA) -> None:
    async with tls_server(authority.issue_cert("127.0.0.1")) as server, transport(ca_file) as wire:
        assert isinstance(await wire.send(get(f"127.0.0.1:{server.port}")), RawAnswer)


async def test_f17_a_test_network_may_do_without_but_is_warned(
    ca_file: str, authority: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    for certificate, name in await certificates(authority):
        caplog.clear()
        async with (
            tls_server(certificate) as server,
            transport(ca_file, verify=False) as wire,
        ):
            for _ in range(2):
                assert isinstance(await wire.send(get(f"{name}:{server.port}")), RawAnswer)
        warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert len(warnings) == 1
        assert "NOT VERIFIED" in warnings[0].message


# --- addresses ----------------------------------------------------------------------------------


async def test_f14_our_own_network_is_never_connected_to(ca_file: str, hs2: TlsServer) -> None:
    aliases = {
        "loopback.test": ["127.0.0.1"],
        "mapped.test": ["::ffff:127.0.0.1"],
        "unspecified.test": ["0.0.0.0"],  # noqa: S104  # to connect to
        "six.test": ["::1", "::"],
        "hs2.test": ["127.0.0.1"],
    }
    dns = FakeDns(aliases)
    dns.records["_matrix-fed._tcp.public.test"] = [
        SrvRecord("hs2.test", hs2.port, 0, 0, 60),
        SrvRecord("127.0.0.1", hs2.port, 0, 0, 60),
    ]
    names = [f"{name}:{hs2.port}" for name in aliases]
    names += [f"127.0.0.1:{hs2.port}", f"0.0.0.0:{hs2.port}", f"[::ffff:127.0.0.1]:{hs2.port}"]
    async with transport(ca_file, dns=dns, private=False) as wire:
        for name in [*names, "public.test"]:
            assert_unreachable(await wire.send(get(name)), hs2)
            assert hs2.connections == set()
    async with transport(ca_file, dns=dns) as wire:  # The same, where it is allowed.
        assert isinstance(await wire.send(get(f"hs2.test:{hs2.port}")), RawAnswer)


# --- size ---------------------------------------------------------------------------------------


async def test_j03_a_bomb_is_cut_at_the_limit(ca_file: str, hs2: TlsServer) -> None:
    zeros = bytes(200 * MEGABYTE)
    bombs = {"gzip": gzip.compress(zeros, 1), "deflate": zlib.compress(zeros, 1)}
    del zeros
    async with transport(ca_file) as wire:
        for encoding, bomb in bombs.items():

            async def answer(_request: web.Request, encoding: str = encoding, bomb: bytes = bomb
            ) -> web.StreamResponse:  # fmt: skip
                return web.Response(body=bomb, headers={"Content-Encoding": encoding})

            hs2.handler = answer
            tracemalloc.start()
            answered = await wire.send(get(f"hs2.test:{hs2.port}", bytes_max=MEGABYTE))
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert isinstance(answered, RemoteError)
            assert answered.kind == "bad_answer"
            assert peak < 16 * MEGABYTE


async def test_j03_what_fits_after_decompression_is_read(ca_file: str, hs2: TlsServer) -> None:
    async def answer(_request: web.Request) -> web.StreamResponse:
        body = gzip.compress(bytes(MEGABYTE))
        return web.Response(body=body, headers={"Content-Encoding": "gzip"})

    hs2.handler = answer
    async with transport(ca_file) as wire:
        answered = await wire.send(get(f"hs2.test:{hs2.port}", bytes_max=MEGABYTE))
    assert isinstance(answered, RawAnswer)
    assert len(answered.body) == MEGABYTE


async def test_j03_an_endless_answer_is_cut_at_the_limit(ca_file: str, hs2: TlsServer) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            for _ in range(320):  # 20 MB; the client has gone long before.
                await response.write(bytes(65_536))
        return response

    hs2.handler = answer
    async with transport(ca_file) as wire:
        answered = await wire.send(get(f"hs2.test:{hs2.port}"))
    assert isinstance(answered, RemoteError)
    assert answered.kind == "bad_answer"


# --- time ---------------------------------------------------------------------------------------


async def test_f16_an_answer_that_drips_is_not_waited_for(
    ca_file: str, hs2: TlsServer, clock: ManualClock
) -> None:
    dripping, leave = asyncio.Event(), asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"{")
        dripping.set()
        await leave.wait()
        return response

    hs2.handler = answer
    async with transport(ca_file, clock=clock) as wire:
        sending = asyncio.ensure_future(wire.send(get(f"hs2.test:{hs2.port}", timeout_ms=60_000)))
        await dripping.wait()
        clock.advance_ms(59_999)
        assert not (await asyncio.wait([sending], timeout=0.01))[0]
        clock.advance_ms(1)
        answered = await sending
        leave.set()
    assert isinstance(answered, RemoteError)
    assert answered.kind == "timed_out"


async def test_f16_a_server_that_never_speaks_is_not_waited_for(
    ca_file: str, clock: ManualClock
) -> None:
    connected, leave = asyncio.Event(), asyncio.Event()

    async def accept(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await leave.wait()
        writer.close()

    mute = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with mute, transport(ca_file, clock=clock) as wire:
        port = mute.sockets[0].getsockname()[1]
        sending = asyncio.ensure_future(wire.send(get(f"hs2.test:{port}")))
        await connected.wait()
        clock.advance_ms(30_000)
        answered = await sending
        leave.set()
    assert isinstance(answered, RemoteError)
    assert answered.kind == "timed_out"
