"""What each number format lies in weight.bin as: the arrays of a matrix, under the names that operators have for them.

    floats      val               a constant
    integers    data, scale       constexpr_blockwise_shift_scale
    palettes    indices, lut      constexpr_lut_to_dense

Shapes: # R rows  I columns  G groups a row  L tables  E entries a table
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qwen3_export.errors import QuantizationError
from qwen3_export.quantizers.affine import AffineFormat, AffineParams
from qwen3_export.quantizers.floats import FLOATS, FloatFormat
from qwen3_export.quantizers.formats import Arrays, Codes
from qwen3_export.quantizers.packing.coreml import pack_blockwise_shift_scale, pack_lut_to_dense
from qwen3_export.quantizers.palette import PaletteFormat, PaletteParams
from qwen3_export.targets.coreml.blobs import ELEMENTS, Blob
from qwen3_export.targets.coreml.recipes import CoremlFormat

__all__ = ["CODES", "INDICES", "SCALES", "TABLES", "VALUES", "format_of", "storage_of"]

VALUES, CODES, SCALES, INDICES, TABLES = "val", "data", "scale", "indices", "lut"

ELEMENT_NAMES: Mapping[str, str] = {"F32": "fp32", "F16": "fp16", "f32": "fp32", "f16": "fp16"}


class Storage(Protocol):
    """The arrays of one number format."""

    def elements(self, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The element type and the shape of each array of a matrix, by the array's name."""
        ...

    def pack(self, codes_RI: Codes, params: Any) -> dict[str, NDArray[Any]]:
        """The bytes of each array for a block of rows; QuantizationError for what the operator does not store."""
        ...

    def unpack(self, arrays: Arrays) -> tuple[Codes, Any]:
        """Codes and parameters of a block of rows, from the elements of each array."""
        ...


def storage_of(number_format: CoremlFormat) -> Storage:
    """How weights in this format lie in weight.bin."""
    if isinstance(number_format, FloatFormat):
        return _Floats(number_format)
    return _Integers(number_format) if isinstance(number_format, AffineFormat) else _Palettes(number_format)


def format_of(parts: Mapping[str, Blob]) -> CoremlFormat:
    """The number format of the matrix that has these arrays."""
    if VALUES in parts:
        return FLOATS["F32" if parts[VALUES].element == "fp32" else "F16"]
    if CODES in parts:
        codes, scales = parts[CODES], parts[SCALES]
        groups = scales.shape[1]
        return AffineFormat(
            num_bits=codes.num_bits,
            group_size=None if groups == 1 else codes.shape[1] // groups,
            scale_dtype="f32" if scales.element == "fp32" else "f16",
        )
    indices, tables = parts[INDICES], parts[TABLES]
    return PaletteFormat(
        num_bits=indices.num_bits,
        rows_per_table=indices.shape[0] // tables.shape[0],
        table_dtype="f32" if tables.element == "fp32" else "f16",
    )


@dataclass(frozen=True, slots=True)
class _Floats:
    number_format: FloatFormat

    def elements(self, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {VALUES: (ELEMENT_NAMES[self.number_format.name], shape)}

    def pack(self, codes_RI: Codes, params: None) -> dict[str, NDArray[Any]]:
        return {VALUES: codes_RI}

    def unpack(self, arrays: Arrays) -> tuple[Codes, None]:
        return arrays[VALUES], None


@dataclass(frozen=True, slots=True)
class _Integers:
    number_format: AffineFormat

    def elements(self, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        groups = shape[1] // self.number_format.columns_a_group(shape[1])
        scale_type = ELEMENT_NAMES[self.number_format.scale_dtype]
        return {CODES: (f"int{self.number_format.num_bits}", shape), SCALES: (scale_type, (shape[0], groups))}

    def pack(self, codes_RI: Codes, params: AffineParams) -> dict[str, NDArray[Any]]:
        packed = pack_blockwise_shift_scale(codes_RI, params, num_bits=self.number_format.num_bits)
        if packed.offset_Y is not None:
            raise QuantizationError("has zero points, which this target does not store")
        return {CODES: packed.data_Y, SCALES: _stored(packed.scale_OG, self.number_format.scale_dtype)}

    def unpack(self, arrays: Arrays) -> tuple[Codes, AffineParams]:
        scale_RG = arrays[SCALES].astype(np.float32)
        return arrays[CODES], AffineParams(scale_RG=scale_RG, zero_point_RG=np.zeros(scale_RG.shape, np.int8))


@dataclass(frozen=True, slots=True)
class _Palettes:
    number_format: PaletteFormat

    def elements(self, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        bits = self.number_format.num_bits
        tables = (self.number_format.tables(shape[0]), 1, 1 << bits, 1)
        return {INDICES: (f"uint{bits}", shape), TABLES: (ELEMENT_NAMES[self.number_format.table_dtype], tables)}

    def pack(self, codes_RI: Codes, params: PaletteParams) -> dict[str, NDArray[Any]]:
        packed = pack_lut_to_dense(codes_RI, params, num_bits=self.number_format.num_bits)
        return {INDICES: packed.indices_Y, TABLES: _stored(packed.lut_L1E1, self.number_format.table_dtype)}

    def unpack(self, arrays: Arrays) -> tuple[Codes, PaletteParams]:
        tables = arrays[TABLES]
        return arrays[INDICES], PaletteParams(table_LE=tables.reshape(len(tables), -1).astype(np.float32))


def _stored(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    return values.astype(ELEMENTS[ELEMENT_NAMES[dtype]].dtype)
