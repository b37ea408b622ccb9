"""How Alembic reaches the database, for `minihs migrate`, the tests and the command line.

The connection is made by asyncpg from the DSN as it stands, so that whatever the server accepts
as a DSN (sockets, several hosts, `sslmode`) the migrations accept too. Whoever migrates holds an
advisory lock for the length of the transaction: two processes that start together take turns,
and the second finds nothing left to do.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import asyncpg
from alembic import context
from alembic.util import CommandError
from sqlalchemy import NullPool, text
from sqlalchemy.ext.asyncio import create_async_engine

from minihs.storage.schema import metadata

if TYPE_CHECKING:
    from sqlalchemy import Connection

MIGRATION_LOCK = 0x6D696E69  # "mini"; any number that nobody else on this database uses.


def database_dsn() -> str:
    """Return the DSN: given by the caller, by `-x dsn=`, or by the environment."""
    given = context.config.attributes.get("dsn")
    given = given or context.get_x_argument(as_dictionary=True).get("dsn")
    given = given or os.environ.get("MINIHS_DATABASE_URL")
    if not given:
        raise CommandError("which database? set MINIHS_DATABASE_URL or pass -x dsn=postgresql://…")
    return str(given)


def migrate(connection: Connection) -> None:
    """Bring the schema up on this connection, in one transaction."""
    context.configure(
        connection=connection,
        target_metadata=metadata,
        compare_type=True,
        compare_server_default=True,
    )
    with context.begin_transaction():
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        context.run_migrations()


async def migrate_online(dsn: str) -> None:
    """Open one connection, migrate, close it."""
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda: asyncpg.connect(dsn),
        poolclass=NullPool,
    )
    try:
        async with engine.connect() as connection:
            await connection.run_sync(migrate)
            await connection.commit()
    finally:
        await engine.dispose()


if context.is_offline_mode():  # `alembic upgrade --sql`: print what would be run
    context.configure(dialect_name="postgresql", target_metadata=metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    asyncio.run(migrate_online(database_dsn()))
