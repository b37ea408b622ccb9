"""Bringing a database to the newest schema, through Alembic.

SQLAlchemy and Alembic are imported only when there is something to do: a running server
needs neither.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from minihs.base.config import ConfigError, StartError
from minihs.storage.database import connect_when_ready

if TYPE_CHECKING:
    import asyncpg

HEAD = "0001"


def migrations_directory() -> Path:
    """Return where the migrations are: beside the package, or inside it when installed."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "_migrations"
    return inside if inside.is_dir() else package.parent / "migrations"


async def fetch_revision(connection: asyncpg.Connection) -> str | None:
    """Return the revision of a database's schema: four digits that grow; None: there is none."""
    if await connection.fetchval("SELECT to_regclass('alembic_version')") is None:
        return None
    revision = await connection.fetchval("SELECT version_num FROM alembic_version")
    return None if revision is None else str(revision)


async def read_revision(dsn: str, within_s: int = 0) -> str | None:
    """Return `fetch_revision` of a database, which is waited for that long.

    Raises:
        StartError: it cannot be reached, or it refuses us.
    """
    connection = await connect_when_ready(dsn, within_s)
    try:
        return await fetch_revision(connection)
    finally:
        await connection.close()


def is_current(revision: str | None) -> bool:
    """Return whether a database's schema is the one this program was written for.

    Raises:
        ConfigError: it was made by a newer program.
    """
    if revision is not None and revision > HEAD:
        raise ConfigError(
            f"the database's schema is {revision}, and this minihs knows {HEAD}: "
            "run the newer minihs that made it"
        )
    return revision == HEAD


def upgrade(dsn: str) -> None:
    """Run the migrations that the database lacks. Blocks; call it before a loop runs.

    Raises:
        StartError: they cannot be run; nothing has been changed.
    """
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(migrations_directory()))
    config.attributes["dsn"] = dsn
    try:
        command.upgrade(config, "head")
    except (CommandError, SQLAlchemyError) as error:
        reason = str(error).partition("\n")[0]
        raise StartError(
            f"the database's schema cannot be brought to {HEAD}, and is as it was: {reason}"
        ) from error
