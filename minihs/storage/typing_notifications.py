"""Reading who types where. It is written through the stream (`stream_rows.TypingWrite`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.storage.sql import statement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minihs.storage.database import Queries

# Unique index rooms_room_id_key; primary keys of typing and memberships.
FETCH = statement(
    "typing_notifications.fetch",
    """
    SELECT m.membership = 'join', t.user_ids, t.expires_ms, t.position
    FROM rooms r
    LEFT JOIN memberships m ON m.room_nid = r.room_nid AND m.user_id = $2
    LEFT JOIN typing t ON t.room_nid = r.room_nid
    WHERE r.room_id = $1
    """,
)

# A scan: one small row for each room in which somebody ever typed.
LIST_OVERDUE = statement(
    "typing_notifications.list_overdue",
    """
    SELECT r.room_id
    FROM typing t
    JOIN rooms r ON r.room_nid = t.room_nid
    WHERE EXISTS (
      SELECT FROM unnest(t.expires_ms) AS until_ms WHERE until_ms <= $1 OR until_ms > $2
    )
    LIMIT 1000
    """,
)


async def fetch_typing(
    queries: Queries, room_id: str, user_id: str
) -> tuple[bool, dict[str, int], int]:
    """Return whether a user is joined to a room, who types there until when, and its position.

    The position is the one at which the list was written; 0: nobody has ever typed there.
    """
    row = await queries.fetchrow(FETCH, room_id, user_id)
    if row is None:
        return False, {}, 0
    return row[0] is True, dict(zip(row[1] or (), row[2] or (), strict=True)), row[3] or 0


async def list_overdue(queries: Queries, before_ms: int, latest_ms: int) -> Sequence[str]:
    """Return rooms in which somebody's typing has run out by `before_ms`, a thousand at most.

    None that holds lasts until after `latest_ms`.
    """
    return [row[0] for row in await queries.fetch(LIST_OVERDUE, before_ms, latest_ms)]
