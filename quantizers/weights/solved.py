"""Weights whose codes and parameters a solver has chosen; they lie in files, and rows are read when they are asked for.

A file holds the arrays of one weight (``NumberFormat.array_types``), one behind the other. It needs no header: the
number format and the shape say where each row lies. Rows are read by position, as pages of a memory map would count as
resident memory.

Shapes: # R rows  I columns
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_export.files.atomic import partial_file, write_all
from qwen3_export.files.positional import read_exactly
from qwen3_export.files.recognise import is_work_file
from qwen3_export.graph import ALL_ROWS, Role, module_name
from qwen3_export.quantizers.formats import Codes, NumberFormat, Values
from qwen3_export.quantizers.weights.protocols import read_quantized, whole_tables

__all__ = ["SolvedWeight", "save_solved"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SolvedWeight:
    """A matrix in a number format; ``path`` is the file that ``save_solved`` wrote."""

    role: Role
    shape: tuple[int, ...]
    number_format: NumberFormat
    path: Path

    @property
    def name(self) -> str:
        return module_name(self.role)

    @property
    def format(self) -> str:
        return self.number_format.name

    def encode(self, rows: slice = ALL_ROWS) -> tuple[Codes, Any]:
        """Codes and parameters of a block of rows.

        Raises QuantizationError for a block that cuts through rows that share parameters, CheckpointError for a file
        that is cut short.
        """
        first, last = whole_tables(self, rows)
        arrays, offset = {}, 0
        for name, kind in self.number_format.array_types(self.shape).items():
            together = self.shape[0] // kind.shape[0]
            start, stop = first // together, last // together
            size = kind.num_bytes // kind.shape[0]
            data = read_exactly(self.path, offset + start * size, (stop - start) * size, part=self.name)
            arrays[name] = np.frombuffer(data, kind.dtype).reshape(stop - start, *kind.shape[1:])
            offset += kind.num_bytes
        return self.number_format.from_arrays(arrays)

    def read(self, rows: slice = ALL_ROWS) -> Values:
        """What a runtime computes from the codes, fp32; any rows."""
        return read_quantized(self, rows)


def save_solved(path: Path, number_format: NumberFormat, codes_RI: Codes, params: Any) -> None:
    """Write the file of one weight; it appears under its name when it is whole."""
    kinds = number_format.array_types(codes_RI.shape)
    arrays = number_format.to_arrays(codes_RI, params)
    size = sum(kind.num_bytes for kind in kinds.values())
    with partial_file(path, num_bytes=size, overwrite=True, is_ours=is_work_file) as descriptor:
        for name, kind in kinds.items():
            write_all(descriptor, np.ascontiguousarray(arrays[name], kind.dtype).tobytes())
