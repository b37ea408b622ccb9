"""Figures about one process, and their text form for Prometheus.

Numbers live with whoever counts them, as plain integers and floats: to count costs an addition.
Only when somebody asks are they gathered into `Family` values and written out.

The text form is Prometheus's exposition format 0.0.4.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SLOT_BYTES = 262_144
_HEADER = struct.Struct("=QQ")  # How often the slot was begun and finished, and its length.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

# Seconds from some fixed moment, finer than a clock's milliseconds: for durations alone.
stopwatch = time.perf_counter


@dataclass(frozen=True, slots=True)
class Family:
    """Samples of one name. `samples` maps what follows the name (suffix, labels) to the value."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    samples: dict[str, float]


class Histogram:
    """How often a duration fell between which bounds, in seconds."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(SECONDS_BOUNDS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(SECONDS_BOUNDS, seconds)] += 1
        self.total += seconds

    def samples(self, **of: str) -> dict[str, float]:
        """Return the buckets, the sum and the count, with the given labels."""
        running = list(accumulate(self.counts))
        bounds = [*map(str, SECONDS_BOUNDS), "+Inf"]
        found: dict[str, float] = {
            f"_bucket{labels(**of, le=bound)}": count
            for bound, count in zip(bounds, running, strict=True)
        }
        found[f"_sum{labels(**of)}"] = self.total
        found[f"_count{labels(**of)}"] = running[-1]
        return found


@dataclass(slots=True)
class _Endpoint:
    statuses: dict[int, int] = field(default_factory=dict)
    seconds: Histogram = field(default_factory=Histogram)


class Metrics:
    """What a process counts of the requests that it answers, and what it shares with others.

    Processes that serve one listener are one server to whoever asks, and any of them may be asked.
    So each writes its figures into memory that all of them see, and adds up what is there.
    """

    def __init__(self) -> None:
        self._endpoints: dict[tuple[str, str], _Endpoint] = {}
        self.shared: SharedFigures | None = None

    def observe(self, method: str, path: str, status: int, seconds: float) -> None:
        """Count one request; `path` is the endpoint's, with names in place of values."""
        endpoint = self._endpoints.get((method, path))
        if endpoint is None:
            endpoint = self._endpoints[method, path] = _Endpoint()
        endpoint.statuses[status] = endpoint.statuses.get(status, 0) + 1
        endpoint.seconds.observe(seconds)

    def families(self) -> list[Family]:
        """Return what this process has counted."""
        counts: dict[str, float] = {}
        seconds: dict[str, float] = {}
        for (method, path), endpoint in self._endpoints.items():
            for status, count in endpoint.statuses.items():
                counts[labels(method=method, path=path, status=str(status))] = count
            seconds |= endpoint.seconds.samples(method=method, path=path)
        return [
            Family("minihs_requests_total", "counter", "Requests answered", counts),
            Family(
                "minihs_request_seconds",
                "histogram",
                "Time from a request to its answer; of /sync it is mostly waiting",
                seconds,
            ),
        ]


class SharedFigures:
    """Memory that several processes share: each has a slot for its families, `own` is ours.

    What a process that died had counted stays: its successor in the slot adds to it, as a sum that
    falls would look like a restart of the whole server.
    """

    def __init__(self, descriptor: int, slots: int, own: int) -> None:
        self._memory = mmap.mmap(descriptor, slots * SLOT_BYTES)
        self._slots, self._own = slots, own
        self._before = [f for f in self._read(own) if f.kind != "gauge"]

    @staticmethod
    def make(slots: int) -> int:
        """Return the descriptor of memory for that many processes."""
        descriptor = os.memfd_create("minihs-figures", 0)
        os.ftruncate(descriptor, slots * SLOT_BYTES)
        return descriptor

    def publish(self, families: Sequence[Family]) -> None:
        """Let the other processes see our families."""
        text = msgspec.msgpack.encode(self._with_own_past(families))
        start, room = self._own * SLOT_BYTES, SLOT_BYTES - _HEADER.size
        if len(text) > room:
            return
        turn = _HEADER.unpack_from(self._memory, start)[0]
        _HEADER.pack_into(self._memory, start, turn + 1, 0)  # Odd: being written.
        self._memory[start + _HEADER.size : start + _HEADER.size + len(text)] = text
        _HEADER.pack_into(self._memory, start, turn + 2, len(text))

    def total(self, families: Sequence[Family]) -> list[Family]:
        """Return our families with those that the others have published last."""
        every = {slot: self._read(slot) for slot in range(self._slots) if slot != self._own}
        every[self._own] = self._with_own_past(families)
        sums: dict[str, Family] = {}
        for slot, of_process in sorted(every.items()):
            for family in of_process:
                _add(sums, family, str(slot))
        return list(sums.values())

    def _with_own_past(self, families: Sequence[Family]) -> list[Family]:
        sums: dict[str, Family] = {}
        for family in (*families, *self._before):
            _add(sums, family, "")
        return list(sums.values())

    def _read(self, slot: int) -> list[Family]:
        """Return the families in a slot; none while they are being written."""
        start = slot * SLOT_BYTES
        turn, length = _HEADER.unpack_from(self._memory, start)
        text = self._memory[start + _HEADER.size : start + _HEADER.size + length]
        if turn % 2 or not length or _HEADER.unpack_from(self._memory, start)[0] != turn:
            return []
        return msgspec.msgpack.decode(text, type=list[Family])


def _add(sums: dict[str, Family], family: Family, process: str) -> None:
    """Add a family: counts to counts, gauges beside each other if they are of several processes."""
    known = sums.setdefault(family.name, Family(family.name, family.kind, family.help, {}))
    for key, value in family.samples.items():
        if family.kind == "gauge" and process:
            key = (key[:-1] + "," if key else "{") + f'process="{process}"}}'  # noqa: PLW2901
        known.samples[key] = known.samples.get(key, 0) + value


def labels(**values: str) -> str:
    """Return labels as they follow a name: empty without any."""
    if not values:
        return ""
    return "{" + ",".join(f'{key}="{_escaped(value)}"' for key, value in values.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def render(families: Iterable[Family]) -> bytes:
    """Return families in Prometheus's text form; those without samples are left out."""
    lines: list[str] = []
    for family in families:
        if family.samples:
            lines += [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}"]
            lines += [f"{family.name}{key} {value:.10g}" for key, value in family.samples.items()]
    return ("\n".join(lines) + "\n").encode()


def process_families() -> list[Family]:
    """Return what the operating system knows of this process, under Prometheus's usual names."""
    times = os.times()
    found = [
        Family(
            "process_cpu_seconds_total",
            "counter",
            "Time on the processor",
            {"": times.user + times.system},
        )
    ]
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        descriptors = sum(1 for _ in Path("/proc/self/fd").iterdir())
    except OSError:  # Not Linux.
        return found
    memory = pages * os.sysconf("SC_PAGE_SIZE")
    found.append(Family("process_resident_memory_bytes", "gauge", "Memory", {"": memory}))
    found.append(Family("process_open_fds", "gauge", "Open files and sockets", {"": descriptors}))
    return found
