"""Stays that a kick or ban redacted (MSC4293): whose, from where to where, and what is spared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.services.inspector.events import EventRef, load_refs
from minihs.storage import inspector

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minihs.services.context import Services

STAYS_MAX = 100
REFS_MAX = 20  # Of one stay: joins, and events that are spared.


@dataclass(frozen=True, slots=True)
class StayView:
    """A redacted stay.

    It goes from `first_join` to `because`, the kick or ban. What cites one of its `joins` (of which
    there are `join_count`) as its sender's membership is of it, whenever it arrives, but for
    what is `spared`. What came after position `upto` was judged on arrival. `purged`: no content of
    it is left in the database; else `purge_below` is the place in the room (position) that the
    purge has come down to, None while it has not begun.
    """

    user_id: str
    first_join: EventRef
    because: EventRef
    joins: Sequence[str]
    join_count: int
    spared: Sequence[EventRef]
    spared_count: int
    redacted_ms: int
    upto: int
    purged: bool
    purge_below: int | None


async def view_stays(services: Services, room_nid: int) -> tuple[list[StayView], bool]:
    """Return the redacted stays of a room, the latest first, and if there are more."""
    rows = await inspector.list_stays(services.db, room_nid, STAYS_MAX + 1)
    shown = rows[:STAYS_MAX]
    refs = await load_refs(
        services,
        [
            event_id
            for row in shown
            for event_id in (row.first_join_id, row.because_id, *sorted(row.spared_ids)[:REFS_MAX])
        ],
    )
    views = [
        StayView(
            user_id=row.user_id,
            first_join=refs[row.first_join_id],
            because=refs[row.because_id],
            joins=sorted(row.join_ids)[:REFS_MAX],
            join_count=len(row.join_ids),
            spared=[refs[e] for e in sorted(row.spared_ids)[:REFS_MAX]],
            spared_count=len(row.spared_ids),
            redacted_ms=row.created_ms,
            upto=row.upto,
            purged=row.purged,
            purge_below=row.next_major if row.next_major < 2**62 else None,
        )
        for row in shown
    ]
    return views, len(rows) > STAYS_MAX
