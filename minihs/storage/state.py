"""States of rooms: immutable maps in memory, deltas on one another in the database (D3).

A state is the map (type, state_key) -> event id at some moment of a room. In memory it is a
persistent map, so a room with 10,000 members costs one path of nodes per change, not a copy. In the
database it is a row that says which entries differ from its parent. A chain of deltas that has
grown as long as the state itself is re-based: the youngest state of the chain becomes a full
snapshot. So a change costs O(1) rows, amortised, and loading a state reads at most twice its size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import immutables

from minihs.base.caching import BoundedCache
from minihs.storage.sql import statement

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from minihs.protocol.identifiers import EventId, StateKey
    from minihs.storage.database import Queries, Row
    from minihs.storage.numbers import Numbers

EMPTY_STATE_ID = 0
CHAIN_MIN = 16  # Shorter chains are never re-based: reading them costs next to nothing.

DERIVED_CACHED_MAX = 2_000  # States that share nearly everything with the one before.
ENTRIES_LOADED_MAX = 500_000  # Of states that were loaded: each is a map of its own.
KEYS_CACHED_MAX = 50_000
RESOLUTIONS_CACHED_MAX = 10_000


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """The state of a room at some moment. `chain` counts the deltas between it and a snapshot."""

    state_id: int
    entries: immutables.Map[StateKey, EventId]
    chain: int

    def get(self, event_type: str, state_key: str = "") -> EventId | None:
        """Return the id of the event that holds a key, or None."""
        return self.entries.get((event_type, state_key))


EMPTY_STATE = State(EMPTY_STATE_ID, immutables.Map(), 0)


@dataclass(frozen=True, slots=True)
class StateRow:
    """A new state to be written: what it changes on its parent (None: the entry is gone)."""

    state_id: int
    parent_id: int | None
    chain: int
    size: int
    changes: Mapping[StateKey, EventId | None]


# Primary keys of states, state_entries, state_keys and events. A chain is walked from the youngest
# delta to its snapshot; of each key the entry nearest to the asked state counts.
LOAD_STATES = statement(
    "state.load_states",
    """
    WITH RECURSIVE chain AS (
      SELECT s.state_id AS asked, s.state_id, s.parent_id, 0 AS distance
      FROM states s
      WHERE s.state_id = ANY($1::bigint[])
      UNION ALL
      SELECT c.asked, p.state_id, p.parent_id, c.distance + 1
      FROM chain c
      CROSS JOIN LATERAL (
        SELECT s.state_id, s.parent_id FROM states s WHERE s.state_id = c.parent_id LIMIT 1
      ) AS p
    ), nearest AS (
      SELECT DISTINCT ON (c.asked, n.key_nid) c.asked, n.key_nid, n.event_nid
      FROM chain c
      JOIN state_entries n ON n.state_id = c.state_id
      ORDER BY c.asked, n.key_nid, c.distance
    )
    SELECT n.asked, k.type, k.state_key, e.event_id
    FROM nearest n
    JOIN state_keys k ON k.key_nid = n.key_nid
    JOIN events e ON e.event_nid = n.event_nid
    """,
)

LOAD_CHAINS = statement(
    "state.load_chains",
    "SELECT state_id, chain FROM states WHERE state_id = ANY($1::bigint[])",
)

# Makes a state a full snapshot. It says the same before and after, so nobody need be kept out.
REBASE_ENTRIES = statement(
    "state.rebase_entries",
    """
    WITH RECURSIVE chain AS (
      SELECT s.state_id, s.parent_id, 0 AS distance FROM states s WHERE s.state_id = $1
      UNION ALL
      SELECT p.state_id, p.parent_id, c.distance + 1
      FROM chain c
      CROSS JOIN LATERAL (
        SELECT s.state_id, s.parent_id FROM states s WHERE s.state_id = c.parent_id LIMIT 1
      ) AS p
    ), nearest AS (
      SELECT DISTINCT ON (n.key_nid) n.key_nid, n.event_nid
      FROM chain c
      JOIN state_entries n ON n.state_id = c.state_id
      ORDER BY n.key_nid, c.distance
    ), copied AS (
      INSERT INTO state_entries (state_id, key_nid, event_nid)
      SELECT $1, key_nid, event_nid FROM nearest WHERE event_nid IS NOT NULL
      ON CONFLICT DO NOTHING
      RETURNING 1
    )
    UPDATE states SET parent_id = NULL, chain = 0
    WHERE state_id = $1 AND (SELECT count(*) FROM copied) >= 0
    """,
)

# Unique index state_keys_type_state_key_key. Keys that are new are made, without waiting for the
# disk: whatever refers to them is committed later, and flushes them too.
UPSERT_KEYS = statement(
    "state.upsert_keys",
    """
    WITH asked AS (
      SELECT * FROM unnest($1::text[], $2::text[]) AS asked (type, state_key)
    ), made AS (
      INSERT INTO state_keys (type, state_key)
      SELECT a.type, a.state_key
      FROM asked a
      WHERE
        NOT EXISTS (
          SELECT FROM state_keys k WHERE k.type = a.type AND k.state_key = a.state_key
        )
        AND set_config('synchronous_commit', 'off', true) = 'off'
      ON CONFLICT DO NOTHING
      RETURNING key_nid, type, state_key
    )
    SELECT key_nid, type, state_key FROM made
    UNION ALL
    SELECT k.key_nid, k.type, k.state_key
    FROM asked a
    JOIN state_keys k ON k.type = a.type AND k.state_key = a.state_key
    """,
)


class StateStore:
    """Loads states and derives new ones; what it has seen it keeps, within a budget."""

    def __init__(self, queries: Queries, numbers: Numbers) -> None:
        self._queries = queries
        self.numbers = numbers
        self._derived: BoundedCache[int, State] = BoundedCache(DERIVED_CACHED_MAX)
        self._loaded: BoundedCache[int, State] = BoundedCache(ENTRIES_LOADED_MAX)
        self._keys: BoundedCache[StateKey, int] = BoundedCache(KEYS_CACHED_MAX)
        self.resolutions: BoundedCache[frozenset[int], int] = BoundedCache(RESOLUTIONS_CACHED_MAX)

    def cached(self, state_id: int) -> State | None:
        """Return a state that is in memory, or None."""
        if state_id == EMPTY_STATE_ID:
            return EMPTY_STATE
        return self._derived.get(state_id) or self._loaded.get(state_id)

    async def get(self, state_id: int) -> State:
        """Return a state.

        Raises:
            LookupError: there is no such state.
        """
        return self.cached(state_id) or (await self.get_many([state_id]))[state_id]

    async def get_many(
        self, state_ids: Iterable[int], queries: Queries | None = None
    ) -> dict[int, State]:
        """Return several states; those not in memory are read together.

        Raises:
            LookupError: one of them does not exist.
        """
        found: dict[int, State] = {}
        missing: list[int] = []
        for state_id in set(state_ids):
            state = self.cached(state_id)
            if state is None:
                missing.append(state_id)
            else:
                found[state_id] = state
        if missing:
            source = queries or self._queries
            chains = {r[0]: r[1] for r in await source.fetch(LOAD_CHAINS, missing)}
            if unknown := set(missing) - chains.keys():
                raise LookupError(f"there are no states {sorted(unknown)}")
            rows = await source.fetch(LOAD_STATES, missing)
            entries: dict[int, dict[StateKey, EventId]] = {state_id: {} for state_id in missing}
            for asked, event_type, state_key, event_id in rows:
                entries[asked][event_type, state_key] = event_id
            for state_id, mapping in entries.items():
                state = State(state_id, immutables.Map(mapping), chains[state_id])
                found[state_id] = state
                self._loaded.put(state_id, state, len(mapping) + 1)
        return found

    def remember(self, state: State) -> None:
        """Keep a state that was derived, and is or will be committed."""
        self._derived.put(state.state_id, state)

    def derive(
        self, parent: State, changes: Mapping[StateKey, EventId | None]
    ) -> tuple[State, StateRow]:
        """Return the state that `changes` make of `parent`, and the row that records it.

        A number must have been reserved.
        """
        entries = parent.entries
        if len(changes) == 1:
            ((key, event_id),) = changes.items()
            entries = entries.delete(key) if event_id is None else entries.set(key, event_id)
        else:
            with entries.mutate() as draft:
                for key, event_id in changes.items():
                    if event_id is None:
                        draft.pop(key, None)
                    else:
                        draft[key] = event_id
                entries = draft.finish()
        first = parent.state_id == EMPTY_STATE_ID
        chain = 0 if first else parent.chain + 1
        row = StateRow(
            self.numbers.take(),
            None if first else parent.state_id,
            chain,
            len(entries),
            dict(changes),
        )
        # What will be re-based counts as a snapshot from now on, or else all that are derived from
        # it would be re-based as well.
        return State(row.state_id, entries, 0 if needs_rebase(row) else chain), row

    async def rebase(self, row: StateRow) -> None:
        """Make a snapshot of a committed state whose chain has grown as long as the state."""
        await self._queries.execute(REBASE_ENTRIES, row.state_id)

    async def key_nids(self, queries: Queries, keys: Iterable[StateKey]) -> dict[StateKey, int]:
        """Return the surrogate key of each state key, making those that are new."""
        found: dict[StateKey, int] = {}
        missing: list[StateKey] = []
        for key in set(keys):
            nid = self._keys.get(key)
            if nid is None:
                missing.append(key)
            else:
                found[key] = nid
        if missing:
            missing.sort()
            columns = [t for t, _ in missing], [k for _, k in missing]
            rows: Sequence[Row] = ()
            while len(rows) < len(missing):  # Again only if another process made one just now.
                rows = await queries.fetch(UPSERT_KEYS, *columns)
            for row in rows:
                found[row[1], row[2]] = row[0]
                self._keys.put((row[1], row[2]), row[0])
        return found


def needs_rebase(row: StateRow) -> bool:
    """Return whether a state's chain has grown as long as the state itself."""
    return row.chain >= max(row.size, CHAIN_MIN)
