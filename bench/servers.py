"""Starting, watching and stopping the homeservers under test.

Every server gets a PostgreSQL cluster of its own (same settings for all), a
directory of its own and free loopback ports.  Nothing here knows where the
programs live: they come from the command line, the environment or PATH.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import asyncpg
from signedjson.key import generate_signing_key, write_signing_keys

from matrix import Client, post_json

TICK = os.sysconf("SC_CLK_TCK")
READY_TIMEOUT = 120.0


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


# --- accounting by process tree -------------------------------------------


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()


def process_tree(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := _stat(int(entry))):
            children.setdefault(int(fields[1]), []).append(int(entry))
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += children.get(pid, [])
    return found


def cpu_seconds(root: int) -> float:
    """User + system time of a process tree, with children that have ended."""
    ticks = 0
    for pid in process_tree(root):
        if fields := _stat(pid):
            ticks += sum(int(x) for x in fields[11:15])
    return ticks / TICK


def machine_busy() -> float:
    """CPU seconds spent by everything on this machine, hypervisor's share included."""
    user, nice, system, _, _, irq, softirq, steal = \
        map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICK


def memory_mib(root: int) -> tuple[float, float]:
    """(RSS, PSS) of a process tree; PSS counts shared pages once."""
    rss = pss = 0
    for pid in process_tree(root):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            if line.startswith("Rss:"):
                rss += int(line.split()[1])
            elif line.startswith("Pss:"):
                pss += int(line.split()[1])
    return rss / 1024, pss / 1024


class Process:
    """One child process with its output in a file."""

    def __init__(self, argv: list[str], log: Path, env: dict[str, str] | None = None,
                 cwd: Path | None = None):
        self.argv, self.log, self.env, self.cwd = argv, log, env, cwd
        self.proc: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with open(self.log, "ab") as out:
            self.proc = await asyncio.create_subprocess_exec(
                *self.argv, stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=out,
                env={**os.environ, **(self.env or {})}, cwd=self.cwd)

    @property
    def pid(self) -> int:
        assert self.proc
        return self.proc.pid

    def died(self) -> bool:
        return self.proc is None or self.proc.returncode is not None

    def tail(self, chars: int = 2000) -> str:
        return self.log.read_text(errors="replace")[-chars:] if self.log.exists() else ""

    async def stop(self, sig: int = signal.SIGTERM, grace: float = 30.0) -> None:
        if self.died():
            return
        self.proc.send_signal(sig)
        try:
            await asyncio.wait_for(self.proc.wait(), grace)
        except asyncio.TimeoutError:
            self.proc.kill()
            await self.proc.wait()


# --- PostgreSQL -------------------------------------------------------------


class Postgres:
    """A throw-away cluster: fsync on, defaults except shared_buffers."""

    def __init__(self, directory: Path, bindir: Path, statements: bool = False):
        self.dir, self.bindir, self.port = directory, bindir, free_port()
        self.settings = {"shared_buffers": "256MB"}
        self.statements = statements
        if statements:  # for diagnosis only
            self.settings["shared_preload_libraries"] = "pg_stat_statements"
        # PostgreSQL refuses to run as root; setpriv replaces itself by it.
        self.prefix = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"] \
            if os.geteuid() == 0 else []
        self.process: Process | None = None

    def url(self, db: str) -> str:
        return f"postgresql://bench@127.0.0.1:{self.port}/{db}"

    async def start(self) -> None:
        self.dir.mkdir(parents=True)
        if self.prefix:
            shutil.chown(self.dir, "postgres", "postgres")
        data, log = self.dir / "data", self.dir / "postgres.log"
        init = Process([*self.prefix, str(self.bindir / "initdb"), "-D", str(data), "-U", "bench",
                        "--auth=trust", "--locale=C", "--encoding=UTF8"],
                       self.dir / "initdb.log", cwd=self.dir)
        await init.start()
        if await init.proc.wait():
            raise RuntimeError(f"initdb failed: {init.tail()}")
        argv = [*self.prefix, str(self.bindir / "postgres"), "-D", str(data), "-h", "127.0.0.1",
                "-p", str(self.port), "-k", str(self.dir)]
        for key, value in self.settings.items():
            argv += ["-c", f"{key}={value}"]
        self.process = Process(argv, log, cwd=self.dir)
        await self.process.start()
        deadline = time.monotonic() + READY_TIMEOUT
        while True:
            try:
                conn = await asyncpg.connect(self.url("postgres"))
                break
            except (OSError, asyncpg.PostgresError):
                if self.process.died() or time.monotonic() > deadline:
                    raise RuntimeError(f"PostgreSQL did not start: {self.process.tail()}")
                await asyncio.sleep(0.05)
        await conn.execute("CREATE DATABASE hs TEMPLATE template0")
        if self.statements:
            await conn.execute("CREATE EXTENSION pg_stat_statements")
        await conn.close()

    async def counters(self) -> dict[str, float]:
        """Bytes of WAL so far and, when asked for, statements and commits."""
        conn = await asyncpg.connect(self.url("postgres"))
        try:
            out = {"wal_mib": float(await conn.fetchval(
                "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')")) / 2**20}
            if self.statements:
                row = await conn.fetchrow(
                    "SELECT coalesce(sum(calls), 0)::float8 AS statements,"
                    " coalesce(sum(calls) FILTER (WHERE query ILIKE 'commit%'), 0)::float8"
                    " AS commits FROM pg_stat_statements")
                out |= dict(row)
            return out
        finally:
            await conn.close()

    async def stop(self) -> None:
        if self.process:
            await self.process.stop(signal.SIGINT)


# --- homeservers ------------------------------------------------------------


@dataclass
class Options:
    """What the command line says about how to start the servers."""

    synapse_venv: str | None = None
    synapse_config: str | None = None
    minihs_cmd: str | None = None


class Server:
    """Base: subclasses say how to configure and start one homeserver.

    server_name is what goes into user ids; base is where both the client and
    the federation API answer over plain HTTP.
    """

    name = "?"
    # Sections of /sync that may carry sticky events, and the send parameter.
    sticky_sections = ("msc4354_sticky", "sticky")
    sticky_param = "org.matrix.msc4354.sticky_duration_ms"

    def __init__(self, options: Options, directory: Path, pg: Postgres):
        self.options, self.dir, self.pg = options, directory, pg
        self.port = free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        self.server_name = f"localhost:{self.port}"
        self.secret = secrets.token_hex(16)
        self.process: Process | None = None

    async def prepare(self) -> None:
        """Write configuration and keys; called once."""
        self.dir.mkdir(parents=True, exist_ok=True)

    def command(self) -> tuple[list[str], dict[str, str]]:
        raise NotImplementedError

    async def start(self) -> float:
        """Start and wait for the first 200 on /versions; returns the seconds."""
        argv, env = self.command()
        self.process = Process(argv, self.dir / "server.log", env, cwd=self.dir)
        begun = time.perf_counter()
        await self.process.start()
        async with aiohttp.ClientSession() as http:
            while True:
                try:
                    async with http.get(self.base + "/_matrix/client/versions") as r:
                        if r.status == 200:
                            return time.perf_counter() - begun
                except aiohttp.ClientError:
                    pass
                if self.process.died() or time.perf_counter() - begun > READY_TIMEOUT:
                    raise RuntimeError(f"{self.name} did not start: {self.process.tail()}")
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        if self.process:
            await self.process.stop()

    async def register(self, http: aiohttp.ClientSession, localpart: str) -> Client:
        """POST /register with m.login.dummy; works where registration is open."""
        r = await post_json(http, self.base + "/_matrix/client/v3/register", {
            "username": localpart, "password": "bench-" + localpart,
            "auth": {"type": "m.login.dummy"}})
        return Client(http, self.base, r["user_id"], r["access_token"])


class Synapse(Server):
    """One process, as the wheel ships it; only limits off and peers of ours allowed."""

    name = "synapse"

    async def prepare(self) -> None:
        await super().prepare()
        with open(self.dir / "signing.key", "w") as f:
            write_signing_keys(f, [generate_signing_key("bench")])
        unlimited = {"per_second": 1e6, "burst_count": 1000000}
        config = {
            "server_name": self.server_name,
            "pid_file": str(self.dir / "homeserver.pid"),
            "listeners": [{
                "port": self.port, "bind_addresses": ["127.0.0.1"], "type": "http",
                "tls": False, "resources": [{"names": ["client", "federation"]}]}],
            "database": {"name": "psycopg2", "args": {
                "user": "bench", "host": "127.0.0.1", "port": self.pg.port, "dbname": "hs",
                "cp_min": 5, "cp_max": 10}},
            "log_config": str(self.dir / "log.yaml"),
            "media_store_path": str(self.dir / "media"),
            "signing_key_path": str(self.dir / "signing.key"),
            "registration_shared_secret": self.secret,
            "macaroon_secret_key": secrets.token_hex(16),
            "form_secret": secrets.token_hex(16),
            "report_stats": False,
            "trusted_key_servers": [],
            "federation_verify_certificates": False,
            "ip_range_blacklist": [],
            "presence": {"enabled": False},  # the subset measured here has none
            "bcrypt_rounds": 4,  # registration is not what is measured
            "experimental_features": {"msc4354_enabled": True},
            "rc_message": unlimited, "rc_registration": unlimited,
            "rc_login": {"address": unlimited, "account": unlimited,
                         "failed_attempts": unlimited},
            "rc_admin_redaction": unlimited,
            "rc_joins": {"local": unlimited, "remote": unlimited},
            "rc_joins_per_room": unlimited, "rc_room_creation": unlimited,
            "rc_invites": {"per_room": unlimited, "per_user": unlimited,
                           "per_issuer": unlimited},
            "rc_presence": {"per_user": unlimited},
            "rc_federation": {"window_size": 1000, "sleep_limit": 1000000,
                              "sleep_delay": 0, "reject_limit": 1000000,
                              "concurrent": 1000},
        }
        (self.dir / "homeserver.yaml").write_text(json.dumps(config, indent=1))
        (self.dir / "log.yaml").write_text(json.dumps({
            "version": 1,
            "formatters": {"plain": {"format": "%(asctime)s %(name)s %(levelname)s %(message)s"}},
            "handlers": {"err": {"class": "logging.StreamHandler", "formatter": "plain"}},
            "root": {"level": "WARNING", "handlers": ["err"]},
            "disable_existing_loggers": False}))

    def command(self) -> tuple[list[str], dict[str, str]]:
        venv = self.options.synapse_venv
        python = str(Path(venv) / "bin" / "python") if venv else sys.executable
        argv = [python, "-m", "synapse.app.homeserver", "-c", "homeserver.yaml"]
        if self.options.synapse_config:  # later files override earlier ones
            argv += ["-c", str(Path(self.options.synapse_config).resolve())]
        return argv, {}

    async def register(self, http: aiohttp.ClientSession, localpart: str) -> Client:
        url = self.base + "/_synapse/admin/v1/register"
        async with http.get(url) as r:
            nonce = (await r.json())["nonce"]
        password = "bench-" + localpart
        mac = hmac.new(self.secret.encode(), digestmod=hashlib.sha1)
        mac.update("\0".join([nonce, localpart, password, "notadmin"]).encode())
        r = await post_json(http, url, {
            "nonce": nonce, "username": localpart, "password": password,
            "admin": False, "mac": mac.hexdigest()})
        return Client(http, self.base, r["user_id"], r["access_token"])


class Minihs(Server):
    """This project, by default as installed beside the harness: `python -m minihs run`.

    --minihs-cmd is a template; {port}, {server_name}, {db}, {dir} and {key}
    are filled in, and the same facts are in MINIHS_* variables.
    """

    name = "minihs"

    async def prepare(self) -> None:
        await super().prepare()
        with open(self.dir / "signing.key", "w") as f:
            write_signing_keys(f, [generate_signing_key("bench")])

    def command(self) -> tuple[list[str], dict[str, str]]:
        facts = {"port": str(self.port), "server_name": self.server_name,
                 "db": self.pg.url("hs"), "dir": str(self.dir),
                 "key": str(self.dir / "signing.key")}
        template = self.options.minihs_cmd or f"{shlex.quote(sys.executable)} -m minihs run"
        argv = [part.format(**facts) for part in shlex.split(template)]
        return argv, {
            "MINIHS_SERVER_NAME": self.server_name,
            "MINIHS_LISTEN": f"127.0.0.1:{self.port}",
            "MINIHS_DATABASE_URL": facts["db"],
            "MINIHS_SIGNING_KEY_PATH": facts["key"],
            "MINIHS_DATA_DIR": facts["dir"],
            "MINIHS_REGISTRATION": "open",
            "MINIHS_RATE_LIMITS": "off",
            "MINIHS_FEDERATION_VERIFY_TLS": "false",
            "MINIHS_FEDERATION_ALLOW_PRIVATE_ADDRESSES": "true",
        }


SERVERS: dict[str, type[Server]] = {cls.name: cls for cls in (Synapse, Minihs)}
