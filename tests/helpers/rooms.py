"""Rooms for tests: events made by the code under test, with people, forks and merges.

    room = Room("12")
    bob = room.join("@bob:hs1")
    topic = room.send(ALICE, "m.room.topic", {"topic": "tea"}, state_key="")

Time goes on by one second an event. Every event is signed by the server of its sender.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.protocol.canonical_json import INTEGER_MAX
from minihs.protocol.event_assembly import EventDraft, build_event
from minihs.protocol.event_auth import (
    check_against_auth_events,
    check_state_dependent,
    select_auth_keys,
)
from minihs.protocol.identifiers import (
    EventId,
    RoomId,
    ServerName,
    StateKey,
    UserId,
    server_name_of,
)
from minihs.protocol.room_versions import ROOM_VERSIONS
from minihs.protocol.signatures import SigningKey
from minihs.protocol.state_resolution import resolve

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minihs.protocol.events import Event

ALICE, BOB, CAROL = UserId("@alice:hs1"), UserId("@bob:hs1"), UserId("@carol:hs2")
MALLORY = UserId("@mallory:evil")

START_MS = 1_700_000_000_000


def signing_key(server_name: str) -> SigningKey:
    """Return the key of a server: the same for the same name."""
    return SigningKey(server_name.encode().ljust(32, b".")[:32], "test")


class Room:
    """A room that its creator made, joined and set power levels and public join rules in."""

    def __init__(
        self,
        version: str = "12",
        power_levels: Mapping[str, object] | None = None,
        *,
        creator: UserId = ALICE,
        name: str = "room",
    ) -> None:
        self.room_version = ROOM_VERSIONS[version]
        self.events: dict[EventId, Event] = {}
        self.state_after: dict[EventId, dict[StateKey, EventId]] = {}
        self.ends: list[Event] = []
        self.room_id = RoomId(f"!{name}:{server_name_of(creator)}")
        content: dict[str, object] = {"room_version": version}
        if self.room_version.creator_is_in_content:
            content["creator"] = creator
        self.create = self.send(creator, "m.room.create", content, state_key="")
        self.room_id = self.create.room_id
        self.send(creator, "m.room.member", {"membership": "join"}, state_key=creator)
        if power_levels is None:
            is_privileged = self.room_version.creators_are_privileged
            power_levels = {"users": {} if is_privileged else {creator: 100}}
        self.send(creator, "m.room.power_levels", power_levels, state_key="")
        self.send(creator, "m.room.join_rules", {"join_rule": "public"}, state_key="")

    def join(self, user_id: str, *, prev: Sequence[Event] | None = None) -> Event:
        """Let a user join."""
        return self.send(
            user_id, "m.room.member", {"membership": "join"}, state_key=user_id, prev=prev
        )

    def send(
        self,
        sender: str,
        event_type: str,
        content: Mapping[str, object],
        *,
        state_key: str | None = None,
        prev: Sequence[Event] | None = None,
        redacts: EventId | None = None,
        origin_server_ts: int | None = None,
    ) -> Event:
        """Add an event after `prev` (all ends of the room, unless given) and return it.

        Raises:
            EventAuthError: If it is not allowed there; the room stays as it is.
        """
        event = self.draft(
            sender, event_type, content, state_key=state_key, prev=prev, redacts=redacts,
            origin_server_ts=origin_server_ts,
        )  # fmt: skip
        self.accept(event)
        return event

    def draft(
        self,
        sender: str,
        event_type: str,
        content: Mapping[str, object],
        *,
        state_key: str | None = None,
        prev: Sequence[Event] | None = None,
        redacts: EventId | None = None,
        origin_server_ts: int | None = None,
    ) -> Event:
        """Return an event that is not (yet) in the room."""
        prev = self.ends if prev is None else prev
        before = self.state_of(prev)
        keys = select_auth_keys(self.room_version, sender, event_type, state_key, content)
        server_name = server_name_of(sender)
        count = len(self.events)
        names_events = self.room_version.event_id_source == "server"
        return build_event(
            EventDraft(
                room_id=self.room_id,
                sender=UserId(sender),
                type=event_type,
                content=content,
                state_key=state_key,
                redacts=redacts,
                extra={"origin": server_name} if event_type == "m.room.member" else {},
                origin_server_ts=(
                    START_MS + 1000 * count if origin_server_ts is None else origin_server_ts
                ),
            ),
            room_version=self.room_version,
            depth=min(1 + max((event.depth for event in prev), default=0), INTEGER_MAX),
            prev_event_ids=[event.event_id for event in prev],
            auth_event_ids=[before[key] for key in keys if key in before],
            server_name=server_name,
            signing_key=signing_key(server_name),
            event_id=self._event_id(count, server_name) if names_events else None,
        )

    def _event_id(self, count: int, server_name: str) -> EventId:
        room = self.room_id[1:].partition(":")[0]
        return EventId(f"${room}.{count}:{server_name}")

    def accept(self, event: Event) -> None:
        """Put an event into the room.

        Raises:
            EventAuthError: If it is not allowed where it stands.
        """
        prev = [self.events[event_id] for event_id in event.prev_event_ids]
        before = self.state_of(prev)
        check_against_auth_events(event, [self.events[e] for e in event.auth_event_ids])
        check_state_dependent(event, {key: self.events[e] for key, e in before.items()})
        self.events[event.event_id] = event
        self.state_after[event.event_id] = (
            {**before, event.key: event.event_id} if event.is_state else before
        )
        self.ends = [end for end in self.ends if end.event_id not in event.prev_event_ids]
        self.ends.append(event)

    def state_of(self, prev: Sequence[Event]) -> dict[StateKey, EventId]:
        """Return the state before an event that follows these."""
        states = [self.state_after[event.event_id] for event in prev]
        return resolve(self.room_version, states, self.events) if states else {}

    def current(self, event_type: str, state_key: str = "") -> Event | None:
        """Return an entry of the current state."""
        event_id = self.state_of(self.ends).get((event_type, state_key))
        return None if event_id is None else self.events[event_id]


def verify_keys(server_name: ServerName) -> dict[str, bytes]:
    """Return what others know of a server's key."""
    key = signing_key(server_name)
    return {key.key_id: key.public_key}
