"""Real PostgreSQL for the tests: one server a version, one migrated template, one clone a test.

Servers live in a temporary directory, in memory where there is enough of it, and are stopped when
the suite ends. They do not flush to disk (a test that is about durability says so with the marker
`durable_database`), but are the server's own in everything else. A clone of the migrated template
takes some 20 ms in memory (300 ms on a disk), so each test has a database to itself and nothing is
ever cleaned up by hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

from minihs.storage.embedded import Cluster, EmbeddedPostgres, packaged_binaries, start_cluster
from minihs.storage.migrate import upgrade

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

EMBEDDED_VERSION = "18"
SYSTEM_INSTALLATIONS = Path("/usr/lib/postgresql")  # where Debian puts each version's programs
FAST = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_wal_senders": "0",
    "max_wal_size": "64MB",
    "synchronous_commit": "off",
    "wal_level": "minimal",
}
TEMPLATE = "minihs"
MEMORY = Path("/dev/shm")  # noqa: S108  # where Linux keeps files in memory
MEMORY_BYTES_MIN = 1 << 30  # In a container it may be tiny.


def available_versions() -> dict[str, Path]:
    """Return the directory of binaries of each major version found here, the embedded one first."""
    found = {EMBEDDED_VERSION: packaged_binaries()}
    for directory in sorted(SYSTEM_INSTALLATIONS.glob("*/bin")):
        if (directory / "initdb").exists() and (directory / "pg_ctl").exists():
            found.setdefault(directory.parent.name, directory)
    return found


def requested_versions() -> list[str]:
    """Return the versions that `MINIHS_TEST_POSTGRES` asks for: `all`, or names with commas.

    Raises:
        ValueError: one of them is not on this machine.
    """
    available = available_versions()
    asked = os.environ.get("MINIHS_TEST_POSTGRES") or EMBEDDED_VERSION
    if asked == "all":
        return list(available)
    versions = [version.strip() for version in asked.split(",")]
    if missing := [version for version in versions if version not in available]:
        here = ", ".join(available)
        raise ValueError(f"PostgreSQL {', '.join(missing)} is not on this machine; here: {here}")
    return versions


@contextlib.contextmanager
def cluster_directory(*, in_memory: bool = False) -> Iterator[Path]:
    """Yield a directory of our own for clusters, and remove it afterwards.

    Not one of pytest's: every run of pytest takes the right to pass through its directories away
    from others, also from the user who runs PostgreSQL for root.
    """
    roomy = MEMORY.is_dir() and os.access(MEMORY, os.W_OK | os.X_OK)
    roomy = roomy and shutil.disk_usage(MEMORY).free >= MEMORY_BYTES_MIN
    with tempfile.TemporaryDirectory(
        prefix="minihs-", dir=MEMORY if in_memory and roomy else None, ignore_cleanup_errors=True
    ) as directory:
        yield Path(directory)


@dataclass
class TestServers:
    """The servers that this run has started, each with its migrated template."""

    __test__ = False  # pytest: a helper, not a test case

    fast_directory: Path
    durable_directory: Path
    running: dict[tuple[str, bool], EmbeddedPostgres] = field(default_factory=dict)
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def server(self, version: str, *, durable: bool = False) -> EmbeddedPostgres:
        """Return the server of this version, started and migrated when first asked for."""
        key = (version, durable)
        if key not in self.running:
            directory = self.durable_directory if durable else self.fast_directory
            binaries = available_versions()[version]
            cluster = Cluster(directory / f"pg{version}", binaries, {} if durable else FAST)
            self.running[key] = await start_cluster(cluster)
            await asyncio.to_thread(upgrade, self.running[key].dsn)
        return self.running[key]

    @contextlib.asynccontextmanager
    async def database(self, version: str, *, durable: bool = False) -> AsyncIterator[str]:
        """Yield the DSN of a fresh, migrated database; it is dropped afterwards."""
        server = await self.server(version, durable=durable)
        name = f"test_{next(self.numbers)}"
        await self._administer(
            server, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} STRATEGY FILE_COPY"
        )
        try:
            yield server.cluster.dsn(name)
        finally:
            await self._administer(server, f"DROP DATABASE {name} WITH (FORCE)")

    @staticmethod
    async def _administer(server: EmbeddedPostgres, statement: str) -> None:
        connection = await asyncpg.connect(server.cluster.dsn("postgres"))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    async def stop(self) -> None:
        """Stop every server."""
        for server in self.running.values():
            await server.stop()
