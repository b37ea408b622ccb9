"""Reading receipts and read markers. They are written through the stream (`stream_rows`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.storage.sql import statement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minihs.protocol.identifiers import EventId
    from minihs.storage.database import Queries

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
