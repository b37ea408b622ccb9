"""Reading events by id, and the cache of what was read.

An event never changes, so it may stay in memory (D4). Whether it is redacted does change: the
stream's follower reports each redaction in commit order to `note_redaction`, and whatever was read
from the database while that happened is checked against the recent ones. Stays that a kick or ban
redacted (MSC4293) are reported to `note_stay`; those that are not purged are known from the start.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING

from minihs.base.batching import Batcher
from minihs.base.caching import BoundedCache
from minihs.protocol import canonical_json
from minihs.protocol.canonical_json import INTEGER_MAX
from minihs.protocol.events import Event
from minihs.protocol.redaction import redact
from minihs.protocol.room_versions import ROOM_VERSIONS
from minihs.storage.sql import statement

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from minihs.protocol.identifiers import EventId
    from minihs.storage.database import Queries, Row
    from minihs.storage.stream_rows import StayRedaction

ACCEPTED, SOFT_FAILED, REJECTED = 0, 1, 2
RECENT_REDACTIONS_MAX = 10_000
PURGED_STAYS_MAX = 1_000

COLUMNS = """
      e.event_id, e.json, r.room_version, e.event_nid, e.redacted_by, e.position, e.order_major,
      e.order_minor, e.status, e.state_before, e.state_after, e.room_state_before,
      e.room_state_after, e.main_count, e.thread_root, e.device_nid, e.txn_id, e.notifies,
      e.sticky_until_ms
"""

COLUMN_COUNT = 19

# Unique index events_event_id_key.
LOAD_EVENTS = statement(
    "event_store.load_events",
    f"""
    SELECT {COLUMNS}
    FROM events e
    JOIN rooms r ON r.room_nid = e.room_nid
    WHERE e.event_id = ANY($1::text[])
    """,  # noqa: S608  # a constant
)

# Unique index events_transaction_key.
FIND_BY_TRANSACTION = statement(
    "event_store.find_by_transaction",
    """
    SELECT e.event_id
    FROM events e
    JOIN rooms r ON r.room_nid = e.room_nid
    WHERE e.device_nid = $1 AND e.txn_id = $2 AND e.txn_scope = $3 AND r.room_id = $4
    """,
)


class StoredEvent:
    """An event with what this server knows of it.

    `order` is its place in the room (None: an outlier); `state_before` and `state_after` the state
    before and after the event; `room_state_before` and `room_state_after` the room's current state
    without and with it; `notifies` whether it counts as unread for users with default push rules;
    `sticky_until_ms` the moment its stickiness ends (MSC4354).
    """

    __slots__ = (
        "after_gap",
        "client_head",
        "client_quotes",
        "client_unsigned",
        "device_nid",
        "event",
        "event_nid",
        "main_count",
        "notifies",
        "order",
        "position",
        "redacted_by",
        "room_state_after",
        "room_state_before",
        "state_after",
        "state_before",
        "status",
        "sticky_until_ms",
        "thread_root",
        "txn_id",
    )

    def __init__(  # a row
        self,
        event: Event,
        event_nid: int,
        *,
        redacted_by: EventId | None = None,
        position: int | None = None,
        order: tuple[int, int] | None = None,
        status: int = ACCEPTED,
        state_before: int | None = None,
        state_after: int | None = None,
        room_state_before: int | None = None,
        room_state_after: int | None = None,
        main_count: int | None = None,
        thread_root: EventId | None = None,
        device_nid: int | None = None,
        txn_id: str | None = None,
        notifies: bool = False,
        sticky_until_ms: int | None = None,
    ) -> None:
        self.event = event
        self.event_nid = event_nid
        self.redacted_by = redacted_by
        self.position = position
        self.order = order
        self.status = status
        self.state_before = state_before
        self.state_after = state_after
        self.room_state_before = room_state_before
        self.room_state_after = room_state_after
        self.main_count = main_count
        self.thread_root = thread_root
        self.device_nid = device_nid
        self.txn_id = txn_id
        self.notifies = notifies
        self.sticky_until_ms = sticky_until_ms
        self.after_gap = False  # We lack events that it names as previous; see `timelines`.
        self.client_head: bytes | None = None  # These three: see services/rooms/client_events.py.
        self.client_quotes: tuple[EventId, ...] = ()
        self.client_unsigned = b""

    @property
    def event_id(self) -> EventId:
        """The event's id."""
        return self.event.event_id

    @property
    def sent_ms(self) -> int:
        """When its sender says that it was sent, as near as the database can note it."""
        return max(-INTEGER_MAX, min(self.event.origin_server_ts, INTEGER_MAX))

    def stick_until(self, end_ms: int) -> None:
        """Let the event be sticky until a moment, or until one that was noted when it came first.

        MSC4354#proposal
        """
        noted_ms = self.sticky_until_ms
        self.sticky_until_ms = end_ms if noted_ms is None else min(noted_ms, end_ms)

    def redact_for_good(self, because_id: EventId, replaces: Collection[str] = ()) -> None:
        """Take an event's content away, also from those who look at it otherwise than to show it.

        The id and the signatures stay right (Spec: server-server-api#signing-events), and so does
        what authorization needs. A redaction that came before stays the reason, unless this one
        `replaces` it.
        """
        event = self.event
        pdu = redact(event.pdu, event.room_version)
        self.event = Event.from_pdu(pdu, event.room_version, event.event_id)
        if self.redacted_by is None or self.redacted_by in replaces:
            self.redacted_by = because_id
        self.thread_root = self.sticky_until_ms = None
        self.client_head = None


_NO_STAYS: Mapping[EventId, StayRedaction] = {}


class EventStore:
    """Events by id, from memory where possible."""

    def __init__(self, queries: Queries, budget_bytes: int) -> None:
        self._queries = queries
        self._cache: BoundedCache[EventId, StoredEvent] = BoundedCache(budget_bytes)
        self._loader: Batcher[EventId, StoredEvent] = Batcher(self._load)
        self._recent_redactions: OrderedDict[EventId, EventId] = OrderedDict()
        self._stays: dict[str, dict[EventId, StayRedaction]] = {}
        self._purged_stays: OrderedDict[tuple[str, EventId], None] = OrderedDict()

    @property
    def cached_bytes(self) -> int:
        """How much of its budget the cache uses."""
        return self._cache.weight

    def cached(self, event_id: EventId) -> StoredEvent | None:
        """Return an event that is in memory, or None."""
        return self._cache.get(event_id)

    async def get(self, event_id: EventId) -> StoredEvent | None:
        """Return an event, or None when this server does not have it."""
        return self._cache.get(event_id) or await self._loader.load(event_id)

    async def get_many(
        self, event_ids: Iterable[EventId], queries: Queries | None = None
    ) -> dict[EventId, StoredEvent]:
        """Return those of the events that this server has."""
        found: dict[EventId, StoredEvent] = {}
        missing: list[EventId] = []
        for event_id in event_ids:
            stored = self._cache.get(event_id)
            if stored is None:
                missing.append(event_id)
            else:
                found[event_id] = stored
        if missing:
            found |= await self._load(missing, queries)
        return found

    async def _load(
        self, event_ids: Sequence[EventId], queries: Queries | None = None
    ) -> dict[EventId, StoredEvent]:
        rows = await (queries or self._queries).fetch(LOAD_EVENTS, event_ids)
        loaded = self.from_rows(rows)
        for stored in loaded:
            self.remember(stored)
        return {stored.event_id: stored for stored in loaded}

    def note_accepted(self, event_id: EventId) -> None:
        """Show, if it is in memory, a soft-failed event that has passed its checks (MSC4354)."""
        stored = self._cache.get(event_id)
        if stored is not None and stored.status == SOFT_FAILED:
            stored.status = ACCEPTED

    async def find_by_transaction(
        self, room_id: str, device_nid: int, txn_id: str, scope: str
    ) -> EventId | None:
        """Return the event that a device sent to a room with a transaction id, or None."""
        return await self._queries.fetchval(  # type: ignore[return-value]  # a text column
            FIND_BY_TRANSACTION, device_nid, txn_id, scope, room_id
        )

    def from_rows(self, rows: Sequence[Row]) -> list[StoredEvent]:
        """Return the events of rows of `COLUMNS`."""
        return [self.from_row(row) for row in rows]

    def from_row(self, row: Row, first: int = 0) -> StoredEvent:
        """Return the event of a row in which `COLUMNS` begin at `first`.

        An event that is in memory with the same facts is the same object.
        """
        (
            event_id, json, room_version, event_nid, redacted_by, position, major, minor, status,
            state_before, state_after, room_state_before, room_state_after, main_count, thread_root,
            device_nid, txn_id, notifies, sticky_until_ms,
        ) = row[first : first + COLUMN_COUNT]  # fmt: skip
        known = self._cache.get(event_id)
        if known is not None and known.status == status and known.order is not None:
            if redacted_by is not None and known.redacted_by is None:
                self.note_redaction(event_id, redacted_by)  # By history that another has fetched.
            return known
        stored = StoredEvent(
            Event.from_json(json, ROOM_VERSIONS[room_version], event_id),
            event_nid,
            redacted_by=redacted_by or self._recent_redactions.get(event_id),
            position=position,
            order=None if major is None else (major, minor),
            status=status,
            state_before=state_before,
            state_after=state_after,
            room_state_before=room_state_before,
            room_state_after=room_state_after,
            main_count=main_count,
            thread_root=thread_root,
            device_nid=device_nid,
            txn_id=txn_id,
            notifies=notifies,
            sticky_until_ms=sticky_until_ms,
        )
        if self._stays:
            self.redact_by_stays(stored)
        return stored

    def remember(self, stored: StoredEvent) -> None:
        """Keep an event that was read or committed."""
        self._cache.put(stored.event_id, stored, len(stored.event.json) * 3 + 1_000)

    def forget(self, event_id: EventId) -> None:
        """Drop an event that was not committed after all."""
        self._cache.discard(event_id)

    def drop_committed(self) -> None:
        """Drop what can be read again: part of the stream was skipped."""
        for stored in [s for s in self._cache.values() if s.position is not None]:
            self._cache.discard(stored.event_id)

    def drop_room(self, room_id: str) -> None:
        """Drop the events of a room that is being deleted."""
        named = b'"room_id":' + canonical_json.encode(room_id)
        created_by = "$" + room_id[1:]  # Since v12, this event does not name the room.
        for stored in list(self._cache.values()):
            if named in stored.event.json or stored.event_id == created_by:
                self._cache.discard(stored.event_id)

    def note_redaction(self, event_id: EventId, redaction_id: EventId) -> None:
        """Take notice of a committed redaction."""
        self._recent_redactions[event_id] = redaction_id
        if len(self._recent_redactions) > RECENT_REDACTIONS_MAX:
            self._recent_redactions.popitem(last=False)
        stored = self._cache.get(event_id)
        if stored is not None and stored.redacted_by is None:
            stored.redacted_by = redaction_id
            stored.client_head = None

    def is_any_redacted(self, event_ids: Iterable[EventId]) -> bool:
        """Return whether one of some events, read before, has been redacted since."""
        for event_id in event_ids:
            stored = self._cache.get(event_id)
            if event_id in self._recent_redactions or (stored and stored.redacted_by is not None):
                return True
        return False

    def note_stay(self, stay: StayRedaction, window: Iterable[StoredEvent] = ()) -> None:
        """Take notice that a stay has been redacted, or of more that is known of it (MSC4293).

        From now on its events are redacted when they are read, until the purge has rewritten them,
        and those of `window` and of the cache at once; whatever quotes its user is made anew.
        """
        of_user = self._stays.setdefault(stay.user_id, {})
        known = of_user.get(stay.because_id)
        if known is not None and known.upto > stay.upto:  # As the row: it has come into force anew.
            stay = replace(stay, upto=known.upto, purged=known.purged)
        of_user[stay.because_id] = stay
        if stay.purged:  # What was read before may still be on its way.
            self._purged_stays[stay.user_id, stay.because_id] = None
            if len(self._purged_stays) > PURGED_STAYS_MAX:
                self._forget_purged_stay()
            return
        self._purged_stays.pop((stay.user_id, stay.because_id), None)
        user = canonical_json.encode(stay.user_id)
        sender = b'"sender":' + user
        for stored in (*self._cache.values(), *window):
            if sender in stored.event.json:
                _redact_if_covered(stored, stay)
            elif user in stored.client_unsigned:
                stored.client_head = None

    def _forget_purged_stay(self) -> None:
        (user_id, because_id), _ = self._purged_stays.popitem(last=False)
        of_user = self._stays[user_id]
        del of_user[because_id]
        if not of_user:
            del self._stays[user_id]

    def redact_by_stays(self, stored: StoredEvent) -> None:
        """Redact an event if a stay that it is of has been redacted."""
        for _, stay in sorted(self._stays.get(stored.event.sender, _NO_STAYS).items()):
            _redact_if_covered(stored, stay)


def _redact_if_covered(stored: StoredEvent, stay: StayRedaction) -> None:
    """Redact an event if it is of a stay, and did not come later: then it has been judged."""
    if (
        stored.redacted_by != stay.because_id
        and (stored.position or 0) <= stay.upto
        and stay.covers(stored.event)
    ):
        stored.redact_for_good(stay.because_id, stay.replaces)
