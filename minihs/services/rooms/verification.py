"""PDUs as they came: format, signatures, hashes. THE ONLY WAY from foreign JSON to an event.

Whatever the path on which a PDU reached us (a transaction, the answer to /send_join, /backfill,
/event, an invite), it passes here before anything looks at it. A PDU that is not well formed or
lacks a signature is dropped. One with a wrong content hash is used in its redacted form, which the
signature covers. `unsigned` is not covered by anything, and goes.

Which auth events and which state allow the event is for the caller to ask.

Spec: server-server-api#checks-performed-on-receipt-of-a-pdu,
server-server-api#validating-hashes-and-signatures-on-received-events
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.base.tasks import give_way
from minihs.protocol.canonical_json import CanonicalJsonError
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
    from collections.abc import Mapping, Sequence

    from minihs.protocol.identifiers import EventId, ServerName
    from minihs.protocol.room_versions import RoomVersion
    from minihs.services.context import Services
    from minihs.storage.event_store import StoredEvent

logger = logging.getLogger(__name__)

EVENTS_AT_ONCE = 20  # Between two looks at other work.
SERVERS_AT_ONCE = 50


class BadPduError(ValueError):
    """A PDU that must be dropped: it is malformed, or not signed by whom it must be."""


async def verify_pdu(services: Services, pdu: object, room_version: RoomVersion) -> Event:
    """Return the event that a PDU is.

    Raises:
        BadPduError: it is none, or is not signed.

    Spec: server-server-api#checks-performed-on-receipt-of-a-pdu
    """
    event = read_pdu(pdu, room_version)
    await _verify_signatures(services, event, {})
    return _with_right_content(event)


async def verify_pdus(
    services: Services, pdus: Sequence[object], room_version: RoomVersion
) -> list[Event | None]:
    """Return the event that each PDU is; None for those that must be dropped.

    Keys of many servers are fetched at the same time, and other work goes on in between.
    """
    examined = await examine_pdus(services, pdus, room_version)
    for found in examined:
        if isinstance(found, BadPdu):
            logger.info("dropped %s: %s", found.event_id or "a PDU", found.reason)
    return [found if isinstance(found, Event) else None for found in examined]


@dataclass(frozen=True, slots=True)
class BadPdu:
    """A PDU that must be dropped, and why. Its id is None when it is not even that of an event."""

    event_id: EventId | None
    reason: str


async def examine_pdus(
    services: Services, pdus: Sequence[object], room_version: RoomVersion
) -> list[Event | BadPdu]:
    """Return the event that each PDU is, or why it must be dropped; see `verify_pdus`."""
    examined: list[Event | BadPdu] = []
    for count, pdu in enumerate(pdus, 1):
        try:
            examined.append(read_pdu(pdu, room_version))
        except BadPduError as error:
            examined.append(BadPdu(_id_if_any(pdu, room_version), f"not a valid event: {error}"))
        if count % EVENTS_AT_ONCE == 0:
            await give_way()
    known: _KnownKeys = {}
    await _fetch_keys(services, [found for found in examined if isinstance(found, Event)], known)
    for index, found in enumerate(examined):
        if not isinstance(found, Event):
            continue
        try:
            await _verify_signatures(services, found, known)
            examined[index] = _with_right_content(found)
        except BadPduError as error:
            examined[index] = BadPdu(found.event_id, str(error))
        if index % EVENTS_AT_ONCE == EVENTS_AT_ONCE - 1:
            await give_way()
    return examined


def _id_if_any(pdu: object, room_version: RoomVersion) -> EventId | None:
    """Return the id under which the sender of a faulty event will look for our answer."""
    try:
        event_id = Event.from_pdu(pdu, room_version).event_id if isinstance(pdu, dict) else None
    except ValueError:
        return None
    return event_id if event_id and "\0" not in event_id else None


def read_pdu(pdu: object, room_version: RoomVersion) -> Event:
    """Return a well-formed PDU as an event, without `unsigned`; its signatures are not looked at.

    Raises:
        BadPduError: it is not well formed.

    Spec: server-server-api#checks-performed-on-receipt-of-a-pdu ("is a valid event")
    """
    if not isinstance(pdu, dict):
        raise BadPduError("not a JSON object")
    bare = {key: value for key, value in pdu.items() if key != "unsigned"}
    try:
        check_event_format(bare, room_version)
        event = Event.from_pdu(bare, room_version)
    except (EventFormatError, CanonicalJsonError) as error:
        raise BadPduError(str(error)) from error
    # These are looked up as PostgreSQL's text, which has no NUL.
    texts = (event.type, event.state_key or "", *event.prev_event_ids, *event.auth_event_ids)
    if any("\0" in text for text in texts):
        raise BadPduError("there is a NUL in an identifier")
    return event


async def is_signed_by(services: Services, event: Event, server_name: ServerName) -> bool:
    """Return whether a server signed an event with a key that was valid then."""
    try:
        await _verify_signature(services, event, server_name, {})
    except BadPduError:
        return False
    return True


# What has been found out in one batch: server and key ids -> at which moment, and the keys.
_KnownKeys = dict[tuple[str, tuple[str, ...]], tuple[int, "Mapping[str, bytes]"]]


async def _fetch_keys(services: Services, events: Sequence[Event], known: _KnownKeys) -> None:
    """Look up the keys that the events were signed with, of many servers at once."""
    newest: dict[tuple[ServerName, tuple[str, ...]], int] = {}
    for event in events:
        for server_name in required_signers(event):
            key = server_name, tuple(signing_key_ids(event.pdu, server_name))
            newest[key] = max(newest.get(key, 0), _signed_at_ms(event))
    turn = asyncio.Semaphore(SERVERS_AT_ONCE)

    async def fetch(server_name: ServerName, key_ids: tuple[str, ...], at_ms: int) -> None:
        async with turn:
            keys = await verify_keys(services, server_name, key_ids, at_ms)
        known[server_name, key_ids] = at_ms, keys

    await asyncio.gather(*(fetch(*key, at_ms) for key, at_ms in newest.items()))


async def _verify_signatures(services: Services, event: Event, known: _KnownKeys) -> None:
    for server_name in required_signers(event):
        await _verify_signature(services, event, server_name, known)


async def _verify_signature(
    services: Services, event: Event, server_name: ServerName, known: _KnownKeys
) -> None:
    key_ids = tuple(signing_key_ids(event.pdu, server_name))
    at_ms = _signed_at_ms(event)
    tried_ms, keys = known.get((server_name, key_ids), (-1, {}))
    # Keys that were valid later were valid then; what was in vain then would be in vain later.
    is_settled = at_ms == tried_ms or (len(keys) == len(key_ids)) == (at_ms <= tried_ms)
    if tried_ms < 0 or not is_settled:
        keys = await verify_keys(services, server_name, key_ids, at_ms)
        known[server_name, key_ids] = at_ms, keys
    try:
        verify_event_signature(event, server_name, keys)
    except (SignatureError, CanonicalJsonError) as error:
        raise BadPduError(str(error)) from error


def _signed_at_ms(event: Event) -> int:
    """Return when the keys must have been valid. Spec: rooms/v5#signing-key-validity-period."""
    return event.origin_server_ts if event.room_version.enforces_key_validity else 0


def _with_right_content(event: Event) -> Event:
    """Return the event, or its redacted form if its content is not what was hashed."""
    if has_right_content_hash(event.pdu, event.room_version):
        return event
    return Event.from_pdu(redact(event.pdu, event.room_version), event.room_version, event.event_id)


def whole_of(event: Event, stored: StoredEvent | None) -> Event:
    """Return an event that came again, with what was hashed of it.

    A server may give a copy that it redacted, as its history visibility asks: that takes nothing
    away from what is stored.
    """
    if stored is None or has_right_content_hash(event.pdu, event.room_version):
        return event
    return stored.event
