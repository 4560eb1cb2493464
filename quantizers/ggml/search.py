"""Helpers of the searches for scales: gathering groups into lanes, weighing values, rounding to float16.

A search holds eight groups at a time, one in each lane: ``x[at + 8 * i + lane]`` is element i of the lane's group, and
``w`` holds the importances in the same order. Blocks of 256 in groups of 16 take two such tiles, one after the other.

Functions here are compiled into kernels; they pass arguments by position only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qwen3_export.quantizers.compile import inlined
from qwen3_export.quantizers.lanes import (
    Lanes,
    clamp,
    fma,
    lane,
    load,
    load_apart,
    rint,
    splat,
    square_root,
    store,
    where,
)

__all__ = ["gather_groups", "gather_weights", "nearest_half", "put_integers", "reciprocal"]

Values = NDArray[np.float32]


@inlined
def gather_groups(x: Values, at: int, source: Values, start: int, group_size: int) -> Lanes:
    """Write eight consecutive groups, transposed, to ``x[at:]``; return Σ x² of each."""
    total = splat(0.0)
    for i in range(group_size):
        value = load_apart(source, start + i, group_size)
        store(x, at + 8 * i, value)
        total = fma(value, value, total)
    return total


@inlined
def gather_weights(
    w: Values, x: Values, at: int, importance: Values, start: int, group_size: int, spread: Lanes
) -> Lanes:
    """Write the weights of the groups in ``x[at:]`` to ``w[at:]``; return their sum in each lane.

    A weight is importance · sqrt(spread + x²), or the importance itself if the spread is negative. Without importances
    (an empty array) all are equally important. If all weights of a group are zero, its values count alike, so that it
    still gets a sensible scale.
    """
    total, one = splat(0.0), splat(1.0)
    leaning = spread >= splat(0.0)
    for i in range(group_size):
        value = load(x, at + 8 * i)
        weight = where(leaning, square_root(fma(value, value, spread)), one)
        if importance.size > 0:
            weight = weight * load_apart(importance, start + i, group_size)
        store(w, at + 8 * i, weight)
        total = total + weight
    empty = total <= splat(0.0)
    for i in range(group_size):
        store(w, at + 8 * i, where(empty, one, load(w, at + 8 * i)))
    return where(empty, splat(np.float32(group_size)), total)


@inlined
def nearest_half(x: Lanes) -> Lanes:
    """The nearest float16 number, as float32; at most 65504 in magnitude.

    Adding and subtracting a multiple that shifts the lower 13 bits out (Veltkamp's splitting) leaves the 11 bits of a
    normal float16. Below 2**-14 a float16 is a fixed-point number in units of 2**-24.
    """
    shifted = x * splat(8193.0)
    normal = clamp(shifted - (shifted - x), splat(-65504.0), splat(65504.0))
    small = rint(x * splat(16777216.0)) * splat(1.0 / 16777216.0)
    tiny = (x < splat(2.0**-14)) & (x > splat(-(2.0**-14)))
    return where(tiny, small, normal)


@inlined
def reciprocal(x: Lanes) -> Lanes:
    """1 / x, and 0 where x is zero."""
    zero = splat(0.0)
    nonzero = (x > zero) | (x < zero)
    return where(nonzero, splat(1.0) / x, zero)


@inlined
def put_integers(target: NDArray[np.int16], start: int, values: Lanes) -> None:
    """Write eight lanes, which hold integers, into an integer array."""
    for k in range(8):
        target[start + k] = np.int16(lane(values, k))
