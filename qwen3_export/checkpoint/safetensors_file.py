"""Safetensors files, read by position: headers when opened, blocks of rows when asked.

The ``safetensors`` package maps files into memory, and mapped pages count as resident; a conversion that
walks through 60 GB would look like one that holds 60 GB.  The format is an 8-byte little-endian header
length, a JSON header and the tensors' bytes (https://github.com/huggingface/safetensors, "Format"), so a
``pread`` of just the rows that are wanted needs no library and holds no more than those rows.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_export.errors import CheckpointError
from qwen3_export.files.positional import read_exactly
from qwen3_export.graph import ALL_ROWS, Role, module_name

__all__ = ["StoredTensor", "StoredWeight", "read_header"]

MAX_HEADER_BYTES = 100 << 20

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
    """A dense weight that lies in a safetensors file, contiguous from ``offset`` on."""

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
        """The values, fp32.  Raises CheckpointError for a file cut short, and for NaN or Inf."""
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

    Raises CheckpointError for a file that is no safetensors file, or is shorter than its header promises.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise CheckpointError(f"{path}: not a safetensors file, or cut short; download it again")
            document = json.loads(file.read(length))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check the path and permissions") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: its safetensors header is damaged; download it again") from error
    document.pop("__metadata__", None)
    tensors = {name: _parse_entry(path, name, entry, 8 + length) for name, entry in document.items()}
    promised = max((t.offset + t.num_bytes for t in tensors.values()), default=0)
    if promised > size:
        raise CheckpointError(
            f"{path}: cut short at {size:,} of {promised:,} bytes; the download did not finish, fetch it again"
        )
    return tensors


def _parse_entry(path: Path, name: str, entry: Mapping[str, Any], base: int) -> StoredTensor:
    try:
        begin, end = entry["data_offsets"]
        shape = tuple(int(size) for size in entry["shape"])
        return StoredTensor(
            path=path, name=name, dtype=entry["dtype"], shape=shape, offset=base + begin, num_bytes=end - begin
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the header's entry for {name} is damaged; download it again") from error


def _bf16_to_f32(raw: np.ndarray) -> np.ndarray:
    """bf16 is the upper half of fp32: widening is a shift, and exact."""
    widened: np.ndarray = np.left_shift(raw, 16, dtype=np.uint32, casting="unsafe")
    return widened.view(np.float32)
