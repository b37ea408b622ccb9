"""Profiles: what users tell of themselves. Spec: client-server-api#profiles."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from minihs.base.errors import (
    Forbidden,
    GuestAccessForbidden,
    InvalidParam,
    MatrixError,
    MissingParam,
    NotFound,
)
from minihs.base.limits import AVATAR_URL_CHARS_MAX, DISPLAYNAME_CHARS_MAX, PROFILE_FIELD_BYTES_MAX
from minihs.protocol import canonical_json
from minihs.protocol.identifiers import parse_user_id, server_name_of
from minihs.remote.transport import RemoteError
from minihs.services.rooms import membership
from minihs.services.rooms.candidates import refusal_of
from minihs.services.rooms.profile import MEMBER_FIELDS
from minihs.storage import accounts, profiles

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minihs.services.accounts.authentication import Requester
    from minihs.services.context import Services

FIELD_NAME_BYTES_MAX = 255
TIME_ZONE_CHARS_MAX = 255

# The fields that have a meaning in rooms; they are texts, and have limits of their own.
_TEXT_CHARS_MAX = {
    "displayname": DISPLAYNAME_CHARS_MAX,
    "avatar_url": AVATAR_URL_CHARS_MAX,
    "m.tz": TIME_ZONE_CHARS_MAX,
}
# Namespaced, or one of the two from before there were namespaces.
_FIELD_NAME = re.compile(r"avatar_url|displayname|[a-z][a-z0-9_\-]*(?:\.[a-z0-9_\-]+)+")


async def get_profile(services: Services, user_id: str) -> dict[str, object]:
    """Return all fields of a user; of one of another server, as that server tells them.

    Nothing is kept of what it tells. Spec: client-server-api#get_matrixclientv3profileuserid

    Raises:
        NotFound: there is no such user, or their server does not answer.
        Forbidden: their server tells nobody.
    """
    if parse_user_id(user_id) is not None and not services.is_local(user_id):
        answer = await services.remote.query_profile(server_name_of(user_id), user_id)
        if isinstance(answer, RemoteError):
            raise refusal_of(answer)
        return answer
    fields = await profiles.list_profile_fields(services.db, user_id)
    if not fields and await accounts.fetch_account(services.db, user_id) is None:
        raise NotFound("There is no such user.")
    return fields


async def get_profile_field(services: Services, user_id: str, field: str) -> object:
    """Return one field.

    Spec: client-server-api#get_matrixclientv3profileuseridkeyname

    Raises:
        NotFound: there is no such user, or they have no such field.
    """
    fields = await get_profile(services, user_id)
    if field not in fields:
        raise NotFound("This user's profile has no such field.")
    return fields[field]


async def set_profile_field(
    services: Services,
    requester: Requester,
    user_id: str,
    field: str,
    body: Mapping[str, object],
) -> None:
    """Set a field of one's own. An empty name or avatar, or null, removes it.

    Spec: client-server-api#put_matrixclientv3profileuseridkeyname

    Raises:
        Forbidden, GuestAccessForbidden: it is somebody else's, or not for guests.
        InvalidParam, MissingParam: the field's name or value is not one.
        MatrixError: M_KEY_TOO_LARGE, M_PROFILE_TOO_LARGE.
    """
    _check_may_change(requester, user_id, field)
    _check_field_name(field)
    if field not in body:
        raise MissingParam(f"{field} is missing.")
    value = body[field]
    if field in _TEXT_CHARS_MAX:
        if value is None or value == "":
            await delete_profile_field(services, requester, user_id, field)
            return
        if not isinstance(value, str) or len(value) > _TEXT_CHARS_MAX[field]:
            raise InvalidParam(f"{field} must be a text of at most {_TEXT_CHARS_MAX[field]}.")
    value_json = canonical_json.encode(value).decode()
    async with services.db.transaction() as tx:
        await accounts.lock_account(tx, user_id)  # Two writers could exceed the limit together.
        fields = await profiles.list_profile_fields(tx, user_id)
        if len(canonical_json.encode({**fields, field: value})) > PROFILE_FIELD_BYTES_MAX:
            raise MatrixError("The profile would be too large.", errcode="M_PROFILE_TOO_LARGE")
        await profiles.upsert_profile_field(tx, user_id, field, value_json)
    await _tell_rooms(services, requester, field)


async def delete_profile_field(
    services: Services, requester: Requester, user_id: str, field: str
) -> None:
    """Remove a field of one's own; if it is not there, all is well.

    Spec: client-server-api#delete_matrixclientv3profileuseridkeyname

    Raises:
        Forbidden, GuestAccessForbidden: it is somebody else's, or not for guests.
        InvalidParam, MatrixError: the field's name is not one.
    """
    _check_may_change(requester, user_id, field)
    _check_field_name(field)
    await profiles.delete_profile_field(services.db, user_id, field)
    await _tell_rooms(services, requester, field)


async def _tell_rooms(services: Services, requester: Requester, field: str) -> None:
    """Spec: client-server-api#events-on-change-of-profile-information."""
    if field in MEMBER_FIELDS:
        await membership.update_profile_in_rooms(services, requester.user_id)


def _check_may_change(requester: Requester, user_id: str, field: str) -> None:
    if requester.user_id != user_id:
        raise Forbidden("You cannot change somebody else's profile.")
    if requester.guest and field != "displayname":  # Spec: client-server-api#guest-access.
        raise GuestAccessForbidden("Guests have a display name only.")


def _check_field_name(field: str) -> None:
    """Spec: appendices#common-namespaced-identifier-grammar."""
    if len(field.encode()) > FIELD_NAME_BYTES_MAX:
        raise MatrixError("The field's name is too long.", errcode="M_KEY_TOO_LARGE")
    if _FIELD_NAME.fullmatch(field) is None:
        raise InvalidParam("This is not a name of a profile field.")
