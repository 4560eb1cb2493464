"""llama.cpp's importance matrices: how much each input column of each matrix matters.

For every matrix, ``llama-imatrix`` sums the squares of its input activations, column by column, over the tokens of a
text. The mean square tells how much an error in a column's weights moves the output. The GGUF form holds
``NAME.in_sum2`` (the sums) and ``NAME.counts`` (the tokens), both fp32: [I] and [1] for a matrix, [E, I] and [E, 1] for
the stacked experts of a layer, each of which has seen different tokens. (This follows ``save_imatrix`` in llama.cpp's
``tools/imatrix``; the reader skips the ``NAME.in_sum`` that later versions add.) The older binary form is in
``imatrix_dat.py``.

Shapes: # E experts (1 for an ordinary matrix)  I input columns
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3_export.errors import CheckpointError
from qwen3_export.files.atomic import partial_file
from qwen3_export.files.recognise import is_gguf
from qwen3_export.llama_names import is_stacked
from qwen3_export.targets.gguf.bounds import check_bounds
from qwen3_export.targets.gguf.container import MetaType, MetaValue, aligned, lay_out, serialize_header
from qwen3_export.targets.gguf.imatrix_dat import parse_dat
from qwen3_export.targets.gguf.names import GgufTensor
from qwen3_export.targets.gguf.overrides import is_always_f32

__all__ = ["Imatrix", "ImatrixEntry", "check_fits", "read_imatrix", "rounded_plainly", "write_imatrix"]

Floats = NDArray[np.float32]
F32 = 0  # its number in ggml's type enum
LISTED = 8


@dataclass(frozen=True, slots=True, eq=False)
class ImatrixEntry:
    """Sums of squared activations [E, I], and the number of tokens that each expert saw, [E]."""

    sum_EI: Floats
    count_E: NDArray[np.int64]

    def mean(self, expert: int = 0) -> Floats:
        """Mean squared activation [I]; ones for an expert that saw no tokens, as in llama.cpp's quantizer."""
        if not self.has_seen(expert):
            return np.ones_like(self.sum_EI[expert])
        mean: Floats = self.sum_EI[expert] / np.float32(self.count_E[expert])
        return mean

    def has_seen(self, expert: int) -> bool:
        """Whether anything was measured for an expert. The binary form has no counts of single experts, only sums."""
        return bool(self.count_E[expert] > 0 and self.sum_EI[expert].any())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Imatrix:
    """An importance matrix: ``entries`` by tensor name, and the texts and chunks of tokens it was measured on."""

    path: Path
    entries: Mapping[str, ImatrixEntry]
    datasets: tuple[str, ...] = ()
    chunks: int = 0
    chunk_size: int = 0

    def importance(self, tensor_name: str, expert: int | None = None) -> Floats | None:
        """Mean squared activation of each input column [I], or None if the matrix has no entry for the tensor.

        ``expert`` is required for stacked tensors, and only for them.
        """
        assert is_stacked(tensor_name) == (expert is not None), f"{tensor_name}: expert is {expert}"
        entry = self.entries.get(tensor_name)
        return None if entry is None else entry.mean(expert or 0)


def read_imatrix(path: Path) -> Imatrix:
    """Read either form. Raises CheckpointError if the file is damaged or not an importance matrix."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
        imatrix = _read_gguf(path) if magic == b"GGUF" else _read_dat(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    for name, entry in imatrix.entries.items():
        if not (np.isfinite(entry.sum_EI).all() and (entry.sum_EI >= 0).all()):
            raise CheckpointError(f"{path}: {name} has sums of squares that are negative or not finite; make it again")
    return imatrix


def write_imatrix(
    path: Path,
    entries: Mapping[str, ImatrixEntry],
    *,
    datasets: Sequence[str],
    chunks: int,
    chunk_size: int,
    overwrite: bool = False,
) -> None:
    """Write the GGUF form, as ``llama-imatrix`` does. The file gets its name when it is complete.

    The bytes depend on the arguments alone.  With ``overwrite`` it replaces another GGUF file, and nothing else.
    Raises OutputError where the file cannot be written.
    """
    arrays = {key: array for name in sorted(entries) for key, array in _arrays(name, entries[name])}
    infos = lay_out((name, array.shape, F32, array.nbytes) for name, array in arrays.items())
    header = serialize_header(
        {
            "general.type": MetaValue(MetaType.STRING, "imatrix"),
            "imatrix.datasets": MetaValue(MetaType.STRING, list(datasets), is_array=True),
            "imatrix.chunk_count": MetaValue(MetaType.UINT32, chunks),
            "imatrix.chunk_size": MetaValue(MetaType.UINT32, chunk_size),
        },
        infos,
    )
    size = len(header) + sum(aligned(info.num_bytes) for info in infos)
    opened = partial_file(path, num_bytes=size, overwrite=overwrite, is_ours=is_gguf)
    with opened as descriptor, os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(header)
        for array in arrays.values():
            data = array.astype("<f4").tobytes()
            file.write(data.ljust(aligned(len(data)), b"\0"))


def check_fits(imatrix: Imatrix, tensors: Sequence[GgufTensor]) -> None:
    """Refuse an importance matrix that was made for another model.

    What it covers must have the model's shapes, and it must cover something of every layer, and no other layers.
    Raises CheckpointError.
    """
    known = {tensor.name: tensor for tensor in tensors}
    for name, entry in imatrix.entries.items():
        if name in known:
            _check_shape(imatrix, known[name], entry)
        elif name.startswith("blk."):
            raise CheckpointError(f"{imatrix.path}: was made for another model; this one has no {name}")
    covered = {known[name].layer for name in imatrix.entries if name in known}
    for tensor in tensors:
        if tensor.layer is not None and not is_always_f32(tensor) and tensor.layer not in covered:
            raise CheckpointError(
                f"{imatrix.path}: was made for another model, or is incomplete; it says nothing of {tensor.name} and "
                "the rest of its layer"
            )


def rounded_plainly(imatrix: Imatrix, tensors: Iterable[GgufTensor]) -> tuple[str, ...]:
    """One sentence if the matrix says nothing of some tensors or experts, whose columns then all count the same.

    Embedding and output are not named, because llama-imatrix leaves them out unless asked.
    """
    found = []
    for tensor in tensors:
        if tensor.layer is None or is_always_f32(tensor):
            continue
        entry = imatrix.entries.get(tensor.name)
        if entry is None:
            found.append(tensor.name)
            continue
        unseen = [expert for expert in range(len(entry.count_E)) if not entry.has_seen(expert)]
        if unseen:
            found.append(f"{tensor.name} (expert {_numbers(unseen)})" if tensor.is_stacked else tensor.name)
    if not found:
        return ()
    more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
    return (
        f"{imatrix.path.name} says nothing of {', '.join(found[:LISTED])}{more}: rounded plainly there, every column "
        "counting the same; calibrate on more text to cover them",
    )


def _numbers(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - LISTED} more" if len(numbers) > LISTED else ""
    return ", ".join(map(str, numbers[:LISTED])) + more


def _check_shape(imatrix: Imatrix, tensor: GgufTensor, entry: ImatrixEntry) -> None:
    found, wanted = entry.sum_EI.shape, (len(tensor.members), tensor.columns)
    if found != wanted:
        raise CheckpointError(
            f"{imatrix.path}: was made for another model; {tensor.name} has {_described(found)} there and "
            f"{_described(wanted)} in the model"
        )


def _described(shape: tuple[int, ...]) -> str:
    experts, columns = shape
    return f"{columns} columns" if experts == 1 else f"{experts} experts of {columns} columns"


def _arrays(name: str, entry: ImatrixEntry) -> Iterator[tuple[str, Floats]]:
    """The two tensors of one entry. A matrix without experts has no expert dimension."""
    count_E1 = entry.count_E.astype(np.float32)[:, None]
    is_single = len(count_E1) == 1
    yield f"{name}.in_sum2", entry.sum_EI[0] if is_single else entry.sum_EI
    yield f"{name}.counts", count_E1[0] if is_single else count_E1


def _read_gguf(path: Path) -> Imatrix:
    reader = _open_gguf(path)
    arrays = {tensor.name: np.array(tensor.data, dtype=np.float32).ravel() for tensor in reader.tensors
              if tensor.name.endswith((".in_sum2", ".counts"))}  # fmt: skip
    names = sorted({name.rpartition(".")[0] for name in arrays})
    if not names:
        raise CheckpointError(f"{path}: a GGUF file, but no importance matrix; use one that calibrate writes")
    entries: dict[str, ImatrixEntry] = {}
    for name in names:
        sums, counts = arrays.get(f"{name}.in_sum2"), arrays.get(f"{name}.counts")
        if sums is None or counts is None or len(sums) % max(len(counts), 1):
            raise CheckpointError(f"{path}: damaged; the sums and counts of {name} do not belong together")
        entries[name] = ImatrixEntry(sums.reshape(len(counts), -1), np.rint(counts).astype(np.int64))
    return Imatrix(
        path=path,
        entries=MappingProxyType(_split_experts(entries)),
        datasets=tuple(_field(reader, "imatrix.datasets", ())),
        chunks=int(_field(reader, "imatrix.chunk_count", 0)),
        chunk_size=int(_field(reader, "imatrix.chunk_size", 0)),
    )


def _read_dat(path: Path) -> Imatrix:
    try:
        content = parse_dat(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path}: no importance matrix ({error}); use one that calibrate writes") from error
    entries = {
        name: ImatrixEntry(values[None], np.array([max(calls, 1)], dtype=np.int64))
        for name, (values, calls) in content.entries.items()
    }
    return Imatrix(
        path=path,
        entries=MappingProxyType(_split_experts(entries)),
        datasets=(content.dataset,) if content.dataset else (),
        chunks=content.chunks,
    )


def _split_experts(entries: Mapping[str, ImatrixEntry]) -> dict[str, ImatrixEntry]:
    """Give each stacked expert its own row if all of them were stored as one long row with one count.

    The binary form has only rows, and so have GGUF files that were converted from it. The number of experts follows
    from the layer's gate_proj, whose input is as wide as q_proj's.
    """
    widths = {name: entry.sum_EI.shape[1] for name, entry in entries.items() if len(entry.count_E) == 1}

    def split(name: str, entry: ImatrixEntry) -> ImatrixEntry:
        block = name.rpartition(".ffn_")[0]
        hidden, stacked = widths.get(f"{block}.attn_q.weight"), widths.get(f"{block}.ffn_gate_exps.weight")
        if not is_stacked(name) or name not in widths or not hidden or not stacked:
            return entry
        experts = stacked // hidden
        if experts * hidden != stacked or widths[name] % experts:
            return entry
        return ImatrixEntry(entry.sum_EI.reshape(experts, -1), entry.count_E.repeat(experts))

    return {name: split(name, entry) for name, entry in entries.items()}


def _open_gguf(path: Path) -> Any:
    from gguf import GGUFReader

    check_bounds(path)
    try:
        return GGUFReader(path)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{path}: a damaged GGUF file ({error}); make it again") from error


def _field(reader: Any, key: str, default: Any) -> Any:
    field = reader.get_field(key)
    return default if field is None else field.contents()
