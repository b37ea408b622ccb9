"""What is kept of sticky events that cannot be delivered yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from minihs.protocol.identifiers import EventId
from minihs.storage import sticky_events

if TYPE_CHECKING:
    from tests.helpers.homeserver import Homeserver

SENDER = "@mallory:evil"


@pytest.mark.spec("MSC4354#proposal")
async def test_of_the_held_ones_of_a_sender_the_newest_are_kept_and_all_that_wait_their_turn(
    homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sticky_events, "HELD_PER_SENDER_MAX", 3)
    db = homeserver.services.db
    for n in range(3):
        await sticky_events.insert_out_of_place(db, EventId(f"$waits{n}"), 1, SENDER, n, "evil")
    for n in range(5):
        await sticky_events.insert_held(db, EventId(f"$held{n}"), 1, SENDER, 10 + n, 0)
    kept = await db.fetch("SELECT event_id FROM sticky_events ORDER BY event_id")
    held, waiting = ["$held2", "$held3", "$held4"], ["$waits0", "$waits1", "$waits2"]
    assert [row[0] for row in kept] == held + waiting
