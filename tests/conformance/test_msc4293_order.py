"""MSC4293 R-14: which events are redacted does not depend on the order in which they arrive.

Small histories of a spammer are made up, with forks, several stays, and bans with and without the
flag, and given to a server in an order that only keeps causes before effects. What it redacts must
be what the history says: the events of those stays that a flagged ban or kick ended.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.mirror import mirror, push, refresh
from tests.helpers.rooms import MALLORY

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from minihs.protocol.events import Event
    from minihs.protocol.identifiers import EventId
    from tests.helpers.homeserver import Homeserver, User
    from tests.helpers.network import EvilServer
    from tests.helpers.rooms import Room

pytestmark = pytest.mark.spec("MSC4293#proposal")

FLAG = "org.matrix.msc4293.redact_events"
MODERATOR = "@moderator:evil"

# What happens next, and how far back it forks off where that is possible.
WHAT = ["say", "fork", "rename", "ban", "flagged ban", "kick", "flagged kick", "leave", "return"]
STEPS = st.lists(st.tuples(st.sampled_from(WHAT), st.integers(0, 6)), min_size=4, max_size=14)


@dataclass
class Story:
    """A history as it is made up: Mallory's events, each with the number of her stay."""

    room: Room
    made: list[Event] = field(default_factory=list)
    stays: dict[EventId, int] = field(default_factory=dict)
    ended_with_flag: set[int] = field(default_factory=set)
    places: list[tuple[Event, int]] = field(default_factory=list)
    is_joined: bool = False
    is_banned: bool = False
    stay: int = 0

    def __post_init__(self) -> None:
        (self.end,) = self.room.ends

    def play(self, what: str, back: int) -> None:
        """Let one thing happen, if it can."""
        match what:
            case "say" if self.is_joined:
                self._mallory("m.room.message", {"body": "spam"})
            case "fork" if self.places:
                place, stay = self.places[-1 - back % len(self.places)]
                event = self.room.send(MALLORY, "m.room.message", {"body": "fork"}, prev=[place])
                self._note(event, stay)
                self.places.append((event, stay))
            case "rename" if self.is_joined:
                content: dict[str, object] = {"membership": "join", "displayname": f"{back}"}
                self._mallory("m.room.member", content, state_key=MALLORY)
            case "leave" if self.is_joined:
                self._mallory("m.room.member", {"membership": "leave"}, state_key=MALLORY)
                self.stays.pop(self.end.event_id)  # What ends a stay is none of its events.
                self.places.pop()
                self.is_joined = False
            case "ban" | "flagged ban" if not self.is_banned:
                self._remove("ban", flagged=what.startswith("flagged"))
                self.is_banned = True
            case "kick" | "flagged kick" if self.is_joined:
                self._remove("leave", flagged=what.startswith("flagged"))
            case "return" if not self.is_joined:
                if self.is_banned:
                    self._remove("leave", flagged=False)
                    self.is_banned = False
                self.stay += 1
                self.is_joined = True
                self._mallory("m.room.member", {"membership": "join"}, state_key=MALLORY)
            case _:
                pass

    def _mallory(self, kind: str, content: dict[str, object], **more: str) -> None:
        self.end = self.room.send(MALLORY, kind, content, prev=[self.end], **more)  # type: ignore[arg-type]
        self._note(self.end, self.stay)
        self.places.append((self.end, self.stay))

    def _note(self, event: Event, stay: int) -> None:
        self.made.append(event)
        self.stays[event.event_id] = stay

    def _remove(self, membership: str, *, flagged: bool) -> None:
        content: dict[str, object] = {"membership": membership, FLAG: flagged}
        self.end = self.room.send(
            MODERATOR, "m.room.member", content, state_key=MALLORY, prev=[self.end]
        )
        self.made.append(self.end)
        if flagged and self.is_joined:
            self.ended_with_flag.add(self.stay)
        self.is_joined = False

    def redacted(self) -> set[EventId]:
        """Return the events that must be redacted in the end."""
        return {e for e, stay in self.stays.items() if stay in self.ended_with_flag}


def shuffled(events: Sequence[Event], rng: random.Random) -> list[list[Event]]:
    """Return events in transactions, in any order that puts causes before effects."""
    left = {event.event_id: event for event in events}
    transactions: list[list[Event]] = [[]]
    while left:
        ready = [e for e in left.values() if not any(p in left for p in e.prev_event_ids)]
        event = rng.choice(ready)
        del left[event.event_id]
        if transactions[-1] and rng.random() < 0.5:
            transactions.append([])
        transactions[-1].append(event)
    return transactions


@settings(
    max_examples=20,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=STEPS, rng=st.randoms(use_true_random=False))
async def test_r_14_whatever_the_order_the_same_events_are_redacted(
    hs1: Homeserver,
    alice: User,
    evil: EvilServer,
    steps: list[tuple[str, int]],
    rng: random.Random,
):
    hs1.clock.advance_ms(1)  # type: ignore[attr-defined]  # a room is its moment
    room_id = await alice.create_room(room_version="11")
    room = await mirror(hs1, room_id)
    await push(evil, hs1, [room.join(MODERATOR)])
    levels = await alice.call("GET", f"/rooms/{room_id}/state/m.room.power_levels")
    levels["users"][MODERATOR] = 50
    await alice.put_state(room_id, "m.room.power_levels", levels)
    await refresh(room, hs1)
    story = Story(room)
    for step in [("return", 0), *steps]:
        story.play(*step)
    for transaction in shuffled(story.made, rng):
        answer = await push(evil, hs1, transaction)
        assert all(result == {} for result in answer.values()), answer
    stored = await hs1.services.events.get_many(list(story.stays))
    assert stored.keys() == story.stays.keys()
    redacted = {event_id for event_id, one in stored.items() if one.redacted_by is not None}
    assert redacted == story.redacted()
