"""Palettes: lookup-table formats, as one configurable class.

Shapes: # R rows  I columns  J columns of one slab  L tables (groups of rows)  E entries a table (2 ** num_bits)

This file imports no kernels; methods import what they need when they are called.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from qwen3_export.errors import QuantizationError
from qwen3_export.quantizers.formats import Arrays, ArrayType, Codes, Values, Weighting

__all__ = ["PaletteFormat", "PaletteParams"]

TableDtype = Literal["f16", "f32"]

_BITS = (2, 3, 4, 6, 8)
_LARGEST = {"f16": 65504.0, "f32": 1e15}


@dataclass(frozen=True, slots=True, kw_only=True)
class PaletteParams:
    """The tables of R rows, with ascending entries; row r uses table r // (R / L)."""

    table_LE: Values

    def rows(self, rows: slice, *, of: int) -> PaletteParams:
        """The tables of a block of rows; ``of`` is the number of all rows. A block within one table has that table."""
        size = of // self.table_LE.shape[0]
        first, last = rows.start // size, -(-rows.stop // size)
        if last - first > 1 and (rows.start % size or rows.stop % size):
            raise QuantizationError(f"rows {rows.start} to {rows.stop} cut through a table of {size} rows")
        return PaletteParams(table_LE=self.table_LE[first:last])


@dataclass(frozen=True, slots=True, kw_only=True)
class PaletteFormat:
    """A table of ``2 ** num_bits`` values for each ``rows_per_table`` rows; with None all rows share one table.

    Core ML has 1, 2, 3, 4, 6 and 8 bits, and calls ``rows_per_table`` the group size of grouped channels.
    What the methods do is said at ``NumberFormat``. Codes are indices into a table; a table serves all columns, so a
    solver fits it before its first column.
    """

    num_bits: int
    rows_per_table: int | None = None
    table_dtype: TableDtype = "f16"

    def __post_init__(self) -> None:
        if self.num_bits not in _BITS:
            raise QuantizationError(f"palettes have 2, 3, 4, 6 or 8 bits, not {self.num_bits}")
        if self.rows_per_table is not None and self.rows_per_table < 1:
            raise QuantizationError(
                f"`rows_per_table` {self.rows_per_table} is not positive; leave it out for one table"
            )
        if self.table_dtype not in get_args(TableDtype):
            raise QuantizationError(
                f"`table_dtype` {self.table_dtype!r} is not one of {', '.join(get_args(TableDtype))}"
            )

    @property
    def name(self) -> str:
        """Such as ``palette4_rows16``, ``palette8_tensor``."""
        rows = "tensor" if self.rows_per_table is None else f"rows{self.rows_per_table}"
        return f"palette{self.num_bits}_{rows}" + ("_f32" if self.table_dtype == "f32" else "")

    @property
    def is_float(self) -> bool:
        return False

    @property
    def rows_together(self) -> int | None:
        return self.rows_per_table

    @property
    def codebook(self) -> None:
        return None

    @property
    def columns_together(self) -> None:
        return None

    def check(self, shape: tuple[int, ...]) -> None:
        self.tables(shape[0])

    def tables(self, rows: int) -> int:
        """The number of tables for a number of rows; QuantizationError if it is no multiple of ``rows_per_table``."""
        size = self.rows_per_table or rows
        if rows % size:
            sizes = [str(n) for n in (4, 8, 16, 32, 64) if rows % n == 0] or ["1"]
            raise QuantizationError(
                f"out_features {rows} is not a multiple of `rows_per_table` {size}; use {' or '.join(sizes)}"
            )
        return rows // size

    def bits_per_weight(self, shape: tuple[int, ...]) -> float:
        entry = 16 if self.table_dtype == "f16" else 32
        return self.num_bits + self.tables(shape[0]) * (entry << self.num_bits) / prod(shape)

    def fit(
        self, values_RI: Values, importance: Values | None = None, *, weighting: Weighting = "usual"
    ) -> PaletteParams:
        """Tables; the same rows always give the same tables.

        Raises QuantizationError where rows do not divide, or a weight is beyond the table's dtype.
        """
        from qwen3_export.quantizers.palette import fitting

        tables = self.tables(values_RI.shape[0])
        largest = max(values_RI.max(initial=0), -values_RI.min(initial=0))
        if not largest <= _LARGEST[self.table_dtype]:
            raise QuantizationError(
                f"{self.name}: a weight of magnitude {largest:g} is beyond what {self.table_dtype} tables hold; "
                "keep this weight unquantized"
            )
        table_LE = fitting.fit_tables(values_RI, importance, tables=tables, entries=1 << self.num_bits)
        return PaletteParams(table_LE=self._as_stored(table_LE))

    def round(self, values_RI: Values, params: PaletteParams) -> Codes:
        from qwen3_export.quantizers.palette import kmeans

        codes_RI = np.empty(values_RI.shape, np.uint8)
        kmeans.nearest_entries(codes_RI, np.ascontiguousarray(values_RI, np.float32), params.table_LE)
        return codes_RI

    def encode(self, values_RI: Values, importance: Values | None = None) -> tuple[Codes, PaletteParams]:
        params = self.fit(values_RI, importance)
        return self.round(values_RI, params), params

    def dequantize(self, codes_RI: Codes, params: PaletteParams) -> Values:
        tables = params.table_LE.shape[0]
        codes_LJ = codes_RI.reshape(tables, -1)
        return np.take_along_axis(params.table_LE, codes_LJ.astype(np.intp), axis=1).reshape(codes_RI.shape)

    def refit(
        self, codes_RJ: Codes, params: PaletteParams, *, gradient_RJ: Values, metric_JJ: Values
    ) -> tuple[PaletteParams, Values]:
        """Tables stay: the columns of one slab are only some of those that a table serves."""
        return params, gradient_RJ

    def changes_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """[L, E], of the entries."""
        return self.tables(shape[0]), 1 << self.num_bits

    def changed(self, params: PaletteParams, changes: Values) -> PaletteParams:
        moved_LE = params.table_LE + changes * _largest(params.table_LE)
        # Entries stay in ascending order.
        return PaletteParams(table_LE=np.maximum.accumulate(self._as_stored(moved_LE), axis=1))

    def by_changes(self, codes_RI: Codes, params: PaletteParams, gradient_RI: Values) -> Values:
        tables, entries = params.table_LE.shape
        places_LJ = codes_RI.reshape(tables, -1).astype(np.intp) + np.arange(tables)[:, None] * entries
        sums = np.bincount(places_LJ.ravel(), weights=gradient_RI.ravel(), minlength=tables * entries)
        by_entry_LE: Values = sums.reshape(tables, entries).astype(np.float32) * _largest(params.table_LE)
        return by_entry_LE

    def _as_stored(self, table_LE: Values) -> Values:
        return table_LE if self.table_dtype == "f32" else table_LE.astype(np.float16).astype(np.float32)

    def to_arrays(self, codes_RI: Codes, params: PaletteParams) -> dict[str, NDArray[Any]]:
        return {"codes": codes_RI, "tables": params.table_LE}

    def from_arrays(self, arrays: Arrays) -> tuple[Codes, PaletteParams]:
        return arrays["codes"], PaletteParams(table_LE=arrays["tables"])

    def array_types(self, shape: tuple[int, ...]) -> dict[str, ArrayType]:
        tables = (self.tables(shape[0]), 1 << self.num_bits)
        return {"codes": ArrayType("|u1", shape), "tables": ArrayType("<f4", tables)}


def _largest(table_LE: Values) -> Values:
    """The largest magnitude of each table, [L, 1]."""
    found: Values = np.abs(table_LE).max(axis=1, keepdims=True)
    return found
