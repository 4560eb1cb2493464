"""ONNX Runtime's ``com.microsoft::MatMulNBits``, and ``GatherBlockQuantized``, which can use the same initializers.

Source: onnxruntime's ContribOperators.md. Weights are [O, G, group · bits / 8] bytes, codes counted from 0, the lowest
bits first; zero points are packed the same way within a row and fill up its last byte. Without zero points the
operator takes ``2 ** (num_bits - 1)``, which is 0 in signed codes.

Shapes: # O out  I in  G groups (blocks, in ONNX) a row  Y bytes a block
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen3_export.errors import QuantizationError
from qwen3_export.quantizers.affine import AffineParams
from qwen3_export.quantizers.packing.bits import from_unsigned, pack_bits, to_unsigned, unpack_bits
from qwen3_export.quantizers.packing.checks import group_size_of, require_bits

__all__ = ["MatMulNBits", "pack_matmul_nbits", "unpack_matmul_nbits"]

FORM = "MatMulNBits"


@dataclass(frozen=True, slots=True, kw_only=True)
class MatMulNBits:
    """The operator's inputs B, scales and zero_points (None where all are the default)."""

    weight_OGY: NDArray[np.uint8]
    scale_OG: NDArray[np.float32]
    zero_points_OY: NDArray[np.uint8] | None


def pack_matmul_nbits(
    codes_OI: NDArray[np.int8], params: AffineParams, *, num_bits: int, has_zero_points: bool | None = None
) -> MatMulNBits:
    """Pack codes of 2, 4 or 8 bits; group sizes are powers of two, 16 or more.

    With ``has_zero_points`` None they are left out if all are the default; a block of rows of a matrix must be told.
    """
    require_bits(FORM, num_bits, (2, 4, 8))
    size = group_size_of(FORM, codes_OI, params)
    if size < 16 or size & (size - 1):
        raise QuantizationError(f"{FORM} has blocks of 16, 32, 64, 128 or 256 columns, not {size}")
    rows, groups = params.scale_RG.shape
    weight = pack_bits(to_unsigned(codes_OI, num_bits).reshape(rows, groups, size), num_bits)
    if has_zero_points is None:
        has_zero_points = bool(params.zero_point_RG.any())
    zero_points = _pack_zero_points(params.zero_point_RG, num_bits) if has_zero_points else None
    return MatMulNBits(weight_OGY=weight, scale_OG=params.scale_RG, zero_points_OY=zero_points)


def unpack_matmul_nbits(packed: MatMulNBits, *, num_bits: int) -> tuple[NDArray[np.int8], AffineParams]:
    """Codes and parameters: the inverse of ``pack_matmul_nbits``."""
    rows, groups, _ = packed.weight_OGY.shape
    codes = from_unsigned(unpack_bits(packed.weight_OGY, num_bits), num_bits).reshape(rows, -1)
    zero_point = np.zeros((rows, groups), np.int8)
    if packed.zero_points_OY is not None:
        zero_point = from_unsigned(unpack_bits(packed.zero_points_OY, num_bits)[:, :groups], num_bits)
    return codes, AffineParams(scale_RG=packed.scale_OG, zero_point_RG=zero_point)


def _pack_zero_points(zero_point_OG: NDArray[np.int8], num_bits: int) -> NDArray[np.uint8]:
    missing = -zero_point_OG.shape[1] % (8 // num_bits)
    return pack_bits(np.pad(to_unsigned(zero_point_OG, num_bits), ((0, 0), (0, missing))), num_bits)
