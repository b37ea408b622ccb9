"""Errors that the Matrix APIs answer with: an HTTP status, an `errcode` and a sentence.

Services raise them; the HTTP layer turns them into JSON in one place. Every class is one `errcode`
of the specification. Spec: client-server-api#standard-error-response
"""

from __future__ import annotations

from typing import ClassVar


class MatrixError(Exception):
    """An error for the caller. `fields` are further keys of the JSON body."""

    status: ClassVar[int] = 400
    errcode: ClassVar[str] = "M_UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        errcode: str | None = None,
        **fields: object,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.http_status = status if status is not None else self.status
        self.code = errcode if errcode is not None else self.errcode
        self.fields = fields

    def body(self) -> dict[str, object]:
        """Return the JSON body of the error."""
        return {"errcode": self.code, "error": self.message, **self.fields}


class Forbidden(MatrixError):
    """The caller may not do this."""

    status, errcode = 403, "M_FORBIDDEN"


class UnknownToken(MatrixError):
    """The access token is not known (any more)."""

    status, errcode = 401, "M_UNKNOWN_TOKEN"


class MissingToken(MatrixError):
    """No access token was given."""

    status, errcode = 401, "M_MISSING_TOKEN"


class UserDeactivated(MatrixError):
    """The account has been deactivated."""

    status, errcode = 403, "M_USER_DEACTIVATED"


class BadJson(MatrixError):
    """Valid JSON, but not what the endpoint takes."""

    errcode = "M_BAD_JSON"


class NotJson(MatrixError):
    """The body is not JSON."""

    errcode = "M_NOT_JSON"


class NotFound(MatrixError):
    """What was asked for does not exist (or must not be seen)."""

    status, errcode = 404, "M_NOT_FOUND"


class LimitExceeded(MatrixError):
    """Too many requests; `retry_after_ms` says when to come back."""

    status, errcode = 429, "M_LIMIT_EXCEEDED"

    def __init__(self, retry_after_ms: int, message: str = "Too many requests.") -> None:
        super().__init__(message, retry_after_ms=retry_after_ms)
        self.retry_after_ms = retry_after_ms


class Unrecognized(MatrixError):
    """No such endpoint (404) or no such method on it (405)."""

    status, errcode = 404, "M_UNRECOGNIZED"


class Unauthorized(MatrixError):
    """The request is not authorised for another reason than its token."""

    status, errcode = 401, "M_UNAUTHORIZED"


class UserInUse(MatrixError):
    """The user name is taken."""

    errcode = "M_USER_IN_USE"


class InvalidUsername(MatrixError):
    """The user name does not follow the grammar."""

    errcode = "M_INVALID_USERNAME"


class RoomInUse(MatrixError):
    """The alias is taken."""

    errcode = "M_ROOM_IN_USE"


class InvalidRoomState(MatrixError):
    """The initial state of a room is not acceptable."""

    errcode = "M_INVALID_ROOM_STATE"


class UnsupportedRoomVersion(MatrixError):
    """This server does not know the room version asked for."""

    errcode = "M_UNSUPPORTED_ROOM_VERSION"


class IncompatibleRoomVersion(MatrixError):
    """The joining server does not support the room's version."""

    errcode = "M_INCOMPATIBLE_ROOM_VERSION"


class GuestAccessForbidden(MatrixError):
    """Guests may not do this."""

    status, errcode = 403, "M_GUEST_ACCESS_FORBIDDEN"


class MissingParam(MatrixError):
    """A required parameter is missing."""

    errcode = "M_MISSING_PARAM"


class InvalidParam(MatrixError):
    """A parameter has the wrong form or value."""

    errcode = "M_INVALID_PARAM"


class UnknownPos(MatrixError):
    """The position in sliding sync is not known (any more). MSC4186#connections."""

    errcode = "M_UNKNOWN_POS"


class TooLarge(MatrixError):
    """The request or the event is too large."""

    status, errcode = 413, "M_TOO_LARGE"


class QuotaExceeded(MatrixError):
    """Somebody has stored as much as one may."""

    status, errcode = 403, "M_RESOURCE_LIMIT_EXCEEDED"


class RequestTimeout(MatrixError):
    """The request did not come to its end."""

    status, errcode = 408, "M_UNKNOWN"


class Exclusive(MatrixError):
    """The name is reserved by an application service."""

    errcode = "M_EXCLUSIVE"


class BadAlias(MatrixError):
    """An alias in `m.room.canonical_alias` does not point to the room."""

    errcode = "M_BAD_ALIAS"


class WeakPassword(MatrixError):
    """The password is not acceptable."""

    errcode = "M_WEAK_PASSWORD"


class UnableToAuthoriseJoin(MatrixError):
    """No local user can vouch for a restricted join. Spec: server-server-api#restricted-rooms."""

    errcode = "M_UNABLE_TO_AUTHORISE_JOIN"


class UnableToGrantJoin(MatrixError):
    """Another server may be able to vouch for a restricted join."""

    errcode = "M_UNABLE_TO_GRANT_JOIN"


class Unavailable(MatrixError):
    """The server cannot do this at the moment (its database is away, for instance)."""

    status, errcode = 503, "M_UNKNOWN"


class DatabaseAway(Unavailable):
    """The database does not answer, or refuses what it takes at other times."""

    def __init__(self) -> None:
        super().__init__("The database is not available now.")


class DatabaseBusy(Unavailable):
    """The database gave up one of several transactions that stood in each other's way."""

    def __init__(self) -> None:
        super().__init__("The database is too busy.")


class UserInteractiveAuthRequired(Exception):
    """The 401 that lists flows; not a standard error body.

    Spec: client-server-api#user-interactive-authentication-api
    """

    def __init__(self, body: dict[str, object]) -> None:
        super().__init__("user-interactive authentication required")
        self.body = body
