"""Write a quantized graph to weight.bin in one pass, without holding a whole matrix in memory.

A few threads draw blocks of rows, each of which is read from the checkpoint, rounded, packed and written where the
plan says; order does not matter, so the bytes are the same from run to run and for any thread count.
"""

# R rows  I columns

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from qwen3_export.errors import QuantizationError
from qwen3_export.graph import ALL_ROWS, Graph, Weight
from qwen3_export.parallel import default_threads, run_jobs
from qwen3_export.quantizers.weights.protocols import QuantizedWeight
from qwen3_export.targets.coreml.blobs import Blob, header_bytes
from qwen3_export.targets.coreml.layout import StoredMatrix, WeightPlan, row_step
from qwen3_export.targets.coreml.storage import storage_of

__all__ = ["write_weights"]

WEIGHTS_PER_BLOCK = 1 << 19


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBlock:
    """Some rows of a weight, as the weight counts them."""

    matrix: StoredMatrix
    weight: QuantizedWeight
    rows: slice

    @property
    def first(self) -> int:
        """The first row, as the stored matrix counts them."""
        start: int = self.rows.start - self.matrix.rows.start
        return start

    @property
    def num_weights(self) -> int:
        count: int = self.rows.stop - self.rows.start
        return count * (self.weight.shape[1] if len(self.weight.shape) > 1 else 1)


def write_weights(
    descriptor: int,
    graph: Graph,
    plan: WeightPlan,
    *,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Fill the open file. ``progress`` is called with the number of weights of each block.

    Raises CheckpointError for weights that cannot be read, QuantizationError for those that cannot be stored.
    """
    blobs = list(plan.blobs)
    _write(descriptor, header_bytes(len(blobs)), 0)
    for blob in blobs:
        _write(descriptor, blob.record(), blob.offset)
    for blob, array in plan.constants.values():
        _write(descriptor, np.ascontiguousarray(array).tobytes(), blob.data_offset)

    def convert(block: RowBlock) -> None:
        for part, data in _encode(block).items():
            blob = plan.parts[block.matrix.name][part]
            _write(descriptor, data.tobytes(), blob.byte_of(_first_element(blob, block)))
        if progress is not None:
            progress(block.num_weights)

    run_jobs(convert, _row_blocks(graph, plan), threads=threads or default_threads())


def _row_blocks(graph: Graph, plan: WeightPlan) -> Iterator[RowBlock]:
    for matrix in plan.matrices.values():
        weight, rows = _quantized(graph.weights[matrix.weight]), matrix.rows
        if len(weight.shape) == 1:
            yield RowBlock(matrix=matrix, weight=weight, rows=rows)
            continue
        unit = row_step(matrix.number_format)
        step = max(WEIGHTS_PER_BLOCK // (weight.shape[1] * unit), 1) * unit
        for start in range(rows.start, rows.stop, step):
            yield RowBlock(matrix=matrix, weight=weight, rows=slice(start, min(start + step, rows.stop)))


def _quantized(weight: Weight) -> QuantizedWeight:
    if not isinstance(weight, QuantizedWeight):
        raise QuantizationError(f"{weight.name}: has no number format yet; quantize the graph first")
    return weight


def _first_element(blob: Blob, block: RowBlock) -> int:
    """The flat index in an array, [rows or tables, …], of what belongs to the block's first row."""
    rows, elements = block.matrix.shape[0], int(np.prod(blob.shape))
    return block.first * elements // rows


def _encode(block: RowBlock) -> Mapping[str, np.ndarray]:
    """The bytes of each part of a block of rows."""
    codes_RI, params = block.weight.encode(block.rows if len(block.weight.shape) > 1 else ALL_ROWS)
    try:
        return storage_of(block.matrix.number_format).pack(codes_RI, params)
    except QuantizationError as error:
        raise QuantizationError(f"{block.weight.name}: {error}") from error


def _write(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
