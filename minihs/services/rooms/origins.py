"""Origins: what makes an event, and makes no second one.

Spec: client-server-api#transaction-identifiers
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.storage import delayed_events

if TYPE_CHECKING:
    from minihs.protocol.identifiers import EventId
    from minihs.services.context import Services


@dataclass(frozen=True, slots=True)
class ClientTransaction:
    """The transaction of a client's request: a repetition gets the same event.

    `scope` is what else of the path must be equal. Spec: client-server-api#transaction-identifiers
    """

    device_nid: int
    txn_id: str
    scope: str


@dataclass(frozen=True, slots=True)
class DelayedSending:
    """A delayed event is sent, as it was when it was found to be due at `due_ms` (MSC4140).

    It is finalised with the commit of the event, if it is still so.
    """

    delay_id: str
    due_ms: int


# What makes an event, and makes no second one.
Origin = ClientTransaction | DelayedSending


class Superseded(Exception):
    """A delayed event was cancelled or restarted while it was on its way."""


async def find_by_transaction(
    services: Services, room_id: str, transaction: Origin
) -> EventId | None:
    """Return the event that an earlier request with the same transaction id made, or None.

    Raises:
        Superseded: it is a delayed event that must not be sent now.
    """
    if isinstance(transaction, DelayedSending):
        delayed = await delayed_events.fetch_delayed_event(services.db, transaction.delay_id)
        if delayed is not None and delayed.event_id is not None:
            return delayed.event_id
        if delayed is None or delayed.finalised_ms or delayed.due_ms != transaction.due_ms:
            raise Superseded
        return None
    return await services.events.find_by_transaction(
        room_id, transaction.device_nid, transaction.txn_id, transaction.scope
    )
