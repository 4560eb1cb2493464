"""GPTQ's int32 layout, as AutoGPTQ, GPTQModel, vLLM and transformers read it.

Columns run along the first axis: ``qweight`` [I · bits / 32, O] is a bit stream down each column of O, ``qzeros``
[G, O · bits / 32] one along each row of O. Codes and zero points are counted from 0. The first version of the format
("gptq") stores zero points minus one, and its readers add the one back; the second ("gptq_v2") stores them as they are.
Only ``checkpoint_format`` tells the two apart, so a file must declare the version that it was packed as.

In the first version a zero point of 0 would be stored as -1, which readers interpret in different ways; it is refused.

Shapes: # O out  I in  G groups a row  W 32-bit words
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qwen3_export.errors import QuantizationError
from qwen3_export.quantizers.affine import AffineParams
from qwen3_export.quantizers.packing.bits import from_unsigned, pack_words, to_unsigned, unpack_words
from qwen3_export.quantizers.packing.checks import group_size_of, require_bits, require_scales

__all__ = ["Gptq", "GptqFormat", "pack_gptq", "unpack_gptq"]

GptqFormat = Literal["gptq", "gptq_v2"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gptq:
    """``qweight``, ``qzeros``, ``scales`` and ``g_idx`` (the group of each column), and the version to declare."""

    checkpoint_format: GptqFormat
    qweight_WO: NDArray[np.int32]
    qzeros_GW: NDArray[np.int32]
    scales_GO: NDArray[np.float16]
    g_idx_I: NDArray[np.int32]


def pack_gptq(
    codes_OI: NDArray[np.int8], params: AffineParams, *, num_bits: int, checkpoint_format: GptqFormat = "gptq"
) -> Gptq:
    """Pack codes of 2, 3, 4 or 8 bits with float16 scales; out_features and in_features must fill whole words."""
    require_bits("GPTQ", num_bits, (2, 3, 4, 8))
    require_scales("GPTQ", params, "f16")
    size = group_size_of("GPTQ", codes_OI, params)
    zeros_GO = to_unsigned(params.zero_point_RG, num_bits).T
    if checkpoint_format == "gptq":
        if not zeros_GO.all():
            raise QuantizationError("the first GPTQ format cannot hold the lowest zero point; use 'gptq_v2'")
        zeros_GO = zeros_GO - np.uint8(1)
    return Gptq(
        checkpoint_format=checkpoint_format,
        qweight_WO=np.ascontiguousarray(pack_words(to_unsigned(codes_OI, num_bits), num_bits).T),
        qzeros_GW=pack_words(np.ascontiguousarray(zeros_GO), num_bits),
        scales_GO=np.ascontiguousarray(params.scale_RG.T).astype(np.float16),
        g_idx_I=np.arange(codes_OI.shape[1], dtype=np.int32) // np.int32(size),
    )


def unpack_gptq(packed: Gptq, *, num_bits: int) -> tuple[NDArray[np.int8], AffineParams]:
    """Codes and parameters: the inverse of ``pack_gptq``."""
    groups = packed.scales_GO.shape[0]
    in_order = np.arange(packed.g_idx_I.size) // (packed.g_idx_I.size // groups)
    if not np.array_equal(packed.g_idx_I, in_order):
        raise QuantizationError("the groups of this GPTQ weight are not in the order of its columns (desc_act)")
    zeros_GO = unpack_words(packed.qzeros_GW, num_bits)
    if packed.checkpoint_format == "gptq":
        zeros_GO = zeros_GO + np.uint8(1)
    return from_unsigned(unpack_words(packed.qweight_WO.T, num_bits), num_bits), AffineParams(
        scale_RG=np.ascontiguousarray(packed.scales_GO.T).astype(np.float32),
        zero_point_RG=np.ascontiguousarray(from_unsigned(zeros_GO, num_bits).T),
    )
