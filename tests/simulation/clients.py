"""Clients that follow a run's room by /sync, and keep count of what is sticky (MSC4354)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import orjson

from minihs.protocol.unstable import STICKY, STICKY_SYNC_SECTION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.simulation.checks import View
    from tests.simulation.operations import Play
    from tests.simulation.world import Person

TIMELINE_MAX = 2  # So that much is in no timeline.
LOOKS_MAX = 20


@dataclass(eq=False)
class Client:
    """A client that shows one room. `got`: how often it had each sticky event of this stay."""

    person: Person
    room_id: str
    since: str | None = None
    join_id: str | None = None
    got: Counter[str] = field(default_factory=Counter)

    async def look(self, play: Play) -> bool:
        """Sync once; return whether there was anything new. What was lost is asked for again."""
        wanted = {"room": {"rooms": [self.room_id], "timeline": {"limit": TIMELINE_MAX}}}
        query = f"timeout=0&filter={quote(orjson.dumps(wanted).decode())}"
        if self.since is not None:
            query += f"&since={quote(self.since)}"
        play.note(f"{self.person} looks")
        server = play.world.servers[self.person.server]
        status, answer = await server.request("GET", f"/sync?{query}", self.person.token)
        play.note(f"{self.person} looked: {status}")
        assert status in (0, 200) or status in (502, 503), answer
        if status != 200:
            return False
        self.since = answer["next_batch"]
        rooms = answer.get("rooms", {})
        joined = rooms.get("join", {}).get(self.room_id)
        if self.room_id in rooms.get("leave", {}):
            self._begin_stay(None)
        if joined is not None:
            self._take(joined)
        return bool(joined)

    def _take(self, joined: dict[str, Any]) -> None:
        """Take notice of what a response says about the room."""
        timeline: list[dict[str, Any]] = joined.get("timeline", {}).get("events", [])
        section = joined.get(STICKY_SYNC_SECTION.unstable, {}).get("events", [])
        for event in (*joined.get("state", {}).get("events", []), *timeline):
            own = event["type"] == "m.room.member" and event["state_key"] == self.person.user_id
            if own and event["content"]["membership"] != "join":
                self._begin_stay(None)
            elif own and event["event_id"] != self.join_id:
                self._begin_stay(event["event_id"])
        for event in (*timeline, *section):
            if STICKY.is_in(event):
                self.got[event["event_id"]] += 1

    def _begin_stay(self, join_id: str | None) -> None:
        self.join_id = join_id
        self.got.clear()


def open_clients(play: Play) -> None:
    """Let one user of each server have a client that shows the room."""
    for server in play.servers:
        person = server.people[0]
        play.clients[person.user_id] = Client(person, play.room_id)


def wrongly_told(clients: Sequence[Client], views: Sequence[View]) -> list[str]:
    """Return which clients, of those who are in the room, have not had what is sticky just once."""
    problems: list[str] = []
    by_name = {view.server: view for view in views}
    for client in clients:
        person, view = client.person, by_name.get(client.person.server)
        if view is None or view.members.get(person.user_id, ("", ""))[0] != "join":
            continue
        problems += [
            f"{person} was given the sticky event {event_id} {client.got[event_id]} times"
            for event_id in sorted(view.sticky)
            if client.got[event_id] != 1
        ]
    return problems
