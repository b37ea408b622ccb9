"""Rooms that every user of this server has forgotten, and their deletion (MSC4267).

Deletion begins with one transaction, after which the room is as if nobody of this server had ever
been in it; only its number stays, so that whoever refers to it refers to nothing else. What is
left of its events and states is then deleted in steps. A room that is needed again in the meantime
has to wait for the last of them (`find_purge`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.storage.sql import statement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minihs.protocol.identifiers import RoomId
    from minihs.storage.database import Queries, Transaction

# Index memberships_forgotten; memberships_local, and only where nobody is joined the rest of the
# room's members. Rooms that somebody reported are kept for whoever looks into it.
NOTE_FORGOTTEN = statement(
    "forgotten_rooms.note_forgotten",
    """
    INSERT INTO forgotten_rooms (room_nid, since_ms)
    SELECT DISTINCT m.room_nid, $1::bigint
    FROM memberships m
    JOIN rooms r ON r.room_nid = m.room_nid
    WHERE
      m.forgotten AND m.local
      AND NOT EXISTS (
        SELECT FROM memberships o
        WHERE o.room_nid = m.room_nid AND o.local AND o.membership = 'join'
      )
      AND NOT EXISTS (
        SELECT FROM memberships o WHERE o.room_nid = m.room_nid AND o.local AND NOT o.forgotten
      )
      AND NOT EXISTS (SELECT FROM reports p WHERE p.room_id = r.room_id)
    ON CONFLICT DO NOTHING
    """,
)

# Primary key of forgotten_rooms.
LIST_DUE = statement(
    "forgotten_rooms.list_due",
    """
    SELECT f.room_nid, r.room_id
    FROM forgotten_rooms f
    JOIN rooms r ON r.room_nid = f.room_nid
    WHERE f.since_ms <= $1
    ORDER BY f.since_ms
    LIMIT $2
    """,
)

# Primary key of rooms.
LOCK_ROOM = statement(
    "forgotten_rooms.lock_room", "SELECT true FROM rooms WHERE room_nid = $1 FOR UPDATE"
)

# Primary key of memberships.
IS_REMEMBERED = statement(
    "forgotten_rooms.is_remembered",
    """
    SELECT EXISTS (
      SELECT FROM memberships WHERE room_nid = $1 AND local AND NOT forgotten
    ) OR EXISTS (
      SELECT FROM reports p JOIN rooms r ON r.room_id = p.room_id WHERE r.room_nid = $1
    )
    """,
)

DELETE_FORGOTTEN = statement(
    "forgotten_rooms.delete_forgotten", "DELETE FROM forgotten_rooms WHERE room_nid = $1"
)

# Writers that know the room in an older version decide again, and find nothing.
EMPTY_ROOM = statement(
    "forgotten_rooms.empty_room",
    """
    UPDATE rooms
    SET
      version = version + 1, extremities = '{}', state_id = 0, main_count = 0, published = false
    WHERE room_nid = $1
    """,
)

INSERT_PURGE = statement(
    "forgotten_rooms.insert_purge",
    """
    INSERT INTO room_purges (room_nid, began_ms)
    VALUES ($1, $2)
    ON CONFLICT (room_nid) DO UPDATE
    SET began_ms = excluded.began_ms, position = NULL, done = false
    """,
)

# Primary keys that begin with the user.
DELETE_OF_USERS = tuple(
    statement(f"forgotten_rooms.delete_{name}", sql)
    for name, sql in {
        "event_pushes": """
    DELETE FROM event_pushes p
    USING memberships m
    WHERE
      m.room_nid = $1 AND m.local AND p.user_id = m.user_id AND p.room_nid = m.room_nid
    """,
        "account_data": """
    DELETE FROM account_data a
    USING memberships m, rooms r
    WHERE
      m.room_nid = $1 AND m.local AND r.room_nid = m.room_nid
      AND a.user_id = m.user_id AND a.room_id = r.room_id
    """,
    }.items()
)

# Each by the index that begins with the room.
DELETE_OF_ROOM = tuple(
    statement(f"forgotten_rooms.delete_{table}", f"DELETE FROM {table} WHERE room_nid = $1")  # noqa: S608  # constants
    for table in (
        "memberships", "receipts", "typing", "thread_reads", "sticky_events", "redacted_stays",
        "gaps", "sent_rooms", "appservice_rooms",
    )
)  # fmt: skip

# The same.
DELETE_NAMED = tuple(
    statement(
        f"forgotten_rooms.delete_{table}",
        f"DELETE FROM {table} d USING rooms r WHERE r.room_nid = $1 AND d.room_id = r.room_id",  # noqa: S608  # constants
    )
    for table in ("invite_states", "room_aliases")
)

# Primary key of room_purges.
FIND_PURGE = statement(
    "forgotten_rooms.find_purge",
    """
    SELECT p.room_nid, r.room_id, p.position, p.done
    FROM room_purges p
    JOIN rooms r ON r.room_nid = p.room_nid
    WHERE p.room_nid = $1
    """,
)

LIST_PURGES = statement(
    "forgotten_rooms.list_purges",
    """
    SELECT p.room_nid, r.room_id, p.position, p.done
    FROM room_purges p
    JOIN rooms r ON r.room_nid = p.room_nid
    WHERE NOT p.done
    ORDER BY p.began_ms
    LIMIT $1
    """,
)

# Index events_order, then primary keys. A state is of one room alone, but for the empty one.
DELETE_EVENTS = statement(
    "forgotten_rooms.delete_events",
    """
    WITH chosen AS (
      SELECT event_nid FROM events WHERE room_nid = $1 LIMIT $2
    ), gone AS (
      DELETE FROM events e
      USING chosen
      WHERE e.event_nid = chosen.event_nid
      RETURNING
        e.event_nid, e.event_id, e.state_before, e.state_after, e.room_state_before,
        e.room_state_after
    ), theirs AS (
      SELECT DISTINCT s.state_id
      FROM gone
      CROSS JOIN LATERAL unnest(
        ARRAY[gone.state_before, gone.state_after, gone.room_state_before, gone.room_state_after]
      ) AS s (state_id)
      WHERE s.state_id > 0
    ), entries AS (
      DELETE FROM state_entries n USING theirs WHERE n.state_id = theirs.state_id
    ), states_gone AS (
      DELETE FROM states s USING theirs WHERE s.state_id = theirs.state_id
    ), refusals AS (
      DELETE FROM rejections j USING gone WHERE j.event_nid = gone.event_nid
    ), redacting AS (
      DELETE FROM redactions d USING gone WHERE d.event_id = gone.event_id
    )
    SELECT count(*) FROM gone
    """,
)

MARK_DONE = statement(
    "forgotten_rooms.mark_done", "UPDATE room_purges SET done = true WHERE room_nid = $1"
)

DELETE_OLD_PURGES = statement(
    "forgotten_rooms.delete_old_purges", "DELETE FROM room_purges WHERE done AND began_ms < $1"
)


@dataclass(frozen=True, slots=True)
class RoomPurge:
    """A room that is being deleted; `position` is None until every process is told."""

    room_nid: int
    room_id: RoomId
    position: int | None
    done: bool


async def note_forgotten(queries: Queries, now_ms: int) -> None:
    """Note which rooms nobody here is in, is on the way to, or remembers."""
    await queries.execute(NOTE_FORGOTTEN, now_ms)


async def list_due(queries: Queries, since_ms: int, limit: int) -> Sequence[tuple[int, RoomId]]:
    """Return number and id of rooms noted at a moment or before, the oldest first."""
    return [(row[0], row[1]) for row in await queries.fetch(LIST_DUE, since_ms, limit)]


async def begin_purge(tx: Transaction, room_nid: int, now_ms: int) -> bool:
    """Let a room be as if nobody had been in it, unless somebody remembers it after all.

    Takes the room's lock; what is left are its events and states. Returns whether it did.
    """
    await tx.execute(LOCK_ROOM, room_nid)
    await tx.execute(DELETE_FORGOTTEN, room_nid)
    if await tx.fetchval(IS_REMEMBERED, room_nid) is True:
        return False
    for sql in (*DELETE_OF_USERS, *DELETE_OF_ROOM, *DELETE_NAMED):
        await tx.execute(sql, room_nid)
    await tx.execute(EMPTY_ROOM, room_nid)
    await tx.execute(INSERT_PURGE, room_nid, now_ms)
    return True


async def find_purge(queries: Queries, room_nid: int) -> RoomPurge | None:
    """Return the deletion of a room, if it is under way or was lately."""
    row = await queries.fetchrow(FIND_PURGE, room_nid)
    return None if row is None else RoomPurge(*row)


async def list_purges(queries: Queries, limit: int) -> list[RoomPurge]:
    """Return deletions that have not come to their end, the oldest first."""
    return [RoomPurge(*row) for row in await queries.fetch(LIST_PURGES, limit)]


async def delete_events(queries: Queries, room_nid: int, limit: int) -> bool:
    """Delete up to `limit` events of a room, with their states; return whether there were any."""
    return await queries.fetchval(DELETE_EVENTS, room_nid, limit) != 0


async def mark_done(queries: Queries, room_nid: int) -> None:
    """Note that nothing of a room is left."""
    await queries.execute(MARK_DONE, room_nid)


async def delete_old_purges(queries: Queries, before_ms: int) -> None:
    """Delete what was noted of deletions that began before a moment and are done."""
    await queries.execute(DELETE_OLD_PURGES, before_ms)
