"""The real transport: HTTPS to wherever discovery says.

Certificates are verified against the system's authorities and those of `federation_ca_file`, for
the name that discovery gives. Every connection passes the guard of `addresses`. Redirects are not
followed: a server is what its name leads to. A request has one time limit for everything, from the
first look-up to the last byte, so dripping gains nothing.
"""

from __future__ import annotations

import logging
import ssl
from typing import TYPE_CHECKING, Final

import aiohttp
from yarl import URL

from minihs.base.clock import time_limit
from minihs.base.config import ConfigError
from minihs.remote.addresses import socket_factory
from minihs.remote.authorities import trust_own_authorities
from minihs.remote.bodies import read_bounded
from minihs.remote.discovery import Discovery
from minihs.remote.dns import SystemDns
from minihs.remote.transport import RawAnswer, RemoteError
from minihs.remote.well_known import PATH as WELL_KNOWN_PATH
from minihs.remote.well_known import WellKnown, fetch_well_known

if TYPE_CHECKING:
    from minihs.base.clock import Clock
    from minihs.base.config import Config
    from minihs.base.randomness import Randomness
    from minihs.remote.discovery import Route
    from minihs.remote.dns import Dns
    from minihs.remote.transport import OutgoingRequest

logger = logging.getLogger(__name__)

USER_AGENT: Final = "minihs"
CONNECT_TIMEOUT_S: Final = 10
CONNECTIONS_TO_A_HOST_MAX: Final = 16
IDLE_S: Final = 60

# The request never left, so another host of the same server may be tried.
_NOT_CONNECTED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)


def _tls_context(config: Config) -> ssl.SSLContext:
    """Return what federation trusts. Reading the system's authorities takes a while."""
    context = ssl.create_default_context()
    trust_own_authorities(context, config)
    if not config.federation_verify_tls:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class HttpTransport:
    """Carries requests over the internet. Connections are opened when first needed."""

    def __init__(
        self, config: Config, clock: Clock, randomness: Randomness, dns: Dns | None = None
    ) -> None:
        if not config.federation_verify_tls:
            logger.warning(
                "CERTIFICATES OF OTHER SERVERS ARE NOT VERIFIED (federation_verify_tls is off): "
                "anybody on the way can pretend to be any server. For test networks only."
            )
        self._clock = clock
        self._randomness = randomness
        self._config = config
        self._make_socket = socket_factory(allow_private=config.federation_allow_private_addresses)
        self._dns = dns
        self._session: aiohttp.ClientSession | None = None
        self._discovery: Discovery | None = None

    async def send(self, request: OutgoingRequest) -> RawAnswer | RemoteError:
        """Make a request; return what came back, of whatever status."""
        try:
            async with time_limit(self._clock, request.timeout_ms):
                return await self._send(request)
        except TimeoutError:
            return RemoteError("timed_out", request.destination, "no answer in time")
        except (aiohttp.ClientError, OSError, ValueError, ConfigError) as error:
            return RemoteError("unreachable", request.destination, str(error) or repr(error))

    async def close(self) -> None:
        """Close every connection."""
        if self._discovery is not None:
            await self._discovery.close()
        if self._session is not None:
            await self._session.close()
        if self._dns is not None:
            await self._dns.close()

    async def _send(self, request: OutgoingRequest) -> RawAnswer | RemoteError:
        session, discovery = self._open()
        route = await discovery.find(request.destination)
        problem = "its name leads nowhere"
        if route is None:
            return RemoteError("unreachable", request.destination, problem)
        for host, port in route.endpoints:
            try:
                return await self._exchange(session, request, route, host, port)
            except _NOT_CONNECTED as error:
                problem = str(error)
        discovery.forget_route(request.destination)
        return RemoteError("unreachable", request.destination, problem)

    async def _exchange(
        self,
        session: aiohttp.ClientSession,
        request: OutgoingRequest,
        route: Route,
        host: str,
        port: int,
    ) -> RawAnswer | RemoteError:
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        async with session.request(
            request.method,
            URL(f"https://{authority}{request.target}", encoded=True),
            headers={**request.headers, "Host": route.host_header},
            data=request.body,
            server_hostname=route.tls_name,
            allow_redirects=False,
        ) as answer:
            body = await read_bounded(answer, request.answer_bytes_max)
            if body is None:
                return RemoteError(
                    "bad_answer", request.destination, "the answer is too large", answer.status
                )
            return RawAnswer(answer.status, body, answer.content_type)

    def _open(self) -> tuple[aiohttp.ClientSession, Discovery]:
        if self._session is None or self._discovery is None:
            self._dns = self._dns or SystemDns()
            connector = aiohttp.TCPConnector(
                ssl=_tls_context(self._config),
                resolver=self._dns.addresses,
                socket_factory=self._make_socket,
                limit=0,  # One slow server must not keep us from the others.
                limit_per_host=CONNECTIONS_TO_A_HOST_MAX,
                keepalive_timeout=IDLE_S,
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": USER_AGENT},
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            )
            self._discovery = Discovery(
                self._ask_well_known, self._dns, self._clock, self._randomness
            )
        return self._session, self._discovery

    async def _ask_well_known(self, host: str) -> WellKnown | None:
        session, _ = self._open()
        return await fetch_well_known(session, f"https://{host}{WELL_KNOWN_PATH}", self._clock)
