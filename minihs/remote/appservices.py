"""What we ask of application services, over plain HTTP or HTTPS, wherever their URLs lead.

They are named by the administrator, so the guard against internal addresses is not for them: that
is where they live. What they answer is bounded in time and size, and redirects are not followed.

Spec: application-service-api#homeserver--gt-application-service-api
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlencode

import aiohttp
from yarl import URL

from minihs.base.clock import time_limit
from minihs.base.limits import (
    APPSERVICE_ANSWER_BYTES_MAX,
    APPSERVICE_QUERY_AGAIN_TIMEOUTS_MS,
    APPSERVICE_QUERY_TIMEOUT_MS,
)
from minihs.protocol.canonical_json import decode
from minihs.remote.bodies import read_bounded
from minihs.remote.http import (
    CONNECT_TIMEOUT_S,
    CONNECTIONS_TO_A_HOST_MAX,
    IDLE_S,
    USER_AGENT,
)
from minihs.remote.transport import RawAnswer, RemoteError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from minihs.base.clock import Clock

V1: Final = "/_matrix/app/v1"
PAUSE_BEFORE_AGAIN_MS: Final = 1_000
_SUCCESS: Final = range(200, 300)
_NO_SUCH_ENDPOINT: Final = (404, 405)
NO_ANSWER: Final = ("unreachable", "timed_out")


class Service(Protocol):
    """An application service as it is reached."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def url(self) -> str | None: ...  # noqa: D102
    @property
    def hs_token(self) -> str: ...  # noqa: D102


class AppserviceRemote:
    """The application services, as we reach them. Connections are opened when first needed."""

    def __init__(self, clock: Clock, *, is_transaction_open: Callable[[], bool]) -> None:
        self._clock = clock
        self._is_transaction_open = is_transaction_open
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()

    async def request(
        self,
        service: Service,
        method: str,
        path: str,
        *,
        legacy: str | None = None,
        query: Sequence[tuple[str, str]] = (),
        content: bytes | None = None,
        timeout_ms: int = APPSERVICE_QUERY_TIMEOUT_MS,
    ) -> RawAnswer | RemoteError:
        """Make a request; return the answer of a success.

        `path` is percent-encoded. `legacy` is where the endpoint was before the specification had
        versions: services that do not know the one are asked there.

        Raises:
            RuntimeError: a database transaction is open.

        Spec: application-service-api#authorisation, application-service-api#legacy-routes
        """
        if self._is_transaction_open():
            raise RuntimeError(f"a request to {service.id!r} while a transaction is open")
        if service.url is None:
            return RemoteError("unreachable", service.id, "it has no URL")
        answer = await self._send(service, method, path, query, content, timeout_ms)
        if legacy is not None and isinstance(answer, RawAnswer) and _is_unknown_endpoint(answer):
            given = [*query, ("access_token", service.hs_token)]
            answer = await self._send(service, method, legacy, given, content, timeout_ms)
        if isinstance(answer, RemoteError) or answer.status in _SUCCESS:
            return answer
        body = json_of(answer)
        errcode = str(body.get("errcode", "")) if isinstance(body, dict) else ""
        text = answer.body[:1_000].decode(errors="replace")
        return RemoteError("refused", service.id, text, answer.status, errcode)

    async def ask(self, service: Service, path: str) -> RawAnswer | RemoteError:
        """Ask about a name for somebody who waits, and again if no answer comes; return the last.

        The first time is the longest, as the service may be making what is asked for.

        Spec: application-service-api#querying
        """
        answer = await self.request(service, "GET", V1 + path, legacy=path)
        for timeout_ms in APPSERVICE_QUERY_AGAIN_TIMEOUTS_MS:
            if isinstance(answer, RawAnswer) or answer.kind not in NO_ANSWER:
                break
            await self._clock.sleep_ms(PAUSE_BEFORE_AGAIN_MS)
            answer = await self.request(
                service, "GET", V1 + path, legacy=path, timeout_ms=timeout_ms
            )
        return answer

    async def _send(
        self,
        service: Service,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]],
        content: bytes | None,
        timeout_ms: int,
    ) -> RawAnswer | RemoteError:
        headers = {"Authorization": f"Bearer {service.hs_token}"}
        if content is not None:
            headers["Content-Type"] = "application/json"
        url = f"{service.url}{path}" + (f"?{urlencode(query)}" if query else "")
        try:
            async with (
                time_limit(self._clock, timeout_ms),
                self._open().request(
                    method,
                    URL(url, encoded=True),
                    headers=headers,
                    data=content,
                    allow_redirects=False,
                ) as answer,
            ):
                body = await read_bounded(answer, APPSERVICE_ANSWER_BYTES_MAX)
                if body is None:
                    return RemoteError("bad_answer", service.id, "the answer is too large")
                return RawAnswer(answer.status, body, answer.content_type)
        except TimeoutError:
            return RemoteError("timed_out", service.id, "no answer in time")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return RemoteError("unreachable", service.id, str(error) or repr(error))

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0,  # One slow service must not keep us from the others.
                    limit_per_host=CONNECTIONS_TO_A_HOST_MAX,
                    keepalive_timeout=IDLE_S,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": USER_AGENT},
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            )
        return self._session


def json_of(answer: RawAnswer) -> object:
    """Return the JSON of an answer; None if it is none."""
    try:
        return decode(answer.body)
    except ValueError:
        return None


def _is_unknown_endpoint(answer: RawAnswer) -> bool:
    """Return whether it is the endpoint that a service does not know, and not what it names.

    Spec: application-service-api#unknown-routes
    """
    if answer.status not in _NO_SUCH_ENDPOINT:
        return False
    body = json_of(answer)
    errcode = body.get("errcode") if isinstance(body, dict) else None
    return errcode is None or errcode == "M_UNRECOGNIZED"
