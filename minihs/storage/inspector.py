"""What the inspector shows and nothing else asks for, and the sessions of who looks at it.

Every statement is bounded: by one room, and by a number of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.storage.event_store import COLUMNS
from minihs.storage.sql import statement

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from minihs.protocol.identifiers import EventId, RoomId
    from minihs.storage.database import Queries
    from minihs.storage.event_store import EventStore, StoredEvent


@dataclass(frozen=True, slots=True)
class RoomOverview:
    """A room of the list. `sticky` are live and deliverable, `held` live and held back."""

    room_nid: int
    room_id: RoomId
    room_version: str
    state_id: int
    extremities: int
    joined: int
    local_joined: int
    servers: int
    sticky: int
    held: int
    redacted_stays: int


@dataclass(frozen=True, slots=True)
class StickyRow:
    """A live sticky event. `position` is None while it is held back.

    `waits_for` is then the server that sent too many; None: it is soft-failed. `told_from`: it is
    the redaction of one, and tells whoever had what lay at that position.
    """

    event_id: EventId
    sender: str
    until_ms: int
    position: int | None
    checked_state: int | None
    waits_for: str | None
    told_from: int | None


@dataclass(frozen=True, slots=True)
class StayRow:
    """A stay that a kick or ban redacted, and how far its purge has come down in the room."""

    user_id: str
    first_join_id: EventId
    because_id: EventId
    join_ids: Sequence[EventId]
    spared_ids: Sequence[EventId]
    created_ms: int
    upto: int
    purged: bool
    next_major: int
    next_nid: int | None


@dataclass(frozen=True, slots=True)
class RefusalRow:
    """Why an event was rejected or soft-failed (D13)."""

    rule: str
    passage: str
    message: str
    deciding: Sequence[EventId]


@dataclass(frozen=True, slots=True)
class ServerRow:
    """A server in a room: how many of its users are joined, and the position since when."""

    server_name: str
    joined: int
    since: int


@dataclass(frozen=True, slots=True)
class ServedRow:
    """How far another server has been served; see `destinations.DestinationRow`."""

    position: int
    behind: bool
    failures: int
    retry_at_ms: int
    is_down: bool
    last_success_ms: int | None
    txn_positions: Sequence[int]


# Primary key of rooms; of each room the primary key of memberships, index sticky_events_room, and
# the primary keys of redacted_stays and room_purges.
LIST_ROOMS = statement(
    "inspector.list_rooms",
    """
    SELECT
      r.room_nid, r.room_id, r.room_version, r.state_id, cardinality(r.extremities),
      members.joined, members.local_joined, members.servers, sticky.deliverable, sticky.held,
      (SELECT count(*) FROM redacted_stays s WHERE s.room_nid = r.room_nid)
    FROM rooms r
    CROSS JOIN LATERAL (
      SELECT
        count(*) AS joined, count(*) FILTER (WHERE m.local) AS local_joined,
        count(DISTINCT substr(m.user_id, strpos(m.user_id, ':') + 1)) AS servers
      FROM memberships m
      WHERE m.room_nid = r.room_nid AND m.membership = 'join'
    ) AS members
    CROSS JOIN LATERAL (
      SELECT
        count(*) FILTER (WHERE n.position IS NOT NULL AND n.told_from IS NULL) AS deliverable,
        count(*) FILTER (WHERE n.position IS NULL) AS held
      FROM sticky_events n
      WHERE n.room_nid = r.room_nid AND n.until_ms > $2
    ) AS sticky
    WHERE
      r.room_nid > $1 AND NOT EXISTS (SELECT FROM room_purges p WHERE p.room_nid = r.room_nid)
    ORDER BY r.room_nid
    LIMIT $3
    """,
)

# Index sticky_events_room, from its end: those that are held back come first.
LIST_STICKY = statement(
    "inspector.list_sticky",
    """
    SELECT event_id, sender, until_ms, position, checked_state, waits_for, told_from
    FROM sticky_events
    WHERE room_nid = $1 AND until_ms > $2
    ORDER BY position DESC
    LIMIT $3
    """,
)

# Primary key of redacted_stays, by its first column.
LIST_STAYS = statement(
    "inspector.list_stays",
    """
    SELECT
      user_id, first_join_id, because_id, join_ids, spared_ids, created_ms, upto, purged,
      next_major, next_nid
    FROM redacted_stays
    WHERE room_nid = $1
    ORDER BY created_ms DESC, user_id, because_id
    LIMIT $2
    """,
)

# Index events_order: what was refused has no place in its room, as outliers have none.
LIST_REFUSED = statement(
    "inspector.list_refused",
    f"""
    SELECT {COLUMNS}
    FROM events e
    JOIN rooms r ON r.room_nid = e.room_nid
    WHERE
      e.room_nid = $1 AND e.order_major IS NULL
      AND (e.status <> 0 OR e.sticky_until_ms IS NOT NULL)
    ORDER BY e.event_nid DESC
    LIMIT $2
    """,  # noqa: S608  # a constant
)

# Unique index events_event_id_key; primary key of rejections.
LIST_REFUSALS = statement(
    "inspector.list_refusals",
    """
    SELECT e.event_id, j.rule, j.passage, j.message, j.deciding
    FROM events e
    JOIN rejections j ON j.event_nid = e.event_nid
    WHERE e.event_id = ANY($1::text[])
    """,
)

# Unique index events_event_id_key.
LIST_KNOWN = statement(
    "inspector.list_known", "SELECT event_id FROM events WHERE event_id = ANY($1::text[])"
)

# Primary key of memberships, by its first column.
LIST_SERVERS = statement(
    "inspector.list_servers",
    """
    SELECT
      substr(user_id, strpos(user_id, ':') + 1) AS server_name, count(*), min(joined_position)
    FROM memberships
    WHERE room_nid = $1 AND membership = 'join'
    GROUP BY 1
    ORDER BY 2 DESC, 1
    LIMIT $2
    """,
)

# Primary key of destinations.
LIST_SERVED = statement(
    "inspector.list_served",
    """
    SELECT
      server_name, position, behind, failures, retry_at_ms, is_down, last_success_ms, txn_positions
    FROM destinations
    WHERE server_name = ANY($1::text[])
    """,
)

# A handful of rows.
LIST_SHARD_POSITIONS = statement(
    "inspector.list_shard_positions", "SELECT shard, position FROM delivery_shards"
)

# --- sessions ----------------------------------------------------------------------------------

# Index inspector_sessions_expires_ms: each new session clears away those that have expired. Primary
# key of access_tokens.
INSERT_SESSION = statement(
    "inspector.insert_session",
    """
    WITH expired AS (
      DELETE FROM inspector_sessions WHERE expires_ms <= $4
    )
    INSERT INTO inspector_sessions (session_hash, token_hash, expires_ms)
    SELECT $1, token_hash, $3 FROM access_tokens WHERE token_hash = $2
    """,
)

# Primary key.
FETCH_TOKEN_OF_SESSION = statement(
    "inspector.fetch_token_of_session",
    "SELECT token_hash FROM inspector_sessions WHERE session_hash = $1 AND expires_ms > $2",
)

# Primary key.
DELETE_SESSION = statement(
    "inspector.delete_session", "DELETE FROM inspector_sessions WHERE session_hash = $1"
)


async def list_rooms(
    queries: Queries, after_nid: int, now_ms: int, limit: int
) -> list[RoomOverview]:
    """Return rooms by surrogate key, which is about the order in which they came."""
    return [RoomOverview(*row) for row in await queries.fetch(LIST_ROOMS, after_nid, now_ms, limit)]


async def list_sticky(queries: Queries, room_nid: int, now_ms: int, limit: int) -> list[StickyRow]:
    """Return a room's live sticky events: first those that are held back, then the newest."""
    return [StickyRow(*row) for row in await queries.fetch(LIST_STICKY, room_nid, now_ms, limit)]


async def list_stays(queries: Queries, room_nid: int, limit: int) -> list[StayRow]:
    """Return the redacted stays of a room, the latest first."""
    return [StayRow(*row) for row in await queries.fetch(LIST_STAYS, room_nid, limit)]


async def list_refused(
    queries: Queries, store: EventStore, room_nid: int, limit: int
) -> list[StoredEvent]:
    """Return the events of a room that were refused, the latest to come first.

    Among them those sticky ones that were, and became deliverable later.
    """
    return store.from_rows(await queries.fetch(LIST_REFUSED, room_nid, limit))


async def list_refusals(
    queries: Queries, event_ids: Collection[EventId]
) -> dict[EventId, RefusalRow]:
    """Return why some events were refused, by event id."""
    rows = await queries.fetch(LIST_REFUSALS, list(event_ids))
    return {row[0]: RefusalRow(*row[1:]) for row in rows}


async def list_known(queries: Queries, event_ids: Collection[EventId]) -> set[EventId]:
    """Return those of the events that this server has."""
    return {row[0] for row in await queries.fetch(LIST_KNOWN, list(event_ids))}


async def list_servers(queries: Queries, room_nid: int, limit: int) -> list[ServerRow]:
    """Return the servers in a room, those with the most users first."""
    return [ServerRow(*row) for row in await queries.fetch(LIST_SERVERS, room_nid, limit)]


async def list_served(queries: Queries, server_names: Collection[str]) -> dict[str, ServedRow]:
    """Return how far some servers have been served, as far as anything was ever sent to them."""
    rows = await queries.fetch(LIST_SERVED, list(server_names))
    return {row[0]: ServedRow(*row[1:]) for row in rows}


async def list_shard_positions(queries: Queries) -> dict[int, int]:
    """Return up to where the destinations of each shard, unless behind, have been served."""
    return {row[0]: row[1] for row in await queries.fetch(LIST_SHARD_POSITIONS)}


async def insert_session(
    queries: Queries, session_hash: str, token_hash: str, expires_ms: int, now_ms: int
) -> None:
    """Begin a session, which ends with the access token at the latest."""
    await queries.execute(INSERT_SESSION, session_hash, token_hash, expires_ms, now_ms)


async def fetch_token_of_session(queries: Queries, session_hash: str, now_ms: int) -> str | None:
    """Return the hash of the access token that began a session; None: there is no such session."""
    found = await queries.fetchval(FETCH_TOKEN_OF_SESSION, session_hash, now_ms)
    return found if isinstance(found, str) else None


async def delete_session(queries: Queries, session_hash: str) -> None:
    """End a session."""
    await queries.execute(DELETE_SESSION, session_hash)
