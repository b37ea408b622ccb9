"""The server's processes: one, or several that share sockets and database (D4).

With N workers the parent binds the sockets, hands them to N children, and starts a child anew that
dies. Children need nothing from one another but PostgreSQL, and show each other their metrics. Each
tells the parent when it serves. When the parent is gone, however it went, they end: they hold the
other end of a socket of its.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import shlex
import signal
import socket
import sys

from minihs import checks
from minihs.base.config import ENVIRONMENT_PREFIX, Config, StartError, parse_address
from minihs.base.metrics import SharedFigures
from minihs.base.randomness import Randomness
from minihs.services import own_keys

logger = logging.getLogger(__name__)

INHERITED = "MINIHS_INHERITED_SOCKETS"
PARENT = "MINIHS_PARENT_SOCKET"
FIGURES = "MINIHS_SHARED_FIGURES"
READY = b"."
RESTART_PAUSE_S = 1
END_S_MAX = 20
GC_THRESHOLDS = (50_000, 20, 50)


async def run_server(config: Config, dsn: str, workers: int) -> int:
    """Serve until SIGTERM or SIGINT; return the exit status."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    inherited, parent, has_users = os.environ.get(INHERITED), None, True
    if inherited is None:
        if config.registration == "open":
            logger.warning("registration is open: anybody who reaches this server can register")
        has_users = await checks.check_database(config, dsn, workers)
        # What keeps a worker from starting would do so for ever, so it is found before.
        own_keys.load_signing_key(config, Randomness())
        sockets = list(listen_sockets(config))
        if workers > 1:
            await _supervise(config, dsn, workers, sockets, stop, has_users=has_users)
            logger.info("%s has stopped", config.server_name)
            return 0
    else:
        sockets = [socket.socket(fileno=int(n)) if n else None for n in inherited.split(",")]
        parent = int(os.environ[PARENT])
        loop.add_reader(parent, stop.set)  # Nothing comes from there: readable means closed.
    await _serve(config, dsn, sockets, parent, stop, has_users=has_users)
    if inherited is None:
        logger.info("%s has stopped", config.server_name)
    return 0


async def _serve(
    config: Config,
    dsn: str,
    sockets: list[socket.socket | None],
    parent: int | None,
    stop: asyncio.Event,
    *,
    has_users: bool,
) -> None:
    """Be a server until told to stop, the only one or one of several."""
    # Here, as a process that only watches over workers needs none of it. It lives for ever, and to
    # look for garbage in it would take a tenth of the start.
    gc.disable()
    from minihs import app  # noqa: PLC0415
    from minihs.workers import (  # noqa: PLC0415
        appservice_delivery,
        clock_watch,
        delayed_events,
        federation_delivery,
        housekeeping,
        runner,
    )

    gc.freeze()
    gc.enable()
    # Few of a request's objects are in cycles: the collector's default rhythm would cost a fifth of
    # the time of a large page of history.
    gc.set_threshold(*GC_THRESHOLDS)
    async with app.build_services(config, dsn) as services:
        if figures := os.environ.get(FIGURES):
            services.metrics.shared = SharedFigures(*map(int, figures.split(",")))
        async with app.serve(services, sockets):
            runner.start(services, housekeeping.LOOPS)
            clock_watch.start(services)
            federation_delivery.start(services)
            appservice_delivery.start(services)
            delayed_events.start(services)
            if parent is None:
                _say_where(config, has_users=has_users)
            else:
                with contextlib.suppress(BrokenPipeError):  # It is gone, and `stop` is set.
                    os.write(parent, READY)
            await stop.wait()


def _say_where(config: Config, *, has_users: bool) -> None:
    logger.info("%s answers at http://%s", config.server_name, config.listen)
    if not has_users:
        command = shlex.join([*_program(), *_own_options()[:-1], "register-user", "alice"])
        logger.info("nobody is registered yet; in another terminal: %s --admin", command)


async def _supervise(
    config: Config,
    dsn: str,
    workers: int,
    sockets: list[socket.socket | None],
    stop: asyncio.Event,
    *,
    has_users: bool,
) -> None:
    """Keep `workers` children running until told to stop."""
    children_end, our_end = socket.socketpair()
    figures = SharedFigures.make(workers)
    shared = [children_end.fileno(), figures, *(s.fileno() for s in sockets if s is not None)]
    environment = {
        **os.environ,
        INHERITED: ",".join(str(s.fileno()) if s is not None else "" for s in sockets),
        PARENT: str(children_end.fileno()),
        "MINIHS_DATABASE_URL": dsn,
    }
    loop = asyncio.get_running_loop()
    is_first = True

    def note_ready() -> None:
        nonlocal is_first
        our_end.recv(1024)
        if is_first:
            is_first = False
            _say_where(config, has_users=has_users)

    loop.add_reader(our_end, note_ready)

    async def child(number: int) -> None:
        while not stop.is_set():
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "minihs", *_own_options(), pass_fds=shared,
                env=environment | {FIGURES: f"{figures},{workers},{number}"},
            )  # fmt: skip
            ended = asyncio.ensure_future(process.wait())
            stopping = asyncio.ensure_future(stop.wait())
            await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if stop.is_set():
                if process.returncode is None:
                    process.terminate()
                await asyncio.wait({ended}, timeout=END_S_MAX)
                if process.returncode is None:
                    process.kill()
                    await ended
                return
            logger.error("a worker ended with status %s; starting another", ended.result())
            await asyncio.sleep(RESTART_PAUSE_S)  # noqa: TID251  # no services here to ask

    try:
        async with asyncio.TaskGroup() as group:
            for number in range(workers):
                group.create_task(child(number))
    finally:
        loop.remove_reader(our_end)
        our_end.close()
        children_end.close()


def listen_sockets(config: Config) -> tuple[socket.socket, socket.socket | None]:
    """Return the bound sockets of the plain and the TLS listener, to be shared by all workers.

    Raises:
        StartError: an address cannot be had.
    """
    plain = _bind("listen", config.listen)
    if not config.federation_listen:
        return plain, None
    return plain, _bind("federation_listen", config.federation_listen)


def _bind(option: str, address: str) -> socket.socket:
    host, port = parse_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be had ({error})"
        variable = ENVIRONMENT_PREFIX + option.upper()
        raise StartError(f"{option} {address} {reason}; set {option} or {variable}") from error
    listener.setblocking(False)  # noqa: FBT003
    return listener


def _program() -> list[str]:
    """Return how we were called."""
    if sys.argv[0].endswith(".py"):
        return [sys.executable, "-m", "minihs"]
    return sys.argv[:1]


def _own_options() -> list[str]:
    """Return the command line of a child: ours without the number of workers."""
    options: list[str] = []
    given = iter(sys.argv[1:])
    for option in given:
        if option == "--workers":
            next(given, None)
        elif not option.startswith("--workers="):
            options.append(option)
    return options
