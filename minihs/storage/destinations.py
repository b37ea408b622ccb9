"""Other servers as destinations: how far each has been served, and what it is owed (D5).

There is no row for an event and a destination. The stream is the outbox: a destination has a
position in it, and a row of its own only since something was sent to it. Where it is *behind*, what
it is owed is found here, set by set: the newest event of each room that it shares with us.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.storage.sql import BatchStatement, array_literal, statement

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from minihs.storage.database import Queries


@dataclass(frozen=True, slots=True)
class DestinationRow:
    """How far a server has been served, and when it may be tried again.

    Everything up to `position` was delivered or is not owed. `behind`: what it is owed since then
    must be looked up. `is_down`: at the last attempt it gave no answer of its own. `txn_id` and
    `txn_positions` are of a transaction that must be repeated before any other is sent.
    """

    server_name: str
    shard: int
    position: int
    behind: bool = False
    failures: int = 0
    retry_at_ms: int = 0
    is_down: bool = False
    last_success_ms: int | None = None
    txn_id: str | None = None
    txn_positions: tuple[int, ...] = ()


_COLUMNS = """
      server_name, shard, position, behind, failures, retry_at_ms, is_down, last_success_ms, txn_id,
      txn_positions
"""

# Primary key. It need not wait for the disk: what is lost is sent again, and a shard's position is
# never written before what it builds upon.
UPSERT_DESTINATIONS = BatchStatement(
    "destinations.upsert_destinations",
    f"""
    INSERT INTO destinations ({_COLUMNS})
    SELECT
      new.server_name, new.shard, new.position, new.behind, new.failures, new.retry_at_ms,
      new.is_down, new.last_success_ms, new.txn_id, new.txn_positions::bigint[]
    FROM {{new}}
    WHERE set_config('synchronous_commit', 'off', true) = 'off'
    ORDER BY new.server_name
    ON CONFLICT (server_name) DO UPDATE
    SET
      position = excluded.position, behind = excluded.behind, failures = excluded.failures,
      retry_at_ms = excluded.retry_at_ms, is_down = excluded.is_down,
      last_success_ms = coalesce(excluded.last_success_ms, destinations.last_success_ms),
      txn_id = excluded.txn_id, txn_positions = excluded.txn_positions
    """,  # noqa: S608  # a constant
    {
        "new": {
            "server_name": "text", "shard": "smallint", "position": "bigint", "behind": "boolean",
            "failures": "integer", "retry_at_ms": "bigint", "is_down": "boolean",
            "last_success_ms": "bigint", "txn_id": "text", "txn_positions": "text",
        },
    },
)  # fmt: skip

# Indexes destinations_behind and destinations_shard.
LIST_OF_SHARDS = statement(
    "destinations.list_of_shards",
    f"""
    SELECT {_COLUMNS} FROM destinations WHERE shard = ANY($1::smallint[]) AND position > $2
    UNION
    SELECT {_COLUMNS} FROM destinations WHERE shard = ANY($1::smallint[]) AND behind
    """,  # noqa: S608  # a constant
)

# Index destinations_behind, a range of it each time.
LIST_DUE = statement(
    "destinations.list_due",
    """
    SELECT server_name
    FROM destinations
    WHERE shard = ANY($1::smallint[]) AND behind AND retry_at_ms <= $2
    UNION
    SELECT server_name
    FROM destinations
    WHERE shard = ANY($1::smallint[]) AND behind AND retry_at_ms > $3
    """,
)

# Index destinations_behind.
LIST_PAUSED = statement(
    "destinations.list_paused",
    """
    SELECT server_name, retry_at_ms, is_down
    FROM destinations
    WHERE behind AND retry_at_ms > $1 AND retry_at_ms <= $2
    """,
)

# Primary key.
MARK_DUE = statement(
    "destinations.mark_due",
    """
    UPDATE destinations
    SET retry_at_ms = $2
    WHERE server_name = $1 AND retry_at_ms > $2
    """,
)

# --- shards: which process serves which destinations -------------------------------------------

INSERT_SHARDS = statement(
    "destinations.insert_shards",
    """
    INSERT INTO delivery_shards (shard, position, holder, until_ms)
    SELECT shard, 0, '', 0
    FROM generate_series(0, $1::integer - 1) AS shard
    ON CONFLICT DO NOTHING
    """,
)

# Primary key. The row lock makes one of several who ask the winner.
TAKE_SHARDS = statement(
    "destinations.take_shards",
    """
    UPDATE delivery_shards
    SET holder = $1, until_ms = $4
    WHERE shard = ANY($2::smallint[]) AND (
      holder = $1 OR until_ms <= $3 OR until_ms - 60000 > $4
    )
    RETURNING shard, position
    """,
)

# Primary key.
SAVE_POSITIONS = statement(
    "destinations.save_positions",
    """
    UPDATE delivery_shards s
    SET position = new.position, until_ms = CASE WHEN $4 THEN 0 ELSE s.until_ms END
    FROM unnest($2::smallint[], $3::bigint[]) AS new (shard, position)
    WHERE s.shard = new.shard AND s.holder = $1
    """,
)

# --- who is in which room ----------------------------------------------------------------------

# Primary key of memberships, the rows of the rooms concerned. The stream's position says as of
# when this is true.
LIST_JOINED_SERVERS = statement(
    "destinations.list_joined_servers",
    """
    SELECT s.position, found.room_id, found.server_name, found.count
    FROM stream s
    LEFT JOIN (
      SELECT r.room_id, j.server_name, j.count
      FROM rooms r
      CROSS JOIN LATERAL (
        SELECT substr(m.user_id, strpos(m.user_id, ':') + 1) AS server_name, count(*) AS count
        FROM memberships m
        WHERE m.room_nid = r.room_nid AND m.membership = 'join'
        GROUP BY 1
      ) AS j
      WHERE r.room_id = ANY($1::text[])
    ) AS found ON true
    """,
)

# --- what those who are behind are owed --------------------------------------------------------


async def upsert_destinations(queries: Queries, rows: Sequence[DestinationRow]) -> None:
    """Write how far several servers, each named once, have been served."""
    new = [
        (
            r.server_name, r.shard, r.position, r.behind, r.failures, r.retry_at_ms, r.is_down,
            r.last_success_ms, r.txn_id, array_literal(r.txn_positions),
        )
        for r in rows
    ]  # fmt: skip
    await queries.execute(UPSERT_DESTINATIONS.text, *UPSERT_DESTINATIONS.arguments({"new": new}))


async def list_of_shards(
    queries: Queries, shards: Collection[int], after: int
) -> list[DestinationRow]:
    """Return those destinations of some shards that are behind, or ahead of a position."""
    rows = await queries.fetch(LIST_OF_SHARDS, list(shards), after)
    return [DestinationRow(**{**row, "txn_positions": tuple(row["txn_positions"])}) for row in rows]


async def list_due(
    queries: Queries, shards: Collection[int], now_ms: int, latest_ms: int
) -> list[str]:
    """Return the servers of some shards that are behind and may be tried now.

    No pause that holds ends after `latest_ms`: one that does has outlived a clock put back.
    """
    return [row[0] for row in await queries.fetch(LIST_DUE, list(shards), now_ms, latest_ms)]


async def list_paused(queries: Queries, now_ms: int, latest_ms: int) -> list[tuple[str, int, bool]]:
    """Return the servers that are left alone, until when each is, and if it is as it is down.

    `latest_ms` as for `list_due`.
    """
    rows = await queries.fetch(LIST_PAUSED, now_ms, latest_ms)
    return [(row[0], row[1], row[2]) for row in rows]


async def mark_due(queries: Queries, server_name: str, now_ms: int) -> None:
    """Let a server be tried now, if it is left alone."""
    await queries.execute(MARK_DUE, server_name, now_ms)


async def insert_shards(queries: Queries, count: int) -> None:
    """Make the shards, if this has not been done."""
    await queries.execute(INSERT_SHARDS, count)


async def take_shards(
    queries: Queries, holder: str, shards: Collection[int], now_ms: int, until_ms: int
) -> dict[int, int]:
    """Take or renew the leases of some shards; return the positions of those that could be had."""
    rows = await queries.fetch(TAKE_SHARDS, holder, list(shards), now_ms, until_ms)
    return {row[0]: row[1] for row in rows}


async def save_positions(
    queries: Queries, holder: str, positions: Mapping[int, int], *, give_back: bool = False
) -> None:
    """Note what the destinations of shards have been served up to; perhaps end their leases."""
    await queries.execute(
        SAVE_POSITIONS, holder, list(positions), list(positions.values()), give_back
    )


async def list_joined_servers(
    queries: Queries, room_ids: Collection[str]
) -> tuple[int, dict[str, dict[str, int]]]:
    """Return the stream's position, and how many users of which servers are joined to rooms."""
    rows = await queries.fetch(LIST_JOINED_SERVERS, list(room_ids))
    found: dict[str, dict[str, int]] = {}
    for _, room_id, server_name, count in rows:
        if room_id is not None:
            found.setdefault(room_id, {})[server_name] = count
    return rows[0][0], found
