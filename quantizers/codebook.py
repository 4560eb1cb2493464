"""Levels of codes, and the nearest code of a level, inside kernels.

Functions here are compiled into kernels, which pass arguments by position only.
"""

from __future__ import annotations

import numpy as np

from qwen3_export.quantizers.compile import inlined
from qwen3_export.quantizers.formats import Codebook

__all__ = ["code_at", "level_of", "nearest_code"]


@inlined
def level_of(code: np.int64, book: Codebook) -> np.float32:
    """The level that a code stands for."""
    return np.float32(code) if book.levels_L.size == 0 else book.levels_L[code]


@inlined
def nearest_code(position: np.float32, book: Codebook) -> np.int64:
    """The code whose level is nearest."""
    if book.levels_L.size == 0:
        return np.int64(min(max(np.rint(position), book.low), book.high))
    code = np.int64(0)
    for k in range(1, book.levels_L.size):
        if position > (book.levels_L[k - 1] + book.levels_L[k]) * np.float32(0.5):
            code = np.int64(k)
    return code


@inlined
def code_at(value: np.float32, scale: np.float32, offset: np.float32, book: Codebook) -> np.int64:
    """The code of a value; where the scale is zero all are the same."""
    return nearest_code((value + offset) / scale if scale != 0 else np.float32(0), book)
