"""Checks of codes and parameters before they are packed."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from qwen3_export.errors import QuantizationError
from qwen3_export.quantizers.affine import AffineParams, ScaleDtype, round_scales

__all__ = ["group_size_of", "require_bits", "require_scales", "require_symmetric"]


def require_bits(form: str, num_bits: int, allowed: Collection[int]) -> None:
    """Refuse a number of bits that the packing does not have."""
    if num_bits not in allowed:
        raise QuantizationError(f"{form} stores {', '.join(map(str, sorted(allowed)))} bits, not {num_bits}")


def require_symmetric(form: str, params: AffineParams) -> None:
    """Refuse zero points."""
    if params.zero_point_RG.any():
        raise QuantizationError(f"{form} has no zero points; use a symmetric format")


def require_scales(form: str, params: AffineParams, dtype: ScaleDtype) -> None:
    """Refuse scales that the packing would have to round: a format with this scale dtype rounds them better."""
    if not np.array_equal(round_scales(params.scale_RG, dtype), params.scale_RG):
        raise QuantizationError(f"{form} stores {dtype} scales, and these are not; use `scale_dtype={dtype!r}`")


def group_size_of(form: str, codes_OI: NDArray[np.int8], params: AffineParams) -> int:
    """The number of columns of a group; QuantizationError if codes and parameters belong to different weights."""
    rows, columns = codes_OI.shape
    groups = int(params.scale_RG.shape[1])
    if params.scale_RG.shape[0] != rows or columns % groups:
        raise QuantizationError(
            f"{form}: codes of shape {codes_OI.shape} do not go with scales of shape {params.scale_RG.shape}"
        )
    return int(columns) // groups
