"""Events that clients send: messages, state, redactions. Members have `membership`.

Spec: client-server-api#sending-events-to-a-room
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.base.errors import BadAlias, BadJson, Forbidden, InvalidParam, NotFound
from minihs.protocol.event_assembly import EventDraft
from minihs.protocol.identifiers import parse_room_alias
from minihs.protocol.power_levels import creators_of
from minihs.protocol.state_keys import CREATE, GUEST_ACCESS
from minihs.protocol.stickiness import sticky_members
from minihs.services.rooms.membership import remove_guests, set_member_event
from minihs.services.rooms.send import send_decided, send_event
from minihs.services.rooms.standing import current_events, standing_of
from minihs.services.rooms.state import load_state_events
from minihs.storage.directory import list_taken_aliases

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from minihs.protocol.events import Event
    from minihs.protocol.identifiers import EventId, RoomId, UserId
    from minihs.services.context import Services
    from minihs.services.rooms.heads import RoomHead
    from minihs.services.rooms.origins import Origin
    from minihs.storage.event_store import StoredEvent

CANONICAL_ALIAS = "m.room.canonical_alias"


async def send_message(
    services: Services,
    sender: UserId,
    room_id: RoomId,
    event_type: str,
    content: Mapping[str, object],
    transaction: Origin,
    *,
    sticky_ms: int | None = None,
    sent_ms: int | None = None,
) -> EventId:
    """Send a message event; return its id, or that of the first request with this transaction.

    A redaction names its target in `content.redacts`, whatever the room version. `sent_ms` is when
    it claims to have been sent: now, unless an application service says otherwise.
    Spec: client-server-api#put_matrixclientv3roomsroomidsendeventtypetxnid

    Raises:
        NotFound, Forbidden, TooLarge, BadJson: see `send_event` and `redact_event`.
        LimitExceeded: the sender has too many sticky events in the room already.
    """
    if event_type == "m.room.redaction":
        target = content.get("redacts")
        if not isinstance(target, str):
            raise BadJson("A redaction names the event that it redacts in `redacts`.")
        others = {key: value for key, value in content.items() if key != "redacts"}
        return await redact_event(
            services, sender, room_id, target, others, transaction,
            sticky_ms=sticky_ms, sent_ms=sent_ms,
        )  # fmt: skip
    draft = EventDraft(
        room_id=room_id,
        sender=sender,
        type=event_type,
        content=content,
        origin_server_ts=services.clock.now_ms() if sent_ms is None else sent_ms,
        extra={} if sticky_ms is None else sticky_members(sticky_ms),
    )
    if not sticky_ms:
        return await send_event(services, draft, transaction=transaction)

    async def decide(head: RoomHead) -> EventDraft:
        await services.sticky_limits.check_own(services, head, sender)
        return draft

    async with services.sticky_limits.own_turn(room_id, sender, sticky_ms):
        return await send_decided(services, room_id, decide, transaction=transaction)


async def redact_event(
    services: Services,
    sender: UserId,
    room_id: RoomId,
    event_id: str,
    content: Mapping[str, object],
    transaction: Origin | None,
    *,
    sticky_ms: int | None = None,
    sent_ms: int | None = None,
) -> EventId:
    """Redact an event of one's own, or with the power for it anybody's; return the redaction.

    Spec: client-server-api#put_matrixclientv3roomsroomidredacteventidtxnid

    Raises:
        NotFound: there is no such event in the room.
        Forbidden: it is somebody else's, and the user lacks the power.
        LimitExceeded: the sender has too many sticky events in the room already.
    """

    async def decide(head: RoomHead) -> EventDraft:
        standing = await standing_of(services, head, sender)
        if standing.membership != "join":
            raise Forbidden("You are not joined to the room.")
        if not event_id.startswith("$") or "\0" in event_id:
            raise NotFound("There is no such event in the room.")
        target = await services.events.get(event_id)  # type: ignore[arg-type]  # of a client
        if target is not None and target.event.room_id != room_id:
            raise NotFound("There is no such event in the room.")
        # Of an event that is not known here, servers that know it judge the redaction.
        own = target is None or target.event.sender == sender
        if not own and standing.level < standing.levels.redact:
            raise Forbidden("You may not redact the events of others.")
        if sticky_ms:
            await services.sticky_limits.check_own(services, head, sender)
        return EventDraft(
            room_id=room_id,
            sender=sender,
            type="m.room.redaction",
            content=content,
            origin_server_ts=services.clock.now_ms() if sent_ms is None else sent_ms,
            redacts=event_id,  # type: ignore[arg-type]  # an event id of a client
            extra={} if sticky_ms is None else sticky_members(sticky_ms),
        )

    async with services.sticky_limits.own_turn(room_id, sender, sticky_ms):
        return await send_decided(services, room_id, decide, transaction=transaction)


async def set_room_state(
    services: Services,
    sender: UserId,
    room_id: RoomId,
    event_type: str,
    state_key: str,
    content: Mapping[str, object],
    *,
    guest: bool = False,
    sticky_ms: int | None = None,
    sent_ms: int | None = None,
    transaction: Origin | None = None,
) -> EventId:
    """Set an entry of a room's state; return the event, the present one if nothing would change.

    `sent_ms` is as for messages.
    Spec: client-server-api#put_matrixclientv3roomsroomidstateeventtypestatekey

    Raises:
        BadAlias, InvalidParam: a new alias of `m.room.canonical_alias` is not one of the room's.
        NotFound, Forbidden, TooLarge, BadJson: see `send_event`.
        LimitExceeded: the sender has too many sticky events in the room already.
    """
    if event_type == "m.room.member":
        return await set_member_event(
            services, sender, room_id, state_key, content,
            guest=guest, sticky_ms=sticky_ms, sent_ms=sent_ms, transaction=transaction,
        )  # fmt: skip
    if event_type == "m.room.create":
        raise BadJson("A room is created only once.")
    key = (event_type, state_key)

    async def decide(head: RoomHead) -> EventDraft | EventId:
        stored = (await load_state_events(services, head.state, [key])).get(key)
        current = None if stored is None else stored.event
        if sticky_ms is None and stored is not None and _repeats(stored, sender, content):
            standing = await standing_of(services, head, sender)
            if standing.membership == "join":
                return stored.event_id
        if key == (CANONICAL_ALIAS, ""):
            await check_new_aliases(services, room_id, content, known=aliases_of(current))
        if sticky_ms:
            await services.sticky_limits.check_own(services, head, sender)
        if event_type == "m.room.power_levels":
            await _check_creators_keep_out(services, head, content)
        return EventDraft(
            room_id=room_id,
            sender=sender,
            type=event_type,
            content=content,
            origin_server_ts=services.clock.now_ms() if sent_ms is None else sent_ms,
            state_key=state_key,
            extra={} if sticky_ms is None else sticky_members(sticky_ms),
        )

    async with services.sticky_limits.own_turn(room_id, sender, sticky_ms):
        event_id = await send_decided(services, room_id, decide, transaction=transaction)
    if key == GUEST_ACCESS and content.get("guest_access") != "can_join":
        await remove_guests(services, room_id)
    return event_id


def _repeats(stored: StoredEvent, sender: str, content: Mapping[str, object]) -> bool:
    """Return whether a state event would only say again what its sender said already."""
    event = stored.event
    return stored.redacted_by is None and event.sender == sender and event.content == content


def aliases_of(event: Event | None) -> set[str]:
    """Return the aliases that a canonical alias event lists; what is malformed is left out."""
    content: Mapping[str, object] = {} if event is None else event.content
    others = content.get("alt_aliases")
    listed = [content.get("alias"), *(others if isinstance(others, list) else ())]
    return {alias for alias in listed if isinstance(alias, str)}


async def check_new_aliases(
    services: Services, room_id: str, content: Mapping[str, object], *, known: Collection[str]
) -> None:
    """Check that each alias of a canonical alias event, beside those known, points to the room.

    Raises:
        InvalidParam: it is no alias.
        BadAlias: it does not exist, or is another room's.
    """
    others = content.get("alt_aliases")
    if others is not None and not isinstance(others, list):
        raise InvalidParam("alt_aliases is a list of aliases.")
    main = content.get("alias")
    listed = [*(() if main in (None, "") else (main,)), *(others or ())]
    new = [alias for alias in listed if not isinstance(alias, str) or alias not in known]
    for alias in new:
        if parse_room_alias(alias) is None:
            raise InvalidParam(f"{alias!r} is not a room alias.")
    if new:
        rooms = await list_taken_aliases(services.db, [str(alias) for alias in new])
        for alias in new:
            if rooms.get(str(alias)) != room_id:
                raise BadAlias(f"{alias} does not point to the room.")


async def _check_creators_keep_out(
    services: Services, head: RoomHead, content: Mapping[str, object]
) -> None:
    """Refuse power levels that give creators one. Spec: rooms/v12#authorisation-rules."""
    create = (await current_events(services, head, [CREATE])).get(CREATE)
    users = content.get("users")
    if (
        create is not None
        and head.room_version.creators_are_privileged
        and isinstance(users, dict)
        and not creators_of(create).isdisjoint(users)
    ):
        raise BadJson("The creators of the room have no power level: theirs is infinite.")
