"""TRANSACTIONS OF OTHER SERVERS: PDUs go to their rooms, EDUs to their handlers, once.

A transaction is known by its origin and id. One that comes again, also while the first is under
way, is given the first one's answer and changes nothing. Rooms are served side by side, the PDUs of
one room in their order; what goes wrong in one room or with one PDU is told in the answer and
concerns no other. When the answer goes out, everything that it speaks of is durable.

Spec: server-server-api#transactions
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

import orjson

from minihs.base.errors import BadJson, Unavailable
from minihs.protocol.identifiers import parse_room_id
from minihs.protocol.stickiness import sticky_duration_ms
from minihs.services.federation.edus import receive_edus
from minihs.services.rooms.receive import receive_pdus
from minihs.storage import federation_transactions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minihs.protocol.identifiers import EventId, RoomId, ServerName
    from minihs.services.context import Services

logger = logging.getLogger(__name__)

PDUS_MAX: Final = 50
EDUS_MAX: Final = 100
ROOMS_AT_ONCE: Final = 10
KEPT_MS: Final = 7 * 86_400_000


async def receive_transaction(
    services: Services, origin: ServerName, txn_id: str, content: Mapping[str, object]
) -> bytes:
    """Carry out a transaction, or find out that it has been; return the JSON of its answer.

    Raises:
        BadJson: it is not a transaction, or a larger one than there may be; nothing is done.
        LimitExceeded: there are sticky events in it, and too many of the server's wait already.

    Spec: server-server-api#put_matrixfederationv1sendtxnid
    """
    pdus, edus = _list_of(content, "pdus", PDUS_MAX), _list_of(content, "edus", EDUS_MAX)
    return await services.transactions.run(
        (origin, txn_id), lambda: _receive_once(services, origin, txn_id, pdus, edus)
    )


def _list_of(content: Mapping[str, object], key: str, count_max: int) -> list[object]:
    value = content.get(key, [])
    if not isinstance(value, list):
        raise BadJson(f"{key} must be a list.")
    if len(value) > count_max:
        raise BadJson(f"A transaction may have {count_max} {key}.")
    return value


async def _receive_once(
    services: Services,
    origin: ServerName,
    txn_id: str,
    pdus: Sequence[object],
    edus: Sequence[object],
) -> bytes:
    known = await federation_transactions.fetch_answer(services.db, origin, txn_id)
    if known is not None:
        return known
    if any(isinstance(pdu, dict) and sticky_duration_ms(pdu) is not None for pdu in pdus):
        await services.sticky_limits.check_room_for_more(services, origin)
    received_ms = services.clock.now_ms()
    results = await _receive_rooms(services, origin, pdus)
    await receive_edus(services, origin, edus)
    answer = orjson.dumps(
        {"pdus": {e: {} if reason is None else {"error": reason} for e, reason in results.items()}}
    )
    return await federation_transactions.insert_answer(
        services.db, origin, txn_id, received_ms, answer
    )


async def _receive_rooms(
    services: Services, origin: ServerName, pdus: Sequence[object]
) -> dict[EventId, str | None]:
    """Return, for each PDU that has an id, why it was dropped, or None."""
    rooms: dict[RoomId, list[object]] = {}
    for pdu in pdus:
        room_id = parse_room_id(pdu.get("room_id")) if isinstance(pdu, dict) else None
        if room_id is None:  # Without it there are no rules by which it would have an id.
            logger.info("dropped a PDU from %s: it is of no room", origin)
        else:
            rooms.setdefault(room_id, []).append(pdu)
    turns = asyncio.Semaphore(ROOMS_AT_ONCE)

    async def receive(room_id: RoomId) -> Mapping[EventId, str | None]:
        async with turns:
            return await receive_pdus(services, origin, room_id, rooms[room_id])

    results: dict[EventId, str | None] = {}
    found = await asyncio.gather(*map(receive, rooms), return_exceptions=True)
    for room_id, of_room in zip(rooms, found, strict=True):
        if not isinstance(of_room, BaseException):
            results |= of_room
        elif isinstance(of_room, Exception) and not isinstance(of_room, Unavailable):
            logger.error("PDUs of %s from %s failed", room_id, origin, exc_info=of_room)
        else:  # The database is away, say: all shall come again.
            raise of_room
    return results


async def forget_old(services: Services) -> None:
    """Forget transactions that nobody will repeat any more."""
    before_ms = services.clock.past_ms() - KEPT_MS
    await federation_transactions.delete_before(services.db, before_ms)
