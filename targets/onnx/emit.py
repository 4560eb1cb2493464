"""Write a quantized graph to the external data files, without holding a whole matrix in memory.

A few threads take blocks of rows. Each block is read from the checkpoint, rounded, packed and written at its planned
place. The order of blocks does not matter, so the bytes are the same for every run and any number of threads.
"""

# R rows  I columns  G groups a row  Y bytes a group

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qwen3_export.errors import QuantizationError
from qwen3_export.graph import ALL_ROWS, Graph, Weight
from qwen3_export.parallel import default_threads, run_jobs
from qwen3_export.quantizers.packing.onnx import pack_matmul_nbits
from qwen3_export.quantizers.weights.protocols import QuantizedWeight
from qwen3_export.targets.onnx.layout import CODES, SCALE_TYPES, SCALES, VALUES, ZERO_POINTS, DataPlan, StoredMatrix

__all__ = ["write_data"]

WEIGHTS_PER_BLOCK = 1 << 19


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBlock:
    """The same rows of weights that are stored alternately; ``first`` is their first row in the stored matrix."""

    matrix: StoredMatrix
    weights: tuple[QuantizedWeight, ...]
    rows: slice
    first: int

    @property
    def num_weights(self) -> int:
        count: int = self.rows.stop - self.rows.start
        return count * self.weights[0].shape[-1] * len(self.weights)


def write_data(
    descriptors: Sequence[int],
    graph: Graph,
    plan: DataPlan,
    *,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Fill the open data files. ``progress`` is called with the number of weights of each block.

    Raises CheckpointError for weights that cannot be read, and QuantizationError for weights that cannot be stored.
    """
    for place, array in plan.constants.values():
        _write(descriptors[place.file], np.ascontiguousarray(array).tobytes(), place.offset)

    def convert(block: RowBlock) -> None:
        for part, data in _encode(block).items():
            place = plan.initializers[block.matrix.name][part]
            _write(descriptors[place.file], data.tobytes(), place.offset + block.first * place.row_bytes)
        if progress is not None:
            progress(block.num_weights)

    run_jobs(convert, _row_blocks(graph, plan), threads=threads or default_threads())


def _row_blocks(graph: Graph, plan: DataPlan) -> Iterator[RowBlock]:
    for matrix in plan.matrices.values():
        first = 0
        for segment in matrix.segments:
            weights = tuple(_quantized(graph[role]) for role in segment)
            yield from _blocks_of(matrix, weights, first)
            first += sum(weight.shape[0] for weight in weights)


def _blocks_of(matrix: StoredMatrix, weights: tuple[QuantizedWeight, ...], first: int) -> Iterator[RowBlock]:
    shape = weights[0].shape
    if len(shape) == 1:
        yield RowBlock(matrix=matrix, weights=weights, rows=slice(0, 1), first=first)
        return
    step = max(WEIGHTS_PER_BLOCK // (shape[1] * len(weights)), 1)
    for start in range(0, shape[0], step):
        rows = slice(start, min(start + step, shape[0]))
        yield RowBlock(matrix=matrix, weights=weights, rows=rows, first=first + start * len(weights))


def _quantized(weight: Weight) -> QuantizedWeight:
    if not isinstance(weight, QuantizedWeight):
        raise QuantizationError(f"{weight.name}: has no number format yet; quantize the graph first")
    return weight


def _encode(block: RowBlock) -> Mapping[str, np.ndarray]:
    """The bytes of each part, [R, …]; rows of several weights alternate."""
    encoded = [_encode_one(weight, block.rows, block.matrix) for weight in block.weights]
    if len(encoded) == 1:
        return encoded[0]
    return {
        part: np.stack([parts[part] for parts in encoded], axis=1).reshape(-1, *encoded[0][part].shape[1:])
        for part in encoded[0]
    }


def _encode_one(weight: QuantizedWeight, rows: slice, matrix: StoredMatrix) -> Mapping[str, np.ndarray]:
    codes_RI, params = weight.encode(rows if len(weight.shape) > 1 else ALL_ROWS)
    integers = matrix.integers
    if integers is None:
        return {VALUES: codes_RI}
    packed = pack_matmul_nbits(codes_RI, params, num_bits=integers.num_bits, has_zero_points=not integers.symmetric)
    parts = {CODES: packed.weight_OGY, SCALES: packed.scale_OG.astype(SCALE_TYPES[integers.scale_dtype])}
    if packed.zero_points_OY is not None:
        parts[ZERO_POINTS] = packed.zero_points_OY
    return parts


def _write(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
