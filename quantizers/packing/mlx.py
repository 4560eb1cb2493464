"""MLX's affine layout: ``w = scale * q + bias`` with q counted from 0, as a bit stream along in_features.

The bias of a group is the value of q = 0, which is minus the scale times the zero point. In float32 it is exact for
float16 and bfloat16 scales. In a 16-bit dtype, which MLX models usually have, it is **rounded**, so that every weight
of the group has an error of up to 2⁻¹¹ (f16) or 2⁻⁸ (bf16) of the bias. Codes, scales and zero points are not affected.

Shapes: # O out  I in  G groups a row  W 32-bit words a row
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen3_export.errors import QuantizationError
from qwen3_export.quantizers.affine import AffineParams, ScaleDtype, round_scales
from qwen3_export.quantizers.packing.bits import from_unsigned, pack_words, to_unsigned, unpack_words
from qwen3_export.quantizers.packing.checks import group_size_of, require_bits, require_scales

__all__ = ["MlxAffine", "pack_mlx", "unpack_mlx"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MlxAffine:
    """``weight``, ``scales`` and ``biases``; scales and biases are numbers of one dtype, held as float32."""

    weight_OW: NDArray[np.uint32]
    scales_OG: NDArray[np.float32]
    biases_OG: NDArray[np.float32]


def pack_mlx(
    codes_OI: NDArray[np.int8], params: AffineParams, *, num_bits: int, dtype: ScaleDtype = "f32"
) -> MlxAffine:
    """Pack codes of 2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128."""
    require_bits("MLX", num_bits, (2, 3, 4, 5, 6, 8))
    size = group_size_of("MLX", codes_OI, params)
    if size not in (32, 64, 128):
        raise QuantizationError(f"MLX has groups of 32, 64 or 128 columns, not {size}")
    require_scales("MLX", params, dtype)
    zero_point_OG = to_unsigned(params.zero_point_RG, num_bits).astype(np.float32)
    return MlxAffine(
        weight_OW=pack_words(to_unsigned(codes_OI, num_bits), num_bits).view(np.uint32),
        scales_OG=params.scale_RG,
        biases_OG=round_scales(-params.scale_RG * zero_point_OG, dtype),
    )


def unpack_mlx(packed: MlxAffine, *, num_bits: int) -> tuple[NDArray[np.int8], AffineParams]:
    """Codes and parameters: the inverse of ``pack_mlx``. For weights with integer zero points only."""
    codes = from_unsigned(unpack_words(packed.weight_OW.view(np.int32), num_bits), num_bits)
    zero_point = np.rint(-packed.biases_OG / packed.scales_OG)
    if not ((zero_point >= 0) & (zero_point < 1 << num_bits)).all():
        raise QuantizationError("a bias of this MLX weight is no integer multiple of its scale")
    return codes, AffineParams(
        scale_RG=packed.scales_OG, zero_point_RG=from_unsigned(zero_point.astype(np.uint8), num_bits)
    )
