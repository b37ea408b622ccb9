"""Whatever the history of a room, nobody is shown an event that the rules keep from them.

Random stories of visibility and membership are told to a server, and every way to its events is
compared with the specification's five rules, written out once more here.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING
from urllib.parse import quote

import orjson
import pytest

if TYPE_CHECKING:
    from tests.helpers.homeserver import Homeserver, User

SLIDING = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
VISIBILITIES = ("world_readable", "shared", "invited", "joined")
# What Alice or Bob can do, by Bob's membership.
MOVES = {
    "leave": ("invite", "ban", "join"),
    "invite": ("join", "decline", "ban"),
    "join": ("depart", "kick", "ban", "rename"),
    "ban": ("unban",),
}
RESULT = {
    "invite": "invite", "join": "join", "decline": "leave", "depart": "leave", "kick": "leave",
    "ban": "ban", "unban": "leave", "rename": "join",
}  # fmt: skip


@dataclass(frozen=True)
class Told:
    """One event of the story: visibility and Bob's membership, before and after it."""

    event_id: str
    visibility: tuple[str, str]
    membership: tuple[str, str]
    is_bobs_membership: bool


def allowed(story: list[Told], n: int) -> bool:
    """The rules for users, for the n-th event. Spec: client-server-api#server-behaviour-8."""
    told = story[n]
    joined_later = any(later.membership[1] == "join" for later in story[n:])

    def rules(visibility: str, membership: str) -> bool:
        return (
            visibility == "world_readable"
            or membership == "join"
            or (visibility == "shared" and joined_later)
            or (membership == "invite" and visibility == "invited")
        )

    # Only Bob's own events change his membership, only visibility events the visibility.
    return any(
        rules(visibility, membership)
        for visibility in told.visibility
        for membership in told.membership
    )


async def tell(alice: User, bob: User, room: str, chance: Random, steps: int) -> list[Told]:
    """Let things happen in a room, and return them."""
    visibility, membership, story = "shared", "leave", []
    path = f"/rooms/{quote(room, safe='')}"
    for n in range(steps):
        old = visibility, membership
        kind = chance.choice(("message", "message", "visibility", "membership", "membership"))
        if kind == "message":
            event_id = await alice.say(room, f"m{n}")
        elif kind == "visibility":
            others = [v for v in VISIBILITIES if v != visibility]
            visibility = chance.choice(others)
            event_id = await alice.put_state(
                room, "m.room.history_visibility", {"history_visibility": visibility}
            )
        else:
            move = chance.choice(MOVES[membership])
            membership = RESULT[move]
            target = {"user_id": bob.user_id}
            if move == "join":
                await bob.join(room)
            elif move in ("decline", "depart"):
                await bob.leave(room)
            elif move == "rename":
                content = {"membership": "join", "displayname": f"bob {n}"}
                await bob.put_state(room, "m.room.member", content, bob.user_id)
            else:
                await alice.call("POST", f"{path}/{move}", target)
            state = await alice.call(
                "GET", f"{path}/state/m.room.member/{bob.user_id}", format="event"
            )
            event_id = state["event_id"]
        story.append(
            Told(event_id, (old[0], visibility), (old[1], membership), kind == "membership")
        )
    return story


async def walk(user: User, room: str, direction: str, limit: int) -> list[dict]:
    """Return all events that /messages gives, page by page."""
    events: list[dict] = []
    query = {"dir": direction, "limit": str(limit)}
    while True:
        page = await user.call("GET", f"/rooms/{quote(room, safe='')}/messages", **query)
        events += page["chunk"]
        if "end" not in page:
            return events
        query["from"] = page["end"]


@pytest.mark.spec("client-server-api#room-history-visibility")
@pytest.mark.parametrize("seed", range(12))
async def test_C15_every_way_to_events_obeys_the_rules(homeserver: Homeserver, seed: int) -> None:
    chance = Random(seed)
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room = await alice.create_room()
    story = await tell(alice, bob, room, chance, 40)
    ids = {told.event_id for told in story}
    may_see = {told.event_id for n, told in enumerate(story) if allowed(story, n)}
    now = story[-1]
    has_been_in = any(told.membership[1] == "join" for told in story)
    has_access = has_been_in or now.visibility[1] == "world_readable"
    label = {told.event_id: told.membership[1] for told in story}

    path = f"/rooms/{quote(room, safe='')}"
    for told in story:
        answer = await bob.request("GET", f"{path}/event/{quote(told.event_id)}")
        visible = answer.status == 200
        assert visible == (has_access and told.event_id in may_see), told
        context = await bob.request("GET", f"{path}/context/{quote(told.event_id)}")
        assert (context.status == 200) == visible
        if visible:
            assert answer.json["unsigned"]["membership"] == label[told.event_id]
            around = context.json["events_before"] + context.json["events_after"]
            assert {event["event_id"] for event in around} & ids <= may_see
    if not has_access:
        assert (await bob.request("GET", f"{path}/messages", None, dir="b")).status == 403
        return
    back = [e["event_id"] for e in await walk(bob, room, "b", chance.choice((1, 3, 50)))]
    forth = [e["event_id"] for e in await walk(bob, room, "f", chance.choice((1, 3, 50)))]
    assert back == forth[::-1]
    shown = [event_id for event_id in forth if event_id in ids]
    # A former member is shown nothing from after the leave, not even what is world-readable.
    left = now.membership[1] != "join" and has_been_in
    last = max((n for n, t in enumerate(story) if t.membership[0] == "join"), default=len(story))
    end = last + 1 if left else len(story)
    assert shown == [t.event_id for t in story[:end] if t.event_id in may_see]

    everything = orjson.dumps(
        {"room": {"include_leave": True, "timeline": {"limit": 100}}}
    ).decode()
    rooms = (await bob.sync(filter=everything))["rooms"]
    # /sync also tells people what happened to themselves: that they were banned, or declined.
    may_see |= {told.event_id for told in story if told.is_bobs_membership}
    for section in ("join", "leave"):
        timeline = rooms.get(section, {}).get(room, {"timeline": {"events": []}})["timeline"]
        assert {event["event_id"] for event in timeline["events"]} & ids <= may_see
    wanted = {"timeline_limit": 100, "required_state": []}
    body = {"lists": {"all": {**wanted, "ranges": [[0, 9]]}}, "room_subscriptions": {room: wanted}}
    sliding = await bob.call("POST", SLIDING, body, timeout="0")
    events = sliding["rooms"].get(room, {}).get("timeline", [])
    assert {event["event_id"] for event in events} & ids <= may_see
