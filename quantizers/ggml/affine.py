"""Search for the best scale and offset of each group, where a value is ``scale * code - offset``.

For each group of 16 or 32 weights x with importances w, the search minimizes  Σ w (x - scale·code + offset)²,  where
each weight takes the nearest code. For fixed codes this is a linear least-squares problem of two unknowns. But codes
jump when the scale changes, so the error has hundreds of local minima, and which of them is found matters more than
anything else (5 to 20 % of the error). Therefore:

1. *Scan.* For a grid of windows, each a little narrower or wider than the range of the group, round to codes, and
   compute the least-squares scale and offset for these codes. One pass over the group gives the five sums

       Σ w c    Σ w c²    Σ w r    Σ w r c    Σ w r²      with the residual  r = x - scale·c + offset

   from which the solution and its error follow in closed form. The sums are over residuals and not over x itself,
   because otherwise digits would cancel: the error of a 6-bit group is a ten-thousandth of Σ w x².
2. *Settle.* Round again under the best solution and solve again, twice.
3. *Share.* Blocks of 256 store the scale and the offset of a group as small integers times two float16 numbers that all
   groups share. Integers next to the ideal ones are tried, each with its true error, which includes rounding the codes
   again. Then the two float16 numbers are solved for in closed form, given all integers and codes. Both are repeated,
   and the best round is kept.

llama.cpp's ``make_qkx3_quants`` does a part of (1) along one line of the grid; (2) and (3) lower the error further.

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
    largest_lane,
    load,
    maximum,
    minimum,
    rint,
    splat,
    store,
    sum_of_lanes,
    where,
)

__all__ = ["AffineGrid", "fit_affine_blocks", "fit_affine_superblocks"]

Values = NDArray[np.float32]
Integers = NDArray[np.int16]

_HUGE = np.float32(3e38)
_SETTLING_ROUNDS = 2
_SHARING_ROUNDS = 2


class AffineGrid(NamedTuple):
    """The windows that are tried.

    The upper end is moved in ``uppers`` steps, so that the range takes ``highest + first`` to ``highest + last`` codes
    instead of ``highest``. The lower end is raised by 0, 1, … ``lowers - 1`` times ``lower_step`` of the range.
    """

    first: float
    last: float
    uppers: int
    lower_step: float
    lowers: int


class Sums(NamedTuple):
    """The sums of one pass over eight groups; c is the code, r the residual."""

    c: Lanes
    cc: Lanes
    r: Lanes
    rc: Lanes
    rr: Lanes


class Line(NamedTuple):
    """A scale and an offset, and the weighted squared error under them."""

    scale: Lanes
    offset: Lanes
    error: Lanes


@kernel
def fit_affine_blocks(
    block_scale_N: Values,
    block_offset_N: Values,
    values: Values,
    importance: Values,
    columns: int,
    group_size: int,
    grid: AffineGrid,
    highest: int,
    spread: float,
) -> None:
    """Fit Q4_1 and Q5_1, where a block is one group with a float16 scale and offset of its own.

    ``values`` holds rows of ``columns`` weights, one after the other, each of at least eight blocks. ``importance`` has
    one row, or as many rows, or is empty.
    """
    top = np.float32(highest)
    x, w = np.empty(8 * group_size, np.float32), np.empty(8 * group_size, np.float32)
    for row in range(0, values.size, columns):
        for column in range(0, columns, 8 * group_size):
            # The last eight blocks of a row may overlap the eight before them, which gives the same results again.
            start = row + min(column, columns - 8 * group_size)
            squares = gather_groups(x, 0, values, start, group_size)
            mean_square = squares * splat(np.float32(spread / group_size))
            weights_start = start % importance.size if importance.size else 0
            total_weight = gather_weights(w, x, 0, importance, weights_start, group_size, mean_square)
            line = _search_line(x, w, 0, group_size, total_weight, top, splat(-_HUGE), grid)
            store(block_scale_N, start // group_size, nearest_half(line.scale))
            store(block_offset_N, start // group_size, nearest_half(line.offset))


@kernel
def fit_affine_superblocks(
    block_scale_N: Values,
    block_offset_N: Values,
    sub_scale_G: Integers,
    sub_offset_G: Integers,
    values: Values,
    importance: Values,
    group_size: int,
    grid: AffineGrid,
    highest: int,
    sub_highest: int,
    spread: float,
) -> None:
    """Fit Q2_K, Q4_K and Q5_K, where a group has integers that multiply two float16 numbers of its block.

    ``values`` holds blocks of 256, one after the other. ``importance`` has as many values, or one row, or is empty.
    """
    top = np.float32(highest)
    x, w, ideal = np.empty(256, np.float32), np.empty(256, np.float32), np.empty(2 * _IDEALS, np.float32)
    for n in range(values.size // 256):
        squares = splat(0.0)
        for at in range(0, 256, 8 * group_size):
            squares = squares + gather_groups(x, at, values, 256 * n + at, group_size)
        mean_square = splat(sum_of_lanes(squares) * np.float32(spread / 256))
        weights_start = 256 * n % importance.size if importance.size else 0
        for at in range(0, 256, 8 * group_size):
            total_weight = gather_weights(w, x, at, importance, weights_start + at, group_size, mean_square)
            line = _search_line(x, w, at, group_size, total_weight, top, splat(0.0), grid)
            sums = _measure(x, w, at, group_size, line.scale, line.offset, top)
            kept = _IDEALS * (at // (8 * group_size))
            store(ideal, kept + _SCALE, line.scale)
            store(ideal, kept + _OFFSET, line.offset)
            store(ideal, kept + _WEIGHT, total_weight)
            store(ideal, kept + _MEAN_CODE, sums.c * reciprocal(total_weight))
        first_group = n * (256 // group_size)
        scale, offset = _share(
            sub_scale_G, sub_offset_G, first_group, x, w, ideal, group_size, top, np.float32(sub_highest)
        )
        block_scale_N[n] = scale
        block_offset_N[n] = offset


# Places of eight groups' vectors in the array that is kept between scan and sharing: the ideal scale and offset, the
# sum of importances, the mean code, and the integers that are tried.
_SCALE, _OFFSET, _WEIGHT, _MEAN_CODE, _SUB_SCALE, _SUB_OFFSET = range(0, 48, 8)
_IDEALS = 48


@inlined
def _search_line(
    x: Values,
    w: Values,
    at: int,
    group_size: int,
    total_weight: Lanes,
    highest: np.float32,
    floor: Lanes,
    grid: AffineGrid,
) -> Line:
    """The best scale and offset for eight groups, before any sharing. The offset is at least ``floor``."""
    low, high = load(x, at), load(x, at)
    for i in range(1, group_size):
        low, high = minimum(low, load(x, at + 8 * i)), maximum(high, load(x, at + 8 * i))
    low = minimum(low, splat(0.0) - floor)
    best = Line(splat(0.0), splat(0.0) - low, splat(_HUGE))
    for lower in range(grid.lowers):
        offset = maximum((high - low) * splat(np.float32(-lower * grid.lower_step)) - low, floor)
        for upper in range(grid.uppers):
            extra = grid.first + (grid.last - grid.first) * upper / (grid.uppers - 1)
            scale = (high + offset) * splat(np.float32(1 / (highest + extra)))
            best = _better(_solve(x, w, at, group_size, total_weight, highest, floor, scale, offset), best)
    for _ in range(_SETTLING_ROUNDS):
        best = _solve(x, w, at, group_size, total_weight, highest, floor, best.scale, best.offset)
    return best


@inlined
def _better(candidate: Line, best: Line) -> Line:
    won = candidate.error < best.error
    return Line(
        where(won, candidate.scale, best.scale),
        where(won, candidate.offset, best.offset),
        where(won, candidate.error, best.error),
    )


@inlined
def _measure(x: Values, w: Values, at: int, group_size: int, scale: Lanes, offset: Lanes, highest: np.float32) -> Sums:
    """Round to the nearest codes and take the sums."""
    zero, top, inverse = splat(0.0), splat(highest), reciprocal(scale)
    sums = Sums(zero, zero, zero, zero, zero)
    for i in range(group_size):
        shifted = load(x, at + 8 * i) + offset
        code = clamp(rint(shifted * inverse), zero, top)
        residual = shifted - scale * code
        weighted_code, weighted_residual = load(w, at + 8 * i) * code, load(w, at + 8 * i) * residual
        sums = Sums(
            sums.c + weighted_code,
            fma(weighted_code, code, sums.cc),
            sums.r + weighted_residual,
            fma(weighted_code, residual, sums.rc),
            fma(weighted_residual, residual, sums.rr),
        )
    return sums


@inlined
def _solve(
    x: Values,
    w: Values,
    at: int,
    group_size: int,
    total_weight: Lanes,
    highest: np.float32,
    floor: Lanes,
    scale: Lanes,
    offset: Lanes,
) -> Line:
    """Round under this scale and offset; return the least-squares scale and offset for these codes.

    The unknowns are the changes a and b of scale and offset; the error is quadratic in them. If the offset would fall
    below its floor, it stays there, and only the scale is solved for. If rounding noise makes the solution worse than
    its start, the start is kept.
    """
    sums = _measure(x, w, at, group_size, scale, offset, highest)
    zero, two = splat(0.0), splat(2.0)
    determinant = sums.cc * total_weight - sums.c * sums.c
    regular = determinant > splat(1e-6) * sums.cc * total_weight
    inverse = where(regular, splat(1.0) / determinant, zero)
    a = (sums.rc * total_weight - sums.c * sums.r) * inverse
    b = (sums.c * sums.rc - sums.cc * sums.r) * inverse
    barred = b < floor - offset
    b = where(barred, floor - offset, b)
    a = where(barred, (sums.rc + b * sums.c) * reciprocal(sums.cc), a)
    error = sums.rr + a * (a * sums.cc - two * (sums.rc + b * sums.c)) + b * (b * total_weight + two * sums.r)
    sound = (scale + a > zero) & (error <= sums.rr)
    return Line(
        where(sound, scale + a, scale), where(sound, offset + b, offset), where(sound, maximum(error, zero), sums.rr)
    )


@inlined
def _share(
    sub_scale_G: Integers,
    sub_offset_G: Integers,
    first_group: int,
    x: Values,
    w: Values,
    ideal: Values,
    group_size: int,
    highest: np.float32,
    sub_highest: np.float32,
) -> tuple[np.float32, np.float32]:
    """Choose the integers of all groups of a block (written to the first two arguments); return the shared numbers."""
    tiles = 32 // group_size
    scale, offset = _first_shared(ideal, tiles, sub_highest)
    best_scale, best_offset, best_error = np.float32(0), np.float32(0), np.float32(np.inf)
    for _ in range(_SHARING_ROUNDS):
        error, zero = splat(0.0), splat(0.0)
        ss, so, oo, rs, ro = zero, zero, zero, zero, zero
        for t in range(tiles):
            kept = _IDEALS * t
            sums = _choose_integers(
                x, w, 8 * group_size * t, group_size, ideal, kept, scale, offset, highest, sub_highest
            )
            sub_scale, sub_offset = load(ideal, kept + _SUB_SCALE), load(ideal, kept + _SUB_OFFSET)
            error = error + sums.rr
            ss = fma(sub_scale * sub_scale, sums.cc, ss)
            so = fma(sub_scale * sub_offset, sums.c, so)
            oo = fma(sub_offset * sub_offset, load(ideal, kept + _WEIGHT), oo)
            rs = fma(sub_scale, sums.rc, rs)
            ro = fma(sub_offset, sums.r, ro)
        if sum_of_lanes(error) < best_error:
            best_scale, best_offset, best_error = lane(scale, 0), lane(offset, 0), sum_of_lanes(error)
            for t in range(tiles):
                put_integers(sub_scale_G, first_group + 8 * t, load(ideal, _IDEALS * t + _SUB_SCALE))
                put_integers(sub_offset_G, first_group + 8 * t, load(ideal, _IDEALS * t + _SUB_OFFSET))
        a, b = _solve_shared(sum_of_lanes(ss), sum_of_lanes(so), sum_of_lanes(oo), sum_of_lanes(rs), sum_of_lanes(ro))
        scale = nearest_half(maximum(scale + splat(a), zero))
        offset = nearest_half(maximum(offset + splat(b), zero))
    return best_scale, best_offset


@inlined
def _first_shared(ideal: Values, tiles: int, sub_highest: np.float32) -> tuple[Lanes, Lanes]:
    """Shared numbers under which the largest ideal scale and offset get the largest integer."""
    scale, offset = load(ideal, _SCALE), load(ideal, _OFFSET)
    for t in range(1, tiles):
        scale = maximum(scale, load(ideal, _IDEALS * t + _SCALE))
        offset = maximum(offset, load(ideal, _IDEALS * t + _OFFSET))
    unit = np.float32(1) / sub_highest
    return nearest_half(splat(largest_lane(scale) * unit)), nearest_half(splat(largest_lane(offset) * unit))


@inlined
def _solve_shared(
    ss: np.float32, so: np.float32, oo: np.float32, rs: np.float32, ro: np.float32
) -> tuple[np.float32, np.float32]:
    """The changes a, b of the shared scale and offset that minimize Σ w (r - a·sub_scale·c + b·sub_offset)²."""
    determinant = ss * oo - so * so
    if determinant > np.float32(1e-6) * ss * oo:
        return (rs * oo - so * ro) / determinant, (so * rs - ss * ro) / determinant
    if ss > 0:
        return rs / ss, np.float32(0)
    return np.float32(0), np.float32(0)


@inlined
def _choose_integers(
    x: Values,
    w: Values,
    at: int,
    group_size: int,
    ideal: Values,
    kept: int,
    scale: Lanes,
    offset: Lanes,
    highest: np.float32,
    sub_highest: np.float32,
) -> Sums:
    """Write the best integers of eight groups under shared numbers to ``ideal``; return the sums with them.

    Tried are three sub-scales around the ideal one, each with the offset that least squares pairs with it (when the
    scale changes by a, the offset follows by a times the mean code), and then the sub-offsets next to the winner's.
    """
    top, best_error = splat(sub_highest), splat(_HUGE)
    best_scale, best_offset, middle = splat(0.0), splat(0.0), splat(0.0)
    ideal_scale = load(ideal, kept + _SCALE)
    centre, per_offset = rint(ideal_scale * reciprocal(scale)), reciprocal(offset)
    for trial in range(5):
        if trial < 3:
            sub_scale = clamp(centre + splat(np.float32(trial - 1)), splat(0.0), top)
            paired = load(ideal, kept + _OFFSET) + (sub_scale * scale - ideal_scale) * load(ideal, kept + _MEAN_CODE)
            sub_offset = clamp(rint(paired * per_offset), splat(0.0), top)
        else:
            middle = best_offset if trial == 3 else middle
            sub_scale = best_scale
            sub_offset = clamp(middle + splat(np.float32(2 * trial - 7)), splat(0.0), top)
        error = _error(x, w, at, group_size, sub_scale * scale, sub_offset * offset, highest)
        won = error < best_error
        best_error = where(won, error, best_error)
        best_scale, best_offset = where(won, sub_scale, best_scale), where(won, sub_offset, best_offset)
    store(ideal, kept + _SUB_SCALE, best_scale)
    store(ideal, kept + _SUB_OFFSET, best_offset)
    return _measure(x, w, at, group_size, best_scale * scale, best_offset * offset, highest)


@inlined
def _error(x: Values, w: Values, at: int, group_size: int, scale: Lanes, offset: Lanes, highest: np.float32) -> Lanes:
    """The weighted squared error alone."""
    zero, top, inverse = splat(0.0), splat(highest), reciprocal(scale)
    total = zero
    for i in range(group_size):
        shifted = load(x, at + 8 * i) + offset
        residual = shifted - scale * clamp(rint(shifted * inverse), zero, top)
        total = fma(load(w, at + 8 * i) * residual, residual, total)
    return total
