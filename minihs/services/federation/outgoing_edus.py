"""EDUs that we send: messages to devices, typing, receipts and presence, packed for a transaction.

Of messages every one is sent. Of the rest, what came later about the same thing replaces what has
not been sent yet.

Spec: server-server-api#edus
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from minihs.protocol import canonical_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from minihs.storage.stream_rows import PresenceWrite, ReceiptWrite

EDUS_MAX = 100  # Spec: server-server-api#transactions


@dataclass(frozen=True, slots=True)
class TypingNotification:
    """A user types until a moment, or (0) no longer.

    Spec: server-server-api#typing-notifications
    """

    position: int
    room_id: str
    user_id: str
    until_ms: int

    @property
    def subject(self) -> tuple[str, ...]:
        """What it is about: the newest word on it is the only one that counts."""
        return "m.typing", self.room_id, self.user_id


@dataclass(frozen=True, slots=True)
class OutgoingReceipt:
    """A user has read up to an event. Spec: server-server-api#receipts."""

    position: int
    receipt: ReceiptWrite

    @property
    def subject(self) -> tuple[str, ...]:
        """What it is about: the newest word on it is the only one that counts."""
        r = self.receipt
        return "m.receipt", r.room_id, r.user_id, r.thread_id


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """A message to devices; `json` is the EDU's content.

    Spec: server-server-api#send-to-device-messaging
    """

    position: int
    json: str

    @property
    def subject(self) -> tuple[str, ...]:
        """What it is about: itself."""
        return ("m.direct_to_device",)


@dataclass(frozen=True, slots=True)
class OutgoingPresence:
    """What a user is. Spec: server-server-api#presence."""

    position: int
    write: PresenceWrite

    @property
    def subject(self) -> tuple[str, ...]:
        """What it is about: the newest word on it is the only one that counts."""
        return "m.presence", self.write.user_id


OutgoingEdu: TypeAlias = TypingNotification | OutgoingReceipt | OutgoingPresence


def pack(
    edus: Iterable[OutgoingEdu], now_ms: int, messages: Sequence[OutgoingMessage] = ()
) -> tuple[list[dict[str, object]], list[OutgoingEdu], list[OutgoingEdu]]:
    """Return the EDUs of a transaction, what they are made of, and what is left for the next.

    All of the messages are among the first, and none among the others.

    Receipts share an EDU wherever they can: in one, a user has one receipt in a room. All presence
    is in one. Who no longer types by now was never news.
    """
    packed: list[dict[str, object]] = [
        {"edu_type": "m.direct_to_device", "content": canonical_json.decode(message.json)}
        for message in messages
    ]
    receipts: list[dict[str, dict[str, dict[str, dict[str, object]]]]] = []
    presence: list[dict[str, object]] = []
    used: list[OutgoingEdu] = []
    left: list[OutgoingEdu] = []
    for edu in edus:
        if len(packed) + len(receipts) + bool(presence) >= EDUS_MAX:
            left.append(edu)
        elif isinstance(edu, OutgoingPresence):
            presence.append(_presence_json(edu.write, now_ms))
            used.append(edu)
        elif isinstance(edu, OutgoingReceipt):
            _add_receipt(receipts, edu.receipt)
            used.append(edu)
        elif edu.until_ms == 0 or edu.until_ms > now_ms:
            content = {"room_id": edu.room_id, "user_id": edu.user_id, "typing": edu.until_ms != 0}
            packed.append({"edu_type": "m.typing", "content": content})
            used.append(edu)
    packed += [{"edu_type": "m.receipt", "content": content} for content in receipts]
    if presence:
        packed.append({"edu_type": "m.presence", "content": {"push": presence}})
    return packed, used, left


def _presence_json(write: PresenceWrite, now_ms: int) -> dict[str, object]:
    update: dict[str, object] = {
        "user_id": write.user_id,
        "presence": write.presence,
        "last_active_ago": max(now_ms - write.last_active_ms, 0),
        "currently_active": write.currently_active,
    }
    if write.status_msg is not None:
        update["status_msg"] = write.status_msg
    return update


def _add_receipt(
    contents: list[dict[str, dict[str, dict[str, dict[str, object]]]]], receipt: ReceiptWrite
) -> None:
    """Put a receipt into the first content that has none of that user in that room."""
    data: dict[str, object] = {"ts": receipt.ts_ms}
    if receipt.thread_id:
        data["thread_id"] = receipt.thread_id
    entry: dict[str, object] = {"event_ids": [receipt.event_id], "data": data}
    for content in contents:
        users = content.setdefault(receipt.room_id, {receipt.receipt_type: {}})
        if receipt.user_id not in users[receipt.receipt_type]:
            users[receipt.receipt_type][receipt.user_id] = entry
            return
    contents.append({receipt.room_id: {receipt.receipt_type: {receipt.user_id: entry}}})
