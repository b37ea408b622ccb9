"""Nothing acknowledged is ever lost: minihs and PostgreSQL are killed, and the promises counted.

`--ledger-rounds` makes it longer, `--ledger-seed` makes it another run. Processes cannot be
replayed exactly; the seed decides what is killed, and when.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from typing import TYPE_CHECKING

import asyncpg
import pytest

from minihs.storage.embedded import Cluster, packaged_binaries, start_cluster
from tests.durability import ledger
from tests.helpers.postgres import cluster_directory
from tests.helpers.processes import kill, kill_postgres, running_server

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.processes import Server

USERS = 4


@pytest.mark.parametrize(("workers", "share"), [(1, 0.6), (2, 0.4)], ids=["alone", "pair"])
async def test_nothing_acknowledged_is_lost(
    workers: int, share: float, tmp_path: Path, request: pytest.FixtureRequest
):
    seed = request.config.getoption("ledger_seed")
    rounds = max(round(request.config.getoption("ledger_rounds") * share), 1)
    rng, report = random.Random(f"{seed} {workers}"), ledger.Report()
    stop, all_told = asyncio.Event(), asyncio.Event()
    with cluster_directory() as directory:
        cluster = Cluster(directory / "postgres", packaged_binaries())
        running = await start_cluster(cluster)
        try:
            async with running_server(running.dsn, tmp_path, workers=workers) as server:
                users = [await server.register(f"user{n}") for n in range(USERS)]
                room_id = await make_room(server, [token for _, token in users])
                clients = [
                    ledger.Client(server, user, room_id, tmp_path / f"ledger{n}", report)
                    for n, user in enumerate(users)
                ]
                reader = ledger.Reader(server, users[0], room_id)
                async with asyncio.TaskGroup() as reading:
                    reading.create_task(reader.run(all_told))
                    async with asyncio.TaskGroup() as writing:
                        for client in clients:
                            writing.create_task(client.run(random.Random(rng.random()), stop))
                        for _ in range(rounds):
                            await break_something(rng, server, cluster, report)
                        stop.set()
                    all_told.set()
                await audit(server, running.dsn, room_id, clients, reader, users[0][1], report)
        finally:
            await running.stop()
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\nledger ({workers} processes): {report.line(seed)}")  # noqa: T201
    assert report.acknowledged > rounds
    assert (report.missing, report.duplicated) == (0, 0)


async def make_room(server: Server, tokens: list[str]) -> str:
    """Make a room in which all are members; return its id."""
    answer = await server.request(
        "POST", "/createRoom", {"preset": "public_chat", "room_version": "11"}, token=tokens[0]
    )
    assert answer.status == 200, answer.json
    room_id: str = answer.json["room_id"]
    for token in tokens[1:]:
        assert (await server.request("POST", f"/join/{room_id}", {}, token=token)).status == 200
    return room_id


async def break_something(
    rng: random.Random, server: Server, cluster: Cluster, report: ledger.Report
) -> None:
    """Let the clients work for a moment, kill something, and bring back what does not come back."""
    await asyncio.sleep(rng.uniform(0.1, 0.9))
    report.rounds += 1
    fault = rng.choice(["server", "server", "postgres", "both", "worker"])
    began = time.monotonic()
    if fault == "worker" and len(server.workers) > 1:
        kill([rng.choice(server.workers)])  # Its parent starts another.
    elif fault == "postgres":
        await kill_postgres(cluster)
        began = time.monotonic()
        await cluster.start()  # minihs, which lived, has to find it again by itself.
    else:
        await server.kill()
        if fault == "both":
            await kill_postgres(cluster)
            began = time.monotonic()
            await cluster.start()
        await server.start()
    await server.until_ready()
    report.back_s.append(time.monotonic() - began)


async def audit(
    server: Server,
    dsn: str,
    room_id: str,
    clients: list[ledger.Client],
    reader: ledger.Reader,
    token: str,
    report: ledger.Report,
) -> None:
    """Hold the clients' ledgers against the database, `/messages`, `/sync` and account data."""
    sent = [line for client in clients for line in ledger.read(client.path, "event")]
    redactions = [line for client in clients for line in ledger.read(client.path, "redaction")]
    promised = [line["event_id"] for line in (*sent, *redactions)]
    assert len(promised) == len(set(promised)), "two requests were answered with one event"

    connection = await asyncpg.connect(dsn)
    rows = await connection.fetch(
        """
        SELECT e.event_id, e.position, e.json, e.json::json -> 'prev_events' ->> 0 AS previous
        FROM events e
        JOIN rooms r ON r.room_nid = e.room_nid
        WHERE r.room_id = $1
        ORDER BY e.position
        """,
        room_id,
    )
    await connection.close()
    stored = [row["event_id"] for row in rows]
    contents = {row["event_id"]: ledger.orjson.loads(row["json"])["content"] for row in rows}
    told = await ledger.page_through(server, token, room_id)
    paged = [event["event_id"] for event in told]

    for found in (stored, paged, reader.event_ids):
        report.missing += len(set(promised) - set(found))
        report.duplicated += len(found) - len(set(found))
    # An event that nobody was promised is a request that was carried out twice.
    own = {"m.room.message", "m.room.redaction"}
    extra = {event["event_id"] for event in told if event["type"] in own} - set(promised)
    report.duplicated += len(extra)
    assert paged == stored
    assert reader.event_ids == stored
    assert reader.positions == sorted(reader.positions)
    for line in sent:
        assert ledger.digest(contents[line["event_id"]]) == line["sha256"]
    for before, after in itertools.pairwise(rows):
        assert after["previous"] == before["event_id"], "the chain of events is broken"
    redacted = {line["redacts"] for line in redactions}
    for event in told:
        if event["type"] == "m.room.message":
            assert (event["content"] == {}) == (event["event_id"] in redacted)
    await audit_notes(server, clients)


async def audit_notes(server: Server, clients: list[ledger.Client]) -> None:
    """The last note that each client was told is stored must be the one that is there."""
    for client in clients:
        notes = ledger.read(client.path, "note")
        if notes:
            path = f"/user/{client.user_id}/account_data/{ledger.NOTE}"
            answer = await server.request("GET", path, token=client._token)
            assert answer.json == {"n": notes[-1]["n"]}
