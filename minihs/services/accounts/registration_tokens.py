"""Registration tokens, as administrators make and keep them.

Spec: client-server-api#token-authenticated-registration
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from minihs.base.errors import InvalidParam, NotFound
from minihs.storage import registration_tokens
from minihs.storage.registration_tokens import RegistrationToken

if TYPE_CHECKING:
    from minihs.services.context import Services

__all__ = [
    "RegistrationToken",
    "change_token",
    "delete_token",
    "get_token",
    "list_tokens",
    "make_token",
]

TOKEN = re.compile(r"[A-Za-z0-9._~-]{1,64}")
TOKEN_LENGTH = 16
TOKEN_LENGTH_MAX = 64


async def make_token(
    services: Services,
    token: str | None = None,
    *,
    length: int = TOKEN_LENGTH,
    uses_allowed: int | None = None,
    expires_ms: int | None = None,
) -> RegistrationToken:
    """Return a new token: the one given, or a random one of some length.

    Raises:
        InvalidParam: the token, its uses or its end cannot be, or there is that token already.
    """
    if not 1 <= length <= TOKEN_LENGTH_MAX:
        raise InvalidParam(f"A token has 1 to {TOKEN_LENGTH_MAX} characters.")
    token = services.randomness.token(length) if token is None else token
    if TOKEN.fullmatch(token) is None:
        raise InvalidParam(f"A token has 1 to {TOKEN_LENGTH_MAX} characters of A-Za-z0-9._~-.")
    _check(services, uses_allowed, expires_ms)
    if not await registration_tokens.insert_registration_token(
        services.db, token, uses_allowed, expires_ms
    ):
        raise InvalidParam("There is that token already.")
    return await get_token(services, token)


async def list_tokens(services: Services, *, valid: bool | None) -> list[RegistrationToken]:
    """Return every token, or only those that are valid now, or that are not."""
    found = await registration_tokens.list_registration_tokens(services.db)
    return [token for token in found if valid is None or _is_valid(services, token) == valid]


async def get_token(services: Services, token: str) -> RegistrationToken:
    """Return a token.

    Raises:
        NotFound: there is none of that name.
    """
    found = await registration_tokens.fetch_registration_token(services.db, token)
    if found is None:
        raise NotFound("There is no such registration token.")
    return found


async def change_token(
    services: Services,
    token: str,
    *,
    uses_allowed: tuple[int | None] | None,
    expires_ms: tuple[int | None] | None,
) -> RegistrationToken:
    """Change a token, of what is None nothing, and return it.

    Raises:
        NotFound: there is none of that name.
        InvalidParam: its uses or its end cannot be.
    """
    _check(
        services,
        uses_allowed[0] if uses_allowed is not None else None,
        expires_ms[0] if expires_ms is not None else None,
    )
    await registration_tokens.update_registration_token(
        services.db, token, uses_allowed=uses_allowed, expires_ms=expires_ms
    )
    return await get_token(services, token)


async def delete_token(services: Services, token: str) -> None:
    """Delete a token; who has registered with it stays.

    Raises:
        NotFound: there is none of that name.
    """
    if not await registration_tokens.delete_registration_token(services.db, token):
        raise NotFound("There is no such registration token.")


def _check(services: Services, uses_allowed: int | None, expires_ms: int | None) -> None:
    if uses_allowed is not None and not 0 <= uses_allowed < 2**53:
        raise InvalidParam("uses_allowed must be a number from 0 on, or null.")
    if expires_ms is not None and not services.clock.now_ms() < expires_ms < 2**53:
        raise InvalidParam("expiry_time must be a moment to come, in milliseconds, or null.")


def _is_valid(services: Services, token: RegistrationToken) -> bool:
    is_left = token.uses_allowed is None or token.completed < token.uses_allowed
    return is_left and (token.expires_ms is None or token.expires_ms > services.clock.now_ms())
