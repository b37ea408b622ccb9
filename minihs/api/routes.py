"""THE route table: every endpoint, its handler, and the specification's name for it.

A handler carries the specification's operationId in snake_case; `docs/spec/coverage.md` is made by
comparing this table with the specification's list. Order is the specification's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from minihs.api.client import versions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from minihs.api.requests import Request

    Handler = Callable[[Request], Awaitable[object]]

# Who may call: anybody; anybody, told apart if there is a token; a user (or guest); a user, no guest.
Access = Literal["anybody", "anyone_or_user", "user_or_guest", "user"]

# Rate limit classes; see `minihs.api.rate_limits`.
LimitClass = Literal["none", "read", "write", "join", "create", "login", "register", "costly"]


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint."""

    method: str
    path: str
    handler: Handler
    operation: str | None
    access: Access = "user"
    limit: LimitClass = "none"


ROUTES: list[Route] = [
    Route("GET", "/_matrix/client/versions", versions.get_versions, "getVersions", "anyone_or_user"),
]
