"""Access token -> requester. Spec: client-server-api#client-authentication.

Tokens are looked up in the database with every request, as a logout must hold at once in every
process; requests that arrive together share one statement (`base.batching`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from minihs.base.errors import MissingParam, MissingToken, UnknownToken
from minihs.storage import devices, sessions

if TYPE_CHECKING:
    from minihs.protocol.identifiers import UserId
    from minihs.services.context import Services

ACCESS_TOKEN_LIFETIME_MS = 3_600_000  # Of those that can be refreshed.
LAST_SEEN_INTERVAL_MS = 300_000
LAST_SEEN_TASK = "note that a device was seen"


@dataclass(frozen=True, slots=True)
class Requester:
    """Who makes a request. `position` is the stream's when the token was read.

    `appservice_id` is that of the application service which acts as the user, None: users
    themselves. It may name no device: `device_id` is empty then, and `device_nid` no device's.
    `token_hash` is empty for application services, whom nobody logs out.
    """

    user_id: UserId
    device_id: str
    device_nid: int
    admin: bool
    guest: bool
    appservice_id: str | None
    position: int
    rate_limited: bool = True
    token_hash: str = field(default="", repr=False)

    def require_device(self) -> None:
        """Refuse what is done by a device where there is none.

        Raises:
            MissingParam: an application service named no device of the user.

        Spec: application-service-api#identity-assertion
        """
        if not self.device_id:
            raise MissingParam("The application service must name a device of the user.")


def hash_token(token: str) -> str:
    """Return the form in which tokens are stored."""
    # Headers may hold any bytes; those that are not UTF-8 come as lone surrogates.
    return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()


async def authenticate(services: Services, token: str | None, ip: str) -> Requester:
    """Return who an access token belongs to, and note that their device is in use.

    Raises:
        MissingToken: no token was given.
        UnknownToken: it is not known; `soft_logout` is true when it has merely expired.
    """
    if token is None:
        raise MissingToken("Missing access token.")
    now_ms = services.clock.now_ms()
    token_hash = hash_token(token)
    owner = await services.token_owners.load(token_hash) if token else None
    if owner is None or owner.deactivated:
        raise UnknownToken("Unrecognised access token.", soft_logout=False)
    if has_expired(owner.expires_ms, now_ms):
        raise UnknownToken("The access token has expired.", soft_logout=True)
    if owner.retires is not None:
        async with services.db.transaction() as tx:
            await sessions.mark_access_token_used(tx, token_hash, owner.device_nid, owner.retires)
    if owner.last_seen_ms is None or abs(now_ms - owner.last_seen_ms) >= LAST_SEEN_INTERVAL_MS:
        seen = devices.mark_device_seen(services.db, owner.device_nid, now_ms, ip)
        services.tasks.spawn(LAST_SEEN_TASK, seen)
    return Requester(
        owner.user_id,  # type: ignore[arg-type]  # stored user IDs are valid
        owner.device_id,
        owner.device_nid,
        owner.admin,
        owner.guest,
        None,
        owner.position,
        token_hash=token_hash,
    )


def has_expired(expires_ms: int | None, now_ms: int) -> bool:
    """Return whether an access token holds no more.

    One that would hold much longer than any is given was issued when the clock was wrong.
    """
    return expires_ms is not None and not (
        now_ms < expires_ms <= now_ms + 2 * ACCESS_TOKEN_LIFETIME_MS
    )


async def require_session(services: Services, requester: Requester) -> None:
    """Refuse who has been logged out since they were authenticated.

    Raises:
        UnknownToken: their session has ended.
    """
    if requester.token_hash and await services.token_owners.load(requester.token_hash) is None:
        raise UnknownToken("You have been logged out.", soft_logout=False)


async def require_device_in_use(services: Services, requester: Requester) -> None:
    """Refuse who may have been logged out without our hearing of it, if their device is gone.

    That their token is unknown says less: it may have been refreshed.

    Raises:
        UnknownToken: their session has ended.
    """
    if not requester.token_hash or await services.token_owners.load(requester.token_hash):
        return
    if await devices.fetch_device(services.db, requester.user_id, requester.device_id) is None:
        raise UnknownToken("You have been logged out.", soft_logout=False)
