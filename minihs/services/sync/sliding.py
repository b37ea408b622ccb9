"""Simplified sliding sync: the newest rooms first, and of each no more than was asked for.

1. What the connection was sent stands in the row that its `pos` names (`sliding_connections`).
2. The user's rooms are put in order, lists and subscriptions choose among them (`sliding_lists`).
3. Of each chosen room the client gets what it has not had (`sliding_rooms`), and what extensions
   add (`sliding_extensions`, `sliding_sticky`).
4. If that is nothing, wait for the user's view to change, and begin again.

MSC4186#proposal
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.protocol import unstable
from minihs.services.sync import sliding_connections
from minihs.services.sync.positions import format_token
from minihs.services.sync.sliding_connections import Connection, SentRoom
from minihs.services.sync.sliding_extensions import TO_DEVICE, extensions
from minihs.services.sync.sliding_lists import load_rooms, match_rooms
from minihs.services.sync.sliding_plans import plan_rooms
from minihs.services.sync.sliding_request import Position
from minihs.services.sync.sliding_rooms import room_parts
from minihs.services.sync.sliding_sticky import format_since, sticky
from minihs.services.sync.streams import to_device
from minihs.services.sync.v3 import wait
from minihs.storage import timelines
from minihs.storage.event_store import StoredEvent
from minihs.storage.stream_rows import AccountDataWrite, ReceiptWrite, TypingWrite

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minihs.protocol.identifiers import EventId
    from minihs.services.context import Services
    from minihs.services.sync.assemble import Json
    from minihs.services.sync.sliding_lists import Matches, Rooms
    from minihs.services.sync.sliding_plans import Plan
    from minihs.services.sync.sliding_request import SlidingRequest
    from minihs.services.sync.sliding_rooms import RoomPart
    from minihs.services.sync.views import UserView


@dataclass(frozen=True, slots=True)
class _Found:
    """An answer but for its `pos`, as of `upto`; and what the connection was sent with it.

    `members` are the member events that the client has then of rooms where those come lazily.
    """

    upto: int
    answer: Json
    has_news: bool
    connection: Connection
    members: Mapping[str, frozenset[EventId]]


@dataclass(frozen=True, slots=True)
class _Changed:
    """Rooms in which something happened since the `pos`.

    `lasting` are those in which it was more than somebody typing, `read` those in which the user
    read something.
    """

    rooms: frozenset[str]
    lasting: frozenset[str]
    read: frozenset[str]


async def sliding_sync(services: Services, request: SlidingRequest) -> Json:
    """Return what the connection has not been sent; wait for it, up to `timeout_ms`.

    A first request, and one that asks for something else than the one before, is answered at once
    if there is anything to say.

    Raises:
        UnknownPos: the `pos` is not one of this connection.
    """
    connection = await sliding_connections.load(services, request)
    position, digest = request.position, request.digest()
    deadline_ms = services.clock.monotonic_ms() + request.timeout_ms
    found: _Found | None = None
    if request.to_device is not None:
        view = await services.views.get(request.user_id)
        await to_device.acknowledge(services, request.requester, view, request.to_device.received)
    while True:
        view = await services.views.get(request.user_id)
        upto = services.follower.head
        if position is None or found is not None or not _is_idle(request, view, position, digest):
            found = await _collect(services, request, connection)
            upto = found.upto
            if found.has_news or position is None:
                break
        left_ms = deadline_ms - services.clock.monotonic_ms()
        if left_ms <= 0 or services.views.is_closing:
            break
        await wait(services, request.requester, upto, left_ms)
    if found is None:
        found = _nothing(services, request, connection)
    state_nid = await sliding_connections.save(services, request, connection, found.connection)
    answered = Position(found.upto, state_nid, digest)
    services.sliding.note_members(request, answered, found.members)
    return {"pos": sliding_connections.format_position(answered), **found.answer}


def _nothing(services: Services, request: SlidingRequest, connection: Connection) -> _Found:
    """Return an answer without news; extensions that have a position of their own still give it."""
    head = services.follower.head
    added: dict[str, Json] = {}
    if request.to_device is not None:
        added[TO_DEVICE] = {"next_batch": format_token(head), "events": []}
    if request.sticky is not None:
        answer: Json = {"next_batch": format_since(request.user_id, head)}
        added |= dict.fromkeys(unstable.STICKY_EXTENSION.written, answer)
    return _Found(head, _answer({}, {}, added), has_news=False, connection=connection, members={})


def _is_idle(request: SlidingRequest, view: UserView, position: Position, digest: str) -> bool:
    """Return whether there can be nothing new: nothing happened, and the same is asked for."""
    token = request.sticky.token if request.sticky is not None else None
    return (
        view.changed_at <= position.upto
        and position.digest == digest
        and not _has_messages(request, view)
        and (
            request.sticky is None
            or (token is not None and not token.has_rest and view.changed_at <= token.position)
        )
    )


def _has_messages(request: SlidingRequest, view: UserView) -> bool:
    """Return whether messages to the device wait that the client has not, and wants."""
    inbox = view.inboxes.get(request.requester.device_nid)
    wanted = request.to_device
    return inbox is not None and wanted is not None and inbox.last > wanted.received


async def _collect(services: Services, request: SlidingRequest, connection: Connection) -> _Found:
    """Return the answer as of the stream's head."""
    rooms = await load_rooms(services, request, connection)
    changed = await _changed(services, request, rooms)
    matches = await match_rooms(services, request, rooms)
    plans = plan_rooms(request, connection, rooms, matches, changed.lasting)
    parts = await room_parts(services, request, rooms, plans, changed.read)
    added, has_news = await extensions(
        services, request, connection, rooms, matches, parts, changed.rooms
    )
    if request.sticky is not None:
        answer, has_sticky = await sticky(services, request, rooms, matches, parts)
        added |= dict.fromkeys(unstable.STICKY_EXTENSION.written, answer)
        has_news = has_news or has_sticky
    return _Found(
        rooms.upto,
        _answer(
            {name: {"count": count} for name, count in matches.counts.items()},
            {room_id: part.json for room_id, part in parts.items()},
            added,
        ),
        has_news or bool(parts),
        _sent(request, connection, rooms, matches, plans, parts, changed),
        {room_id: part.members for room_id, part in parts.items() if part.members is not None},
    )


def _answer(
    lists: Mapping[str, Json], rooms: Mapping[str, Json], added: Mapping[str, Json]
) -> Json:
    return {"lists": lists, "rooms": rooms, "extensions": added}


async def _changed(services: Services, request: SlidingRequest, rooms: Rooms) -> _Changed:
    """Return what happened since the `pos`: from memory, or from the database."""
    since = request.since
    if since is None:
        return _Changed(frozenset(), frozenset(), frozenset())
    if services.follower.floor > since:
        listed = await timelines.list_changed_rooms(services.db, request.user_id, since, rooms.upto)
        data = await timelines.list_account_data(services.db, request.user_id, since, rooms.upto)
        everything = frozenset(listed) | {row[0] for row in data}
        return _Changed(everything, everything, frozenset(listed))
    typing: set[str] = set()
    lasting: set[str] = set()
    read: set[str] = set()
    for item in services.follower.items_after(since):
        if isinstance(item, StoredEvent):
            lasting.add(item.event.room_id)
        elif isinstance(item, TypingWrite):
            typing.add(item.room_id)
        elif isinstance(item, AccountDataWrite):
            if item.user_id == request.user_id:
                lasting.add(item.room_id)
        else:
            lasting.add(item.room_id)
            if isinstance(item, ReceiptWrite) and item.user_id == request.user_id:
                read.add(item.room_id)
    return _Changed(frozenset(lasting | typing), frozenset(lasting), frozenset(read))


def _sent(
    request: SlidingRequest,
    connection: Connection,
    rooms: Rooms,
    matches: Matches,
    plans: Sequence[Plan],
    parts: Mapping[str, RoomPart],
    changed: _Changed,
) -> Connection:
    """Return what the connection will have been sent with this answer."""
    sent = connection.rooms.mutate()
    for plan in plans:
        old, config, part = plan.sent, plan.rule.config, parts.get(plan.room_id)
        if old is not None and not plan.is_new and not (part is not None and part.limited):
            # Without a gap the client still has the newest events of a longer timeline.
            limit = max(config.timeline_limit, old.config.timeline_limit)
            config = type(config)(limit, config.required)
        new = SentRoom(None, plan.room.kind, config, plan.is_dm)
        if new != old:
            sent[plan.room_id] = new
    for room_id, room in connection.rooms.items():
        if room_id not in rooms.rooms:
            del sent[room_id]  # The user has nothing to do with it any more.
        elif room.upto is None and room_id not in matches.rules and room_id in changed.lasting:
            sent[room_id] = SentRoom(request.since, room.kind, room.config, room.is_dm)
    now = Connection(
        sent.finish(),
        frozenset(scope.named(name) for name, scope in request.extensions.items()),
    )
    return connection if now == connection else now
