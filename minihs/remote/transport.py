"""What carries a request to another server: the seam between Matrix and the network.

`Transport` is the only thing that a test replaces to put several servers into one process. What
goes wrong is a value, `RemoteError`: another server being away, slow or wrong is an ordinary
outcome, and whoever asked decides what it means (try the next server, back off, tell the user).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

RemoteErrorKind = Literal["unreachable", "timed_out", "refused", "bad_answer"]


@dataclass(frozen=True, slots=True)
class RemoteError:
    """Why there is no answer of use.

    `unreachable`: no such host, no connection or a broken one, the wrong certificate, or known to
    be down. `timed_out`: no answer in time; as with a broken connection, the request may have been
    carried out.
    `refused`: the answer was an error, described by `status`, `errcode` and `body`. `bad_answer`:
    a success that is not what the endpoint answers, or too large.
    """

    kind: RemoteErrorKind
    destination: str
    message: str
    status: int = 0
    errcode: str = ""
    retry_after_ms: int | None = None
    body: Mapping[str, object] = field(default_factory=dict)

    @property
    def server_is_up(self) -> bool:
        """Whether the server answered, and not with an error of its own (5xx) or an overload."""
        return self.kind == "refused" and self.status < 500 and self.status != 429

    def describe(self) -> str:
        """Return all of it in a line for the log."""
        status = f" {self.status} {self.errcode}".rstrip() if self.status else ""
        return f"{self.destination}: {self.kind}{status}: {self.message}"


@dataclass(frozen=True, slots=True)
class OutgoingRequest:
    """A request as it goes over the wire. `target` is the path with its query, percent-encoded."""

    destination: str
    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes | None
    timeout_ms: int
    answer_bytes_max: int


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """An answer of any status, its body decompressed and at most `answer_bytes_max` long."""

    status: int
    body: bytes
    content_type: str = "application/json"


class Transport(Protocol):
    """Carries requests to servers, which are named as in Matrix."""

    async def send(self, request: OutgoingRequest) -> RawAnswer | RemoteError:
        """Make a request; return what came back. `refused` is for the caller to tell."""
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...
