"""torchao's "universal" layout of weights for int8 activations, in which ``llama::quantized_moe_ffn`` holds experts.

Eight rows lie together, group by group: nibbles (or bytes), then the eight scales of the group, then the eight sums of
its codes, which the Arm kernels need. Within a group, sixteen columns lie together: the left eight columns of each of
the eight rows, then the right eight. Of these 128 codes, thirty-two share sixteen bytes, the second sixteen in the high
nibbles. So any eight rows are one piece of bytes, and matrices with the same number of columns can be concatenated.

Source: ``csrc/cpu/torch_free_kernels/weight_packing`` of torchao (with nr 8, kr 16, sr 2) and the header of 64 bytes in
``packed_weights_header.h``.

Shapes: # O out  I in  G groups a row  B blocks of eight rows  C chunks of sixteen columns a group  Y bytes a block
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qwen3_export.errors import QuantizationError
from qwen3_export.quantizers.affine import AffineParams
from qwen3_export.quantizers.packing.bits import from_unsigned, to_unsigned
from qwen3_export.quantizers.packing.checks import group_size_of, require_bits, require_symmetric

__all__ = ["ROWS_TOGETHER", "pack_universal", "universal_block_bytes", "universal_header", "unpack_universal"]

ROWS_TOGETHER, CHUNK, HALF = 8, 16, 8
FORM = "torchao's universal layout"
MAGIC, UNIVERSAL = 6712, 1


def universal_header(num_bits: int) -> NDArray[np.uint8]:
    """The 64 bytes in front of a matrix without zero points and bias."""
    fields = np.zeros(16, "<i4")
    fields[:8] = (MAGIC, UNIVERSAL, num_bits, 0, 0, ROWS_TOGETHER, CHUNK, 2)
    return fields.view(np.uint8)


def universal_block_bytes(columns: int, group_size: int, num_bits: int) -> int:
    """Bytes of eight rows."""
    return ROWS_TOGETHER * (columns * num_bits // 8 + columns // group_size * 8)


def pack_universal(codes_OI: NDArray[np.int8], params: AffineParams, *, num_bits: int) -> NDArray[np.uint8]:
    """Pack symmetric codes of 4 or 8 bits in groups to [B, Y], without the header.

    Raises QuantizationError for zero points, for groups that are no multiple of 16, and rows that are no multiple of 8.
    """
    require_bits(FORM, num_bits, (4, 8))
    require_symmetric(FORM, params)
    size = group_size_of(FORM, codes_OI, params)
    rows, columns = codes_OI.shape
    if size % CHUNK or rows % ROWS_TOGETHER:
        raise QuantizationError(
            f"{FORM} has groups of a multiple of {CHUNK} columns, and a multiple of {ROWS_TOGETHER} rows; not groups "
            f"of {size} and {rows} rows"
        )
    groups = columns // size
    codes_BRGCSH = codes_OI.reshape(-1, ROWS_TOGETHER, groups, size // CHUNK, 2, HALF)
    sums_BGR = codes_BRGCSH.sum(axis=(3, 4, 5), dtype=np.int32).transpose(0, 2, 1)
    scale_BGR = params.scale_RG.reshape(-1, ROWS_TOGETHER, groups).transpose(0, 2, 1)
    ordered = codes_BRGCSH.transpose(0, 2, 3, 4, 1, 5).reshape(-1, groups, size * ROWS_TOGETHER)
    parts = (_pack_codes(ordered, num_bits), _bytes(scale_BGR, "<f4"), _bytes(sums_BGR, "<i4"))
    return np.concatenate(parts, axis=-1).reshape(rows // ROWS_TOGETHER, -1)


def unpack_universal(
    bytes_BY: NDArray[np.uint8], *, columns: int, group_size: int, num_bits: int
) -> tuple[NDArray[np.int8], AffineParams]:
    """Codes and parameters: the inverse of ``pack_universal``."""
    blocks, groups = bytes_BY.shape[0], columns // group_size
    packed = group_size * ROWS_TOGETHER * num_bits // 8
    grouped = bytes_BY.reshape(blocks, groups, -1)
    ordered = _unpack_codes(np.ascontiguousarray(grouped[..., :packed]), num_bits)
    halves = ordered.reshape(blocks, groups, group_size // CHUNK, 2, ROWS_TOGETHER, HALF)
    codes_OI = halves.transpose(0, 4, 1, 2, 3, 5).reshape(-1, columns)
    scale_BGR = np.ascontiguousarray(grouped[..., packed : packed + 4 * ROWS_TOGETHER]).view("<f4")
    scale_OG = scale_BGR.transpose(0, 2, 1).reshape(-1, groups).astype(np.float32)
    return codes_OI, AffineParams(scale_RG=scale_OG, zero_point_RG=np.zeros(scale_OG.shape, np.int8))


def _pack_codes(codes: NDArray[np.int8], num_bits: int) -> NDArray[np.uint8]:
    if num_bits == 8:
        return np.ascontiguousarray(codes).view(np.uint8)
    pairs = to_unsigned(codes, 4).reshape(*codes.shape[:-1], -1, 2, 16)
    return (pairs[..., 0, :] | pairs[..., 1, :] << np.uint8(4)).reshape(*codes.shape[:-1], -1)


def _unpack_codes(data: NDArray[np.uint8], num_bits: int) -> NDArray[np.int8]:
    if num_bits == 8:
        return data.view(np.int8)
    bytes_16 = data.reshape(*data.shape[:-1], -1, 16)
    pairs = np.stack([bytes_16 & np.uint8(15), bytes_16 >> np.uint8(4)], axis=-2)
    return from_unsigned(pairs.reshape(*data.shape[:-1], -1), 4)


def _bytes(values: np.ndarray, dtype: str) -> NDArray[np.uint8]:
    return np.ascontiguousarray(values, dtype).view(np.uint8)
