"""Who somebody claims to be, and whether their password proves it.

Used by login and by the password stage of user-interactive authentication, which take the same
identifiers. Spec: client-server-api#identifier-types
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.base.errors import BadJson, MatrixError, MissingParam
from minihs.protocol.identifiers import UserId, parse_user_id
from minihs.services.accounts import passwords
from minihs.storage import accounts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minihs.services.context import Services
    from minihs.storage.accounts import Account


def claimed_user(services: Services, fields: Mapping[str, object]) -> UserId | None:
    """Return the user that `identifier` (or the deprecated `user`) names, in lower case.

    None stands for somebody who cannot have an account here: a user of another server, a
    third-party identifier, or no user ID at all.

    Raises:
        MissingParam: nobody is named.
        BadJson: the identifier has another shape.
        MatrixError: it is of an unknown type.
    """
    match fields.get("identifier"):
        case {"type": "m.id.user", "user": str(name)}:
            return _local_user(services, name)
        case {"type": "m.id.thirdparty", "medium": str(), "address": str()}:
            return None
        case {"type": "m.id.phone", "country": str(), "phone": str()}:
            return None
        case {"type": str(kind)}:
            if kind in ("m.id.user", "m.id.thirdparty", "m.id.phone"):
                raise BadJson(f"The identifier of type {kind} is incomplete.")
            raise MatrixError("Unknown type of identifier.")
        case None:
            pass
        case _:
            raise BadJson("identifier must be an object with a type.")
    match fields.get("user"):
        case str(name):
            return _local_user(services, name)
        case _ if "medium" in fields and "address" in fields:
            return None
        case _:
            raise MissingParam("identifier is missing.")


def local_user_id(services: Services, localpart: str) -> UserId:
    """Return the ID of the user of this server with this localpart."""
    return UserId(f"@{localpart}:{services.server_name}")


async def prove(services: Services, user_id: UserId | None, password: str) -> Account | None:
    """Return the account if the password is its, which takes as long whether or not it is.

    A hash with outdated parameters is replaced on the way.

    Raises:
        LimitExceeded: too many passwords are being verified.
    """
    account = await accounts.fetch_account(services.db, user_id) if user_id is not None else None
    old_hash = account.password_hash if account is not None else None
    if not await passwords.verify_password(services.config, old_hash, password):
        return None
    if old_hash is not None and passwords.is_outdated(services.config, old_hash):
        new_hash = await passwords.hash_password(services.config, password)
        await accounts.mark_rehashed(services.db, str(user_id), old_hash, new_hash)
        return await accounts.fetch_account(services.db, str(user_id))
    return account


def _local_user(services: Services, name: str) -> UserId | None:
    """Users made here have lower-case localparts, however somebody types them."""
    if not name.startswith("@"):
        name = local_user_id(services, name)
    localpart, _, server_name = name.partition(":")
    user_id = parse_user_id(f"{localpart.lower()}:{server_name}")
    return user_id if user_id is not None and services.is_local(user_id) else None
