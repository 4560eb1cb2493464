"""Find better scales for given codes of an affine format, under a whole Hessian.

With value = scale · (code - zero_point) and u the levels (code - zero_point) of a group, changing its scale by a
changes the quadratic error by  2a g'u + a² u'Hu  (H the metric, g = H (value - target)), which is least at
a = -g'u / u'Hu.  The new scale is rounded to its dtype, and kept where the error fell.  Zero points stay.

Shapes: # R rows  J columns of one slab  G groups of one slab  C columns of one group
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qwen3_export.quantizers.affine.params import AffineParams
from qwen3_export.quantizers.affine.scale_dtypes import ScaleDtype, round_scales

__all__ = ["refit_scales"]

Values = NDArray[np.float32]


def refit_scales(
    codes_RJ: NDArray[np.int8],
    params: AffineParams,
    *,
    gradient_RJ: Values,
    metric_JJ: Values,
    scale_dtype: ScaleDtype,
) -> tuple[AffineParams, Values]:
    """Parameters with better scales, found one group after the other, and the gradient with them.

    A scale never changes its sign and never becomes zero.
    """
    scale_RG, gradient_RJ = params.scale_RG.copy(), gradient_RJ.copy()
    size = codes_RJ.shape[1] // scale_RG.shape[1]
    for g in range(scale_RG.shape[1]):
        group = slice(g * size, (g + 1) * size)
        levels_RC = codes_RJ[:, group].astype(np.float32) - params.zero_point_RG[:, g : g + 1]
        product_RJ = levels_RC @ metric_JJ[group]
        slope_R = np.einsum("rc,rc->r", gradient_RJ[:, group], levels_RC)
        curve_R = np.einsum("rc,rc->r", product_RJ[:, group], levels_RC)
        step_R = np.divide(-slope_R, curve_R, out=np.zeros_like(slope_R), where=curve_R > 0)
        moved_R = round_scales(scale_RG[:, g] + step_R, scale_dtype)
        change_R = moved_R - scale_RG[:, g]
        is_better = (2 * change_R * slope_R + change_R**2 * curve_R < 0) & (moved_R * scale_RG[:, g] > 0)
        change_R = np.where(is_better, change_R, np.float32(0))
        scale_RG[:, g] += change_R
        gradient_RJ += change_R[:, None] * product_RJ
    return replace(params, scale_RG=scale_RG), gradient_RJ
