"""Round values to codes under given scales and zero points.

Shapes: # R rows  I columns  G groups a row

The group size is I / G. So a single column of every row can be rounded too: values [R, 1] under scales [R, 1].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qwen3_export.quantizers.compile import kernel

__all__ = ["round_to_codes"]


@kernel
def round_to_codes(
    codes_RI: NDArray[np.int8],
    values_RI: NDArray[np.float32],
    scale_RG: NDArray[np.float32],
    zero_point_RG: NDArray[np.int8],
    low: int,
    high: int,
) -> None:
    """Fill ``codes_RI`` with the nearest codes; where the scale is zero, with the zero point."""
    group_size = values_RI.shape[1] // scale_RG.shape[1]
    for r in range(values_RI.shape[0]):
        for g in range(scale_RG.shape[1]):
            scale, zero = scale_RG[r, g], np.float32(zero_point_RG[r, g])
            inverse = np.float32(1) / scale if scale != 0 else np.float32(0)
            lowest, highest = np.float32(low) - zero, np.float32(high) - zero
            for i in range(g * group_size, (g + 1) * group_size):
                level = min(max(np.rint(values_RI[r, i] * inverse), lowest), highest)
                codes_RI[r, i] = np.int8(level + zero)
