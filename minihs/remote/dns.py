"""The domain name system, as far as federation needs it: addresses and SRV records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import aiodns
from aiodns.error import DNSError
from aiohttp.resolver import AsyncResolver
from pycares import SRVRecordData

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohttp.abc import AbstractResolver

    from minihs.base.randomness import Randomness

_NO_RECORDS: Final = (1, 4)  # c-ares: the name has no such records; there is no such name.
_TIMEOUT_S: Final = 3
_TRIES: Final = 2


class DnsFailure(Exception):
    """The domain name system gave no answer."""


@dataclass(frozen=True, slots=True)
class SrvRecord:
    """One server of a service. `ttl_s`: how long the record may be remembered."""

    target: str
    port: int
    priority: int
    weight: int
    ttl_s: int


class Dns(Protocol):
    """Looks up names."""

    @property
    def addresses(self) -> AbstractResolver:
        """What aiohttp resolves host names with."""
        ...

    async def srv(self, name: str) -> Sequence[SrvRecord]:
        """Return the SRV records of a name, in any order; none if there are none.

        Raises:
            DnsFailure: nobody knows.
        """
        ...

    async def close(self) -> None:
        """Stop."""
        ...


class SystemDns:
    """The name servers that the machine is configured with, or those given as `address:port`.

    For addresses the machine's hosts file comes first.
    """

    def __init__(self, name_servers: Sequence[str] | None = None) -> None:
        self._resolver = aiodns.DNSResolver(name_servers, timeout=_TIMEOUT_S, tries=_TRIES)
        self.addresses: AbstractResolver = AsyncResolver(
            nameservers=name_servers, timeout=_TIMEOUT_S, tries=_TRIES
        )

    async def srv(self, name: str) -> Sequence[SrvRecord]:
        """Return the SRV records of a name.

        Raises:
            DnsFailure: nobody knows.
        """
        try:
            found = await self._resolver.query_dns(name, "SRV")
        except DNSError as error:
            if error.args and error.args[0] in _NO_RECORDS:
                return []
            raise DnsFailure(str(error)) from error
        except (UnicodeError, ValueError) as error:
            raise DnsFailure(str(error)) from error
        return [
            SrvRecord(data.target.rstrip("."), data.port, data.priority, data.weight, record.ttl)
            for record in found.answer
            if isinstance(data := record.data, SRVRecordData)
        ]

    async def close(self) -> None:
        """Stop."""
        await self.addresses.close()
        await self._resolver.close()


def in_order(records: Sequence[SrvRecord], randomness: Randomness) -> list[SrvRecord]:
    """Return SRV records in the order in which to try them: by priority, then drawn by weight.

    As RFC 2782 has it.
    """
    ordered: list[SrvRecord] = []
    for priority in sorted({record.priority for record in records}):
        urn = [record for record in records if record.priority == priority]
        urn.sort(key=lambda record: record.weight > 0)
        while urn:
            draw = randomness.between(0, sum(record.weight for record in urn))
            for index, record in enumerate(urn):
                draw -= record.weight
                if draw <= 0:
                    ordered.append(urn.pop(index))
                    break
    return ordered
