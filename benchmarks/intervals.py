"""Confidence intervals of paired differences, clustered by document.

Windows of one article resemble each other, and positions of one window even more. Counted as independent they give an
interval that is too narrow. So whole documents are drawn again, with all of their windows, and the same ones for both
sides. Sources (or domains) are strata: documents are drawn within each, and every source counts alike.

With few documents, percentiles of such a bootstrap still lie too close together. They are taken further out, by
Student's t with one degree of freedom for each document beyond the first of its source (the expanded percentile
interval: Hesterberg, "What Teachers Should Know About the Bootstrap", 2015). No resample lies beyond documents that are
all the same one, so an interval of four documents holds the truth in 7 of 8 cases at most, one of six in 31 of 32.

Shapes: W windows of one source, D its documents, B resamples
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Difference", "paired_difference"]

RESAMPLES = 10_000
NORMAL = NormalDist()

# By source: a loss for each window, and the document that each window is from.
Losses = Mapping[str, ArrayLike]
Documents = Mapping[str, Sequence[Hashable]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Means over the sources, and what changed from ``before`` to ``after`` in percent, with its interval."""

    before: float
    after: float
    percent: float
    low: float
    high: float
    documents: int

    def __str__(self) -> str:
        return f"{self.percent:+.1f} % ({self.low:+.1f} to {self.high:+.1f})"


def paired_difference(
    before: Losses,
    after: Losses,
    documents: Documents,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Compare two artifacts by their losses on the same windows.

    A source's mean is that of its windows. The interval is infinite where no source has two documents. Raises
    ValueError where the three do not have the same windows.
    """
    generator = np.random.default_rng(seed)
    was_S, now_S, drawn_was, drawn_now = [], [], [], []
    freedom = total = 0
    for source, labels in documents.items():
        was_W, now_W = (np.asarray(side[source], np.float64) for side in (before, after))
        if not len(was_W) == len(now_W) == len(labels) > 0:
            raise ValueError(f"{source}: {len(was_W)} and {len(now_W)} losses for {len(labels)} labels of documents")
        index_W = _numbered(labels)
        count = int(index_W.max()) + 1
        times_BD = generator.multinomial(count, np.full(count, 1 / count), size=resamples)
        windows_B = times_BD @ np.bincount(index_W)
        was_S.append(was_W.mean())
        now_S.append(now_W.mean())
        drawn_was.append(times_BD @ np.bincount(index_W, weights=was_W) / windows_B)
        drawn_now.append(times_BD @ np.bincount(index_W, weights=now_W) / windows_B)
        freedom, total = freedom + count - 1, total + count
    percent_B = 100 * (np.mean(drawn_now, axis=0) / np.mean(drawn_was, axis=0) - 1)
    tail = _tail(level, freedom)
    low, high = (-math.inf, math.inf) if freedom < 1 else np.quantile(percent_B, [tail, 1 - tail]).tolist()
    mean_was, mean_now = fmean(was_S), fmean(now_S)
    return Difference(
        before=mean_was,
        after=mean_now,
        percent=100 * (mean_now / mean_was - 1),
        low=low,
        high=high,
        documents=total,
    )


def _numbered(labels: Sequence[Hashable]) -> NDArray[np.int64]:
    """The number of each window's document, [W]; documents are numbered as they come."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in labels], np.int64)


def _tail(level: float, freedom: int) -> float:
    """The share of resamples that is cut off at each end."""
    if freedom < 1:
        return 0.0
    return NORMAL.cdf(-math.sqrt((freedom + 1) / freedom) * _student(0.5 + level / 2, freedom))


def _student(probability: float, freedom: int) -> float:
    """The quantile of Student's t: the expansion in 1 / freedom (Abramowitz and Stegun 26.7.5), 1 % off at three."""
    z = NORMAL.inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom ** (i + 1) for i, term in enumerate(terms))
