"""GPTQ's two loops over codes, under given scales: one column after the other, and descent.

``round_columns`` is GPTQ itself (Frantar et al., arXiv 2210.17323, algorithm 1) inside one slab of columns: each
column is rounded to its nearest code, and what that leaves is taken up by the columns after it, in the proportion
that costs least under the Hessian.  ``descend_codes`` then goes over the codes again: it moves each to where the
quadratic error is least given all others, which GPTQ, never looking back, cannot.

Both change arrays in place, as kernels here do, and rows are independent of each other: threads take a block each.

Shapes: # R rows  J columns of one slab  G groups of one slab  L levels
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qwen3_export.quantizers.compile import inlined, kernel

__all__ = ["Codebook", "descend_codes", "nearest_code", "round_columns"]

Values = NDArray[np.float32]
Codes = NDArray[np.int8]


class Codebook(NamedTuple):
    """What codes stand for: themselves, from ``low`` to ``high``, or an ascending list of levels."""

    low: np.float32
    high: np.float32
    levels_L: Values


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
def level_of(code: np.int64, book: Codebook) -> np.float32:
    return np.float32(code) if book.levels_L.size == 0 else book.levels_L[code]


@inlined
def code_at(value: np.float32, scale: np.float32, offset: np.float32, book: Codebook) -> np.int64:
    """The code of a value; where the scale is zero all are the same."""
    return nearest_code((value + offset) / scale if scale != 0 else np.float32(0), book)


@kernel
def round_columns(
    codes_RJ: Codes,
    values_RJ: Values,
    targets_RJ: Values,
    factor_JJ: Values,
    scale_RG: Values,
    offset_RG: Values,
    book: Codebook,
) -> None:
    """Fill in codes and values; ``factor_JJ`` is the slab's part of the factor of the inverse Hessian."""
    columns = targets_RJ.shape[1]
    group_size = columns // scale_RG.shape[1]
    left = np.empty(columns, np.float32)
    for r in range(codes_RJ.shape[0]):
        for j in range(columns):
            left[j] = targets_RJ[r, j]
        for j in range(columns):
            scale, offset = scale_RG[r, j // group_size], offset_RG[r, j // group_size]
            code = code_at(left[j], scale, offset, book)
            value = scale * level_of(code, book) - offset
            codes_RJ[r, j], values_RJ[r, j] = code, value
            error = (left[j] - value) / factor_JJ[j, j]
            for k in range(j + 1, columns):
                left[k] -= error * factor_JJ[j, k]


@kernel
def descend_codes(
    codes_RJ: Codes,
    values_RJ: Values,
    gradient_RJ: Values,
    metric_JJ: Values,
    scale_RG: Values,
    offset_RG: Values,
    book: Codebook,
) -> None:
    """One round of coordinate descent; ``gradient_RJ`` is half the error's derivative, kept up to date."""
    columns = codes_RJ.shape[1]
    group_size = columns // scale_RG.shape[1]
    slope = np.empty(columns, np.float32)
    for r in range(codes_RJ.shape[0]):
        for j in range(columns):
            slope[j] = gradient_RJ[r, j]
        for j in range(columns):
            scale, offset = scale_RG[r, j // group_size], offset_RG[r, j // group_size]
            best = values_RJ[r, j] - slope[j] / metric_JJ[j, j]
            code = code_at(best, scale, offset, book)
            if code == codes_RJ[r, j]:
                continue
            value = scale * level_of(code, book) - offset
            step = value - values_RJ[r, j]
            codes_RJ[r, j], values_RJ[r, j] = code, value
            for k in range(columns):
                slope[k] += step * metric_JJ[j, k]
        for j in range(columns):
            gradient_RJ[r, j] = slope[j]
