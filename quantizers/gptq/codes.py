"""The two loops of GPTQ over codes under given scales: column by column, and coordinate descent.

``round_columns`` is GPTQ itself (Frantar et al., arXiv 2210.17323, algorithm 1) within one slab of columns. Each column
is rounded to its nearest codes, and the columns after it make up for the error, in the proportion that costs least
under the Hessian. ``descend_codes`` goes over the codes again, and moves each to where the quadratic error is least
given all others. GPTQ alone never goes back to an earlier column.

Both change arrays in place. Rows are independent of each other, so that each thread can take a block of them.

Shapes: # R rows  J columns of one slab  G groups of one slab  L levels
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qwen3_export.quantizers.codebook import code_at, level_of
from qwen3_export.quantizers.compile import kernel
from qwen3_export.quantizers.formats import Codebook, Values

__all__ = ["descend_codes", "round_columns"]

Codes = NDArray[np.int8]


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
    """Do one round of coordinate descent; ``gradient_RJ``, half the derivative of the error, is kept up to date."""
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
