"""The old binary form of llama.cpp's importance matrices (``imatrix.dat``), from before they were GGUF files.

Layout, all little-endian (``save_imatrix_legacy`` in llama.cpp's ``tools/imatrix``): int32 number of entries. For each
entry: an int32 length and a name, int32 calls, int32 number of values, and the values as fp32. Then, in all but the
oldest files: int32 number of chunks, an int32 length and the name of the text. A value is the mean square times
``calls``. The experts of a layer share one row; experts that saw no token have a mean of 1.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

__all__ = ["DatFile", "parse_dat"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DatFile:
    """Values and calls by tensor name; ``dataset`` is empty and ``chunks`` is 0 if the file does not say."""

    entries: Mapping[str, tuple[NDArray[np.float32], int]]
    chunks: int
    dataset: str


def parse_dat(data: bytes) -> DatFile:
    """Read the binary form. It has no magic number; raises ValueError if the contents are not consistent."""
    cursor = Cursor(data)
    count = cursor.integer()
    if count <= 0:
        raise ValueError(f"it starts with {count} for its number of entries")
    entries = dict(_entry(cursor) for _ in range(count))
    chunks, dataset = (0, "") if cursor.at_end else (cursor.integer(), cursor.text())
    return DatFile(entries=MappingProxyType(entries), chunks=chunks, dataset=dataset)


@dataclass(slots=True)
class Cursor:
    """A position in the bytes of the file."""

    data: bytes
    position: int = 0

    @property
    def at_end(self) -> bool:
        return self.position == len(self.data)

    def take(self, count: int) -> bytes:
        if not 0 <= count <= len(self.data) - self.position:
            raise ValueError(f"{count} bytes do not follow byte {self.position}")
        self.position += count
        return self.data[self.position - count : self.position]

    def integer(self) -> int:
        (value,) = struct.unpack("<i", self.take(4))
        return int(value)

    def text(self) -> str:
        return self.take(self.integer()).decode("utf-8", errors="replace")


def _entry(cursor: Cursor) -> tuple[str, tuple[NDArray[np.float32], int]]:
    name, calls, size = cursor.text(), cursor.integer(), cursor.integer()
    if size <= 0:
        raise ValueError(f"entry {name!r} has {size} values")
    values = np.frombuffer(cursor.take(4 * size), dtype="<f4").astype(np.float32)
    return name, (values, calls)
