"""Search for the best scale and zero point of each group, where a value is ``scale * (code - zero_point)``.

For each group of weights x with importances w, the search minimizes  Σ w (x - scale·level)².  Levels are integers from
``low - zero_point`` to ``high - zero_point``, and each weight takes the nearest one. Plain rounding ("range") takes the
scale from the smallest and the largest weight, so that nothing is clipped. But a few clipped weights cost less than a
coarser step for all others, the more so the fewer the levels and the larger the group.

For fixed levels v the best scale is a quotient of sums, and its error follows from the same pass:

    change = Σ w r v / Σ w v²        error = Σ w r² - change · Σ w r v        with the residual r = x - scale·v

Levels jump when the scale changes, so the error has many local minima. Therefore:

1. *Scan.* Try windows, from a little wider than the full range to a narrower one. A window leaves something out above,
   below, or half on each side: that is the choice of the zero point (in a symmetric format of 2ⁿ levels: of the sign of
   the scale).
2. *Settle.* Round again under the best scale and solve again, also with the zero points next to the best one.
3. *Store.* Round the scale to its dtype, and try the neighbouring numbers of that dtype too. Compute the true error of
   each, and of the scale for the full range, and keep the best. So the result is never worse than plain rounding.

Eight groups are searched at a time, one a lane: ``x[8 * i + lane]`` is element i of the lane's group, and ``w`` holds
its weights in the same order. Functions here are compiled; they pass arguments by position only.

Shapes: # N groups, of all rows. Weights, importances and scratch are flat.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qwen3_export.quantizers.compile import inlined, kernel
from qwen3_export.quantizers.lanes import Lanes, clamp, fma, lane, load, maximum, minimum, rint, splat, where

__all__ = ["Limits", "Plan", "fit_groups"]

Values = NDArray[np.float32]

_HUGE = np.float32(3e38)
_SETTLING_ROUNDS = 2


class Limits(NamedTuple):
    """The range of codes; symmetric formats have no zero point."""

    low: int
    high: int
    symmetric: bool


class Plan(NamedTuple):
    """How to search: ``steps`` windows, from ``widest`` to ``narrowest`` times the full range (0 steps: the full range
    only); scales of ``significant`` bits, the next one at most ``neighbour`` away, relatively."""

    steps: int
    widest: float
    narrowest: float
    both_signs: bool
    significant: int
    neighbour: float


class Fit(NamedTuple):
    """A scale and a zero point for each lane, and the error under them."""

    scale: Lanes
    zero: Lanes
    error: Lanes


@kernel
def fit_groups(
    scale_N: Values,
    zero_point_N: NDArray[np.int8],
    values: Values,
    importance: Values,
    group_size: int,
    limits: Limits,
    plan: Plan,
) -> None:
    """Fill ``scale_N`` and ``zero_point_N``. ``importance`` has one row, or a value for each weight, or is empty."""
    count = scale_N.size
    x, w = np.empty(8 * group_size, np.float32), np.empty(8 * group_size, np.float32)
    for first in range(0, count, 8):
        for k in range(8):
            # Lanes after the last group repeat it.
            _gather(x, w, k, values, importance, min(first + k, count - 1) * group_size, group_size)
        best = _search(x, w, group_size, limits, plan)
        for k in range(min(8, count - first)):
            scale_N[first + k] = lane(best.scale, k)
            zero_point_N[first + k] = np.int8(lane(best.zero, k))


@inlined
def _gather(x: Values, w: Values, k: int, values: Values, importance: Values, start: int, group_size: int) -> None:
    """Put one group into lane k. If all its importances are zero, its values count alike, for a sensible scale."""
    total = np.float32(0)
    for i in range(group_size):
        x[8 * i + k] = values[start + i]
    if importance.size > 0:
        weights = importance[start % importance.size :]
        for i in range(group_size):
            w[8 * i + k] = weights[i]
            total += weights[i]
    if total <= 0:
        for i in range(group_size):
            w[8 * i + k] = np.float32(1)


@inlined
def _search(x: Values, w: Values, group_size: int, limits: Limits, plan: Plan) -> Fit:
    low, high = splat(0.0), splat(0.0)
    for i in range(group_size):
        low, high = minimum(low, load(x, 8 * i)), maximum(high, load(x, 8 * i))
    widest = _window(low, high, limits, np.float32(1), np.float32(0.5), np.float32(1))
    stored = _stored(x, w, group_size, limits, plan, widest.scale, widest.zero)
    if plan.steps > 0:
        best = _settle(x, w, group_size, limits, _scan(x, w, group_size, limits, plan, low, high))
        for side in range(-1, 2):
            scale = best.scale * splat(np.float32(1 + side * plan.neighbour))
            stored = _better(_stored(x, w, group_size, limits, plan, scale, best.zero), stored)
    # A scale of zero would do for reading, but runtimes divide by scales.
    empty = (stored.scale <= splat(0.0)) & (stored.scale >= splat(0.0))
    return Fit(where(empty, splat(1.0), stored.scale), stored.zero, stored.error)


@inlined
def _window(low: Lanes, high: Lanes, limits: Limits, share: np.float32, split: np.float32, sign: np.float32) -> Fit:
    """Scale and zero point for ``share`` of the range; ``split`` is the part of the rest that is left out below."""
    zero = splat(0.0)
    if limits.symmetric:
        bottom, top = np.float32(-1.0 / limits.low), np.float32(1.0 / limits.high)
        if sign < 0:
            bottom, top = top, bottom
        return Fit(maximum((zero - low) * splat(bottom), high * splat(top)) * splat(share * sign), zero, zero)
    steps = np.float32(limits.high - limits.low)
    scale = (high - low) * splat(share / steps)
    excess = (np.float32(1) / share - np.float32(1)) * steps
    code_of_low = splat(np.float32(limits.low) - excess * split)
    zero_point = rint(code_of_low - low * _reciprocal(scale))
    return Fit(scale, clamp(zero_point, splat(np.float32(limits.low)), splat(np.float32(limits.high))), zero)


@inlined
def _scan(x: Values, w: Values, group_size: int, limits: Limits, plan: Plan, low: Lanes, high: Lanes) -> Fit:
    best = Fit(splat(0.0), splat(0.0), splat(_HUGE))
    variants = (2 if plan.both_signs else 1) if limits.symmetric else 3
    for step in range(plan.steps):
        share = np.float32(plan.widest + (plan.narrowest - plan.widest) * step / (plan.steps - 1))
        for variant in range(variants):
            sign = np.float32(-1 if limits.symmetric and variant == 1 else 1)
            start = _window(low, high, limits, share, np.float32(0.5 * variant), sign)
            best = _better(_solve(x, w, group_size, limits, start.scale, start.zero), best)
    return best


@inlined
def _settle(x: Values, w: Values, group_size: int, limits: Limits, best: Fit) -> Fit:
    for _ in range(_SETTLING_ROUNDS):
        centre = best
        best = _solve(x, w, group_size, limits, centre.scale, centre.zero)
        if not limits.symmetric:
            for side in range(-1, 2, 2):
                zero_point = clamp(
                    centre.zero + splat(np.float32(side)),
                    splat(np.float32(limits.low)),
                    splat(np.float32(limits.high)),
                )
                best = _better(_solve(x, w, group_size, limits, centre.scale, zero_point), best)
    return best


@inlined
def _solve(x: Values, w: Values, group_size: int, limits: Limits, scale: Lanes, zero_point: Lanes) -> Fit:
    """Round to levels under this scale; return the best scale for these levels, and the error with it."""
    zero, inverse = splat(0.0), _reciprocal(scale)
    lowest, highest = splat(np.float32(limits.low)) - zero_point, splat(np.float32(limits.high)) - zero_point
    vv, rv, rr = zero, zero, zero
    for i in range(group_size):
        value, weight = load(x, 8 * i), load(w, 8 * i)
        level = clamp(rint(value * inverse), lowest, highest)
        residual = value - scale * level
        weighted_level = weight * level
        vv = fma(weighted_level, level, vv)
        rv = fma(weighted_level, residual, rv)
        rr = fma(weight * residual, residual, rr)
    change = rv * _reciprocal(vv)
    return Fit(scale + change, zero_point, rr - change * rv)


@inlined
def _stored(x: Values, w: Values, group_size: int, limits: Limits, plan: Plan, scale: Lanes, zero_point: Lanes) -> Fit:
    """The scale rounded to its dtype, and the true error with it."""
    scale = _nearest_stored(scale, plan.significant)
    zero, inverse = splat(0.0), _reciprocal(scale)
    lowest, highest = splat(np.float32(limits.low)) - zero_point, splat(np.float32(limits.high)) - zero_point
    error = zero
    for i in range(group_size):
        value = load(x, 8 * i)
        residual = value - scale * clamp(rint(value * inverse), lowest, highest)
        error = fma(load(w, 8 * i) * residual, residual, error)
    return Fit(scale, zero_point, error)


@inlined
def _nearest_stored(x: Lanes, significant: int) -> Lanes:
    """The nearest number of 24 (float32), 11 (float16) or 8 (bfloat16) significant bits.

    Adding and subtracting a multiple that shifts the lower bits out (Veltkamp's splitting) leaves the upper ones; below
    2**-14 float16 is a fixed-point number in units of 2**-24.
    """
    if significant == 24:
        return x
    shifted = x * splat(np.float32((1 << (24 - significant)) + 1))
    normal = shifted - (shifted - x)
    if significant == 8:
        return normal
    small = rint(x * splat(16777216.0)) * splat(1.0 / 16777216.0)
    tiny = (x < splat(2.0**-14)) & (x > splat(-(2.0**-14)))
    return where(tiny, small, clamp(normal, splat(-65504.0), splat(65504.0)))


@inlined
def _better(candidate: Fit, best: Fit) -> Fit:
    won = candidate.error < best.error
    return Fit(
        where(won, candidate.scale, best.scale),
        where(won, candidate.zero, best.zero),
        where(won, candidate.error, best.error),
    )


@inlined
def _reciprocal(x: Lanes) -> Lanes:
    """1 / x, and 0 where x is zero."""
    nonzero = (x > splat(0.0)) | (x < splat(0.0))
    return where(nonzero, splat(1.0) / x, splat(0.0))
