"""Sliding sync: what each connection was sent, and where its rooms stand in the list.

What a connection was sent is one immutable row. A `pos` names it, so a request that is repeated
begins where the first one began; a change of it is a new row, and a row is deleted once a request
names a newer one. Answers that bring only what is new in rooms already sent change nothing in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.storage.sql import statement

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from minihs.storage.database import Queries, Row

STATES_PER_DEVICE_MAX = 40
REPETITIONS_MAX = 4  # States that repetitions of one request may have left behind.

# Primary key.
FETCH_STATE = statement(
    "sliding.fetch_state",
    "SELECT json FROM sliding_states WHERE state_nid = $1 AND device_nid = $2 AND conn_id = $3",
)

# Index sliding_states_device. Nobody waits for the disk: what is lost, the client begins anew.
INSERT_STATE = statement(
    "sliding.insert_state",
    """
    WITH outdated AS (
      DELETE FROM sliding_states
      WHERE state_nid IN (
        SELECT state_nid
        FROM (
          SELECT
            state_nid, conn_id,
            row_number() OVER (ORDER BY state_nid DESC) AS of_device,
            row_number() OVER (PARTITION BY conn_id ORDER BY state_nid DESC) AS of_connection
          FROM sliding_states
          WHERE device_nid = $1
        ) s
        WHERE
          s.of_device >= $5
          OR (
            s.conn_id = $2
            AND (s.state_nid < $3 OR (s.state_nid <> $3 AND s.of_connection >= $6))
          )
      )
    )
    INSERT INTO sliding_states (device_nid, conn_id, json)
    SELECT $1, $2, $4
    WHERE set_config('synchronous_commit', 'off', true) = 'off'
    RETURNING state_nid
    """,
)

# Unique index rooms_room_id_key; index events_order, walked backwards.
LIST_ACTIVITY = statement(
    "sliding.list_activity",
    """
    SELECT s.position, r.room_id, e.order_major, r.state_id
    FROM stream s
    LEFT JOIN rooms r ON r.room_id = ANY($1::text[])
    LEFT JOIN LATERAL (
      SELECT n.order_major
      FROM events n
      WHERE n.room_nid = r.room_nid AND n.order_major IS NOT NULL AND n.status = 0
      ORDER BY n.order_major DESC
      LIMIT 1
    ) e ON true
    """,
)

# Index memberships_user_id. Whoever left a room by themselves is told only where they ask for it.
LIST_DEPARTURES = statement(
    "sliding.list_departures",
    """
    SELECT
      r.room_id, m.membership, m.position, m.event_id,
      CASE WHEN m.forgotten THEN coalesce(m.forgotten_position, 0) END
    FROM memberships m
    JOIN rooms r ON r.room_nid = m.room_nid
    WHERE
      m.user_id = $1 AND m.membership = ANY(ARRAY['leave', 'ban'])
      AND (
        r.room_id = ANY($2::text[])
        OR (m.sender <> $1 AND NOT m.forgotten)
      )
    """,
)

# Primary key of account_data.
LIST_GLOBAL_ACCOUNT_DATA = statement(
    "sliding.list_global_account_data",
    """
    SELECT type, json
    FROM account_data
    WHERE user_id = $1 AND room_id = '' AND type = ANY($2::text[])
    """,
)

# Primary key of account_data.
LIST_TAGS = statement(
    "sliding.list_tags",
    """
    SELECT room_id, json
    FROM account_data
    WHERE user_id = $1 AND room_id = ANY($2::text[]) AND type = 'm.tag'
    """,
)

# Primary key of memberships. The joined come first, then the invited, then those who left.
LIST_HEROES = statement(
    "sliding.list_heroes",
    """
    SELECT r.room_id, h.user_id, h.display_name, h.avatar_url, h.membership
    FROM unnest($1::text[]) AS asked (room_id)
    JOIN rooms r ON r.room_id = asked.room_id
    CROSS JOIN LATERAL (
      SELECT m.user_id, m.display_name, m.avatar_url, m.membership
      FROM memberships m
      WHERE m.room_nid = r.room_nid AND m.membership <> 'knock' AND m.user_id <> $2
      ORDER BY
        CASE m.membership WHEN 'join' THEN 0 WHEN 'invite' THEN 1 ELSE 2 END,
        m.order_major, m.user_id
      LIMIT $3
    ) h
    """,
)


async def fetch_state(
    queries: Queries, state_nid: int, device_nid: int, conn_id: str
) -> str | None:
    """Return what a connection of a device was sent, as JSON, or None when that is not known."""
    found = await queries.fetchval(FETCH_STATE, state_nid, device_nid, conn_id)
    return found if isinstance(found, str) else None


async def insert_state(
    queries: Queries, device_nid: int, conn_id: str, follows: int, json: str
) -> int:
    """Note what a connection was sent; return the number of that.

    `follows` is the state that the request named (0: none): nobody needs older ones any more.
    """
    state_nid = await queries.fetchval(
        INSERT_STATE, device_nid, conn_id, follows, json, STATES_PER_DEVICE_MAX, REPETITIONS_MAX
    )
    return int(str(state_nid))


async def list_activity(
    queries: Queries, room_ids: Collection[str]
) -> tuple[int, Sequence[tuple[str, int, int]]]:
    """Return the stream's position; and of each room the place of its last event, and its state."""
    rows = await queries.fetch(LIST_ACTIVITY, list(room_ids))
    return rows[0][0], [(row[1], row[2] or 0, row[3]) for row in rows if row[1] is not None]


async def list_departures(
    queries: Queries, user_id: str, room_ids: Collection[str]
) -> Sequence[Row]:
    """Return room, membership, position, event, when forgotten, of rooms that a user is not in.

    Those rooms that they were kicked or banned from, and those of `room_ids`.
    """
    return await queries.fetch(LIST_DEPARTURES, user_id, list(room_ids))


async def list_global_account_data(
    queries: Queries, user_id: str, types: Collection[str]
) -> dict[str, str]:
    """Return, as JSON, those of the types of global account data that a user has."""
    rows = await queries.fetch(LIST_GLOBAL_ACCOUNT_DATA, user_id, list(types))
    return {row[0]: row[1] for row in rows}


async def list_tags(queries: Queries, user_id: str, room_ids: Collection[str]) -> dict[str, str]:
    """Return a user's tags, as JSON, of those of the rooms that have any."""
    rows = await queries.fetch(LIST_TAGS, user_id, list(room_ids))
    return {row[0]: row[1] for row in rows}


async def list_heroes(
    queries: Queries, room_ids: Collection[str], user_id: str, limit: int
) -> dict[str, list[tuple[str, str | None, str | None]]]:
    """Return up to `limit` members of each room other than `user_id`: id, name and avatar.

    Those who left come only where nobody else is in the room.
    """
    found: dict[str, list[tuple[str, str | None, str | None]]] = {r: [] for r in room_ids}
    inhabited: set[str] = set()
    for row in await queries.fetch(LIST_HEROES, list(room_ids), user_id, limit):
        if row[4] in ("join", "invite"):
            inhabited.add(row[0])
        elif row[0] in inhabited:
            continue
        found[row[0]].append((row[1], row[2], row[3]))
    return found
