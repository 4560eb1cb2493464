"""GGUF's Q4_0, Q4_1 and Q8_0 from affine codes: the block formats that are affine integers in groups of 32.

Q4_0 and Q8_0 are symmetric with a float16 scale. Q4_1 stores the value of its lowest code in float16 as well: that
**rounds** the product of scale and zero point, by up to 2⁻¹¹ of it; codes, scales and zero points survive.

Shapes: # R rows  I columns  G groups a row  Y bytes a row
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qwen3_export.errors import QuantizationError
from qwen3_export.quantizers.affine import AffineParams
from qwen3_export.quantizers.ggml import GGML_FORMATS
from qwen3_export.quantizers.ggml.params import BlockParams
from qwen3_export.quantizers.packing.bits import from_unsigned, to_unsigned
from qwen3_export.quantizers.packing.checks import group_size_of, require_scales, require_symmetric

__all__ = ["GGUF_FORMS", "pack_gguf", "unpack_gguf"]

GGUF_FORMS = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}
"""Which block formats affine codes fit, and their bits."""


def pack_gguf(name: str, codes_RI: NDArray[np.int8], params: AffineParams) -> NDArray[np.uint8]:
    """Blocks [R, Y] of one of ``GGUF_FORMS``."""
    size = group_size_of(name, codes_RI, params)
    if size != 32:
        raise QuantizationError(f"{name} has groups of 32 columns, not {size}")
    require_scales(name, params, "f16")
    if name == "Q4_1":
        block_offset = params.scale_RG * to_unsigned(params.zero_point_RG, 4)
        codes_RI = to_unsigned(codes_RI, 4).view(np.int8)
    else:
        require_symmetric(name, params)
        block_offset = None
    return GGML_FORMATS[name].pack(
        codes_RI,
        BlockParams(
            scale_RG=params.scale_RG,
            offset_RG=np.zeros_like(params.scale_RG) if block_offset is None else block_offset,
            block_scale_RS=params.scale_RG,
            block_offset_RS=block_offset,
        ),
    )


def unpack_gguf(name: str, blocks_RY: NDArray[np.uint8]) -> tuple[NDArray[np.int8], AffineParams]:
    """Codes and parameters: the inverse of ``pack_gguf``. Q4_1 blocks must have integer zero points."""
    codes, block = GGML_FORMATS[name].unpack(blocks_RY)
    zero_point = np.zeros(block.scale_RG.shape, np.int8)
    if name == "Q4_1":
        zeros = np.rint(block.offset_RG / block.scale_RG)
        if not ((zeros >= 0) & (zeros < 16)).all():
            raise QuantizationError("the offset of a Q4_1 block is no integer multiple of its scale")
        codes, zero_point = from_unsigned(codes.view(np.uint8), 4), from_unsigned(zeros.astype(np.uint8), 4)
    return codes, AffineParams(scale_RG=block.scale_RG, zero_point_RG=zero_point)
