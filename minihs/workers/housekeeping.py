"""Which loops there are."""

from __future__ import annotations

from minihs.services.accounts import deactivation
from minihs.services.ephemeral import typing_notifications
from minihs.workers.runner import LeasedLoop

LOOPS = (
    LeasedLoop("typing-expiry", 5_000, typing_notifications.expire_overdue),
    LeasedLoop("deactivations", 600_000, deactivation.resume_deactivations),
)
