"""Weighted k-means of numbers: the best table of E entries for N weights.

In one dimension, clusters are intervals of the sorted numbers, so that the optimum can be computed. The least cost of
the first j numbers in k clusters is  min over i of  cost(k - 1, i) + error(i, j),  and the error of an interval follows
from prefix sums of w, w·x and w·x². The best i never moves left when j or k grows (the error satisfies the quadrangle
inequality). So the table of all costs takes O(N²) steps, for any E (Knuth 1971, Yao 1980). N² is still too much for the
tens of thousands of weights that share a table. Therefore:

1. The sorted weights are cut into some hundred runs, many where weights are dense, and none too wide where they are
   few. The exact optimum over runs is computed. If there are no more weights than runs, it is the optimum.
2. Lloyd's iteration then moves the borders, now over all weights. With prefix sums a round costs E binary searches.

Nothing is random: the same weights give the same table. k-means++ needs many starts to come close, and is never better.
Ties and empty clusters cannot occur, because every cluster holds at least one run.

Shapes: # N weights that share a table  B runs  E entries  R rows  I columns  L tables
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qwen3_export.quantizers.compile import inlined, kernel

__all__ = ["cluster", "nearest_entries"]

Values = NDArray[np.float32]
Sums = NDArray[np.float64]

_LEAST_RUNS = 256
_RUNS_PER_ENTRY = 4
_LLOYD_ROUNDS = 60
_FAINT = 1e-9
"""Every number counts at least this share of the mean importance, so that no interval has importance 0."""


def cluster(values_N: Values, weights_N: Values, entries: int) -> Values:
    """The ascending means of the best ``entries`` clusters of sorted numbers. With empty weights all count alike.

    With fewer numbers than entries, the largest is repeated.
    """
    mean, sums = _prefix_sums(values_N, weights_N)
    edges_B = _cut_into_runs(values_N, max(_LEAST_RUNS, _RUNS_PER_ENTRY * entries))
    borders = _best_borders(sums[:, edges_B].copy(), min(entries, edges_B.size - 1))
    return _polish(values_N, mean, sums, edges_B[borders], entries)


@kernel
def nearest_entries(codes_RI: NDArray[np.uint8], values_RI: Values, table_LE: Values) -> None:
    """Fill ``codes_RI`` with the index of the nearest entry of each row's table; of two, the lower one."""
    rows_per_table = values_RI.shape[0] // table_LE.shape[0]
    entries = table_LE.shape[1]
    midpoints = np.empty(entries - 1, np.float32)
    for r in range(values_RI.shape[0]):
        table = table_LE[r // rows_per_table]
        for e in range(entries - 1):
            midpoints[e] = np.float32(0.5) * (table[e] + table[e + 1])
        for i in range(values_RI.shape[1]):
            # entries - 1 is one less than a power of two, so each step halves the rest exactly.
            below, step = 0, entries // 2
            while step > 0:
                if values_RI[r, i] > midpoints[below + step - 1]:
                    below += step
                step //= 2
            codes_RI[r, i] = np.uint8(below)


def _prefix_sums(values_N: Values, weights_N: Values) -> tuple[float, Sums]:
    """The mean, and sums of w, w·x and w·x² of the first n numbers, [3, N + 1], with x less the mean for exactness."""
    x = values_N.astype(np.float64)
    w = np.ones_like(x) if weights_N.size == 0 else weights_N.astype(np.float64)
    w = w + _FAINT * w.mean()
    mean = float((w * x).sum() / w.sum())
    x = x - mean
    sums = np.zeros((3, x.size + 1))
    for row, terms in enumerate((w, w * x, w * x * x)):
        np.cumsum(terms, out=sums[row, 1:])
    return mean, sums


def _cut_into_runs(values_N: Values, runs: int) -> NDArray[np.int64]:
    """Where runs begin, and N at the end; each run has about an equal share of the numbers and of their range."""
    count = values_N.size
    if count <= runs:
        return np.arange(count + 1)
    low, high = float(values_N[0]), float(values_N[-1])
    place = np.arange(count) / count
    if high > low:
        place = (place + (values_N.astype(np.float64) - low) / (high - low)) / 2
    inner = np.searchsorted(place, np.arange(1, runs) / runs)
    return np.unique(np.concatenate([[0], inner, [count]]))


@inlined
def _error(sums: Sums, i: int, j: int) -> float:
    """Σ w (x - mean)² over the numbers from i to j."""
    w, wx = sums[0, j] - sums[0, i], sums[1, j] - sums[1, i]
    return sums[2, j] - sums[2, i] - wx * wx / w  # type: ignore[no-any-return]  # float64, in kernels


@kernel
def _best_borders(sums: Sums, clusters: int) -> NDArray[np.int64]:
    """The borders [clusters + 1] with the least total error over B runs."""
    runs = sums.shape[1] - 1
    start = np.zeros((clusters + 1, runs + 2), np.int64)  # where the last of k clusters begins
    cost = np.empty(runs + 1)
    cost[0] = 0.0
    for j in range(1, runs + 1):
        cost[j] = _error(sums, 0, j)
    for k in range(2, clusters + 1):
        start[k, runs + 1] = runs - 1
        # Costs of k clusters replace those of k - 1 from the right: only those to the left are still needed.
        for j in range(runs, k - 1, -1):
            least, best = np.inf, k - 1
            for i in range(max(start[k - 1, j], k - 1), min(start[k, j + 1], j - 1) + 1):
                total = cost[i] + _error(sums, i, j)
                if total < least:
                    least, best = total, i
            cost[j], start[k, j] = least, best
    borders = np.zeros(clusters + 1, np.int64)
    borders[clusters] = runs
    for k in range(clusters, 1, -1):
        borders[k - 1] = start[k, borders[k]]
    return borders


@kernel
def _polish(values_N: Values, mean: float, sums: Sums, borders: NDArray[np.int64], entries: int) -> Values:
    """Lloyd's iteration: move entries to the means of their clusters, and borders to the middles between entries."""
    clusters = borders.size - 1
    table = np.empty(entries, np.float32)
    for _ in range(_LLOYD_ROUNDS):
        for k in range(clusters):
            i, j = borders[k], borders[k + 1]
            if j > i:
                table[k] = np.float32(mean + (sums[1, j] - sums[1, i]) / (sums[0, j] - sums[0, i]))
        moved = False
        for k in range(1, clusters):
            border = np.searchsorted(values_N, np.float32(0.5) * (table[k - 1] + table[k]), side="right")
            moved = moved or border != borders[k]
            borders[k] = border
        if not moved:
            break
    table[clusters:] = table[clusters - 1]
    return table
