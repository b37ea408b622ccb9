"""A destination: a server that we send to, with the transactions that it gets.

Spec: server-server-api#transactions
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from minihs.protocol import canonical_json
from minihs.protocol.events import Event
from minihs.protocol.redaction import redact
from minihs.services.federation.outgoing_edus import OutgoingReceipt
from minihs.storage.destinations import DestinationRow

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from minihs.services.federation.outgoing_edus import OutgoingEdu, OutgoingMessage
    from minihs.storage.event_store import StoredEvent

PDUS_MAX = 50  # Spec: server-server-api#transactions
SHARDS = 16


@dataclass(slots=True)
class Transaction:
    """What is sent at once. A repetition has the same id.

    It makes up for what there is after position `after`, and up to `upto`. `messages` are those to
    devices that are among its EDUs, `receipts` the positions of the receipts.
    """

    txn_id: str
    pdus: Sequence[StoredEvent]
    edus: Sequence[dict[str, object]]
    after: int
    upto: int
    messages: Sequence[OutgoingMessage] = ()
    receipts: Sequence[int] = ()


@dataclass(slots=True, eq=False)
class Destination:
    """A server that we send to; see `destinations.DestinationRow` for what is kept of it.

    `pdus` and `edus` (by what they are about) are its queue, empty while it is `behind`. The
    transaction with `repeat_id`, of the events at `repeat_positions`, must be sent before anything
    else. `begun_ms` is when its last transaction began; the next one comes no sooner than `pace_ms`
    after that.

    Messages to devices are not in the queue but in the database: `messages_at` is the newest one's
    position, 0 if there is none. Those up to `careful_upto` are sent one by one.
    """

    name: str
    shard: int
    position: int
    behind: bool = False
    failures: int = 0
    retry_at_ms: int = 0
    is_down: bool = False
    last_success_ms: int | None = None
    repeat_id: str | None = None
    repeat_positions: tuple[int, ...] = ()
    pdus: list[StoredEvent] = field(default_factory=list)
    edus: dict[tuple[str, ...], OutgoingEdu] = field(default_factory=dict)
    messages_at: int = 0
    careful_upto: int = 0
    pdus_max: int = PDUS_MAX
    refuses_edus: bool = False
    begun_ms: int = 0
    pace_ms: int = 0
    has_timer: bool = False
    is_busy: bool = False
    is_saved: bool = True
    under_way: Transaction | None = None

    @classmethod
    def of(cls, row: DestinationRow) -> Destination:
        """Return a destination as it was written."""
        return cls(
            row.server_name, row.shard, row.position, row.behind, row.failures, row.retry_at_ms,
            row.is_down, row.last_success_ms, row.txn_id, row.txn_positions,
        )  # fmt: skip

    @property
    def row(self) -> DestinationRow:
        """What is to be written of it."""
        return DestinationRow(
            self.name, self.shard, self.position, self.behind, self.failures, self.retry_at_ms,
            self.is_down, self.last_success_ms, self.repeat_id, self.repeat_positions,
        )  # fmt: skip

    @property
    def has_news(self) -> bool:
        """Whether there is anything to do for it."""
        return self.behind or bool(self.pdus) or bool(self.edus) or self.messages_at > 0

    @property
    def is_doubtful(self) -> bool:
        """Whether nobody knows that it answers: it never has, or did not when last asked."""
        return self.failures > 0 or self.last_success_ms is None

    def first_owed(self) -> int | None:
        """Return the position of the first PDU or receipt unconfirmed by it, of those at hand."""
        positions = [position_of(stored) for stored in self.pdus]
        positions += receipt_positions(self.edus.values())
        if self.under_way is not None:
            positions += map(position_of, self.under_way.pdus)
            positions += self.under_way.receipts
        return min(positions, default=None)

    def note_served(self, transaction: Transaction) -> None:
        """Move the position to where a transaction has served it.

        Not if more has become owed meanwhile, of before the transaction: some of it goes again.
        """
        if self.position >= transaction.after:
            self.position = max(self.position, transaction.upto)

    def put_back(self) -> None:
        """Let the PDUs of the transaction that was under way be the next to be sent."""
        if self.under_way is not None and not self.behind:
            self.pdus[:0] = self.under_way.pdus
        self.under_way = None


def position_of(stored: StoredEvent) -> int:
    """Return an event's position; whatever is owed has one."""
    return stored.position or 0


def receipt_positions(edus: Iterable[OutgoingEdu]) -> list[int]:
    """Return the positions of the receipts among some EDUs."""
    return [edu.position for edu in edus if isinstance(edu, OutgoingReceipt)]


def shard_of(server_name: str) -> int:
    """Return the shard that a destination is in."""
    return zlib.crc32(server_name.encode()) % SHARDS


def body_of(transaction: Transaction, origin: str, now_ms: int) -> bytes:
    """Return a transaction in Canonical JSON, put together from that of its PDUs."""
    return b'{"edus":%b,"origin":%b,"origin_server_ts":%d,"pdus":[%b]}' % (
        canonical_json.encode(transaction.edus),
        canonical_json.encode(origin),
        now_ms,
        b",".join(map(_pdu_json, transaction.pdus)),
    )


def txn_id_of(
    destination: Destination,
    pdus: Iterable[StoredEvent],
    edus: Iterable[OutgoingEdu | OutgoingMessage],
) -> str:
    """Return the id of a transaction: it follows from what is in it, and what came before it.

    So the same one, built again after a crash, has the same id; and no other one has it: what a
    server was sent in vain, as it was not in the room, it is sent anew when it comes back.
    """
    parts: list[str] = [stored.event_id for stored in pdus]
    if parts:
        parts.append(f"{destination.position} {destination.last_success_ms or 0}")
    parts += [f"{edu.position} {edu.subject}" for edu in edus]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _pdu_json(stored: StoredEvent) -> bytes:
    """Return a PDU as it is sent: a redacted event without what was redacted."""
    event = stored.event
    if stored.redacted_by is None:
        return event.json
    pdu = redact(event.pdu, event.room_version)
    return Event.from_pdu(pdu, event.room_version, event.event_id).json
