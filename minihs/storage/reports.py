"""What users report to the administrators of this server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.storage.sql import statement

if TYPE_CHECKING:
    from minihs.storage.database import Queries

INSERT_REPORT = statement(
    "reports.insert_report",
    """
    INSERT INTO reports (received_ms, reporter, room_id, event_id, user_id, reason)
    VALUES ($1, $2, $3, $4, $5, $6)
    """,
)


@dataclass(frozen=True, slots=True)
class Report:
    """A report of a room, of an event in a room, or of a user."""

    reporter: str
    reason: str
    received_ms: int
    room_id: str | None = None
    event_id: str | None = None
    user_id: str | None = None


async def insert_report(queries: Queries, report: Report) -> None:
    """Keep a report."""
    await queries.execute(
        INSERT_REPORT,
        report.received_ms,
        report.reporter,
        report.room_id,
        report.event_id,
        report.user_id,
        report.reason,
    )
