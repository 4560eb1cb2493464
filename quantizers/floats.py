"""Plain floats: F32, F16 and BF16, as number formats without parameters.

The codes of a float format are the numbers that are stored: float32, float16, or for bfloat16, which numpy lacks, the
upper half of a float32's bits (uint16). There is nothing to fit, so parameters are None.

Shapes: # R rows  I columns  J columns of one slab  Y bytes a row
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qwen3_export.errors import QuantizationError
from qwen3_export.quantizers.formats import Arrays, ArrayType, Bytes, Codes, Values, Weighting

__all__ = ["BF16", "F16", "F32", "FLOATS", "FloatFormat"]

FloatName = Literal["F32", "F16", "BF16"]

_DTYPES: Mapping[FloatName, str] = MappingProxyType({"F32": "<f4", "F16": "<f2", "BF16": "<u2"})


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatFormat:
    """Floats of one type, little-endian; what the methods do is said at ``NumberFormat`` and ``PackedFormat``."""

    name: FloatName

    @property
    def is_float(self) -> bool:
        return True

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of codes."""
        return np.dtype(_DTYPES[self.name])

    @property
    def rows_together(self) -> int:
        return 1

    @property
    def block_size(self) -> int:
        return 1

    @property
    def codebook(self) -> None:
        return None

    @property
    def columns_together(self) -> int:
        return 1

    def check(self, shape: tuple[int, ...]) -> None:
        """Nothing is refused: every shape can be stored."""

    def bits_per_weight(self, shape: tuple[int, ...]) -> float:
        return 8 * self.dtype.itemsize

    def fit(self, values_RI: Values, importance: Values | None = None, *, weighting: Weighting = "usual") -> None:
        return None

    def round(self, values_RI: Values, params: None = None) -> Codes:
        """The nearest floats, ties to even; QuantizationError where F16 would overflow."""
        if self.name == "F32":
            return np.ascontiguousarray(values_RI, "<f4")
        return _to_float16(values_RI) if self.name == "F16" else _to_bfloat16(values_RI)

    def encode(self, values_RI: Values, importance: Values | None = None) -> tuple[Codes, None]:
        return self.round(values_RI), None

    def dequantize(self, codes_RI: Codes, params: None = None) -> Values:
        """The same numbers as float32, exactly."""
        if self.name == "BF16":
            return (codes_RI.astype(np.uint32) << 16).view(np.float32)
        return codes_RI.astype(np.float32, copy=False)

    def refit(self, codes_RJ: Codes, params: None, *, gradient_RJ: Values, metric_JJ: Values) -> tuple[None, Values]:
        return None, gradient_RJ

    def changes_shape(self, shape: tuple[int, ...]) -> None:
        return None

    def changed(self, params: None, changes: Values) -> None:
        return None

    def by_changes(self, codes_RI: Codes, params: None, gradient_RI: Values) -> Values:
        return np.zeros((len(codes_RI), 0), np.float32)

    def row_bytes(self, columns: int) -> int:
        return columns * self.dtype.itemsize

    def pack(self, codes_RI: Codes, params: None = None) -> Bytes:
        return np.ascontiguousarray(codes_RI, self.dtype).view(np.uint8)

    def unpack(self, bytes_RY: Bytes) -> tuple[Codes, None]:
        return np.ascontiguousarray(bytes_RY).view(self.dtype), None

    def to_arrays(self, codes_RI: Codes, params: None = None) -> dict[str, NDArray[Any]]:
        return {"values": codes_RI}

    def from_arrays(self, arrays: Arrays) -> tuple[Codes, None]:
        return arrays["values"], None

    def array_types(self, shape: tuple[int, ...]) -> dict[str, ArrayType]:
        return {"values": ArrayType(_DTYPES[self.name], shape)}


F32, F16, BF16 = FloatFormat(name="F32"), FloatFormat(name="F16"), FloatFormat(name="BF16")
FLOATS: Mapping[str, FloatFormat] = MappingProxyType({found.name: found for found in (F32, F16, BF16)})


def _to_float16(values_RI: Values) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        halves: NDArray[np.float16] = values_RI.astype("<f2")
    if not np.isfinite(halves).all():
        raise QuantizationError(
            f"a weight of magnitude {np.abs(values_RI).max():g} is beyond F16's largest number, 65504; use BF16 or F32"
        )
    return halves


def _to_bfloat16(values_RI: Values) -> NDArray[np.uint16]:
    """Round to nearest, ties to even, in one pass over a copy: add half a unit (less one where even), cut."""
    bits = np.ascontiguousarray(values_RI, "<f4").view(np.uint32)
    odd = bits >> 16
    odd &= 1
    odd += 0x7FFF
    odd += bits
    odd >>= 16
    return odd.astype("<u2")
