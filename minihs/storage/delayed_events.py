"""Delayed events (MSC4140): what is to be sent later, and what became of it.

A row is scheduled until `finalised_ms` is set, once and for all. That an event was sent is written
by the statement that writes the event (`storage.event_writes`), and only if the row is still as the
sender saw it; whoever cancels or restarts one changes the same row. So each is sent once or never,
whatever dies in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.storage.sql import statement

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from minihs.protocol.identifiers import EventId, RoomId, UserId
    from minihs.storage.database import Queries, Transaction


@dataclass(frozen=True, slots=True)
class DelayedEvent:
    """One delayed event. `content` and `error` are JSON; `due_ms` is `since_ms + delay_ms`.

    `sent_ms` is what it will claim as the time of its sending, None: that time.

    Finalised: it was sent (`event_id`), could not be sent (`error`), or else was cancelled.
    """

    delay_id: str
    user_id: UserId
    room_id: RoomId
    type: str
    state_key: str | None
    content: str
    sticky_ms: int | None
    sent_ms: int | None
    delay_ms: int
    since_ms: int
    due_ms: int
    finalised_ms: int | None = None
    event_id: EventId | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """The request that scheduled it: a repetition gets the same answer."""

    device_nid: int
    txn_id: str
    scope: str


_COLUMNS = """
      d.delay_id, d.user_id, d.room_id, d.type, d.state_key, d.content, d.sticky_ms, d.sent_ms,
      d.delay_ms, d.since_ms, d.due_ms, d.finalised_ms, d.event_id, d.error
"""

# Primary key of accounts. The lock orders what a user schedules, and a deactivation.
LOCK_OWNER = statement(
    "delayed_events.lock_owner",
    "SELECT true FROM accounts WHERE user_id = $1 AND deactivated_ms IS NULL FOR NO KEY UPDATE",
)

# Index delayed_events_user_due.
COUNT_SCHEDULED = statement(
    "delayed_events.count_scheduled",
    """
    SELECT count(*), min(due_ms) FROM delayed_events WHERE user_id = $1 AND finalised_ms IS NULL
    """,
)

INSERT = statement(
    "delayed_events.insert",
    """
    INSERT INTO delayed_events (
      delay_id, user_id, room_id, type, state_key, content, sticky_ms, sent_ms, delay_ms, since_ms,
      due_ms, device_nid, txn_id, txn_scope
    )
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
    """,
)

# Unique index delayed_events_transaction_key.
FIND_BY_REQUEST = statement(
    "delayed_events.find_by_request",
    """
    SELECT delay_id
    FROM delayed_events
    WHERE device_nid = $1 AND txn_id = $2 AND room_id = $3 AND txn_scope = $4
    """,
)

# Primary key.
FETCH = statement(
    "delayed_events.fetch",
    f"SELECT {_COLUMNS} FROM delayed_events d WHERE d.delay_id = $1",  # noqa: S608  # a constant
)

# Indexes delayed_events_user_due and delayed_events_user_finalised: what a user has is bounded.
LIST_PAGE = statement(
    "delayed_events.list_page",
    f"""
    WITH own AS (
      SELECT {_COLUMNS}
      FROM delayed_events d
      WHERE d.user_id = $1 AND d.finalised_ms IS NULL AND coalesce($2, 'scheduled') = 'scheduled'
      UNION ALL
      SELECT {_COLUMNS}
      FROM delayed_events d
      WHERE
        d.user_id = $1 AND d.finalised_ms IS NOT NULL
        AND CASE $2
          WHEN 'scheduled' THEN false
          WHEN 'sent' THEN d.event_id IS NOT NULL
          WHEN 'failed' THEN d.error IS NOT NULL
          WHEN 'cancelled' THEN d.event_id IS NULL AND d.error IS NULL
          ELSE true
        END
    )
    SELECT *
    FROM own
    WHERE
      due_ms >= $3 AND due_ms <= $4
      AND coalesce(room_id = $5, true) AND coalesce(type = $6, true)
      AND CASE WHEN $7 THEN (due_ms, delay_id) < ($8, $9) ELSE (due_ms, delay_id) > ($8, $9) END
    ORDER BY
      CASE WHEN $7 THEN -due_ms ELSE due_ms END,
      CASE WHEN $7 THEN delay_id END DESC,
      delay_id
    LIMIT $10
    """,  # noqa: S608  # a constant
)

# Index delayed_events_user_position.
LIST_OUTCOMES = statement(
    "delayed_events.list_outcomes",
    f"""
    SELECT {_COLUMNS}
    FROM delayed_events d
    WHERE d.user_id = $1 AND d.position > $2 AND d.position <= $3
    ORDER BY d.position
    """,  # noqa: S608  # a constant
)

# Index delayed_events_due.
LIST_DUE = statement(
    "delayed_events.list_due",
    f"""
    SELECT {_COLUMNS}
    FROM delayed_events d
    WHERE d.finalised_ms IS NULL AND d.due_ms <= $1
        AND NOT d.room_id = ANY($2::text[])
        AND NOT d.user_id = ANY($3::text[])
        AND NOT EXISTS (
            SELECT
            FROM unnest($4::text[], $5::text[]) AS pair (room_id, user_id)
            WHERE pair.room_id = d.room_id AND pair.user_id = d.user_id
        )
    ORDER BY d.due_ms, d.since_ms, d.delay_id
    LIMIT $6
    """,  # noqa: S608  # a constant
)

# Index delayed_events_due.
FETCH_NEXT_DUE = statement(
    "delayed_events.fetch_next_due",
    """
    SELECT due_ms
    FROM delayed_events
    WHERE finalised_ms IS NULL AND due_ms > $1
    ORDER BY due_ms
    LIMIT 1
    """,
)

# Index delayed_events_user_finalised.
COUNT_SENT_SINCE = statement(
    "delayed_events.count_sent_since",
    """
    SELECT count(*)
    FROM delayed_events
    WHERE user_id = $1 AND finalised_ms > $2 AND event_id IS NOT NULL
    """,
)

# Index delayed_events_due.
RESTART_AHEAD = statement(
    "delayed_events.restart_ahead",
    """
    UPDATE delayed_events
    SET since_ms = $1, due_ms = $1 + delay_ms
    WHERE finalised_ms IS NULL AND due_ms > $1 AND since_ms > $2
    """,
)

# Primary key, here and in what follows.
RESTART = statement(
    "delayed_events.restart",
    """
    UPDATE delayed_events
    SET since_ms = $2, due_ms = $2 + delay_ms
    WHERE delay_id = $1 AND finalised_ms IS NULL
    RETURNING true
    """,
)

CANCEL = statement(
    "delayed_events.cancel",
    """
    UPDATE delayed_events
    SET finalised_ms = $2
    WHERE delay_id = $1 AND finalised_ms IS NULL
    RETURNING true
    """,
)

# Index delayed_events_user_due.
CANCEL_ALL = statement(
    "delayed_events.cancel_all",
    "UPDATE delayed_events SET finalised_ms = $2 WHERE user_id = $1 AND finalised_ms IS NULL",
)

# Primary key; sorted, so that two processes cannot deadlock.
LOCK_SCHEDULED = statement(
    "delayed_events.lock_scheduled",
    """
    SELECT d.delay_id
    FROM delayed_events d
    JOIN unnest($1::text[], $2::bigint[]) AS seen (delay_id, due_ms) ON seen.delay_id = d.delay_id
    WHERE d.due_ms = seen.due_ms AND d.finalised_ms IS NULL
    ORDER BY d.delay_id
    FOR UPDATE OF d
    """,
)

# Index delayed_events_finalised.
DELETE_OLD = statement(
    "delayed_events.delete_old",
    """
    DELETE FROM delayed_events
    WHERE delay_id IN (
      SELECT delay_id
      FROM delayed_events
      WHERE finalised_ms <= $1
      ORDER BY finalised_ms
      LIMIT $2
    )
    """,
)

# Index delayed_events_finalised: those of whom something was finalised lately; then, of each, index
# delayed_events_user_finalised.
DELETE_SURPLUS = statement(
    "delayed_events.delete_surplus",
    """
    DELETE FROM delayed_events
    WHERE delay_id IN (
      SELECT surplus.delay_id
      FROM (SELECT DISTINCT user_id FROM delayed_events WHERE finalised_ms > $1) AS active
      CROSS JOIN LATERAL (
        SELECT ranked.delay_id
        FROM (
          SELECT
            delay_id,
            row_number() OVER newest_first AS rank,
            sum(octet_length(content)) OVER newest_first AS bytes
          FROM delayed_events d
          WHERE d.user_id = active.user_id AND d.finalised_ms IS NOT NULL
          WINDOW newest_first AS (ORDER BY d.finalised_ms DESC, d.delay_id)
        ) AS ranked
        WHERE ranked.rank > $2 OR ranked.bytes > $3
      ) AS surplus
    )
    """,
)


async def lock_owner(tx: Transaction, user_id: UserId) -> bool:
    """Make others who schedule for a user wait; return whether the user may: is not deactivated."""
    return await tx.fetchval(LOCK_OWNER, user_id) is True


async def count_scheduled(queries: Queries, user_id: UserId) -> tuple[int, int | None]:
    """Return how many events of a user are scheduled, and when the next one is due."""
    row = await queries.fetchrow(COUNT_SCHEDULED, user_id)
    return (0, None) if row is None else (row[0], row[1])


async def insert_delayed_event(
    tx: Transaction, event: DelayedEvent, request: Request | None
) -> None:
    """Schedule an event."""
    await tx.execute(
        INSERT,
        event.delay_id,
        event.user_id,
        event.room_id,
        event.type,
        event.state_key,
        event.content,
        event.sticky_ms,
        event.sent_ms,
        event.delay_ms,
        event.since_ms,
        event.due_ms,
        None if request is None else request.device_nid,
        None if request is None else request.txn_id,
        None if request is None else request.scope,
    )


async def find_by_request(queries: Queries, room_id: str, request: Request) -> str | None:
    """Return the delay id that an earlier request with the same transaction id got, or None."""
    return await queries.fetchval(  # type: ignore[return-value]  # a text column
        FIND_BY_REQUEST, request.device_nid, request.txn_id, room_id, request.scope
    )


async def fetch_delayed_event(queries: Queries, delay_id: str) -> DelayedEvent | None:
    """Return a delayed event, scheduled or finalised."""
    row = await queries.fetchrow(FETCH, delay_id)
    return None if row is None else DelayedEvent(*row)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which of a user's delayed events; None: it does not matter. Bounds are of the due time.

    `after` is the due time and id behind which the page begins, in the direction of the list.
    """

    status: str | None = None
    from_ms: int = 0
    to_ms: int = 2**62
    room_id: str | None = None
    type: str | None = None
    backward: bool = False
    after: tuple[int, str] | None = None


async def list_page(
    queries: Queries, user_id: UserId, wanted: Wanted, limit: int
) -> list[DelayedEvent]:
    """Return some of a user's delayed events in the order in which they are, or were, due."""
    first = (2**62, "") if wanted.backward else (-1, "")
    rows = await queries.fetch(
        LIST_PAGE, user_id, wanted.status, wanted.from_ms, wanted.to_ms, wanted.room_id,
        wanted.type, wanted.backward, *(wanted.after or first), limit,
    )  # fmt: skip
    return [DelayedEvent(*row) for row in rows]


async def list_outcomes(
    queries: Queries, user_id: UserId, after: int, upto: int
) -> list[DelayedEvent]:
    """Return what of a user was sent, or could not be, as told in (after, upto] of the stream."""
    return [DelayedEvent(*r) for r in await queries.fetch(LIST_OUTCOMES, user_id, after, upto)]


@dataclass(frozen=True, slots=True)
class Busy:
    """Of which delayed events nothing shall be sent now: those of rooms, of users, of both."""

    rooms: Collection[str] = ()
    users: Collection[str] = ()
    users_in_rooms: Collection[tuple[str, str]] = ()


async def list_due(queries: Queries, now_ms: int, busy: Busy, limit: int) -> list[DelayedEvent]:
    """Return the events that are due, the longest overdue first, but none of what is `busy`."""
    rows = await queries.fetch(
        LIST_DUE, now_ms, list(busy.rooms), list(busy.users),
        [room_id for room_id, _ in busy.users_in_rooms],
        [user_id for _, user_id in busy.users_in_rooms], limit,
    )  # fmt: skip
    return [DelayedEvent(*row) for row in rows]


async def fetch_next_due(queries: Queries, now_ms: int) -> int | None:
    """Return when the first event that is not due yet will be, or None."""
    return await queries.fetchval(FETCH_NEXT_DUE, now_ms)  # type: ignore[return-value]  # bigint


async def count_sent_since(queries: Queries, user_id: UserId, since_ms: int) -> int:
    """Return how many delayed events of a user have been sent since then."""
    return int(str(await queries.fetchval(COUNT_SENT_SINCE, user_id, since_ms)))


async def restart_ahead(queries: Queries, now_ms: int, after_ms: int) -> None:
    """Let the delay of all that is scheduled begin now, if it began after a moment."""
    await queries.execute(RESTART_AHEAD, now_ms, after_ms)


async def restart(queries: Queries, delay_id: str, now_ms: int) -> bool:
    """Let the delay begin again; return whether the event was scheduled."""
    return await queries.fetchval(RESTART, delay_id, now_ms) is True


async def cancel(queries: Queries, delay_id: str, now_ms: int) -> bool:
    """Cancel an event; return whether it was scheduled."""
    return await queries.fetchval(CANCEL, delay_id, now_ms) is True


async def cancel_all(queries: Queries, user_id: UserId, now_ms: int) -> None:
    """Cancel every scheduled event of a user."""
    await queries.execute(CANCEL_ALL, user_id, now_ms)


async def lock_scheduled(queries: Queries, seen: Sequence[tuple[str, int]]) -> set[str]:
    """Lock those of (delay id, due time) that are still so, till the transaction ends."""
    rows = await queries.fetch(
        LOCK_SCHEDULED, [delay_id for delay_id, _ in seen], [due_ms for _, due_ms in seen]
    )
    return {row[0] for row in rows}


async def delete_old(queries: Queries, until_ms: int, limit: int) -> int:
    """Forget up to `limit` events finalised until then; return how many there were."""
    return int((await queries.execute(DELETE_OLD, until_ms, limit)).split()[-1])


async def delete_surplus(
    queries: Queries, active_since_ms: int, count_max: int, bytes_max: int
) -> None:
    """Forget what was finalised longest ago of users who have more than that.

    Only users of whom something was finalised since `active_since_ms` are looked at.
    """
    await queries.execute(DELETE_SURPLUS, active_since_ms, count_max, bytes_max)
