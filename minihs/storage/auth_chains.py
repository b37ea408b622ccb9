"""Auth chains: all that an event rests upon."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.storage.sql import statement

if TYPE_CHECKING:
    from collections.abc import Collection

    from minihs.protocol.identifiers import EventId
    from minihs.storage.database import Queries

# Unique index events_event_id_key, then the primary key: each event is visited once.
LIST_AUTH_CHAIN = statement(
    "auth_chains.list_auth_chain",
    """
    WITH RECURSIVE chain AS (
      SELECT e.event_nid, e.auth_nids
      FROM events e
      WHERE e.event_id = ANY($1::text[])
      UNION
      SELECT a.event_nid, a.auth_nids
      FROM chain c
      CROSS JOIN LATERAL unnest(c.auth_nids) AS named (event_nid)
      JOIN events a ON a.event_nid = named.event_nid
    )
    SELECT e.event_id
    FROM chain c
    JOIN events e ON e.event_nid = c.event_nid
    """,
)


async def list_auth_chain(queries: Queries, event_ids: Collection[EventId]) -> set[EventId]:
    """Return the ids of the events and of everything in their auth chains.

    The auth events of message events are not followed: nothing rests upon a message.
    """
    return {row[0] for row in await queries.fetch(LIST_AUTH_CHAIN, list(event_ids))}
