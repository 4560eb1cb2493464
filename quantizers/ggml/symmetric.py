"""Search for the best scale of each group, where a value is ``scale * level``, without an offset.

The levels are the integers from ``lowest`` to ``highest``, or those of a code book (IQ4). For each group of 16 or 32
weights x with importances w, the search minimizes  Σ w (x - scale·level)²,  where each weight takes the nearest level.
For fixed levels the best scale is a quotient of sums, and the error follows from the same sums. But levels jump when
the scale changes, so scales are scanned first. (``affine.py`` does the same with an offset.)

1. *Scan.* The range of levels is not symmetric (-8 … 7). With a positive scale the most extreme weight falls on one
   end, with a negative one on the other. Both are tried, each a little clipped or stretched, and refined by least
   squares.
2. *Settle.* Round again under the best scale and solve again.
3. *Share.* Blocks of 256 store the scale of a group as an integer times one float16. For a few choices of the float16,
   integers next to the ideal ones are tried, each with its true error. Then the float16 is solved for in closed form
   from the best of them, and the integers are tried again.

Shapes: # N blocks  G groups, of all blocks. Weights, importances and scratch are flat.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qwen3_export.quantizers.compile import inlined, kernel
from qwen3_export.quantizers.ggml.search import (
    gather_groups,
    gather_weights,
    nearest_half,
    put_integers,
    reciprocal,
)
from qwen3_export.quantizers.lanes import (
    Lanes,
    clamp,
    fma,
    lane,
    load,
    maximum,
    minimum,
    rint,
    splat,
    store,
    sum_of_lanes,
    where,
)

__all__ = ["Levels", "SymmetricGrid", "fit_symmetric_blocks", "fit_symmetric_superblocks"]

Values = NDArray[np.float32]
Integers = NDArray[np.int16]

_HUGE = np.float32(3e38)
_SETTLING_ROUNDS = 2
_STARTS = 3
"""Shared scales that are tried first: the most extreme group gets the lowest integer, or one or two above it."""


class SymmetricGrid(NamedTuple):
    """The scales that are tried.

    They put the most extreme weight at ``lowest * (1 + u)``, for ``2 * steps + 1`` values of u from -reach to reach,
    and, if ``both_ends``, at ``highest * (1 + u)`` as well.
    """

    reach: float
    steps: int
    both_ends: bool


class Levels(NamedTuple):
    """The levels of codes: the integers from lowest to highest, unless ``book`` lists the levels."""

    lowest: np.float32
    highest: np.float32
    book: Values


class Sums(NamedTuple):
    """The sums of one pass over eight groups; v is the level, r the residual ``x - scale * v``."""

    vv: Lanes
    rv: Lanes
    rr: Lanes


@kernel
def fit_symmetric_blocks(
    block_scale_N: Values,
    values: Values,
    importance: Values,
    columns: int,
    group_size: int,
    grid: SymmetricGrid,
    levels: Levels,
    spread: float,
) -> None:
    """Fit Q4_0, Q5_0, Q8_0 and IQ4_NL, where a block is one group with a float16 scale of its own.

    ``values`` holds rows of ``columns`` weights, one after the other, each of at least eight blocks. ``importance`` has
    one row, or as many rows, or is empty.
    """
    x, w = np.empty(8 * group_size, np.float32), np.empty(8 * group_size, np.float32)
    for row in range(0, values.size, columns):
        for column in range(0, columns, 8 * group_size):
            # The last eight blocks of a row may overlap the eight before them, which gives the same results again.
            start = row + min(column, columns - 8 * group_size)
            squares = gather_groups(x, 0, values, start, group_size)
            mean_square = squares * splat(np.float32(spread / group_size))
            weights_start = start % importance.size if importance.size else 0
            gather_weights(w, x, 0, importance, weights_start, group_size, mean_square)
            scale = _search_scale(x, w, 0, group_size, levels, grid)
            store(block_scale_N, start // group_size, nearest_half(scale))


@kernel
def fit_symmetric_superblocks(
    block_scale_N: Values,
    sub_scale_G: Integers,
    values: Values,
    importance: Values,
    group_size: int,
    grid: SymmetricGrid,
    levels: Levels,
    sub_lowest: int,
    sub_highest: int,
    spread: float,
) -> None:
    """Fit Q3_K, Q6_K and IQ4_XS, where the scale of a group is an integer times a float16 of its block.

    ``values`` holds blocks of 256, one after the other. ``importance`` has as many values, or one row, or is empty.
    """
    x, w = np.empty(256, np.float32), np.empty(256, np.float32)
    ideal, tried = np.empty(16, np.float32), np.empty(16, np.float32)
    for n in range(values.size // 256):
        squares = splat(0.0)
        for at in range(0, 256, 8 * group_size):
            squares = squares + gather_groups(x, at, values, 256 * n + at, group_size)
        mean_square = splat(sum_of_lanes(squares) * np.float32(spread / 256))
        weights_start = 256 * n % importance.size if importance.size else 0
        for at in range(0, 256, 8 * group_size):
            gather_weights(w, x, at, importance, weights_start + at, group_size, mean_square)
            store(ideal, at // group_size, _search_scale(x, w, at, group_size, levels, grid))
        block_scale_N[n] = _share(
            sub_scale_G,
            n * (256 // group_size),
            x,
            w,
            ideal,
            tried,
            group_size,
            levels,
            np.float32(sub_lowest),
            np.float32(sub_highest),
        )


@inlined
def _search_scale(x: Values, w: Values, at: int, group_size: int, levels: Levels, grid: SymmetricGrid) -> Lanes:
    """The best scale for each of eight groups, before any sharing."""
    low, high = splat(0.0), splat(0.0)
    for i in range(group_size):
        low, high = minimum(low, load(x, at + 8 * i)), maximum(high, load(x, at + 8 * i))
    extreme = where(splat(0.0) - low > high, low, high)
    best_scale, best_error = splat(0.0), splat(_HUGE)
    for end in range(2 if grid.both_ends else 1):
        level = levels.highest if end else levels.lowest
        for step in range(-grid.steps, grid.steps + 1):
            target = np.float32(level * (1 + grid.reach * step / grid.steps))
            scale = extreme * splat(np.float32(1) / target)
            sums = _measure(x, w, at, group_size, scale, levels)
            change = sums.rv * reciprocal(sums.vv)
            error = sums.rr - change * sums.rv
            won = error < best_error
            best_error, best_scale = where(won, error, best_error), where(won, scale + change, best_scale)
    for _ in range(_SETTLING_ROUNDS):
        sums = _measure(x, w, at, group_size, best_scale, levels)
        best_scale = best_scale + sums.rv * reciprocal(sums.vv)
    return best_scale


@inlined
def _measure(x: Values, w: Values, at: int, group_size: int, scale: Lanes, levels: Levels) -> Sums:
    """Round to the nearest levels and take the sums."""
    zero, inverse = splat(0.0), reciprocal(scale)
    sums = Sums(zero, zero, zero)
    for i in range(group_size):
        value, weight = load(x, at + 8 * i), load(w, at + 8 * i)
        level = _nearest_level(value * inverse, levels)
        residual = value - scale * level
        weighted_level = weight * level
        sums = Sums(
            fma(weighted_level, level, sums.vv),
            fma(weighted_level, residual, sums.rv),
            fma(weight * residual, residual, sums.rr),
        )
    return sums


@inlined
def _nearest_level(position: Lanes, levels: Levels) -> Lanes:
    if levels.book.size == 0:
        return clamp(rint(position), splat(levels.lowest), splat(levels.highest))
    nearest = splat(levels.book[0])
    for k in range(1, levels.book.size):
        midpoint = (levels.book[k - 1] + levels.book[k]) * np.float32(0.5)
        nearest = where(position > splat(midpoint), splat(levels.book[k]), nearest)
    return nearest


@inlined
def _share(
    sub_scale_G: Integers,
    first_group: int,
    x: Values,
    w: Values,
    ideal: Values,
    tried: Values,
    group_size: int,
    levels: Levels,
    sub_lowest: np.float32,
    sub_highest: np.float32,
) -> np.float32:
    """Choose the integers of all groups of a block (written to the first argument); return the scale they share."""
    groups = 256 // group_size
    extreme = _most_extreme(ideal, groups)
    best_scale, best_error, refined = np.float32(0), np.float32(np.inf), splat(0.0)
    for trial in range(_STARTS + 1):
        scale = nearest_half(splat(extreme / (sub_lowest + np.float32(trial)))) if trial < _STARTS else refined
        error, ss, rs = splat(0.0), splat(0.0), splat(0.0)
        for g in range(0, groups, 8):
            centre = rint(load(ideal, g) * reciprocal(scale))
            sub_scale, sums = _choose_integers(
                x, w, g * group_size, group_size, levels, scale, centre, sub_lowest, sub_highest
            )
            store(tried, g, sub_scale)
            error = error + sums.rr
            ss = fma(sub_scale * sub_scale, sums.vv, ss)
            rs = fma(sub_scale, sums.rv, rs)
        if sum_of_lanes(error) < best_error:
            best_scale, best_error = lane(scale, 0), sum_of_lanes(error)
            for g in range(0, groups, 8):
                put_integers(sub_scale_G, first_group + g, load(tried, g))
            curvature = sum_of_lanes(ss)
            if curvature > 0:
                refined = nearest_half(scale + splat(sum_of_lanes(rs) / curvature))
    return best_scale


@inlined
def _most_extreme(ideal: Values, groups: int) -> np.float32:
    """The ideal scale of largest magnitude, with its sign."""
    extreme = np.float32(0)
    for g in range(groups):
        if abs(ideal[g]) > abs(extreme):
            extreme = ideal[g]
    return extreme


@inlined
def _choose_integers(
    x: Values,
    w: Values,
    at: int,
    group_size: int,
    levels: Levels,
    scale: Lanes,
    centre: Lanes,
    sub_lowest: np.float32,
    sub_highest: np.float32,
) -> tuple[Lanes, Sums]:
    """The best of three integers around the ideal one, and the sums with it, for eight groups."""
    zero = splat(0.0)
    best_scale, best = zero, Sums(zero, zero, splat(_HUGE))
    for step in range(-1, 2):
        sub_scale = clamp(centre + splat(np.float32(step)), splat(sub_lowest), splat(sub_highest))
        sums = _measure(x, w, at, group_size, sub_scale * scale, levels)
        won = sums.rr < best.rr
        best_scale = where(won, sub_scale, best_scale)
        best = Sums(where(won, sums.vv, best.vv), where(won, sums.rv, best.rv), where(won, sums.rr, best.rr))
    return best_scale, best
