"""Reading ranges of a room's events, and what a reader's access to them depends on.

Order is (order_major, order_minor), see `storage.schema`. Rejected and soft-failed events are never
among what is listed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.storage.event_store import COLUMNS
from minihs.storage.sql import statement

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from minihs.protocol.identifiers import EventId
    from minihs.storage.database import Queries
    from minihs.storage.event_store import EventStore, StoredEvent

Order = tuple[int, int]

# Index events_order, walked from the place on; both bounds are inclusive.
LIST_BACKWARD = statement(
    "events.list_backward",
    f"""
    SELECT {COLUMNS}
    FROM events e
    JOIN rooms r ON r.room_nid = e.room_nid
    WHERE
      e.room_nid = $1 AND e.status = 0
      AND (e.order_major, e.order_minor) <= ($2::bigint, $3::integer)
      AND (e.order_major, e.order_minor) > ($4::bigint, $5::integer)
    ORDER BY e.order_major DESC, e.order_minor DESC
    LIMIT $6
    """,  # noqa: S608  # a constant
)

LIST_FORWARD = statement(
    "events.list_forward",
    f"""
    SELECT {COLUMNS}
    FROM events e
    JOIN rooms r ON r.room_nid = e.room_nid
    WHERE
      e.room_nid = $1 AND e.status = 0
      AND (e.order_major, e.order_minor) > ($2::bigint, $3::integer)
      AND (e.order_major, e.order_minor) <= ($4::bigint, $5::integer)
    ORDER BY e.order_major, e.order_minor
    LIMIT $6
    """,  # noqa: S608  # a constant
)

# Unique index rooms_room_id_key; primary keys of memberships and account_data.
FETCH_READER = statement(
    "events.fetch_reader",
    """
    SELECT
      r.room_nid, r.state_id, s.position, m.membership, m.forgotten, a.json
    FROM rooms r
    CROSS JOIN stream s
    LEFT JOIN memberships m ON m.room_nid = r.room_nid AND m.user_id = $2
    LEFT JOIN account_data a
      ON a.user_id = $2 AND a.room_id = '' AND a.type = 'm.ignored_user_list'
    WHERE r.room_id = $1
    """,
)

# Unique index state_keys_type_state_key_key, then events_state_key from its end.
LIST_MEMBER_EVENTS = statement(
    "events.list_member_events",
    f"""
    SELECT {COLUMNS}
    FROM rooms r
    JOIN state_keys k ON k.type = 'm.room.member' AND k.state_key = $2
    JOIN events e ON e.room_nid = r.room_nid AND e.key_nid = k.key_nid
    WHERE r.room_id = $1 AND e.status = 0 AND e.position IS NOT NULL
    ORDER BY e.position DESC
    LIMIT $3
    """,  # noqa: S608  # a constant
)

# Unique index rooms_room_id_key; primary key of memberships.
LIST_JOINED_ROOMS_AMONG = statement(
    "events.list_joined_rooms_among",
    """
    SELECT r.room_id
    FROM rooms r
    JOIN memberships m ON m.room_nid = r.room_nid
    WHERE r.room_id = ANY($1::text[]) AND m.user_id = $2 AND m.membership = 'join'
    """,
)

# Primary key of events, then events_state_key from the event backwards.
LIST_REPLACED = statement(
    "events.list_replaced",
    """
    SELECT e.event_id, old.event_id
    FROM unnest($1::bigint[]) AS asked (event_nid)
    JOIN events e ON e.event_nid = asked.event_nid
    CROSS JOIN LATERAL (
      SELECT p.event_id
      FROM events p
      WHERE
        p.room_nid = e.room_nid AND p.key_nid = e.key_nid AND p.position < e.position
        AND p.status = 0
      ORDER BY p.position DESC
      LIMIT 1
    ) AS old
    """,
)

# Primary key of accounts.
LIST_ERASED = statement(
    "events.list_erased",
    "SELECT user_id FROM accounts WHERE user_id = ANY($1::text[]) AND erased",
)


# Primary key of memberships, by its first column.
LIST_JOINED_MEMBERS = statement(
    "events.list_joined_members",
    """
    SELECT user_id, display_name, avatar_url
    FROM memberships
    WHERE room_nid = $1 AND membership = 'join'
    ORDER BY user_id
    """,
)

# Index events_sent_ms, from the moment on; what was sent at one moment is sorted.
LIST_SENT_BEFORE = statement(
    "events.list_sent_before",
    f"""
    SELECT {COLUMNS}
    FROM events e
    JOIN rooms r ON r.room_nid = e.room_nid
    WHERE e.room_nid = $1 AND e.status = 0 AND e.order_major IS NOT NULL AND e.sent_ms <= $2
    ORDER BY e.sent_ms DESC, e.order_major DESC, e.order_minor DESC
    LIMIT $3
    """,  # noqa: S608  # a constant
)

LIST_SENT_AFTER = statement(
    "events.list_sent_after",
    f"""
    SELECT {COLUMNS}
    FROM events e
    JOIN rooms r ON r.room_nid = e.room_nid
    WHERE e.room_nid = $1 AND e.status = 0 AND e.order_major IS NOT NULL AND e.sent_ms >= $2
    ORDER BY e.sent_ms, e.order_major, e.order_minor
    LIMIT $3
    """,  # noqa: S608  # a constant
)


# Index events_order, walked backwards: a sender stands in the JSON only.
_SENDER = "strpos(e.json, '\"sender\":' || to_json($2::text)::text) > 0"
LIST_UNREDACTED_OF = statement(
    "events.list_unredacted_of",
    f"""
    SELECT {COLUMNS}
    FROM events e
    JOIN rooms r ON r.room_nid = e.room_nid
    WHERE
      e.room_nid = $1 AND e.status = 0 AND e.redacted_by IS NULL AND {_SENDER}
      AND (e.order_major, e.order_minor) < ($3::bigint, $4::integer)
    ORDER BY e.order_major DESC, e.order_minor DESC
    LIMIT $5
    """,  # noqa: S608  # a constant
)

# Index events_order: what is soft-failed has no place in its room.
LIST_SOFT_FAILED_OF = statement(
    "events.list_soft_failed_of",
    f"""
    SELECT {COLUMNS}
    FROM events e
    JOIN rooms r ON r.room_nid = e.room_nid
    WHERE
      e.room_nid = $1 AND e.order_major IS NULL AND e.status = 1 AND e.redacted_by IS NULL
      AND {_SENDER}
    ORDER BY e.event_nid DESC
    LIMIT $3
    """,  # noqa: S608  # a constant
)


@dataclass(frozen=True, slots=True)
class ReaderRow:
    """A room as one reader finds it.

    `membership` is None where the room's state does not name them; `ignored_json` is the content of
    their m.ignored_user_list; `position` the stream's when this was read.
    """

    room_nid: int
    state_id: int
    position: int
    membership: str | None
    forgotten: bool
    ignored_json: str | None


async def list_range(
    queries: Queries,
    store: EventStore,
    room_nid: int,
    start: Order,
    stop: Order,
    *,
    backward: bool,
    limit: int,
    keep: bool = False,
) -> list[StoredEvent]:
    """Return accepted events between two places, from `start` towards `stop`.

    `keep`: others are likely to read them soon.
    """
    text = LIST_BACKWARD if backward else LIST_FORWARD
    found = store.from_rows(await queries.fetch(text, room_nid, *start, *stop, limit))
    if keep:  # Before anything else runs: a redaction that comes later finds them in the cache.
        for stored in found:
            store.remember(stored)
    return found


async def fetch_reader(queries: Queries, room_id: str, user_id: str) -> ReaderRow | None:
    """Return what a reader's access to a room depends on; None when the room is unknown."""
    row = await queries.fetchrow(FETCH_READER, room_id, user_id)
    if row is None:
        return None
    return ReaderRow(row[0], row[1], row[2], row[3], bool(row[4]), row[5])


async def list_member_events(
    queries: Queries, store: EventStore, room_id: str, user_id: str, limit: int
) -> list[StoredEvent]:
    """Return a user's accepted member events in a room, newest first."""
    return store.from_rows(await queries.fetch(LIST_MEMBER_EVENTS, room_id, user_id, limit))


async def list_joined_among(queries: Queries, room_ids: Collection[str], user_id: str) -> set[str]:
    """Return those of the rooms that the user is joined to now."""
    rows = await queries.fetch(LIST_JOINED_ROOMS_AMONG, list(room_ids), user_id)
    return {row[0] for row in rows}


async def list_replaced(queries: Queries, event_nids: Collection[int]) -> dict[EventId, EventId]:
    """Return, for state events, the accepted event of the same key that came before, if any did."""
    return {row[0]: row[1] for row in await queries.fetch(LIST_REPLACED, list(event_nids))}


async def list_erased(queries: Queries, user_ids: Collection[str]) -> Sequence[str]:
    """Return those of the users who were erased when their accounts were deactivated."""
    return [row[0] for row in await queries.fetch(LIST_ERASED, list(user_ids))]


async def list_joined_members(
    queries: Queries, room_nid: int
) -> Sequence[tuple[str, str | None, str | None]]:
    """Return user id, display name and avatar of everyone who is joined, by user id."""
    rows = await queries.fetch(LIST_JOINED_MEMBERS, room_nid)
    return [(row[0], row[1], row[2]) for row in rows]


async def list_by_time(
    queries: Queries,
    store: EventStore,
    room_nid: int,
    ts_ms: int,
    *,
    backward: bool,
    limit: int,
) -> list[StoredEvent]:
    """Return the events sent at or nearest before (or after) a moment, nearest first.

    Of those with one time stamp the last in the room's order counts as nearest before, the first
    as nearest after. Cost: O(events of the room).
    """
    text = LIST_SENT_BEFORE if backward else LIST_SENT_AFTER
    return store.from_rows(await queries.fetch(text, room_nid, ts_ms, limit))


async def list_unredacted_of(
    queries: Queries, store: EventStore, room_nid: int, user_id: str, before: Order, limit: int
) -> list[StoredEvent]:
    """Return a user's accepted events before a place that no redaction has named, newest first.

    Others' events that speak of the user's as their sender may be among them. Cost: O(events of the
    room) where there are few.
    """
    rows = await queries.fetch(LIST_UNREDACTED_OF, room_nid, user_id, *before, limit)
    return store.from_rows(rows)


async def list_soft_failed_of(
    queries: Queries, store: EventStore, room_nid: int, user_id: str, limit: int
) -> list[StoredEvent]:
    """Return a user's soft-failed events that no redaction has named, the latest to come first.

    See `list_unredacted_of`.
    """
    return store.from_rows(await queries.fetch(LIST_SOFT_FAILED_OF, room_nid, user_id, limit))
