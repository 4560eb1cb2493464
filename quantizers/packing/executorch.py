"""ExecuTorch's packings: XNNPACK's int4 groups and channels, and the operators for quantized embeddings.

Source: ``backends/xnnpack/operators/node_visitor.py`` of ExecuTorch (weights counted from 0, even columns in the low
nibble; group scales cast to bfloat16) and ``exir/passes/_quant_patterns_and_replacements.py`` (embedding_4bit: signed
codes plus 8, even columns in the *high* nibble). torchao's tensors need no packing: they hold int8 codes, scales and
int8 zero points, as formats do here.

Shapes: # O out  I in  G groups a row  Y bytes a row
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen3_export.errors import QuantizationError
from qwen3_export.quantizers.affine import AffineParams
from qwen3_export.quantizers.packing.bits import from_unsigned, pack_bits, to_unsigned, unpack_bits
from qwen3_export.quantizers.packing.checks import group_size_of, require_scales, require_symmetric

__all__ = [
    "XnnpackInt4",
    "pack_embedding_int4",
    "pack_xnnpack_int4",
    "unpack_embedding_int4",
    "unpack_xnnpack_int4",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class XnnpackInt4:
    """Nibbles, and scales as float32: bfloat16 numbers for groups, any for channels."""

    weight_OY: NDArray[np.uint8]
    scale_OG: NDArray[np.float32]


def pack_xnnpack_int4(codes_OI: NDArray[np.int8], params: AffineParams) -> XnnpackInt4:
    """Pack symmetric int4 groups (of a multiple of 32 columns, with bf16 scales) or channels (with f32 scales).

    Raises QuantizationError for negative scales, which XNNPACK does not take, and for group scales that it would round.
    """
    form = "XNNPACK's int4"
    size = group_size_of(form, codes_OI, params)
    require_symmetric(form, params)
    if not (params.scale_RG > 0).all():
        raise QuantizationError(f"{form} takes positive scales only; use `negative_scales=False`")
    if size < codes_OI.shape[1]:
        if size % 32:
            raise QuantizationError(f"{form} has groups of a multiple of 32 columns, not {size}")
        require_scales(f"{form} groups", params, "bf16")
    return XnnpackInt4(weight_OY=pack_bits(to_unsigned(codes_OI, 4), 4), scale_OG=params.scale_RG)


def unpack_xnnpack_int4(packed: XnnpackInt4) -> tuple[NDArray[np.int8], AffineParams]:
    """Codes and parameters: the inverse of ``pack_xnnpack_int4``."""
    codes = from_unsigned(unpack_bits(packed.weight_OY, 4), 4)
    return codes, AffineParams(scale_RG=packed.scale_OG, zero_point_RG=np.zeros(packed.scale_OG.shape, np.int8))


def pack_embedding_int4(codes_OI: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Pack the weight of ``quantized_decomposed::embedding_4bit``, [O, I / 2]."""
    if codes_OI.shape[1] % 2:
        raise QuantizationError(f"embedding_4bit has an even number of columns, not {codes_OI.shape[1]}")
    unsigned = to_unsigned(codes_OI, 4)
    return (unsigned[:, 0::2] << np.uint8(4)) | unsigned[:, 1::2]


def unpack_embedding_int4(weight_OY: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Codes: the inverse of ``pack_embedding_int4``."""
    unsigned = np.stack([weight_OY >> 4, weight_OY & 15], axis=-1)
    return from_unsigned(unsigned.reshape(weight_OY.shape[0], -1), 4)
