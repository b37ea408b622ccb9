"""What operators ask of a running server: does it live, is it ready, what has it done?"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import asyncpg
import pytest

from minihs.api import health as health_module
from minihs.api.health import reasons_against
from minihs.base.clock import ManualClock
from minihs.base.errors import DatabaseBusy, Unavailable
from minihs.base.tasks import PAUSE_MS
from minihs.protocol.identifiers import UserId
from minihs.storage import group_commit
from minihs.storage.stream_rows import AccountDataWrite
from tests.helpers.homeserver import running_homeserver
from tests.helpers.waiting import PATIENCE_S, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.homeserver import Homeserver, User


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Call no database away that a busy machine is slow to ask."""
    monkeypatch.setattr(health_module, "READY_S_MAX", PATIENCE_S)


SAMPLE = re.compile(r'(?P<name>[a-z_]+)(?P<labels>\{([a-z]+="[^"]*",?)+\})? (?P<value>[-+0-9.e]+)')


async def metrics(homeserver: Homeserver) -> dict[str, float]:
    """Return the samples that the server tells, by name and labels."""
    async with homeserver.client.get("/metrics") as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        lines = (await answer.text()).splitlines()
    found: dict[str, float] = {}
    for line in lines:
        if not line.startswith("#"):
            sample = SAMPLE.fullmatch(line)
            assert sample is not None, line
            found[sample["name"] + (sample["labels"] or "")] = float(sample["value"])
    return found


async def test_a_server_that_lives_and_is_ready_says_so(homeserver: Homeserver):
    for path in ("health", "ready"):
        async with homeserver.client.get(f"/{path}") as answer:
            assert answer.status == 200


@pytest.mark.parametrize("path", ["/health", "/ready", "/_matrix/client/versions", "/nowhere"])
async def test_a_probe_that_asks_by_head_is_answered_as_by_get(homeserver: Homeserver, path: str):
    async with homeserver.client.get(path) as answer:
        status, length = answer.status, answer.content_length
    async with homeserver.client.head(path) as answer:
        assert (answer.status, answer.content_length) == (status, length)
        assert await answer.read() == b""


async def test_nothing_of_a_user_is_asked_for_by_head(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    headers = {"Authorization": f"Bearer {alice.token}"}
    async with homeserver.client.head("/_matrix/client/v3/sync", headers=headers) as answer:
        assert answer.status == 405


async def test_requests_and_commits_are_counted(homeserver: Homeserver):
    server = _alone(homeserver)
    alice = await server.register("alice")
    room_id = await alice.create_room()
    before = await metrics(server)
    for _ in range(3):
        await alice.say(room_id)
    assert (await alice.request("GET", "/rooms/!none:hs1/state")).status == 403
    after = await metrics(server)

    def grown(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    send = 'method="PUT",path="/_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}"'
    state = 'method="GET",path="/_matrix/client/v3/rooms/{roomId}/state"'
    assert grown(f'minihs_requests_total{{{send},status="200"}}') == 3
    assert grown(f'minihs_requests_total{{{state},status="403"}}') == 1
    assert grown(f"minihs_request_seconds_count{{{send}}}") == 3
    assert grown(f'minihs_request_seconds_bucket{{{send},le="+Inf"}}') == 3
    assert grown("minihs_committed_events_total") == 3
    assert 1 <= grown("minihs_commits_total") <= 3
    assert grown("minihs_stream_position") == 3
    assert after["minihs_commit_failures_total"] == 0
    assert after['minihs_cache_bytes{cache="events"}'] > 0
    assert after["process_resident_memory_bytes"] > 10_000_000


async def test_long_polls_are_counted_while_they_wait(homeserver: Homeserver):
    server = _alone(homeserver)
    alice = await server.register("alice")
    await alice.sync()
    waiting = asyncio.create_task(alice.sync(timeout="20000"))
    await until(lambda: _tells(server, "minihs_sync_waiting", 1))
    await put_note(alice)
    await waiting
    assert (await metrics(server))["minihs_sync_waiting"] == 0


async def put_note(user: User) -> None:
    """Do something that the user's own sync tells of."""
    await user.call("PUT", f"/user/{user.user_id}/account_data/com.example.note", {})


async def _tells(homeserver: Homeserver, name: str, value: float) -> bool:
    return (await metrics(homeserver))[name] == value


def _alone(homeserver: Homeserver) -> Homeserver:
    """Return the server if it is one process: what several have counted is not shared here."""
    if len(homeserver.workers) > 1:
        pytest.skip("figures of several processes: see tests/workers/test_processes.py")
    return homeserver


async def test_metrics_are_not_published_through_a_proxy(homeserver: Homeserver):
    forwarded = {"X-Forwarded-For": "203.0.113.7"}
    async with homeserver.client.get("/metrics", headers=forwarded) as answer:
        assert answer.status == 403
        assert b"minihs_" not in await answer.read()


async def test_a_server_whose_committer_has_ended_says_so_until_it_begins_again(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    clock = ManualClock()
    async with running_homeserver(database_url, tmp_path, clock=clock, workers=1) as homeserver:
        services = homeserver.services
        alice = await homeserver.register("alice")
        assert await health(homeserver, "ready") == (200, {"status": "ready"})

        def fail(_units: object) -> int:
            raise RuntimeError("a mistake of ours")

        with monkeypatch.context() as patch:
            patch.setattr(group_commit, "_batch_length", fail)
            refused = await alice.request(*NOTE, {})
        assert (refused.status, refused.json["errcode"]) == (503, "M_UNKNOWN")
        assert refused.headers["Retry-After"] == "1"
        assert await health(homeserver, "health") == (
            503,
            {"status": "failing", "tasks": ["group committer"]},
        )
        status, said = await health(homeserver, "ready")
        assert (status, said["reasons"]) == (
            503,
            ["the task 'group committer' has failed and begins again"],
        )
        assert (await alice.request(*NOTE, {})).status == 503, "at once: nobody waits for it"
        failures = 'minihs_task_failures_total{task="group committer"}'
        assert (await metrics(homeserver))[failures] == 1

        clock.advance_ms(PAUSE_MS)
        await until(lambda: services.tasks.down == [])
        await alice.call(*NOTE, {})
        assert await health(homeserver, "health") == (200, {"status": "ok"})
        assert await health(homeserver, "ready") == (200, {"status": "ready"})


NOTE = ("PUT", "/user/@alice:hs1/account_data/com.example.note")


async def health(homeserver: Homeserver, path: str) -> tuple[int, dict]:
    """Return what an operator is told."""
    async with homeserver.client.get(f"/{path}") as answer:
        return answer.status, await answer.json()


async def test_a_server_that_does_not_see_the_stream_is_not_ready(
    homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch
):
    services = homeserver.services
    monkeypatch.setattr(health_module, "READY_S_MAX", 0.2)
    position = await services.follower.fetch_position()

    async def ahead(_self: object) -> tuple[int, bool]:
        return position + 1, False

    monkeypatch.setattr(type(services.follower), "probe", ahead)
    monkeypatch.setattr(type(services.follower), "_catch_up", lambda _self: _nothing())
    said = ["what others have committed is not seen"]
    await until(lambda: _reasons_are(homeserver, said))  # A slow machine may say worse before.


async def _nothing() -> None:
    """See nothing."""


async def test_a_database_that_hangs_is_asked_once_however_often_somebody_asks(
    homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch
):
    services = homeserver.services
    asked = []
    answers: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def hang(_query: str) -> list[object]:
        asked.append(1)
        await answers
        return [services.follower.head, False]

    monkeypatch.setattr(services.db, "fetchrow", hang)
    with monkeypatch.context() as patch:
        patch.setattr(health_module, "READY_S_MAX", 0.05)
        for _ in range(3):
            assert await reasons_against(services) == ["the database does not answer"]
    assert len(asked) == 1
    answers.set_result(None)
    assert await reasons_against(services) == []


async def test_a_database_that_takes_no_commits_is_told(
    homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch
):
    alice = await homeserver.register("alice")
    services = homeserver.services

    async def full(*_given: object) -> int:
        raise asyncpg.DiskFullError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(group_commit, "_write_all", full)
        for worker in homeserver.workers:
            with pytest.raises(Unavailable):
                await worker.committer.commit_rows([_note(alice.user_id)])
    assert await reasons_against(services) == ["the database takes no commits"]
    await services.committer.commit_rows([_note(alice.user_id)])
    assert await reasons_against(services) == []


async def test_a_batch_that_others_stood_in_the_way_of_says_nothing_against_the_database(
    homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch
):
    alice = await homeserver.register("alice")
    services = homeserver.services

    async def crosswise(*_given: object) -> int:
        raise asyncpg.DeadlockDetectedError("deadlock detected")

    with monkeypatch.context() as patch:
        patch.setattr(group_commit, "_write_all", crosswise)
        with pytest.raises(DatabaseBusy):
            await services.committer.commit_rows([_note(alice.user_id)])
    assert await reasons_against(services) == []


def _note(user_id: str) -> AccountDataWrite:
    return AccountDataWrite(UserId(user_id), "", "com.example.note", "{}")


END_ALL_OTHERS = """
    SELECT pg_terminate_backend(pid, 60000)
    FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


async def test_a_database_that_can_only_be_read_is_told(homeserver: Homeserver, database_url: str):
    connection = await asyncpg.connect(database_url)
    try:
        name = await connection.fetchval("SELECT current_database()")
        await connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        await connection.execute(END_ALL_OTHERS)
        said = ["the database can only be read"]
        await until(lambda: _reasons_are(homeserver, said))
        assert (await homeserver.request("GET", "/_matrix/client/versions")).status == 200
        ready = await homeserver.client.get("/ready")
        assert (ready.status, said[0] in await ready.text()) == (503, True)
        await connection.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        await connection.execute(END_ALL_OTHERS)
        await until(lambda: _reasons_are(homeserver, []))
        assert (await homeserver.client.get("/ready")).status == 200
    finally:
        await connection.close()


async def _reasons_are(homeserver: Homeserver, said: list[str]) -> bool:
    return await reasons_against(homeserver.services) == said
