"""Deactivating an account: first the user is locked out, then they leave.

One transaction locks them out for good, cancels what they had scheduled, and drops what serves
nobody any more. It also notes when to look after the rest: the leaves, each of which says why
(MSC3759). That is begun at once, beside the request. If the process dies, or a room cannot be left,
`resume_deactivations` goes on, in whatever process; and it looks again, soon and then less and less
often, as a request may have been under way when its user was locked out.

Spec: client-server-api#account-deactivation
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from minihs.base.clock import time_limit
from minihs.base.errors import InvalidParam, NotFound
from minihs.protocol.identifiers import parse_user_id
from minihs.protocol.membership import INSIDE
from minihs.services.accounts.user_interactive_auth import PASSWORD, Operation, authorize
from minihs.services.rooms import membership
from minihs.storage import (
    account_data,
    accounts,
    delayed_events,
    devices,
    filters,
    profiles,
    sticky_events,
)
from minihs.storage import membership as memberships
from minihs.storage.accounts import Parting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minihs.protocol.identifiers import UserId
    from minihs.services.accounts.authentication import Requester
    from minihs.services.context import Services

logger = logging.getLogger(__name__)

ANSWER_MS = 2_000
CLAIM_MS = 10_000  # Whoever is at it says so more often.
LOOK_MIN_MS = 2_000
SETTLED_MS = 60_000  # No request that was under way takes longer.
RETRY_MIN_MS = 60_000
RETRY_MAX_MS = 86_400_000
TRIED_FOR_MS = 30 * 86_400_000


async def deactivate_own_account(
    services: Services,
    requester: Requester,
    body: Mapping[str, object],
    auth: object,
    *,
    erase: bool,
) -> None:
    """Deactivate the requester's account once they have proved who they are.

    Users whom an application service owns alone have nothing to prove it with: it decides.
    Spec: client-server-api#post_matrixclientv3accountdeactivate

    Raises:
        UserInteractiveAuthRequired, Forbidden: see `authorize`.
    """
    operation = Operation("deactivate account", [(PASSWORD,)], requester.user_id, body)
    is_owned = services.appservices.owns_user(requester.user_id)
    if requester.appservice_id is None or not is_owned:
        await authorize(services, operation, auth)
    await deactivate(services, requester.user_id, erase=erase)


async def deactivate_by_admin(services: Services, user: str, *, erase: bool) -> None:
    """Deactivate anybody's account; doing so twice is the same as once.

    Raises:
        InvalidParam: this is no user ID of this server.
        NotFound: there is no such account.
    """
    user_id = parse_user_id(user)
    if user_id is None or not services.is_local(user_id):
        raise InvalidParam("This is not a user of this server.")
    if await accounts.fetch_account(services.db, user_id) is None:
        raise NotFound("There is no such account.")
    await deactivate(services, user_id, erase=erase)


async def deactivate(services: Services, user_id: UserId, *, erase: bool) -> None:
    """Lock a user out, and let them leave; what cannot be done now is done later."""
    now_ms = services.clock.now_ms()
    async with services.db.transaction() as tx:
        await accounts.mark_deactivated(
            tx, user_id, now_ms, erase=erase, parting_due_ms=now_ms + CLAIM_MS
        )
        await devices.delete_devices_except(tx, user_id, None)
        await delayed_events.cancel_all(tx, user_id, now_ms)
        await account_data.delete_all_account_data(tx, user_id)
        await filters.delete_all_filters(tx, user_id)
        if erase:
            await profiles.delete_profile(tx, user_id)
            await sticky_events.delete_of_sender(tx, user_id)
    # Whoever is in thousands of rooms is not kept waiting until they have left the last of them.
    parting = Parting(user_id, erase, now_ms, now_ms + CLAIM_MS)
    task = services.tasks.spawn(f"deactivation of {user_id}", _part(services, parting))
    with contextlib.suppress(TimeoutError):
        async with time_limit(services.clock, ANSWER_MS):
            await asyncio.shield(task)


async def resume_deactivations(services: Services) -> None:
    """Go on with deactivations that were interrupted, or are to be looked at again."""
    while True:
        now_ms = services.clock.now_ms()
        parting = await accounts.claim_parting(
            services.db, now_ms, now_ms + CLAIM_MS, now_ms + 2 * RETRY_MAX_MS
        )
        if parting is None:
            return
        await _part(services, parting)


async def _part(services: Services, parting: Parting) -> None:
    """Let a deactivated user leave, and note when to look again.

    Each leave says why (MSC3759#proposal).
    """

    async def go_on() -> None:
        due_ms = services.clock.now_ms() + CLAIM_MS
        await accounts.mark_parting_due(services.db, parting.user_id, due_ms)

    due_ms: int | None = None
    try:
        await membership.leave_for_good(
            services, parting.user_id, erased=parting.erased, go_on=go_on
        )
    except Exception as error:  # Whatever it was: the user is locked out, and must leave in time.
        due_ms = _next_try(services, parting, error)
    else:
        now_ms = services.clock.now_ms()
        passed_ms = abs(now_ms - parting.deactivated_ms)  # The clock may have been put back.
        if passed_ms < SETTLED_MS:
            settled_ms = min(parting.deactivated_ms, now_ms) + SETTLED_MS
            due_ms = min(now_ms + max(passed_ms, LOOK_MIN_MS), settled_ms)
    await accounts.mark_parting_due(services.db, parting.user_id, due_ms)


def _next_try(services: Services, parting: Parting, error: Exception) -> int | None:
    """Return when to try again; None: it has failed for so long that it will not succeed."""
    now_ms = services.clock.now_ms()
    passed_ms = now_ms - parting.deactivated_ms
    if passed_ms > TRIED_FOR_MS:
        logger.error("the deactivation of %s is given up: %s", parting.user_id, error)
        return None
    logger.warning("the deactivation of %s goes on later", parting.user_id, exc_info=error)
    return now_ms + min(max(passed_ms, RETRY_MIN_MS), RETRY_MAX_MS)


async def deactivation_progress(services: Services, user: str) -> dict[str, object]:
    """Return how far a deactivation has come: the rooms that are left, and whether it is done.

    Raises:
        NotFound: there is no such account, or it has not been deactivated.
    """
    parting = await accounts.fetch_parting(services.db, user)
    if parting is None:
        raise NotFound("There is no such deactivated account.")
    rooms = await memberships.list_rooms(services.db, user, sorted(INSIDE))
    return {
        "user_id": user,
        "erased": parting.erased,
        "rooms_left": len(rooms),
        "done": not rooms,
        "given_up": bool(rooms) and parting.due_ms is None,
    }
