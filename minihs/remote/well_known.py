"""Asking a host who serves its name: `GET https://<host>/.well-known/matrix/server`.

The host may be anybody's web server, so everything is bounded: size, time, redirects. An answer of
no use is None; it is never an error (the next step of discovery is taken).

Spec: server-server-api#getwell-knownmatrixserver
"""

from __future__ import annotations

from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

import aiohttp
from yarl import URL

from minihs.base.clock import time_limit
from minihs.protocol.canonical_json import decode
from minihs.protocol.identifiers import parse_server_name
from minihs.remote.bodies import read_bounded

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minihs.base.clock import Clock

PATH: Final = "/.well-known/matrix/server"
BYTES_MAX: Final = 50 * 1024
TIMEOUT_MS: Final = 10_000
REDIRECTS_MAX: Final = 5
_REDIRECTS: Final = (301, 302, 303, 307, 308)


@dataclass(frozen=True, slots=True)
class WellKnown:
    """A valid answer: the delegated server name, and how long its headers let it be kept."""

    server: str
    lifetime_ms: int | None


async def fetch_well_known(
    session: aiohttp.ClientSession, url: str, clock: Clock
) -> WellKnown | None:
    """Return who serves a name, by its `url`; None if there is no valid answer.

    Spec: server-server-api#resolving-server-names
    """
    try:
        async with time_limit(clock, TIMEOUT_MS):
            return await _follow(session, URL(url), clock)
    except (TimeoutError, aiohttp.ClientError, OSError, ValueError):
        return None


async def _follow(session: aiohttp.ClientSession, url: URL, clock: Clock) -> WellKnown | None:
    for _ in range(1 + REDIRECTS_MAX):
        async with session.get(url, allow_redirects=False) as answer:
            if answer.status in _REDIRECTS:
                url = url.join(URL(answer.headers.get("Location", "")))
                if url.scheme != "https":
                    return None
                continue
            body = await read_bounded(answer, BYTES_MAX)
            if answer.status != 200 or body is None:
                return None
            return _read(decode(body), _lifetime_ms(answer.headers, clock.now_ms()))
    return None


def _read(body: object, lifetime_ms: int | None) -> WellKnown | None:
    server = parse_server_name(body.get("m.server")) if isinstance(body, dict) else None
    return None if server is None else WellKnown(server, lifetime_ms)


def _lifetime_ms(headers: Mapping[str, str], now_ms: int) -> int | None:
    """Return how long an answer may be kept; None if its headers do not say."""
    for directive in headers.get("Cache-Control", "").lower().split(","):
        name, _, value = directive.strip().partition("=")
        if name in ("no-store", "no-cache"):
            return 0
        if name == "max-age" and value.strip('"').isdecimal():
            return 1000 * int(value.strip('"')[:10])
    expires = headers.get("Expires")
    if expires is None:
        return None
    try:
        return int(parsedate_to_datetime(expires).timestamp() * 1000) - now_ms
    except (ValueError, OverflowError):  # "0", for instance: it has expired.
        return 0
