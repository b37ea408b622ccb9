"""Single entries of states, without loading the states.

Whether somebody may see an event depends on two entries of the state before it. Where the state is
in memory they are looked up; otherwise the chains of deltas of all asked states are walked
together, once, in the database: states of one room share most of their chains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.storage.sql import statement

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from minihs.protocol.identifiers import EventId, StateKey
    from minihs.storage.database import Queries, Row
    from minihs.storage.state import State, StateStore

# Primary keys of states and state_entries; unique indexes of state_keys. UNION (without ALL) walks
# the part that several chains have in common once. LIMIT and OFFSET keep the planner from reading
# whole tables for each step, as it would while it takes them for small.
LIST_ENTRIES_IN_LINES = statement(
    "state_reads.list_entries_in_lines",
    """
    WITH RECURSIVE line AS (
      SELECT s.state_id, s.parent_id
      FROM states s
      WHERE s.state_id = ANY($1::bigint[])
      UNION
      SELECT p.state_id, p.parent_id
      FROM line l
      CROSS JOIN LATERAL (
        SELECT s.state_id, s.parent_id FROM states s WHERE s.state_id = l.parent_id LIMIT 1
      ) AS p
    ), asked AS MATERIALIZED (
      SELECT k.key_nid, k.type, k.state_key
      FROM unnest($2::text[], $3::text[]) AS a (type, state_key)
      JOIN state_keys k ON k.type = a.type AND k.state_key = a.state_key
    )
    SELECT l.state_id, l.parent_id, found.type, found.state_key, found.event_id
    FROM line l
    LEFT JOIN LATERAL (
      SELECT a.type, a.state_key, e.event_id
      FROM state_entries n
      JOIN asked a ON a.key_nid = n.key_nid
      LEFT JOIN events e ON e.event_nid = n.event_nid
      WHERE n.state_id = l.state_id
      OFFSET 0
    ) AS found ON true
    """,
)

_Entries = dict["StateKey", "EventId | None"]


async def load_entries(
    states: StateStore,
    queries: Queries,
    state_ids: Collection[int],
    keys: Sequence[StateKey],
) -> dict[int, dict[StateKey, EventId]]:
    """Return, for each state, the event ids that hold those of the keys that it has.

    One statement for all states that are not in memory; it reads at most the rows of their chains.
    """
    known: dict[int, State] = {}
    missing: list[int] = []
    for state_id in state_ids:
        state = states.cached(state_id)
        if state is None:
            missing.append(state_id)
        else:
            known[state_id] = state
    if len(missing) == 1:  # Likely to be asked for again: a page of messages has one state.
        known |= await states.get_many(missing, queries)
        missing = []
    found = {state_id: _some(state, keys) for state_id, state in known.items()}
    if missing:
        types, state_keys = [t for t, _ in keys], [k for _, k in keys]
        rows = await queries.fetch(LIST_ENTRIES_IN_LINES, missing, types, state_keys)
        found |= _resolve(missing, rows)
    return found


def _some(state: State, keys: Sequence[StateKey]) -> dict[StateKey, EventId]:
    get = state.entries.get
    return {key: event_id for key in keys if (event_id := get(key)) is not None}


def _resolve(state_ids: Sequence[int], rows: Sequence[Row]) -> dict[int, dict[StateKey, EventId]]:
    """Return what each state says, from the parents and entries of every state in the lines."""
    parents: dict[int, int | None] = {}
    own: dict[int, _Entries] = {}
    for state_id, parent_id, event_type, state_key, event_id in rows:
        parents[state_id] = parent_id
        if event_type is not None:
            own.setdefault(state_id, {})[event_type, state_key] = event_id
    whole: dict[int, _Entries] = {}
    for state_id in state_ids:
        line: list[int] = []
        at: int | None = state_id
        while at is not None and at not in whole:
            line.append(at)
            at = parents.get(at)
        entries: _Entries = {} if at is None else whole[at]
        for below in reversed(line):
            if below in own:
                entries = entries | own[below]
            whole[below] = entries
    return {
        state_id: {key: event for key, event in whole[state_id].items() if event is not None}
        for state_id in state_ids
    }
