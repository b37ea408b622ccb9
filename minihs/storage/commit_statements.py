"""The statement that commits events: one for a whole batch of rooms, senders and effects (D2).

It verifies and bumps the version of every room concerned, takes the batch's positions last, and
inserts everything that depends on them. Where a room has moved it does nothing at all: it returns
no row, or fails. Values go in as arrays, so its cost hardly depends on the size of the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.storage.sql import BatchStatement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minihs.storage.sql import Columns

# What the statements are given: for each event, and for what it causes, a row. `ordinal` is the
# place of the event in the batch, from 1.
_OF_MESSAGES: Mapping[str, Columns | str] = {
    "seen": {
        "room_nid": "bigint", "version": "bigint", "extremities": "text", "state_id": "bigint",
        "main_count": "bigint",
    },
    "taken": "bigint",
    "new": {
        "ordinal": "bigint", "event_nid": "bigint", "event_id": "text", "room_nid": "bigint",
        "status": "smallint", "key_nid": "bigint", "state_before": "bigint",
        "state_after": "bigint", "room_state_before": "bigint", "room_state_after": "bigint",
        "auth_nids": "text", "main_count": "bigint", "thread_root": "text", "notifies": "boolean",
        "sticky_until_ms": "bigint", "device_nid": "bigint", "txn_id": "text",
        "txn_scope": "text", "redacted_by": "text", "sent_ms": "bigint", "json": "text",
    },
    "own": {"room_nid": "bigint", "user_id": "text", "ordinal": "bigint", "main_count": "bigint"},
    "pushes": {
        "user_id": "text", "room_nid": "bigint", "ordinal": "bigint", "thread_root": "text",
        "notify_delta": "smallint", "highlight": "boolean",
    },
}  # fmt: skip
_OF_EVENTS: Mapping[str, Columns | str] = {
    **_OF_MESSAGES,
    "made": {
        "room_nid": "bigint", "room_id": "text", "room_version": "text", "extremities": "text",
        "state_id": "bigint", "main_count": "bigint", "published": "boolean",
    },
    "states": {
        "state_id": "bigint", "parent_id": "bigint", "chain": "integer", "size": "integer",
    },
    "entries": {
        "state_id": "bigint", "key_nid": "bigint", "event_nid": "bigint", "event_id": "text",
    },
    "members": {
        "room_nid": "bigint", "user_id": "text", "membership": "text", "event_id": "text",
        "sender": "text", "ordinal": "bigint", "local": "boolean", "forgotten": "boolean",
        "display_name": "text", "avatar_url": "text", "read_ordinal": "bigint",
        "read_main_count": "bigint",
    },
    "invites": {"room_id": "text", "user_id": "text", "json": "text"},
    "redactions": {"event_id": "text", "redaction_id": "text", "room_nid": "bigint"},
    "threads": {
        "room_nid": "bigint", "user_id": "text", "thread_root": "text", "ordinal": "bigint",
    },
    "aliases": {"alias": "text", "room_id": "text", "creator": "text"},
    "sticky": {
        "event_id": "text", "room_nid": "bigint", "sender": "text", "until_ms": "bigint",
        "ordinal": "bigint", "waits_for": "text", "instead_of": "text",
    },
    "outcomes": {
        "delay_id": "text", "due_ms": "bigint", "finalised_ms": "bigint", "event_id": "text",
    },
}  # fmt: skip
_VERIFY = """
    WITH unmoved AS (
      SELECT count(*) AS rooms
      FROM {seen}
      JOIN rooms r ON r.room_nid = seen.room_nid AND r.version = seen.version
    ), bumped AS (
      UPDATE rooms r
      SET
        version = r.version + 1, extremities = seen.extremities::bigint[],
        state_id = seen.state_id, main_count = seen.main_count
      FROM {seen}
      WHERE
        r.room_nid = seen.room_nid AND r.version = seen.version
        AND (
          cardinality({seen.room_nid}) = 1
          OR (SELECT rooms FROM unmoved) = cardinality({seen.room_nid})
        )
      RETURNING 1
    ), last AS (
      UPDATE stream
      SET position = position + {taken}
      WHERE (
        -- One that moved while we looked: the others must not stay bumped. n / 0 undoes everything.
        SELECT CASE n
          WHEN cardinality({seen.room_nid}) THEN true WHEN 0 THEN false ELSE n / (n - n) > 0 END
        FROM (SELECT count(*) AS n FROM bumped) AS found
      )
      RETURNING position - {taken} AS base
    ), new_events AS (
      INSERT INTO events (
        event_nid, event_id, room_nid, position, order_major, status, key_nid, state_before,
        state_after, room_state_before, room_state_after, auth_nids, main_count, thread_root,
        notifies, sticky_until_ms, device_nid, txn_id, txn_scope, redacted_by, sent_ms, json
      )
      SELECT
        new.event_nid, new.event_id, new.room_nid, last.base + new.ordinal,
        CASE WHEN new.state_before IS NOT NULL THEN last.base + new.ordinal END, new.status,
        new.key_nid, new.state_before, new.state_after, new.room_state_before, new.room_state_after,
        new.auth_nids::bigint[], new.main_count, new.thread_root,
        new.notifies, new.sticky_until_ms, new.device_nid, new.txn_id, new.txn_scope,
        new.redacted_by, new.sent_ms, new.json
      FROM last, {new}
      -- An event that takes its place in the room only now keeps its number. Where its writer did
      -- not know that (another process has just stored it), all fails: others rest upon the number.
      ON CONFLICT (event_id) DO UPDATE
      SET
        position = excluded.position / (events.event_nid = excluded.event_nid)::integer,
        order_major = excluded.order_major,
        redacted_by = coalesce(events.redacted_by, excluded.redacted_by),
        json = CASE WHEN excluded.redacted_by IS NULL THEN events.json ELSE excluded.json END,
        status = excluded.status, state_before = excluded.state_before,
        state_after = excluded.state_after, room_state_before = excluded.room_state_before,
        room_state_after = excluded.room_state_after, main_count = excluded.main_count,
        thread_root = excluded.thread_root, notifies = excluded.notifies,
        sticky_until_ms = excluded.sticky_until_ms,
        auth_nids = coalesce(excluded.auth_nids, events.auth_nids)
      WHERE events.order_major IS NULL
    ), read AS (
      UPDATE memberships m
      SET
        read_main_position = last.base + own.ordinal, read_main_count = own.main_count
      FROM last, {own}
      WHERE m.room_nid = own.room_nid AND m.user_id = own.user_id
    ), pushed AS (
      INSERT INTO event_pushes (user_id, room_nid, position, thread_root, notify_delta, highlight)
      SELECT
        pushes.user_id, pushes.room_nid, last.base + pushes.ordinal, pushes.thread_root,
        pushes.notify_delta, pushes.highlight
      FROM last, {pushes}
    )
"""
_STATE = """
    , new_rooms AS (
      INSERT INTO rooms (
        room_nid, room_id, room_version, version, extremities, state_id, main_count, published
      )
      SELECT
        made.room_nid, made.room_id, made.room_version, 1, made.extremities::bigint[],
        made.state_id, made.main_count, made.published
      FROM last, {made}
    ), new_states AS (
      INSERT INTO states (state_id, parent_id, chain, size)
      SELECT states.*
      FROM last, {states}
    ), new_entries AS (
      INSERT INTO state_entries (state_id, key_nid, event_nid)
      SELECT
        entries.state_id, entries.key_nid,
        coalesce(
          entries.event_nid,
          (SELECT e.event_nid FROM events e WHERE e.event_id = entries.event_id)
        )
      FROM last, {entries}
    ), new_memberships AS (
      INSERT INTO memberships AS old (
        room_nid, user_id, membership, event_id, sender, position, order_major, joined_position,
        local, forgotten, display_name, avatar_url, read_position, read_main_position,
        read_main_count
      )
      SELECT
        members.room_nid, members.user_id, members.membership, members.event_id, members.sender,
        last.base + members.ordinal, last.base + members.ordinal, last.base + members.ordinal,
        members.local, members.forgotten, members.display_name, members.avatar_url,
        last.base + members.read_ordinal, last.base + members.read_ordinal,
        members.read_main_count
      FROM last, {members}
      ON CONFLICT (room_nid, user_id) DO UPDATE
      SET
        membership = excluded.membership, event_id = excluded.event_id, sender = excluded.sender,
        position = excluded.position, order_major = excluded.order_major,
        joined_position = CASE
          WHEN old.membership = 'join' AND excluded.membership = 'join'
          THEN old.joined_position ELSE excluded.position END,
        -- Whoever is banned from a room that they have forgotten does not remember it again.
        forgotten = old.forgotten AND excluded.membership IN ('leave', 'ban'),
        display_name = excluded.display_name,
        avatar_url = excluded.avatar_url,
        -- Whoever joins anew has nothing to catch up on; a new display name changes nothing.
        read_position = CASE
          WHEN old.membership = 'join' AND excluded.read_position = excluded.position
          THEN old.read_position ELSE excluded.read_position END,
        read_main_position = CASE
          WHEN old.membership = 'join' AND excluded.read_position = excluded.position
          THEN old.read_main_position ELSE excluded.read_main_position END,
        read_main_count = CASE
          WHEN old.membership = 'join' AND excluded.read_position = excluded.position
          THEN old.read_main_count ELSE excluded.read_main_count END
    ), invited AS (
      INSERT INTO invite_states (room_id, user_id, json)
      SELECT invites.* FROM last, {invites}
      ON CONFLICT (room_id, user_id) DO UPDATE SET json = excluded.json
    ), redacting AS (
      INSERT INTO redactions (event_id, redaction_id, room_nid)
      SELECT redactions.* FROM last, {redactions}
      ON CONFLICT DO NOTHING
    ), redacted AS (
      UPDATE events e
      SET redacted_by = redactions.redaction_id
      FROM last, {redactions}
      WHERE
        e.event_id = redactions.event_id AND e.room_nid = redactions.room_nid
        AND e.redacted_by IS NULL
        AND e.event_id <> ALL({new.event_id})  -- One that is written with it says so itself.
    ), threads_read AS (
      INSERT INTO thread_reads (room_nid, user_id, thread_root, position)
      SELECT threads.room_nid, threads.user_id, threads.thread_root, last.base + threads.ordinal
      FROM last, {threads}
      ON CONFLICT (room_nid, user_id, thread_root) DO UPDATE SET position = excluded.position
    ), new_aliases AS (
      INSERT INTO room_aliases (alias, room_id, creator)
      SELECT aliases.* FROM last, {aliases}
    ), stuck AS (
      INSERT INTO sticky_events (
        event_id, room_nid, sender, until_ms, position, waits_for, told_from
      )
      SELECT
        sticky.event_id, sticky.room_nid, sticky.sender, sticky.until_ms,
        CASE WHEN sticky.waits_for IS NULL THEN last.base + sticky.ordinal END,
        sticky.waits_for, s.position
      FROM
        last,
        {sticky}
        LEFT JOIN sticky_events s
          ON s.event_id = sticky.instead_of AND s.room_nid = sticky.room_nid
      -- Of what nobody has been sent, nobody is told that it was redacted.
      WHERE sticky.instead_of IS NULL OR s.position IS NOT NULL
      ON CONFLICT (event_id) DO UPDATE
      -- What has been delivered, out of its place, is not delivered again.
      SET
        position = coalesce(sticky_events.position, excluded.position),
        waits_for = excluded.waits_for
    ), unstuck AS (
      DELETE FROM sticky_events s
      USING last, {redactions}
      WHERE s.event_id = redactions.event_id AND s.room_nid = redactions.room_nid
    ), delayed AS (
      UPDATE delayed_events d
      SET finalised_ms = outcomes.finalised_ms, event_id = outcomes.event_id
      FROM last, {outcomes}
      WHERE
        d.delay_id = outcomes.delay_id AND d.due_ms = outcomes.due_ms AND d.finalised_ms IS NULL
      RETURNING 1
    )
"""
_RESULT = """
    SELECT last.base, pg_notify('minihs', (last.base + {taken})::text) FROM last
"""
# A delayed event may have been cancelled, sent or restarted since it was seen to be due: then, too,
# nothing at all may be written.
_UNLESS_SUPERSEDED = """
    WHERE 1 / (SELECT (count(*) = cardinality({outcomes.delay_id}))::integer FROM delayed) = 1
"""
# Primary keys of rooms and memberships; the stream's only row. The plain form is for messages.
COMMIT_MESSAGES = BatchStatement("commit_statements.messages", _VERIFY + _RESULT, _OF_MESSAGES)
COMMIT_EVENTS = BatchStatement(
    "commit_statements.events", _VERIFY + _STATE + _RESULT + _UNLESS_SUPERSEDED, _OF_EVENTS
)
