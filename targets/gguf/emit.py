"""Write a quantized graph to a GGUF file in one pass, without holding a whole tensor in memory.

``plan_files`` lays out every file to the last byte, from shapes and formats alone. ``emit`` then lets a few threads
take blocks of rows. Each block is read from the checkpoint, quantized and written at its planned offset. The order of
blocks does not matter, so the bytes are the same for every run and any number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen3_export.errors import OutputError, QuantizationError
from qwen3_export.files.atomic import partial_files
from qwen3_export.files.recognise import is_gguf_model
from qwen3_export.graph import ALL_ROWS, Graph, Weight
from qwen3_export.parallel import default_threads, run_jobs
from qwen3_export.quantizers.formats import PackedFormat, as_packed
from qwen3_export.quantizers.weights.protocols import QuantizedWeight
from qwen3_export.targets.gguf.container import MetaValue, TensorInfo, aligned, lay_out, serialize_header
from qwen3_export.targets.gguf.formats import TYPE_IDS
from qwen3_export.targets.gguf.metadata import split_metadata
from qwen3_export.targets.gguf.names import GgufTensor, gguf_tensors

__all__ = ["FilePlan", "emit", "part_paths", "plan_files"]

WEIGHTS_PER_BLOCK = 1 << 19


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePlan:
    """One planned file: its header, and the place of each tensor (``offset`` counts from the end of the header)."""

    path: Path
    header: bytes
    tensors: tuple[tuple[GgufTensor, TensorInfo], ...]

    @property
    def num_bytes(self) -> int:
        # The last tensor is padded too, as in files that llama.cpp writes.
        return len(self.header) + sum(aligned(info.num_bytes) for _, info in self.tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBlock:
    """A block of rows of one weight, and the file and offset where its bytes go."""

    weight: QuantizedWeight
    number_format: PackedFormat
    rows: slice
    file: int
    offset: int
    num_weights: int


def plan_files(
    graph: Graph, metadata: Mapping[str, MetaValue], path: Path, *, split_max_size: int | None = None
) -> list[FilePlan]:
    """Lay out the file for a quantized graph, or several files of at most ``split_max_size`` bytes of tensor data.

    Raises OutputError if a single tensor is larger than ``split_max_size``.
    """
    tensors = gguf_tensors(graph)
    groups = [tensors] if split_max_size is None else _split(tensors, split_max_size)
    paths = part_paths(path, len(groups)) if split_max_size is not None else [path]
    plans = []
    for i, (part, group) in enumerate(zip(paths, groups, strict=True)):
        infos = lay_out(_described(tensor) for tensor in group)
        own = dict(metadata) if i == 0 else {}
        if len(groups) > 1:
            own |= split_metadata(i, len(groups), len(tensors))
        plans.append(
            FilePlan(path=part, header=serialize_header(own, infos), tensors=tuple(zip(group, infos, strict=True)))
        )
    return plans


def part_paths(path: Path, count: int) -> list[Path]:
    """``NAME.gguf``, or ``NAME-00001-of-00003.gguf`` and so on: llama.cpp finds the others from the first."""
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{i:05d}-of-{count:05d}{path.suffix}") for i in range(1, count + 1)]


def emit(
    plans: Sequence[FilePlan],
    *,
    overwrite: bool = False,
    inputs: Iterable[Path] = (),
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Quantize and write the planned files. They get their names when all of them are complete.

    With ``overwrite`` they replace other GGUF models, and nothing else; ``inputs`` are files that stay in any case.
    ``progress`` is called with the number of weights of each block that was written.  Raises CheckpointError for
    weights that cannot be read or are not finite, OutputError for a full disk and for a place that is taken; nothing
    is left behind then.
    """
    files = [(plan.path, plan.num_bytes) for plan in plans]
    with partial_files(files, overwrite=overwrite, is_ours=is_gguf_model, inputs=inputs) as descriptors:
        for descriptor, plan in zip(descriptors, plans, strict=True):
            _write(descriptor, plan.header, 0)

        def quantize_and_write(block: RowBlock) -> None:
            data = block.number_format.pack(*block.weight.encode(block.rows))
            _write(descriptors[block.file], data.tobytes(), block.offset)
            if progress is not None:
                progress(block.num_weights)

        run_jobs(quantize_and_write, _row_blocks(plans), threads=threads or default_threads())


def _split(tensors: Sequence[GgufTensor], max_size: int) -> list[list[GgufTensor]]:
    """Keep the order of tensors, and start a new part whenever the next tensor does not fit."""
    parts: list[list[GgufTensor]] = [[]]
    size = 0
    for tensor in tensors:
        num_bytes = _num_bytes(tensor)
        if num_bytes > max_size:
            raise OutputError(
                f"{tensor.name}: takes {num_bytes:,} bytes, more than `split_max_size` {max_size:,}; allow larger parts"
            )
        if size + num_bytes > max_size:
            parts.append([])
            size = 0
        parts[-1].append(tensor)
        size += num_bytes
    return parts


def _described(tensor: GgufTensor) -> tuple[str, tuple[int, ...], int, int]:
    return tensor.name, tensor.shape, TYPE_IDS[tensor.members[0].format], _num_bytes(tensor)


def _num_bytes(tensor: GgufTensor) -> int:
    return sum(_weight_bytes(member) for member in tensor.members)


def _weight_bytes(weight: Weight) -> int:
    rows = weight.shape[0] if len(weight.shape) > 1 else 1
    return rows * as_packed(_quantized(weight).number_format).row_bytes(weight.shape[-1])


def _quantized(weight: Weight) -> QuantizedWeight:
    if not isinstance(weight, QuantizedWeight):
        raise QuantizationError(f"{weight.name}: has no number format yet; quantize the graph first")
    return weight


def _row_blocks(plans: Sequence[FilePlan]) -> Iterator[RowBlock]:
    """Every block of rows to write, in the order of the files."""
    for file, plan in enumerate(plans):
        for tensor, info in plan.tensors:
            offset = len(plan.header) + info.offset
            for member in tensor.members:
                yield from _blocks_of(_quantized(member), file, offset)
                offset += _weight_bytes(member)


def _blocks_of(weight: QuantizedWeight, file: int, offset: int) -> Iterator[RowBlock]:
    number_format, columns = as_packed(weight.number_format), weight.shape[-1]
    rows = weight.shape[0] if len(weight.shape) > 1 else 1
    step = max(WEIGHTS_PER_BLOCK // columns, 1)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        yield RowBlock(
            weight=weight,
            number_format=number_format,
            rows=slice(start, stop) if len(weight.shape) > 1 else ALL_ROWS,
            file=file,
            offset=offset + start * number_format.row_bytes(columns),
            num_weights=(stop - start) * columns,
        )


def _write(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
