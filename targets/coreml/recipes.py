"""The Core ML recipes: which number format each weight takes.

iOS 18 has two compressed constants: integers in blocks with a scale each (``constexpr_blockwise_shift_scale``), and
palettes whose tables are shared by some rows, "grouped channels" (``constexpr_lut_to_dense``). GPUs like blocks; the
Neural Engine wants what is the same along a row: palettes, int8, and int4 with one scale a row (``channelwise``).

The tied embedding is the output head too: one constant, which a gather and a linear operator read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from qwen3_export.errors import QuantizationError
from qwen3_export.graph import Graph, Weight
from qwen3_export.quantizers.affine import AffineFormat
from qwen3_export.quantizers.floats import F16, F32, FloatFormat
from qwen3_export.quantizers.palette import PaletteFormat

__all__ = ["BLOCK_SIZES", "RECIPES", "CoremlFormat", "Recipe", "assign", "find_recipe"]

BLOCK_SIZES = (16, 32, 64, 128, 256)

FloatType = Literal["F32", "F16"]
CoremlFormat = FloatFormat | AffineFormat | PaletteFormat

# Rows that share a table, at most: tables are a few hundredths of a bit a weight then, whatever the number of bits.
TABLE_ROWS: Mapping[int, int] = MappingProxyType({4: 8, 6: 16, 8: 32})


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """``float_type`` is that of activations, scales, tables and what is not quantized; ``num_bits`` None for none."""

    name: str
    description: str
    float_type: FloatType = "F16"
    num_bits: int | None = None
    is_palette: bool = False
    has_blocks: bool = False

    @property
    def is_quantized(self) -> bool:
        return self.num_bits is not None


_ALL = (
    Recipe(name="fp32", description="every weight as fp32, computed in fp32: exact, and slow", float_type="F32"),
    Recipe(name="fp16", description="every weight as fp16"),
    Recipe(name="int8", description="8 bits, one scale a row: nearly the original", num_bits=8),
    Recipe(name="int4", description="4 bits in blocks: the usual choice for GPUs", num_bits=4, has_blocks=True),
    Recipe(name="palette8", description="tables of 256 values for 32 rows", num_bits=8, is_palette=True),
    Recipe(name="palette6", description="tables of 64 values for 16 rows", num_bits=6, is_palette=True),
    Recipe(
        name="palette4",
        description="tables of 16 values for 8 rows: the usual choice for the Neural Engine",
        num_bits=4,
        is_palette=True,
    ),
)
RECIPES: Mapping[str, Recipe] = MappingProxyType({recipe.name: recipe for recipe in _ALL})


def find_recipe(name: str) -> Recipe:
    """The recipe of this name, in any case; QuantizationError for another name."""
    found = RECIPES.get(name.lower())
    if found is None:
        raise QuantizationError(f"--quant {name}: no Core ML recipe; there is {', '.join(RECIPES)}")
    return found


def assign(graph: Graph, recipe: Recipe, *, block_size: int = 32, channelwise: bool = False) -> dict[str, CoremlFormat]:
    """The format of every weight by its name: F32 or F16, affine integers, or a palette.

    ``channelwise`` gives int4 one scale a row; the others are that way already. Raises QuantizationError for a block
    size that Core ML's kernels do not know, or that does not divide a weight's rows.
    """
    if block_size not in BLOCK_SIZES:
        raise QuantizationError(f"--block-size {block_size}: there is {', '.join(map(str, BLOCK_SIZES))}")
    size = block_size if recipe.has_blocks and not channelwise else None
    return {weight.name: _format(weight, recipe, block_size=size) for weight in graph}


def _format(weight: Weight, recipe: Recipe, *, block_size: int | None) -> CoremlFormat:
    if recipe.num_bits is None or len(weight.shape) == 1:
        return F32 if recipe.float_type == "F32" else F16
    if recipe.is_palette:
        return PaletteFormat(
            num_bits=recipe.num_bits, rows_per_table=_table_rows(weight.shape[0], TABLE_ROWS[recipe.num_bits])
        )
    columns = weight.shape[1]
    if block_size is not None and columns % block_size:
        fitting = [str(size) for size in BLOCK_SIZES if columns % size == 0]
        advice = f"use {' or '.join(fitting)}, or --channelwise" if fitting else "use --channelwise"
        raise QuantizationError(
            f"{weight.name}: in_features {columns} is not a multiple of --block-size {block_size}; {advice}"
        )
    return AffineFormat(num_bits=recipe.num_bits, group_size=block_size, scale_dtype="f16")


def _table_rows(rows: int, most: int) -> int:
    """The largest number of rows up to ``most`` that divides all: some vocabularies are odd."""
    return next(size for size in range(most, 0, -1) if rows % size == 0)
