"""For whoever operates the server: does it live, is it ready?

Load balancers and supervisors ask these; they are no part of Matrix.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from minihs.api.requests import Answer
from minihs.base.errors import Unavailable

if TYPE_CHECKING:
    from minihs.api.requests import Request
    from minihs.services.context import Services

READY_S_MAX = 2


async def get_health(request: Request) -> object:
    """GET /health.

    200 as long as the process works, whatever its database does; 503 while something in it has
    failed and has not begun again. Whoever restarts processes should ask this, and restart one that
    says so several times in a row.
    """
    down = request.services.tasks.down
    if down:
        return Answer({"status": "failing", "tasks": down}, 503)
    return {"status": "ok"}


async def get_ready(request: Request) -> object:
    """GET /ready.

    200 when requests can be served, 503 with the reasons otherwise: whoever sends requests here
    should ask this. It comes back by itself when the database does.
    """
    reasons = await reasons_against(request.services)
    if reasons:
        return Answer({"status": "not ready", "reasons": reasons}, 503)
    return {"status": "ready"}


async def reasons_against(services: Services) -> list[str]:
    """Return why this process should get no requests at the moment."""
    reasons = [f"the task {name!r} has failed and begins again" for name in services.tasks.down]
    try:
        async with asyncio.timeout(READY_S_MAX):
            position, is_read_only = await services.follower.probe()
    except (Unavailable, TimeoutError):
        return [*reasons, "the database does not answer"]
    if is_read_only:
        reasons.append("the database can only be read")
    elif services.committer.refuses:
        reasons.append("the database takes no commits")
    try:
        async with asyncio.timeout(READY_S_MAX):
            await services.follower.wait_for(position)
    except (Unavailable, TimeoutError):
        reasons.append("what others have committed is not seen")
    return reasons
