"""What clients store for themselves: account data, tags, filters.

Spec: client-server-api#client-config, client-server-api#room-tagging
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from minihs.base.errors import (
    BadJson,
    Forbidden,
    InvalidParam,
    MatrixError,
    NotFound,
    QuotaExceeded,
    TooLarge,
)
from minihs.base.limits import (
    ACCOUNT_DATA_BYTES_MAX,
    ACCOUNT_DATA_BYTES_OF_USER_MAX,
    ACCOUNT_DATA_OF_USER_MAX,
)
from minihs.base.turns import Turns
from minihs.protocol import canonical_json
from minihs.protocol.identifiers import IDENTIFIER_BYTES_MAX, RoomId, parse_room_id
from minihs.protocol.stickiness import STICKY_DURATION_MS_MAX
from minihs.storage import account_data, accounts, sticky_events
from minihs.storage.stream_rows import AccountDataWrite, UnignoredUser

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from minihs.protocol.identifiers import UserId
    from minihs.services.accounts.authentication import Requester
    from minihs.services.context import Services
    from minihs.storage.database import Queries, Transaction
    from minihs.storage.stream_rows import StreamRow

TAG = "m.tag"
IGNORED_USERS = "m.ignored_user_list"
PUSH_RULES = "m.push_rules"
SERVER_CONTROLLED = frozenset({"m.fully_read", PUSH_RULES})


async def get_account_data(
    services: Services, user_id: UserId, room_id: str, data_type: str
) -> dict[str, object]:
    """Return the content that was stored last; `room_id` is empty for global account data.

    Raises:
        NotFound: there is none.
    """
    content = await find_account_data(services.db, user_id, room_id, data_type)
    if content is None:
        raise NotFound("No such account data.")
    return content


async def find_account_data(
    queries: Queries, user_id: UserId, room_id: str, data_type: str
) -> dict[str, object] | None:
    """Return the content that was stored last, or None."""
    text = await account_data.fetch_account_data(queries, user_id, room_id, data_type)
    content = canonical_json.decode(text) if text is not None else None
    return content if isinstance(content, dict) else None


async def set_account_data(
    services: Services,
    user_id: UserId,
    room_id: RoomId | str,
    data_type: str,
    content: Mapping[str, object],
) -> None:
    """Store content for the user's clients; it is durable, and on its way to them, on return.

    Spec: client-server-api#put_matrixclientv3useruseridaccount_datatype

    Raises:
        MatrixError: 405; the server itself writes this type.
        InvalidParam: the type is too long, or the user would ignore themselves.
        TooLarge: the content is.
        QuotaExceeded: the user has stored too much.
    """
    if data_type in SERVER_CONTROLLED:
        raise MatrixError(
            f"Cannot set {data_type} through this API.", status=405, errcode="M_BAD_JSON"
        )
    if len(data_type.encode()) > IDENTIFIER_BYTES_MAX:
        raise InvalidParam(f"The type may have {IDENTIFIER_BYTES_MAX} bytes.")
    if data_type == IGNORED_USERS and not room_id and user_id in ignored_in(content):
        raise InvalidParam("You cannot ignore yourself: you would not see what you say.")
    count, size = await account_data.sum_others(services.db, user_id, room_id, data_type)
    if count >= ACCOUNT_DATA_OF_USER_MAX or size >= ACCOUNT_DATA_BYTES_OF_USER_MAX:
        raise QuotaExceeded("You have stored too much account data.")
    await write_account_data(services, user_id, room_id, data_type, content)


async def write_account_data(
    services: Services,
    user_id: UserId,
    room_id: RoomId | str,
    data_type: str,
    content: Mapping[str, object],
) -> None:
    """Store content of any type.

    Raises:
        TooLarge: the content is.
    """
    text = canonical_json.encode(content).decode()
    if len(text) > ACCOUNT_DATA_BYTES_MAX:
        raise TooLarge(f"Account data may have {ACCOUNT_DATA_BYTES_MAX} bytes.")
    rows: list[StreamRow] = [AccountDataWrite(user_id, room_id, data_type, text)]
    if data_type == IGNORED_USERS and not room_id:
        rows += await _unignored(services, user_id, content)
    await services.committer.commit_rows(rows)


async def _unignored(
    services: Services, user_id: UserId, content: Mapping[str, object]
) -> list[UnignoredUser]:
    """Return whom a user ignores no longer: what of theirs is sticky is owed to them (MSC4354)."""
    before = await find_account_data(services.db, user_id, "", IGNORED_USERS)
    gone = ignored_in(before or {}) - ignored_in(content)
    if not gone:
        return []
    now_ms = services.clock.now_ms()
    senders = await sticky_events.list_senders_among(services.db, gone, now_ms)
    return [UnignoredUser(user_id, s, now_ms + STICKY_DURATION_MS_MAX) for s in senders]


def ignored_in(content: Mapping[str, object]) -> frozenset[str]:
    """Return whom an `m.ignored_user_list` names. Spec: client-server-api#ignoring-users."""
    users = content.get("ignored_users")
    return frozenset(u for u in users if "\0" not in u) if isinstance(users, dict) else frozenset()


@contextlib.asynccontextmanager
async def changing(services: Services, user_id: UserId) -> AsyncIterator[Transaction]:
    """Keep others, in any process, from a like change of this user's account data.

    For blocks that read a content, through the transaction, and write it again. Those who wait in
    this process wait before they take a connection.
    """
    async with _turns.take(user_id), services.db.transaction() as tx:
        await accounts.lock_account(tx, user_id)
        yield tx


_turns: Turns[str] = Turns()


# --- tags ---------------------------------------------------------------------------------------


async def get_tags(services: Services, user_id: UserId, room_id: RoomId) -> dict[str, object]:
    """Return the user's tags of a room. Spec: client-server-api#room-tagging."""
    return await _tags(services.db, user_id, room_id)


async def set_tag(
    services: Services,
    user_id: UserId,
    room_id: RoomId,
    tag: str,
    details: Mapping[str, object],
) -> None:
    """Put a tag on a room.

    Raises:
        BadJson: its order is not a number.
        InvalidParam: its name is too long.
    """
    order = details.get("order")
    if order is not None and (isinstance(order, bool) or not isinstance(order, int | float)):
        raise BadJson("order must be a number.")
    if not tag or len(tag.encode()) > IDENTIFIER_BYTES_MAX:
        raise InvalidParam(f"A tag has between 1 and {IDENTIFIER_BYTES_MAX} bytes.")
    async with changing(services, user_id) as tx:
        tags = await _tags(tx, user_id, room_id)
        content = {"tags": {**tags, tag: details}}
        await write_account_data(services, user_id, room_id, TAG, content)


async def delete_tag(services: Services, user_id: UserId, room_id: RoomId, tag: str) -> None:
    """Take a tag off a room, if it is there."""
    async with changing(services, user_id) as tx:
        tags = await _tags(tx, user_id, room_id)
        if tags.pop(tag, None) is not None:
            await write_account_data(services, user_id, room_id, TAG, {"tags": tags})


async def _tags(queries: Queries, user_id: UserId, room_id: RoomId) -> dict[str, object]:
    content = await find_account_data(queries, user_id, room_id, TAG)
    tags = content.get("tags") if content is not None else None
    return tags if isinstance(tags, dict) else {}


# --- whose, and of which room -------------------------------------------------------------------


def check_own(requester: Requester, user_id: str) -> UserId:
    """Return the requester's user ID, if that is whose data the path names.

    Raises:
        Forbidden: it is somebody else's.
    """
    if requester.user_id != user_id:
        raise Forbidden("This is somebody else's.")
    return requester.user_id


def check_room(room_id: str) -> RoomId:
    """Return a room ID.

    Raises:
        InvalidParam: it is not one.
    """
    parsed = parse_room_id(room_id)
    if parsed is None:
        raise InvalidParam(f"{room_id!r} is not a room ID.")
    return parsed
