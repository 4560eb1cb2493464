"""The search for a scale: formats in which a value is ``scale * level``, without an offset.

The levels are the integers from ``lowest`` to ``highest``, or a code book (IQ4). For each group of 16 or 32 weights x
with weights w, the search minimizes  Σ w (x - scale·level)²  where each level is the nearest one. For fixed levels the
best scale is a quotient of sums, and the error follows from the same sums; but levels jump as the scale moves, so
scales are scanned first (see ``affine.py``, of which this is the simpler sibling):

1. *Scan.* The range of levels is not symmetric (-8 … 7). A positive scale lets the most extreme weight fall on one end,
   a negative one on the other; both are tried, each a little clipped or stretched, and refined by least squares.
2. *Settle.* Round again under the best scale and solve again.
3. *Share.* Blocks of 256 store a group's scale as an integer times one float16. The integers next to the ideal ones are
   tried with their true error; then the float16 is solved for in closed form; and again. The best round is kept.

Shapes: # N blocks  E elements a block  G groups a block
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
    settle_weights,
    sum_of_squares,
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
_SHARING_ROUNDS = 2


class SymmetricGrid(NamedTuple):
    """The scales that are tried: those which put the most extreme weight at ``lowest * (1 + u)`` for ``2 * steps + 1``
    values of u from -reach to reach, and, if ``both_ends``, at ``highest * (1 + u)`` as well."""

    reach: float
    steps: int
    both_ends: bool


class Levels(NamedTuple):
    """What codes stand for: the integers from lowest to highest, unless ``book`` lists the levels."""

    lowest: np.float32
    highest: np.float32
    book: Values


class Sums(NamedTuple):
    """What one pass over eight groups leaves; v is the level, r the residual ``x - scale * v``."""

    vv: Lanes
    rv: Lanes
    rr: Lanes


@kernel
def fit_symmetric_blocks(
    block_scale_N: Values, values_NE: Values, importance: Values, grid: SymmetricGrid, levels: Levels, spread: float
) -> None:
    """Q4_0, Q5_0, Q8_0, IQ4_NL: a block is a group, and its scale is a float16 itself."""
    blocks, group_size = values_NE.shape
    source = values_NE.reshape(values_NE.size)
    x, w = np.empty(8 * group_size, np.float32), np.empty(8 * group_size, np.float32)
    for n in range(0, blocks, 8):
        count = min(8, blocks - n)
        gather_groups(x, source, n * group_size, group_size, count)
        gather_weights(w, importance, n * group_size, group_size, count)
        mean_square = sum_of_squares(x, group_size) * splat(np.float32(spread / group_size))
        settle_weights(w, x, group_size, mean_square)
        scale = nearest_half(_search_scale(x, w, group_size, levels, grid))
        for k in range(count):
            block_scale_N[n + k] = lane(scale, k)


@kernel
def fit_symmetric_superblocks(
    block_scale_N: Values,
    sub_scale_NG: Integers,
    values_NE: Values,
    importance: Values,
    grid: SymmetricGrid,
    levels: Levels,
    sub_lowest: int,
    sub_highest: int,
    spread: float,
) -> None:
    """Q3_K, Q6_K, IQ4_XS: the scale of a group is an integer times a float16 of the block."""
    blocks, elements = values_NE.shape
    group_size = elements // sub_scale_NG.shape[1]
    tiles = sub_scale_NG.shape[1] // 8
    source = values_NE.reshape(values_NE.size)
    x, w = np.empty((tiles, 8 * group_size), np.float32), np.empty((tiles, 8 * group_size), np.float32)
    ideal, tried = np.empty((tiles, 8), np.float32), np.empty((tiles, 8), np.float32)
    for n in range(blocks):
        squares = splat(0.0)
        for t in range(tiles):
            start = n * elements + t * 8 * group_size
            gather_groups(x[t], source, start, group_size, 8)
            gather_weights(w[t], importance, start, group_size, 8)
            squares = squares + sum_of_squares(x[t], group_size)
        mean_square = splat(sum_of_lanes(squares) * np.float32(spread / elements))
        for t in range(tiles):
            settle_weights(w[t], x[t], group_size, mean_square)
            store(ideal[t], 0, _search_scale(x[t], w[t], group_size, levels, grid))
        block_scale_N[n] = _share(
            sub_scale_NG[n], x, w, ideal, tried, group_size, levels, np.float32(sub_lowest), np.float32(sub_highest)
        )


@inlined
def _search_scale(x: Values, w: Values, group_size: int, levels: Levels, grid: SymmetricGrid) -> Lanes:
    """The best scale for each of eight groups, before any sharing."""
    low, high = splat(0.0), splat(0.0)
    for i in range(group_size):
        low, high = minimum(low, load(x, 8 * i)), maximum(high, load(x, 8 * i))
    extreme = where(splat(0.0) - low > high, low, high)
    best_scale, best_error = splat(0.0), splat(_HUGE)
    for end in range(2 if grid.both_ends else 1):
        level = levels.highest if end else levels.lowest
        for step in range(-grid.steps, grid.steps + 1):
            target = np.float32(level * (1 + grid.reach * step / grid.steps))
            scale = extreme * splat(np.float32(1) / target)
            sums = _measure(x, w, group_size, scale, levels)
            change = sums.rv * reciprocal(sums.vv)
            error = sums.rr - change * sums.rv
            won = error < best_error
            best_error, best_scale = where(won, error, best_error), where(won, scale + change, best_scale)
    for _ in range(_SETTLING_ROUNDS):
        sums = _measure(x, w, group_size, best_scale, levels)
        best_scale = best_scale + sums.rv * reciprocal(sums.vv)
    return best_scale


@inlined
def _measure(x: Values, w: Values, group_size: int, scale: Lanes, levels: Levels) -> Sums:
    """Round to the nearest levels and take the sums."""
    zero, inverse = splat(0.0), reciprocal(scale)
    sums = Sums(zero, zero, zero)
    for i in range(group_size):
        value, weight = load(x, 8 * i), load(w, 8 * i)
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
    x: Values,
    w: Values,
    ideal: Values,
    tried: Values,
    group_size: int,
    levels: Levels,
    sub_lowest: np.float32,
    sub_highest: np.float32,
) -> np.float32:
    """Choose the integers of all groups of a block (written to the first argument) and the scale they share."""
    tiles = x.shape[0]
    scale = nearest_half(splat(_most_extreme(ideal) / sub_lowest))
    best_scale, best_error = np.float32(0), np.float32(np.inf)
    for _ in range(_SHARING_ROUNDS):
        error, ss, rs = splat(0.0), splat(0.0), splat(0.0)
        for t in range(tiles):
            centre = rint(load(ideal[t], 0) * reciprocal(scale))
            won_scale, won = _choose_integers(x[t], w[t], group_size, levels, scale, centre, sub_lowest, sub_highest)
            store(tried[t], 0, won_scale)
            error = error + won.rr
            ss = fma(won_scale * won_scale, won.vv, ss)
            rs = fma(won_scale, won.rv, rs)
        if sum_of_lanes(error) < best_error:
            best_scale, best_error = lane(scale, 0), sum_of_lanes(error)
            for t in range(tiles):
                put_integers(sub_scale_G, 8 * t, load(tried[t], 0))
        curvature = sum_of_lanes(ss)
        if curvature > 0:
            scale = nearest_half(scale + splat(sum_of_lanes(rs) / curvature))
    return best_scale


@inlined
def _most_extreme(ideal: Values) -> np.float32:
    """The ideal scale of largest magnitude, with its sign."""
    extreme = np.float32(0)
    for t in range(ideal.shape[0]):
        for k in range(8):
            if abs(ideal[t, k]) > abs(extreme):
                extreme = ideal[t, k]
    return extreme


@inlined
def _choose_integers(
    x: Values,
    w: Values,
    group_size: int,
    levels: Levels,
    scale: Lanes,
    centre: Lanes,
    sub_lowest: np.float32,
    sub_highest: np.float32,
) -> tuple[Lanes, Sums]:
    """The best of three integers about the ideal one, and the sums under it, for eight groups."""
    zero = splat(0.0)
    best_scale, best = zero, Sums(zero, zero, splat(_HUGE))
    for step in range(-1, 2):
        sub_scale = clamp(centre + splat(np.float32(step)), splat(sub_lowest), splat(sub_highest))
        sums = _measure(x, w, group_size, sub_scale * scale, levels)
        won = sums.rr < best.rr
        best_scale = where(won, sub_scale, best_scale)
        best = Sums(where(won, sums.vv, best.vv), where(won, sums.rv, best.rv), where(won, sums.rr, best.rr))
    return best_scale, best
