"""An event loop whose order of things is a function of what it was given.

Three things make a run repeatable. While anything is ready nothing is taken in from outside. Of all
servers together only one statement is under way in PostgreSQL. And nothing but I/O takes real time:
when no statement is under way and nothing is ready, the simulation is *idle*, and whoever awaits
`until_idle` may move its clock.

What remains of chance: a statement that takes longer than `PATIENCE_S` lets others go ahead, as it
may wait for a lock that one of them will release. Then a busy machine may order two statements of
one server otherwise than an idle one.
"""

# It hands on whatever it is given.

from __future__ import annotations

import asyncio
import collections
import contextlib
import selectors
from typing import TYPE_CHECKING, Any

import asyncpg
from asyncpg import connect_utils
from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

PATIENCE_S = 1.0
REAL_TIMERS_S_MAX = 5  # Those of our own code that count real time are far shorter.


class SimulationLoop(asyncio.SelectorEventLoop):
    """The loop; see the module's text."""

    def __init__(self) -> None:
        self.outside = 0  # What is under way elsewhere: statements, connections, threads.
        self._idlers: list[asyncio.Future[None]] = []
        self._gate: collections.deque[asyncio.Future[None]] = collections.deque()
        self._gate_taken = False
        self._alarms: list[tuple[int, asyncio.Future[None]]] = []
        self._calls = 0
        super().__init__(_PatientSelector(self))

    async def until_idle(self) -> None:
        """Return when nothing happens any more unless a clock moves."""
        idler = self.create_future()
        self._idlers.append(idler)
        await idler

    async def until_statements(self, count: int) -> None:
        """Return when so many more statements have been begun: in the middle of something."""
        alarm = self.create_future()
        self._alarms.append((self._calls + count, alarm))
        await alarm

    def _count(self) -> None:
        self._calls += 1
        for due in [alarm for alarm in self._alarms if alarm[0] <= self._calls]:
            self._alarms.remove(due)
            if not due[1].done():
                due[1].set_result(None)

    @override
    def run_in_executor(  # type: ignore[override]  # less precise
        self, executor: Any, func: Any, *args: Any
    ) -> asyncio.Future[Any]:
        """Run a function in a thread, and count it as something under way."""
        self.outside += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(lambda _: self._returned())
        return future

    def _returned(self) -> None:
        self.outside -= 1

    def is_idle(self, timeout_s: float | None) -> bool:
        """Return whether nothing will happen; `timeout_s` is how long the loop would sleep."""
        return self.outside == 0 and (timeout_s is None or timeout_s > REAL_TIMERS_S_MAX)

    def wake_idlers(self) -> bool:
        """Tell those who wait for it that the loop is idle; return whether there are any."""
        idlers, self._idlers = self._idlers, []
        for idler in idlers:
            if not idler.done():
                idler.set_result(None)
        return bool(idlers)

    async def outside_call(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Make a call to PostgreSQL when its turn has come."""
        while self._gate_taken:
            turn = self.create_future()
            self._gate.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._open_gate()
                raise
        self._gate_taken = True
        released = False

        def release() -> None:
            nonlocal released
            if not released:
                released = True
                self._gate_taken = False
                self._open_gate()

        self._count()
        timer = self.call_later(PATIENCE_S, release)
        self.outside += 1
        try:
            return await call()
        finally:
            self.outside -= 1
            timer.cancel()
            release()

    def _open_gate(self) -> None:
        while self._gate:
            turn = self._gate.popleft()
            if not turn.done():
                turn.set_result(None)
                return


class _PatientSelector(selectors.DefaultSelector):
    """Hides what comes in from outside until nothing is ready, and notices idleness."""

    def __init__(self, loop: SimulationLoop) -> None:
        super().__init__()
        self._loop = loop

    @override
    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is not None and timeout <= 0:
            return []
        if not self._loop.is_idle(timeout):
            return super().select(timeout)
        arrived: list[Any] = super().select(0)
        if arrived or self._loop.wake_idlers():
            return arrived
        return super().select(timeout)


@contextlib.contextmanager
def statements_in_turn() -> Iterator[None]:
    """Let every use of PostgreSQL in a `SimulationLoop` be made in its turn."""
    connection = asyncpg.connection.Connection
    originals = {
        name: getattr(connection, name)
        for name in ("_execute", "_executemany", "execute", "close", "copy_records_to_table")
    }

    def in_turn(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            loop = asyncio.get_running_loop()
            if not isinstance(loop, SimulationLoop):
                return await original(*args, **kwargs)

            async def use() -> Any:
                mine = args[0] if args and isinstance(args[0], connection) else None
                if mine is not None and original is not close and mine.is_closed():
                    raise asyncpg.InterfaceError("the connection was closed in the meantime")
                return await original(*args, **kwargs)

            return await loop.outside_call(use)

        return call

    close, execute_script = originals["close"], in_turn(originals["execute"])

    async def execute(self: Any, query: str, *args: Any, timeout: float | None = None) -> str:
        # With arguments it calls `_execute`, whose turn it is.
        original = originals["execute"] if args else execute_script
        return str(await original(self, query, *args, timeout=timeout))

    connect = connect_utils._connect
    for name, original in originals.items():
        setattr(connection, name, execute if name == "execute" else in_turn(original))
    connect_utils._connect = in_turn(connect)
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(connection, name, original)
        connect_utils._connect = connect
