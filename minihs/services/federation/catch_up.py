"""Catching up: what a server is owed that was down, or too slow to take everything.

Of ordinary events it is the newest of each room, and those by which we put its users out of a room:
the other server sees what it lacks before the newest, and asks for it. Of sticky events it is every
one that still is (MSC4354#federation-behaviour), and of messages to devices too. Of receipts it is
the newest of each user. What nobody would miss later (typing) is not made up for.

Spec: server-server-api#transactions, server-server-api#backfilling-and-retrieving-missing-events
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.services.federation.destination import (
    PDUS_MAX,
    Destination,
    Transaction,
    position_of,
    receipt_positions,
    txn_id_of,
)
from minihs.services.federation.outgoing_edus import OutgoingMessage, OutgoingReceipt, pack
from minihs.services.federation.room_servers import was_joined, was_removed
from minihs.storage import missed, to_device

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minihs.services.context import Services
    from minihs.storage.event_store import StoredEvent

RECEIPTS_MAX = 500  # The newest.
MESSAGES_MAX = 50  # Of the EDUs of a transaction,
MESSAGES_BYTES_MAX = 2 * 1_048_576  # with so many bytes, unless a single one is larger.


async def to_repeat(services: Services, destination: Destination) -> Transaction | None:
    """Return the transaction that must be repeated before any other, or None.

    Its events and receipts are read again: what has been deleted meanwhile, with its room, is owed
    to nobody.
    Spec: server-server-api#put_matrixfederationv1sendtxnid
    """
    if destination.repeat_id is None:
        return None
    ids = await missed.list_at_positions(services.db, destination.repeat_positions)
    pdus = sorted((await services.events.get_many(ids)).values(), key=position_of)
    if not pdus:
        destination.repeat_id, destination.repeat_positions = None, ()
        return None
    after, upto = destination.position, position_of(pdus[-1])
    receipts = await _missed_receipts(services, destination, upto)
    edus, _, _ = pack(receipts, services.clock.now_ms())
    return Transaction(
        destination.repeat_id, pdus, edus, after, upto, receipts=receipt_positions(receipts)
    )


async def messages_owed(services: Services, destination: Destination) -> list[OutgoingMessage]:
    """Return the next messages to devices that a destination has not taken, oldest first.

    After a transaction that was refused they come one by one.
    """
    newest = destination.messages_at
    if not newest:
        return []
    rows = await to_device.list_owed(services.db, destination.name, MESSAGES_MAX)
    if not rows and destination.messages_at == newest:
        destination.messages_at = 0
    if rows and rows[0][0] <= destination.careful_upto:
        return [OutgoingMessage(*rows[0])]
    messages: list[OutgoingMessage] = []
    size = 0
    for position, json in rows:
        size += len(json)
        if messages and size > MESSAGES_BYTES_MAX:
            break
        messages.append(OutgoingMessage(position, json))
    return messages


async def missed_by(
    services: Services, destination: Destination, upto: int, messages: Sequence[OutgoingMessage]
) -> Transaction:
    """Return the next transaction that makes up for what a destination has missed.

    The messages are in it. Its `upto` says how far; where that is `upto` nothing is left. It may be
    empty.
    """
    after = destination.position
    owed, upto_here = await _missed_pdus(services, destination, after, upto)
    receipts = await _missed_receipts(services, destination, upto_here)
    edus, used, _ = pack(receipts, services.clock.now_ms(), messages)
    return Transaction(
        txn_id_of(destination, owed, [*messages, *used]),
        owed, edus, after, upto_here, messages, receipt_positions(receipts),
    )  # fmt: skip


async def _missed_receipts(
    services: Services, destination: Destination, upto: int
) -> list[OutgoingReceipt]:
    """Return the receipts up to a position that a destination has missed, oldest first."""
    if destination.refuses_edus:
        return []
    after, name = destination.position, destination.name
    newest = await missed.list_receipts(
        services.db, name, after, upto, services.server_name, RECEIPTS_MAX
    )
    return [OutgoingReceipt(*receipt) for receipt in reversed(newest)]


async def _missed_pdus(
    services: Services, destination: Destination, after: int, upto: int
) -> tuple[list[StoredEvent], int]:
    """Return the next events that a destination is owed, and how far these make up for it."""
    db, name = services.db, destination.name
    newest = await missed.list_newest_sent(db, name, after, upto, PDUS_MAX)
    removals = await missed.list_removals(db, name, after, upto, services.server_name, PDUS_MAX)
    sticky = await missed.list_sticky_missed(
        db, name, after, upto, services.server_name, services.clock.now_ms(), PDUS_MAX
    )
    ends = [found[-1][1] for found in (newest, removals, sticky) if len(found) == PDUS_MAX]
    upto_here = min(ends, default=upto)
    certain = {event_id for event_id, _, is_certain in newest if is_certain}
    # What is sticky is owed to whoever is in the room now, since whenever they are.
    certain |= {event_id for event_id, _ in sticky}
    removing = {event_id for event_id, _ in removals}
    found = {event_id: position for event_id, position, _ in newest}
    found |= dict(removals) | dict(sticky)
    ids = sorted((e for e, p in found.items() if p <= upto_here), key=found.__getitem__)
    if len(ids) > destination.pdus_max:
        ids = ids[: destination.pdus_max]
        upto_here = found[ids[-1]]
    events = await services.events.get_many(ids)
    owed = []
    for event_id in ids:
        stored = events.get(event_id)
        if stored is not None and (
            event_id in certain
            or (event_id in removing and await was_removed(services, stored))
            or (event_id not in removing and await was_joined(services, stored, name))
        ):
            owed.append(stored)
    return owed, upto_here
