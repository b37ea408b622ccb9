"""Photograph the inspector for docs/inspector.md, with the room that its tests inspect.

    python -m tools.inspector_screenshot

It runs a server, a federation and a Chromium of this machine, and ends them. The files are larger
than they need be: `pngquant` or the like makes them fit for the repository.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from minihs.api.inspector.rendering import room_path
from minihs.base.clock import ManualClock
from tests.helpers.browser import chromium
from tests.helpers.inspected_room import make_inspected_room
from tests.helpers.network import running_federation
from tests.helpers.postgres import EMBEDDED_VERSION, TestServers, cluster_directory

DOCS = Path(__file__).parents[1] / "docs"
START_MS = 1_795_000_000_000
WIDTH = 1_280


async def photograph() -> None:
    """Write the pictures."""
    clock = ManualClock(START_MS)
    with cluster_directory(in_memory=True) as clusters, tempfile.TemporaryDirectory() as data:
        servers = TestServers(clusters, clusters)
        try:
            async with (
                running_federation(
                    lambda: servers.database(EMBEDDED_VERSION), Path(data), clock=clock
                ) as federation,
                chromium() as browser,
            ):
                room = await make_inspected_room(federation, clock)
                page = await browser.open(
                    str(room.homeserver.client.make_url(room_path(room.room_id))),
                    {"Authorization": f"Bearer {room.admin.token}", "Accept": "text/html"},
                )
                top = await page.screenshot(WIDTH, until="#servers")
                graph = await page.screenshot(WIDTH, of="#graph", until="#refused", dark=True)
                (DOCS / "inspector.png").write_bytes(top)
                (DOCS / "inspector-graph.png").write_bytes(graph)
        finally:
            await servers.stop()


if __name__ == "__main__":
    asyncio.run(photograph())
