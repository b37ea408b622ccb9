"""Reading presence, and keeping it alive. Changes are written through the stream (`stream_rows`).

The table is not logged: a crash of the database forgets who is online, and they tell it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.storage.sql import statement
from minihs.storage.stream_rows import PRESENCE_COLUMNS, PresenceWrite

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from minihs.storage.database import Queries


@dataclass(frozen=True, slots=True)
class SharedPresence:
    """What somebody may know of a user: whether they share a room with them, and their presence."""

    is_shared: bool
    presence: PresenceWrite | None


@dataclass(frozen=True, slots=True)
class Due:
    """With whom something is to be done.

    Those of whom there was no sign of life until `gone_ms`, who did nothing since `idle_ms`, or who
    were last told of at `written_ms`. And those of whom something was noted later than `ahead_ms`,
    or who would be there until after `there_ms_max`: the clock has been put back.
    """

    gone_ms: int
    idle_ms: int
    written_ms: int
    ahead_ms: int
    there_ms_max: int


# Primary keys of presence and memberships.
LIST_PRESENCE = statement(
    "presence.list_presence",
    f"""
    SELECT asked.user_id, p.user_id IS NOT NULL, {PRESENCE_COLUMNS},
      ARRAY(
        SELECT r.room_id
        FROM memberships m
        JOIN rooms r ON r.room_nid = m.room_nid
        WHERE m.user_id = asked.user_id AND m.membership = 'join'
      )
    FROM unnest($1::text[]) AS asked (user_id)
    LEFT JOIN presence p ON p.user_id = asked.user_id
    """,  # noqa: S608  # a constant
)

# Index memberships_user_id; primary keys of memberships and presence.
FETCH_SHARED = statement(
    "presence.fetch_shared",
    f"""
    SELECT
      EXISTS (
        SELECT
        FROM memberships mine
        JOIN memberships theirs ON theirs.room_nid = mine.room_nid
        WHERE mine.user_id = $1 AND mine.membership = 'join'
          AND theirs.user_id = $2 AND theirs.membership = 'join'
      ),
      p.user_id IS NOT NULL, {PRESENCE_COLUMNS}
    FROM (SELECT $2::text AS user_id) AS asked
    LEFT JOIN presence p ON p.user_id = asked.user_id
    """,  # noqa: S608  # a constant
)

# Index presence_position, or of those who are there presence_until_ms; primary key of memberships.
LIST_CHANGED = statement(
    "presence.list_changed",
    f"""
    SELECT {PRESENCE_COLUMNS}
    FROM presence p
    WHERE
      p.position > $2 AND p.position <= $3 AND ($2 > 0 OR p.presence <> 'offline')
      AND (
        p.user_id = $1 OR EXISTS (
          SELECT
          FROM memberships mine
          JOIN memberships theirs ON theirs.room_nid = mine.room_nid
          WHERE mine.user_id = $1 AND mine.membership = 'join'
            AND theirs.user_id = p.user_id AND theirs.membership = 'join'
        )
      )
    """,  # noqa: S608  # a constant
)

# Unique index rooms_room_id_key; primary keys of memberships and presence.
LIST_OF_ROOMS = statement(
    "presence.list_of_rooms",
    f"""
    SELECT {PRESENCE_COLUMNS}
    FROM presence p
    WHERE p.presence <> 'offline' AND (p.local OR NOT $2) AND p.user_id IN (
      SELECT m.user_id
      FROM rooms r
      JOIN memberships m ON m.room_nid = r.room_nid
      WHERE r.room_id = ANY($1::text[]) AND m.membership = 'join'
    )
    LIMIT $3
    """,  # noqa: S608  # a constant
)

# Index presence_until_ms.
LIST_PRESENT_HERE = statement(
    "presence.list_present_here",
    f"""
    SELECT s.position, {PRESENCE_COLUMNS}
    FROM stream s
    LEFT JOIN presence p ON p.local AND p.presence <> 'offline'
    """,  # noqa: S608  # a constant
)

# Indexes presence_until_ms, presence_last_active_ms, presence_written_ms: each line is a range.
_DUE = (
    "p.presence <> 'offline' AND p.until_ms <= $1",
    "p.presence <> 'offline' AND p.until_ms > $5",
    "p.presence = 'online' AND p.local AND p.last_active_ms <= $2",
    "p.presence = 'online' AND p.local AND p.last_active_ms > $4",
    "p.presence <> 'offline' AND p.local AND p.written_ms <= $3",
    "p.presence <> 'offline' AND p.local AND p.written_ms > $4",
)
LIST_DUE = statement(
    "presence.list_due",
    " UNION ".join(
        f"(SELECT {PRESENCE_COLUMNS} FROM presence p WHERE {due} LIMIT $6)"  # noqa: S608
        for due in _DUE
    ),
)

# Primary key.
RENEW = statement(
    "presence.renew",
    """
    WITH new AS (
      SELECT *
      FROM unnest($1::text[], $2::bigint[], $3::bigint[])
        AS new (user_id, until_ms, last_active_ms)
    ), renewed AS (
      UPDATE presence p
      SET
        until_ms = greatest(p.until_ms, new.until_ms),
        last_active_ms = greatest(p.last_active_ms, new.last_active_ms)
      FROM new
      WHERE
        p.user_id = new.user_id AND p.presence <> 'offline'
        AND (p.until_ms < new.until_ms OR p.last_active_ms < new.last_active_ms)
    )
    SELECT user_id FROM new WHERE NOT EXISTS (
      SELECT FROM presence p WHERE p.user_id = new.user_id AND p.presence <> 'offline'
    )
    """,
)


async def list_presence(
    queries: Queries, user_ids: Collection[str]
) -> dict[str, tuple[PresenceWrite | None, tuple[str, ...]]]:
    """Return the presence of users, if anything is known, and the rooms that they are joined to."""
    found: dict[str, tuple[PresenceWrite | None, tuple[str, ...]]] = {}
    for row in await queries.fetch(LIST_PRESENCE, list(user_ids)):
        user_id, is_known, *columns, rooms = tuple(row)
        found[user_id] = (PresenceWrite(*columns) if is_known else None), tuple(rooms)
    return found


async def fetch_shared(queries: Queries, reader: str, user_id: str) -> SharedPresence:
    """Return what one user may know of another."""
    row = await queries.fetchrow(FETCH_SHARED, reader, user_id)
    assert row is not None  # noqa: S101  # it has no condition
    is_shared, is_known, *columns = tuple(row)
    return SharedPresence(is_shared, PresenceWrite(*columns) if is_known else None)


async def list_changed(
    queries: Queries, reader: str, after: int, upto: int
) -> Sequence[PresenceWrite]:
    """Return the presence, changed in (after, upto], of those who share a room with a user.

    From the beginning (0) it is of those only who are not offline.
    """
    rows = await queries.fetch(LIST_CHANGED, reader, after, upto)
    return [PresenceWrite(*row) for row in rows]


async def list_of_rooms(
    queries: Queries, room_ids: Collection[str], limit: int, *, local_only: bool = False
) -> Sequence[PresenceWrite]:
    """Return the presence of members of rooms who are not offline."""
    rows = await queries.fetch(LIST_OF_ROOMS, list(room_ids), local_only, limit)
    return [PresenceWrite(*row) for row in rows]


async def list_present_here(queries: Queries) -> tuple[int, Sequence[PresenceWrite]]:
    """Return the stream's position, and the users of this server who are not offline."""
    rows = await queries.fetch(LIST_PRESENT_HERE)
    return rows[0][0], [PresenceWrite(*tuple(row)[1:]) for row in rows if row[1] is not None]


async def list_due(queries: Queries, due: Due, limit: int) -> Sequence[PresenceWrite]:
    """Return users with whom something is to be done, some of each kind."""
    rows = await queries.fetch(
        LIST_DUE, due.gone_ms, due.idle_ms, due.written_ms, due.ahead_ms, due.there_ms_max, limit
    )
    return [PresenceWrite(*row) for row in rows]


async def renew(queries: Queries, signs: Mapping[str, tuple[int, int]]) -> list[str]:
    """Note signs of life: until when each user will not be gone, and when they were active last.

    Return those who are offline all the same: nothing is noted of them.
    """
    rows = await queries.fetch(
        RENEW, list(signs), [until for until, _ in signs.values()], [at for _, at in signs.values()]
    )
    return [row[0] for row in rows]
