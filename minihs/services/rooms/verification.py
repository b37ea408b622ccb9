"""Events of other servers, before anything is asked of the room: well formed, and truly theirs?

The first three checks on receipt of a PDU, for every way in which an event can reach us: pushed in
a transaction, fetched because it was missing, given to us as state, auth chain or history. There is
no other door: who wants an `Event` out of another server's JSON comes here.

Spec: server-server-api#checks-performed-on-receipt-of-a-pdu
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.base.tasks import give_way
from minihs.protocol.event_format import EventFormatError, check_event_format
from minihs.protocol.events import Event
from minihs.protocol.hashes import has_right_content_hash
from minihs.protocol.redaction import redact
from minihs.protocol.signatures import (
    SignatureError,
    required_signers,
    signing_key_ids,
    verify_event_signature,
)
from minihs.services.server_keys import verify_keys

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minihs.protocol.identifiers import EventId, ServerName
    from minihs.protocol.room_versions import RoomVersion
    from minihs.services.context import Services

logger = logging.getLogger(__name__)

CHECKED_AT_ONCE = 20
SERVERS_ASKED_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class BadPdu:
    """A PDU that must be dropped, and why. Its id is None when it is not even that of an event."""

    event_id: EventId | None
    reason: str


async def check_pdus(
    services: Services, pdus: Sequence[object], room_version: RoomVersion
) -> list[Event | None]:
    """Return for each PDU its event, redacted if its hash is wrong; None if it must be dropped.

    Cost: about 100 µs each, mostly a signature to verify; other work goes on in between.
    """
    examined = await examine_pdus(services, pdus, room_version)
    return [found if isinstance(found, Event) else None for found in examined]


async def examine_pdus(
    services: Services, pdus: Sequence[object], room_version: RoomVersion
) -> list[Event | BadPdu]:
    """Return the same, with the reasons."""
    examined: list[Event | BadPdu] = []
    for number, pdu in enumerate(pdus, 1):
        examined.append(_read(pdu, room_version))
        if number % CHECKED_AT_ONCE == 0:
            await give_way()
    await _fetch_keys(services, [found for found in examined if isinstance(found, Event)])
    for number, found in enumerate(examined):
        if isinstance(found, Event):
            examined[number] = await _prove(services, found)
            if number % CHECKED_AT_ONCE == 0:
                await give_way()
    return examined


def _read(pdu: object, room_version: RoomVersion) -> Event | BadPdu:
    """1. Is a valid event, otherwise it is dropped."""
    if not isinstance(pdu, dict):
        return BadPdu(None, "not a JSON object")
    if "unsigned" in pdu:  # Nobody has signed it; what we show there is our own.
        pdu = {key: value for key, value in pdu.items() if key != "unsigned"}
    try:
        check_event_format(pdu, room_version)
    except EventFormatError as error:
        return BadPdu(_id_if_any(pdu, room_version), f"not a valid event: {error}")
    event = Event.from_pdu(pdu, room_version)
    # They are looked up as text, of which PostgreSQL has none with a NUL.
    texts = (event.type, event.state_key or "", *event.prev_event_ids, *event.auth_event_ids)
    if any("\0" in text for text in texts):
        return BadPdu(event.event_id, "not a valid event: there is a NUL in an identifier")
    return event


def _id_if_any(pdu: dict[str, object], room_version: RoomVersion) -> EventId | None:
    """Return the id under which the sender of a faulty event will look for our answer."""
    try:
        event_id = Event.from_pdu(pdu, room_version).event_id
    except ValueError:
        return None
    return event_id if event_id and "\0" not in event_id else None


async def _prove(services: Services, event: Event) -> Event | BadPdu:
    """2. Passes signature checks, else is dropped. 3. Passes hash checks, else is redacted."""
    for server_name in required_signers(event):
        key_ids = signing_key_ids(event.pdu, server_name)
        keys = await verify_keys(services, server_name, key_ids, _signed_ms(event))
        try:
            verify_event_signature(event, server_name, keys)
        except SignatureError as error:
            return BadPdu(event.event_id, str(error))
    if not has_right_content_hash(event.pdu, event.room_version):
        pdu = redact(event.pdu, event.room_version)
        return Event.from_pdu(pdu, event.room_version, event.event_id)
    return event


def _signed_ms(event: Event) -> int:
    """Return the moment at which the signing keys must have been valid.

    Spec: rooms/v5#signing-key-validity-period
    """
    return event.origin_server_ts if event.room_version.enforces_key_validity else 0


async def _fetch_keys(services: Services, events: Sequence[Event]) -> None:
    """Ask for the keys of all signers side by side: then no event waits for another's server."""
    needs: dict[ServerName, tuple[set[str], int]] = {}
    for event in events:
        for server_name in required_signers(event):
            key_ids, at_ms = needs.get(server_name, (set(), 0))
            key_ids.update(signing_key_ids(event.pdu, server_name))
            needs[server_name] = key_ids, max(at_ms, _signed_ms(event))
    if len(needs) < 2:  # One server alone is asked for its events' sake.
        return
    turns = asyncio.Semaphore(SERVERS_ASKED_AT_ONCE)

    async def fetch(server_name: ServerName) -> None:
        async with turns:
            key_ids, at_ms = needs[server_name]
            await verify_keys(services, server_name, sorted(key_ids), at_ms)

    await asyncio.gather(*map(fetch, needs))
