"""Figures for Prometheus, of the process that answers.

Where several processes are one server, each has the figures of all (`base.metrics.SharedFigures`).
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from minihs.api.requests import Answer
from minihs.base.errors import Forbidden
from minihs.base.metrics import CONTENT_TYPE, Family, labels, process_families, render

if TYPE_CHECKING:
    from minihs.api.requests import Request
    from minihs.services.context import Services


PUBLISH_MS = 1_000


async def get_metrics(request: Request) -> object:
    """GET /metrics.

    Only for who connects directly, from this machine or a private network: a proxy that passes on
    everything must not publish it.

    Raises:
        Forbidden: the request came through a proxy, or from the internet.
    """
    if "X-Forwarded-For" in request.http.headers or not _is_near(request.ip):
        raise Forbidden("Metrics are for the server's own network.")
    services = request.services
    found = families(services)
    if services.metrics.shared is not None:
        found = services.metrics.shared.total(found)
    return Answer(render(found), headers={"Content-Type": CONTENT_TYPE})


async def publish(services: Services) -> None:
    """Keep the figures that this process shares with others fresh."""
    while services.metrics.shared is not None:
        services.metrics.shared.publish(families(services))
        await services.clock.sleep_ms(PUBLISH_MS)


def _is_near(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_private
    except ValueError:  # No address: a Unix socket.
        return not address


def families(services: Services) -> list[Family]:
    """Return every figure of one process."""
    counts, follower = services.committer.counts, services.follower
    counters = {
        "commits": (counts.commits, "Group commits"),
        "committed_events": (counts.events, "Events committed"),
        "committed_rows": (counts.rows, "Other rows of the stream committed"),
        "commit_conflicts": (counts.conflicts, "Units that others were faster than"),
        "commit_failures": (counts.failures, "Units that the database refused or did not answer"),
    }
    gauges = {
        "stream_position": (follower.head, "Position up to which the stream has been seen"),
        "stream_behind": (follower.behind, "Positions known to be committed and not yet seen"),
        "stream_window_items": (follower.window_items, "Items of the stream held in memory"),
        "commit_waiting": (services.committer.waiting, "Units that wait for the next commit"),
        "sync_waiting": (services.views.waiting, "Long polls of /sync"),
    }
    caches = {
        "events": services.events.cached_bytes,
        "shared sync parts": services.shared_parts.cache.weight,
    }
    found = [
        Family(f"minihs_{name}_total", "counter", text, {"": value})
        for name, (value, text) in counters.items()
    ]
    found += [
        Family(f"minihs_{name}", "gauge", text, {"": value})
        for name, (value, text) in gauges.items()
    ]
    sizes = {labels(cache=name): float(size) for name, size in caches.items()}
    found.append(Family("minihs_cache_bytes", "gauge", "Estimated size of caches", sizes))
    found.append(
        Family(
            "minihs_commit_seconds",
            "histogram",
            "Time of a group commit, flushing included",
            counts.seconds.samples(),
        )
    )
    failures = {labels(task=name): float(n) for name, n in services.tasks.failures.items()}
    found.append(
        Family("minihs_task_failures_total", "counter", "Unexpected ends of tasks", failures)
    )
    return [
        *found,
        *services.metrics.families(),
        *services.delivery.families(),
        *services.appservices.families(),
        *process_families(),
    ]
