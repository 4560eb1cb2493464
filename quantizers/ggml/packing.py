"""Pack codes and parameters of block formats into rows of bytes, and unpack them.

Shapes: # R rows  I columns  S blocks a row  G groups a row  N = R * S blocks  Y bytes a row

Effective scales are computed from the stored numbers in float32, and in the order of a runtime: first the product of
the float16 scale and the integer, then its product with the level.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qwen3_export.quantizers.ggml.layouts import LAYOUTS, BlockFields, pack_blocks, unpack_blocks
from qwen3_export.quantizers.ggml.params import BlockParams
from qwen3_export.quantizers.ggml.shapes import BlockShape

__all__ = ["effective_params", "pack", "unpack"]


def pack(name: str, codes_RI: NDArray[np.int8], params: BlockParams, *, shape: BlockShape) -> NDArray[np.uint8]:
    """The bytes of rows of codes."""
    blocks = codes_RI.size // shape.block_size
    # Q4_1 and Q5_1 store the value of code zero, which is minus our offset.
    sign = np.float32(1 if shape.has_subs else -1)
    offset = params.block_offset_RS
    fields = BlockFields(
        codes_NE=_biased(codes_RI, shape.code_bias).reshape(blocks, shape.block_size),
        scale_N=params.block_scale_RS.reshape(blocks).astype(np.float16),
        offset_N=None if offset is None else (sign * offset).reshape(blocks).astype(np.float16),
        subs_NG=_join_subs(shape, params, blocks=blocks),
    )
    return pack_blocks(LAYOUTS[name], fields).reshape(
        codes_RI.shape[0], params.block_scale_RS.shape[1] * shape.block_bytes
    )


def unpack(name: str, blocks_RY: NDArray[np.uint8], *, shape: BlockShape) -> tuple[NDArray[np.int8], BlockParams]:
    """Codes and parameters of rows of bytes."""
    rows, blocks = blocks_RY.shape[0], blocks_RY.shape[1] // shape.block_bytes
    blocks_NY = np.ascontiguousarray(blocks_RY).reshape(rows * blocks, shape.block_bytes)
    fields = unpack_blocks(LAYOUTS[name], blocks_NY, elements=shape.block_size, subs=shape.subs)
    codes_RI = fields.codes_NE.reshape(rows, blocks * shape.block_size).view(np.int8)
    codes_RI -= np.int8(shape.code_bias)
    sign = np.float32(1 if shape.has_subs else -1)
    offset = None if fields.offset_N is None else sign * fields.offset_N.astype(np.float32).reshape(rows, blocks)
    sub_scale, sub_offset = _split_subs(shape, fields.subs_NG, rows=rows, groups=blocks * shape.groups)
    return codes_RI, effective_params(
        block_scale_RS=fields.scale_N.astype(np.float32).reshape(rows, blocks),
        block_offset_RS=offset,
        sub_scale_RG=sub_scale,
        sub_offset_RG=sub_offset,
    )


def effective_params(
    *,
    block_scale_RS: NDArray[np.float32],
    block_offset_RS: NDArray[np.float32] | None,
    sub_scale_RG: NDArray[np.int16] | None,
    sub_offset_RG: NDArray[np.int16] | None,
) -> BlockParams:
    """Parameters with both the stored numbers and the scales and offsets that they give each group."""
    scale_RG = _times(block_scale_RS, sub_scale_RG)
    offset_RG = np.zeros_like(scale_RG) if block_offset_RS is None else _times(block_offset_RS, sub_offset_RG)
    return BlockParams(
        scale_RG=scale_RG,
        offset_RG=offset_RG,
        block_scale_RS=block_scale_RS,
        block_offset_RS=block_offset_RS,
        sub_scale_RG=sub_scale_RG,
        sub_offset_RG=sub_offset_RG,
    )


def _times(block_RS: NDArray[np.float32], sub_RG: NDArray[np.int16] | None) -> NDArray[np.float32]:
    if sub_RG is None:
        return block_RS
    groups = sub_RG.shape[1] // block_RS.shape[1]
    product_RSG = block_RS[:, :, None] * sub_RG.reshape(*block_RS.shape, groups).astype(np.float32)
    return product_RSG.reshape(sub_RG.shape)


def _biased(integers: NDArray[np.int8] | NDArray[np.int16], bias: int) -> NDArray[np.uint8]:
    """The unsigned bytes that are stored; negative numbers without a bias keep their two's complement."""
    return integers.astype(np.uint8) + np.uint8(bias)


def _join_subs(shape: BlockShape, params: BlockParams, *, blocks: int) -> NDArray[np.uint8] | None:
    if params.sub_scale_RG is None:
        return None
    scales_NG = _biased(params.sub_scale_RG, shape.sub_bias).reshape(blocks, shape.groups)
    if params.sub_offset_RG is None:
        return scales_NG
    offsets_NG = params.sub_offset_RG.astype(np.uint8).reshape(blocks, shape.groups)
    return np.concatenate([scales_NG, offsets_NG], axis=1)


def _split_subs(
    shape: BlockShape, subs_NG: NDArray[np.uint8] | None, *, rows: int, groups: int
) -> tuple[NDArray[np.int16] | None, NDArray[np.int16] | None]:
    if subs_NG is None:
        return None, None
    scales = subs_NG[:, : shape.groups]
    signed = scales.view(np.int8).astype(np.int16) if shape.sub_low < 0 else scales.astype(np.int16)
    offsets = subs_NG[:, shape.groups :].astype(np.int16) if shape.has_offset else None
    return (
        signed.reshape(rows, groups) - np.int16(shape.sub_bias),
        None if offsets is None else offsets.reshape(rows, groups),
    )
