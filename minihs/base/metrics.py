"""Figures about one process, and their text form for Prometheus.

Numbers live with whoever counts them, as plain integers and floats: to count costs an addition.
Only when somebody asks are they gathered into `Family` values and written out.

The text form is Prometheus's exposition format 0.0.4.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

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
    samples: Mapping[str, float]


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


class RequestMetrics:
    """The requests that a process has answered, by endpoint."""

    def __init__(self) -> None:
        self._endpoints: dict[tuple[str, str], _Endpoint] = {}

    def observe(self, method: str, path: str, status: int, seconds: float) -> None:
        """Count one request; `path` is the endpoint's, with names in place of values."""
        endpoint = self._endpoints.get((method, path))
        if endpoint is None:
            endpoint = self._endpoints[method, path] = _Endpoint()
        endpoint.statuses[status] = endpoint.statuses.get(status, 0) + 1
        endpoint.seconds.observe(seconds)

    def families(self) -> list[Family]:
        """Return what has been counted."""
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
