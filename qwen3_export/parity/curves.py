"""The divergence by position in a text, averaged over ranges that widen with the position.

Errors of the KV cache, of positions and of the mask grow along a text; one mean over all positions would hide that.
There are two ranges for each doubling of the position (0, 1, 2, 3, 4 to 5, 6 to 7, 8 to 11, …), so that 32,768
positions become about thirty points.
"""

# P positions

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["CurvePoint", "curve"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """The positions ``first`` to ``last`` (both included) of all texts.

    ``count`` is how many such positions there were; ``mean_kld`` and ``max_kld`` are in nats.
    """

    first: int
    last: int
    count: int
    mean_kld: float
    max_kld: float


def curve(positions_P: NDArray[np.int64], klds_P: NDArray[np.float64]) -> tuple[CurvePoint, ...]:
    """A point for each range that has any of the positions, from their KL divergences in nats."""
    if not len(positions_P):
        return ()
    edges = _edges(int(positions_P.max()))
    range_of_P = np.searchsorted(edges, positions_P, side="right") - 1
    points = []
    for i in np.unique(range_of_P):
        found = klds_P[range_of_P == i]
        points.append(
            CurvePoint(
                first=int(edges[i]),
                last=int(edges[i + 1]) - 1,
                count=len(found),
                mean_kld=float(found.mean()),
                max_kld=float(found.max()),
            )
        )
    return tuple(points)


def _edges(last: int) -> NDArray[np.int64]:
    """The first position of each range, and one edge beyond ``last``."""
    edges = [0, 1, 2, 3]
    while edges[-1] <= last:
        edges.append(2 * edges[-2])
    return np.array(edges)
