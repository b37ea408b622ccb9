"""Bringing a database to the newest schema, through Alembic.

SQLAlchemy and Alembic are imported only when there is something to do: a running server
needs neither.
"""

from __future__ import annotations

from pathlib import Path

import asyncpg

HEAD = "0001"


def migrations_directory() -> Path:
    """Return where the migrations are: beside the package, or inside it when installed."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "_migrations"
    return inside if inside.is_dir() else package.parent / "migrations"


async def is_current(dsn: str) -> bool:
    """Return whether the database's schema is the one this program was written for."""
    connection = await asyncpg.connect(dsn)
    try:
        if await connection.fetchval("SELECT to_regclass('alembic_version')") is None:
            return False
        return bool(await connection.fetchval("SELECT version_num FROM alembic_version") == HEAD)
    finally:
        await connection.close()


def upgrade(dsn: str) -> None:
    """Run the migrations that the database lacks. Blocks; call it before a loop runs."""
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(migrations_directory()))
    config.attributes["dsn"] = dsn
    command.upgrade(config, "head")
