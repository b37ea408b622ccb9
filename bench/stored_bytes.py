"""How much disk an event takes: PYTHONPATH=. python bench/stored_bytes.py [COUNT]

Runs minihs in this process on a fresh embedded PostgreSQL, sends COUNT messages
and sets COUNT pieces of state (two users of one room), and says by how much
each table and its indexes have grown for each of them. The size of the event's
own JSON is printed beside, since that is the least there can be.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

import asyncpg

from minihs.storage.embedded import start_embedded
from minihs.storage.migrate import upgrade
from tests.helpers.homeserver import running_homeserver

SIZES = """SELECT relname, pg_total_relation_size(oid) FROM pg_class
           WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"""


async def sizes(dsn: str) -> dict[str, int]:
    """Bytes of every table with its indexes, nothing dead in them."""
    conn = await asyncpg.connect(dsn)
    await conn.execute("VACUUM FULL")
    found = dict(await conn.fetch(SIZES))
    await conn.close()
    return found


def report(title: str, before: dict[str, int], after: dict[str, int], count: int) -> None:
    grown = {name: (after[name] - before.get(name, 0)) / count for name in after}
    print(f"{title}: {sum(grown.values()):8.0f} bytes")
    for name, size in sorted(grown.items(), key=lambda item: -item[1]):
        if size >= 1:
            print(f"  {name:28} {size:8.0f}")


async def main(count: int) -> None:
    with tempfile.TemporaryDirectory(prefix="minihs-bytes-") as name:
        postgres = await start_embedded(Path(name))
        try:
            await asyncio.to_thread(upgrade, postgres.dsn)
            async with running_homeserver(postgres.dsn, Path(name), seed=None) as server:
                alice, bob = await server.register("alice"), await server.register("bob")
                room = await alice.create_room()
                await bob.join(room)
                people = (alice, bob)
                start = await sizes(postgres.dsn)
                for n in range(count):
                    await people[n % 2].say(room, f"message number {n} of the benchmark, of usual length")
                messages = await sizes(postgres.dsn)
                report(f"{count} messages, each", start, messages, count)
                for n in range(count):
                    await alice.put_state(room, "m.bench", {"value": n}, f"key {n}")
                report(f"{count} pieces of state, each", messages, await sizes(postgres.dsn), count)
                event = await alice.call("GET", f"/rooms/{room}/messages", dir="b", limit="1")
                print(f"an event as a client sees it: {len(str(event['chunk'][0]))} bytes")
        finally:
            await postgres.stop()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000))
