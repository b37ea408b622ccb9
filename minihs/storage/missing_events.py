"""What we lack of rooms: which events are known, where history has gaps, and what awaits its event.

A *gap* is an event with a place in the room whose `prev_events` have none. It is noted before its
event is committed, or with it, so that none is ever forgotten; a note whose event never came says
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.storage.sql import statement

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from minihs.protocol.identifiers import EventId, ServerName, StateKey
    from minihs.storage.database import Queries

# Unique index events_event_id_key; primary key of state_keys.
LIST_KNOWN = statement(
    "missing_events.list_known",
    """
    SELECT e.event_id, e.room_nid, e.status, k.type, k.state_key
    FROM events e
    LEFT JOIN state_keys k ON k.key_nid = e.key_nid
    WHERE e.event_id = ANY($1::text[])
    """,
)

INSERT_GAPS = statement(
    "missing_events.insert_gaps",
    """
    INSERT INTO gaps (event_nid, room_nid)
    SELECT event_nid, $2 FROM unnest($1::bigint[]) AS new (event_nid)
    ON CONFLICT DO NOTHING
    """,
)

# Index gaps_room_nid; primary key of events; events_order from its beginning.
LIST_GAPS = statement(
    "missing_events.list_gaps",
    """
    SELECT
      e.event_id, e.event_nid, e.order_major,
      (
        SELECT min(o.order_minor)
        FROM events o
        WHERE o.room_nid = e.room_nid AND o.order_major = e.order_major
      ) AS lowest_minor
    FROM gaps g
    JOIN events e ON e.event_nid = g.event_nid
    WHERE g.room_nid = $1 AND e.order_major >= $2 AND e.order_major <= $3
    ORDER BY e.order_major DESC, e.order_minor DESC
    LIMIT 100
    """,
)

# Primary key of memberships, by its first column.
LIST_SERVERS = statement(
    "missing_events.list_servers",
    """
    SELECT substr(user_id, strpos(user_id, ':') + 1) AS server
    FROM memberships
    WHERE room_nid = $1 AND membership = 'join' AND NOT local
    GROUP BY server
    ORDER BY count(*) DESC, server
    LIMIT $2
    """,
)

# Primary key of events.
MARK_REDACTED = statement(
    "missing_events.mark_redacted",
    "UPDATE events SET redacted_by = $2 WHERE event_nid = $1 AND redacted_by IS NULL",
)

# Primary key.
DELETE_GAPS = statement(
    "missing_events.delete_gaps", "DELETE FROM gaps WHERE event_nid = ANY($1::bigint[])"
)

INSERT_EARLY_REDACTIONS = statement(
    "missing_events.insert_early_redactions",
    """
    INSERT INTO early_redactions (event_id, redaction_id)
    SELECT * FROM unnest($1::text[], $2::text[])
    ON CONFLICT DO NOTHING
    """,
)

# Primary keys of both.
LIST_REDACTIONS = statement(
    "missing_events.list_redactions",
    """
    SELECT event_id, redaction_id FROM early_redactions WHERE event_id = ANY($1::text[])
    UNION
    SELECT event_id, redaction_id FROM redactions WHERE event_id = ANY($1::text[])
    ORDER BY event_id, redaction_id
    """,
)


@dataclass(frozen=True, slots=True)
class KnownEvent:
    """What is known of an event that is stored; `key` is None unless it is state."""

    room_nid: int
    status: int
    key: StateKey | None


@dataclass(frozen=True, slots=True)
class Gap:
    """An event whose prev_events we lack, and where what is fetched for it would be put."""

    event_id: EventId
    event_nid: int
    order_major: int
    lowest_minor: int

    @property
    def order(self) -> tuple[int, int]:
        """The highest place that fetched history can take: below all that is there."""
        return self.order_major, self.lowest_minor - 1


async def list_known(queries: Queries, event_ids: Iterable[EventId]) -> dict[EventId, KnownEvent]:
    """Return those of the events that are stored, in whatever room."""
    rows = await queries.fetch(LIST_KNOWN, list(event_ids))
    return {
        row[0]: KnownEvent(row[1], row[2], None if row[3] is None else (row[3], row[4]))
        for row in rows
    }


async def insert_gaps(queries: Queries, room_nid: int, event_nids: Sequence[int]) -> None:
    """Note that the prev_events of these events are missing."""
    await queries.execute(INSERT_GAPS, event_nids, room_nid)


async def list_gaps(queries: Queries, room_nid: int, from_major: int, to_major: int) -> list[Gap]:
    """Return the gaps of a room between two places, the newest first, a hundred at most."""
    rows = await queries.fetch(LIST_GAPS, room_nid, from_major, to_major)
    return [Gap(row[0], row[1], row[2], row[3]) for row in rows]


async def delete_gaps(queries: Queries, event_nids: Sequence[int]) -> None:
    """Note that nothing is missing before these events any more."""
    await queries.execute(DELETE_GAPS, event_nids)


async def list_servers(queries: Queries, room_nid: int, limit: int) -> list[ServerName]:
    """Return the other servers that are in a room, those with the most users there first."""
    return [row[0] for row in await queries.fetch(LIST_SERVERS, room_nid, limit)]


async def mark_redacted(queries: Queries, event_nid: int, redaction_id: EventId) -> None:
    """Note that an event was redacted, unless it has been before."""
    await queries.execute(MARK_REDACTED, event_nid, redaction_id)


async def insert_early_redactions(
    queries: Queries, redactions: Collection[tuple[EventId, EventId]]
) -> None:
    """Keep redactions, each given by its target and its own id, until their targets come."""
    targets, own_ids = [target for target, _ in redactions], [own for _, own in redactions]
    await queries.execute(INSERT_EARLY_REDACTIONS, targets, own_ids)


async def list_redactions(
    queries: Queries, event_ids: Sequence[EventId]
) -> list[tuple[EventId, EventId]]:
    """Return the redactions, unchecked, that name one of the events: target and redaction."""
    return [(row[0], row[1]) for row in await queries.fetch(LIST_REDACTIONS, event_ids)]
