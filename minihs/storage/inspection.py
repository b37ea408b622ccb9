"""What a database must be like for minihs to keep its promises, and how it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncpg

from minihs.base.config import ConfigError
from minihs.storage.migrate import HEAD, fetch_revision
from minihs.storage.sql import statement

if TYPE_CHECKING:
    from minihs.storage.database import Queries

POSTGRES_MIN, POSTGRES_TESTED_MAX = 15, 18
SPARE_CONNECTIONS = 3  # The listener and the committer of each process, and one to look around.

FETCH_SETTINGS = statement(
    "inspection.fetch_settings",
    """
    SELECT name, setting
    FROM pg_settings
    WHERE name IN (
      'fsync', 'full_page_writes', 'synchronous_commit', 'data_checksums', 'server_encoding',
      'server_version_num', 'max_connections'
    )
    """,
)

FETCH_LOCALE = statement(
    "inspection.fetch_locale",
    "SELECT datcollate FROM pg_database WHERE datname = current_database()",
)

FETCH_CLOCK = statement(
    "inspection.fetch_clock",
    "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint",
)

HAS_EVENTS = statement("inspection.has_events", "SELECT EXISTS (SELECT FROM events)")

# A scan that ends at the first.
HAS_USERS = statement(
    "inspection.has_users",
    "SELECT EXISTS (SELECT FROM accounts WHERE password_hash IS NOT NULL)",
)

FETCH_SERVER_NAME = statement(
    "inspection.fetch_server_name", "SELECT value FROM server_facts WHERE name = 'server_name'"
)


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """How a database is. `revision` is None where minihs has never been; so is what follows."""

    settings: dict[str, str]
    collation: str
    now_ms: int
    revision: str | None
    server_name: str | None
    has_events: bool

    @property
    def postgres_major(self) -> int:
        """The major version of PostgreSQL."""
        return int(self.settings["server_version_num"]) // 10_000

    @property
    def unsafe_settings(self) -> list[str]:
        """Settings under which a crash may lose what was acknowledged."""
        off = [
            name
            for name in ("fsync", "full_page_writes", "synchronous_commit")
            if self.settings[name] == "off"
        ]
        return [f"{name} = off" for name in off]


async def examine(dsn: str) -> DatabaseFacts:
    """Return how the database is.

    Raises:
        OSError, asyncpg.PostgresError: it cannot be reached.
    """
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        settings = dict(await connection.fetch(FETCH_SETTINGS))
        collation = await connection.fetchval(FETCH_LOCALE)
        now_ms = await connection.fetchval(FETCH_CLOCK)
        revision = await fetch_revision(connection)
        name, events = None, False
        if revision == HEAD:
            name = await connection.fetchval(FETCH_SERVER_NAME)
            events = await connection.fetchval(HAS_EVENTS)
        return DatabaseFacts(settings, collation, now_ms, revision, name, events)
    finally:
        await connection.close()


async def check_usable(queries: Queries) -> list[str]:
    """Return settings under which a crash may lose what was acknowledged.

    Raises:
        ConfigError: the database cannot hold what Matrix needs.
    """
    settings = dict(await queries.fetch(FETCH_SETTINGS))
    if settings["server_encoding"] != "UTF8":
        raise ConfigError(
            f"the database's encoding is {settings['server_encoding']}; it must be made with "
            "ENCODING 'UTF8'"
        )
    return DatabaseFacts(settings, "", 0, None, None, has_events=False).unsafe_settings


async def count_connections(queries: Queries) -> int:
    """Return how many connections PostgreSQL takes."""
    return int(dict(await queries.fetch(FETCH_SETTINGS))["max_connections"])


async def has_users(queries: Queries) -> bool:
    """Return whether anybody has a password to log in with."""
    return await queries.fetchval(HAS_USERS) is True


async def has_events(queries: Queries) -> bool:
    """Return whether there are any events."""
    return await queries.fetchval(HAS_EVENTS) is True
