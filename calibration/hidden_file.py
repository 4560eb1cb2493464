"""A file with the residual stream of all windows between two layers, as fp32 rows [all tokens, D].

It is a file and not memory, even for small models. The operating system keeps it in its cache while there is room, and
frees that memory when there is none. A run that was killed finds it again. Blocks of windows are read, not mapped, as
mapped pages would count as resident memory.

Shapes: T tokens of one window, D hidden.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qwen3_export.errors import OutputError
from qwen3_export.files.atomic import partial_file
from qwen3_export.files.recognise import is_work_file

__all__ = ["HiddenFile", "HiddenWriter", "num_hidden_bytes", "write_hidden"]

FP32_BYTES = 4


def num_hidden_bytes(num_tokens: int, hidden_size: int) -> int:
    """The size of such a file."""
    return num_tokens * hidden_size * FP32_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenFile:
    """A finished file; ``lengths`` are the numbers of tokens of the windows."""

    path: Path
    lengths: Sequence[int]
    hidden_size: int

    @property
    def is_whole(self) -> bool:
        size = num_hidden_bytes(sum(self.lengths), self.hidden_size)
        return self.path.is_file() and self.path.stat().st_size == size

    def blocks(self, max_tokens: int) -> Iterator[list[Tensor]]:
        """The windows in order, [T, D] each; as many at a time as ``max_tokens`` allows, but at least one."""
        with self.path.open("rb", buffering=0) as file:
            for lengths in _blocks(self.lengths, max_tokens):
                yield [self._read_next(file, length) for length in lengths]

    def _read_next(self, file: io.FileIO, length: int) -> Tensor:
        x_TD = np.empty((length, self.hidden_size), dtype=np.float32)
        view = x_TD.data.cast("B")
        while view:
            count = file.readinto(view)
            if not count:
                raise OutputError(f"{self.path}: cut short while it was in use; start again with `resume=False`")
            view = view[count:]
        return torch.from_numpy(x_TD)


@dataclass(slots=True)
class HiddenWriter:
    """Appends windows to a file that is being written."""

    descriptor: int

    def append(self, x_TD: Tensor) -> None:
        view = np.ascontiguousarray(x_TD.numpy(), np.float32).data.cast("B")
        while view:
            view = view[os.write(self.descriptor, view) :]


@contextmanager
def write_hidden(path: Path, num_tokens: int, hidden_size: int) -> Iterator[HiddenWriter]:
    """A file to append windows to in order; it appears when it is whole.  Raises OutputError on a full disk."""
    size = num_hidden_bytes(num_tokens, hidden_size)
    with partial_file(path, num_bytes=size, overwrite=True, is_ours=is_work_file) as descriptor:
        yield HiddenWriter(descriptor)


def _blocks(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    block: list[int] = []
    for length in lengths:
        if block and sum(block) + length > max_tokens:
            yield block
            block = []
        block.append(length)
    if block:
        yield block
