"""What a transaction to an application service says, as JSON.

Spec: application-service-api#pushing-events
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import orjson

from minihs.base.errors import NotFound
from minihs.protocol.canonical_json import decode_lenient, encode_any, encode_lenient
from minihs.protocol.unstable import (
    APPSERVICE_EPHEMERAL,
    APPSERVICE_TO_DEVICE,
    DELAYED_EVENT_OUTCOMES,
)
from minihs.services.ephemeral.presence import content_of
from minihs.services.ephemeral.receipts import receipt_content
from minihs.services.rooms import delayed_events
from minihs.services.rooms.client_events import client_event, prepare
from minihs.services.rooms.stripped_state import load_stripped
from minihs.storage import appservices
from minihs.storage.stream_rows import PresenceWrite, ReceiptWrite

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from minihs.services.appservices.interest import Ephemeral, Found, ToDevice
    from minihs.services.appservices.registration import Registration
    from minihs.services.context import Services
    from minihs.storage.event_store import StoredEvent
    from minihs.storage.stream_rows import DelayedEventOutcome

MEMBER = "m.room.member"
OUTSIDE = {"invite": "invite_room_state", "knock": "knock_room_state"}
QUOTES = ("prev_content", "redacted_because", *OUTSIDE.values())


async def body_of(services: Services, service: Registration, found: Found) -> bytes:
    """Return the body of a transaction."""
    await prepare(services, found.events)
    now_ms = services.clock.now_ms()
    shown = [
        await _with_stripped_state(
            services, service, stored, client_event(stored, now_ms, with_room_id=True)
        )
        for stored in found.events
    ]
    parts = [b'"events":[%b]' % b",".join(shown)]
    if found.ephemeral:
        told = orjson.dumps(ephemeral_events(services, found.ephemeral))
        parts += [b'"%b":%b' % (name.encode(), told) for name in APPSERVICE_EPHEMERAL.written]
    if messages := await _to_device(services, found.to_device):
        parts += [b'"%b":[%b]' % (n.encode(), messages) for n in APPSERVICE_TO_DEVICE.written]
    if outcomes := await _outcomes(services, found.outcomes):
        told = orjson.dumps(outcomes)
        parts += [b'"%b":%b' % (n.encode(), told) for n in DELAYED_EVENT_OUTCOMES.written]
    return b"{%b}" % b",".join(parts)


async def without_redacted(services: Services, service: Registration, body: str) -> str:
    """Return the body of a transaction that was not taken, with nothing that was redacted since.

    What is neither redacted nor quotes what is, is sent as it was.
    Spec: application-service-api#pushing-events; MSC4293#proposal
    """
    content = decode_lenient(body)
    told = content.get("events") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(told, list):
        return body
    stored = await services.events.get_many([event["event_id"] for event in told])
    await prepare(services, list(stored.values()))
    now_ms, changed = services.clock.now_ms(), False
    for number, event in enumerate(told):
        one = stored.get(event["event_id"])
        if one is None:
            continue
        shown = client_event(one, now_ms, with_room_id=True)
        now = decode_lenient(await _with_stripped_state(services, service, one, shown))
        if isinstance(now, dict) and _says_less(now, event):
            told[number], changed = now, True
    return encode_lenient(content).decode() if changed else body


def _says_less(now: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """Return whether an event, or what it quotes, was redacted since it was shown."""
    quoted, earlier = now["unsigned"], before["unsigned"]
    return now["content"] != before["content"] or any(
        name in quoted and quoted[name] != earlier.get(name) for name in QUOTES
    )


async def _outcomes(
    services: Services, outcomes: Iterable[DelayedEventOutcome]
) -> list[dict[str, object]]:
    """Return what became of delayed events, as far as it is remembered.

    MSC4140#syncing-failed-delayed-events
    """
    told = []
    for outcome in outcomes:
        with contextlib.suppress(NotFound):
            told.append(
                await delayed_events.get_delayed_event(services, outcome.user_id, outcome.delay_id)
            )
    return told


async def _to_device(services: Services, places: Sequence[ToDevice]) -> bytes:
    """Return messages to devices with whom they are for, as the elements of a list."""
    if not places:
        return b""
    messages = await appservices.list_to_device(
        services.db, [(one.position, one.device_nid) for one in places]
    )
    return b",".join(
        b'{"to_user_id":%b,"to_device_id":%b,%b'
        % (orjson.dumps(user_id), orjson.dumps(device_id), json.encode()[1:])
        for user_id, device_id, json in messages
    )


async def _with_stripped_state(
    services: Services, service: Registration, stored: StoredEvent, shown: bytes
) -> bytes:
    """Add what those outside are shown of a room to an invite or knock of the service's users.

    Spec: client-server-api#mroommember
    """
    event = stored.event
    name = OUTSIDE.get(str(event.content.get("membership"))) if event.type == MEMBER else None
    if name is None or event.state_key is None:
        return shown
    if service not in services.appservices.of_user(event.state_key):
        return shown
    states = await load_stripped(services, event.state_key, [event.room_id])
    stripped = states.get(event.room_id)
    if stripped is None:
        return shown
    # The event ends with its `unsigned`, which has at least an age: both braces are put back.
    return b'%b,"%b":%b}}' % (shown[:-2], name.encode(), encode_any(stripped))


def ephemeral_events(services: Services, items: Iterable[Ephemeral]) -> list[dict[str, object]]:
    """Return receipts, typing notifications and presence as a service is told them.

    Who is long done typing when the service is told does not type.
    Spec: application-service-api#pushing-ephemeral-data
    """
    receipts: dict[str, list[tuple[str, str, str, str, int]]] = {}
    typing: dict[str, list[str]] = {}
    present: dict[str, dict[str, object]] = {}
    now_ms = services.clock.now_ms()
    for item in items:
        if isinstance(item, ReceiptWrite):
            receipts.setdefault(item.room_id, []).append(
                (item.event_id, item.receipt_type, item.user_id, item.thread_id, item.ts_ms)
            )
        elif isinstance(item, PresenceWrite):
            present[item.user_id] = content_of(services, item)
        else:
            typing[item.room_id] = [
                user_id
                for user_id, until_ms in zip(item.user_ids, item.expires_ms, strict=True)
                if until_ms > now_ms
            ]
    told: list[dict[str, object]] = [
        {"type": "m.receipt", "room_id": room_id, "content": receipt_content(given)}
        for room_id, given in receipts.items()
    ]
    told += [
        {"type": "m.typing", "room_id": room_id, "content": {"user_ids": user_ids}}
        for room_id, user_ids in typing.items()
    ]
    told += [
        {"type": "m.presence", "sender": user_id, "content": content}
        for user_id, content in present.items()
    ]
    return told
