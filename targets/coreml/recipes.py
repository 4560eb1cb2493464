"""The Core ML recipes: the number format of each weight.

iOS 18 has two kinds of compressed constants: integers in blocks with one scale each
(``constexpr_blockwise_shift_scale``), and palettes, whose tables are shared by some rows, called "grouped channels"
(``constexpr_lut_to_dense``). Blocks suit GPUs. The Neural Engine wants one scale or table along a whole row: palettes,
int8, and int4 with one scale per row (``channelwise``). A tied embedding is also the output head: one constant, read by
a gather and by a linear operator.
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
from qwen3_export.targets.coreml.target import GROUP_SIZES

__all__ = ["RECIPES", "CoremlFormat", "Recipe", "assign", "find_recipe", "table_rows"]


FloatType = Literal["F32", "F16"]
CoremlFormat = FloatFormat | AffineFormat | PaletteFormat

# The most rows that share a table. With these, tables cost a few hundredths of a bit per weight for any number of bits.
TABLE_ROWS: Mapping[int, int] = MappingProxyType({4: 8, 6: 16, 8: 32})


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How weights are stored; ``num_bits`` is None if they are not quantized.

    ``float_type`` is the type of activations, scales, tables and unquantized weights.
    """

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
    """Find a recipe by name, in any case. Raises QuantizationError for an unknown name."""
    found = RECIPES.get(name.lower())
    if found is None:
        raise QuantizationError(f"`recipe` {name}: not a Core ML recipe; use one of {', '.join(RECIPES)}")
    return found


def assign(graph: Graph, recipe: Recipe, *, group_size: int = 32, channelwise: bool = False) -> dict[str, CoremlFormat]:
    """The format of every weight by its name: F32 or F16, affine integers, or a palette.

    ``channelwise`` gives int4 one scale per row; other recipes have that already. Raises QuantizationError for a group
    size that does not divide a weight's columns.
    """
    size = group_size if recipe.has_blocks and not channelwise else None
    return {weight.name: _format(weight, recipe, group_size=size) for weight in graph}


def _format(weight: Weight, recipe: Recipe, *, group_size: int | None) -> CoremlFormat:
    if recipe.num_bits is None or len(weight.shape) == 1:
        return F32 if recipe.float_type == "F32" else F16
    if recipe.is_palette:
        return PaletteFormat(
            num_bits=recipe.num_bits, rows_per_table=table_rows(weight.shape[0], TABLE_ROWS[recipe.num_bits])
        )
    columns = weight.shape[1]
    if group_size is not None and columns % group_size:
        fitting = [str(size) for size in GROUP_SIZES if columns % size == 0]
        advice = f"use {' or '.join(fitting)}, or `channelwise=True`" if fitting else "use `channelwise=True`"
        raise QuantizationError(
            f"{weight.name}: in_features {columns} is not a multiple of `group_size` {group_size}; {advice}"
        )
    return AffineFormat(num_bits=recipe.num_bits, group_size=group_size, scale_dtype="f16")


def table_rows(rows: int, most: int) -> int:
    """The largest number of rows, up to ``most``, that divides ``rows``; some vocabularies are odd."""
    return next(size for size in range(most, 0, -1) if rows % size == 0)
