"""Find scales and zero points for rows of weights: prepares the search of ``search.py`` and runs it.

Shapes: # R rows  I columns  G groups a row  N = R * G groups
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qwen3_export.errors import QuantizationError
from qwen3_export.quantizers.affine.params import AffineParams
from qwen3_export.quantizers.affine.scale_dtypes import ScaleDtype
from qwen3_export.quantizers.affine.search import Limits, Plan, fit_groups

__all__ = ["Limits", "fit"]

Values = NDArray[np.float32]

_NEIGHBOUR = {"f32": 0.0, "f16": 2.0**-10, "bf16": 2.0**-7}
"""The largest relative distance from a scale to the next number of its dtype."""

_SIGNIFICANT = {"f32": 24, "f16": 11, "bf16": 8}


def fit(
    values_RI: Values,
    importance: Values | None,
    *,
    group_size: int,
    limits: Limits,
    scale_dtype: ScaleDtype,
    negative_scales: bool,
    scan: bool,
) -> AffineParams:
    """Scales and zero points of whole groups; see ``AffineFormat.fit``."""
    rows, columns = values_RI.shape
    groups = columns // group_size
    scale_N, zero_point_N = np.empty(rows * groups, np.float32), np.empty(rows * groups, np.int8)
    steps, widest, narrowest = _windows(limits, group_size)
    plan = Plan(
        steps=steps if scan else 0,
        widest=widest,
        narrowest=narrowest,
        both_signs=negative_scales,
        significant=_SIGNIFICANT[scale_dtype],
        neighbour=_NEIGHBOUR[scale_dtype],
    )
    values = np.ascontiguousarray(values_RI, np.float32).reshape(-1)
    fit_groups(scale_N, zero_point_N, values, _normalized(importance, values_RI.shape), group_size, limits, plan)
    return AffineParams(scale_RG=scale_N.reshape(rows, groups), zero_point_RG=zero_point_N.reshape(rows, groups))


def _windows(limits: Limits, group_size: int) -> tuple[int, float, float]:
    """How many windows to try, and the widest and the narrowest of them, as shares of a group's range.

    The widest window exceeds the range, because that can put important weights exactly on levels. The narrowest is
    derived from normally distributed weights. With so many levels, a quantizer has the smallest error at a certain
    half-width: 1.5 standard deviations for 4 levels, about 0.55 more for each further bit. That half-width is divided
    by the largest magnitude expected in the group, and made a fifth smaller, because weights have heavier tails. It is
    a half at most, because the weights at the ends of the range may be unimportant. With 64 levels and more there is
    less to gain, and finer steps find it.
    """
    if limits.high - limits.low > 32:
        return 12, 1.1, 0.7
    bits = np.log2(limits.high - limits.low + 1)
    best, largest = 0.4 + 0.55 * bits, np.sqrt(2 * np.log(max(group_size, 8)))
    return 16, 1.25, float(min(0.8 * best / largest, 0.5))


def _normalized(importance: Values | None, shape: tuple[int, ...]) -> Values:
    """Importances as one flat array, scaled so that the largest of a row is about 1: no product over- or underflows."""
    if importance is None:
        return np.empty(0, np.float32)
    if importance.shape not in (shape, shape[1:]):
        raise QuantizationError(f"`importance` of shape {importance.shape} does not fit weights of shape {shape}")
    if not (importance.min(initial=0) >= 0 and np.isfinite(importance).all()):
        raise QuantizationError("`importance` holds a negative or non-finite number; it must be a mean of squares")
    largest = importance.max(axis=-1, keepdims=True, initial=0)
    # Scaling by a power of two changes no digit.
    return np.ascontiguousarray(np.ldexp(importance, -np.frexp(largest)[1]), np.float32).reshape(-1)
