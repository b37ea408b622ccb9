"""Which loops there are."""

from __future__ import annotations

from minihs.services.accounts import deactivation
from minihs.services.encryption import to_device
from minihs.services.ephemeral import presence, typing_notifications
from minihs.services.federation import transactions
from minihs.services.rooms import (
    delayed_sending,
    forget,
    loose_ends,
    redact_on_ban,
    sticky_events,
    sticky_limits,
)
from minihs.workers.runner import LeasedLoop

LOOPS = (
    LeasedLoop("typing-expiry", 5_000, typing_notifications.expire_overdue),
    LeasedLoop("presence", 5_000, presence.expire),
    LeasedLoop("deactivations", 2_000, deactivation.resume_deactivations),
    LeasedLoop("sticky-recheck", 1_000, sticky_events.recheck_soft_failed),
    LeasedLoop("sticky-release", 1_000, sticky_limits.release_waiting),
    LeasedLoop("redacted-stays", 5_000, redact_on_ban.purge_redacted),
    LeasedLoop("sticky-expiry", 60_000, sticky_events.forget_expired),
    LeasedLoop("delayed-retention", 60_000, delayed_sending.forget_finalised),
    LeasedLoop("forgotten-rooms", 600_000, forget.purge_forgotten),
    LeasedLoop("loose-ends", 60_000, loose_ends.tie_loose_ends),
    LeasedLoop("old-transactions", 3_600_000, transactions.forget_old),
    LeasedLoop("old-sends", 3_600_000, to_device.forget_old_sends),
)
