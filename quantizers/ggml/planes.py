"""Bit planes: how GGML lays small integers into bytes.

All block formats do the same with different numbers. A field of ``width`` bits is cut into chunks of
``stride * 8 / width`` integers; byte k of a chunk holds integers k, k + stride, k + 2 stride, … from its low bits up.
Width 4 and stride 16 puts the first half of a 32-block into low nibbles and the second into high ones; width 1 and
stride 32 gives the fifth bits of Q5_K; width 8 is a plain copy.

Shapes: # N blocks  E integers a block  Y bytes a block
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qwen3_export.quantizers.compile import kernel

__all__ = ["pack_planes", "unpack_planes"]


@kernel
def pack_planes(
    out_NY: NDArray[np.uint8], values_NE: NDArray[np.uint8], first_byte: int, width: int, shift: int, stride: int
) -> None:
    """Write bits ``shift … shift + width`` of the integers into the blocks, from ``first_byte`` on."""
    planes = 8 // width
    mask = (1 << width) - 1
    chunks = values_NE.shape[1] // (stride * planes)
    for n in range(values_NE.shape[0]):
        for chunk in range(chunks):
            source = values_NE[n, chunk * stride * planes :]
            target = out_NY[n, first_byte + chunk * stride :]
            for k in range(stride):
                target[k] = (source[k] >> shift) & mask
            for plane in range(1, planes):
                for k in range(stride):
                    bits = (source[plane * stride + k] >> shift) & mask
                    target[k] |= bits << (plane * width)


@kernel
def unpack_planes(
    out_NE: NDArray[np.uint8], blocks_NY: NDArray[np.uint8], first_byte: int, width: int, shift: int, stride: int
) -> None:
    """Put the field back into bits ``shift … shift + width`` of the integers: the inverse of ``pack_planes``."""
    planes = 8 // width
    mask = (1 << width) - 1
    chunks = out_NE.shape[1] // (stride * planes)
    for n in range(out_NE.shape[0]):
        for chunk in range(chunks):
            source = blocks_NY[n, first_byte + chunk * stride :]
            target = out_NE[n, chunk * stride * planes :]
            for plane in range(planes):
                for k in range(stride):
                    bits = (source[k] >> (plane * width)) & mask
                    target[plane * stride + k] |= bits << shift
