"""A run: a seed is played, the network heals, and then everything must be as it should be."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from typing_extensions import override

from minihs.base.randomness import Randomness
from minihs.services.federation.delivery import SHARDS
from tests.simulation.checks import differences, view_of
from tests.simulation.clients import LOOKS_MAX, open_clients, wrongly_told
from tests.simulation.network import Faults
from tests.simulation.operations import Play
from tests.simulation.world import SERVERS

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

    from tests.simulation.checks import View
    from tests.simulation.world import Person, Server, World

Scenario = Callable[[Play], Awaitable[None]]

VERSIONS = ("12", "12", "11", "10")
OPERATIONS_MAX = 26
# How time passes after a storm, until nothing is owed: moments first, then whole back-offs.
CALMS_MS = (0, 1_000, 5_000, 60_000, 300_000, 600_000, 900_000, 3_600_000, 90_000_000)
STICKY_MS = (60_000, 600_000, 3_600_000, 3_600_000)
MERGE_ROUNDS = 2
RUN_S_MAX = 600  # Of real time: a run that never becomes idle must not hang.


class RunFailure(AssertionError):
    """What is wrong after a run, and how it came about."""

    def __init__(self, play: Play, problems: list[str]) -> None:
        self.seed = play.world.seed
        self.problems = problems
        self.trace = play.trace
        text = "\n".join(
            (
                f"seed {self.seed} in {play.room_id} with {', '.join(play.names)}:",
                *play.trace,
                f"--- wrong after seed {self.seed}: {len(problems)} ---",
                *problems[:40],
            )
        )
        super().__init__(text)


class ServerLog(logging.Handler):
    """Notes what the servers say in the trace, and keeps what they complain about."""

    def __init__(self, play: Play) -> None:
        super().__init__(logging.INFO)
        self.play = play
        self.complaints: list[str] = []

    @override
    def emit(self, record: logging.LogRecord) -> None:
        """Take a line of a log."""
        if self.play.world.crashing:
            return
        line = self.format(record)
        self.play.note(f"    log: {line}")
        if record.levelno >= logging.ERROR:
            self.complaints.append(line)


async def play_seed(world: World, seed: int, scenario: Scenario | None = None) -> Play:
    """Play a run; return what happened.

    Raises:
        RunFailure: something is wrong afterwards.
    """
    chance = Randomness(seed)
    count = 3 if scenario is not None else chance.between(2, len(SERVERS))
    names = list(SERVERS[:count])
    await world.begin(seed, names)
    play = Play(world, chance, names)
    log = ServerLog(play)
    world.network.watch = play.note
    logging.getLogger("minihs").addHandler(log)
    try:
        async with asyncio.timeout(RUN_S_MAX):
            await (scenario or storm)(play)
            problems = await calm(play)
    except (AssertionError, Exception) as error:
        play.note(f"!!! {error!r}")
        raise RunFailure(play, [repr(error)]) from error
    finally:
        logging.getLogger("minihs").removeHandler(log)
    problems += [f"a server complains: {line}" for line in log.complaints]
    if problems:
        raise RunFailure(play, problems)
    return play


# --- the storm ---------------------------------------------------------------------------------


async def gather_people(play: Play) -> None:
    """Create a room and let one user of each server join it, undisturbed."""
    chance, first = play.chance, [server.people[0] for server in play.servers]
    levels = {first[0].user_id: 100}
    for person in first[1:]:
        levels[person.user_id] = (100, 100, 50, 0)[chance.between(0, 3)]
    await play.create(first[0], VERSIONS[chance.between(0, len(VERSIONS) - 1)], levels)
    for person in first[1:]:
        await play.join(person)
    await play.pass_ms(1_000)


async def storm(play: Play) -> None:
    """Let people, network and machines do as the seed says."""
    chance = play.chance
    await gather_people(play)
    open_clients(play)
    play.set_faults(
        Faults(
            lost=chance.between(0, 1) * chance.between(0, 150),
            unanswered=chance.between(0, 1) * chance.between(0, 150),
            doubled=chance.between(0, 1) * chance.between(0, 200),
            late_ms=chance.between(0, 20_000),
            delay_ms=chance.between(0, 3_000),
        )
    )
    for _ in range(chance.between(8, OPERATIONS_MAX)):
        await _something(play)
        await play.pass_ms((0, 0, 50, 700, 4_000, 15_000)[chance.between(0, 5)])


async def _something(play: Play) -> None:
    """Do one thing of those that can be done."""
    chance = play.chance
    person, other = (play.people[chance.between(0, len(play.people) - 1)] for _ in range(2))
    if chance.between(0, 3):  # Those who were there first do most.
        person = play.servers[chance.between(0, len(play.names) - 1)].people[0]
    if chance.between(0, 1):
        other = play.servers[chance.between(0, len(play.names) - 1)].people[0]
    draw = chance.between(0, 99)
    if draw >= 82:
        await _disturb(play, draw)
        return
    action = _change(play, draw, person, other) if draw < 45 else _talk(play, draw, person)
    if action is not None:
        play.begin(action)
        await play.world.idle()


def _change(play: Play, draw: int, person: Person, other: Person) -> Coroutine[None, None, None]:
    """Change who is in the room, or what it is."""
    chance = play.chance
    redact = bool(chance.between(0, 1))
    if draw < 12:
        return play.join(person)
    if draw < 15:
        return play.leave(person)
    if draw < 19:
        return play.change(person, "invite", other)
    if draw < 24:
        return play.change(person, "kick", other, redact=redact)
    if draw < 30:
        return play.change(person, "ban", other, redact=redact)
    if draw < 33:
        return play.change(person, "unban", other)
    if draw < 37:
        return play.set_topic(person)
    if draw < 41:
        return play.set_level(person, other, (0, 0, 50, 100)[chance.between(0, 3)])
    if draw < 43:
        return play.set_join_rule(person, ("public", "invite", "knock")[chance.between(0, 2)])
    return play.knock(person)


def _talk(play: Play, draw: int, person: Person) -> Coroutine[None, None, None] | None:
    """Say something, or do something about what has been said."""
    chance = play.chance
    if draw < 59:
        return play.say(person)
    if draw < 69:
        return play.stick(person, "ab"[chance.between(0, 1)], STICKY_MS[chance.between(0, 3)])
    if draw < 71:
        return play.forget(person)
    if draw < 76:
        return _look(play, person)
    said = play.sticky if chance.between(0, 1) and play.sticky else list(play.promised)
    if not said:
        return None
    event_id = said[chance.between(0, len(said) - 1)]
    return play.redact(person, event_id) if draw < 80 else play.read(person, event_id)


async def _look(play: Play, person: Person) -> None:
    """Let the client of the first user of somebody's server sync."""
    watcher = play.world.servers[person.server].people[0]
    await play.clients[watcher.user_id].look(play)


async def _disturb(play: Play, draw: int) -> None:
    chance, names = play.chance, play.names
    one, two = (names[chance.between(0, len(names) - 1)] for _ in range(2))
    server = play.world.servers[one]
    if draw < 88:
        parts: list[list[str]] = [[], []]
        for name in names:
            parts[chance.between(0, 1)].append(name)
        play.partition(*(part for part in parts if part))
    elif draw < 91:
        play.world.network.heal()
        play.note("network: healed for now")
    elif draw < 94 and one != two:
        play.clog(one, two) if chance.between(0, 1) else play.unclog(one, two)
    elif draw < 96 and one != two:
        play.cut(one, two)
    elif not server.is_up:
        await play.start(server)
    elif chance.between(0, 1):
        play.begin(play.crash_soon(server, chance.between(1, 60)))
        await play.world.idle()
    else:
        await play.stop(server, crash=bool(chance.between(0, 1)))
        if chance.between(0, 3):
            await play.start(server)


# --- the calm ----------------------------------------------------------------------------------


async def calm(play: Play) -> list[str]:
    """Heal everything, let time pass until nobody owes anybody anything; return what is wrong."""
    play.heal()
    for server in play.servers:
        if not server.is_up:
            await play.start(server)
    problems = await settle(play)
    for person in dict.fromkeys(play.in_doubt):
        await play.join(person)
        problems += await settle(play)
    # Whoever was made to leave while the network was split may have left ends behind in the
    # graphs of some servers only; events upon all ends bring these together.
    for _ in range(MERGE_ROUNDS):
        for server in play.servers:
            if await _merge(play, server):
                problems += await settle(play)
    for client in play.clients.values():
        for _ in range(LOOKS_MAX):
            if not await client.look(play):
                break
    views = await views_of(play)
    problems += differences(views)
    problems += broken_promises(play, views)
    problems += wrongly_told(list(play.clients.values()), views)
    problems += remembered(play, views)
    return problems


async def settle(play: Play) -> list[str]:
    """Let time pass until all is delivered; return what still is not."""
    world = play.world
    for calm_ms in CALMS_MS:
        await world.pass_ms(calm_ms, steps_max=2)
        if not play.pending and not any([await owes(server) for server in play.servers]):
            return []
    problems = [f"an operation has not ended: {task}" for task in play.pending]
    for task in list(play.pending):
        task.cancel()
    for server in play.servers:
        problems += [f"{server.name} still owes {owed}" for owed in await owes(server)]
    return problems


async def owes(server: Server) -> list[str]:
    """Return what a server has not delivered."""
    services = server.running
    rows = await services.db.fetch(
        "SELECT server_name, position, failures FROM destinations WHERE behind"
    )
    owed = [f"{name}, behind since {at}, {failures} failures" for name, at, failures in rows]
    delivery = services.delivery
    if (
        len(delivery.outbox.shards) < SHARDS
    ):  # Those of a process that was killed, until their lease ends.
        owed.append(f"serves {len(delivery.outbox.shards)} shards only")
    if delivery.outbox.recipients.position < services.follower.head:
        owed.append(f"reads at {delivery.outbox.recipients.position} of {services.follower.head}")
    owed += [
        f"{d.name}: {len(d.pdus)} PDUs, {len(d.edus)} EDUs"
        for d in delivery.outbox.destinations.values()
        if d.has_news or d.is_busy
    ]
    return owed


async def _merge(play: Play, server: Server) -> bool:
    """Let somebody of a server say something, if anybody may; return whether they did."""
    before = len(play.promised)
    for person in server.people:
        await play.say(person)
        if len(play.promised) > before:
            return True
    return False


async def views_of(play: Play) -> list[View]:
    """Return the room as each server that takes part has it."""
    views = [await view_of(server, play.room_id) for server in play.servers]
    return [view for view in views if view is not None]


def broken_promises(play: Play, views: list[View]) -> list[str]:
    """Return which events are lost although somebody was told that they are sent."""
    by_name = {view.server: view for view in views}
    return [
        f"{event_id} was promised by {name}, and is not there"
        for event_id, name in play.promised.items()
        if name in by_name and event_id not in by_name[name].events
    ]


def remembered(play: Play, views: list[View]) -> list[str]:
    """Return who forgot the room, has had nothing to do with it since, and is said to know it."""
    by_name = {view.server: view for view in views}
    return [
        f"{person} has forgotten the room, and it has not"
        for person, event_id in play.forgot.items()
        if (view := by_name.get(person.server)) is not None
        and view.members.get(person.user_id, ("", ""))[1] == event_id
        and person.user_id not in view.forgotten
    ]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the servers' log away, but for what `ServerLog` notes."""
    root = logging.getLogger("minihs")
    propagate, level = root.propagate, root.level
    root.propagate = False
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.propagate = propagate
        root.setLevel(level)
