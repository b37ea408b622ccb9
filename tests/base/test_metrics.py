"""Figures: their text form, and the sums of several processes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from minihs.base.metrics import Family, Histogram, Metrics, SharedFigures, labels, render

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def memory() -> Iterator[int]:
    """Memory for two processes."""
    descriptor = SharedFigures.make(2)
    yield descriptor
    os.close(descriptor)


def of(families: list[Family], name: str) -> dict[str, float]:
    """Return the samples of a family."""
    return next(family.samples for family in families if family.name == name)


def test_the_text_form():
    families = [
        Family("requests_total", "counter", "Requests", {labels(path='/"x"\\y'): 3}),
        Family("nothing", "gauge", "Nothing", {}),
        Family("share", "gauge", "A share", {"": 0.25}),
    ]
    assert render(families).decode() == (
        "# HELP requests_total Requests\n"
        "# TYPE requests_total counter\n"
        'requests_total{path="/\\"x\\"\\\\y"} 3\n'
        "# HELP share A share\n"
        "# TYPE share gauge\n"
        "share 0.25\n"
    )


def test_a_histogram_counts_up_to_each_bound():
    histogram = Histogram()
    for seconds in (0.001, 0.002, 0.3, 60):
        histogram.observe(seconds)
    samples = histogram.samples(path="/x")
    assert samples['_bucket{path="/x",le="0.001"}'] == 1
    assert samples['_bucket{path="/x",le="0.0025"}'] == 2
    assert samples['_bucket{path="/x",le="0.5"}'] == 3
    assert samples['_bucket{path="/x",le="10.0"}'] == 3
    assert samples['_bucket{path="/x",le="+Inf"}'] == samples['_count{path="/x"}'] == 4
    assert samples['_sum{path="/x"}'] == pytest.approx(60.303)


def test_processes_add_up_their_counts_and_keep_their_gauges_apart(memory: int):
    counts = [Metrics(), Metrics()]
    for metrics, times in zip(counts, (2, 3), strict=True):
        for _ in range(times):
            metrics.observe("GET", "/x", 200, 0.01)
    first, second = (SharedFigures(memory, 2, number) for number in (0, 1))
    gauge = Family("head", "gauge", "Head", {"": 7, '{cache="x"}': 1})
    second.publish([*counts[1].families(), gauge])

    total = first.total([*counts[0].families(), gauge])

    key = '{method="GET",path="/x",status="200"}'
    assert of(total, "minihs_requests_total") == {key: 5}
    assert of(total, "minihs_request_seconds")['_count{method="GET",path="/x"}'] == 5
    assert of(total, "head") == {
        '{process="0"}': 7, '{cache="x",process="0"}': 1,
        '{process="1"}': 7, '{cache="x",process="1"}': 1,
    }  # fmt: skip


def test_a_successor_goes_on_from_what_the_dead_one_counted(memory: int):
    counts = Metrics()
    counts.observe("GET", "/x", 200, 0.01)
    gauge = Family("head", "gauge", "Head", {"": 7})
    SharedFigures(memory, 2, 1).publish([*counts.families(), gauge])

    successor = SharedFigures(memory, 2, 1)
    for _ in range(2):  # What it takes over is not counted anew with each publication.
        successor.publish(counts.families())

    total = SharedFigures(memory, 2, 0).total([])
    assert list(of(total, "minihs_requests_total").values()) == [2]
    assert "head" not in [family.name for family in total]


def test_what_does_not_fit_or_is_being_written_is_left_out(memory: int):
    mine = SharedFigures(memory, 2, 0)
    mine.publish([Family("x", "counter", "x", {str(n): 1 for n in range(50_000)})])
    assert SharedFigures(memory, 2, 1).total([]) == []
