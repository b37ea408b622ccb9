"""To whom something is owed: the servers of each room, known by following the stream.

`Recipients` reads the stream once, for all destinations together, and says which servers each event
of ours, receipt and typing notification goes to: those with a joined user in the room's current
state before the event or after it. So whoever is made to leave is told, and who comes in is told
of nothing that was before, but for what is sticky (MSC4354). Where state resolution makes a server
leave, by an event whose sender did not know that it was there, we are the ones to tell it.

Of a room it remembers how many users of which server are joined. That is read once, as of some
position, and taken back to where the reading is; from then on every event in the stream says how it
changed the room's state. Nothing is done for an event beyond that: a room's events of a stretch of
the stream are one list, which all its servers are handed. What is sticky
(MSC4354) is owed also to servers that come later.

Spec: server-server-api#pdus, server-server-api#joining-rooms
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from minihs.base.caching import BoundedCache
from minihs.protocol.identifiers import server_name_of
from minihs.protocol.membership import membership_of
from minihs.protocol.responsibility import passes_on
from minihs.services.federation.outgoing_edus import (
    OutgoingEdu,
    OutgoingPresence,
    OutgoingReceipt,
    TypingNotification,
)
from minihs.storage import destinations, presence, state_reads, sticky_events
from minihs.storage.event_store import ACCEPTED, StoredEvent
from minihs.storage.state import EMPTY_STATE_ID
from minihs.storage.stream_rows import PresenceWrite, ReceiptWrite, ToDeviceNews, TypingWrite

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from minihs.protocol.identifiers import EventId, StateKey
    from minihs.services.context import Services

SERVERS_MAX = 500_000  # Of all rooms that are remembered.
CHANGES_MAX = 1_000  # More changes of membership than these by one event: read the room anew.
PRESENCE_MAX = 500  # Of a room, told to a server that joins it,
NEWCOMERS_PAUSE_MS = 5_000  # after so long.
RECEIPT_TRANSACTIONS_PER_S = 50  # How many requests a room's read receipts may cause.
MEMBER = "m.room.member"
OUT = "leave"  # What somebody is of whom a room's state says nothing.


@dataclass(slots=True, eq=False)
class RoomServers:
    """How many users of which servers, ours among them, are joined to a room.

    `since` is a position up to which it is not to be asked. `told` is until when other servers have
    been told that users of ours type; `receipts` wait until `receipts_due_ms`.
    """

    joined: dict[str, int]
    since: int = 0
    told: dict[str, int] = field(default_factory=dict)
    receipts: list[OutgoingReceipt] = field(default_factory=list)
    receipts_due_ms: int = 0


@dataclass(slots=True)
class Share:
    """What some servers are owed, all of them the same; a PDU by its position in the stream.

    `is_backlog`: these are events of before, which the servers are owed since now. Messages to
    devices lie in the database, the newest one at position `messages_at`.
    """

    servers: Collection[str]
    pdus: list[StoredEvent] = field(default_factory=list)
    edus: list[OutgoingEdu] = field(default_factory=list)
    is_backlog: bool = False
    messages_at: int = 0


@dataclass(frozen=True, slots=True)
class _Change:
    """What an event made of a user's membership."""

    user_id: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class _Newcomers:
    """Servers that have joined a room, and when they are told who of ours is there.

    Not at once: they are still storing the room.
    """

    join: StoredEvent
    servers: Collection[str]
    due_ms: int


class Recipients:
    """Reads the stream for those who deliver. `position` is how far it has come."""

    def __init__(self) -> None:
        self.position = 0
        self._rooms: BoundedCache[str, RoomServers] = BoundedCache(SERVERS_MAX)
        self._with_receipts: dict[str, RoomServers] = {}
        self._newcomers: list[_Newcomers] = []

    def begin_at(self, position: int) -> None:
        """Forget all rooms and read on from a position."""
        self.position = position
        self._rooms = BoundedCache(SERVERS_MAX)
        self._with_receipts.clear()
        self._newcomers.clear()

    async def read(self, services: Services, upto: int) -> list[Share]:
        """Return what the stream up to a position, which has been seen, owes to whom.

        The caller moves `position` on when it has taken notice of it.
        """
        items = await services.follower.between(self.position, upto)
        wanted = {r for _, item in items for r in _rooms_with_news(services, item)}
        rooms = {r: known for r in wanted if (known := self._rooms.get(r)) is not None}
        rooms |= await self._load(services, wanted - rooms.keys(), self.position)
        shares: dict[str, Share] = {}
        done: list[Share] = []
        for position, item in items:
            if isinstance(item, StoredEvent):
                room_id = item.event.room_id
                room = rooms.get(room_id) or self._rooms.get(room_id)
                if room is None or position <= room.since or item.status != ACCEPTED:
                    continue
                if await self._read_event(services, item, room, shares, done):
                    rooms |= await self._load(services, [room_id], position)
            elif isinstance(item, TypingWrite) and (room := rooms.get(item.room_id)) is not None:
                edus = _typing_news(services, position, item, room)
                if edus:
                    _share(shares, item.room_id, room).edus += edus
            elif isinstance(item, ReceiptWrite) and (room := rooms.get(item.room_id)) is not None:
                self._hold_receipt(services, position, item, room)
            elif (share := _personal_news(services, position, item, rooms)) is not None:
                done.append(share)
        return done + list(shares.values())

    async def _read_event(
        self,
        services: Services,
        stored: StoredEvent,
        room: RoomServers,
        shares: dict[str, Share],
        done: list[Share],
    ) -> bool:
        """Note who is owed an event, and what it made of the room; True if that must be read."""
        event, own = stored.event, services.server_name
        changes = await _membership_changes(services, stored)
        if own not in room.joined and event.type == MEMBER and membership_of(event) == "join":
            changes = None  # We come back: what has been meanwhile, no event told us.
        ours = own in room.joined and passes_on(own, event)
        if ours:
            origin = server_name_of(event.sender)
            if origin == own:
                _share(shares, event.room_id, room).pdus.append(stored)
            else:
                self._close(shares, done, event.room_id, room)
                done.append(Share([s for s in room.joined if s != origin], [stored]))
        if changes is None:
            self._close(shares, done, event.room_id, room)
            return True
        steps = _steps(changes)
        gone, come = _difference(room.joined, steps)
        if gone or come:
            self._close(shares, done, event.room_id, room)
        _apply(room.joined, steps)
        if gone and not ours:
            unaware = await _unknown_to_sender(services, stored, gone - {own})
            if unaware:
                done.append(Share(unaware, [stored]))
        if own in room.joined and come - {own}:
            done += await _sticky_backlog(services, stored, come - {own})
            if services.config.presence_enabled:
                due_ms = services.clock.now_ms() + NEWCOMERS_PAUSE_MS
                self._newcomers.append(_Newcomers(stored, come - {own}, due_ms))
        if ours:
            told = come | {
                server_name_of(c.user_id)
                for c in changes
                if c.after in ("leave", "ban") and c.before in ("invite", "knock")
            }
            told -= {*room.joined.keys() - come, *gone, own, server_name_of(event.sender)}
            if told:
                done.append(Share(told, [stored]))
        return False

    def _close(
        self, shares: dict[str, Share], done: list[Share], room_id: str, room: RoomServers
    ) -> None:
        """Keep a room's share for the servers that are in it now."""
        share = shares.pop(room_id, None)
        if share is not None:
            share.servers = list(room.joined)
            done.append(share)

    # --- rooms ----------------------------------------------------------------------------------

    async def _load(
        self, services: Services, room_ids: Collection[str], position: int
    ) -> dict[str, RoomServers]:
        """Return the servers of rooms as they were at a position, and remember them."""
        if not room_ids:
            return {}
        read_at, joined = await destinations.list_joined_servers(services.db, room_ids)
        await services.follower.wait_for(read_at)
        rooms = {room_id: RoomServers(joined.get(room_id, {})) for room_id in room_ids}
        for _, item in reversed(await services.follower.between(position, read_at)):
            if isinstance(item, StoredEvent) and item.status == ACCEPTED:
                room = rooms.get(item.event.room_id)
                if room is None or room.since:
                    continue
                changes = await _membership_changes(services, item)
                if changes is None:  # What was before it is not ours to know.
                    room.since = item.position or 0
                else:
                    _apply(room.joined, _steps(changes), -1)
        for room_id, room in rooms.items():
            self._rooms.put(room_id, room, 1 + len(room.joined))
        return rooms

    # --- receipts -------------------------------------------------------------------------------

    def _hold_receipt(
        self, services: Services, position: int, receipt: ReceiptWrite, room: RoomServers
    ) -> None:
        """Let a receipt wait a little: the more servers there are, the longer.

        Spec: server-server-api#receipts
        """
        if len(room.joined) < 2:
            return
        if not room.receipts:
            pause_ms = 1_000 * (len(room.joined) - 1) // RECEIPT_TRANSACTIONS_PER_S
            room.receipts_due_ms = services.clock.now_ms() + pause_ms
            self._with_receipts[receipt.room_id] = room
        room.receipts.append(OutgoingReceipt(position, receipt))

    async def due(self, services: Services) -> tuple[list[Share], int | None]:
        """Return what has waited long enough (receipts, presence), and when more will have."""
        now_ms = services.clock.now_ms()
        waiting = self._with_receipts.items()
        due = [(room_id, room) for room_id, room in waiting if room.receipts_due_ms <= now_ms]
        shares = []
        for room_id, room in due:
            del self._with_receipts[room_id]
            shares.append(Share(list(room.joined), edus=list(room.receipts)))
            room.receipts.clear()
        later = [room.receipts_due_ms for room in self._with_receipts.values()]
        newcomers, self._newcomers = self._newcomers, []
        for newcomer in newcomers:
            if newcomer.due_ms <= now_ms:
                shares += await _presence_of_room(services, newcomer)
            else:
                self._newcomers.append(newcomer)
                later.append(newcomer.due_ms)
        return shares, min(later, default=None)


async def _sticky_backlog(
    services: Services, join: StoredEvent, servers: Collection[str]
) -> list[Share]:
    """Return what servers that join a room are owed: our sticky events that are still live.

    MSC4354#federation-behaviour
    """
    ids = await sticky_events.list_own_live(
        services.db,
        join.event.room_id,
        services.server_name,
        join.position or 0,
        services.clock.now_ms(),
    )
    events = await services.events.get_many(ids) if ids else {}
    live = [s for e in ids if (s := events.get(e)) is not None and s.redacted_by is None]
    return [Share(servers, live, is_backlog=True)] if live else []


def _rooms_with_news(services: Services, item: object) -> Sequence[str]:
    """Return the rooms of an item that other servers may have to hear of."""
    if isinstance(item, PresenceWrite):
        return item.room_ids if item.local else ()
    room_id = _room_with_news(services, item)
    return () if room_id is None else (room_id,)


def _room_with_news(services: Services, item: object) -> str | None:
    if isinstance(item, StoredEvent):
        if item.status != ACCEPTED:
            return None
        resolved = item.state_before != item.room_state_before != item.room_state_after
        if resolved or passes_on(services.server_name, item.event):
            return item.event.room_id
    elif isinstance(item, ReceiptWrite):
        if item.receipt_type == "m.read" and services.is_local(item.user_id):
            return item.room_id
    elif isinstance(item, TypingWrite):
        return item.room_id
    return None


def _share(shares: dict[str, Share], room_id: str, room: RoomServers) -> Share:
    share = shares.get(room_id)
    if share is None:
        share = shares[room_id] = Share(room.joined)
    return share


def _personal_news(
    services: Services, position: int, item: object, rooms: dict[str, RoomServers]
) -> Share | None:
    """Return what is news of users rather than rooms, and for which servers.

    What a user of ours is, for the servers that share a room with them; and messages to devices.
    """
    if isinstance(item, ToDeviceNews) and item.servers:
        return Share(item.servers, messages_at=position)
    if isinstance(item, PresenceWrite) and item.local:
        found = [room for r in item.room_ids if (room := rooms.get(r)) is not None]
        servers = {server for room in found for server in room.joined} - {services.server_name}
        if servers:
            return Share(servers, edus=[OutgoingPresence(position, item)])
    return None


async def _presence_of_room(services: Services, newcomers: _Newcomers) -> list[Share]:
    """Return what servers that have joined a room are told: who of ours in it is there."""
    position = newcomers.join.position or 0
    writes = await presence.list_of_rooms(
        services.db, [newcomers.join.event.room_id], PRESENCE_MAX, local_only=True
    )
    edus: list[OutgoingEdu] = [OutgoingPresence(position, write) for write in writes]
    return [Share(newcomers.servers, edus=edus)] if edus else []


def _typing_news(
    services: Services, position: int, typing: TypingWrite, room: RoomServers
) -> list[OutgoingEdu]:
    """Return whom of our users other servers must be told to type, or to type no longer."""
    now: dict[str, int] = {
        user_id: until_ms
        for user_id, until_ms in zip(typing.user_ids, typing.expires_ms, strict=True)
        if services.is_local(user_id)
    }
    told, room.told = room.told, now
    return [
        TypingNotification(position, typing.room_id, user_id, now.get(user_id, 0))
        for user_id in {**told, **now}
        if told.get(user_id) != now.get(user_id)
    ]


async def _membership_changes(services: Services, stored: StoredEvent) -> Sequence[_Change] | None:
    """Return how an event changed who is in its room; None if everything is different since it."""
    before, after = stored.room_state_before, stored.room_state_after
    if before == after or before is None or after is None:
        return ()
    event = stored.event
    keys: Iterable[StateKey]
    if stored.state_before == before and stored.state_after == after:
        if event.type != MEMBER:
            return ()
        old = await state_reads.load_entries(services.states, services.db, [before], [event.key])
        old_entries, new_entries = old[before], {event.key: event.event_id}
        keys = [event.key]
    elif before == EMPTY_STATE_ID:
        return None
    else:
        states = await services.states.get_many([before, after])
        old_map, new_map = states[before].entries, states[after].entries
        keys = {k for k, e in new_map.items() if k[0] == MEMBER and old_map.get(k) != e}
        keys |= {k for k in old_map if k[0] == MEMBER and k not in new_map}
        if len(keys) > CHANGES_MAX:
            return None
        old_entries = {k: e for k in keys if (e := old_map.get(k)) is not None}
        new_entries = {k: e for k in keys if (e := new_map.get(k)) is not None}
    ids = {*old_entries.values(), *new_entries.values()} - {event.event_id}
    events = await services.events.get_many(ids) if ids else {}
    events[event.event_id] = stored
    return [
        _Change(
            key[1],
            _membership(events, old_entries.get(key)),
            _membership(events, new_entries.get(key)),
        )
        for key in keys
    ]


def _membership(events: dict[EventId, StoredEvent], event_id: EventId | None) -> str:
    stored = events.get(event_id) if event_id is not None else None
    return (membership_of(stored.event) if stored is not None else None) or OUT


def _steps(changes: Iterable[_Change]) -> dict[str, int]:
    """Return by how many more users each server is joined after some changes."""
    steps: dict[str, int] = {}
    for change in changes:
        step = (change.after == "join") - (change.before == "join")
        if step:
            server = server_name_of(change.user_id)
            steps[server] = steps.get(server, 0) + step
    return steps


def _difference(joined: dict[str, int], steps: dict[str, int]) -> tuple[set[str], set[str]]:
    """Return the servers that steps would take out of a room, and those that they bring in."""
    gone = {s for s, n in steps.items() if s in joined and joined[s] + n <= 0}
    come = {s for s, n in steps.items() if s not in joined and n > 0}
    return gone, come


def _apply(joined: dict[str, int], steps: dict[str, int], sign: int = 1) -> None:
    for server, step in steps.items():
        count = joined.get(server, 0) + sign * step
        if count > 0:
            joined[server] = count
        else:
            joined.pop(server, None)


async def was_joined(services: Services, stored: StoredEvent, server_name: str) -> bool:
    """Return whether a server had a joined user in the room when an event was accepted.

    Spec: server-server-api#pdus
    """
    after = stored.room_state_after
    return after is not None and server_name in await joined_among(services, after, {server_name})


async def joined_among(
    services: Services, state_id: int, server_names: Collection[str]
) -> set[str]:
    """Return those of the servers that have a joined user in a state."""
    state = await services.states.get(state_id)
    ids = [
        event_id
        for (kind, user_id), event_id in state.entries.items()
        if kind == MEMBER and server_name_of(user_id) in server_names
    ]
    events = (await services.events.get_many(ids)).values()
    joined = (member.event for member in events if membership_of(member.event) == "join")
    return {server_name_of(event.state_key or "") for event in joined}


async def _unknown_to_sender(
    services: Services, stored: StoredEvent, servers: Collection[str]
) -> set[str]:
    """Return those of the servers that an event's sender took for not being in the room.

    It does not tell them of the event, by which others find that they are not: what they did
    meanwhile to come in, or to stay, the state resolution has undone.
    """
    if not servers or stored.state_before is None:
        return set()
    known = await joined_among(services, stored.state_before, servers)
    return {*servers} - known - {server_name_of(stored.event.sender)}


async def was_removed(services: Services, stored: StoredEvent) -> bool:
    """Return whether a member event put somebody out who was in the room, or on the way in."""
    changes = await _membership_changes(services, stored)
    return any(c.before in ("join", "invite", "knock") for c in changes or ())
