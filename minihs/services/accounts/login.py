"""Logging in with a password. Spec: client-server-api#login."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.base.errors import Forbidden, UserDeactivated
from minihs.services.accounts import credentials, sessions
from minihs.storage import accounts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minihs.protocol.identifiers import UserId
    from minihs.services.accounts.sessions import ClientDevice, Session
    from minihs.services.context import Services


async def log_in_with_password(
    services: Services, fields: Mapping[str, object], password: str, device: ClientDevice
) -> tuple[UserId, Session]:
    """Return the user whom `fields` identify, and a new session of theirs.

    Raises:
        Forbidden: no such user, or another password; the two look alike and take as long.
        UserDeactivated: the account is no more.
        MissingParam, BadJson, MatrixError: the identifier is not one.
        LimitExceeded: too many passwords are being verified.
    """
    sessions.check_device(device)
    user_id = credentials.claimed_user(services, fields)
    account = await credentials.prove(services, user_id, password)
    if account is None:
        if user_id is not None:
            known = await accounts.fetch_account(services.db, user_id)
            if known is not None and known.deactivated:
                raise UserDeactivated("This account has been deactivated.")
        raise Forbidden("Unknown user, or wrong password.")
    async with services.db.transaction() as tx:
        # A deactivation or another password may have come while the hash was computed.
        await accounts.lock_account(tx, account.user_id)
        now = await accounts.fetch_account(tx, account.user_id)
        if now is None or now.password_hash != account.password_hash:
            raise Forbidden("Unknown user, or wrong password.")
        session = await sessions.begin_session(services, tx, account.user_id, device)
    return account.user_id, session
