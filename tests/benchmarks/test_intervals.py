"""Intervals of paired differences: documents move together, and few documents make an interval wide."""

from __future__ import annotations

import importlib
import math
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="module")
def intervals(benchmarks: None) -> ModuleType:
    return importlib.import_module("intervals")


def width(difference: object) -> float:
    return float(difference.high - difference.low)  # type: ignore[attr-defined]


def test_positions_that_resemble_each_other_make_it_wider(intervals: ModuleType) -> None:
    """20 documents of 10 windows: what changes is a document's own, so there are 20 observations and not 200."""
    random = np.random.default_rng(0)
    before = random.uniform(1.0, 2.0, 200)
    of_document, of_window = random.normal(0.8, 0.1, 20).repeat(10), random.normal(0.8, 0.1, 200)
    documents = [number for number in range(20) for _ in range(10)]
    for changes, is_wider in ((of_document, True), (of_window, False)):
        after = {"source": before * changes}
        clustered = intervals.paired_difference({"source": before}, after, {"source": documents})
        alone = intervals.paired_difference({"source": before}, after, {"source": range(200)})
        assert clustered.percent == alone.percent
        assert clustered.low < clustered.percent < clustered.high
        assert (width(clustered) > 2 * width(alone)) == is_wider
        assert width(clustered) > 0.5 * width(alone)


def test_the_same_window_ten_times_says_nothing_new(intervals: ModuleType) -> None:
    random = np.random.default_rng(1)
    before, after = random.uniform(1.0, 2.0, (2, 15))
    once = intervals.paired_difference({"a": before}, {"a": after}, {"a": range(15)})
    many = [side.repeat(10) for side in (before, after)]
    documents = [number for number in range(15) for _ in range(10)]
    again = intervals.paired_difference({"a": many[0]}, {"a": many[1]}, {"a": documents})
    assert (again.low, again.high) == pytest.approx((once.low, once.high))
    naive = intervals.paired_difference({"a": many[0]}, {"a": many[1]}, {"a": range(150)})
    assert width(naive) < 0.5 * width(once)


@pytest.mark.parametrize(("documents", "least"), [(4, 0.83), (6, 0.9), (12, 0.9), (40, 0.9)])
def test_it_holds_the_truth_nearly_always(intervals: ModuleType, documents: int, least: float) -> None:
    """In 95 of 100 cases; four documents, between the smallest and the largest, in 7 of 8."""
    random, held, runs = np.random.default_rng(documents), 0, 300
    labels = [number for number in range(documents) for _ in range(3)]
    for run in range(runs):
        before = random.uniform(1.0, 2.0, 3 * documents)
        after = before * (random.normal(0.7, 0.1, documents).repeat(3) + random.normal(0, 0.05, 3 * documents))
        found = intervals.paired_difference({"a": before}, {"a": after}, {"a": labels}, resamples=1000, seed=run)
        held += found.low <= -30.0 <= found.high
    assert least <= held / runs <= 0.99


def test_pairs_and_sources(intervals: ModuleType) -> None:
    """How hard documents are does not count, only how both sides differ; every source counts alike."""
    random = np.random.default_rng(2)
    before = {"a": random.uniform(1.0, 100.0, 30), "b": random.uniform(1.0, 2.0, 6)}
    documents = {"a": [f"a {i // 3}" for i in range(30)], "b": [f"b {i}" for i in range(6)]}
    found = intervals.paired_difference(before, {name: 0.6 * side for name, side in before.items()}, documents)
    assert (found.low, found.percent, found.high) == pytest.approx((-40.0, -40.0, -40.0))
    assert found.before == pytest.approx((before["a"].mean() + before["b"].mean()) / 2)
    assert found.documents == 16
    assert str(found) == "-40.0 % (-40.0 to -40.0)"


def test_what_cannot_be_told(intervals: ModuleType) -> None:
    one = intervals.paired_difference({"a": [1.0, 2.0]}, {"a": [1.0, 1.0]}, {"a": ["x", "x"]})
    assert (one.low, one.high) == (-math.inf, math.inf)
    with pytest.raises(ValueError, match="a: 2 and 1 losses for 2 labels"):
        intervals.paired_difference({"a": [1.0, 2.0]}, {"a": [1.0]}, {"a": ["x", "y"]})
