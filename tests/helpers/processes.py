"""minihs and PostgreSQL as processes that can be killed, and clients that speak HTTP to them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import orjson

from tests.helpers.homeserver import CLIENT, PASSWORD, Response
from tests.helpers.waiting import PATIENCE_S, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from minihs.storage.embedded import Cluster

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """Return a port of the loopback interface that nobody else is given until this process ends.

    It stays bound, though nobody listens: the system passes it over, while who asks for it by its
    number, and reuses addresses as servers do, may listen on it.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        port: int = holder.getsockname()[1]
        holder.detach()
    return port


def _of_threads(pid: int, name: str) -> list[str]:
    """Return what a file in /proc says of each thread of a process; nothing if it has gone."""
    found: list[str] = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # It has just ended.
                found.append((thread / name).read_text())
    return found


def _states(pid: int) -> set[str]:
    """Return the states of a process's threads: T is stopped, Z has ended."""
    return {stat.rpartition(")")[2].split()[0] for stat in _of_threads(pid, "stat")}


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started and that still run."""
    return [int(child) for said in _of_threads(pid, "children") for child in said.split()]


def is_alive(pid: int) -> bool:
    """Return whether a process runs, with any of its threads (a zombie does not)."""
    return bool(_states(pid) - {"Z", "X"})


def kill(pids: Sequence[int], number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to processes of this test; those that have ended are passed over."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


class Server:
    """`minihs run` on a database, on a port of its own."""

    def __init__(
        self, database_url: str, directory: Path, *, workers: int = 1, **options: str
    ) -> None:
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.log = directory / "log"
        self._workers = workers
        settings = {
            "server_name": "hs1",
            "database_url": database_url,
            "data_dir": str(directory),
            "listen": f"127.0.0.1:{self.port}",
            "registration": "open",
            "rate_limits": "off",
            "password_hash_memory_kib": "8",
            "password_hash_iterations": "1",
            "log_level": "warning",
            **options,
        }
        kept = {key: value for key, value in os.environ.items() if not key.startswith("MINIHS_")}
        self.environment = kept | {
            f"MINIHS_{key.upper()}": value for key, value in {"config": "", **settings}.items()
        }
        self._process: asyncio.subprocess.Process | None = None
        self.session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE_S))

    @property
    def pid(self) -> int:
        """The process that `start` started."""
        assert self._process is not None
        return self._process.pid

    @property
    def workers(self) -> list[int]:
        """The processes that serve."""
        return children_of(self.pid) if self._workers > 1 else [self.pid]

    async def start(self) -> None:
        """Start it, and return when it answers, with all of its workers."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "minihs", "run", "--workers", str(self._workers),
                cwd=ROOT, env=self.environment, stdout=log, stderr=log,
            )  # fmt: skip
        await self.until_ready()
        if self._workers > 1:
            last = f'minihs_stream_position{{process="{self._workers - 1}"}}'
            first = 'minihs_stream_position{process="0"}'
            await until(lambda: self._tells(first, last))

    async def _tells(self, *names: str) -> bool:
        text = await self.metrics()
        return all(name in text for name in names)

    async def metrics(self) -> str:
        """Return what it tells Prometheus, on a new connection: any worker may answer."""
        headers = {"Connection": "close"}
        async with self.session.get(self.address + "/metrics", headers=headers) as answer:
            return await answer.text()

    async def until_ready(self) -> None:
        """Return when requests are served."""
        await until(self.is_ready)

    async def is_ready(self) -> bool:
        """Return whether it says that it is ready."""
        assert self._process is not None
        code = self._process.returncode
        assert code is None, f"it ended with {code}: {self.log.read_text()[-3000:]}"
        try:
            return (await self.request("GET", "/ready")).status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def kill(self) -> None:
        """Kill every process of it, as a power cut would; return when all are gone."""
        kill([self.pid], signal.SIGSTOP)
        await until(lambda: _states(self.pid) <= {"T", "Z"})  # It starts no other worker.
        pids = [self.pid, *children_of(self.pid)]
        kill(pids)
        await self._ended()
        await until(lambda: not any(map(is_alive, pids)))  # And the address is free again.

    async def stop(self) -> int:
        """Stop it in an orderly way; return its exit status."""
        kill([self.pid], signal.SIGTERM)
        return await self._ended()

    async def _ended(self) -> int:
        assert self._process is not None
        async with asyncio.timeout(PATIENCE_S):
            return await self._process.wait()

    async def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        token: str | None = None,
        **query: str,
    ) -> Response:
        """Make a request; paths are relative to the client API unless they begin with /_."""
        if not path.startswith(("/_", "/health", "/ready", "/metrics")):
            path = CLIENT + path
        async with self.session.request(
            method,
            self.address + path,
            data=None if body is None else orjson.dumps(body),
            params=query,
            headers={} if token is None else {"Authorization": f"Bearer {token}"},
        ) as answer:
            data = await answer.read()
            is_json = answer.content_type == "application/json"
            return Response(answer.status, data if is_json else b"", answer.headers)

    async def register(self, localpart: str) -> tuple[str, str]:
        """Register somebody; return their user id and access token."""
        body = {"username": localpart, "password": PASSWORD, "auth": {"type": "m.login.dummy"}}
        answer = await self.request("POST", "/register", body)
        assert answer.status == 200, answer.json
        return answer.json["user_id"], answer.json["access_token"]


@contextlib.asynccontextmanager
async def running_server(
    database_url: str, directory: Path, *, workers: int = 1, **options: str
) -> AsyncIterator[Server]:
    """Run `minihs run` until the block ends."""
    server = Server(database_url, directory, workers=workers, **options)
    try:
        await server.start()
        yield server
    finally:
        await server.session.close()
        if server._process is not None and server._process.returncode is None:
            await server.stop()


async def kill_postgres(cluster: Cluster) -> None:
    """Kill a cluster's postmaster and all of its backends at once, as a power cut would."""
    postmaster = int((cluster.data / "postmaster.pid").read_text().split("\n")[0])
    kill([postmaster], signal.SIGSTOP)
    await until(lambda: _states(postmaster) <= {"T", "Z"})  # It starts no other backend.
    pids = [postmaster, *children_of(postmaster)]
    kill(pids)
    await until(lambda: not any(map(is_alive, pids)))
