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
from minihs.services.federation.room_servers import (
    MEMBER,
    apply_steps,
    difference,
    membership_changes,
    steps_of,
    unknown_to_sender,
)
from minihs.storage import destinations, presence, sticky_events
from minihs.storage.event_store import ACCEPTED, StoredEvent
from minihs.storage.stream_rows import PresenceWrite, ReceiptWrite, ToDeviceNews, TypingWrite

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from minihs.services.context import Services

SERVERS_MAX = 500_000  # Of all rooms that are remembered.
PRESENCE_MAX = 500  # Of a room, told to a server that joins it,
NEWCOMERS_PAUSE_MS = 5_000  # after so long.
RECEIPT_TRANSACTIONS_PER_S = 50  # How many requests a room's read receipts may cause.


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
        changes = await membership_changes(services, stored)
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
        steps = steps_of(changes)
        gone, come = difference(room.joined, steps)
        if gone or come:
            self._close(shares, done, event.room_id, room)
        apply_steps(room.joined, steps)
        if gone and not ours:
            unaware = await unknown_to_sender(services, stored, gone - {own})
            if unaware:
                done.append(Share(unaware, [stored]))
        newcomers = come | {server_name_of(c.user_id) for c in changes if c.is_again}
        newcomers.discard(own)
        if own in room.joined and newcomers:
            done += await _sticky_backlog(services, stored, newcomers)
            if services.config.presence_enabled:
                due_ms = services.clock.monotonic_ms() + NEWCOMERS_PAUSE_MS
                self._newcomers.append(_Newcomers(stored, newcomers, due_ms))
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
                changes = await membership_changes(services, item)
                if changes is None:  # What was before it is not ours to know.
                    room.since = item.position or 0
                else:
                    apply_steps(room.joined, steps_of(changes), -1)
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
            room.receipts_due_ms = services.clock.monotonic_ms() + pause_ms
            self._with_receipts[receipt.room_id] = room
        room.receipts.append(OutgoingReceipt(position, receipt))

    async def due(self, services: Services) -> tuple[list[Share], int | None]:
        """Return what has waited long enough (receipts, presence), and when more will have."""
        now_ms = services.clock.monotonic_ms()
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
        event = item.event
        resolved = item.state_before != item.room_state_before != item.room_state_after
        # Whoever joins, through whatever server, is owed what is sticky of ours.
        joins = event.type == MEMBER and membership_of(event) == "join"
        if joins or resolved or passes_on(services.server_name, event):
            return event.room_id
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
