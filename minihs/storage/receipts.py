"""Reading receipts and read markers. They are written through the stream (`stream_rows`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.storage.sql import statement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minihs.protocol.identifiers import EventId
    from minihs.storage.database import Queries
    from minihs.storage.stream_rows import ReceiptWrite

# Unique index rooms_room_id_key; primary keys of memberships, account_data and receipts.
LIST_MARKERS = statement(
    "receipts.list_markers",
    """
    SELECT m.membership = 'join', a.json, t.receipt_type, t.event_id
    FROM rooms r
    LEFT JOIN memberships m ON m.room_nid = r.room_nid AND m.user_id = $2
    LEFT JOIN account_data a
      ON a.user_id = $2 AND a.room_id = r.room_id AND a.type = 'm.fully_read'
    LEFT JOIN receipts t
      ON t.room_nid = r.room_nid AND t.user_id = $2 AND t.thread_id = $3
    WHERE r.room_id = $1
    """,
)

# Unique index rooms_room_id_key; primary keys of memberships and receipts.
LIST_JOINED_READERS = statement(
    "receipts.list_joined_readers",
    """
    SELECT asked.room_id, asked.user_id, asked.thread_id, t.event_id
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])
      AS asked (room_id, user_id, receipt_type, thread_id)
    JOIN rooms r ON r.room_id = asked.room_id
    JOIN memberships m ON m.room_nid = r.room_nid AND m.user_id = asked.user_id
    LEFT JOIN receipts t
      ON t.room_nid = r.room_nid AND t.user_id = asked.user_id
      AND t.receipt_type = asked.receipt_type AND t.thread_id = asked.thread_id
    WHERE m.membership = 'join'
    """,
)


@dataclass(frozen=True, slots=True)
class Markers:
    """How far one reader has got: event ids by receipt type, and the fully read marker, as JSON."""

    joined: bool
    receipts: Mapping[str, EventId]
    fully_read_json: str | None


async def load_markers(queries: Queries, room_id: str, user_id: str, thread_id: str) -> Markers:
    """Return a user's markers in a room; receipts only of one thread (empty: unthreaded ones)."""
    rows = await queries.fetch(LIST_MARKERS, room_id, user_id, thread_id)
    if not rows:
        return Markers(joined=False, receipts={}, fully_read_json=None)
    receipts = {row[2]: row[3] for row in rows if row[2] is not None}
    return Markers(rows[0][0] is True, receipts, rows[0][1])


async def list_joined_readers(
    queries: Queries, receipts: Sequence[ReceiptWrite]
) -> dict[tuple[str, str, str], EventId | None]:
    """Return, for new receipts of readers who are in the room, the event of the old one.

    By room, user and thread.
    """
    rows = await queries.fetch(
        LIST_JOINED_READERS,
        [r.room_id for r in receipts],
        [r.user_id for r in receipts],
        [r.receipt_type for r in receipts],
        [r.thread_id for r in receipts],
    )
    return {(row[0], row[1], row[2]): row[3] for row in rows}
