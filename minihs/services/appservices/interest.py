"""Which of the stream an application service is told: an `Interest` reads it for one of them.

An event concerns a service if a user of its own is in the room when it happens, sends it or is its
target, or if the room, by its id or an alias, is in one of its namespaces. Who is in the room is
known by following the stream: of a room it is remembered which of the service's users were joined
in the room's state after the last event, and each event says upon which state it came. Where these
are not the same the state is read anew, so nothing is assumed about what was read before.

Spec: application-service-api#registration
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from minihs.base.caching import BoundedCache
from minihs.protocol.membership import membership_of
from minihs.services.rooms.heads import load_head
from minihs.storage import appservices
from minihs.storage.event_store import ACCEPTED, StoredEvent
from minihs.storage.stream_rows import (
    DelayedEventOutcome,
    PresenceWrite,
    ReceiptWrite,
    StickyEvent,
    ToDeviceNews,
    TypingWrite,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from minihs.services.appservices.registration import Registration
    from minihs.services.context import Services
    from minihs.storage.stream_reads import Positioned

EVENTS_MAX = 100
OTHERS_MAX = 100  # Of each of the other kinds.
ROOMS_MAX = 100_000  # Users of the service in them count.
MEMBER = "m.room.member"
UNKNOWN_STATE = -1

Ephemeral = ReceiptWrite | TypingWrite | PresenceWrite


@dataclass(slots=True, eq=False)
class _Room:
    """Which users of a service are joined to a room, in one of its states.

    `state_id` is None while no user of the service has ever been in it: that is so in every state.
    """

    state_id: int | None = None
    joined: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class ToDevice:
    """Where a message for a device of a user of the service lies; `is_last`: for nobody else."""

    position: int
    device_nid: int
    is_last: bool


@dataclass(slots=True)
class Found:
    """What concerns a service in the stream up to a position."""

    upto: int
    events: list[StoredEvent] = field(default_factory=list)
    ephemeral: list[Ephemeral] = field(default_factory=list)
    to_device: list[ToDevice] = field(default_factory=list)
    outcomes: list[DelayedEventOutcome] = field(default_factory=list)

    @property
    def is_nothing(self) -> bool:
        """Whether nothing concerns it."""
        return not (self.events or self.ephemeral or self.to_device or self.outcomes)

    @property
    def is_full(self) -> bool:
        """Whether one transaction holds no more."""
        others = max(len(self.ephemeral), len(self.to_device), len(self.outcomes))
        return len(self.events) >= EVENTS_MAX or others >= OTHERS_MAX


class Interest:
    """Finds what concerns one application service."""

    def __init__(self, service: Registration) -> None:
        self._service = service
        self._rooms: BoundedCache[str, _Room] = BoundedCache(ROOMS_MAX)

    async def read(self, services: Services, after: int, upto: int) -> Found:
        """Return what concerns the service after a position, at most up to another.

        It ends sooner when it has found as much as one transaction holds.
        """
        items = await services.follower.between(after, upto)
        aliased = await self._aliased(services, items)
        await self._get_to_know(services, items)
        late = await _late_sticky(services, items)
        found = Found(upto)
        for position, item in items:
            if isinstance(item, StoredEvent):
                told = item.status == ACCEPTED and item.event_id not in late
                if told and await self._concerns(services, item, aliased):
                    found.events.append(item)
            elif isinstance(item, StickyEvent):
                stored = await services.events.get(item.event_id) if item.event_id in late else None
                if stored is not None and await self._concerns_now(services, stored, aliased):
                    found.events.append(stored)
            elif isinstance(item, Ephemeral):
                told = self._service.receive_ephemeral
                if told and await self._is_heard(services, item, aliased):
                    found.ephemeral.append(item)
            elif isinstance(item, ToDeviceNews):
                found.to_device += [
                    ToDevice(position, device_nid, self._service.owns_user(user_id))
                    for user_id, device_nid in item.devices
                    if self._is_own(services, user_id)
                ]
            elif isinstance(item, DelayedEventOutcome) and self._is_own(services, item.user_id):
                found.outcomes.append(item)
            if found.is_full:
                found.upto = position
                break
        return found

    # --- events ----------------------------------------------------------------------------------

    def _is_own(self, services: Services, user_id: str | None) -> bool:
        return user_id is not None and self._service in services.appservices.of_user(user_id)

    async def _concerns(
        self, services: Services, stored: StoredEvent, aliased: Collection[str]
    ) -> bool:
        """Return whether an event concerns the service, and follow who is in its room."""
        event = stored.event
        was_there = await self._follow(services, stored)
        return (
            was_there
            or event.room_id in aliased
            or self._service.has_room(event.room_id)
            or self._is_own(services, event.sender)
            or (event.type == MEMBER and self._is_own(services, event.state_key))
        )

    async def _follow(self, services: Services, stored: StoredEvent) -> bool:
        """Return whether a user of the service was joined before or after an event."""
        before, after = stored.room_state_before, stored.room_state_after
        if before is None or after is None:  # An event from outside, such as an invite.
            return False
        event = stored.event
        room = self._rooms.get(event.room_id) or _Room(UNKNOWN_STATE)
        is_simple = stored.state_before == before and stored.state_after == after
        own = is_simple and event.type == MEMBER and self._is_own(services, event.state_key)
        if room.state_id is None and not own:
            if is_simple or before == after:
                return False
            if not await self._have_been_in(services, [event.room_id]):
                return False  # Whatever was resolved, it was not about them.
        if room.state_id != before:
            room = _Room(before, await self._joined(services, before))
        was_there = bool(room.joined)
        if before != after:
            if own:
                joins = membership_of(event) == "join"
                (room.joined.add if joins else room.joined.discard)(event.state_key or "")
            elif not is_simple:
                room.joined = await self._joined(services, after)
            room.state_id = after
        self._rooms.put(event.room_id, room, 1 + len(room.joined))
        return was_there or bool(room.joined)

    async def _joined(self, services: Services, state_id: int) -> set[str]:
        """Return which users of the service are joined in a state."""
        state = await services.states.get(state_id)
        own = {
            user_id: event_id
            for (kind, user_id), event_id in state.entries.items()
            if kind == MEMBER and self._is_own(services, user_id)
        }
        events = await services.events.get_many(own.values()) if own else {}
        return {
            user_id
            for user_id, event_id in own.items()
            if event_id in events and membership_of(events[event_id].event) == "join"
        }

    async def _get_to_know(self, services: Services, items: Collection[Positioned]) -> None:
        """Note of rooms that are not known whether a user of the service has ever been there.

        Members of a room who left it are still members of its state, so where there is none now
        there was none ever; where there is one their states must be looked at.
        """
        rooms = {r for _, item in items for r in self._rooms_of(item) if self._rooms.get(r) is None}
        if not rooms:
            return
        entered = await self._have_been_in(services, rooms)
        for room_id in rooms:
            self._rooms.put(room_id, _Room(UNKNOWN_STATE if room_id in entered else None))

    async def _have_been_in(self, services: Services, rooms: Collection[str]) -> set[str]:
        """Return those of the rooms that users of the service are or were in."""
        members = await appservices.list_local_members(services.db, rooms)
        return {room_id for room_id, user_id in members if self._is_own(services, user_id)}

    async def _aliased(self, services: Services, items: Collection[Positioned]) -> set[str]:
        """Return the rooms with an alias in one of the service's namespaces."""
        if not self._service.aliases:
            return set()
        rooms = {room_id for _, item in items for room_id in self._rooms_of(item)}
        aliases = await appservices.list_aliases(services.db, rooms) if rooms else []
        return {room_id for room_id, alias in aliases if self._service.has_alias(alias)}

    # --- what is not an event of the room's past -------------------------------------------------

    async def _concerns_now(
        self, services: Services, stored: StoredEvent, aliased: Collection[str]
    ) -> bool:
        """Return whether an event concerns the service that came before, and counts only now."""
        event = stored.event
        return (
            event.room_id in aliased
            or self._service.has_room(event.room_id)
            or self._is_own(services, event.sender)
            or bool(await self._present(services, event.room_id))
        )

    async def _present(self, services: Services, room_id: str) -> set[str]:
        """Return which users of the service are in a room."""
        room = self._rooms.get(room_id)
        if room is None or room.state_id == UNKNOWN_STATE:
            head = await load_head(services, room_id)  # type: ignore[arg-type]  # a room of ours
            if head is None:
                return set()
            room = _Room(head.state.state_id, await self._joined(services, head.state.state_id))
            self._rooms.put(room_id, room, 1 + len(room.joined))
        return room.joined

    async def _is_heard(
        self, services: Services, item: Ephemeral, aliased: Collection[str]
    ) -> bool:
        """Return whether the service is told of a receipt, of who types, or of who is there.

        Spec: application-service-api#pushing-ephemeral-data
        """
        if isinstance(item, ReceiptWrite) and item.receipt_type != "m.read":
            return self._is_own(services, item.user_id)
        if isinstance(item, PresenceWrite) and self._is_own(services, item.user_id):
            return True
        for room_id in self._rooms_of(item):
            if (
                room_id in aliased
                or self._service.has_room(room_id)
                or await self._present(services, room_id)
            ):
                return True
        return False

    def _rooms_of(self, item: object) -> Sequence[str]:
        """Return the rooms of an item that the service may have to hear of."""
        if isinstance(item, StoredEvent):
            return (item.event.room_id,)
        if isinstance(item, StickyEvent):
            return (item.room_id,)
        if not self._service.receive_ephemeral:
            return ()
        if isinstance(item, PresenceWrite):
            return item.room_ids
        return (item.room_id,) if isinstance(item, ReceiptWrite | TypingWrite) else ()


async def _late_sticky(services: Services, items: Collection[Positioned]) -> set[str]:
    """Return the sticky events that were refused when they came, and accepted later (MSC4354).

    They are told at the later of their two places in the stream. Those that were accepted when they
    came have both places at one position.
    """
    places: dict[str, set[int]] = {}
    for position, item in items:
        if isinstance(item, StickyEvent) or (
            isinstance(item, StoredEvent) and item.sticky_until_ms and item.status == ACCEPTED
        ):
            places.setdefault(item.event_id, set()).add(position)
    at_once = {
        item.event_id
        for position, item in items
        if isinstance(item, StickyEvent) and len(places[item.event_id]) == 1
    } & {item.event_id for _, item in items if isinstance(item, StoredEvent)}
    asked = places.keys() - at_once
    return await appservices.list_late_sticky(services.db, asked) if asked else set()
