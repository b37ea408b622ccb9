"""Sending delayed events when they are due, and forgetting those that are done with.

MSC4140#proposal
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import orjson

from minihs.base.errors import (
    DatabaseAway,
    Forbidden,
    LimitExceeded,
    MatrixError,
    Unavailable,
    UserDeactivated,
)
from minihs.protocol.canonical_json import decode
from minihs.services.rooms.origins import DelayedSending, Superseded
from minihs.services.rooms.room_events import send_message, set_room_state
from minihs.services.rooms.send import UnknownRoom
from minihs.storage import accounts
from minihs.storage import delayed_events as rows
from minihs.storage.stream_rows import DelayedEventOutcome

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minihs.protocol.identifiers import EventId, UserId
    from minihs.services.context import Services
    from minihs.storage.delayed_events import Busy, DelayedEvent

logger = logging.getLogger(__name__)

RETRIED_FOR_MS = 60_000
SENT_AT_ONCE_MAX = 100  # Of one user, within SENT_AT_ONCE_MS.
SENT_AT_ONCE_MS = 10_000
# MSC4140#retention-of-finalised-delayed-events; the bytes are ours.
RETAINED_MS = 7 * 86_400_000
RETAINED_PER_USER_MAX = 1_000
RETAINED_BYTES_PER_USER_MAX = 8 * 1_048_576
DELETED_AT_ONCE = 1_000
SURPLUS_INTERVAL_MS = 300_000


async def list_due(services: Services, busy: Busy, limit: int) -> list[DelayedEvent]:
    """Return events to be sent now, the longest overdue first, but none of what is `busy`."""
    return await rows.list_due(services.db, services.clock.now_ms(), busy, limit)


async def begin_again_ahead(services: Services, slack_ms: int) -> None:
    """Let delays that began when the clock was further on begin again: it has been put back."""
    now_ms = services.clock.now_ms()
    await rows.restart_ahead(services.db, now_ms, now_ms + slack_ms)


async def fetch_next_due(services: Services) -> int | None:
    """Return when the first event that is not due yet will be, or None."""
    return await rows.fetch_next_due(services.db, services.clock.now_ms())


async def send_due(services: Services, event: DelayedEvent, began_ms: int) -> bool:
    """Send an event that is due, or note why it cannot be sent; return whether it is done with.

    It is not where the trouble is the server's own: that passes, and the event is tried again, for
    a minute after it was due (or after this process began to send, at `began_ms`); for a database
    that is away it waits without end.

    MSC4140#rate-limiting-at-the-point-of-sending
    """
    try:
        await _check_rate(services, event.user_id)
        await send(services, event)
    except Superseded:
        return True
    except DatabaseAway:  # However long that takes.
        return False
    except UnknownRoom:  # It has been deleted, or never was one of this server's.
        await _note_failed(services, event, Forbidden("You are not in this room."))
    except MatrixError as error:
        late_ms = services.clock.now_ms() - max(event.due_ms, began_ms)
        if isinstance(error, Unavailable) and late_ms < RETRIED_FOR_MS:
            return False
        await _note_failed(services, event, error)
    except Exception:
        logger.exception("a delayed event of %s cannot be sent", event.user_id)
        await _note_failed(services, event, MatrixError("Internal server error."))
    return True


async def _note_failed(services: Services, event: DelayedEvent, error: MatrixError) -> None:
    """Finalise an event that cannot be sent, if it is still as it was seen; tell its owner."""
    outcome = DelayedEventOutcome(
        event.user_id, event.delay_id, event.due_ms, services.clock.now_ms(),
        error=orjson.dumps(error.body()).decode(),
    )  # fmt: skip
    await services.committer.commit_rows([outcome])


async def _check_rate(services: Services, user_id: UserId) -> None:
    """Refuse a flood that was scheduled for one moment.

    A bucket of their own, and generous: what a client cannot send any more it cannot repeat.
    """
    if services.config.rate_limits_on:
        since_ms = services.clock.now_ms() - SENT_AT_ONCE_MS
        if await rows.count_sent_since(services.db, user_id, since_ms) >= SENT_AT_ONCE_MAX:
            raise LimitExceeded(SENT_AT_ONCE_MS, "Too many delayed events at once.")


async def send(services: Services, event: DelayedEvent) -> None:
    """Send an event by the way that a request for it would go.

    Raises:
        Superseded: it was cancelled or restarted meanwhile.
        MatrixError: it cannot be sent.
    """
    owner = await accounts.fetch_account(services.db, event.user_id)
    if owner is None or owner.deactivated:
        raise UserDeactivated("The account has been deactivated.")
    sending = DelayedSending(event.delay_id, event.due_ms)
    content: Mapping[str, object] = decode(event.content)  # type: ignore[assignment]  # checked
    if event.state_key is None:
        event_id = await send_message(
            services, event.user_id, event.room_id, event.type, content, sending,
            sticky_ms=event.sticky_ms, sent_ms=event.sent_ms,
        )  # fmt: skip
    else:
        event_id = await set_room_state(
            services, event.user_id, event.room_id, event.type, event.state_key, content,
            guest=owner.guest, sticky_ms=event.sticky_ms, sent_ms=event.sent_ms,
            transaction=sending,
        )  # fmt: skip
    await _note_other(services, event, event_id)


async def _note_other(services: Services, event: DelayedEvent, event_id: EventId) -> None:
    """Finalise an event that no commit of ours has finalised.

    The state was so already, or other servers had to make the membership.
    """
    stored = await services.events.get(event_id)
    if stored is None or stored.device_nid is not None or stored.txn_id != event.delay_id:
        outcome = DelayedEventOutcome(
            event.user_id, event.delay_id, event.due_ms, services.clock.now_ms(), event_id
        )
        await services.committer.commit_rows([outcome])


async def forget_finalised(services: Services) -> None:
    """Forget what was finalised long ago, and of each user what is too much.

    MSC4140#retention-of-finalised-delayed-events
    """
    now_ms = services.clock.past_ms()
    while await rows.delete_old(services.db, now_ms - RETAINED_MS, DELETED_AT_ONCE):
        pass
    await rows.delete_surplus(
        services.db,
        now_ms - SURPLUS_INTERVAL_MS,
        RETAINED_PER_USER_MAX,
        RETAINED_BYTES_PER_USER_MAX,
    )
