"""The ledger of acknowledged events: what clients were promised, written down by themselves.

Every client writes what it intends to do before it asks for it, and what it was told after it was
answered, each line flushed to disk. A request without an answer is repeated with the same
transaction id until there is one. Afterwards everything that was promised must be found, once, by
every way of looking for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote

import aiohttp
import orjson

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from tests.helpers.homeserver import Response
    from tests.helpers.processes import Server

NOTE = "com.example.note"
RETRY_S = 0.05
PAGE = "200"


@dataclass
class Report:
    """The figures of a run."""

    rounds: int = 0
    requests: int = 0
    acknowledged: int = 0
    unknown: int = 0
    missing: int = 0
    duplicated: int = 0
    back_s: list[float] = field(default_factory=list)

    def line(self, seed: int) -> str:
        """Return the figures as they are printed."""
        slowest = max(self.back_s, default=0.0)
        return (
            f"rounds {self.rounds}, requests {self.requests}, acknowledged {self.acknowledged}, "
            f"unknown {self.unknown}, missing {self.missing}, duplicated {self.duplicated}, "
            f"back after {slowest:.2f} s at most, seed {seed}"
        )


class Ledger:
    """A client's append-only file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")

    def write(self, kind: str, **facts: object) -> None:
        """Add a line; it is on disk when this returns."""
        self._file.write(orjson.dumps({"kind": kind, **facts}) + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read(path: Path, kind: str) -> list[dict]:
    """Return the lines of one kind in a client's file."""
    lines = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def digest(content: object) -> str:
    """Return a hash of an event's content."""
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()


class Client:
    """Somebody who sends messages, redacts some of their own, and keeps a note in account data."""

    def __init__(
        self, server: Server, user: tuple[str, str], room_id: str, path: Path, report: Report
    ) -> None:
        self.server, self.room_id, self.path, self.report = server, room_id, path, report
        self.user_id, self._token = user
        self._ledger = Ledger(path)
        self._count = 0
        self._sent: list[str] = []

    async def run(self, rng: random.Random, stop: asyncio.Event) -> None:
        """Act until told to stop; what has been begun is brought to its end."""
        while not stop.is_set():
            self._count += 1
            action = rng.random()
            if action < 0.08:
                await self._note()
            elif action < 0.14 and self._sent:
                await self._redact(self._sent.pop(rng.randrange(len(self._sent))))
            else:
                await self._send()
        self._ledger.close()

    async def _send(self) -> None:
        content = {"msgtype": "m.text", "body": f"{self.user_id} {self._count}"}
        path = f"/rooms/{quote(self.room_id)}/send/m.room.message/t{self._count}"
        event_id = (await self._insist("PUT", path, content)).json["event_id"]
        self._ledger.write("event", event_id=event_id, sha256=digest(content))
        self._sent.append(event_id)

    async def _redact(self, event_id: str) -> None:
        path = f"/rooms/{quote(self.room_id)}/redact/{quote(event_id)}/t{self._count}"
        redaction_id = (await self._insist("PUT", path, {})).json["event_id"]
        self._ledger.write("redaction", event_id=redaction_id, redacts=event_id)

    async def _note(self) -> None:
        path = f"/user/{quote(self.user_id)}/account_data/{NOTE}"
        await self._insist("PUT", path, {"n": self._count})
        self._ledger.write("note", n=self._count)

    async def _insist(self, method: str, path: str, body: object) -> Response:
        """Ask until there is an answer; every request without one had an unknown outcome."""
        self._ledger.write("intent", method=method, path=path)
        while True:
            self.report.requests += 1
            try:
                answer = await self.server.request(method, path, body, token=self._token)
            except (aiohttp.ClientError, TimeoutError):
                self.report.unknown += 1
            else:
                if answer.status == 200:
                    self.report.acknowledged += 1
                    return answer
                assert answer.status == 503, (path, answer.status, answer.json)
                self.report.unknown += 1
            await asyncio.sleep(RETRY_S)


class Reader:
    """Somebody who syncs, and writes down every event of the room in the order of its coming."""

    def __init__(self, server: Server, user: tuple[str, str], room_id: str) -> None:
        self.server, self.room_id = server, room_id
        self.user_id, self._token = user
        self.event_ids: list[str] = []
        self.positions: list[int] = []
        self._since: str | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Sync until told to stop, then until there is nothing more."""
        while not stop.is_set():
            await self._step("2000")
        while await self._step("0"):
            pass

    async def _step(self, timeout_ms: str) -> int:
        """Sync once; return how many events came."""
        query = {"timeout": timeout_ms, "filter": '{"room":{"timeline":{"limit":1000}}}'}
        if self._since is not None:
            query["since"] = self._since
        while True:
            try:
                answer = await self.server.request("GET", "/sync", token=self._token, **query)
            except (aiohttp.ClientError, TimeoutError):
                await asyncio.sleep(RETRY_S)
                continue
            if answer.status == 200:
                break
            assert answer.status == 503, (answer.status, answer.json)
            await asyncio.sleep(RETRY_S)
        self._since = answer.json["next_batch"]
        self.positions.append(int(self._since[1:].partition("_")[0]))
        room = answer.json.get("rooms", {}).get("join", {}).get(self.room_id)
        if room is None:
            return 0
        timeline = room["timeline"]
        assert not timeline["limited"] or len(self.positions) == 1
        self.event_ids += [event["event_id"] for event in timeline["events"]]
        return len(timeline["events"])


async def page_through(server: Server, token: str, room_id: str) -> list[dict]:
    """Return a room's events as `/messages` tells them, oldest first."""
    events: list[dict] = []
    query = {"dir": "b", "limit": PAGE}
    while True:
        path = f"/rooms/{quote(room_id)}/messages"
        answer = await server.request("GET", path, token=token, **query)
        assert answer.status == 200, answer.json
        events += answer.json["chunk"]
        if "end" not in answer.json:
            return events[::-1]
        query["from"] = answer.json["end"]
