"""Events as clients see them: PDU -> JSON bytes, with what this server adds in `unsigned`.

What is the same for every reader is made once and kept with the event: `prepare` loads what that
takes (the redaction, the state event that was replaced) for many events with one statement each.
What depends on the reader (age, transaction id, membership) is put in by `client_event`, without
parsing anything.

Spec: client-server-api#room-event-format
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import orjson

from minihs.protocol import client_format, unstable
from minihs.protocol.events import Event
from minihs.protocol.redaction import redact
from minihs.protocol.stickiness import sticky_duration_ms
from minihs.storage import events as event_reads

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from minihs.protocol.identifiers import EventId, UserId
    from minihs.services.context import Services
    from minihs.storage.event_store import StoredEvent

_TRANSACTION_ID_NAMES = [b"transaction_id"]
_DELAY_ID_NAMES = [name.encode() for name in unstable.DELAY_ID.written]
_TTL_NAMES = [name.encode() for name in unstable.STICKY_TTL.written]
_MEMBERSHIP_NAMES = unstable.MEMBERSHIP_ON_EVENT.written


class Reader(Protocol):
    """Who reads, by which device."""

    @property
    def user_id(self) -> UserId: ...  # noqa: D102
    @property
    def device_nid(self) -> int: ...  # noqa: D102


async def prepare(services: Services, events: Iterable[StoredEvent]) -> None:
    """Make ready whatever `client_event` needs for these events."""
    raw = [
        stored
        for stored in events
        if stored.client_head is None
        or (stored.client_quotes and services.events.is_any_redacted(stored.client_quotes))
    ]
    if not raw:
        return
    replaced = await _replaced_events(services, raw)
    wanted: set[EventId] = {stored.redacted_by for stored in raw if stored.redacted_by is not None}
    wanted.update(replaced.values())
    known = await services.events.get_many(wanted) if wanted else {}
    for stored in raw:
        event, unsigned, quoted = stored.event, [], []
        redaction = known.get(stored.redacted_by) if stored.redacted_by is not None else None
        if redaction is not None:
            because = client_format.client_event(as_shown(redaction), with_room_id=True)
            unsigned.append(client_format.unsigned_part("redacted_because", because))
            quoted.append(redaction)
        old = known.get(replaced[event.event_id]) if event.event_id in replaced else None
        if old is not None:
            unsigned.append(client_format.unsigned_part("replaces_state", old.event_id))
            content = as_shown(old).content
            unsigned.append(client_format.unsigned_part("prev_content", content))
            unsigned.append(client_format.unsigned_part("prev_sender", old.event.sender))
            quoted.append(old)
        head = client_format.client_event_head(as_shown(stored))
        stored.client_unsigned = client_format.join_parts(unsigned)
        stored.client_quotes = tuple(q.event_id for q in quoted if q.redacted_by is None)
        stored.client_head = head


async def _replaced_events(
    services: Services, events: Sequence[StoredEvent]
) -> dict[EventId, EventId]:
    """Return, for state events, the event that held their key before.

    Where the state before an event is not in memory, the last event of the key that came before it
    is taken: every member event of a large room has a state of its own.
    """
    found: dict[EventId, EventId] = {}
    others: list[int] = []
    for stored in events:
        if stored.event.is_state and stored.state_before is not None:
            state = services.states.cached(stored.state_before)
            if state is None:
                others.append(stored.event_nid)
            elif (old := state.entries.get(stored.event.key)) is not None:
                found[stored.event_id] = old
    if others:
        found |= await event_reads.list_replaced(services.db, others)
    return found


def as_shown(stored: StoredEvent) -> Event:
    """Return the event, redacted if it is to be shown redacted."""
    if stored.redacted_by is None:
        return stored.event
    event = stored.event
    return Event.from_pdu(redact(event.pdu, event.room_version), event.room_version, event.event_id)


def client_event(
    stored: StoredEvent,
    now_ms: int,
    *,
    with_room_id: bool,
    reader: Reader | None = None,
    membership: str | None = None,
) -> bytes:
    """Return the JSON of an event that has been prepared.

    The reader's device is told its own transaction ids, the reader their own delay ids; None:
    nobody's. `membership` is the reader's when the event was sent (MSC4115).
    """
    head = stored.client_head
    if head is None:
        raise LookupError("the event has not been prepared")
    if with_room_id:
        head = client_format.add_room_id(head, stored.event.room_id)
    unsigned = b'"age":%d' % (now_ms - stored.event.origin_server_ts)
    if stored.client_unsigned:
        unsigned = b"%b,%b" % (unsigned, stored.client_unsigned)
    if membership is not None:
        for name in _MEMBERSHIP_NAMES:
            unsigned = b'%b,"%b":"%b"' % (unsigned, name.encode(), membership.encode())
    if left_ms := time_left_ms(stored, now_ms):
        for key in _TTL_NAMES:
            unsigned = b'%b,"%b":%d' % (unsigned, key, left_ms)
    if stored.txn_id is not None and reader is not None and _is_told(stored, reader):
        given = orjson.dumps(stored.txn_id)
        for key in _DELAY_ID_NAMES if stored.device_nid is None else _TRANSACTION_ID_NAMES:
            unsigned = b'%b,"%b":%b' % (unsigned, key, given)
    return client_format.finish(head, unsigned)


def _is_told(stored: StoredEvent, reader: Reader) -> bool:
    """Return whether a reader is told by which request an event was sent.

    The device that sent it, or all devices of the sender of a delayed event, which no device sent.
    """
    if stored.device_nid is None:
        return stored.event.sender == reader.user_id
    return stored.device_nid == reader.device_nid


def time_left_ms(stored: StoredEvent, now_ms: int) -> int:
    """Return how long an event stays sticky; 0: it does not. MSC4354#sync-api-changes."""
    if stored.sticky_until_ms is None or stored.redacted_by is not None:
        return 0
    left_ms = max(stored.sticky_until_ms - now_ms, 0)
    if now_ms < stored.event.origin_server_ts:  # Our clock was put back, or its sender's is ahead.
        left_ms = min(left_ms, sticky_duration_ms(stored.event.pdu) or 0)
    return left_ms


async def shown(
    services: Services,
    events: Sequence[StoredEvent],
    *,
    reader: Reader | None = None,
    memberships: Sequence[str] | None = None,
) -> list[orjson.Fragment]:
    """Return events ready to be put into an answer; `memberships` are the reader's, aligned."""
    await prepare(services, events)
    now_ms = services.clock.now_ms()
    return [
        orjson.Fragment(
            client_event(
                stored,
                now_ms,
                with_room_id=True,
                reader=reader,
                membership=memberships[n] if memberships is not None else None,
            )
        )
        for n, stored in enumerate(events)
    ]
