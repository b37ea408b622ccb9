"""Deactivating an account: a list of steps, each of which may be taken again.

First the user is locked out, durably. What is not done then (the server stopped, a room's servers
could not be reached) is found and done by `resume_deactivations`, which is called now and then.

Spec: client-server-api#account-deactivation
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from minihs.base.clock import time_limit
from minihs.base.errors import InvalidParam, NotFound, Unavailable
from minihs.protocol.identifiers import parse_user_id
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

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from minihs.protocol.identifiers import UserId
    from minihs.services.accounts.authentication import Requester
    from minihs.services.context import Services

    Step = Callable[[Services, UserId, bool], Awaitable[None]]

logger = logging.getLogger(__name__)

ANSWER_MS = 5_000


async def deactivate_own_account(
    services: Services,
    requester: Requester,
    body: Mapping[str, object],
    auth: object,
    *,
    erase: bool,
) -> None:
    """Deactivate the requester's account once they have proved who they are.

    Spec: client-server-api#post_matrixclientv3accountdeactivate

    Raises:
        UserInteractiveAuthRequired, Forbidden: see `authorize`.
    """
    operation = Operation("deactivate account", [(PASSWORD,)], requester.user_id, body)
    if requester.appservice_id is None:
        await authorize(services, operation, auth)
    await deactivate(services, requester.user_id, erase=erase)

    The users of an application service, which acts for them, have nothing to prove it with.

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
    """Lock a user out, then take every further step; what cannot be done now is done later.

    Raises:
        Unavailable: the user could not even be locked out.
    """
    async with services.db.transaction() as tx:
        await accounts.mark_deactivated(tx, user_id, services.clock.now_ms(), erase=erase)
        await devices.delete_devices_except(tx, user_id, None)
        await delayed_events.cancel_all(tx, user_id, services.clock.now_ms())
    # Whoever is in thousands of rooms is not kept waiting until they have left the last of them.
    task = services.tasks.spawn(f"deactivation of {user_id}", _finish(services, user_id, erase))
    with contextlib.suppress(TimeoutError):
        async with time_limit(services.clock, ANSWER_MS):
            await asyncio.shield(task)


async def resume_deactivations(services: Services) -> None:
    """Finish deactivations that were interrupted."""
    for user_id, erase in await accounts.list_unfinished_deactivations(services.db):
        await _finish(services, user_id, erase)


async def _finish(services: Services, user_id: UserId, erase: bool) -> None:  # noqa: FBT001
    try:
        for step in STEPS:
            await step(services, user_id, erase)
    except Unavailable as error:
        logger.warning("the deactivation of %s goes on later: %s", user_id, error)


async def _forget_personal_data(
    services: Services,
    user_id: UserId,
    erase: bool,  # noqa: FBT001
) -> None:
    """Account data and filters serve nobody any more.

    The profile goes if erasure was asked for, and what is delivered for as long as it is sticky.
    """
    async with services.db.transaction() as tx:
        await account_data.delete_all_account_data(tx, user_id)
        await filters.delete_all_filters(tx, user_id)
        if erase:
            await profiles.delete_profile(tx, user_id)
            await sticky_events.delete_of_sender(tx, user_id)


async def _leave_rooms(services: Services, user_id: UserId, erase: bool) -> None:  # noqa: FBT001
    """Each leave says why (MSC3759#proposal). Last, as it is by rooms that a resumer finds work."""
    await membership.leave_for_good(services, user_id, erased=erase)


STEPS: tuple[Step, ...] = (_forget_personal_data, _leave_rooms)
