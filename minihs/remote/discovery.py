"""Where a server is: from the name in its users' identifiers to hosts, ports and certificates.

A name with a port, or an IP address, says it all. Any other name is first asked at
`/.well-known/matrix/server` whether somebody else serves it; then its SRV records may name hosts;
else it is port 8448 of the name itself. Whichever way is taken, the certificate must be that of the
name *before* SRV records, as DNS proves nothing.

What was found is remembered for a while, within bounds that no server can stretch. What failed is
remembered too, longer after each failure in a row. A delegation that was valid is kept while asking
anew fails, so a hiccup of a web server does not move a homeserver.

Spec: server-server-api#resolving-server-names
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from minihs.base.caching import BoundedCache
from minihs.base.sharing import SharedWork
from minihs.remote.dns import DnsFailure, in_order

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from minihs.base.clock import Clock
    from minihs.base.randomness import Randomness
    from minihs.remote.dns import Dns
    from minihs.remote.well_known import WellKnown

_MINUTE_MS: Final = 60_000
_HOUR_MS: Final = 60 * _MINUTE_MS

DEFAULT_PORT: Final = 8448
CACHED_NAMES_MAX: Final = 10_000

# The specification recommends 24 hours, at most 48, and up to an hour for errors.
DELEGATION_MS_DEFAULT: Final = 24 * _HOUR_MS
DELEGATION_MS_MIN: Final = 5 * _MINUTE_MS
DELEGATION_MS_MAX: Final = 48 * _HOUR_MS
FAILURE_MS_MIN: Final = _MINUTE_MS
FAILURE_MS_MAX: Final = _HOUR_MS

# Ours.
SRV_MS_MIN: Final = _MINUTE_MS
SRV_MS_MAX: Final = _HOUR_MS
NO_SRV_MS: Final = 5 * _MINUTE_MS

_NAME = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:]+))(?::([0-9]{1,5}))?")
_DOTTED_QUAD = re.compile(r"[0-9]+(?:\.[0-9]+){3}")


@dataclass(frozen=True, slots=True)
class Route:
    """How to reach a server: `endpoints` are (host or address, port), tried in order.

    `host_header` goes into the request; the certificate must be for `tls_name`.
    """

    endpoints: tuple[tuple[str, int], ...]
    host_header: str
    tls_name: str


@dataclass(frozen=True, slots=True)
class _Delegation:
    """What `/.well-known` of a host says: `to` another name, or (None) to nobody."""

    to: str | None
    ask_again_ms: int
    usable_until_ms: int
    failures: int


class Discovery:
    """Finds servers. `fetch_well_known` asks a host; None is any answer that is of no use."""

    def __init__(
        self,
        fetch_well_known: Callable[[str], Awaitable[WellKnown | None]],
        dns: Dns,
        clock: Clock,
        randomness: Randomness,
    ) -> None:
        self._fetch_well_known = fetch_well_known
        self._dns = dns
        self._clock = clock
        self._randomness = randomness
        self._routes: BoundedCache[str, tuple[Route, int]] = BoundedCache(CACHED_NAMES_MAX)
        self._delegations: BoundedCache[str, _Delegation] = BoundedCache(CACHED_NAMES_MAX)
        self._finding: SharedWork[str, Route | None] = SharedWork("find")

    async def find(self, server_name: str) -> Route | None:
        """Return how to reach the server; None if its name cannot be a host's.

        Spec: server-server-api#resolving-server-names
        """
        if (direct := _direct_route(server_name)) is not None:  # Steps 1 and 2.
            return direct
        if ":" in server_name:  # A port that is none.
            return None
        cached = self._routes.get(server_name)
        if cached is not None and cached[1] > self._clock.monotonic_ms():
            return cached[0]
        return await self._finding.run(server_name, lambda: self._find(server_name))

    def forget_route(self, server_name: str) -> None:
        """Look SRV records up again at the next request: no host of the last answer worked."""
        self._routes.discard(server_name)

    async def close(self) -> None:
        """Stop looking."""
        await self._finding.close()

    async def _find(self, server_name: str) -> Route | None:
        delegation = await self._delegation(server_name)  # Step 3.
        delegated = delegation.to
        until_ms = delegation.ask_again_ms
        if delegated is None:
            route, srv_until_ms = await self._by_srv(server_name)  # Steps 4 to 6.
        elif (direct := _direct_route(delegated)) is not None:  # Steps 3.1 and 3.2.
            route, srv_until_ms = direct, until_ms
        elif ":" in delegated:
            return None
        else:
            route, srv_until_ms = await self._by_srv(delegated)  # Steps 3.3 to 3.5.
        self._routes.put(server_name, (route, min(until_ms, srv_until_ms)))
        return route

    async def _by_srv(self, host: str) -> tuple[Route, int]:
        """Return the route to a host without port, and until when to remember it."""
        now_ms = self._clock.monotonic_ms()
        for service in ("_matrix-fed", "_matrix"):
            try:
                records = await self._dns.srv(f"{service}._tcp.{host}")
            except DnsFailure:
                return Route(((host, DEFAULT_PORT),), host, host), now_ms + SRV_MS_MIN
            if records:
                ttl_ms = 1000 * min(record.ttl_s for record in records)
                ordered = in_order(records, self._randomness)
                # A target that is the root: the service is decidedly not available (RFC 2782).
                endpoints = tuple(
                    (record.target, record.port) for record in ordered if record.target
                )
                lifetime_ms = max(SRV_MS_MIN, min(ttl_ms, SRV_MS_MAX))
                return Route(endpoints, host, host), now_ms + lifetime_ms
        return Route(((host, DEFAULT_PORT),), host, host), now_ms + NO_SRV_MS

    async def _delegation(self, host: str) -> _Delegation:
        known = self._delegations.get(host)
        if known is not None and known.ask_again_ms > self._clock.monotonic_ms():
            return known
        answer = await self._fetch_well_known(host)
        now_ms = self._clock.monotonic_ms()
        if answer is not None:
            asked_ms = DELEGATION_MS_DEFAULT if answer.lifetime_ms is None else answer.lifetime_ms
            until_ms = now_ms + max(DELEGATION_MS_MIN, min(asked_ms, DELEGATION_MS_MAX))
            usable_ms = now_ms + DELEGATION_MS_MAX
            delegation = _Delegation(answer.server, until_ms, usable_ms, 0)
        else:
            failures = 0 if known is None else min(known.failures + 1, 30)
            until_ms = now_ms + min(FAILURE_MS_MIN << failures, FAILURE_MS_MAX)
            if known is not None and known.usable_until_ms > now_ms:
                until_ms = min(until_ms, known.usable_until_ms)
                delegation = _Delegation(known.to, until_ms, known.usable_until_ms, failures)
            else:
                delegation = _Delegation(None, until_ms, 0, failures)
        self._delegations.put(host, delegation)
        return delegation


def _direct_route(name: str) -> Route | None:
    """Return the route to a name that is an IP address or has a port; None for others."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    ipv6, host, port_text = match.groups()
    port = DEFAULT_PORT if port_text is None else int(port_text)
    if not 0 < port < 65536:
        return None
    if ipv6 is not None:
        return Route(((ipv6, port),), name, ipv6)
    if port_text is not None or _DOTTED_QUAD.fullmatch(host):
        return Route(((host, port),), name, host)
    return None
