"""Messages to devices: what waits for this server's devices, and for other servers to take.

They are written through the stream (`stream_rows.ToDeviceSend`), and deleted when whom they are for
has said to have them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.storage.sql import statement

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from minihs.storage.database import Queries


@dataclass(frozen=True, slots=True)
class Target:
    """A device that a message may go to, and what waits for it: in all, and of one server."""

    user_id: str
    device_id: str
    device_nid: int
    count: int
    size: int
    count_of_server: int
    size_of_server: int


# Index devices_user_id_device_id_key; primary key of to_device_messages.
LIST_TARGETS = statement(
    "to_device.list_targets",
    """
    SELECT
      d.user_id, d.device_id, d.device_nid, held.count, coalesce(held.size, 0),
      held.count_of_server, coalesce(held.size_of_server, 0)
    FROM devices d
    CROSS JOIN LATERAL (
      SELECT
        count(*) AS count, sum(m.size) AS size,
        count(*) FILTER (WHERE m.of_server) AS count_of_server,
        sum(m.size) FILTER (WHERE m.of_server) AS size_of_server
      FROM (
        SELECT
          octet_length(json) AS size, substr(sender, strpos(sender, ':') + 1) = $2 AS of_server
        FROM to_device_messages
        WHERE device_nid = d.device_nid
      ) AS m
    ) AS held
    WHERE d.user_id = ANY($1::text[])
    """,
)

# Index devices_user_id_device_id_key; primary key of to_device_messages.
LIST_INBOXES = statement(
    "to_device.list_inboxes",
    """
    SELECT d.device_nid, min(m.position), max(m.position)
    FROM devices d
    JOIN to_device_messages m ON m.device_nid = d.device_nid
    WHERE d.user_id = $1
    GROUP BY d.device_nid
    """,
)

# Primary key.
LIST_MESSAGES = statement(
    "to_device.list_messages",
    """
    SELECT position, json
    FROM to_device_messages
    WHERE device_nid = $1 AND position > $2 AND position <= $3
    ORDER BY position
    LIMIT $4
    """,
)

# Primary key. It need not wait for the disk: what comes back in a crash is not asked for again.
DELETE_RECEIVED = statement(
    "to_device.delete_received",
    """
    DELETE FROM to_device_messages
    WHERE
      device_nid = $1 AND position <= $2
      AND set_config('synchronous_commit', 'off', true) = 'off'
    """,
)

# Primary key of to_device_outbox.
LIST_OWED = statement(
    "to_device.list_owed",
    """
    SELECT position, json
    FROM to_device_outbox
    WHERE server_name = $1
    ORDER BY position
    LIMIT $2
    """,
)

# Primary key of to_device_outbox.
LIST_FULL_OUTBOXES = statement(
    "to_device.list_full_outboxes",
    """
    SELECT asked.server_name
    FROM unnest($1::text[]) AS asked (server_name)
    CROSS JOIN LATERAL (
      SELECT count(*) AS count, coalesce(sum(octet_length(o.json)), 0) AS size
      FROM to_device_outbox o
      WHERE o.server_name = asked.server_name
    ) AS owed
    WHERE owed.count >= $2 OR owed.size >= $3
    """,
)

# A scan of the primary key of to_device_outbox, when a process begins to serve destinations.
LIST_SERVERS_OWED = statement(
    "to_device.list_servers_owed",
    "SELECT server_name, max(position) FROM to_device_outbox GROUP BY server_name",
)

# Primary key of to_device_outbox. What comes back in a crash is sent again, and known by its id.
DELETE_TAKEN = statement(
    "to_device.delete_taken",
    """
    DELETE FROM to_device_outbox
    WHERE
      server_name = $1 AND position = ANY($2::bigint[])
      AND set_config('synchronous_commit', 'off', true) = 'off'
    """,
)

# Index to_device_sends_sent_ms.
DELETE_SENDS_BEFORE = statement(
    "to_device.delete_sends_before", "DELETE FROM to_device_sends WHERE sent_ms < $1"
)


async def list_targets(
    queries: Queries, user_ids: Collection[str], sender_server: str
) -> list[Target]:
    """Return the devices of some users of this server."""
    rows = await queries.fetch(LIST_TARGETS, list(user_ids), sender_server)
    return [Target(*row[:4], *map(int, row[4:])) for row in map(tuple, rows)]


async def list_inboxes(queries: Queries, user_id: str) -> list[tuple[int, int, int]]:
    """Return a user's devices for which something waits, and where the first and the last lie."""
    return [(row[0], row[1], row[2]) for row in await queries.fetch(LIST_INBOXES, user_id)]


async def list_messages(
    queries: Queries, device_nid: int, after: int, upto: int, limit: int
) -> list[tuple[int, str]]:
    """Return the positions and the JSON of a device's messages in (after, upto], oldest first."""
    rows = await queries.fetch(LIST_MESSAGES, device_nid, after, upto, limit)
    return [(row[0], row[1]) for row in rows]


async def delete_received(queries: Queries, device_nid: int, upto: int) -> None:
    """Delete what a device has received."""
    await queries.execute(DELETE_RECEIVED, device_nid, upto)


async def list_owed(queries: Queries, server_name: str, limit: int) -> list[tuple[int, str]]:
    """Return positions and contents of the first EDUs that another server has not taken."""
    return [(row[0], row[1]) for row in await queries.fetch(LIST_OWED, server_name, limit)]


async def list_full_outboxes(
    queries: Queries, server_names: Sequence[str], count: int, size: int
) -> list[str]:
    """Return those of some servers for which that many EDUs wait, or so many bytes."""
    rows = await queries.fetch(LIST_FULL_OUTBOXES, server_names, count, size)
    return [row[0] for row in rows]


async def list_servers_owed(queries: Queries) -> dict[str, int]:
    """Return the servers for which something waits, and where the newest of it lies."""
    return {row[0]: row[1] for row in await queries.fetch(LIST_SERVERS_OWED)}


async def delete_taken(queries: Queries, server_name: str, positions: Sequence[int]) -> None:
    """Delete what another server has taken."""
    await queries.execute(DELETE_TAKEN, server_name, positions)


async def delete_sends_before(queries: Queries, sent_ms: int) -> None:
    """Forget which requests to send messages were made before a moment."""
    await queries.execute(DELETE_SENDS_BEFORE, sent_ms)
