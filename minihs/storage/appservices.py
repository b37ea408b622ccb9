"""Application services: what each has been sent, who acts through them, their room directories.

A transaction is written down before it is sent: whoever repeats it, after whatever went wrong,
sends the same. Of several processes that serve one service by mistake only one can begin the next
transaction, and only whoever began one can end it: its id says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.storage.sql import statement

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from minihs.storage.database import Queries


@dataclass(frozen=True, slots=True)
class ServiceRow:
    """How far an application service has been served.

    `txn_body` and `txn_upto` are of the transaction that it has not taken yet, None: there is none.
    """

    service_id: str
    position: int
    txn_id: int
    txn_upto: int | None
    txn_body: str | None
    failures: int
    retry_at_ms: int


@dataclass(frozen=True, slots=True)
class Mask:
    """An account that an application service may act as, and the stream's position.

    `device_nid` is None when there is no such device, or none was named.
    """

    device_nid: int | None
    admin: bool
    guest: bool
    deactivated: bool
    position: int


# A new one begins here and now. Ids of transactions count from the time, so that a service that
# remembers them is not confused by a server with a new database.
INSERT_SERVICES = statement(
    "appservices.insert_services",
    """
    INSERT INTO appservices (service_id, position, txn_id)
    SELECT new.service_id, s.position, $2
    FROM unnest($1::text[]) AS new (service_id)
    CROSS JOIN stream s
    ON CONFLICT (service_id) DO NOTHING
    """,
)

# Primary key, as all that follow. That a transaction was begun must be durable, lest another got
# its id. That it was taken need not be: it is only sent again.
LIST_SERVICES = statement(
    "appservices.list_services",
    """
    SELECT service_id, position, txn_id, txn_upto, txn_body, failures, retry_at_ms
    FROM appservices
    WHERE service_id = ANY($1::text[])
    """,
)

BEGIN_TRANSACTION = statement(
    "appservices.begin_transaction",
    """
    UPDATE appservices
    SET txn_id = txn_id + 1, txn_upto = $3, txn_body = $4, failures = 0, retry_at_ms = 0
    WHERE service_id = $1 AND txn_id = $2 AND txn_upto IS NULL
    RETURNING txn_id
    """,
)

END_TRANSACTION = statement(
    "appservices.end_transaction",
    """
    UPDATE appservices
    SET position = txn_upto, txn_upto = NULL, txn_body = NULL, failures = 0, retry_at_ms = 0
    WHERE
      service_id = $1 AND txn_id = $2 AND txn_upto IS NOT NULL
      AND set_config('synchronous_commit', 'off', true) = 'off'
    RETURNING true
    """,
)

MARK_FAILED = statement(
    "appservices.mark_failed",
    """
    UPDATE appservices
    SET failures = $3, retry_at_ms = $4
    WHERE
      service_id = $1 AND txn_id = $2
      AND set_config('synchronous_commit', 'off', true) = 'off'
    """,
)

REPLACE_BODY = statement(
    "appservices.replace_body",
    """
    UPDATE appservices SET txn_body = $3
    WHERE service_id = $1 AND txn_id = $2 AND txn_body IS NOT NULL
    """,
)

MARK_DUE = statement(
    "appservices.mark_due",
    "UPDATE appservices SET retry_at_ms = 0 WHERE service_id = $1 AND retry_at_ms > 0",
)

LIST_DUE = statement(
    "appservices.list_due",
    """
    SELECT service_id
    FROM appservices
    WHERE
      service_id = ANY($1::text[]) AND failures > 0
      AND (retry_at_ms <= $2 OR retry_at_ms > $3)
    """,
)

SAVE_POSITIONS = statement(
    "appservices.save_positions",
    """
    UPDATE appservices a
    SET position = new.position
    FROM unnest($1::text[], $2::bigint[]) AS new (service_id, position)
    WHERE a.service_id = new.service_id AND a.txn_upto IS NULL AND a.position < new.position
    """,
)

# Primary key of accounts; index devices_user_id_device_id_key.
LIST_MASKS = statement(
    "appservices.list_masks",
    """
    SELECT
      a.user_id, asked.device_id, d.device_nid, a.admin, a.guest,
      a.deactivated_ms IS NOT NULL AS deactivated, s.position
    FROM stream s
    CROSS JOIN unnest($1::text[], $2::text[]) AS asked (user_id, device_id)
    JOIN accounts a ON a.user_id = asked.user_id
    LEFT JOIN devices d ON d.user_id = asked.user_id AND d.device_id = asked.device_id
    """,
)

# Primary key of accounts.
LIST_UNKNOWN_USERS = statement(
    "appservices.list_unknown_users",
    """
    SELECT asked.user_id
    FROM unnest($1::text[]) AS asked (user_id)
    WHERE NOT EXISTS (SELECT FROM accounts a WHERE a.user_id = asked.user_id)
    """,
)

# Unique index rooms_room_id_key; the rows of those rooms by the primary key of memberships.
LIST_LOCAL_MEMBERS = statement(
    "appservices.list_local_members",
    """
    SELECT r.room_id, m.user_id
    FROM rooms r
    JOIN memberships m ON m.room_nid = r.room_nid AND m.local
    WHERE r.room_id = ANY($1::text[])
    """,
)

# Index room_aliases_room_id.
LIST_ALIASES = statement(
    "appservices.list_aliases",
    "SELECT room_id, alias FROM room_aliases WHERE room_id = ANY($1::text[])",
)

# Primary key: of those that are sticky still, those that had been refused when they came.
LIST_LATE_STICKY = statement(
    "appservices.list_late_sticky",
    """
    SELECT s.event_id
    FROM sticky_events s
    JOIN events e ON e.event_id = s.event_id
    WHERE
      s.event_id = ANY($1::text[]) AND s.checked_state IS NOT NULL
      AND s.position > coalesce(e.position, 0)
    """,
)

# Primary key of to_device_messages, then of devices.
LIST_TO_DEVICE = statement(
    "appservices.list_to_device",
    """
    SELECT d.user_id, d.device_id, m.json
    FROM unnest($1::bigint[], $2::bigint[]) AS asked (position, device_nid)
    JOIN to_device_messages m
      ON m.device_nid = asked.device_nid AND m.position = asked.position
    JOIN devices d ON d.device_nid = m.device_nid
    ORDER BY m.position, d.device_nid
    """,
)

# Primary key.
DELETE_TO_DEVICE = statement(
    "appservices.delete_to_device",
    """
    DELETE FROM to_device_messages m
    USING unnest($1::bigint[], $2::bigint[]) AS given (position, device_nid)
    WHERE m.device_nid = given.device_nid AND m.position = given.position
    """,
)

# Unique index rooms_room_id_key.
INSERT_ROOM = statement(
    "appservices.insert_room",
    """
    INSERT INTO appservice_rooms (service_id, network_id, room_nid)
    SELECT $1, $2, room_nid FROM rooms WHERE room_id = $3
    ON CONFLICT DO NOTHING
    """,
)

# The same, and the primary key.
DELETE_ROOM = statement(
    "appservices.delete_room",
    """
    DELETE FROM appservice_rooms a
    USING rooms r
    WHERE r.room_id = $3 AND a.service_id = $1 AND a.network_id = $2 AND a.room_nid = r.room_nid
    """,
)


async def insert_services(queries: Queries, service_ids: Sequence[str], now_ms: int) -> None:
    """Let services that are new be served from the stream's present end on."""
    await queries.execute(INSERT_SERVICES, service_ids, now_ms)


async def list_services(queries: Queries, service_ids: Sequence[str]) -> list[ServiceRow]:
    """Return how far services have been served."""
    return [ServiceRow(*row) for row in await queries.fetch(LIST_SERVICES, service_ids)]


async def begin_transaction(
    queries: Queries, service_id: str, after_txn: int, upto: int, body: str
) -> int | None:
    """Write down the transaction that follows another; return its id.

    None: somebody else has begun it, or the one before has not been taken.
    """
    txn_id = await queries.fetchval(BEGIN_TRANSACTION, service_id, after_txn, upto, body)
    return txn_id if isinstance(txn_id, int) else None


async def end_transaction(queries: Queries, service_id: str, txn_id: int) -> bool:
    """Note that a service has taken a transaction; False: that was noted already."""
    return await queries.fetchval(END_TRANSACTION, service_id, txn_id) is True


async def mark_failed(
    queries: Queries, service_id: str, txn_id: int, failures: int, retry_at_ms: int
) -> None:
    """Note that a service has not taken a transaction, and until when to leave it alone."""
    await queries.execute(MARK_FAILED, service_id, txn_id, failures, retry_at_ms)


async def replace_body(queries: Queries, service_id: str, txn_id: int, body: str) -> None:
    """Write down that a transaction that was not taken says something else."""
    await queries.execute(REPLACE_BODY, service_id, txn_id, body)


async def mark_due(queries: Queries, service_id: str) -> None:
    """Let a service be tried now, if it is left alone."""
    await queries.execute(MARK_DUE, service_id)


async def list_due(
    queries: Queries, service_ids: Sequence[str], now_ms: int, latest_ms: int
) -> set[str]:
    """Return the services that failed and may be tried now.

    No pause that holds ends after `latest_ms`: one that does has outlived a clock put back.
    """
    return {row[0] for row in await queries.fetch(LIST_DUE, service_ids, now_ms, latest_ms)}


async def save_positions(queries: Queries, positions: Mapping[str, int]) -> None:
    """Note up to where there was nothing for services that have no transaction under way."""
    await queries.execute(SAVE_POSITIONS, list(positions), list(positions.values()))


async def list_masks(
    queries: Queries, asked: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], Mask]:
    """Return the accounts of (user, device) that exist; no device is an empty one."""
    rows = await queries.fetch(LIST_MASKS, [user for user, _ in asked], [d for _, d in asked])
    return {(row[0], row[1]): Mask(*row[2:]) for row in rows}


async def list_unknown_users(queries: Queries, user_ids: Collection[str]) -> list[str]:
    """Return those of the users of this server who have no account."""
    return [row[0] for row in await queries.fetch(LIST_UNKNOWN_USERS, list(user_ids))]


async def list_local_members(queries: Queries, room_ids: Collection[str]) -> list[tuple[str, str]]:
    """Return (room, user) for each user of this server who is or was in one of the rooms."""
    rows = await queries.fetch(LIST_LOCAL_MEMBERS, list(room_ids))
    return [(row[0], row[1]) for row in rows]


async def list_aliases(queries: Queries, room_ids: Collection[str]) -> list[tuple[str, str]]:
    """Return (room, alias) for each alias of this server that points to one of the rooms."""
    return [(row[0], row[1]) for row in await queries.fetch(LIST_ALIASES, list(room_ids))]


async def list_late_sticky(queries: Queries, event_ids: Collection[str]) -> set[str]:
    """Return those of the sticky events that were refused first, and accepted later (MSC4354)."""
    return {row[0] for row in await queries.fetch(LIST_LATE_STICKY, list(event_ids))}


async def list_to_device(
    queries: Queries, places: Sequence[tuple[int, int]]
) -> list[tuple[str, str, str]]:
    """Return user, device and JSON of the messages at (position, device_nid) that are left."""
    rows = await queries.fetch(LIST_TO_DEVICE, [p for p, _ in places], [d for _, d in places])
    return [(row[0], row[1], row[2]) for row in rows]


async def delete_to_device(queries: Queries, places: Sequence[tuple[int, int]]) -> None:
    """Delete the messages at (position, device_nid)."""
    await queries.execute(DELETE_TO_DEVICE, [p for p, _ in places], [d for _, d in places])


async def update_listed(
    queries: Queries, service_id: str, network_id: str, room_id: str, *, listed: bool
) -> None:
    """Put a room into the directory of a service's network, or take it out."""
    await queries.execute(INSERT_ROOM if listed else DELETE_ROOM, service_id, network_id, room_id)
