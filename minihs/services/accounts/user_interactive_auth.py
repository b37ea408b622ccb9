"""User-interactive authentication: stages that authorize one request.

A session belongs to one request: the endpoint, the user and the body without `auth`. Its row holds
a hash of its ID and an HMAC of that request, keyed with the ID itself: whoever reads the table can
neither use a session nor guess the password in the body it is for. The HMAC covers the user's
password hash too, so that a change of the password ends whatever was under way.

Spec: client-server-api#user-interactive-authentication-api
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from minihs.base.errors import (
    BadJson,
    Forbidden,
    MissingParam,
    NotFound,
    Unrecognized,
    UserInteractiveAuthRequired,
)
from minihs.protocol import canonical_json
from minihs.services.accounts import credentials
from minihs.services.accounts.authentication import hash_token
from minihs.storage import accounts, registration_tokens, user_interactive_auth

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minihs.protocol.identifiers import UserId
    from minihs.services.context import Services
    from minihs.storage.user_interactive_auth import AuthSession

DUMMY = "m.login.dummy"
PASSWORD = "m.login.password"  # noqa: S105  # the name of a stage
REGISTRATION_TOKEN = "m.login.registration_token"  # noqa: S105

STAGES = (DUMMY, PASSWORD, REGISTRATION_TOKEN)

SESSION_ID_LENGTH = 43  # letters and digits: 256 bits
SESSION_LIFETIME_MS = 3_600_000

Flow = tuple[str, ...]


@dataclass(frozen=True, slots=True, repr=False)  # no repr: the body may hold a password
class Operation:
    """What is to be authorized, for whom (None: for nobody yet), with which body without `auth`."""

    endpoint: str
    flows: Sequence[Flow]
    user_id: UserId | None = None
    body: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Progress:
    """How far a client has come. `session_id` is empty as long as there is no session."""

    session_id: str = ""
    completed: Flow = ()
    registration_token: str | None = None


class _StageFailedError(Exception):
    """The stage was not completed; the client may try again."""

    def __init__(self, errcode: str, message: str) -> None:
        super().__init__(message)
        self.errcode = errcode
        self.message = message


async def authorize(services: Services, operation: Operation, auth: object) -> str | None:
    """Return (the registration token that was shown, if any) when a flow is complete.

    `auth` is that of the request's body. The session, if there was one, is used up. A client that
    completes a flow of one stage at once needs none.

    Raises:
        UserInteractiveAuthRequired: a stage is missing or failed; its body is the 401's.
        Forbidden: the session is for another request, or somebody else authenticates.
        BadJson, MissingParam: `auth` has another shape.
    """
    if auth is None:
        raise await _challenge(services, operation, _Progress())
    if not isinstance(auth, dict):
        raise BadJson("auth must be an object.")
    progress = await _resume(services, operation, auth.get("session"))
    stage = auth.get("type")
    if stage is not None and stage not in progress.completed:
        try:
            progress = await _attempt(services, operation, progress, stage, auth)
        except _StageFailedError as failure:
            raise await _challenge(services, operation, progress, failure) from None
    if progress.completed not in operation.flows:
        raise await _challenge(services, operation, progress)
    if progress.session_id and not await user_interactive_auth.delete_auth_session(
        services.db, hash_token(progress.session_id)
    ):
        raise Forbidden("This session has been used.")
    return progress.registration_token


async def refuse(
    services: Services, operation: Operation, errcode: str, message: str
) -> UserInteractiveAuthRequired:
    """Return the 401 for what turned out not to authorize the operation after all."""
    return await _challenge(services, operation, _Progress(), _StageFailedError(errcode, message))


async def _resume(services: Services, operation: Operation, session_id: object) -> _Progress:
    """Return how far a session has come."""
    if session_id is None:
        return _Progress()
    if not isinstance(session_id, str):
        raise BadJson("auth.session must be a string.")
    session = await _find_session(services, session_id)
    if session is None:
        raise await refuse(services, operation, "M_FORBIDDEN", "Unknown or expired session.")
    binding = await _binding(services, operation, session_id)
    if not hmac.compare_digest(binding, session.binding):
        raise Forbidden("This session belongs to another request.")
    if session.proved_user_id not in (None, operation.user_id):
        raise Forbidden("Somebody else's password does not authorize this.")
    return _Progress(session_id, session.completed, session.registration_token)


async def _find_session(services: Services, session_id: str) -> AuthSession | None:
    """Return a session that has not expired."""
    session = await user_interactive_auth.fetch_auth_session(services.db, hash_token(session_id))
    if session is None or abs(services.clock.now_ms() - session.created_ms) > SESSION_LIFETIME_MS:
        return None  # If it is of a time to come, the clock has been put back.
    return session


async def is_completed(services: Services, session_id: str, stage: str) -> bool:
    """Return whether a session has completed a stage, as the page for it asks.

    Spec: client-server-api#fallback

    Raises:
        Unrecognized: there is no such stage.
        NotFound: there is no such session.
    """
    if stage not in STAGES:
        raise Unrecognized("There is no such authentication type.")
    session = await _find_session(services, session_id)
    if session is None:
        raise NotFound("Unknown or expired session.")
    return stage in session.completed


async def complete_in_browser(
    services: Services, session_id: str, stage: str, auth: Mapping[str, object]
) -> str | None:
    """Complete a stage outside of the request that it is for; return why it cannot be, if not.

    What the session is for is not known here: whether this stage serves it, and whether it is the
    right user's password, is decided when the request is repeated.

    Spec: client-server-api#fallback

    Raises:
        Unrecognized, NotFound: as `is_completed`.
        LimitExceeded: too many passwords are being verified.
    """
    if await is_completed(services, session_id, stage):
        return None
    token = user_id = None
    try:
        if stage == PASSWORD:
            user_id = await _prove_password(services, auth)
        elif stage == REGISTRATION_TOKEN:
            token = await _check_registration_token(services, auth)
    except _StageFailedError as failure:
        return failure.message
    await user_interactive_auth.mark_stage_completed(
        services.db, hash_token(session_id), stage, token, user_id
    )
    return None


async def _attempt(
    services: Services,
    operation: Operation,
    progress: _Progress,
    stage: object,
    auth: Mapping[str, object],
) -> _Progress:
    """Return the progress with one more stage completed. The stages of a flow have an order."""
    done = len(progress.completed)
    possible = {f[done] for f in operation.flows if f[:done] == progress.completed and f[done:]}
    if not isinstance(stage, str) or stage not in possible:
        raise _StageFailedError("M_UNRECOGNIZED", "This stage cannot be completed now.")
    token = progress.registration_token
    if stage == PASSWORD:
        await _prove_password(services, auth, operation.user_id)
    elif stage == REGISTRATION_TOKEN:
        token = await _check_registration_token(services, auth)
    completed = (*progress.completed, stage)
    if progress.session_id:
        await user_interactive_auth.mark_stage_completed(
            services.db, hash_token(progress.session_id), stage, token
        )
    return _Progress(progress.session_id, completed, token)


async def _prove_password(
    services: Services, auth: Mapping[str, object], expected: UserId | None = None
) -> UserId | None:
    """Return whose password it is: that of the user whom `auth` names, and who is expected.

    Spec: client-server-api#password-based
    """
    password = auth.get("password")
    if not isinstance(password, str):
        raise MissingParam("auth.password is missing.")
    user_id = credentials.claimed_user(services, auth)
    if user_id is not None and expected is not None and user_id != expected:
        raise Forbidden("Somebody else's password does not authorize this.")
    if await credentials.prove(services, user_id, password) is None:
        raise _StageFailedError("M_FORBIDDEN", "Wrong password.")
    return user_id


async def _check_registration_token(services: Services, auth: Mapping[str, object]) -> str:
    """Spec: client-server-api#token-authenticated-registration."""
    token = auth.get("token")
    if not isinstance(token, str):
        raise MissingParam("auth.token is missing.")
    if "\0" in token or not await registration_tokens.is_registration_token_valid(
        services.db, token, services.clock.now_ms()
    ):
        raise _StageFailedError("M_UNAUTHORIZED", "This registration token is not valid.")
    return token


async def _challenge(
    services: Services,
    operation: Operation,
    progress: _Progress,
    failure: _StageFailedError | None = None,
) -> UserInteractiveAuthRequired:
    """Return the 401 that says what is still to be done, in a session that has it on record."""
    session_id = progress.session_id
    if not session_id:
        session_id = services.randomness.token(SESSION_ID_LENGTH)
        now_ms = services.clock.now_ms()
        await user_interactive_auth.insert_auth_session(
            services.db,
            hash_token(session_id),
            await _binding(services, operation, session_id),
            now_ms,
            now_ms - SESSION_LIFETIME_MS,
        )
        for stage in progress.completed:
            await user_interactive_auth.mark_stage_completed(
                services.db, hash_token(session_id), stage, progress.registration_token
            )
    body: dict[str, object] = {
        "flows": [{"stages": list(flow)} for flow in operation.flows],
        "params": {},
        "session": session_id,
    }
    if progress.completed:
        body["completed"] = list(progress.completed)
    if failure is not None:
        body |= {"errcode": failure.errcode, "error": failure.message}
    return UserInteractiveAuthRequired(body)


async def _binding(services: Services, operation: Operation, session_id: str) -> str:
    """Return the HMAC of what a session is for."""
    account = None
    if operation.user_id is not None:
        account = await accounts.fetch_account(services.db, operation.user_id)
    password_hash = account.password_hash if account is not None else None
    request = [operation.endpoint, operation.user_id, operation.body, password_hash]
    message = canonical_json.encode(request)
    return hmac.new(session_id.encode(), message, hashlib.sha256).hexdigest()
