"""What every weight in a number format offers, wherever its codes come from.

Shapes: # R rows  I columns
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from qwen3_export.errors import QuantizationError
from qwen3_export.graph import ALL_ROWS, Weight
from qwen3_export.quantizers.formats import Codes, NumberFormat, Values

__all__ = ["QuantizedWeight", "code_format", "read_quantized", "whole_tables"]


@runtime_checkable
class QuantizedWeight(Weight, Protocol):
    """A weight in a number format: rounded, solved, or read back from an artifact."""

    @property
    def number_format(self) -> NumberFormat: ...

    def encode(self, rows: slice = ALL_ROWS) -> tuple[Codes, Any]:
        """Codes [R, I] of a block of rows, and their parameters; a vector is one row.

        Raises QuantizationError where the block holds some but not all of the rows that share parameters.
        """
        ...


def code_format(weight: Weight) -> NumberFormat | None:
    """The number format of a weight that is stored as codes; None for floats."""
    if not isinstance(weight, QuantizedWeight) or weight.number_format.is_float:
        return None
    return weight.number_format


def whole_tables(weight: QuantizedWeight, rows: slice) -> tuple[int, int]:
    """The first row of a block and the one after its last.

    Raises QuantizationError where the block holds some but not all of the rows that share parameters.
    """
    count = weight.shape[0]
    first, last, _ = rows.indices(count)
    together = weight.number_format.rows_together or count
    if first % together or (last - first) % together:
        raise QuantizationError(f"{weight.name}: rows {first} to {last} cut through a table of {together} rows")
    return first, max(first, last)


def read_quantized(weight: QuantizedWeight, rows: slice) -> Values:
    """The values of any block of rows: rows that share parameters with them are decoded too, and left out."""
    number_format = weight.number_format
    if len(weight.shape) == 1:
        values_1I = number_format.dequantize(*weight.encode(rows))
        return values_1I.reshape(-1)
    count = weight.shape[0]
    first, last, _ = rows.indices(count)
    together = number_format.rows_together or count
    start, stop = first // together * together, min(-(-last // together) * together, count)
    values_RI = number_format.dequantize(*weight.encode(slice(start, stop)))
    return values_RI[first - start : last - start]
