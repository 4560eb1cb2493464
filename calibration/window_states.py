"""One vector for each token, window by window, in memory or on disk: the hidden states of a calibration run.

Small runs keep them in memory. Above ``MEMORY_LIMIT`` bytes they go to an unnamed file in the work folder, which is
written and read one window at a time and disappears with the run.

Shapes: T tokens of one window, W width of the vectors
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from qwen3_export.errors import OutputError

__all__ = ["MEMORY_LIMIT", "WindowStates"]

FP32_BYTES = 4
MEMORY_LIMIT = 1 << 30


class WindowStates:
    """``states[i]`` is the tensor [T, W] of window i; it must be set before it is read. ``close`` frees the space."""

    def __init__(self, lengths: Sequence[int], width: int, *, folder: Path, memory_limit: int = MEMORY_LIMIT) -> None:
        self._lengths, self._width = tuple(lengths), width
        self._offsets = np.cumsum([0, *lengths]) * width * FP32_BYTES
        self._held: dict[int, Tensor] = {}
        self._file: IO[bytes] | None = None
        if self._offsets[-1] > memory_limit:
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (closed by close)

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, index: int) -> Tensor:
        if self._file is None:
            return self._held[index]
        values = np.empty((self._lengths[index], self._width), np.float32)
        self._file.seek(int(self._offsets[index]))
        view = values.data.cast("B")
        while view:
            count = self._file.readinto(view)  # type: ignore[attr-defined]
            assert count, "a window was read before it was written"
            view = view[count:]
        return torch.from_numpy(values)

    def __setitem__(self, index: int, state_TW: Tensor) -> None:
        assert state_TW.shape == (self._lengths[index], self._width), f"window {index} is {tuple(state_TW.shape)}"
        if self._file is None:
            self._held[index] = state_TW
            return
        self._file.seek(int(self._offsets[index]))
        view = np.ascontiguousarray(state_TW.numpy(), np.float32).data.cast("B")
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            raise OutputError(
                f"the disk is full ({error.strerror}): {math.ceil(self._offsets[-1] / 1e9)} GB of hidden states are "
                "needed; free some space, or choose another `work_dir`"
            ) from error

    def close(self) -> None:
        self._held.clear()
        if self._file is not None:
            self._file.close()
