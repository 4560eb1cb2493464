"""The layout of weight.bin: the place of every array, decided before any weight is read.

A matrix of the program is one array (floats), codes and scales (affine integers), or indices and tables (palettes),
under the names that the MIL operator uses. The output head may be split into parts of whole rows. A tied head is then
stored a second time beside the embedding, because a Core ML operator reads a whole constant and not a slice of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import lcm

import numpy as np

from qwen3_export.errors import QuantizationError
from qwen3_export.graph import Graph, Kind, Weight, module_name
from qwen3_export.quantizers.affine import AffineFormat
from qwen3_export.quantizers.palette import PaletteFormat
from qwen3_export.targets.coreml.blobs import RECORD_BYTES, Blob, aligned
from qwen3_export.targets.coreml.names import HEAD_PART, mil_name
from qwen3_export.targets.coreml.recipes import CoremlFormat

__all__ = [
    "CODES",
    "INDICES",
    "SCALES",
    "TABLES",
    "VALUES",
    "StoredMatrix",
    "WeightPlan",
    "plan_weights",
    "row_step",
    "stored_matrices",
]

# Parts of a matrix: the value of a constant, and inputs of constexpr_blockwise_shift_scale and constexpr_lut_to_dense.
VALUES, CODES, SCALES, INDICES, TABLES = "val", "data", "scale", "indices", "lut"

FLOATS: Mapping[str, str] = {"F32": "fp32", "F16": "fp16", "f32": "fp32", "f16": "fp16"}
NUMPY_ELEMENTS: Mapping[str, str] = {"<f4": "fp32", "<f2": "fp16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMatrix:
    """Rows of a weight of the graph (usually all of them) under a name in the program."""

    name: str
    weight: str
    rows: slice
    shape: tuple[int, ...]
    number_format: CoremlFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightPlan:
    """The planned file: matrices by name, the arrays of each by part, and constants."""

    matrices: Mapping[str, StoredMatrix]
    parts: Mapping[str, Mapping[str, Blob]]
    constants: Mapping[str, tuple[Blob, np.ndarray]]
    num_bytes: int

    @property
    def blobs(self) -> Iterator[Blob]:
        """All arrays, in the order of the file."""
        yield from (blob for parts in self.parts.values() for blob in parts.values())
        yield from (blob for blob, _ in self.constants.values())


def stored_matrices(
    graph: Graph, formats: Mapping[str, CoremlFormat], *, head_rows: int | None = None
) -> list[StoredMatrix]:
    """Everything that the program reads, in the order of a forward pass.

    ``head_rows`` splits the output head into parts of that many rows. Raises QuantizationError if a part would begin
    inside a byte or cut through a table.
    """
    if head_rows is None or head_rows >= graph.head.shape[0]:
        return [_whole(weight, formats) for weight in graph]
    kept = [_whole(weight, formats) for weight in graph if weight.role.kind is not Kind.LM_HEAD]
    return [*kept, *_head_parts(graph, formats, head_rows)]


def plan_weights(matrices: Sequence[StoredMatrix], constants: Mapping[str, np.ndarray]) -> WeightPlan:
    """Place every array, from shapes and formats alone."""
    end = RECORD_BYTES

    def place(name: str, element: str, shape: tuple[int, ...]) -> Blob:
        nonlocal end
        offset = aligned(end)
        blob = Blob(name=name, element=element, shape=shape, offset=offset, data_offset=offset + RECORD_BYTES)
        end = blob.end
        return blob

    parts = {
        matrix.name: {
            part: place(matrix.name if part == VALUES else f"{matrix.name}_{part}", element, shape)
            for part, (element, shape) in _arrays(matrix).items()
        }
        for matrix in matrices
    }
    placed = {
        name: (place(name, NUMPY_ELEMENTS[array.dtype.str], array.shape), array) for name, array in constants.items()
    }
    return WeightPlan(
        matrices={matrix.name: matrix for matrix in matrices}, parts=parts, constants=placed, num_bytes=end
    )


def row_step(number_format: CoremlFormat) -> int:
    """Blocks of this many rows, or multiples, fill whole bytes of each array and whole tables."""
    together = number_format.rows_together if isinstance(number_format, PaletteFormat) else 1
    return lcm(8, together or 1)


def _whole(weight: Weight, formats: Mapping[str, CoremlFormat]) -> StoredMatrix:
    return StoredMatrix(
        name=mil_name(weight.name),
        weight=weight.name,
        rows=slice(0, weight.shape[0]),
        shape=weight.shape,
        number_format=formats[weight.name],
    )


def _head_parts(graph: Graph, formats: Mapping[str, CoremlFormat], head_rows: int) -> Iterator[StoredMatrix]:
    head = graph.head
    name, (count, columns) = module_name(head.role), head.shape
    unit = row_step(formats[name])
    if head_rows < 1 or head_rows % unit:
        raise QuantizationError(f"`split_lm_head` {head_rows}: must be a multiple of {unit}, such as {unit * 1024}")
    for index, first in enumerate(range(0, count, head_rows)):
        rows = slice(first, min(first + head_rows, count))
        yield StoredMatrix(
            name=f"{HEAD_PART}{index}",
            weight=name,
            rows=rows,
            shape=(rows.stop - rows.start, columns),
            number_format=formats[name],
        )


def _arrays(matrix: StoredMatrix) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Element type and shape of each part of a matrix."""
    number_format, shape = matrix.number_format, matrix.shape
    if isinstance(number_format, str):
        return {VALUES: (FLOATS[number_format], shape)}
    bits = number_format.num_bits
    if isinstance(number_format, AffineFormat):
        groups = shape[1] // number_format.columns_a_group(shape[1])
        return {CODES: (f"int{bits}", shape), SCALES: (FLOATS[number_format.scale_dtype], (shape[0], groups))}
    tables = (number_format.tables(shape[0]), 1, 1 << bits, 1)
    return {INDICES: (f"uint{bits}", shape), TABLES: (FLOATS[number_format.table_dtype], tables)}
