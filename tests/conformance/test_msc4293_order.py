"""MSC4293 R-14: which events are redacted does not depend on the order in which they arrive.

Small histories of a spammer are made up, with forks, several stays, and bans with and without the
flag, and given to a server in an order that only keeps causes before effects. What it redacts must
be what the history says: the events of those stays that a flagged ban or kick ended. In the second
kind of history everything may happen beside everything else: two moderators remove the spammer, who
goes on meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minihs.protocol.event_auth import EventAuthError
from minihs.protocol.redact_on_ban import is_own_join
from minihs.services.rooms import redact_on_ban
from minihs.storage.event_store import EventStore
from minihs.storage.stream_reads import list_unpurged_stays
from tests.helpers.mirror import mirror, push, refresh
from tests.helpers.rooms import MALLORY

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Sequence

    from minihs.base.clock import ManualClock
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


# --- everything beside everything else ----------------------------------------------------------

MODERATORS = ("@one:evil", "@other:evil")
ADMIN = "@admin:evil"
ACTS: dict[str, dict[str, object]] = {
    "say": {"body": "spam"},
    "rename": {"membership": "join", "displayname": "x"},
    "leave": {"membership": "leave"},
    "return": {"membership": "join"},
    "ban": {"membership": "ban"},
    "flagged ban": {"membership": "ban", FLAG: True},
    "kick or unban": {"membership": "leave"},
    "flagged kick": {"membership": "leave", FLAG: True},
    "invite": {"membership": "invite"},
    "close": {"join_rule": "invite"},
    "levels": {},
}
FLAGGED = ["flagged ban", "flagged kick"]  # Twice as often.

# What happens next, which moderator does it, and after which event: 0 is after all of them.
BESIDE = st.lists(
    st.tuples(st.sampled_from([*ACTS, *FLAGGED]), st.integers(0, 1), st.integers(0, 6)),
    min_size=5,
    max_size=12,
)


class Melee:
    """A history in which people do not wait for one another."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.made = [room.join(MALLORY), room.send(MALLORY, "m.room.message", ACTS["say"])]

    def play(self, what: str, who: int, back: int) -> None:
        """Let one thing happen, if the room allows it there."""
        prev = self.room.ends if back == 0 else [self.made[-1 - back % len(self.made)]]
        event_type, sender, content = "m.room.member", MODERATORS[who], ACTS[what]
        state_key: str | None = MALLORY
        match what:
            case "say":
                event_type, sender, state_key = "m.room.message", MALLORY, None
            case "rename" | "leave" | "return":
                sender = MALLORY
            case "close":
                event_type, sender, state_key = "m.room.join_rules", ADMIN, ""
            case "levels":
                event_type, sender, state_key = "m.room.power_levels", ADMIN, ""
                levels = self.room.events[self.room.state_of(prev)[event_type, ""]].content
                content = {**levels, "notifications": {"room": len(self.made)}}
            case _:
                pass
        try:
            event = self.room.send(sender, event_type, content, state_key=state_key, prev=prev)
        except EventAuthError:
            return
        self.made.append(event)

    def redacted(self) -> dict[EventId, EventId]:
        """Return the events that must be redacted in the end, each with what does it.

        This is the definition: a flagged kick or ban redacts the joins that lead to the one which
        it ended, other joins that rest upon these, unless it is a kick and the room is open to who
        comes back, and whatever cites one of them. Of several, the one with the least id counts.
        """
        found: dict[EventId, EventId] = {}
        for removal in self.made:
            if removal.content.get(FLAG) is not True:
                continue
            before = self.room.state_of([self.room.events[e] for e in removal.prev_event_ids])
            rules = self.room.events[before["m.room.join_rules", ""]].content
            may_return = removal.content["membership"] == "leave" and rules["join_rule"] == "public"
            member = self.room.events.get(before.get(("m.room.member", MALLORY), removal.event_id))
            joins: set[EventId] = set()
            while member is not None and is_own_join(member):
                joins.add(member.event_id)
                member = self._cited(member)
            for event in self.made:
                cited = self._cited(event)
                is_of_stay = cited is not None and cited.event_id in joins
                if is_of_stay and is_own_join(event) and not may_return:
                    joins.add(event.event_id)
                is_other = is_own_join(event) and event.event_id not in joins
                if event.event_id in joins or (is_of_stay and not is_other):
                    because_id = found.get(event.event_id, removal.event_id)
                    found[event.event_id] = min(because_id, removal.event_id)
        return found

    def _cited(self, event: Event) -> Event | None:
        """Return the membership of Mallory that an event of hers cites."""
        cited = [self.room.events[e] for e in event.auth_event_ids if event.sender == MALLORY]
        return next((e for e in cited if e.key == ("m.room.member", MALLORY)), None)


async def shown(store: EventStore, events: Iterable[Event]) -> dict[EventId, EventId]:
    """Return which of some events are redacted, and by what."""
    stored = await store.get_many([event.event_id for event in events])
    assert stored.keys() == {event.event_id for event in events}
    return {e: one.redacted_by for e, one in stored.items() if one.redacted_by is not None}


async def shown_after_restart(hs1: Homeserver, events: Iterable[Event]) -> dict[EventId, EventId]:
    """Return the same as a server finds it that has just been started."""
    store = EventStore(hs1.services.db, 1_000_000)
    for stay in await list_unpurged_stays(hs1.services.db):
        store.note_stay(stay)
    return await shown(store, events)


async def purge(hs1: Homeserver, clock: ManualClock) -> None:
    clock.advance_ms(redact_on_ban.PURGE_AFTER_MS)
    await redact_on_ban.purge_redacted(hs1.services)


@settings(
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=BESIDE, ban=st.sampled_from([50, 75]), rng=st.randoms(use_true_random=False))
async def test_r_14_what_two_moderators_do_at_once_redacts_the_same_in_any_order(
    hs1: Homeserver,
    alice: User,
    evil: EvilServer,
    clock: ManualClock,
    steps: list[tuple[str, int, int]],
    ban: int,
    rng: random.Random,
):
    """Whether it is purged meanwhile or not, and whether the server is started anew or not."""
    clock.advance_ms(1)  # a room is its moment
    room_id = await alice.create_room(room_version="11", preset="public_chat")
    room = await mirror(hs1, room_id)
    await push(evil, hs1, [room.join(user_id) for user_id in (*MODERATORS, ADMIN)])
    levels = await alice.call("GET", f"/rooms/{room_id}/state/m.room.power_levels")
    levels |= {"ban": ban, "users": levels["users"] | dict(zip(MODERATORS, (75, 50), strict=True))}
    levels["users"][ADMIN] = 100
    await alice.put_state(room_id, "m.room.power_levels", levels)
    await refresh(room, hs1)
    melee = Melee(room)
    for step in steps:
        melee.play(*step)
    for transaction in shuffled(melee.made, rng):
        answer = await push(evil, hs1, transaction)
        assert all(result == {} for result in answer.values()), answer
        if rng.random() < 0.2:
            await purge(hs1, clock)
    expected = melee.redacted()
    assert await shown(hs1.services.events, melee.made) == expected
    assert await shown_after_restart(hs1, melee.made) == expected
    await purge(hs1, clock)
    assert await shown(hs1.services.events, melee.made) == expected
    assert await shown_after_restart(hs1, melee.made) == expected
