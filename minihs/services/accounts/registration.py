"""Registering accounts. Spec: client-server-api#account-registration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.base.errors import (
    Forbidden,
    InvalidUsername,
    MissingParam,
    UserInUse,
)
from minihs.protocol.identifiers import is_valid_localpart, parse_user_id
from minihs.services.accounts import credentials, passwords, sessions, user_interactive_auth
from minihs.services.accounts.sessions import ClientDevice
from minihs.storage import accounts, registration_tokens

if TYPE_CHECKING:
    from minihs.base.config import Config
    from minihs.protocol.identifiers import UserId
    from minihs.services.accounts.sessions import Session
    from minihs.services.accounts.user_interactive_auth import Flow
    from minihs.services.context import Services

GENERATED_LOCALPART_LENGTH = 12
REGISTRATION_TOKEN_LENGTH_MAX = 64


async def register_user(
    services: Services,
    username: str | None,
    password: str | None,
    auth: object,
    device: ClientDevice | None,
) -> tuple[UserId, Session | None]:
    """Return the user just registered, and a session of theirs unless `device` is None.

    What is wrong with the name is said before any authentication. The session of the latter is not
    bound to the body: it guards nothing but the right to register some free name.

    Spec: client-server-api#post_matrixclientv3register

    Raises:
        Forbidden: registration is closed.
        InvalidUsername, UserInUse, Exclusive: the name cannot be had.
        UserInteractiveAuthRequired: stages are missing.
        MissingParam, InvalidParam, WeakPassword: there is no password, or no acceptable one.
    """
    flows = _flows(services.config)
    if not flows:
        raise Forbidden("Registration is closed on this server.")
    user_id = await choose_user_id(services, username)
    services.appservices.check_user(user_id, None)
    if device is not None:
        sessions.check_device(device)
    if password is not None:
        passwords.check_acceptable(password)
    elif auth is not None:  # Said before the session is used up.
        raise MissingParam("password is missing.")
    operation = user_interactive_auth.Operation("register", flows)
    token = await user_interactive_auth.authorize(services, operation, auth)
    if password is None:
        raise MissingParam("password is missing.")
    password_hash = await passwords.hash_password(services.config, password)
    try:
        session = await _make_account(services, user_id, password_hash, token, device)
    except _TokenUsedUpError:
        message = "This registration token has just been used up."
        raise await user_interactive_auth.refuse(
            services, operation, "M_UNAUTHORIZED", message
        ) from None
    return user_id, session


class _TokenUsedUpError(Exception):
    """The registration token has served somebody else meanwhile."""


async def _make_account(
    services: Services,
    user_id: UserId,
    password_hash: str,
    token: str | None,
    device: ClientDevice | None,
) -> Session | None:
    """Make an account, by a registration token if one was shown; return a session of its user."""
    now_ms = services.clock.now_ms()
    async with services.db.transaction() as tx:
        if not await accounts.insert_account(tx, user_id, password_hash, now_ms):
            raise UserInUse("This user name is taken.")
        if token is not None and not await registration_tokens.mark_registration_token_used(
            tx, token, now_ms
        ):
            raise _TokenUsedUpError
        if device is None:
            return None
        return await sessions.begin_session(services, tx, user_id, device)


async def register_guest(services: Services, device: ClientDevice) -> tuple[UserId, Session]:
    """Return a new guest and their session. Spec: client-server-api#guest-access.

    Raises:
        Forbidden: guests are not wanted here.
    """
    if not services.config.allow_guests:
        raise Forbidden("This server does not take guests.")
    user_id = await choose_user_id(services, None)
    async with services.db.transaction() as tx:
        now_ms = services.clock.now_ms()
        if not await accounts.insert_account(tx, user_id, None, now_ms, guest=True):
            raise UserInUse("This user name is taken.")
        chosen = ClientDevice(display_name=device.display_name, ip=device.ip)
        return user_id, await sessions.begin_session(services, tx, user_id, chosen)


async def register_account(
    services: Services, username: str, password: str, *, admin: bool = False
) -> UserId:
    """Return an account made on an administrator's behalf, whatever `registration` says.

    Raises:
        InvalidUsername, UserInUse: the name cannot be had.
        InvalidParam, WeakPassword: the password cannot.
    """
    user_id = await choose_user_id(services, username)
    passwords.check_acceptable(password)
    password_hash = await passwords.hash_password(services.config, password)
    now_ms = services.clock.now_ms()
    if not await accounts.insert_account(services.db, user_id, password_hash, now_ms, admin=admin):
        raise UserInUse("This user name is taken.")
    return user_id


async def choose_user_id(services: Services, username: str | None) -> UserId:
    """Return the user ID that a name leads to, in lower case; a random one for no name.

    Raises:
        InvalidUsername: it does not follow the grammar of new users.
        UserInUse: there is (or was) such an account.
    """
    if username is None:
        username = services.randomness.letters(GENERATED_LOCALPART_LENGTH)
    # Only ASCII is lowered: others are refused, not turned into what they resemble.
    localpart = username.lower() if username.isascii() else username
    user_id = parse_user_id(credentials.local_user_id(services, localpart))
    if user_id is None or not is_valid_localpart(localpart):
        raise InvalidUsername(
            "A user name has letters a-z, digits and the characters . _ = - / + only, and "
            "with the server's name at most 255 bytes."
        )
    if await accounts.fetch_account(services.db, user_id) is not None:
        raise UserInUse("This user name is taken.")
    return user_id


async def check_name_available(services: Services, username: str) -> None:
    """Refuse a name that cannot be registered.

    Spec: client-server-api#get_matrixclientv3registeravailable

    Raises:
        Forbidden: registration is closed.
        InvalidUsername, UserInUse, Exclusive: the name cannot be had.
    """
    if not _flows(services.config):
        raise Forbidden("Registration is closed on this server.")
    services.appservices.check_user(await choose_user_id(services, username), None)


async def is_registration_token_valid(services: Services, token: str) -> bool:
    """Return whether a registration token would be accepted now.

    Spec: client-server-api#get_matrixclientv1registermloginregistration_tokenvalidity

    Raises:
        Forbidden: registration is closed.
    """
    if not _flows(services.config):
        raise Forbidden("Registration is closed on this server.")
    if "\0" in token or len(token) > REGISTRATION_TOKEN_LENGTH_MAX:
        return False
    return await registration_tokens.is_registration_token_valid(
        services.db, token, services.clock.now_ms()
    )


def _flows(config: Config) -> list[Flow]:
    """Return how people may authenticate a registration; no way when it is closed."""
    match config.registration:
        case "open":
            return [(user_interactive_auth.DUMMY,)]
        case "token":
            return [(user_interactive_auth.REGISTRATION_TOKEN,)]
        case "closed":
            return []
