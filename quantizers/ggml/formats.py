"""GGML's block formats: the table of them, and the class whose instances it holds.

Shapes: # R rows  I columns  J columns of one slab  S blocks a row  G groups a row  Y bytes a row

This file imports no kernels; methods import what they need when they are called.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qwen3_export.errors import QuantizationError
from qwen3_export.quantizers.formats import Arrays, ArrayType, Bytes, Codebook, Codes, Values, Weighting
from qwen3_export.quantizers.ggml.shapes import BLOCK_SHAPES, BlockShape

if TYPE_CHECKING:
    from qwen3_export.quantizers.ggml.params import BlockParams

__all__ = ["GGML_FORMATS", "GgmlFormat"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GgmlFormat:
    """One of GGML's block formats; what the methods do is said at ``NumberFormat`` and ``PackedFormat``.

    ``shape`` says what a block is made of: groups, the range of codes, levels.
    """

    name: str
    shape: BlockShape = field(repr=False)

    @property
    def is_float(self) -> bool:
        return False

    @property
    def rows_together(self) -> int:
        return 1

    @property
    def columns_together(self) -> int:
        return self.shape.block_size

    @property
    def block_size(self) -> int:
        return self.shape.block_size

    @property
    def block_bytes(self) -> int:
        return self.shape.block_bytes

    @property
    def codebook(self) -> Codebook:
        shape = self.shape
        return Codebook(
            np.float32(shape.code_low), np.float32(shape.code_high), np.array(shape.levels or (), np.float32)
        )

    def check(self, shape: tuple[int, ...]) -> None:
        self._check_row(shape[-1])

    def bits_per_weight(self, shape: tuple[int, ...]) -> float:
        self._check_row(shape[-1])
        return 8 * self.block_bytes / self.block_size

    def row_bytes(self, columns: int) -> int:
        self._check_row(columns)
        return columns // self.block_size * self.block_bytes

    def fit(
        self, values_RI: Values, importance: Values | None = None, *, weighting: Weighting = "usual"
    ) -> BlockParams:
        """Scales and offsets of blocks; usually an error counts a little more in a large weight (see ``fitting``).

        Runs on one thread without the GIL; the parameters of a row do not depend on the other rows.
        """
        from qwen3_export.quantizers.ggml import fitting

        self._check_row(values_RI.shape[1])
        return fitting.fit(self.name, values_RI, importance, shape=self.shape, weighting=weighting)

    def round(self, values_RI: Values, params: BlockParams) -> Codes:
        from qwen3_export.quantizers.ggml import codes

        return codes.round_to_codes(self.shape, values_RI, scale_RG=params.scale_RG, offset_RG=params.offset_RG)

    def encode(self, values_RI: Values, importance: Values | None = None) -> tuple[Codes, BlockParams]:
        params = self.fit(values_RI, importance)
        return self.round(values_RI, params), params

    def dequantize(self, codes_RI: Codes, params: BlockParams) -> Values:
        from qwen3_export.quantizers.ggml import codes

        return codes.codes_to_values(self.shape, codes_RI, scale_RG=params.scale_RG, offset_RG=params.offset_RG)

    def refit(
        self, codes_RJ: Codes, params: BlockParams, *, gradient_RJ: Values, metric_JJ: Values
    ) -> tuple[BlockParams, Values]:
        """Better integers of groups, then better float16 numbers of blocks."""
        from qwen3_export.quantizers.ggml import refit

        return refit.refit_params(
            self.shape, self.codebook, codes_RJ, params, gradient_RJ=gradient_RJ, metric_JJ=metric_JJ
        )

    def changes_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """[R, S, 1], or [R, S, 2] in formats with an offset: of the float16 scale of each block, and of its offset."""
        return (*shape[:-1], shape[-1] // self.block_size, 1 + self.shape.has_offset)

    def changed(self, params: BlockParams, changes: Values) -> BlockParams:
        from qwen3_export.quantizers.ggml import packing

        offset_RS = params.block_offset_RS
        return packing.effective_params(
            block_scale_RS=_as_float16(params.block_scale_RS * (1 + changes[..., 0])),
            block_offset_RS=None if offset_RS is None else _as_float16(offset_RS * (1 + changes[..., 1])),
            sub_scale_RG=params.sub_scale_RG,
            sub_offset_RG=params.sub_offset_RG,
        )

    def by_changes(self, codes_RI: Codes, params: BlockParams, gradient_RI: Values) -> Values:
        rows, blocks = params.block_scale_RS.shape
        values_RI = self.dequantize(codes_RI, params)
        by_value_RS: Values = (gradient_RI * values_RI).reshape(rows, blocks, -1).sum(axis=2)
        if params.block_offset_RS is None:
            return by_value_RS[..., None]
        sums_RG = gradient_RI.reshape(*params.offset_RG.shape, -1).sum(axis=2)
        by_offset_RS = (sums_RG * params.offset_RG).reshape(rows, blocks, -1).sum(axis=2)
        both: Values = np.stack([by_value_RS + by_offset_RS, -by_offset_RS], axis=2)
        return both

    def pack(self, codes_RI: Codes, params: BlockParams) -> Bytes:
        from qwen3_export.quantizers.ggml import packing

        return packing.pack(self.name, codes_RI, params, shape=self.shape)

    def unpack(self, bytes_RY: Bytes) -> tuple[Codes, BlockParams]:
        from qwen3_export.quantizers.ggml import packing

        if bytes_RY.shape[1] % self.block_bytes:
            raise QuantizationError(
                f"{self.name}: rows of {bytes_RY.shape[1]} bytes are not made of blocks of {self.block_bytes} bytes"
            )
        return packing.unpack(self.name, bytes_RY, shape=self.shape)

    def to_arrays(self, codes_RI: Codes, params: BlockParams) -> dict[str, NDArray[Any]]:
        """The bytes of rows: codes and parameters take several times as much."""
        return {"blocks": self.pack(codes_RI, params)}

    def from_arrays(self, arrays: Arrays) -> tuple[Codes, BlockParams]:
        return self.unpack(arrays["blocks"])

    def array_types(self, shape: tuple[int, ...]) -> dict[str, ArrayType]:
        return {"blocks": ArrayType("|u1", (*shape[:-1], self.row_bytes(shape[-1])))}

    def _check_row(self, columns: int) -> None:
        if columns % self.block_size:
            raise QuantizationError(
                f"{self.name}: {columns} columns are not a multiple of its block of {self.block_size}; "
                f"use a format with smaller blocks"
            )


def _as_float16(values: Values) -> Values:
    return values.astype(np.float16).astype(np.float32)


GGML_FORMATS: Mapping[str, GgmlFormat] = MappingProxyType(
    {name: GgmlFormat(name=name, shape=shape) for name, shape in BLOCK_SHAPES.items()}
)
