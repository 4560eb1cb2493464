"""Check the sizes that a GGUF header states, before gguf-py's reader relies on them.

That reader takes every count as it stands: an array of 2**60 numbers in a file of a hundred bytes keeps it busy until
memory is full. This goes through the header once, holds nothing, and refuses what the file cannot hold.
(The layout: ``docs/gguf.md`` of https://github.com/ggml-org/ggml.)
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qwen3_export.errors import CheckpointError

__all__ = ["check_bounds"]

VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
# Bytes of a value of each other type.
SIZES: Mapping[int, int] = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

# Far above any model's (Qwen3's vocabulary and merges are half a million values), and small enough for memory.
MAX_ENTRIES, MAX_VALUES, MAX_DIMENSIONS = 100_000, 2_000_000, 4
MAX_HEADER_BYTES, MAX_STRING_BYTES, MAX_WEIGHTS = 100_000_000, 1 << 24, 1 << 48


@dataclass(slots=True)
class Cursor:
    """A place in the file; ``values`` counts the items of arrays so far."""

    data: mmap.mmap
    position: int = 0
    values: int = 0

    def skip(self, count: int) -> None:
        if count > min(len(self.data), MAX_HEADER_BYTES) - self.position:
            raise ValueError(f"its header goes beyond byte {min(len(self.data), MAX_HEADER_BYTES):,}")
        self.position += count

    def integer(self, form: str) -> int:
        start = self.position
        self.skip(struct.calcsize(form))
        return int(struct.unpack_from(form, self.data, start)[0])

    def string(self) -> None:
        size = self.integer("<Q")
        if size > MAX_STRING_BYTES:
            raise ValueError(f"a string of {size:,} bytes at byte {self.position:,}")
        self.skip(size)


def check_bounds(path: Path) -> None:
    """Refuse a GGUF file whose header states sizes that it does not have. Raises CheckpointError."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _check(Cursor(data))
    except ValueError as error:
        raise CheckpointError(f"{path}: not a GGUF file, or cut short ({error}); get it again") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error


def _check(cursor: Cursor) -> None:
    if cursor.data[:4] != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    cursor.skip(4)
    version = cursor.integer("<I")
    if version not in VERSIONS:
        raise ValueError(f"version {version}, where 2 and 3 are read")
    num_tensors, num_fields = cursor.integer("<Q"), cursor.integer("<Q")
    if max(num_tensors, num_fields) > MAX_ENTRIES:
        raise ValueError(f"{num_fields:,} fields and {num_tensors:,} tensors")
    for _ in range(num_fields):
        cursor.string()
        _value(cursor, cursor.integer("<I"))
    for _ in range(num_tensors):
        _tensor(cursor)


def _value(cursor: Cursor, kind: int) -> None:
    if kind == STRING:
        cursor.string()
    elif kind in SIZES:
        cursor.skip(SIZES[kind])
    elif kind == ARRAY:
        _array(cursor, cursor.integer("<I"), cursor.integer("<Q"))
    else:
        raise ValueError(f"a value of type {kind} at byte {cursor.position:,}")


def _array(cursor: Cursor, kind: int, count: int) -> None:
    cursor.values += count
    if cursor.values > MAX_VALUES:
        raise ValueError(f"an array of {count:,} values at byte {cursor.position:,}")
    if kind == STRING:
        for _ in range(count):
            cursor.string()
    elif kind in SIZES:
        cursor.skip(count * SIZES[kind])
    else:
        raise ValueError(f"an array of type {kind} at byte {cursor.position:,}")


def _tensor(cursor: Cursor) -> None:
    cursor.string()
    num_dimensions = cursor.integer("<I")
    if num_dimensions > MAX_DIMENSIONS:
        raise ValueError(f"a tensor of {num_dimensions:,} dimensions at byte {cursor.position:,}")
    count = 1
    for _ in range(num_dimensions):
        count *= cursor.integer("<Q")
    if count > MAX_WEIGHTS:
        raise ValueError(f"a tensor of {count:,} weights at byte {cursor.position:,}")
    cursor.skip(4 + 8)  # its type and its offset
