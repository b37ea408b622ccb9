"""Reading the stream from the tables: the items of a range of positions, of whatever kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from minihs.storage.event_store import COLUMNS, StoredEvent
from minihs.storage.sql import statement
from minihs.storage.stream_rows import (
    PRESENCE_COLUMNS,
    AccountDataWrite,
    DelayedEventOutcome,
    DeviceListChange,
    ForgottenRoom,
    Membership,
    PresenceWrite,
    PurgedRoom,
    ReadRow,
    ReceiptWrite,
    StayRedaction,
    StickyEvent,
    ToDeviceNews,
    TypingWrite,
    UnignoredUser,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from minihs.storage.database import Database, Row

StreamItem = StoredEvent | Membership | ReadRow
Positioned = tuple[int, StreamItem]

# Unique index events_position_key.
LIST_EVENTS = statement(
    "stream_reads.list_events",
    f"""
    SELECT {COLUMNS}
    FROM events e
    JOIN rooms r ON r.room_nid = e.room_nid
    WHERE e.position > $1 AND e.position <= $2
    ORDER BY e.position
    """,  # noqa: S608  # a constant
)
# Found through the events that changed them. Those of other servers' users concern nobody's view.
LIST_MEMBERSHIPS = statement(
    "stream_reads.list_memberships",
    """
    SELECT
      m.position, r.room_id, m.user_id, m.membership, m.event_id, m.sender, m.local, m.forgotten,
      m.display_name, m.avatar_url, m.joined_position
    FROM events e
    JOIN rooms r ON r.room_nid = e.room_nid
    JOIN memberships m ON m.room_nid = e.room_nid AND m.position = e.position
    WHERE e.position > $1 AND e.position <= $2 AND e.key_nid IS NOT NULL AND m.local
    """,
)
# Index account_data_position.
LIST_ACCOUNT_DATA = statement(
    "stream_reads.list_account_data",
    """
    SELECT position, user_id, room_id, type, json
    FROM account_data
    WHERE position > $1 AND position <= $2
    """,
)
# Index receipts_position.
LIST_RECEIPTS = statement(
    "stream_reads.list_receipts",
    """
    SELECT t.position, r.room_id, t.user_id, t.receipt_type, t.thread_id, t.event_id, t.ts_ms
    FROM receipts t
    JOIN rooms r ON r.room_nid = t.room_nid
    WHERE t.position > $1 AND t.position <= $2
    """,
)
# Index sticky_events_position.
LIST_STICKY_EVENTS = statement(
    "stream_reads.list_sticky_events",
    """
    SELECT s.position, r.room_id, s.event_id, s.sender, s.until_ms
    FROM sticky_events s
    JOIN rooms r ON r.room_nid = s.room_nid
    WHERE s.position > $1 AND s.position <= $2
    """,
)
# Index unignored_position.
LIST_UNIGNORED = statement(
    "stream_reads.list_unignored",
    """
    SELECT position, user_id, sender, until_ms
    FROM unignored
    WHERE position > $1 AND position <= $2
    """,
)
# Index memberships_forgotten.
LIST_FORGOTTEN = statement(
    "stream_reads.list_forgotten",
    """
    SELECT m.forgotten_position, m.user_id, r.room_id
    FROM memberships m
    JOIN rooms r ON r.room_nid = m.room_nid
    WHERE m.forgotten AND m.forgotten_position > $1 AND m.forgotten_position <= $2
    """,
)
# Index delayed_events_position.
LIST_OUTCOMES = statement(
    "stream_reads.list_outcomes",
    """
    SELECT position, user_id, delay_id, due_ms, finalised_ms, event_id, error
    FROM delayed_events
    WHERE position > $1 AND position <= $2
    """,
)
# Index room_purges_position.
LIST_PURGED = statement(
    "stream_reads.list_purged",
    """
    SELECT p.position, r.room_id
    FROM room_purges p
    JOIN rooms r ON r.room_nid = p.room_nid
    WHERE p.position > $1 AND p.position <= $2
    """,
)
# Index redacted_stays_position.
LIST_STAY_REDACTIONS = statement(
    "stream_reads.list_stay_redactions",
    """
    SELECT
      s.position, r.room_id, s.user_id, s.first_join_id, s.because_id, s.join_ids,
      s.spared_ids, s.replaces, s.created_ms, s.upto, s.purged
    FROM redacted_stays s
    JOIN rooms r ON r.room_nid = s.room_nid
    WHERE s.position > $1 AND s.position <= $2
    """,
)
# Index redacted_stays_unpurged.
LIST_UNPURGED_STAYS = statement(
    "stream_reads.list_unpurged_stays",
    """
    SELECT
      r.room_id, s.user_id, s.first_join_id, s.because_id, s.join_ids, s.spared_ids, s.replaces,
      s.created_ms, s.upto, s.purged
    FROM redacted_stays s
    JOIN rooms r ON r.room_nid = s.room_nid
    WHERE NOT s.purged
    """,
)
# Index typing_position.
LIST_TYPING = statement(
    "stream_reads.list_typing",
    """
    SELECT t.position, r.room_id, t.user_ids, t.expires_ms
    FROM typing t
    JOIN rooms r ON r.room_nid = t.room_nid
    WHERE t.position > $1 AND t.position <= $2
    """,
)
# Indexes presence_position and memberships_user_id.
LIST_PRESENCE = statement(
    "stream_reads.list_presence",
    f"""
    SELECT
      p.position, {PRESENCE_COLUMNS},
      ARRAY(
        SELECT r.room_id
        FROM memberships m
        JOIN rooms r ON r.room_nid = m.room_nid
        WHERE m.user_id = p.user_id AND m.membership = 'join'
      )
    FROM presence p
    WHERE p.position > $1 AND p.position <= $2
    """,  # noqa: S608  # a constant
)
# Indexes device_lists_position and memberships_user_id.
LIST_DEVICE_LISTS = statement(
    "stream_reads.list_device_lists",
    """
    SELECT
      d.position, d.user_id,
      ARRAY(
        SELECT r.room_id
        FROM memberships m
        JOIN rooms r ON r.room_nid = m.room_nid
        WHERE m.user_id = d.user_id AND m.membership = 'join'
      )
    FROM device_lists d
    WHERE d.position > $1 AND d.position <= $2
    """,
)
ROWS: Final[tuple[tuple[str, Callable[..., StreamItem]], ...]] = (
    (LIST_MEMBERSHIPS, Membership),
    (LIST_ACCOUNT_DATA, AccountDataWrite),
    (LIST_RECEIPTS, ReceiptWrite),
    (LIST_TYPING, TypingWrite),
    (LIST_STICKY_EVENTS, StickyEvent),
    (LIST_UNIGNORED, UnignoredUser),
    (LIST_STAY_REDACTIONS, StayRedaction.of_row),
    (LIST_FORGOTTEN, ForgottenRoom),
    (LIST_OUTCOMES, DelayedEventOutcome),
    (LIST_PURGED, PurgedRoom),
    (LIST_PRESENCE, PresenceWrite),
    (LIST_DEVICE_LISTS, DeviceListChange),
)
"""Tables of the stream that have a row for each item: how to read them, and what they make."""
# Indexes to_device_messages_position and to_device_outbox_position.
LIST_TO_DEVICE = statement(
    "stream_reads.list_to_device",
    """
    SELECT m.position, d.user_id, m.device_nid, NULL AS server_name
    FROM to_device_messages m
    JOIN devices d ON d.device_nid = m.device_nid
    WHERE m.position > $1 AND m.position <= $2
    UNION ALL
    SELECT position, NULL, NULL, server_name
    FROM to_device_outbox
    WHERE position > $1 AND position <= $2
    """,
)
# Primary key of redactions: whether an accepted redaction names its target there.
FETCH_REDACTED = statement(
    "stream_reads.fetch_redacted",
    "SELECT event_id FROM redactions WHERE redaction_id = $1 AND event_id = $2",
)


async def read_rows(db: Database, after: int, upto: int) -> list[Positioned]:
    """Return the items of a range of positions that are no events, those of one table together."""
    items: list[Positioned] = []
    for text, make in ROWS:
        items += [(row[0], make(*tuple(row)[1:])) for row in await db.fetch(text, after, upto)]
    return items + _to_device_news(await db.fetch(LIST_TO_DEVICE, after, upto))


async def list_unpurged_stays(db: Database) -> list[StayRedaction]:
    """Return the stays whose events do not say yet that they are redacted."""
    return [StayRedaction.of_row(*row) for row in await db.fetch(LIST_UNPURGED_STAYS)]


def _to_device_news(rows: Iterable[Row]) -> list[Positioned]:
    """Return messages to devices: whatever was sent at once has one position."""
    devices: dict[int, list[tuple[str, int]]] = {}
    servers: dict[int, list[str]] = {}
    for position, user_id, device_nid, server_name in rows:
        if server_name is None:
            devices.setdefault(position, []).append((user_id, device_nid))
        else:
            servers.setdefault(position, []).append(server_name)
    return [
        (p, ToDeviceNews(tuple(devices.get(p, ())), tuple(servers.get(p, ()))))
        for p in {**devices, **servers}
    ]
