"""What the searches for scales share: gathering groups into lanes, weighing values, rounding to float16.

A search holds eight groups at a time, one a lane: ``x[8 * i + lane]`` is element i of the lane's group, and ``w`` holds
its weights in the same order.

Functions here are compiled into kernels, which pass arguments by position only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qwen3_export.quantizers.compile import inlined
from qwen3_export.quantizers.lanes import Lanes, clamp, fma, lane, load, rint, splat, square_root, store, where

__all__ = ["gather_groups", "gather_weights", "nearest_half", "put_integers", "reciprocal", "settle_weights", "sum_of_squares"]

Values = NDArray[np.float32]


@inlined
def gather_groups(target: Values, source: Values, start: int, group_size: int, groups: int) -> None:
    """Transpose up to eight consecutive groups; lanes beyond the last group repeat it."""
    for k in range(8):
        # The source may be one row of importances that all rows of weights share.
        first = (start + min(k, groups - 1) * group_size) % source.size
        for i in range(group_size):
            target[8 * i + k] = source[first + i]


@inlined
def gather_weights(w: Values, importance: Values, start: int, group_size: int, groups: int) -> None:
    """The importances of the same eight groups; ones where there are none."""
    if importance.size > 0:
        gather_groups(w, importance, start, group_size, groups)
    else:
        w[: 8 * group_size] = np.float32(1)


@inlined
def sum_of_squares(x: Values, group_size: int) -> Lanes:
    """Σ x² of each lane."""
    total = splat(0.0)
    for i in range(group_size):
        value = load(x, 8 * i)
        total = fma(value, value, total)
    return total


@inlined
def settle_weights(w: Values, x: Values, group_size: int, spread: Lanes) -> Lanes:
    """Turn importances into weights, in place, and return their sum in each lane.

    A weight is importance · sqrt(spread + x²), or the importance itself where the spread is negative. A group without
    any weight counts all its values alike, so that it still gets a sensible scale.
    """
    total = splat(0.0)
    weighted = spread >= splat(0.0)
    for i in range(group_size):
        value = load(x, 8 * i)
        factor = where(weighted, square_root(fma(value, value, spread)), splat(1.0))
        weight = load(w, 8 * i) * factor
        store(w, 8 * i, weight)
        total = total + weight
    empty = total <= splat(0.0)
    for i in range(group_size):
        store(w, 8 * i, where(empty, splat(1.0), load(w, 8 * i)))
    return where(empty, splat(np.float32(group_size)), total)


@inlined
def nearest_half(x: Lanes) -> Lanes:
    """The nearest number that float16 can hold, as float32; at most 65504 in magnitude.

    Adding and subtracting a multiple that shifts the lower 13 bits out (Veltkamp's splitting) leaves the 11 bits of a
    normal float16; below 2**-14 float16 is a fixed-point number in units of 2**-24.
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
    """Eight lanes, which hold integers, into an integer array."""
    for k in range(8):
        target[start + k] = np.int16(lane(values, k))
