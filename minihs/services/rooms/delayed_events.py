"""Delayed events: scheduling them, managing them, and looking them up.

A delayed event goes the way that its sender's request would have gone had it come when it is sent:
whatever decides (power levels, memberships, restricted joins) decides then. Each is sent once or
never: the commit of the event finalises it (`storage.delayed_events`).

MSC4140#proposal
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson

from minihs.base.errors import (
    BadJson,
    Forbidden,
    LimitExceeded,
    MatrixError,
    NotFound,
    TooLarge,
    Unavailable,
    UserDeactivated,
)
from minihs.base.limits import IDENTIFIER_BYTES_MAX, PDU_BYTES_MAX
from minihs.protocol.canonical_json import CanonicalJsonError, encode_strict
from minihs.protocol.identifiers import parse_room_id, parse_user_id
from minihs.protocol.membership import MEMBERSHIPS
from minihs.services.rooms.delayed_sending import send
from minihs.services.rooms.origins import ClientTransaction, Superseded
from minihs.storage import delayed_events as rows
from minihs.storage.delayed_events import DelayedEvent
from minihs.storage.delayed_events import Wanted as Wanted
from minihs.storage.stream_rows import DelayedEventOutcome

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minihs.protocol.identifiers import RoomId, UserId
    from minihs.services.context import Services

DELAY_ID_CHARS = 24  # 142 bits: where an id alone allows to manage its event, nobody guesses it.
ATTEMPTS = 20
PAGE_EVENTS = 100


class DelayTooLong(Forbidden):
    """The delay is longer than this server allows."""


class AlreadyFinalised(MatrixError):
    """The delayed event has come to another end than the one that is asked for.

    MSC4140#managing-scheduled-delayed-events
    """

    status, errcode = 409, "M_UNKNOWN"


@dataclass(frozen=True, slots=True)
class DelayedDraft:
    """What a user wants to have sent after `delay_ms`; state if it has a state key.

    `sent_ms` is the time of sending that an application service wants it to claim.
    """

    room_id: str
    type: str
    state_key: str | None
    content: Mapping[str, object]
    delay_ms: int
    sticky_ms: int | None = None
    sent_ms: int | None = None


# --- scheduling --------------------------------------------------------------------------------


async def find_scheduled(
    services: Services, room_id: str, transaction: ClientTransaction
) -> str | None:
    """Return the delay id that the first request with this transaction id got, or None."""
    return await rows.find_by_request(services.db, room_id, _request(transaction))


async def schedule(
    services: Services,
    user_id: UserId,
    draft: DelayedDraft,
    transaction: ClientTransaction | None,
) -> str:
    """Schedule an event to be sent after its delay; return its delay id.

    Whether the user may send it is not asked before it is sent.

    Raises:
        DelayTooLong, Forbidden: the delay is too long, or nothing may be scheduled here.
        LimitExceeded: the user has scheduled as many events as they may.
        NotFound, BadJson, TooLarge: it can never become an event.

    MSC4140#scheduling-a-delayed-event
    """
    config = services.config
    if config.delayed_events_max_scheduled == 0:
        raise Forbidden("This server takes no delayed events.")
    if draft.delay_ms > config.delayed_events_max_delay_ms:
        raise DelayTooLong(f"Delays may be {config.delayed_events_max_delay_ms} ms long.")
    room_id, content = _checked(draft)
    request = None if transaction is None else _request(transaction)
    async with services.db.transaction() as tx:
        if not await rows.lock_owner(tx, user_id):
            raise UserDeactivated("The account has been deactivated.")
        if request is not None and (known := await rows.find_by_request(tx, room_id, request)):
            return known
        now_ms = services.clock.now_ms()
        count, next_ms = await rows.count_scheduled(tx, user_id)
        if count >= config.delayed_events_max_scheduled:
            raise LimitExceeded(
                max((next_ms or now_ms) - now_ms, 1),
                "The maximum number of delayed events has been reached.",
            )
        event = DelayedEvent(
            delay_id=services.randomness.token(DELAY_ID_CHARS),
            user_id=user_id,
            room_id=room_id,
            type=draft.type,
            state_key=draft.state_key,
            content=content,
            sticky_ms=draft.sticky_ms,
            sent_ms=draft.sent_ms,
            delay_ms=draft.delay_ms,
            since_ms=now_ms,
            due_ms=now_ms + draft.delay_ms,
        )
        await rows.insert_delayed_event(tx, event, request)
    return event.delay_id


def _request(transaction: ClientTransaction) -> rows.Request:
    return rows.Request(transaction.device_nid, transaction.txn_id, transaction.scope)


def _checked(draft: DelayedDraft) -> tuple[RoomId, str]:
    """Return room and JSON content of what can become an event, as far as that is certain now.

    Raises:
        NotFound, BadJson, TooLarge: it never can.
    """
    room_id, content = parse_room_id(draft.room_id), draft.content
    if room_id is None:
        raise NotFound("Unknown room.")
    for name in (draft.type, draft.state_key or ""):
        if "\0" in name:
            raise BadJson("There is a NUL in the type or state key of the event.")
        if len(name.encode()) > IDENTIFIER_BYTES_MAX:
            raise TooLarge("The type or state key of the event is too long.")
    try:
        text = encode_strict(content)
    except CanonicalJsonError as error:
        raise BadJson(str(error)) from error
    if len(text) > PDU_BYTES_MAX:
        raise TooLarge("The event is too large.")
    match draft.type, draft.state_key:
        case "m.room.create", str():
            raise BadJson("A room is created only once.")
        case "m.room.member", str(user_id):
            membership = content.get("membership")
            if parse_user_id(user_id) is None or str(membership) not in MEMBERSHIPS:
                raise BadJson("A member event has a user id as state key, and a membership.")
        case "m.room.redaction", None:
            if not isinstance(content.get("redacts"), str):
                raise BadJson("A redaction names the event that it redacts in `redacts`.")
        case _:
            pass
    return room_id, text.decode()


# --- managing and looking up -------------------------------------------------------------------


async def restart(services: Services, owner: UserId | None, delay_id: str) -> None:
    """Let an event's delay begin again. `owner` is who asks (None: whoever knows the id).

    Raises:
        NotFound: there is no such event of theirs.
        AlreadyFinalised: it was sent, or will never be.

    MSC4140#managing-scheduled-delayed-events
    """
    await _fetch(services, owner, delay_id)
    if not await rows.restart(services.db, delay_id, services.clock.now_ms()):
        raise AlreadyFinalised("The delayed event is not scheduled any more.")


async def cancel(services: Services, owner: UserId | None, delay_id: str) -> None:
    """Make sure that an event is never sent; one that could not be sent counts as cancelled.

    Raises:
        NotFound: there is no such event of theirs.
        AlreadyFinalised: it was sent.

    MSC4140#managing-scheduled-delayed-events
    """
    await _fetch(services, owner, delay_id)
    if not await rows.cancel(services.db, delay_id, services.clock.now_ms()):
        event = await _fetch(services, owner, delay_id)
        if event.event_id is not None:
            raise AlreadyFinalised("The delayed event has been sent already.")


async def send_now(services: Services, owner: UserId | None, delay_id: str) -> None:
    """Send a scheduled event without further delay. If that fails, it stays scheduled.

    Raises:
        NotFound: there is no such event of theirs.
        AlreadyFinalised: it will never be sent.
        MatrixError: it cannot be sent now, for the reason that a plain request would hear.

    MSC4140#managing-scheduled-delayed-events
    """
    for _ in range(ATTEMPTS):
        event = await _fetch(services, owner, delay_id)
        if event.event_id is not None:
            return
        if event.finalised_ms is not None:
            raise AlreadyFinalised("The delayed event has been cancelled, or could not be sent.")
        try:
            await send(services, event)
        except Superseded:
            continue
        return
    raise Unavailable("The delayed event is restarted all the time; try again.")


async def get_delayed_event(
    services: Services, user_id: UserId, delay_id: str
) -> dict[str, object]:
    """Return what a user is told of a delayed event of theirs, also after its end.

    Raises:
        NotFound: there is no such event of theirs.

    MSC4140#getting-a-single-delayed-event
    """
    return _described(await _fetch(services, user_id, delay_id))


async def list_delayed_events(
    services: Services, user_id: UserId, wanted: Wanted
) -> tuple[list[dict[str, object]], tuple[int, str] | None]:
    """Return some of a user's delayed events as they are due; and where the next page begins.

    MSC4140#getting-a-list-of-delayed-events
    """
    page = await rows.list_page(services.db, user_id, wanted, PAGE_EVENTS + 1)
    more = len(page) > PAGE_EVENTS
    page = page[:PAGE_EVENTS]
    return [_described(event) for event in page], (
        (page[-1].due_ms, page[-1].delay_id) if more else None
    )


async def list_outcomes(
    services: Services, user_id: UserId, since: int | None, upto: int
) -> list[dict[str, object]]:
    """Return what became of a user's delayed events in (since, upto] of the stream.

    That is what was sent, or could not be: what users cancel they know. Without `since` it is
    whatever is remembered. MSC4309#proposal
    """
    if since is not None and services.follower.floor <= since:
        news = services.follower.items_after(since)
        if not any(isinstance(n, DelayedEventOutcome) and n.user_id == user_id for n in news):
            return []
    found = await rows.list_outcomes(services.db, user_id, since or 0, upto)
    return [_described(event) for event in found]


async def _fetch(services: Services, owner: UserId | None, delay_id: str) -> DelayedEvent:
    event = await rows.fetch_delayed_event(services.db, delay_id)
    if event is None or (owner is not None and event.user_id != owner):
        raise NotFound("There is no such delayed event.")
    return event


def _described(event: DelayedEvent) -> dict[str, object]:
    described: dict[str, object] = {
        "delay_id": event.delay_id,
        "room_id": event.room_id,
        "type": event.type,
        "delay_ms": event.delay_ms,
        "delayed_since_ts": event.since_ms,
        "content": orjson.Fragment(event.content),
    }
    if event.state_key is not None:
        described["state_key"] = event.state_key
    if event.finalised_ms is not None:
        outcome: dict[str, object] = {"finalised_ts": event.finalised_ms}
        if event.event_id is not None:
            outcome["event_id"] = event.event_id
        if event.error is not None:
            outcome["error"] = orjson.Fragment(event.error)
        described["finalised"] = outcome
    return described
