"""LOCAL WRITE: draft -> authorised -> built -> committed.

`send_event` is the whole way of one event of a local user. `plan_draft` is its middle, for
operations that send several events of one room together (`create`, `upgrade`).
Spec: client-server-api#sending-events-to-a-room
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from minihs.base.errors import BadJson, Forbidden, MatrixError, NotFound, TooLarge, Unavailable
from minihs.base.limits import PREV_EVENTS_MAX
from minihs.protocol.canonical_json import INTEGER_MAX, CanonicalJsonError
from minihs.protocol.event_assembly import EventDraft, build_event
from minihs.protocol.event_auth import (
    EventAuthError,
    check_state_dependent,
    check_state_independent,
    select_auth_keys,
)
from minihs.protocol.event_format import EventTooLargeError
from minihs.protocol.state_keys import CREATE
from minihs.services.rooms import commit, early_redactions, origins, state
from minihs.services.rooms.commit import Plan, PlannedEvent
from minihs.services.rooms.heads import RoomHead, building, is_confirmed
from minihs.services.rooms.state import load_state_events
from minihs.storage.group_commit import Conflict

if TYPE_CHECKING:
    from asyncio import Future

    from minihs.protocol.identifiers import EventId, RoomId
    from minihs.services.context import Services
    from minihs.services.rooms.origins import Origin
    from minihs.storage.event_store import StoredEvent
    from minihs.storage.state import StateRow

ATTEMPTS = 20

# Asked under the room's turn, before each attempt: returns the draft to send, or the id of an event
# that makes sending needless (an unchanged state), or raises.
Decision = Callable[[RoomHead], Awaitable["EventDraft | EventId"]]


class UnknownRoom(NotFound):
    """Nobody of this server has been in the room, or nothing is left of it here."""


async def send_event(
    services: Services,
    draft: EventDraft,
    *,
    transaction: Origin | None = None,
) -> EventId:
    """Send an event of a local user to a room that this server is in; return its id.

    Raises:
        NotFound: this server does not know the room.
        Forbidden: the auth rules refuse it; the message names the rule.
        TooLarge, BadJson: it cannot be an event.
        Superseded: it is a delayed event that must not be sent now.
    """

    async def as_given(_head: RoomHead) -> EventDraft:
        return draft

    room_id: RoomId = draft.room_id  # type: ignore[assignment]
    return await send_decided(services, room_id, as_given, transaction=transaction)


async def send_decided(
    services: Services,
    room_id: RoomId,
    decide: Decision,
    *,
    transaction: Origin | None = None,
) -> EventId:
    """Send what `decide` says when the room's turn has come; decide again if the room moved.

    Raises:
        Unavailable: other processes were faster, time after time.
        Superseded: it is a delayed event that must not be sent now.
    """
    for _ in range(ATTEMPTS):
        async with building(services, room_id) as head:
            if head is None:
                raise UnknownRoom("Unknown room.")
            pending = head.cursor.pending
            outcome = await _attempt(services, head, decide, transaction)
        if isinstance(outcome, tuple):
            stored, durable = outcome
            with contextlib.suppress(Conflict):
                await durable
                return stored.event_id
        # A repeated request must get its first answer, even if it would be refused today.
        if transaction is not None and (
            known := await origins.find_by_transaction(services, room_id, transaction)
        ):
            return known
        if isinstance(outcome, tuple):
            continue
        # Why nothing is sent must be as true and durable as what is sent.
        if isinstance(outcome, Unavailable) or await is_confirmed(services, head, pending):
            if isinstance(outcome, MatrixError):
                raise outcome
            return outcome
    raise Unavailable("The room is too busy; try again.")


async def _attempt(
    services: Services,
    head: RoomHead,
    decide: Decision,
    transaction: Origin | None,
) -> tuple[StoredEvent, Future[int]] | EventId | MatrixError:
    """Return the event that was handed to the committer, or else what `decide` said instead."""
    if not head.extremities:  # Somebody was invited to it, but nobody of us has been in it.
        return UnknownRoom("Unknown room.")
    try:
        decided = await decide(head)
        if isinstance(decided, str):
            return decided
        plan = Plan(head)
        stored = await plan_draft(services, plan, decided, transaction)
        return stored, plan.submit(services)
    except MatrixError as error:
        return error


async def plan_draft(
    services: Services,
    plan: Plan,
    draft: EventDraft,
    transaction: Origin | None = None,
) -> StoredEvent:
    """Build a draft upon the room's head, check it, and add it to the plan.

    Raises:
        Forbidden: the auth rules refuse it.
        TooLarge, BadJson: it cannot be an event.
    """
    planned = await build_upon(services, plan.head, draft)
    planned.transaction = transaction
    return await commit.add_event(services, plan, planned)


async def build_upon(services: Services, head: RoomHead, draft: EventDraft) -> PlannedEvent:
    """Return a draft as an event upon a room's head, signed and checked, but not yet part of it.

    Raises:
        Forbidden: the auth rules refuse it.
        TooLarge, BadJson: it cannot be an event.
    """
    version = head.room_version
    if draft.type == "m.room.create" and head.extremities:
        raise BadJson("A room is created only once.")
    if "\0" in draft.type or "\0" in (draft.state_key or ""):  # Only in bodies; URLs have none.
        raise BadJson("There is a NUL in the type or state key of the event.")
    keys = select_auth_keys(version, draft.sender, draft.type, draft.state_key, draft.content)
    if version.room_id_is_create_event_id:  # Since v12 it is implied; the rules look at it.
        keys.append(CREATE)
    extremities, state_before = head.extremities, head.state
    rows: list[StateRow] = []
    if len(extremities) > PREV_EVENTS_MAX:  # The rest is merged by events to come.
        extremities = extremities[-PREV_EVENTS_MAX:]
        state_before, rows = await state.resolve(services, version, extremities)
    auth = await load_state_events(services, state_before, keys)
    try:
        event = build_event(
            draft,
            room_version=version,
            depth=min(max((e.event.depth for e in extremities), default=0) + 1, INTEGER_MAX),
            prev_event_ids=[e.event_id for e in extremities],
            auth_event_ids=[stored.event_id for stored in auth.values()],
            server_name=services.server_name,
            signing_key=services.signing_key,
            event_id=own_event_id(services) if version.event_id_source == "server" else None,
        )
    except EventTooLargeError as error:
        raise TooLarge(str(error)) from error
    except CanonicalJsonError as error:
        raise BadJson(str(error)) from error
    auth_state = {key: stored.event for key, stored in auth.items()}
    try:
        check_state_independent(event, list(auth_state.values()))
        check_state_dependent(event, auth_state)
    except EventAuthError as error:
        raise Forbidden(error.message) from error
    may_redact = await early_redactions.may_redact(services, event, state_before)
    return PlannedEvent(event, auth, may_redact, None, state_before, rows)


def own_event_id(services: Services) -> EventId:
    """Return an id for an event of room versions 1 and 2, where servers choose it."""
    return f"${services.randomness.token(18)}:{services.server_name}"  # type: ignore[return-value]
