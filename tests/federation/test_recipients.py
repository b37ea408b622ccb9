"""Who is owed what: following the stream says the same as each event's own state."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from minihs.base.clock import ManualClock
from minihs.protocol.identifiers import server_name_of
from minihs.protocol.membership import membership_of
from minihs.protocol.responsibility import passes_on
from minihs.services.federation.recipients import Recipients
from minihs.storage.event_store import StoredEvent
from tests.helpers.homeserver import running_homeserver
from tests.helpers.remote_members import put_event, put_member
from tests.helpers.rooms import ALICE, MALLORY, Room

if TYPE_CHECKING:
    from pathlib import Path

    from minihs.services.context import Services
    from tests.helpers.homeserver import User

SERVERS = [f"s{n}" for n in range(6)]
USERS = [f"@u{n}:{server}" for server in SERVERS for n in range(3)]


async def expected(services: Services, stored: StoredEvent) -> set[str]:
    """Return who is owed an event, as its own states say."""
    event = stored.event
    servers: set[str] = set()
    if not passes_on(services.server_name, event):
        return set()
    members: list[dict[str, str]] = []
    for state_id in (stored.room_state_before, stored.room_state_after):
        assert state_id is not None
        state = await services.states.get(state_id)
        ids = [e for key, e in state.entries.items() if key[0] == "m.room.member"]
        found = await services.events.get_many(ids)
        who = {str(s.event.state_key): membership_of(s.event) or "" for s in found.values()}
        members.append(who)
        servers |= {server_name_of(user) for user, kind in who.items() if kind == "join"}
    if not any(server_name_of(u) == "hs1" and m == "join" for u, m in members[0].items()):
        return set()
    if event.type == "m.room.member":
        before, after = (who.get(str(event.state_key)) for who in members)
        if before in ("invite", "knock") and after in ("leave", "ban"):
            servers.add(server_name_of(str(event.state_key)))
    return servers - {"hs1", server_name_of(event.sender)}


class Story:
    """A random history of three rooms, told to three readers in pieces of their own."""

    def __init__(self, services: Services, alice: User, rooms: list[str], seed: int) -> None:
        self.services = services
        self.alice = alice
        self.rooms = rooms
        self.chance = random.Random(seed)
        self.joined: set[tuple[str, str]] = set()
        self.readers = [Recipients() for _ in range(3)]
        self.owed: list[dict[str, set[str]]] = [{} for _ in self.readers]

    async def go_on(self, step: int) -> None:
        """Let something happen."""
        chance, services = self.chance, self.services
        room_id, user = chance.choice(self.rooms), chance.choice(USERS)
        is_joined = (room_id, user) in self.joined
        match chance.randrange(6):
            case 0 | 1:
                await self.alice.say(room_id, str(step))
            case 2 if is_joined:
                await put_member(services, room_id, user, "leave", resident=True)
                self.joined.discard((room_id, user))
            case 3 if is_joined:
                await self.alice.call("POST", f"/rooms/{room_id}/kick", {"user_id": user})
                self.joined.discard((room_id, user))
            case 4 if is_joined:
                await put_event(services, room_id, user, "m.room.message", {"body": "x"})
            case _:
                resident = chance.random() < 0.5
                await put_member(services, room_id, user, resident=resident, displayname=str(step))
                self.joined.add((room_id, user))

    async def read(self, number: int) -> None:
        """Let a reader read some of what it has not read yet, and perhaps forget all rooms."""
        reader, chance = self.readers[number], self.chance
        upto = chance.randint(reader.position, self.services.follower.head)
        for share in await reader.read(self.services, upto):
            for stored in share.pdus:
                assert (stored.position or 0) > reader.position
                told = set(share.servers) - {"hs1"}
                before = self.owed[number].setdefault(stored.event_id, set())
                assert not before & told, "twice"
                before |= told
        reader.position = upto
        if chance.random() < 0.2:
            reader.begin_at(upto)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.spec("server-server-api#pdus")
async def test_any_history_read_in_any_pieces_owes_each_event_to_the_same_servers(
    database_url: str, tmp_path: Path, seed: int
):
    async with running_homeserver(database_url, tmp_path, clock=ManualClock(), workers=1) as server:
        services = server.services
        alice = await server.register("alice")
        rooms = [await alice.create_room() for _ in range(3)]
        story = Story(services, alice, rooms, seed)
        first = services.follower.head
        for reader in story.readers:
            reader.begin_at(first)
        for step in range(120):
            await story.go_on(step)
            if story.chance.random() < 0.3:
                await story.read(story.chance.randrange(3))
        for number, reader in enumerate(story.readers):
            while reader.position < services.follower.head:
                await story.read(number)
        wanted = {}
        for _, item in await services.follower.between(first, services.follower.head):
            if isinstance(item, StoredEvent) and (servers := await expected(services, item)):
                wanted[item.event_id] = servers
        assert len(wanted) > 30
        for found in story.owed:
            assert {event: servers for event, servers in found.items() if servers} == wanted


@pytest.mark.spec("server-server-api#joining-rooms")
def test_a_server_passes_on_what_its_users_send_and_what_it_took_in_from_outside() -> None:
    room = Room("11")
    joined = room.join(MALLORY)
    message = room.send(MALLORY, "m.room.message", {"body": "x"})
    own = room.send(ALICE, "m.room.message", {"body": "x"})
    assert passes_on("hs1", own)  # type: ignore[arg-type]
    assert not passes_on("evil", own)  # type: ignore[arg-type]
    assert passes_on("evil", joined)  # type: ignore[arg-type]
    assert not passes_on("hs1", joined)  # type: ignore[arg-type]
    joined.pdu["signatures"]["hs1"] = {}  # type: ignore[index]
    message.pdu["signatures"]["hs1"] = {}  # type: ignore[index]
    assert passes_on("hs1", joined)  # type: ignore[arg-type]
    assert not passes_on("hs1", message), "anybody could ask us to"  # type: ignore[arg-type]
