"""THE ONLY DOOR to a room's events: what of them a reader may see.

Whatever shows events to users (/sync, /messages, /context, /event, search, relations) asks
`visible`. The rule itself is `protocol.history_visibility`; here is what it needs to know, found
for many events at once: two entries of the state before each event, looked up once per state.

Beside the rule: events that were rejected, soft-failed, or are not in the room's history are shown
to nobody; events of ignored users are left out unless they are state; and of a sender who was
erased only those who were joined at the time get more than the redacted copy.

Spec: client-server-api#room-history-visibility, client-server-api#ignoring-users
MSC4115#proposal
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.protocol.events import Event
from minihs.protocol.history_visibility import (
    HistoryVisibility,
    ReaderState,
    history_visibility,
    may_see_erased,
    may_user_see,
    state_after,
)
from minihs.protocol.redaction import redact
from minihs.protocol.state_keys import HISTORY_VISIBILITY
from minihs.storage import events as event_reads
from minihs.storage import state_reads
from minihs.storage.event_store import ACCEPTED, StoredEvent

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from minihs.services.context import Services

Seen = tuple[StoredEvent, str]
"""An event that may be shown, and the reader's membership when it was sent."""

# What servers send to tie loose ends of a room's graph together. It says nothing to anybody. The
# name is that of other servers, so that theirs is hidden here, and ours there.
DUMMY_EVENT = "org.matrix.dummy_event"
DUMMY_TEXT = DUMMY_EVENT.encode()

# Of what has no place in the room nothing is known but that it is sticky.
UNPLACED = ReaderState(HistoryVisibility.JOINED, "leave")

MEMBER_EVENTS_MAX = 200  # How far back a user's last stay is looked for.


def is_dummy(stored: StoredEvent) -> bool:
    """Return whether an event only ties ends together. Nearly none is, so none is parsed for it."""
    event = stored.event
    return DUMMY_TEXT in event.json and event.type == DUMMY_EVENT


async def visible(
    services: Services,
    reader: str,
    events: Iterable[StoredEvent],
    *,
    joined_at: Mapping[str, int] | None = None,
    ignored: Collection[str] = (),
    sticky: bool = False,
) -> list[Seen]:
    """Return those of the events that `reader` may see, in the order given, with the membership.

    The events may be of any rooms. Read them before calling: what is true of the reader is read
    later than they are, so that nobody sees what came after they were removed.

    `joined_at` maps rooms to a position since which the reader is known to have been joined without
    a break until now (as a view of /sync knows): events since then cost no look-up, and nothing is
    read for such a room's membership. `ignored` are the users whose messages the reader ignores.
    `sticky`: what is sticky now is shown to whoever is joined now, whatever the history visibility
    (MSC4354#proposal). An event of an
    erased sender may be replaced by its redacted copy.

    Spec: client-server-api#room-history-visibility
    """
    since = joined_at or {}
    chosen: list[StoredEvent] = []
    decided: list[Seen | None] = []
    undecided: list[int] = []
    now_ms = services.clock.now_ms() if sticky else None
    for stored in events:
        if stored.status != ACCEPTED or is_dummy(stored):
            continue
        # What is sticky may be delivered before it has a place in the room's history.
        if (stored.order is None or stored.state_before is None) and not _is_live(stored, now_ms):
            continue
        if ignored and not stored.event.is_state and stored.event.sender in ignored:
            continue
        start = since.get(stored.event.room_id) if since else None
        if (
            start is not None
            and stored.position is not None
            and stored.position >= start
            and stored.state_before == stored.room_state_before
        ):
            decided.append((stored, "join"))
        else:
            undecided.append(len(decided))
            decided.append(None)
        chosen.append(stored)
    if undecided:
        found = await _decide(services, reader, [chosen[n] for n in undecided], since, now_ms)
        for n, seen in zip(undecided, found, strict=True):
            decided[n] = seen
    return [seen for seen in decided if seen is not None]


async def _decide(
    services: Services,
    reader: str,
    events: Sequence[StoredEvent],
    since: Mapping[str, int],
    now_ms: int | None,
) -> list[Seen | None]:
    """Return, for each event, what the reader gets of it; `now_ms` only where stickiness counts."""
    state_ids = {stored.state_before for stored in events if stored.state_before is not None}
    states = await reader_states(services, reader, state_ids)
    states.setdefault(0, UNPLACED)
    ends = await _stays(services, reader, events, states, since, now_ms)
    decided: list[Seen | None] = []
    strangers: set[str] = set()
    for stored in events:
        before = states[stored.state_before or 0]
        event = stored.event
        end = ends.get(event.room_id)
        joined_since = end is _EVER or (end is not None and (stored.order or end) < end)
        live = end is _EVER and _is_live(stored, now_ms)
        if not may_user_see(
            event, reader, before, joined_since=joined_since, sticky_to_member=live
        ):
            decided.append(None)
            continue
        after = state_after(event, before, reader).membership
        decided.append((stored, after))
        if not may_see_erased(before.membership, after) and services.is_local(event.sender):
            strangers.add(event.sender)
    if strangers and (erased := await event_reads.list_erased(services.db, strangers)):
        for n, seen in enumerate(decided):
            if seen is not None and seen[0].event.sender in erased:
                before = states[seen[0].state_before or 0]
                if not may_see_erased(before.membership, seen[1]):
                    decided[n] = (_redacted(seen[0]), seen[1])
    return decided


async def reader_states(
    services: Services, reader: str, state_ids: Collection[int]
) -> dict[int, ReaderState]:
    """Return what matters of each state to a reader."""
    member_key = ("m.room.member", reader)
    entries = await state_reads.load_entries(
        services.states, services.db, state_ids, (HISTORY_VISIBILITY, member_key)
    )
    wanted = {event_id for entry in entries.values() for event_id in entry.values()}
    known = await services.events.get_many(wanted)
    made: dict[tuple[str | None, str | None], ReaderState] = {}
    found: dict[int, ReaderState] = {}
    for state_id, entry in entries.items():
        ids = entry.get(HISTORY_VISIBILITY), entry.get(member_key)
        state = made.get(ids)
        if state is None:
            setting = known.get(ids[0]) if ids[0] is not None else None
            member = known.get(ids[1]) if ids[1] is not None else None
            membership = member.event.content.get("membership") if member is not None else None
            state = made[ids] = ReaderState(
                history_visibility(setting.event.content if setting is not None else None),
                membership if isinstance(membership, str) else "leave",
            )
        found[state_id] = state
    return found


_EVER = (2**63, 0)  # The end of a stay that has not ended.


async def _stays(
    services: Services,
    reader: str,
    events: Sequence[StoredEvent],
    states: Mapping[int, ReaderState],
    since: Mapping[str, int],
    now_ms: int | None,
) -> dict[str, tuple[int, int]]:
    """Return where in each room the reader's last stay ended, for the rooms where it matters."""
    rooms = {
        stored.event.room_id
        for stored in events
        if _is_live(stored, now_ms)
        or _depends_on_stay(stored.event, reader, states[stored.state_before or 0])
    }
    ends: dict[str, tuple[int, int]] = {room: _EVER for room in rooms if room in since}
    unknown = rooms - ends.keys()
    if not unknown:
        return ends
    for room_id in await event_reads.list_joined_among(services.db, unknown, reader):
        ends[room_id] = _EVER
    for room_id in unknown - ends.keys():
        left = await end_of_last_stay(services, room_id, reader)
        if left is not None and left.order is not None:
            ends[room_id] = left.order
    return ends


def _is_live(stored: StoredEvent, now_ms: int | None) -> bool:
    """Return whether an event is sticky, where that counts."""
    return (
        now_ms is not None
        and stored.sticky_until_ms is not None
        and stored.sticky_until_ms > now_ms
        and stored.redacted_by is None
    )


def _depends_on_stay(event: Event, reader: str, before: ReaderState) -> bool:
    """Return whether it matters if the reader joined after the event."""
    after = state_after(event, before, reader)
    return HistoryVisibility.SHARED in (before.visibility, after.visibility) and not (
        may_user_see(event, reader, before, joined_since=False)
    )


async def end_of_last_stay(services: Services, room_id: str, user_id: str) -> StoredEvent | None:
    """Return the event by which a user who is not joined left the room.

    None when they never were in it. A later invite, ban or knock changes nothing.
    """
    newest_first = await event_reads.list_member_events(
        services.db, services.events, room_id, user_id, MEMBER_EVENTS_MAX
    )
    left: StoredEvent | None = None
    for stored in newest_first:
        if stored.event.content.get("membership") == "join":
            return left
        left = stored
    return None


def _redacted(stored: StoredEvent) -> StoredEvent:
    """Return a copy of an event without what a redaction removes."""
    event = stored.event
    pdu = redact(event.pdu, event.room_version)
    return StoredEvent(
        Event.from_pdu(pdu, event.room_version, event.event_id),
        stored.event_nid,
        redacted_by=stored.redacted_by,
        position=stored.position,
        order=stored.order,
        status=stored.status,
        state_before=stored.state_before,
        state_after=stored.state_after,
        room_state_before=stored.room_state_before,
        room_state_after=stored.room_state_after,
        main_count=stored.main_count,
        thread_root=stored.thread_root,
        device_nid=stored.device_nid,
        txn_id=stored.txn_id,
        notifies=stored.notifies,
        sticky_until_ms=stored.sticky_until_ms,
    )
