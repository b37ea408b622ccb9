"""One description of the schema: the metadata, its history and every statement agree."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

import asyncpg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.ext.asyncio import create_async_engine

import minihs.storage
from minihs.storage import destinations, presence
from minihs.storage.database import SETTINGS
from minihs.storage.migrate import is_current, read_revision
from minihs.storage.schema import metadata
from minihs.storage.sql import STATEMENTS

if TYPE_CHECKING:
    from sqlalchemy import Connection


def differences(connection: Connection) -> list[object]:
    """Return what Alembic would change to get from this database to the metadata."""
    options = {"compare_type": True, "compare_server_default": True}
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))


async def test_the_migrations_make_the_schema(database_url: str) -> None:
    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=lambda: asyncpg.connect(database_url)
    )
    async with engine.connect() as connection:
        found = await connection.run_sync(differences)
    await engine.dispose()
    assert found == [], "make migration M=…"


async def test_the_program_knows_its_newest_migration(database_url: str) -> None:
    assert is_current(await read_revision(database_url))


async def test_every_statement_is_understood_by_postgresql(database_url: str) -> None:
    for module in pkgutil.iter_modules(minihs.storage.__path__, "minihs.storage."):
        importlib.import_module(module.name)
    assert STATEMENTS
    connection = await asyncpg.connect(database_url)
    wrong = {}
    for name, statement in STATEMENTS.items():
        try:
            await connection.prepare(statement)
        except asyncpg.PostgresError as error:
            wrong[name] = str(error)
    await connection.close()
    assert wrong == {}


@pytest.mark.parametrize(
    ("question", "parameters"), [(destinations.LIST_DUE, 3), (presence.LIST_DUE, 6)]
)
async def test_what_is_due_is_found_without_looking_at_what_is_not(
    database_url: str, question: str, parameters: int
) -> None:
    """These are asked every few seconds; no two ranges of an index are one scan of it."""
    connection = await asyncpg.connect(database_url, server_settings=SETTINGS)
    await connection.execute(f"PREPARE asked AS {question}")
    nothing = ", ".join(["NULL"] * parameters)
    plan = "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN EXECUTE asked ({nothing})"))
    await connection.close()
    assert "Index Cond" in plan
    assert "Filter" not in plan, plan


def test_every_table_and_column_says_what_it_holds() -> None:
    silent = [table.name for table in metadata.tables.values() if not table.comment]
    silent += [
        f"{table.name}.{column.name}"
        for table in metadata.tables.values()
        for column in table.columns
        if not column.comment and not column.foreign_keys
    ]
    assert silent == []
