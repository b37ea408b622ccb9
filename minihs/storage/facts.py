"""What must not change under a database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.base.config import ConfigError
from minihs.storage.sql import statement

if TYPE_CHECKING:
    from minihs.storage.database import Queries

# Primary key of server_facts; the first server that starts gives the database its name.
CLAIM_NAME = statement(
    "facts.claim_name",
    """
    INSERT INTO server_facts (name, value) VALUES ('server_name', $1)
    ON CONFLICT (name) DO UPDATE SET value = server_facts.value
    RETURNING value
    """,
)


async def check_server_name(queries: Queries, server_name: str) -> None:
    """Bind an empty database to a server name.

    Raises:
        ConfigError: it belongs to another name.
    """
    owner = await queries.fetchval(CLAIM_NAME, server_name)
    if owner != server_name:
        raise ConfigError(f"this database belongs to {owner!r}, not to {server_name!r}")
