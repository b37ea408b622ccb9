"""The sticky events of a room: until when, for whom, and which server has been sent which.

A server is *served* up to a position of the stream (D5). Whoever joined later is owed what is still
sticky since the join (MSC4354#federation-behaviour), so that both positions must be behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import orjson

from minihs.protocol import unstable
from minihs.protocol.identifiers import server_name_of
from minihs.protocol.stickiness import sticky_duration_ms
from minihs.services.federation.destination import shard_of
from minihs.services.inspector.events import Refusal, load_refusals
from minihs.services.rooms.client_events import as_shown
from minihs.storage import inspector

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minihs.services.context import Services
    from minihs.storage.event_store import StoredEvent
    from minihs.storage.inspector import ServedRow, ServerRow, StickyRow

STICKY_MAX = 100
SERVERS_MAX = 50

DeliveryState = Literal["delivered", "queued", "catching up", "repeating", "backing off"]


@dataclass(frozen=True, slots=True)
class ServerView:
    """A server in the room, and how our deliveries to it go.

    `served` is the position up to which it has been given everything (None: it is this server).
    `retry_in_ms` is how long it is left alone (0: not at all). `is_down`: it gave no answer.
    """

    server_name: str
    joined: int
    since: int
    served: int | None = None
    behind: bool = False
    failures: int = 0
    retry_in_ms: int = 0
    is_down: bool = False
    last_success_ms: int | None = None


@dataclass(frozen=True, slots=True)
class DeliveryView:
    """Whether a server has been sent an event."""

    server_name: str
    state: DeliveryState


@dataclass(frozen=True, slots=True)
class StickyView:
    """A live sticky event.

    `sticky_key` is of the clients, and means nothing to a server (MSC4354): JSON text unless it is
    a string. `position` is since when it is delivered. None: it is held back, either because the
    server that it `waits_for` sends too many, or because it is soft-failed, with the `refusal`;
    `rechecked`: against the room's present state. `deliveries` are ours: the server of the `origin`
    delivers its own. `told_from`: this is the redaction of one that lay at that position; whoever
    has that is told, for as long as it would have been sticky.
    """

    event_id: str
    type: str
    state_key: str | None
    sticky_key: str | None
    sender: str
    origin: str
    is_own: bool
    sent_ms: int
    duration_ms: int
    until_ms: int
    left_ms: int
    position: int | None
    refusal: Refusal | None
    rechecked: bool
    waits_for: str | None
    told_from: int | None
    deliveries: Sequence[DeliveryView]


async def view_servers(services: Services, room_nid: int) -> tuple[list[ServerView], bool]:
    """Return the servers in a room, those with the most users first, and if there are more.

    With each the state of our deliveries to it.
    """
    found = await inspector.list_servers(services.db, room_nid, SERVERS_MAX + 1)
    rows = found[:SERVERS_MAX]
    served = await inspector.list_served(services.db, [row.server_name for row in rows])
    shards = await inspector.list_shard_positions(services.db)
    views = [_server(services, row, served.get(row.server_name), shards) for row in rows]
    return views, len(found) > SERVERS_MAX


def _server(
    services: Services, row: ServerRow, served: ServedRow | None, shards: Mapping[int, int]
) -> ServerView:
    if row.server_name == services.server_name:
        return ServerView(row.server_name, row.joined, row.since)
    position = shards.get(shard_of(row.server_name), 0)
    if served is None:
        return ServerView(row.server_name, row.joined, row.since, position)
    return ServerView(
        server_name=row.server_name,
        joined=row.joined,
        since=row.since,
        served=served.position if served.behind else max(served.position, position),
        behind=served.behind,
        failures=served.failures,
        retry_in_ms=max(0, served.retry_at_ms - services.clock.now_ms()),
        is_down=served.is_down,
        last_success_ms=served.last_success_ms,
    )


async def view_sticky_events(
    services: Services, room_nid: int, state_id: int, servers: Sequence[ServerView]
) -> tuple[list[StickyView], bool]:
    """Return a room's live sticky events, those that are held back first, and if there are more."""
    now_ms = services.clock.now_ms()
    rows = await inspector.list_sticky(services.db, room_nid, now_ms, STICKY_MAX + 1)
    shown = rows[:STICKY_MAX]
    events = await services.events.get_many([row.event_id for row in shown])
    held = [row.event_id for row in shown if row.position is None and row.waits_for is None]
    refusals = await load_refusals(services, held) if held else {}
    views = [
        _sticky(services, row, stored, refusals.get(row.event_id), state_id, servers, now_ms)
        for row in shown
        if (stored := events.get(row.event_id)) is not None and stored.redacted_by is None
    ]
    return views, len(rows) > STICKY_MAX


def _sticky(
    services: Services,
    row: StickyRow,
    stored: StoredEvent,
    refusal: Refusal | None,
    state_id: int,
    servers: Sequence[ServerView],
    now_ms: int,
) -> StickyView:
    event = as_shown(stored)
    origin = server_name_of(event.sender)
    is_own = origin == services.server_name
    duration_ms, left_ms = sticky_duration_ms(event.pdu) or 0, max(0, row.until_ms - now_ms)
    return StickyView(
        event_id=event.event_id,
        type=event.type,
        state_key=event.state_key,
        sticky_key=_text(unstable.STICKY_KEY.either(event.content)),
        sender=event.sender,
        origin=origin,
        is_own=is_own,
        sent_ms=event.origin_server_ts,
        duration_ms=duration_ms,
        until_ms=row.until_ms,
        left_ms=min(left_ms, duration_ms) if row.told_from is None else left_ms,
        position=row.position,
        refusal=refusal,
        rechecked=refusal is not None and row.checked_state == state_id,
        waits_for=row.waits_for if row.position is None else None,
        told_from=row.told_from,
        deliveries=[
            DeliveryView(server.server_name, delivery_state(row.position, server))
            for server in servers
            if is_own
            and row.position is not None
            and row.told_from is None
            and server.served is not None
        ],
    )


def delivery_state(position: int, server: ServerView) -> DeliveryState:
    """Return whether a server has been sent the sticky event of a position, or why not yet.

    MSC4354#federation-behaviour
    """
    served = server.served or 0
    owed = position if server.behind else max(position, server.since)
    if served >= owed:
        return "delivered"
    if server.retry_in_ms:
        return "backing off"
    if server.failures:
        return "repeating"
    return "catching up" if server.behind else "queued"


def _text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return orjson.dumps(value).decode()
