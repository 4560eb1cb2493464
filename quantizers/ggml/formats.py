"""The table of GGML's number formats, and the one class whose instances it holds.

Shapes: # R rows  I columns  S blocks a row  G groups a row

This file imports no kernels; methods import what they need when they are called.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from qwen3_export.errors import QuantizationError
from qwen3_export.quantizers.ggml.shapes import BLOCK_SHAPES, BlockShape

if TYPE_CHECKING:
    from qwen3_export.quantizers.ggml.params import BlockParams

Values = NDArray[np.float32]
Codes = NDArray[np.int8]
Bytes = NDArray[np.uint8]
Weighting = Literal["magnitude", "importance"]

__all__ = ["GGML_FORMATS", "GgmlFormat", "Weighting"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GgmlFormat:
    """One of GGML's number formats.

    ``type_id`` is its number in ggml's enum and in GGUF files. ``activation`` names the type that llama.cpp's CPU
    matmul rounds the activations to when weights have this format (``vec_dot_type`` in ``ggml-cpu.c``).

    ``encode`` and ``decode`` are all that a file writer needs. Solvers take the steps apart, on any whole number of
    blocks: ``fit`` chooses the parameters, ``round`` the codes under given parameters, ``pack`` writes the bytes, and
    ``encode`` is these three. ``unpack`` and ``dequantize`` go back.
    """

    name: str
    type_id: int
    block_size: int
    block_bytes: int
    activation: str

    @property
    def bits_per_weight(self) -> float:
        """Stored bits a weight, scales included."""
        return 8 * self.block_bytes / self.block_size

    @property
    def shape(self) -> BlockShape:
        """Groups, code range and levels; QuantizationError for F32, F16 and BF16, which have no blocks."""
        if self.name not in BLOCK_SHAPES:
            raise QuantizationError(f"{self.name} has no blocks to fit; encode and decode are all it offers")
        return BLOCK_SHAPES[self.name]

    def row_bytes(self, columns: int) -> int:
        """Bytes that a row of this many weights takes."""
        if columns % self.block_size:
            raise QuantizationError(
                f"{self.name}: {columns} columns are not a multiple of its block of {self.block_size}; "
                f"use a format with smaller blocks"
            )
        return columns // self.block_size * self.block_bytes

    def encode(self, values_RI: Values, importance_I: Values | None = None) -> Bytes:
        """Rows of weights to rows of bytes, [R, row_bytes].

        ``importance_I`` says how much each column matters (mean squared activation, say). It must not be negative.
        Runs on one thread without the GIL; the bytes of a row do not depend on the other rows.
        """
        self.row_bytes(values_RI.shape[1])
        if self.name not in BLOCK_SHAPES:
            from qwen3_export.quantizers.ggml import floats

            return floats.encode(self.name, values_RI)
        params = self.fit(values_RI, importance_I)
        return self.pack(self.round(values_RI, params), params)

    def decode(self, blocks_RY: Bytes) -> Values:
        """Rows of bytes to the weights that a runtime reads from them, [R, I]: the inverse of ``encode``."""
        if self.name not in BLOCK_SHAPES:
            from qwen3_export.quantizers.ggml import floats

            return floats.decode(self.name, blocks_RY)
        return self.dequantize(*self.unpack(blocks_RY))

    def fit(
        self, values_RI: Values, importance: Values | None = None, *, weighting: Weighting = "magnitude"
    ) -> BlockParams:
        """Scales and offsets for rows of weights. ``importance`` is [I], or [R, I] where rows differ.

        By default an error counts for its importance, and a little more in a large weight; a solver whose importances
        are final says ``weighting="importance"``.
        """
        from qwen3_export.quantizers.ggml import fitting

        self.row_bytes(values_RI.shape[1])
        return fitting.fit(self.name, values_RI, importance, shape=self.shape, weighting=weighting)

    def round(self, values_RI: Values, params: BlockParams) -> Codes:
        """The nearest code of each weight under given parameters, [R, I], from ``code_low`` to ``code_high``."""
        from qwen3_export.quantizers.ggml import codes

        return codes.round_to_codes(self.shape, values_RI, scale_RG=params.scale_RG, offset_RG=params.offset_RG)

    def dequantize(self, codes_RI: Codes, params: BlockParams) -> Values:
        """The weights that these codes stand for, [R, I], bit for bit what a runtime computes."""
        from qwen3_export.quantizers.ggml import codes

        return codes.codes_to_values(self.shape, codes_RI, scale_RG=params.scale_RG, offset_RG=params.offset_RG)

    def pack(self, codes_RI: Codes, params: BlockParams) -> Bytes:
        """The bytes of rows of codes, [R, row_bytes]."""
        from qwen3_export.quantizers.ggml import packing

        return packing.pack(self.name, codes_RI, params, shape=self.shape)

    def unpack(self, blocks_RY: Bytes) -> tuple[Codes, BlockParams]:
        """Codes and parameters of rows of bytes: the inverse of ``pack``."""
        from qwen3_export.quantizers.ggml import packing

        if blocks_RY.shape[1] % self.block_bytes:
            raise QuantizationError(
                f"{self.name}: rows of {blocks_RY.shape[1]} bytes are not made of blocks of {self.block_bytes} bytes"
            )
        return packing.unpack(self.name, blocks_RY, shape=self.shape)


def _table() -> dict[str, GgmlFormat]:
    #         name     id  block bytes activation
    rows = (
        ("F32", 0, 1, 4, "F32"),
        ("F16", 1, 1, 2, "F16"),
        ("Q4_0", 2, 32, 18, "Q8_0"),
        ("Q4_1", 3, 32, 20, "Q8_1"),
        ("Q5_0", 6, 32, 22, "Q8_0"),
        ("Q5_1", 7, 32, 24, "Q8_1"),
        ("Q8_0", 8, 32, 34, "Q8_0"),
        ("Q2_K", 10, 256, 84, "Q8_K"),
        ("Q3_K", 11, 256, 110, "Q8_K"),
        ("Q4_K", 12, 256, 144, "Q8_K"),
        ("Q5_K", 13, 256, 176, "Q8_K"),
        ("Q6_K", 14, 256, 210, "Q8_K"),
        ("IQ4_NL", 20, 32, 18, "Q8_0"),
        ("IQ4_XS", 23, 256, 136, "Q8_K"),
        ("BF16", 30, 1, 2, "BF16"),
    )
    return {
        name: GgmlFormat(name=name, type_id=type_id, block_size=size, block_bytes=count, activation=activation)
        for name, type_id, size, count, activation in rows
    }


GGML_FORMATS: Mapping[str, GgmlFormat] = MappingProxyType(_table())
