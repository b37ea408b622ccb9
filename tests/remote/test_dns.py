"""The real resolver, against a name server of our own."""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING

import pytest

from minihs.remote.dns import DnsFailure, SrvRecord, SystemDns

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

NO_ERROR, SERVER_FAILURE, NO_SUCH_NAME = 0, 2, 3
A, SRV = 1, 33


def encoded(name: str) -> bytes:
    labels = [bytes([len(label)]) + label.encode() for label in name.split(".") if label]
    return b"".join(labels) + b"\0"


class NameServer(asyncio.DatagramProtocol):
    """Answers what it is told: (name, type) -> records' data, or an error code."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, int], list[bytes] | int] = {}
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(  # type: ignore[explicit-override]
        self,
        transport: asyncio.DatagramTransport,  # type: ignore[override]
    ) -> None:
        self._transport = transport

    def datagram_received(  # type: ignore[explicit-override]
        self, data: bytes, addr: tuple[str, int]
    ) -> None:
        assert self._transport is not None
        labels, position = [], 12
        while length := data[position]:
            labels.append(data[position + 1 : position + 1 + length].decode())
            position += 1 + length
        kind = struct.unpack_from(">H", data, position + 1)[0]
        question = data[12 : position + 5]
        answer = self.answers.get((".".join(labels).lower(), kind), NO_SUCH_NAME)
        records = [] if isinstance(answer, int) else answer
        code = answer if isinstance(answer, int) else NO_ERROR
        header = data[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, len(records), 0, 0)
        body = b"".join(
            b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, 300, len(record)) + record
            for record in records
        )
        self._transport.sendto(header + question + body, addr)


@pytest.fixture
async def name_server() -> AsyncIterator[tuple[NameServer, SystemDns]]:
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(NameServer, local_addr=("127.0.0.1", 0))
    dns = SystemDns([f"127.0.0.1:{transport.get_extra_info('sockname')[1]}"])
    yield server, dns
    await dns.close()
    transport.close()


async def test_srv_records(name_server: tuple[NameServer, SystemDns]) -> None:
    server, dns = name_server
    name = "_matrix-fed._tcp.hs.example"
    server.answers[name, SRV] = [
        struct.pack(">HHH", 10, 5, 8448) + encoded("a.example"),
        struct.pack(">HHH", 20, 0, 443) + encoded("."),
    ]
    assert sorted(await dns.srv(name), key=lambda record: record.priority) == [
        SrvRecord("a.example", 8448, 10, 5, 300),
        SrvRecord("", 443, 20, 0, 300),
    ]


@pytest.mark.parametrize("answer", [NO_SUCH_NAME, []])
async def test_no_records(
    name_server: tuple[NameServer, SystemDns], answer: list[bytes] | int
) -> None:
    server, dns = name_server
    server.answers["_matrix._tcp.hs.example", SRV] = answer
    assert list(await dns.srv("_matrix._tcp.hs.example")) == []


async def test_no_answer(name_server: tuple[NameServer, SystemDns]) -> None:
    server, dns = name_server
    server.answers["_matrix._tcp.hs.example", SRV] = SERVER_FAILURE
    for name in ("_matrix._tcp.hs.example", "a" * 64 + ".example", "a..b"):
        with pytest.raises(DnsFailure):
            await dns.srv(name)


async def test_addresses(name_server: tuple[NameServer, SystemDns]) -> None:
    server, dns = name_server
    server.answers["hs.example", A] = [bytes([192, 0, 2, 7])]
    found = await dns.addresses.resolve("hs.example", 8448)
    assert [(address["host"], address["port"]) for address in found] == [("192.0.2.7", 8448)]
    with pytest.raises(OSError, match="not found"):
        await dns.addresses.resolve("nobody.example", 8448)
