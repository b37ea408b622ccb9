"""What tests of several servers may ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from minihs.base.clock import ManualClock
from tests.helpers.network import Federation, running_federation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.helpers.postgres import TestServers


@pytest.fixture
def clock() -> ManualClock:
    """The time of all servers of a test, which stands still unless it is moved."""
    return ManualClock()


@pytest.fixture
async def federation(
    postgres_servers: TestServers, postgres_version: str, tmp_path: Path, clock: ManualClock
) -> AsyncIterator[Federation]:
    """A network without servers; `await federation.start("hs1")` runs one."""
    async with running_federation(
        lambda: postgres_servers.database(postgres_version), tmp_path, clock=clock
    ) as running:
        yield running
