"""Core ML's compressed constants: ``constexpr_blockwise_shift_scale`` and ``constexpr_lut_to_dense`` of iOS 18.

Source: coremltools' ``defs/iOS18/compression.py``. An element is ``scale * (data - offset)``, with data and offset of
the same type (int4 or int8 here, which hold codes unchanged). Types of fewer than 8 bits lie in weight.bin as one bit
stream over the whole flattened tensor, signed ones in two's complement. Tables have the shape [L, 1, E, 1]: one table
for each group of rows and all columns, with entries of one value.

Shapes: # O out  I in  G groups (blocks) a row  L tables  E entries a table  Y bytes
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen3_export.errors import QuantizationError
from qwen3_export.quantizers.affine import AffineParams
from qwen3_export.quantizers.packing.bits import pack_bits, unpack_bits
from qwen3_export.quantizers.packing.checks import group_size_of, require_bits
from qwen3_export.quantizers.palette import PaletteParams

__all__ = [
    "BlockwiseShiftScale",
    "LutToDense",
    "pack_blockwise_shift_scale",
    "pack_lut_to_dense",
    "unpack_blockwise_shift_scale",
    "unpack_lut_to_dense",
]

AFFINE, PALETTE = "constexpr_blockwise_shift_scale", "constexpr_lut_to_dense"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockwiseShiftScale:
    """The operator's inputs as weight.bin holds them; ``shape`` is the weight's, the offset None if all are 0."""

    shape: tuple[int, int]
    data_Y: NDArray[np.uint8]
    scale_OG: NDArray[np.float32]
    offset_Y: NDArray[np.uint8] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LutToDense:
    """The operator's inputs as weight.bin holds them; ``shape`` is the weight's."""

    shape: tuple[int, int]
    indices_Y: NDArray[np.uint8]
    lut_L1E1: NDArray[np.float32]


def pack_blockwise_shift_scale(
    codes_OI: NDArray[np.int8], params: AffineParams, *, num_bits: int
) -> BlockwiseShiftScale:
    """Pack codes of 4 or 8 bits as int4 or int8."""
    require_bits(AFFINE, num_bits, (4, 8))
    group_size_of(AFFINE, codes_OI, params)
    return BlockwiseShiftScale(
        shape=(codes_OI.shape[0], codes_OI.shape[1]),
        data_Y=_pack_signed(codes_OI, num_bits),
        scale_OG=params.scale_RG,
        offset_Y=_pack_signed(params.zero_point_RG, num_bits) if params.zero_point_RG.any() else None,
    )


def unpack_blockwise_shift_scale(
    packed: BlockwiseShiftScale, *, num_bits: int
) -> tuple[NDArray[np.int8], AffineParams]:
    """Codes and parameters: the inverse of ``pack_blockwise_shift_scale``."""
    codes = _unpack_signed(packed.data_Y, num_bits, shape=packed.shape)
    zero_point = np.zeros(packed.scale_OG.shape, np.int8)
    if packed.offset_Y is not None:
        zero_point = _unpack_signed(packed.offset_Y, num_bits, shape=packed.scale_OG.shape)
    return codes, AffineParams(scale_RG=packed.scale_OG, zero_point_RG=zero_point)


def pack_lut_to_dense(codes_OI: NDArray[np.uint8], params: PaletteParams, *, num_bits: int) -> LutToDense:
    """Pack indices of 2, 3, 4, 6 or 8 bits."""
    require_bits(PALETTE, num_bits, (2, 3, 4, 6, 8))
    tables, entries = params.table_LE.shape
    if entries != 1 << num_bits or codes_OI.shape[0] % tables:
        raise QuantizationError(
            f"{PALETTE}: {tables} tables of {entries} entries do not go with {num_bits} bits and "
            f"{codes_OI.shape[0]} rows"
        )
    return LutToDense(
        shape=(codes_OI.shape[0], codes_OI.shape[1]),
        indices_Y=_pack_stream(codes_OI.reshape(-1), num_bits),
        lut_L1E1=params.table_LE[:, None, :, None],
    )


def unpack_lut_to_dense(packed: LutToDense, *, num_bits: int) -> tuple[NDArray[np.uint8], PaletteParams]:
    """Indices and tables: the inverse of ``pack_lut_to_dense``."""
    indices = _unpack_stream(packed.indices_Y, num_bits, count=int(np.prod(packed.shape)))
    return indices.reshape(packed.shape), PaletteParams(table_LE=packed.lut_L1E1[:, 0, :, 0])


def _pack_signed(integers: NDArray[np.int8], num_bits: int) -> NDArray[np.uint8]:
    """One bit stream of integers in two's complement."""
    masked = np.ascontiguousarray(integers).view(np.uint8) & np.uint8((1 << num_bits) - 1)
    return _pack_stream(masked.reshape(-1), num_bits)


def _unpack_signed(bytes_Y: NDArray[np.uint8], num_bits: int, *, shape: tuple[int, ...]) -> NDArray[np.int8]:
    unsigned = _unpack_stream(bytes_Y, num_bits, count=int(np.prod(shape)))
    unused = 8 - num_bits
    return ((unsigned << np.uint8(unused)).view(np.int8) >> np.int8(unused)).reshape(shape)


def _pack_stream(integers_N: NDArray[np.uint8], num_bits: int) -> NDArray[np.uint8]:
    """One bit stream; unused bits of its last byte are 0."""
    filled = np.pad(integers_N, (0, -integers_N.size % 8))
    return pack_bits(filled, num_bits)[: -(-integers_N.size * num_bits // 8)]


def _unpack_stream(bytes_Y: NDArray[np.uint8], num_bits: int, *, count: int) -> NDArray[np.uint8]:
    return unpack_bits(np.pad(bytes_Y, (0, -bytes_Y.size % num_bits)), num_bits)[:count]
