"""Write the next migration: the difference between the history and `minihs.storage.schema`.

    python -m tools.new_migration "what changed"

A scratch PostgreSQL is started, brought to the newest revision, and compared with the metadata;
so the author needs no database of their own. Read what it wrote before committing it.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from minihs.storage.embedded import start_embedded

ROOT = Path(__file__).resolve().parents[1]


def write_migration(dsn: str, message: str) -> None:
    """Add `migrations/versions/NNNN_message.py`; revisions are numbered from 0001."""
    config = Config(ROOT / "alembic.ini")
    config.attributes["dsn"] = dsn
    command.upgrade(config, "head")
    number = len(list(ScriptDirectory.from_config(config).walk_revisions())) + 1
    command.revision(config, message, autogenerate=True, rev_id=f"{number:04d}")


async def main(message: str) -> None:
    """Run the whole of it on a scratch database."""
    with tempfile.TemporaryDirectory(prefix="minihs-migration-") as directory:
        postgres = await start_embedded(Path(directory))
        try:
            await asyncio.to_thread(write_migration, postgres.dsn, message)
        finally:
            await postgres.stop()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1]))
