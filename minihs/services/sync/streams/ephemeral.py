"""Receipts and typing notifications of rooms.

Spec: client-server-api#receipts, client-server-api#typing-notifications
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.services.ephemeral.receipts import Receipt, receipt_content
from minihs.storage import timelines
from minihs.storage.stream_rows import ReceiptWrite, TypingWrite

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from minihs.services.context import Services
    from minihs.services.sync.spans import Span, SyncRequest


def read_window(services: Services, request: SyncRequest, span: Span) -> list[dict[str, object]]:
    """Return the ephemeral events of a span that is in memory."""
    receipts: list[Receipt] = []
    typing: list[str] | None = None
    for position, item in reversed(services.follower.room_items(span.room_id)):
        if position <= span.after:
            break
        if position > span.upto:
            continue
        if isinstance(item, ReceiptWrite):
            if item.receipt_type == "m.read" or item.user_id == request.user_id:
                receipts.append(
                    (item.event_id, item.receipt_type, item.user_id, item.thread_id, item.ts_ms)
                )
        elif isinstance(item, TypingWrite) and typing is None:
            typing = list(item.user_ids)
    return _events(request, span, receipts, typing)


async def read_database(
    services: Services, request: SyncRequest, spans: Sequence[Span]
) -> dict[str, list[dict[str, object]]]:
    """Return the ephemeral events of spans, by room."""
    if not spans or request.filter.room.ephemeral.matches_nothing:
        return {}
    places = [(s.room_id, 0 if s.is_new else s.after) for s in spans]
    upto = max(s.upto for s in spans)
    receipts: dict[str, list[Receipt]] = {}
    for room_id, *receipt in await timelines.list_receipts(
        services.db, places, upto, request.user_id
    ):
        receipts.setdefault(room_id, []).append(tuple(receipt))
    typing = await timelines.list_typing(services.db, places, upto)
    return {
        s.room_id: _events(request, s, receipts.get(s.room_id, ()), typing.get(s.room_id))
        for s in spans
        if s.room_id in receipts or s.room_id in typing
    }


def _events(
    request: SyncRequest, span: Span, receipts: Iterable[Receipt], typing: list[str] | None
) -> list[dict[str, object]]:
    filter_ = request.filter.room.ephemeral
    events: list[dict[str, object]] = []
    if not filter_.has_room(span.room_id):
        return events
    content = receipt_content(r for r in receipts if r[2] not in request.ignored)
    if content and filter_.has_type("m.receipt"):
        events.append({"type": "m.receipt", "content": content})
    if typing is not None and filter_.has_type("m.typing"):
        user_ids = [u for u in typing if u not in request.ignored]
        events.append({"type": "m.typing", "content": {"user_ids": user_ids}})
    return events
