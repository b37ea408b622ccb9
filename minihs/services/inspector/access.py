"""Who may look: administrators, by an access token or by a session that one began.

A browser cannot send an access token with a link, so it shows the token once and gets a session: a
random value in a cookie, of which only the hash is kept. A session ends after an hour, when its
owner says so, and whenever the access token ends or its owner is no longer an administrator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.base.errors import Forbidden, UnknownToken
from minihs.services.accounts.authentication import authenticate, has_expired, hash_token
from minihs.storage import inspector

if TYPE_CHECKING:
    from minihs.services.context import Services

SESSION_LENGTH = 43  # letters and digits: 256 bits
SESSION_LIFETIME_MS = 3_600_000


async def admin_of_token(services: Services, token: str | None, ip: str) -> str:
    """Return the administrator that an access token belongs to.

    Raises:
        MissingToken, UnknownToken: as `authenticate`.
        Forbidden: it is somebody else's.
    """
    requester = await authenticate(services, token, ip)
    if not requester.admin:
        raise Forbidden("Only administrators may look at the inspector.")
    await services.follower.wait_for(requester.position)
    return requester.user_id


async def admin_of_session(services: Services, session: str) -> str:
    """Return the administrator that a session belongs to.

    Raises:
        UnknownToken: there is no such session, or what it rests upon has ended.
        Forbidden: its owner is no longer an administrator.
    """
    now_ms = services.clock.now_ms()
    token_hash = await inspector.fetch_token_of_session(services.db, hash_token(session), now_ms)
    owner = None if token_hash is None else await services.token_owners.load(token_hash)
    if owner is None or owner.deactivated:
        raise UnknownToken("The session has ended.", soft_logout=False)
    if has_expired(owner.expires_ms, now_ms):
        raise UnknownToken("The session has ended.", soft_logout=False)
    if not owner.admin:
        raise Forbidden("Only administrators may look at the inspector.")
    await services.follower.wait_for(owner.position)
    return owner.user_id


async def begin_session(services: Services, token: str, ip: str) -> str:
    """Return a session for whoever shows an administrator's access token.

    Raises:
        MissingToken, UnknownToken, Forbidden: as `admin_of_token`.
    """
    await admin_of_token(services, token, ip)
    session = services.randomness.token(SESSION_LENGTH)
    now_ms = services.clock.now_ms()
    await inspector.insert_session(
        services.db, hash_token(session), hash_token(token), now_ms + SESSION_LIFETIME_MS, now_ms
    )
    return session


async def end_session(services: Services, session: str) -> None:
    """End a session; nothing happens if there is none."""
    await inspector.delete_session(services.db, hash_token(session))


def proof_of_session(session: str) -> str:
    """Return what only a page shown in a session knows of it: forms that end it carry that."""
    return hash_token(f"inspector form {session}")
