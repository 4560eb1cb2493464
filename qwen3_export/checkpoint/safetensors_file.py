"""Safetensors files, read by position: the header when a file is opened, blocks of rows when they are needed.

The ``safetensors`` package maps files into memory, and mapped pages count as resident: a conversion that walks through
60 GB would look like one that holds 60 GB. The format is simple (https://github.com/huggingface/safetensors, "Format"):
8 bytes with the length of the header, the header as JSON, and the bytes of the tensors. So the rows that are needed are
read directly, and nothing else is held.
"""

from __future__ import annotations

import math
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from qwen3_export.errors import CheckpointError
from qwen3_export.files.json_file import parse_json
from qwen3_export.files.positional import read_exactly
from qwen3_export.files.shown import shown
from qwen3_export.graph import ALL_ROWS, Role, module_name

__all__ = ["StoredTensor", "StoredWeight", "read_header"]

# The format's own limit.
MAX_HEADER_BYTES = 100_000_000
PREFIX = struct.Struct("<Q")
ENTRY = ("dtype", "shape", "data_offsets")
MAX_SIZE = (1 << 63) - 1

# Bits of one element of each type that safetensors has.
BITS: Mapping[str, int] = {
    "F4": 4,
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
}

# Storage type of each safetensors dtype that a weight may have.
FLOAT_DTYPES: Mapping[str, type[np.generic]] = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Where one tensor lies in a safetensors file: ``offset`` in bytes from the start of the file."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWeight:
    """A weight of the graph in a safetensors file: its values lie one after the other from ``offset`` on."""

    role: Role
    shape: tuple[int, ...]
    format: str
    path: Path
    offset: int

    @property
    def name(self) -> str:
        return module_name(self.role)

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * np.dtype(FLOAT_DTYPES[self.format]).itemsize

    def read_raw(self, rows: slice = ALL_ROWS) -> np.ndarray:
        """The stored values as they are: bf16 as uint16, f16 as float16, f32 as float32."""
        start, stop, step = rows.indices(self.shape[0])
        if step != 1:
            raise ValueError("rows are read in one contiguous block")
        count = max(stop - start, 0)
        buffer = read_exactly(self.path, self.offset + start * self.row_bytes, count * self.row_bytes, part=self.name)
        return np.frombuffer(buffer, dtype=FLOAT_DTYPES[self.format]).reshape(count, *self.shape[1:])

    def read(self, rows: slice = ALL_ROWS) -> np.ndarray:
        """The values in fp32. Raises CheckpointError for a file that was cut short, and for NaN or Inf."""
        raw = self.read_raw(rows)
        values = _bf16_to_f32(raw) if self.format == "BF16" else raw.astype(np.float32, copy=False)
        if not np.isfinite(values).all():
            row = int(np.argwhere(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))[0, 0])
            raise CheckpointError(
                f"{self.path.name}: {self.name} holds NaN or Inf (first in row {row + (rows.start or 0)}); "
                "the checkpoint is damaged, or its training diverged"
            )
        return values


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file by name, from its header alone.

    The rules are those of the safetensors library: every byte after the header belongs to one tensor. Raises
    CheckpointError for a file that breaks them, or is shorter than its header says.
    """
    header, base, size = _read_document(path)
    metadata = header.pop("__metadata__", None)
    if metadata is not None and not (isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())):
        raise CheckpointError(f"{path}: its safetensors header is damaged (__metadata__); download it again")
    tensors = {name: _parse_entry(path, name, entry, base) for name, entry in header.items()}
    _check_covers(path, tensors, base, size)
    return tensors


def _read_document(path: Path) -> tuple[dict[str, Any], int, int]:
    """The header as JSON, the offset of the first tensor's bytes, and the size of the file."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path}: not a regular file; name a checkpoint with safetensors files")
        with path.open("rb") as file:
            prefix = file.read(PREFIX.size)
            length = PREFIX.unpack(prefix)[0] if len(prefix) == PREFIX.size else -1
            if not 2 <= length <= min(MAX_HEADER_BYTES, status.st_size - PREFIX.size):
                raise CheckpointError(f"{path}: not a safetensors file, or cut short; download it again")
            document = parse_json(file.read(length), has_unique_keys=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check the path and permissions") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: its safetensors header is damaged ({error}); download it again") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path}: its safetensors header is no JSON object; download it again")
    return document, PREFIX.size + length, status.st_size


def _parse_entry(path: Path, name: str, entry: object, base: int) -> StoredTensor:
    """One entry of the header; ``base`` is where the tensors' bytes begin."""
    dtype, shape, offsets = (entry.get(key) for key in ENTRY) if isinstance(entry, dict) else (None, None, None)
    if not (isinstance(dtype, str) and _are_sizes(shape) and _are_sizes(offsets) and len(offsets) == 2):
        raise CheckpointError(f"{path}: the header's entry for {shown(name)} is damaged; download it again")
    if dtype not in BITS:
        raise CheckpointError(f"{path}: stores {shown(name)} as {shown(dtype)}, a type that safetensors does not have")
    begin, end = offsets
    if end - begin != _num_bytes(dtype, shape):
        raise CheckpointError(
            f"{path}: {shown(name)} has {end - begin:,} bytes, which do not fit its shape {shape} and type {dtype}; "
            "download it again"
        )
    return StoredTensor(
        path=path, name=name, dtype=dtype, shape=tuple(shape), offset=base + begin, num_bytes=end - begin
    )


def _are_sizes(values: object) -> TypeGuard[list[int]]:
    """Whether a value is a list of whole numbers from 0 to the largest that a file can have."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= MAX_SIZE for value in values)


def _num_bytes(dtype: str, shape: list[int]) -> int:
    """Bytes of a tensor; -1, which no tensor has, for sizes that overflow and for parts of bytes."""
    count = 1
    for size in shape:
        count *= size
        if count > MAX_SIZE:
            return -1
    return count * BITS[dtype] // 8 if count * BITS[dtype] % 8 == 0 else -1


def _check_covers(path: Path, tensors: Mapping[str, StoredTensor], base: int, size: int) -> None:
    """Refuse files whose tensors overlap, leave gaps, or do not end where the file ends."""
    end = base
    for tensor in sorted(tensors.values(), key=lambda found: (found.offset, found.num_bytes)):
        if tensor.offset != end:
            what = "overlap" if tensor.offset < end else "leave a gap"
            raise CheckpointError(f"{path}: its tensors {what} at {shown(tensor.name)}; download it again")
        end += tensor.num_bytes
    if end > size:
        raise CheckpointError(
            f"{path}: cut short at {size:,} of {end:,} bytes; the download did not finish, fetch it again"
        )
    if end < size:
        raise CheckpointError(f"{path}: goes on for {size - end:,} bytes after its last tensor; download it again")


def _bf16_to_f32(raw: np.ndarray) -> np.ndarray:
    """bf16 is the upper half of fp32: widening is a shift, and exact."""
    widened: np.ndarray = np.left_shift(raw, 16, dtype=np.uint32, casting="unsafe")
    return widened.view(np.float32)
