"""Runs with a name: what the random ones may never do in this order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.clients import open_clients
from tests.simulation.network import Faults

if TYPE_CHECKING:
    from tests.simulation.operations import Play

HOUR_MS = 3_600_000


async def gather(play: Play, levels: tuple[int, ...] = (100, 100, 50)) -> None:
    """Create a room of alices, with bobs beside them, of all three servers."""
    alices = [server.people[0] for server in play.servers]
    version = ("12", "11", "10")[play.chance.between(0, 2)]
    await play.create(
        alices[0],
        version,
        {person.user_id: level for person, level in zip(alices, levels, strict=True)},
    )
    for person in [*alices[1:], *(server.people[1] for server in play.servers)]:
        await play.join(person)
    open_clients(play)
    await play.pass_ms(1_000)


async def bans_on_both_sides(play: Play) -> None:
    """While the network is split, each side bans somebody of the other who goes on talking."""
    await gather(play)
    one, two, three = play.servers
    play.partition(["hs1"], ["hs2", "hs3"])
    for _ in range(3):
        for server in play.servers:
            await play.say(server.people[1])
    await play.change(one.people[0], "ban", three.people[1])
    await play.change(two.people[0], "ban", one.people[1])
    await play.change(one.people[0], "ban", three.people[0])  # A moderator of the other side.
    await play.change(three.people[0], "kick", two.people[1])
    for _ in range(3):
        for server in play.servers:
            await play.say(server.people[1])
            await play.say(server.people[0])
    await play.pass_ms(60_000)
    play.heal()
    await play.pass_ms(60_000)


async def concurrent_power_changes(play: Play) -> None:
    """Everybody changes the power levels at once, and does what only the old ones allow."""
    await gather(play)
    one, two, three = (server.people for server in play.servers)
    play.partition(["hs1"], ["hs2"], ["hs3"])
    await play.set_level(one[0], three[0], 0)
    await play.set_level(one[0], one[1], 50)
    await play.set_level(two[0], three[1], 100)
    await play.set_level(two[0], three[0], 50)
    await play.set_topic(three[0])
    await play.set_level(three[0], three[1], 50)
    await play.set_topic(three[1])
    await play.set_topic(one[1])
    await play.change(three[0], "ban", one[1])
    play.partition(["hs1"], ["hs2", "hs3"])
    await play.pass_ms(30_000)
    await play.set_level(two[0], two[1], play.chance.between(0, 100))
    await play.set_topic(two[1])
    play.heal()


async def join_during_a_split(play: Play) -> None:
    """Somebody joins through one side while the other closes the room."""
    alices = [server.people[0] for server in play.servers]
    await play.create(alices[0], "11", {alices[0].user_id: 100, alices[1].user_id: 100})
    open_clients(play)
    await play.join(alices[1])
    play.partition(["hs1"], ["hs2", "hs3"])
    await play.say(alices[0])
    await play.set_join_rule(alices[0], "invite")
    await play.say(alices[1])
    await play.join(alices[2])
    await play.say(alices[2])
    await play.pass_ms(20_000)
    await play.set_topic(alices[1])
    await play.set_topic(alices[0])


async def banned_by_the_kicked(play: Play) -> None:
    """A moderator who has been kicked, but does not know it, bans the only user of a server."""
    await gather(play, (100, 0, 50))
    one, two, three = play.servers
    await play.leave(two.people[1])
    await play.pass_ms(1_000)
    play.partition(["hs1"], ["hs2", "hs3"])
    await play.change(one.people[0], "kick", three.people[0])
    await play.change(three.people[0], "ban", two.people[0], redact=bool(play.chance.between(0, 1)))
    await play.pass_ms(play.chance.between(0, 20_000))
    await play.stick(one.people[0], "a", HOUR_MS)
    await play.say(three.people[1])


async def an_hour_away(play: Play) -> None:
    """A server is gone for an hour in which much happens, also to its own users."""
    await gather(play)
    one, two, three = play.servers
    await play.stop(three, crash=bool(play.chance.between(0, 1)))
    for number in range(30):
        await play.say(one.people[number % 2])
        await play.say(two.people[number % 2])
        if number % 10 == 3:
            await play.set_topic(two.people[0])
    await play.change(one.people[0], "kick", three.people[1])
    await play.join(two.people[2])
    await play.pass_ms(HOUR_MS)
    await play.start(three)
    await play.say(three.people[0])


async def restart_in_a_transaction(play: Play) -> None:
    """Servers die while they take in, and send, a transaction of 50 events."""
    await gather(play)
    one, two, three = play.servers
    play.clog("hs1", "hs2")
    play.clog("hs1", "hs3")
    await play.say(one.people[0])  # This one is under way, so that the others gather behind it.
    for number in range(55):
        await play.say(one.people[number % 2])
    play.begin(play.crash_soon(two, play.chance.between(10, 150)))
    play.unclog("hs1", "hs2")
    await play.pass_ms(5_000)
    play.begin(play.crash_soon(three, play.chance.between(10, 150)))
    play.begin(play.crash_soon(one, play.chance.between(100, 200)))
    play.unclog("hs1", "hs3")
    await play.pass_ms(5_000)
    await play.say(two.people[0])


async def swizzle_clog(play: Play) -> None:
    """Links stop one by one, and come back one by one, in another order."""
    await gather(play)
    play.set_faults(Faults(doubled=200, late_ms=10_000, delay_ms=500))
    links = [(a, b) for a in play.names for b in play.names if a != b]
    stopping = sorted(links, key=lambda _: play.chance.between(0, 1_000))
    starting = sorted(links, key=lambda _: play.chance.between(0, 1_000))
    for step, (link, switch) in enumerate(
        [*((link, play.clog) for link in stopping), *((link, play.unclog) for link in starting)]
    ):
        switch(*link)
        for server in play.servers:
            person = server.people[play.chance.between(0, 1)]
            play.begin(play.say(person) if play.chance.between(0, 2) else play.set_topic(person))
        if step % 4 == 0:
            someone = play.servers[play.chance.between(0, 2)].people[1]
            play.begin(play.set_level(play.servers[step % 2].people[0], someone, step))
        await play.pass_ms(play.chance.between(100, 20_000))


SCENARIOS = (
    bans_on_both_sides,
    concurrent_power_changes,
    join_during_a_split,
    banned_by_the_kicked,
    an_hour_away,
    restart_in_a_transaction,
    swizzle_clog,
)
