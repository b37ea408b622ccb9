"""Read receipts and the fully read marker: how far a user has read.

A marker names an event and means everything up to it, in the room's order. It only ever moves
forward: what names an earlier event is accepted and changes nothing. Notification counts follow
from what is written here (`stream_rows`).

Spec: client-server-api#receipts, client-server-api#fully-read-markers
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.base.errors import Forbidden, InvalidParam, NotFound
from minihs.protocol import canonical_json
from minihs.protocol.identifiers import EventId
from minihs.storage import receipts as receipt_reads
from minihs.storage.event_store import ACCEPTED, StoredEvent
from minihs.storage.stream_rows import AccountDataWrite, ReceiptWrite

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from minihs.protocol.identifiers import RoomId, UserId
    from minihs.services.context import Services
    from minihs.storage.stream_rows import StreamRow

FULLY_READ = "m.fully_read"
RECEIPT_TYPES = ("m.read", "m.read.private")
MARKER_TYPES = (*RECEIPT_TYPES, FULLY_READ)
MAIN, UNTHREADED = "main", ""
Receipt = tuple[str, str, str, str, int]
"""Event, type, user, thread (empty: none) and time."""

RELATIONS_MAX = 3  # Spec: client-server-api#threaded-read-receipts


async def mark_read(
    services: Services,
    user_id: UserId,
    room_id: RoomId,
    markers: Mapping[str, EventId],
    *,
    thread_id: str = UNTHREADED,
) -> None:
    """Move a user's markers (by type) forward to events of a room; durable on return.

    `thread_id` is of the receipts among them.

    Raises:
        Forbidden: the user is not in the room.
        NotFound: an event is not in the room.
        InvalidParam: an event does not belong to the thread.

    Spec: client-server-api#post_matrixclientv3roomsroomidreceiptreceipttypeeventid
    """
    known = await receipt_reads.load_markers(services.db, room_id, user_id, thread_id)
    if not known.joined:
        raise Forbidden("You are not in this room.")
    old = dict(known.receipts)
    if known.fully_read_json is not None:
        match canonical_json.decode(known.fully_read_json):
            case {"event_id": str(fully_read)}:
                old[FULLY_READ] = EventId(fully_read)
            case _:
                pass
    wanted = {*markers.values(), *(old[kind] for kind in markers if kind in old)}
    events = await services.events.get_many(wanted)
    rows: list[StreamRow] = []
    now_ms = services.clock.now_ms()
    for kind, event_id in markers.items():
        stored = events.get(event_id)
        if stored is None or stored.event.room_id != room_id or not _is_in_history(stored):
            raise NotFound(f"Event {event_id} is not in this room.")
        if thread_id and not await _is_in_thread(services, stored, thread_id):
            raise InvalidParam(f"Event {event_id} is not in thread {thread_id}.")
        if kind in old and not _is_ahead(stored, events.get(old[kind])):
            continue
        if kind == FULLY_READ:
            content = canonical_json.encode({"event_id": event_id}).decode()
            rows.append(AccountDataWrite(user_id, room_id, FULLY_READ, content))
        else:
            rows.append(ReceiptWrite(room_id, user_id, kind, thread_id, event_id, now_ms))
    services.presence.note_active(services, user_id)
    if rows:
        await services.committer.commit_rows(rows)


def _is_in_history(stored: StoredEvent) -> bool:
    return stored.status == ACCEPTED and stored.order is not None


def _is_ahead(new: StoredEvent, old: StoredEvent | None) -> bool:
    return old is None or old.order is None or (new.order or old.order) > old.order


async def _is_in_thread(services: Services, stored: StoredEvent, thread_id: str) -> bool:
    """Return whether a threaded receipt may name an event.

    A thread has its root, the events in it, and what is related to either; the main timeline has
    what is in no thread.

    Spec: client-server-api#threaded-read-receipts
    """
    at: StoredEvent | None = stored
    for _ in range(RELATIONS_MAX + 1):
        if at is None:
            break
        if at.thread_root is not None:
            return at.thread_root == thread_id
        if at.event_id == thread_id:
            return True
        related = _related_to(at)
        at = await services.events.get(related) if related is not None else None
    return thread_id == MAIN


def _related_to(stored: StoredEvent) -> EventId | None:
    match stored.event.content.get("m.relates_to"):
        case {"rel_type": str(), "event_id": str(event_id)}:
            return EventId(event_id)
        case _:
            return None


def receipt_content(receipts: Iterable[Receipt]) -> dict[str, dict[str, dict[str, object]]]:
    """Return the content of an `m.receipt` event: event -> type -> user -> receipt.

    Where a user has several receipts of a type on one event, the unthreaded one is told.
    Spec: client-server-api#receipts
    """
    content: dict[str, dict[str, dict[str, object]]] = {}
    for event_id, receipt_type, user_id, thread_id, ts_ms in receipts:
        users = content.setdefault(event_id, {}).setdefault(receipt_type, {})
        if not thread_id:
            users[user_id] = {"ts": ts_ms}
        elif user_id not in users:
            users[user_id] = {"ts": ts_ms, "thread_id": thread_id}
    return content
