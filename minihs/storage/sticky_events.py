"""Sticky events (MSC4354): which are live in which room, and the end of those that are not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.storage.sql import statement
from minihs.storage.stream_rows import StickyEvent

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from minihs.protocol.identifiers import EventId
    from minihs.storage.database import Queries


HELD_PER_SENDER_MAX = 100


@dataclass(frozen=True, slots=True)
class LiveStickyEvent:
    """A deliverable sticky event. `room_nid` serves in sync tokens."""

    room_id: str
    room_nid: int
    event_id: EventId
    sender: str
    position: int


# Index sticky_events_room: of each room the oldest ones in a range of positions.
LIST_LIVE = statement(
    "sticky_events.list_live",
    """
    SELECT r.room_id, r.room_nid, s.event_id, s.sender, s.position
    FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS asked (room_id, after, since)
    JOIN rooms r ON r.room_id = asked.room_id
    CROSS JOIN LATERAL (
      SELECT n.event_id, n.sender, n.position
      FROM sticky_events n
      WHERE
        n.room_nid = r.room_nid AND n.position > asked.after AND n.position <= $4
        AND n.until_ms > $5 AND NOT n.sender = ANY($6::text[])
        AND (n.told_from IS NULL OR n.told_from <= asked.since)
      ORDER BY n.position
      LIMIT $7
    ) s
    ORDER BY s.position
    """,
)

# Index sticky_events_room: of each room a range of positions.
LIST_LIVE_OF_SENDERS = statement(
    "sticky_events.list_live_of_senders",
    """
    SELECT r.room_id, r.room_nid, s.event_id, s.sender, s.position
    FROM unnest($1::text[], $2::bigint[]) AS asked (room_id, upto)
    JOIN rooms r ON r.room_id = asked.room_id
    JOIN sticky_events s ON s.room_nid = r.room_nid
    WHERE
      s.position > $3 AND s.position <= asked.upto AND s.until_ms > $4
      AND s.sender = ANY($5::text[]) AND s.told_from IS NULL
    ORDER BY s.position
    LIMIT $6
    """,
)

# A scan: of what is sticky, or was until lately, there is never much.
LIST_SENDERS_AMONG = statement(
    "sticky_events.list_senders_among",
    "SELECT DISTINCT sender FROM sticky_events WHERE sender = ANY($1::text[]) AND until_ms > $2",
)

# Primary key of unignored.
LIST_UNIGNORED = statement(
    "sticky_events.list_unignored",
    "SELECT sender FROM unignored WHERE user_id = $1 AND position > $2 AND position <= $3",
)

# Index sticky_events_room.
COUNT_LIVE = statement(
    "sticky_events.count_live",
    """
    SELECT count(*), coalesce(min(s.until_ms), 0)
    FROM rooms r
    JOIN sticky_events s ON s.room_nid = r.room_nid
    WHERE
      r.room_id = $1 AND s.position IS NOT NULL AND s.sender = $2 AND s.until_ms > $3
      AND s.told_from IS NULL
    """,
)


@dataclass(frozen=True, slots=True)
class HeldStickyEvent:
    """A soft-failed sticky event whose room's current state has changed since it was tried."""

    room_id: str
    event_id: EventId
    until_ms: int


# Index sticky_events_held.
LIST_HELD = statement(
    "sticky_events.list_held",
    """
    SELECT r.room_id, s.event_id, s.until_ms
    FROM sticky_events s
    JOIN rooms r ON r.room_nid = s.room_nid
    WHERE
      s.position IS NULL AND s.waits_for IS NULL AND s.until_ms > $1
      AND s.checked_state IS DISTINCT FROM r.state_id
    ORDER BY s.until_ms
    LIMIT $2
    """,
)

# Index sticky_events_waiting, from one server and room to the next: of each those that end soonest.
LIST_WAITING = statement(
    "sticky_events.list_waiting",
    """
    WITH RECURSIVE pairs AS (
      (
        SELECT waits_for, room_nid
        FROM sticky_events
        WHERE position IS NULL AND waits_for IS NOT NULL
        ORDER BY waits_for, room_nid
        LIMIT 1
      )
      UNION ALL
      SELECT n.waits_for, n.room_nid
      FROM pairs p
      CROSS JOIN LATERAL (
        SELECT s.waits_for, s.room_nid
        FROM sticky_events s
        WHERE
          s.position IS NULL AND s.waits_for IS NOT NULL
          AND (s.waits_for, s.room_nid) > (p.waits_for, p.room_nid)
        ORDER BY s.waits_for, s.room_nid
        LIMIT 1
      ) n
    )
    SELECT r.room_id, s.event_id, s.sender, s.until_ms
    FROM pairs p
    JOIN rooms r ON r.room_nid = p.room_nid
    CROSS JOIN LATERAL (
      SELECT n.event_id, n.sender, n.until_ms
      FROM sticky_events n
      WHERE
        n.position IS NULL AND n.waits_for = p.waits_for AND n.room_nid = p.room_nid
        AND n.until_ms > $1
      ORDER BY n.until_ms
      LIMIT $2
    ) s
    """,
)

# Index sticky_events_waiting.
COUNT_WAITING = statement(
    "sticky_events.count_waiting",
    """
    SELECT count(*)
    FROM (
      SELECT
      FROM sticky_events
      WHERE position IS NULL AND waits_for = $1 AND until_ms > $2
      LIMIT $3
    ) AS waiting
    """,
)

# Primary key.
MARK_CHECKED = statement(
    "sticky_events.mark_checked",
    "UPDATE sticky_events SET checked_state = $2 WHERE event_id = ANY($1::text[])",
)

# Of one sender and room only the newest are held: more would be a way to keep us busy.
INSERT_HELD = statement(
    "sticky_events.insert_held",
    """
    WITH held AS (
      INSERT INTO sticky_events (event_id, room_nid, sender, until_ms, checked_state)
      VALUES ($1, $2, $3, $4, $5)
      ON CONFLICT DO NOTHING
    )
    DELETE FROM sticky_events
    WHERE event_id IN (
      SELECT event_id
      FROM sticky_events
      WHERE room_nid = $2 AND sender = $3 AND position IS NULL AND waits_for IS NULL
      ORDER BY until_ms DESC
      OFFSET $6
    )
    """,
)

# Primary key. No state has been its own: like one that was refused at first, it comes by itself.
INSERT_OUT_OF_PLACE = statement(
    "sticky_events.insert_out_of_place",
    """
    INSERT INTO sticky_events (event_id, room_nid, sender, until_ms, waits_for, checked_state)
    VALUES ($1, $2, $3, $4, $5, -1)
    ON CONFLICT DO NOTHING
    """,
)

# Primary key of rooms.
LIST_ROOMS_BY_NID = statement(
    "sticky_events.list_rooms_by_nid",
    "SELECT room_nid, room_id FROM rooms WHERE room_nid = ANY($1::bigint[])",
)

# Index sticky_events_room.
LIST_OWN_LIVE = statement(
    "sticky_events.list_own_live",
    """
    SELECT s.event_id
    FROM rooms r
    JOIN sticky_events s ON s.room_nid = r.room_nid
    WHERE r.room_id = $1 AND substr(s.sender, strpos(s.sender, ':') + 1) = $2
      AND s.position <= $3 AND s.until_ms > $4 AND s.told_from IS NULL
    ORDER BY s.position
    """,
)

# A scan: of what is sticky, or was until lately, there is never much.
DELETE_OF_SENDER = statement(
    "sticky_events.delete_of_sender", "DELETE FROM sticky_events WHERE sender = $1"
)

# Index sticky_events_until.
DELETE_EXPIRED = statement(
    "sticky_events.delete_expired",
    """
    DELETE FROM sticky_events
    WHERE event_id IN (
      SELECT event_id FROM sticky_events WHERE until_ms <= $1 ORDER BY until_ms LIMIT $2
    )
    """,
)

# Index sticky_events_until.
BRING_FORWARD = statement(
    "sticky_events.bring_forward",
    "UPDATE sticky_events SET until_ms = least(until_ms - $2, $1) WHERE until_ms > $1",
)

# Index unignored_until.
DELETE_UNIGNORED = statement(
    "sticky_events.delete_unignored", "DELETE FROM unignored WHERE until_ms <= $1"
)


async def list_live(
    queries: Queries,
    rooms: Sequence[tuple[str, int, int]],
    upto: int,
    now_ms: int,
    *,
    ignored: Collection[str],
    limit: int,
) -> list[LiveStickyEvent]:
    """Return the sticky events of each (room, after, since), at most `limit` of a room.

    They come oldest first. Of those that have been redacted, the redactions are listed, if what
    they redact lies before `since`, so that the client may have it.
    """
    rows = await queries.fetch(
        LIST_LIVE,
        [room_id for room_id, _, _ in rooms],
        [after for _, after, _ in rooms],
        [since for _, _, since in rooms],
        upto,
        now_ms,
        list(ignored),
        limit,
    )
    return [LiveStickyEvent(*row) for row in rows]


async def list_live_of_senders(
    queries: Queries,
    rooms: Sequence[tuple[str, int]],
    after: int,
    now_ms: int,
    *,
    senders: Collection[str],
    limit: int,
) -> list[LiveStickyEvent]:
    """Return the sticky events of some senders after a position, up to that of each room."""
    rows = await queries.fetch(
        LIST_LIVE_OF_SENDERS,
        [room_id for room_id, _ in rooms],
        [upto for _, upto in rooms],
        after,
        now_ms,
        list(senders),
        limit,
    )
    return [LiveStickyEvent(*row) for row in rows]


async def list_senders_among(queries: Queries, senders: Collection[str], now_ms: int) -> list[str]:
    """Return those of some users of whom anything is sticky."""
    return [row[0] for row in await queries.fetch(LIST_SENDERS_AMONG, list(senders), now_ms)]


async def list_unignored(queries: Queries, user_id: str, after: int, upto: int) -> list[str]:
    """Return whom a user has ceased to ignore in (after, upto]."""
    return [row[0] for row in await queries.fetch(LIST_UNIGNORED, user_id, after, upto)]


async def count_live(queries: Queries, room_id: str, sender: str, now_ms: int) -> tuple[int, int]:
    """Return how many events of a user are sticky in a room, and when the first of them ends."""
    rows = await queries.fetch(COUNT_LIVE, room_id, sender, now_ms)
    return rows[0][0], rows[0][1]


async def list_waiting(queries: Queries, now_ms: int, per_room: int) -> list[StickyEvent]:
    """Return events that wait, `per_room` of each server and room: those that end soonest."""
    return [StickyEvent(*row) for row in await queries.fetch(LIST_WAITING, now_ms, per_room)]


async def count_waiting(queries: Queries, server_name: str, now_ms: int, limit: int) -> int:
    """Return how many events of a server wait; it does not count further than `limit`."""
    return int(str(await queries.fetchval(COUNT_WAITING, server_name, now_ms, limit)))


async def list_own_live(
    queries: Queries, room_id: str, server_name: str, upto: int, now_ms: int
) -> list[EventId]:
    """Return the live sticky events of a server's users in a room, oldest first."""
    rows = await queries.fetch(LIST_OWN_LIVE, room_id, server_name, upto, now_ms)
    return [row[0] for row in rows]


async def list_held(queries: Queries, now_ms: int, limit: int) -> list[HeldStickyEvent]:
    """Return live soft-failed sticky events that are to be tried again."""
    return [HeldStickyEvent(*row) for row in await queries.fetch(LIST_HELD, now_ms, limit)]


async def mark_checked(queries: Queries, event_ids: Sequence[EventId], state_id: int) -> None:
    """Note the current state against which soft-failed events have been tried."""
    await queries.execute(MARK_CHECKED, event_ids, state_id)


async def insert_held(
    queries: Queries, event_id: EventId, room_nid: int, sender: str, until_ms: int, state_id: int
) -> None:
    """Hold a soft-failed sticky event back; of its sender the oldest beyond a bound are dropped."""
    await queries.execute(
        INSERT_HELD, event_id, room_nid, sender, until_ms, state_id, HELD_PER_SENDER_MAX - 1
    )


async def insert_out_of_place(
    queries: Queries,
    event_id: EventId,
    room_nid: int,
    sender: str,
    until_ms: int,
    waits_for: str | None,
) -> None:
    """Note a sticky event without a place in its room, before it is delivered or has to wait."""
    await queries.execute(INSERT_OUT_OF_PLACE, event_id, room_nid, sender, until_ms, waits_for)


async def list_rooms_by_nid(queries: Queries, room_nids: Collection[int]) -> dict[int, str]:
    """Return the rooms that surrogate keys in a sync token stand for."""
    rows = await queries.fetch(LIST_ROOMS_BY_NID, list(room_nids))
    return {row[0]: row[1] for row in rows}


async def delete_expired(queries: Queries, now_ms: int, limit: int) -> int:
    """Forget up to `limit` events that are not sticky any more; return how many there were."""
    return int((await queries.execute(DELETE_EXPIRED, now_ms, limit)).split()[-1])


async def bring_forward(queries: Queries, latest_ms: int, by_ms: int) -> None:
    """Let what would be sticky until after `latest_ms` be so for less, and no longer than that."""
    await queries.execute(BRING_FORWARD, latest_ms, by_ms)


async def delete_unignored(queries: Queries, now_ms: int) -> None:
    """Forget who has ceased to ignore whom so long ago that nothing of then is sticky."""
    await queries.execute(DELETE_UNIGNORED, now_ms)


async def delete_of_sender(queries: Queries, sender: str) -> None:
    """Let nothing that a user sent be sticky any more."""
    await queries.execute(DELETE_OF_SENDER, sender)
