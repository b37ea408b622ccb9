"""Messages to devices: from a client, or another server, to devices here and elsewhere.

Whoever sends is told that it is done when the messages are durable: for devices of this server
until the client says that it has them (`services.sync.streams.to_device`), for other servers until
they have taken them (`services.federation.delivery`). A device is given each of them once, whatever
is repeated on the way.

What waits for a device is bounded, and so is the part of it that comes from one server: a flood
takes room from nobody but its sender.

Spec: client-server-api#send-to-device-messaging, server-server-api#send-to-device-messaging
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from minihs.base.errors import BadJson, InvalidParam, TooLarge
from minihs.protocol import canonical_json
from minihs.protocol.identifiers import parse_user_id, server_name_of
from minihs.storage import to_device
from minihs.storage.stream_rows import ToDeviceMessage, ToDeviceSend

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minihs.protocol.identifiers import ServerName, UserId
    from minihs.services.context import Services
    from minihs.services.rooms.origins import ClientTransaction

logger = logging.getLogger(__name__)

EVERY_DEVICE: Final = "*"
MESSAGE_BYTES_MAX: Final = 65_536  # As an event.
TARGETS_MAX: Final = 5_000
MESSAGE_ID_LENGTH: Final = 22
ID_CHARS_MAX: Final = 255

# What may wait for a device or another server. Of that, one other server may have half.
WAITING_MAX: Final = 20_000
WAITING_BYTES_MAX: Final = 64 * 1_048_576
REMEMBERED_MS: Final = 7 * 86_400_000

Messages = dict["UserId", dict[str, dict[str, object]]]
"""User -> device (or `*`) -> content."""


@dataclass(frozen=True, slots=True)
class DirectMessages:
    """What another server sends to devices at once; `message_id` tells a repetition."""

    sender: UserId
    type: str
    message_id: str
    messages: Messages


async def send_to_devices(
    services: Services,
    sender: UserId,
    event_type: str,
    transaction: ClientTransaction,
    messages: Mapping[str, object],
) -> None:
    """Send a message to each of some devices; durable on return. A repetition does nothing.

    Who is not there gets nothing, and nobody hears of it.

    Raises:
        BadJson: `messages` is not a map of users to devices to contents.
        InvalidParam: the type or the transaction id is too long, or has a NUL in it.
        TooLarge: there are too many devices, or a content is larger than an event may be.

    Spec: client-server-api#put_matrixclientv3sendtodeviceeventtypetxnid
    """
    txn_id = transaction.txn_id
    if "\0" in event_type + txn_id or max(len(event_type), len(txn_id)) > ID_CHARS_MAX:
        raise InvalidParam("The type or the transaction id is too long, or has a NUL in it.")
    wanted = read_messages(messages)
    now_ms = services.clock.now_ms()
    message_id = services.randomness.token(MESSAGE_ID_LENGTH)
    elsewhere: dict[str, Messages] = {}
    for user_id, of_devices in wanted.items():
        if not services.is_local(user_id):
            elsewhere.setdefault(server_name_of(user_id), {})[user_id] = of_devices
    full = await to_device.list_full_outboxes(
        services.db, list(elsewhere), WAITING_MAX, WAITING_BYTES_MAX
    ) if elsewhere else ()  # fmt: skip
    for name in full:
        logger.warning("dropped a message to devices of %s: too much waits for it", name)
    outgoing = tuple(
        (name, _edu_json(DirectMessages(sender, event_type, message_id, of_server)))
        for name, of_server in elsewhere.items()
        if name not in full
    )
    here = {user_id: found for user_id, found in wanted.items() if services.is_local(user_id)}
    await services.committer.commit_rows(
        [
            ToDeviceSend(
                f"{transaction.device_nid} {transaction.scope}",
                txn_id,
                sender,
                now_ms,
                await _for_devices(services, sender, event_type, here),
                outgoing,
            )
        ]
    )


async def receive_direct_messages(
    services: Services, origin: ServerName, received: Sequence[DirectMessages]
) -> None:
    """Take messages of another server's users, all of them at once; durable on return.

    Spec: server-server-api#send-to-device-messaging
    """
    now_ms = services.clock.now_ms()
    rows = []
    for direct in received:
        here = {u: found for u, found in direct.messages.items() if services.is_local(u)}
        messages = await _for_devices(services, direct.sender, direct.type, here)
        if messages:
            rows.append(ToDeviceSend(origin, direct.message_id, direct.sender, now_ms, messages))
    if rows:
        await services.committer.commit_rows(rows)


def read_messages(messages: object) -> Messages:
    """Return a request's messages; users who cannot be are left out.

    Raises:
        BadJson: it is not a map of users to devices to contents, all of them Canonical JSON.
        TooLarge: as in `send_to_devices`.
    """
    found: Messages = {}
    if not isinstance(messages, dict):
        raise BadJson("messages must be an object.")
    for user, of_devices in messages.items():
        if not isinstance(of_devices, dict):
            raise BadJson("messages must map users to devices.")
        for content in of_devices.values():
            if not isinstance(content, dict):
                raise BadJson("messages must map devices to contents.")
            try:
                size = len(canonical_json.encode_strict(content))
            except canonical_json.CanonicalJsonError as error:
                raise BadJson(f"A content is not Canonical JSON: {error}") from None
            if size > MESSAGE_BYTES_MAX:
                raise TooLarge(f"A message may have {MESSAGE_BYTES_MAX} bytes.")
        user_id = parse_user_id(user)
        if user_id is not None and of_devices:
            found[user_id] = of_devices
    if sum(map(len, found.values())) > TARGETS_MAX:
        raise TooLarge(f"There may be {TARGETS_MAX} devices in a request.")
    return found


async def _for_devices(
    services: Services, sender: UserId, event_type: str, wanted: Messages
) -> tuple[ToDeviceMessage, ...]:
    """Return the messages for those devices that exist and have room.

    A device that is named gets its own message, if there is one for all devices beside.
    """
    if not wanted:
        return ()
    server = server_name_of(sender)
    share = 1 if server == services.server_name else 2
    found: list[ToDeviceMessage] = []
    for target in await to_device.list_targets(services.db, list(wanted), server):
        of_devices = wanted[target.user_id]  # type: ignore[index]  # it was asked for
        content = of_devices.get(target.device_id, of_devices.get(EVERY_DEVICE))
        if content is None:
            continue
        if (
            target.count >= WAITING_MAX
            or target.size >= WAITING_BYTES_MAX
            or target.count_of_server >= WAITING_MAX // share
            or target.size_of_server >= WAITING_BYTES_MAX // share
        ):
            logger.warning(
                "dropped a message of %s to device %s of %s: too much waits for it",
                sender, target.device_id, target.user_id,
            )  # fmt: skip
            continue
        event = {"type": event_type, "sender": sender, "content": content}
        json = canonical_json.encode(event).decode()
        found.append(ToDeviceMessage(target.user_id, target.device_nid, json))  # type: ignore[arg-type]
    return tuple(found)


def _edu_json(direct: DirectMessages) -> str:
    """Return the content of an m.direct_to_device EDU."""
    content = {
        "sender": direct.sender,
        "type": direct.type,
        "message_id": direct.message_id,
        "messages": direct.messages,
    }
    return canonical_json.encode(content).decode()


async def forget_old_sends(services: Services) -> None:
    """Forget requests that nobody will repeat any more."""
    before_ms = services.clock.past_ms() - REMEMBERED_MS
    await to_device.delete_sends_before(services.db, before_ms)
