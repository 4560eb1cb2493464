"""The layout of weight.bin: the place of every array, decided before any weight is read.

A matrix of the program is one array or two, by its number format (``storage.py``). The output head may be split into
parts of whole rows: then a tied head is stored once more beside the embedding, as an operator of Core ML has one
constant and no slice of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import lcm, prod

import numpy as np

from qwen3_export.errors import QuantizationError
from qwen3_export.graph import Graph, Kind, Weight, module_name
from qwen3_export.targets.coreml.blobs import ELEMENTS, RECORD_BYTES, Blob, aligned
from qwen3_export.targets.coreml.names import HEAD_PART, mil_name
from qwen3_export.targets.coreml.recipes import CoremlFormat
from qwen3_export.targets.coreml.storage import VALUES, storage_of

__all__ = ["StoredMatrix", "WeightPlan", "matrix_bytes", "plan_weights", "row_step", "stored_matrices"]

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
            for part, (element, shape) in storage_of(matrix.number_format).elements(matrix.shape).items()
        }
        for matrix in matrices
    }
    placed = {
        name: (place(name, NUMPY_ELEMENTS[array.dtype.str], array.shape), array) for name, array in constants.items()
    }
    return WeightPlan(
        matrices={matrix.name: matrix for matrix in matrices}, parts=parts, constants=placed, num_bytes=end
    )


def matrix_bytes(shape: tuple[int, ...], number_format: CoremlFormat) -> int:
    """What a matrix takes of the file: its arrays, their records, and the gaps behind them."""
    elements = storage_of(number_format).elements(shape).values()
    return sum(aligned(RECORD_BYTES + -(-prod(size) * ELEMENTS[element].num_bits // 8)) for element, size in elements)


def row_step(number_format: CoremlFormat) -> int:
    """Blocks of so many rows, or multiples, begin a byte of each array and hold whole tables."""
    return lcm(8, number_format.rows_together or 1)


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
