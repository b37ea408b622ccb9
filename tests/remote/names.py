"""Names for tests: a DNS that knows what it is told."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from aiohttp.abc import AbstractResolver, ResolveResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minihs.remote.dns import DnsFailure, SrvRecord


class FakeDns:
    """`hosts`: name -> addresses; `records`: name -> SRV records. `asked`: SRV names, in order."""

    def __init__(self, hosts: Mapping[str, Sequence[str]] | None = None) -> None:
        self.addresses: AbstractResolver = _Hosts(hosts or {})
        self.records: dict[str, list[SrvRecord]] = {}
        self.failure: DnsFailure | None = None
        self.asked: list[str] = []

    async def srv(self, name: str) -> Sequence[SrvRecord]:
        self.asked.append(name)
        if self.failure is not None:
            raise self.failure
        return self.records.get(name, [])

    async def close(self) -> None:
        pass


class _Hosts(AbstractResolver):
    def __init__(self, hosts: Mapping[str, Sequence[str]]) -> None:
        self._hosts = hosts

    async def resolve(  # type: ignore[explicit-override]
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        if host not in self._hosts:
            raise OSError(None, "no such host")
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._hosts[host]
        ]

    async def close(self) -> None:  # type: ignore[explicit-override]
        pass
