"""compressed-tensors' ``pack-quantized`` and ``int-quantized``, which llm-compressor writes and vLLM reads.

Source: the library's ``pack_quantized`` and ``naive_quantized`` compressors. In ``pack-quantized``, weights are a bit
stream of int32 words along in_features, with codes counted from 0; zero points are a bit stream along out_features. In
``int-quantized`` both are plain int8, signed as they are here.

Shapes: # O out  I in  G groups a row  W 32-bit words
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen3_export.quantizers.affine import AffineParams
from qwen3_export.quantizers.packing.bits import from_unsigned, pack_words, to_unsigned, unpack_words
from qwen3_export.quantizers.packing.checks import group_size_of, require_bits

__all__ = [
    "IntQuantized",
    "PackQuantized",
    "pack_int_quantized",
    "pack_packed",
    "unpack_int_quantized",
    "unpack_packed",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackQuantized:
    """``weight_packed``, ``weight_scale``, ``weight_zero_point`` (None where symmetric) and ``weight_shape``."""

    weight_packed_OW: NDArray[np.int32]
    weight_scale_OG: NDArray[np.float32]
    weight_zero_point_WG: NDArray[np.int32] | None
    weight_shape: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class IntQuantized:
    """``weight``, ``weight_scale`` and ``weight_zero_point`` (None where symmetric)."""

    weight_OI: NDArray[np.int8]
    weight_scale_OG: NDArray[np.float32]
    weight_zero_point_OG: NDArray[np.int8] | None


def pack_packed(codes_OI: NDArray[np.int8], params: AffineParams, *, num_bits: int) -> PackQuantized:
    """Pack as ``pack-quantized``; in_features (and with zero points also out_features) must fill whole words."""
    require_bits("pack-quantized", num_bits, range(2, 9))
    group_size_of("pack-quantized", codes_OI, params)
    zero_points = None
    if params.zero_point_RG.any():
        zeros_GO = to_unsigned(np.ascontiguousarray(params.zero_point_RG.T), num_bits)
        zero_points = np.ascontiguousarray(pack_words(zeros_GO, num_bits).T)
    return PackQuantized(
        weight_packed_OW=pack_words(to_unsigned(codes_OI, num_bits), num_bits),
        weight_scale_OG=params.scale_RG,
        weight_zero_point_WG=zero_points,
        weight_shape=(codes_OI.shape[0], codes_OI.shape[1]),
    )


def unpack_packed(packed: PackQuantized, *, num_bits: int) -> tuple[NDArray[np.int8], AffineParams]:
    """Codes and parameters: the inverse of ``pack_packed``."""
    codes = from_unsigned(unpack_words(packed.weight_packed_OW, num_bits), num_bits)
    zero_point = np.zeros(packed.weight_scale_OG.shape, np.int8)
    if packed.weight_zero_point_WG is not None:
        zero_point = from_unsigned(unpack_words(packed.weight_zero_point_WG.T, num_bits), num_bits).T
    return codes, AffineParams(scale_RG=packed.weight_scale_OG, zero_point_RG=np.ascontiguousarray(zero_point))


def pack_int_quantized(codes_OI: NDArray[np.int8], params: AffineParams) -> IntQuantized:
    """Pack as ``int-quantized``: codes as they are."""
    group_size_of("int-quantized", codes_OI, params)
    return IntQuantized(
        weight_OI=codes_OI,
        weight_scale_OG=params.scale_RG,
        weight_zero_point_OG=params.zero_point_RG if params.zero_point_RG.any() else None,
    )


def unpack_int_quantized(packed: IntQuantized) -> tuple[NDArray[np.int8], AffineParams]:
    """Codes and parameters: the inverse of ``pack_int_quantized``."""
    zero_point = packed.weight_zero_point_OG
    if zero_point is None:
        zero_point = np.zeros(packed.weight_scale_OG.shape, np.int8)
    return packed.weight_OI, AffineParams(scale_RG=packed.weight_scale_OG, zero_point_RG=zero_point)
