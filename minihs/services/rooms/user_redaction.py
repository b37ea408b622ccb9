"""Redacting what one user said in a room: the newest first, some at a time.

The remedy where a kick or ban did not redact (MSC4293). Redactions are events, sent by the one who
asks: everybody sees them, and each is allowed or not like any other. What was soft-failed counts,
too: nobody here sees it, but others may. Redactions are left out, or a user who redacts their own
events would never come to an end; and so is state that keeps the room safe while it is in force.

MSC4194#redacting-a-users-events
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.base.errors import Forbidden, LimitExceeded, Unavailable
from minihs.base.leaky_buckets import Limit
from minihs.base.tasks import give_way
from minihs.protocol.event_assembly import EventDraft
from minihs.protocol.redact_on_ban import is_covered
from minihs.services.rooms.commit import Plan
from minihs.services.rooms.heads import building, is_confirmed
from minihs.services.rooms.send import plan_draft
from minihs.services.rooms.standing import standing_of
from minihs.services.rooms.visibility import visible
from minihs.storage import events as event_reads
from minihs.storage.event_store import SOFT_FAILED
from minihs.storage.group_commit import Conflict

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping, Sequence

    from minihs.protocol.identifiers import RoomId, UserId
    from minihs.services.context import Services
    from minihs.services.rooms.heads import RoomHead
    from minihs.storage.event_store import StoredEvent

ATTEMPTS = 20
# Events that one request redacts, and that one user may have redacted: what counts is their number,
# not that of requests. More for moderators than for those who tidy up, and than by /send.
OTHERS_EVENTS_MAX, OTHERS_LIMIT = 100, Limit(20, 500)
OWN_EVENTS_MAX, OWN_LIMIT = 25, Limit(100, 50)
NEVER_REDACTED = frozenset({"m.room.create", "m.room.redaction"})


@dataclass(frozen=True, slots=True)
class Redacted:
    """How many events were redacted, how many of them soft-failed, and whether there are more."""

    total: int
    soft_failed: int
    is_more: bool


async def redact_user(
    services: Services,
    requester: UserId,
    room_id: RoomId,
    user_id: str,
    *,
    limit: int,
    content: Mapping[str, object],
    is_limited: bool = True,
) -> Redacted:
    """Redact up to `limit` events of a user, or fewer, with redactions of this content.

    `is_limited`: there is a limit to how many the requester may redact in some time.
    MSC4194#redacting-a-users-events, MSC4194#rate-limiting

    Raises:
        Forbidden: the requester is not joined, or may not redact these events.
        LimitExceeded: they have redacted too many already.
        Unavailable: other processes were faster, time after time.
    """
    is_own = user_id == requester
    limit = min(limit, OWN_EVENTS_MAX if is_own else OTHERS_EVENTS_MAX)
    bucket, bucket_limit = (requester, is_own), OWN_LIMIT if is_own else OTHERS_LIMIT
    if is_limited and (wait_ms := services.redactions.add(bucket, bucket_limit, 0)):
        raise LimitExceeded(wait_ms)
    for _ in range(ATTEMPTS):
        async with building(services, room_id) as head:
            if head is None or not head.extremities:
                raise Forbidden("You are not joined to the room.")
            pending = head.cursor.pending
            outcome = await _attempt(services, head, requester, user_id, limit, content)
        if isinstance(outcome, Forbidden):
            if await is_confirmed(services, head, pending):
                raise outcome
            continue
        redacted, durable = outcome
        with contextlib.suppress(Conflict):
            await durable
            if is_limited:
                services.redactions.add(bucket, bucket_limit, redacted.total)
            return redacted
    raise Unavailable("The room is too busy; try again.")


async def _attempt(
    services: Services,
    head: RoomHead,
    requester: UserId,
    user_id: str,
    limit: int,
    content: Mapping[str, object],
) -> tuple[Redacted, Awaitable[object]] | Forbidden:
    """Return what will have been redacted when something is durable, or why nothing may be."""
    refusal = await _refusal(services, head, requester, user_id)
    if refusal is not None:
        return refusal
    found = await _find(services, head, requester, user_id, limit + 1)
    events = found[:limit]
    soft_failed = sum(stored.status == SOFT_FAILED for stored in events)
    redacted = Redacted(len(events), soft_failed, len(found) > limit)
    if not events:
        return redacted, give_way()
    plan = Plan(head)
    for stored in events:
        await plan_draft(services, plan, _draft(services, stored, requester, content))
    return redacted, plan.submit(services)


async def _refusal(
    services: Services, head: RoomHead, requester: UserId, user_id: str
) -> Forbidden | None:
    """Return why a user may not redact another's events; None if they may."""
    standing = await standing_of(services, head, requester)
    if standing.membership != "join":
        return Forbidden("You are not joined to the room.")
    if user_id != requester and standing.level < standing.levels.redact:
        return Forbidden("You may not redact the events of others.")
    if not standing.may_send("m.room.redaction", is_state=False):
        return Forbidden("You may not send redactions.")
    return None


async def _find(
    services: Services, head: RoomHead, requester: UserId, user_id: str, limit: int
) -> Sequence[StoredEvent]:
    """Return the newest events of a user that can be redacted: those seen, and soft-failed ones."""
    found: list[StoredEvent] = []
    place = (2**63 - 1, 0)
    while len(found) < limit:
        page = await event_reads.list_unredacted_of(
            services.db, services.events, head.cursor.room_nid, user_id, place, limit
        )
        seen = await visible(services, requester, page)
        found += [s for s, _ in seen if _can_be_redacted(services, head, s, user_id)]
        if len(page) < limit:
            break
        place = page[-1].order or place
    hidden = await event_reads.list_soft_failed_of(
        services.db, services.events, head.cursor.room_nid, user_id, limit
    )
    found += [s for s in hidden if _can_be_redacted(services, head, s, user_id)]
    found.sort(key=lambda stored: stored.event.origin_server_ts, reverse=True)
    return found[:limit]


def _can_be_redacted(services: Services, head: RoomHead, stored: StoredEvent, user_id: str) -> bool:
    event = stored.event
    in_force = event.is_state and head.state.entries.get(event.key) == event.event_id
    return (
        event.sender == user_id
        and stored.redacted_by is None
        and event.type not in NEVER_REDACTED
        and is_covered(
            event,
            in_force=in_force,
            spare_control_state=services.config.redact_on_ban_spares_control_state,
        )
    )


def _draft(
    services: Services, target: StoredEvent, requester: UserId, content: Mapping[str, object]
) -> EventDraft:
    return EventDraft(
        room_id=target.event.room_id,
        sender=requester,
        type="m.room.redaction",
        content=content,
        origin_server_ts=services.clock.now_ms(),
        redacts=target.event_id,
    )
