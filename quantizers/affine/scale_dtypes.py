"""The number types in which runtimes keep scales, and rounding to them.

Scales are held as float32 here, whatever type they are stored in: every float16 or bfloat16 number is a float32 number
too. The type matters to the search. XNNPACK rounds the scales of int4 groups to bfloat16, whose eight significant bits
are 0.2 % of a weight; a search that ignores this loses what it gained.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

__all__ = ["LARGEST_WEIGHT", "SCALE_DTYPES", "ScaleDtype", "round_scales"]

ScaleDtype = Literal["f32", "f16", "bf16"]
SCALE_DTYPES: tuple[ScaleDtype, ...] = get_args(ScaleDtype)

LARGEST_WEIGHT = {"f32": 1e15, "f16": 65504.0, "bf16": 1e15}
"""The largest weight that a search accepts: float16 holds no more, and larger squares overflow float32."""


def round_scales(scale: NDArray[np.float32], dtype: ScaleDtype) -> NDArray[np.float32]:
    """The nearest numbers of ``dtype``, ties to even, as float32."""
    if dtype == "f32":
        return scale
    if dtype == "f16":
        return scale.astype(np.float16).astype(np.float32)
    bits = np.ascontiguousarray(scale, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)
