"""AWQ's int32 layout ("gemm"): nibbles in the order that its kernel reads them.

Columns run along the first axis, and eight neighbours of O share a word: nibble k, the lowest first, holds number
0 2 4 6 1 3 5 7 of the eight. Zero points, counted from 0 like the codes, lie in the same order.

Shapes: # O out  I in  G groups a row  W words (O / 8)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen3_export.errors import QuantizationError
from qwen3_export.quantizers.affine import AffineParams
from qwen3_export.quantizers.packing.bits import from_unsigned, pack_words, to_unsigned, unpack_words
from qwen3_export.quantizers.packing.checks import group_size_of, require_scales

__all__ = ["NIBBLE_ORDER", "Awq", "pack_awq", "unpack_awq"]

NIBBLE_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Awq:
    """``qweight``, ``qzeros`` and ``scales``."""

    qweight_IW: NDArray[np.int32]
    qzeros_GW: NDArray[np.int32]
    scales_GO: NDArray[np.float16]


def pack_awq(codes_OI: NDArray[np.int8], params: AffineParams) -> Awq:
    """Pack codes of 4 bits with float16 scales; out_features must be a multiple of 8."""
    group_size_of("AWQ", codes_OI, params)
    require_scales("AWQ", params, "f16")
    if codes_OI.shape[0] % 8:
        raise QuantizationError(
            f"AWQ packs eight rows into a word; out_features {codes_OI.shape[0]} is no multiple of 8"
        )
    return Awq(
        qweight_IW=_pack(codes_OI.T),
        qzeros_GW=_pack(params.zero_point_RG.T),
        scales_GO=np.ascontiguousarray(params.scale_RG.T).astype(np.float16),
    )


def unpack_awq(packed: Awq) -> tuple[NDArray[np.int8], AffineParams]:
    """Codes and parameters: the inverse of ``pack_awq``."""
    return _unpack(packed.qweight_IW), AffineParams(
        scale_RG=np.ascontiguousarray(packed.scales_GO.T).astype(np.float32), zero_point_RG=_unpack(packed.qzeros_GW)
    )


def _pack(integers_XO: NDArray[np.int8]) -> NDArray[np.int32]:
    rows, columns = integers_XO.shape
    shuffled = to_unsigned(integers_XO, 4).reshape(rows, -1, 8)[..., NIBBLE_ORDER]
    return pack_words(shuffled.reshape(rows, columns), 4)


def _unpack(words_XW: NDArray[np.int32]) -> NDArray[np.int8]:
    """[O, X], as the rows of a weight."""
    shuffled = unpack_words(words_XW, 4).reshape(words_XW.shape[0], -1, 8)
    ordered = shuffled[..., np.argsort(NIBBLE_ORDER)].reshape(words_XW.shape[0], -1)
    return np.ascontiguousarray(from_unsigned(ordered, 4).T)
