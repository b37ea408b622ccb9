"""Changing one's password. Spec: client-server-api#password-management."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.base.errors import MissingParam
from minihs.services.accounts import passwords
from minihs.services.accounts.user_interactive_auth import PASSWORD, Operation, authorize
from minihs.storage import accounts, devices

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minihs.services.accounts.authentication import Requester
    from minihs.services.context import Services


async def change_password(
    services: Services,
    requester: Requester,
    body: Mapping[str, object],
    auth: object,
    new_password: str | None,
    *,
    log_out_others: bool,
) -> None:
    """Give the requester another password, and end their other sessions if they wish.

    Spec: client-server-api#post_matrixclientv3accountpassword

    Raises:
        UserInteractiveAuthRequired, Forbidden: see `authorize`.
        MissingParam, WeakPassword, InvalidParam: there is no new password, or no acceptable one.
    """
    if new_password is not None:
        passwords.check_acceptable(new_password)
    elif auth is not None:  # Said before the session is used up.
        raise MissingParam("new_password is missing.")
    await authorize(
        services, Operation("change password", [(PASSWORD,)], requester.user_id, body), auth
    )
    if new_password is None:
        raise MissingParam("new_password is missing.")
    password_hash = await passwords.hash_password(services.config, new_password)
    async with services.db.transaction() as tx:
        await accounts.mark_password_hash(tx, requester.user_id, password_hash)
        if log_out_others:
            await devices.delete_devices_except(tx, requester.user_id, requester.device_nid)
