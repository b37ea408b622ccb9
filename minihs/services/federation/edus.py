"""EDUs OF OTHER SERVERS: by their type, to whom they concern.

A server may speak for its own users only, and of rooms only where they are and where it is heard.
What is not so is ignored, one EDU for itself: there is no answer in which to say it. On return the
effects are durable.

Spec: server-server-api#edus
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from minihs.base.errors import BadJson, Forbidden, TooLarge, Unavailable
from minihs.base.limits import STATUS_CHARS_MAX
from minihs.protocol.canonical_json import INTEGER_MAX
from minihs.protocol.identifiers import (
    EventId,
    RoomId,
    UserId,
    parse_room_id,
    parse_user_id,
    server_name_of,
)
from minihs.services.encryption.to_device import (
    ID_CHARS_MAX,
    DirectMessages,
    read_messages,
    receive_direct_messages,
)
from minihs.services.ephemeral import typing_notifications
from minihs.services.ephemeral.presence import RemotePresence, receive_presence
from minihs.services.rooms.server_acls import is_allowed
from minihs.storage import receipts as receipt_reads
from minihs.storage.event_store import ACCEPTED, StoredEvent
from minihs.storage.stream_rows import DeviceListChange, ReceiptWrite

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from minihs.protocol.identifiers import ServerName
    from minihs.services.context import Services

logger = logging.getLogger(__name__)

TYPING_MS: Final = 60_000  # Servers repeat it before; none says when it ends. Ours, as others do.
RECEIPTS_MAX: Final = 5_000  # Of one transaction.
PRESENCE_MAX: Final = 1_000  # The same.

Handler = Callable[["Services", "ServerName", "Sequence[Mapping[str, object]]"], Awaitable[None]]


async def receive_edus(services: Services, origin: ServerName, edus: Sequence[object]) -> None:
    """Do what the EDUs of a transaction say, as far as their origin may say it."""
    by_type: dict[str, list[Mapping[str, object]]] = {}
    for edu in edus:
        match edu:
            case {"edu_type": str(kind), "content": dict(content)} if kind in HANDLERS:
                by_type.setdefault(kind, []).append(content)
            case {"edu_type": str(kind)}:
                logger.debug("ignored an EDU of type %s from %s", kind, origin)
            case _:
                logger.debug("ignored an EDU without a type from %s", origin)
    await asyncio.gather(*(_handle(services, origin, k, found) for k, found in by_type.items()))


async def _handle(
    services: Services, origin: ServerName, kind: str, contents: Sequence[Mapping[str, object]]
) -> None:
    """Do what EDUs of one type say; where they cannot be dealt with together, each for itself.

    One that fails even so is dropped. Were it told, its server would repeat the transaction for
    ever, and send nothing else.

    Raises:
        Unavailable: the database is away; the transaction is to come again.
    """
    try:
        await HANDLERS[kind](services, origin, contents)
    except Unavailable:
        raise
    except Exception:
        if len(contents) == 1:
            logger.exception("dropped an EDU of type %s from %s", kind, origin)
            return
        for content in contents:
            await _handle(services, origin, kind, [content])


# --- typing ------------------------------------------------------------------------------------


async def _receive_typing(
    services: Services, origin: ServerName, contents: Sequence[Mapping[str, object]]
) -> None:
    """m.typing. Spec: server-server-api#typing-notifications."""
    newest: dict[tuple[RoomId, UserId], bool] = {}
    for content in contents:
        room_id, user_id = parse_room_id(content.get("room_id")), content.get("user_id")
        user = _user_of(origin, user_id)
        if room_id is None or user is None or not isinstance(content.get("typing"), bool):
            logger.debug("ignored typing of %r from %s", user_id, origin)
            continue
        newest[room_id, user] = content["typing"] is True
    heard = await _heard(services, origin, {room_id for room_id, _ in newest})

    async def note(room_id: RoomId, user: UserId, timeout_ms: int | None) -> None:
        try:
            await typing_notifications.set_typing(services, user, room_id, timeout_ms=timeout_ms)
        except Forbidden:
            logger.debug("ignored typing of %s in %s, where they are not", user, room_id)

    await asyncio.gather(
        *(
            note(room_id, user, TYPING_MS if types else None)
            for (room_id, user), types in newest.items()
            if room_id in heard
        )
    )


# --- receipts ----------------------------------------------------------------------------------


async def _receive_receipts(
    services: Services, origin: ServerName, contents: Sequence[Mapping[str, object]]
) -> None:
    """m.receipt. Spec: server-server-api#receipts."""
    now_ms = services.clock.now_ms()
    newest: dict[tuple[str, str, str], ReceiptWrite] = {}
    for content in contents:
        for receipt in _read_receipts(origin, content, now_ms):
            newest[receipt.room_id, receipt.user_id, receipt.thread_id] = receipt
            if len(newest) >= RECEIPTS_MAX:
                break
    if not newest:
        return
    heard = await _heard(services, origin, {RoomId(room_id) for room_id, _, _ in newest})
    old = await receipt_reads.list_joined_readers(services.db, list(newest.values()))
    wanted = {receipt.event_id for receipt in newest.values()}
    events = await services.events.get_many(wanted | {e for e in old.values() if e is not None})
    rows: list[ReceiptWrite] = []
    for key, receipt in newest.items():
        if receipt.room_id not in heard or key not in old:
            logger.debug("ignored a receipt of %s in %s", receipt.user_id, receipt.room_id)
            continue
        old_id = old[key]
        if _is_news(receipt, events, None if old_id is None else events.get(old_id)):
            rows.append(receipt)
    if rows:
        await services.committer.commit_rows(rows)


def _read_receipts(
    origin: ServerName, content: Mapping[str, object], now_ms: int
) -> Iterator[ReceiptWrite]:
    """Yield the well-formed public receipts of the origin's users."""
    for room, by_type in content.items():
        room_id = parse_room_id(room)
        users = by_type.get("m.read") if isinstance(by_type, dict) else None
        if room_id is None or not isinstance(users, dict):
            continue
        for user_id, receipt in users.items():
            user = _user_of(origin, user_id)
            match receipt:
                case {"event_ids": [*_, str(event_id)], **rest} if user is not None:
                    data = rest.get("data")
                case _:
                    logger.debug("ignored a receipt of %s from %s", user_id, origin)
                    continue
            data = data if isinstance(data, dict) else {}
            thread_id, ts_ms = data.get("thread_id", ""), data.get("ts")
            if not isinstance(thread_id, str) or "\0" in thread_id + event_id:
                continue
            if not isinstance(ts_ms, int) or not 0 <= ts_ms <= INTEGER_MAX:
                ts_ms = now_ms
            yield ReceiptWrite(room_id, user, "m.read", thread_id, EventId(event_id), ts_ms)


def _is_news(
    receipt: ReceiptWrite, events: Mapping[EventId, StoredEvent], old: StoredEvent | None
) -> bool:
    """Return whether a receipt names an event of its room, and not one that is behind the old."""
    stored = events.get(receipt.event_id)
    if stored is None:
        return True  # The event may be on its way.
    if stored.event.room_id != receipt.room_id or stored.status != ACCEPTED:
        logger.debug("ignored a receipt of %s for an event elsewhere", receipt.user_id)
        return False
    if old is None or old.order is None or stored.order is None:
        return True
    return stored.order > old.order


# --- presence ----------------------------------------------------------------------------------


async def _receive_presence(
    services: Services, origin: ServerName, contents: Sequence[Mapping[str, object]]
) -> None:
    """m.presence. Spec: server-server-api#presence."""
    if not services.config.presence_enabled:
        return
    now_ms = services.clock.now_ms()
    newest: dict[UserId, RemotePresence] = {}
    for content in contents:
        push = content.get("push")
        for update in push if isinstance(push, list) else ():
            presence = _read_presence(origin, update, now_ms)
            if presence is None:
                logger.debug("ignored presence from %s", origin)
            elif len(newest) < PRESENCE_MAX:
                newest[presence.user_id] = presence
    if newest:
        await receive_presence(services, newest)


def _read_presence(origin: ServerName, update: object, now_ms: int) -> RemotePresence | None:
    """Return what is said of one of the origin's users, if it can be."""
    match update:
        case {
            "user_id": str(user_id),
            "presence": "online" | "unavailable" | "offline" as presence,
            **rest,
        } if (user := _user_of(origin, user_id)) is not None:
            status_msg, ago_ms = rest.get("status_msg"), rest.get("last_active_ago")
            if not isinstance(status_msg, str) or len(status_msg) > STATUS_CHARS_MAX:
                status_msg = None
            is_time = isinstance(ago_ms, int) and 0 <= ago_ms <= now_ms
            return RemotePresence(
                user,
                presence,
                None if status_msg is None else status_msg.replace("\0", ""),
                now_ms - ago_ms if is_time else 0,  # type: ignore[operator]  # an integer
                rest.get("currently_active") is True,
            )
        case _:
            return None


# --- devices and their keys --------------------------------------------------------------------


async def _receive_device_changes(
    services: Services, origin: ServerName, contents: Sequence[Mapping[str, object]]
) -> None:
    """m.device_list_update, m.signing_key_update: somebody's devices or keys are different now.

    What they are is asked for when somebody wants to know.
    Spec: server-server-api#device-management, server-server-api#end-to-end-encryption
    """
    users = {_user_of(origin, content.get("user_id")) for content in contents} - {None}
    known = await services.joined_rooms.load_many(user for user in users if user is not None)
    rows = [DeviceListChange(UserId(user), tuple(rooms)) for user, rooms in known.items() if rooms]
    if len(rows) < len(contents):
        logger.debug("ignored changes of devices from %s", origin)
    if rows:
        await services.committer.commit_rows(rows)


# --- messages to devices -----------------------------------------------------------------------


async def _receive_to_device(
    services: Services, origin: ServerName, contents: Sequence[Mapping[str, object]]
) -> None:
    """m.direct_to_device. Spec: server-server-api#send-to-device-messaging."""
    received: list[DirectMessages] = []
    for content in contents:
        sender = _user_of(origin, content.get("sender"))
        match content:
            case {"type": str(kind), "message_id": str(message_id), "messages": messages} if (
                sender is not None
                and max(len(kind), len(message_id)) <= ID_CHARS_MAX
                and "\0" not in kind + message_id
            ):
                try:
                    found = read_messages(messages)
                except (BadJson, TooLarge) as error:
                    logger.debug("ignored a message to devices from %s: %s", origin, error)
                    continue
                received.append(DirectMessages(sender, kind, message_id, found))
            case _:
                logger.debug("ignored a message to devices from %s", origin)
    await receive_direct_messages(services, origin, received)


# --- whom to hear ------------------------------------------------------------------------------


def _user_of(origin: ServerName, user_id: object) -> UserId | None:
    """Return a user id if it is one of the origin's users."""
    user = parse_user_id(user_id)
    return user if user is not None and server_name_of(user) == origin else None


async def _heard(services: Services, origin: ServerName, room_ids: set[RoomId]) -> set[RoomId]:
    """Return those of the rooms that listen to a server."""
    rooms = sorted(room_ids)
    allowed = await asyncio.gather(*(is_allowed(services, room_id, origin) for room_id in rooms))
    return {room_id for room_id, is_heard in zip(rooms, allowed, strict=True) if is_heard}


HANDLERS: Final[dict[str, Handler]] = {
    "m.typing": _receive_typing,
    "m.receipt": _receive_receipts,
    "m.direct_to_device": _receive_to_device,
    "m.presence": _receive_presence,
    "m.device_list_update": _receive_device_changes,
    "m.signing_key_update": _receive_device_changes,
}
