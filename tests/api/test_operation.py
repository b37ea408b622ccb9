"""What operators ask of a running server: does it live, is it ready, what has it done?"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import pytest

from minihs.api.health import reasons_against
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from tests.helpers.homeserver import Homeserver, User

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


async def test_a_server_whose_committer_has_ended_is_not_ready(homeserver: Homeserver):
    services = homeserver.services
    assert await reasons_against(services) == []
    task = services.committer._task
    assert task is not None
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await reasons_against(services) == ["nothing is committed any more"]


async def test_a_server_that_does_not_see_the_stream_is_not_ready(
    homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch
):
    from minihs.api import health

    services = homeserver.services
    monkeypatch.setattr(health, "READY_S_MAX", 0.2)
    position = await services.follower.fetch_position()

    async def ahead() -> int:
        return position + 1

    monkeypatch.setattr(type(services.follower), "fetch_position", lambda _self: ahead())
    monkeypatch.setattr(type(services.follower), "_catch_up", lambda _self: _nothing())
    assert await reasons_against(services) == ["what others have committed is not seen"]


async def _nothing() -> None:
    """See nothing."""
