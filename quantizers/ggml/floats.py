"""F32, F16 and BF16: formats without blocks or parameters.

Shapes: # R rows  I columns  Y bytes a row
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qwen3_export.errors import QuantizationError

__all__ = ["decode", "encode"]


def encode(name: str, values_RI: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Rows of float32 to rows of little-endian bytes; QuantizationError where F16 would overflow."""
    if name == "F32":
        return np.ascontiguousarray(values_RI, "<f4").view(np.uint8)
    if name == "F16":
        return _to_float16(values_RI).view(np.uint8)
    return _to_bfloat16(values_RI).view(np.uint8)


def decode(name: str, bytes_RY: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Rows of bytes to rows of float32: the inverse of ``encode``, exactly."""
    bytes_RY = np.ascontiguousarray(bytes_RY)
    if name == "F32":
        return bytes_RY.view("<f4")
    if name == "F16":
        return bytes_RY.view("<f2").astype(np.float32)
    return (bytes_RY.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _to_float16(values_RI: NDArray[np.float32]) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        halves: NDArray[np.float16] = values_RI.astype("<f2")
    if not np.isfinite(halves).all():
        raise QuantizationError(
            f"a weight of magnitude {np.abs(values_RI).max():g} is beyond F16's largest number, 65504; use BF16 or F32"
        )
    return halves


def _to_bfloat16(values_RI: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round to nearest, ties to even, in one pass over a copy: add half a unit (less one where even), cut."""
    bits = np.ascontiguousarray(values_RI, "<f4").view(np.uint32)
    odd = bits >> 16
    odd &= 1
    odd += 0x7FFF
    odd += bits
    odd >>= 16
    return odd.astype("<u2")
