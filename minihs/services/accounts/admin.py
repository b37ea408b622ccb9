"""Registration with a shared secret, as deployment tools know it.

Whoever knows `registration_shared_secret` proves it with an HMAC over a nonce and the request. A
nonce lives in the table of authentication sessions, so that it serves once in whatever process.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.base.errors import Forbidden, InvalidParam, MatrixError, Unrecognized
from minihs.protocol import canonical_json
from minihs.services.accounts import registration, sessions
from minihs.services.accounts.authentication import hash_token
from minihs.services.accounts.user_interactive_auth import SESSION_LIFETIME_MS
from minihs.storage import profiles, user_interactive_auth

if TYPE_CHECKING:
    from minihs.protocol.identifiers import UserId
    from minihs.services.accounts.sessions import ClientDevice, Session
    from minihs.services.context import Services

NONCE_LENGTH = 43  # letters and digits: 256 bits
NONCE_LIFETIME_MS = 60_000
NONCE_BINDING = "shared-secret registration"


@dataclass(frozen=True, slots=True, repr=False)  # no repr: there is a password in it
class VouchedRegistration:
    """A registration with its proof. `user_type` and `display_name` may be missing."""

    nonce: str
    username: str
    password: str
    mac: str
    admin: bool = False
    user_type: str | None = None
    display_name: str | None = None


async def make_nonce(services: Services) -> str:
    """Return a nonce that lets somebody register once, within a minute.

    Raises:
        Unrecognized: there is no shared secret.
    """
    _secret(services)
    nonce = services.randomness.token(NONCE_LENGTH)
    now_ms = services.clock.now_ms()
    await user_interactive_auth.insert_auth_session(
        services.db, hash_token(nonce), NONCE_BINDING, now_ms, now_ms - SESSION_LIFETIME_MS
    )
    return nonce


async def register_with_secret(
    services: Services, wish: VouchedRegistration, device: ClientDevice | None
) -> tuple[UserId, Session | None]:
    """Return the user just registered, and a session of theirs unless `device` is None.

    Raises:
        Unrecognized: there is no shared secret.
        MatrixError: the nonce is not known (any more).
        Forbidden: the HMAC is wrong.
        InvalidUsername, UserInUse, InvalidParam, WeakPassword: as for any registration.
    """
    secret = _secret(services)
    # The nonce is used up whether or not the rest is right: nobody tries two HMACs with one.
    nonce_hash = hash_token(wish.nonce)
    nonce = await user_interactive_auth.fetch_auth_session(services.db, nonce_hash)
    if (
        nonce is None
        or nonce.binding != NONCE_BINDING
        or abs(services.clock.now_ms() - nonce.created_ms) > NONCE_LIFETIME_MS
        or not await user_interactive_auth.delete_auth_session(services.db, nonce_hash)
    ):
        raise MatrixError("Unrecognised nonce.")
    parts = [wish.nonce, wish.username, wish.password, "admin" if wish.admin else "notadmin"]
    if wish.user_type is not None:
        parts.append(wish.user_type)
    if any("\0" in part for part in parts):
        raise InvalidParam("There is a NUL in the request.")  # It separates what is signed.
    expected = hmac.new(secret, "\0".join(parts).encode(), hashlib.sha1).hexdigest()
    if not hmac.compare_digest(expected.encode(), wish.mac.lower().encode()):
        raise Forbidden("The HMAC is wrong.")
    user_id = await registration.register_account(
        services, wish.username, wish.password, admin=wish.admin
    )
    if wish.display_name:
        value_json = canonical_json.encode(wish.display_name).decode()
        await profiles.upsert_profile_field(services.db, user_id, "displayname", value_json)
    if device is None:
        return user_id, None
    async with services.db.transaction() as tx:
        return user_id, await sessions.begin_session(services, tx, user_id, device)


def _secret(services: Services) -> bytes:
    secret = services.config.registration_shared_secret
    if not secret:
        raise Unrecognized("Registration with a shared secret is off.")
    return secret.encode()
