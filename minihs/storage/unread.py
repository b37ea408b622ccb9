"""Unread counts, from running counts and the rows of those for whom an event counted otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.storage.sql import statement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minihs.storage.database import Queries


@dataclass(frozen=True, slots=True)
class UnreadCounts:
    """Notifications and highlights: of the main timeline, and of each thread that has any."""

    notifications: int
    highlights: int
    threads: Mapping[str, tuple[int, int]]


# Primary keys of memberships and event_pushes; index events_thread, which is empty for most rooms.
LIST_UNREAD = statement(
    "unread.list_unread",
    """
    SELECT
      m.user_id, r.room_id, r.main_count - m.read_main_count + p.delta AS notifications,
      p.highlights, t.threads
    FROM unnest($1::text[], $2::text[]) AS asked (user_id, room_id)
    JOIN rooms r ON r.room_id = asked.room_id
    JOIN memberships m ON m.room_nid = r.room_nid AND m.user_id = asked.user_id
    CROSS JOIN LATERAL (
      SELECT
        coalesce(sum(notify_delta), 0) AS delta, count(*) FILTER (WHERE highlight) AS highlights
      FROM event_pushes
      WHERE
        user_id = m.user_id AND room_nid = m.room_nid AND position > m.read_main_position
        AND thread_root = ''
    ) p
    CROSS JOIN LATERAL (
      SELECT array_agg(ARRAY[thread_root, notifications::text, highlights::text]) AS threads
      FROM (
        SELECT
          e.thread_root,
          count(*) FILTER (WHERE e.notifies) + coalesce(sum(q.notify_delta), 0) AS notifications,
          count(*) FILTER (WHERE q.highlight) AS highlights
        FROM events e
        LEFT JOIN event_pushes q
          ON q.user_id = m.user_id AND q.room_nid = e.room_nid AND q.position = e.position
        LEFT JOIN thread_reads d
          ON d.room_nid = e.room_nid AND d.user_id = m.user_id AND d.thread_root = e.thread_root
        WHERE
          e.room_nid = m.room_nid AND e.thread_root IS NOT NULL
          AND e.position > greatest(m.read_position, d.position)
        GROUP BY e.thread_root
      ) counted
      WHERE notifications > 0 OR highlights > 0
    ) t
    """,
)


async def list_unread(
    queries: Queries, asked: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], UnreadCounts]:
    """Return the counts of each (user, room)."""
    rows = await queries.fetch(LIST_UNREAD, [a[0] for a in asked], [a[1] for a in asked])
    return {
        (row[0], row[1]): UnreadCounts(
            max(int(row[2]), 0),
            row[3],
            {root: (int(count), int(loud)) for root, count, loud in row[4] or ()},
        )
        for row in rows
    }
