"""Which search fits which format, how wide it looks, and what it minimizes.

Shapes: # R rows  I columns  N blocks  E elements a block  S blocks a row  G groups a row

What is minimized is Σ w (x - stored)² over a block, with w = importance · sqrt(spread · mean(x²) + x²). The root leans
towards large weights, as llama.cpp's weights do; ``spread`` says how little. With an importance vector it is 2
everywhere, which is llama.cpp's number. Without one llama.cpp uses |x|, x², rms + |x| or nothing, by format; ours is
chosen so that both its weighted error and the plain squared error fall below llama.cpp's (``benchmarks/ggml_kernels.py``
measures both). A solver that brings the diagonal of a Hessian wants no such lean: ``weighting="importance"``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qwen3_export.errors import QuantizationError
from qwen3_export.quantizers.ggml.affine import AffineGrid, fit_affine_blocks, fit_affine_superblocks
from qwen3_export.quantizers.ggml.packing import effective_params
from qwen3_export.quantizers.ggml.params import BlockParams
from qwen3_export.quantizers.ggml.shapes import BLOCK_SHAPES, BlockShape
from qwen3_export.quantizers.ggml.symmetric import (
    Levels,
    SymmetricGrid,
    fit_symmetric_blocks,
    fit_symmetric_superblocks,
)

__all__ = ["Weighting", "fit"]

Values = NDArray[np.float32]
Weighting = Literal["magnitude", "importance"]

_LARGEST = 65504.0
"""Scales and offsets are float16; a weight beyond this could not be stored for certain."""

_SPREAD_WITH_IMPORTANCE = 2.0
_NO_LEAN = -1.0


class _Search(NamedTuple):
    spread: float
    grid: AffineGrid | SymmetricGrid


_SEARCHES: Mapping[str, _Search] = MappingProxyType(
    {
        "Q8_0": _Search(_NO_LEAN, SymmetricGrid(reach=0.02, steps=2, both_ends=False)),
        "Q4_0": _Search(_NO_LEAN, SymmetricGrid(reach=0.15, steps=4, both_ends=True)),
        "Q5_0": _Search(_NO_LEAN, SymmetricGrid(reach=0.08, steps=4, both_ends=True)),
        "Q4_1": _Search(_NO_LEAN, AffineGrid(first=-2, last=1, uppers=7, lower_step=0.03, lowers=3)),
        "Q5_1": _Search(_NO_LEAN, AffineGrid(first=-2, last=1, uppers=7, lower_step=0.02, lowers=3)),
        "Q2_K": _Search(1.0, AffineGrid(first=-1, last=1, uppers=8, lower_step=0.1, lowers=3)),
        "Q3_K": _Search(0.5, SymmetricGrid(reach=0.45, steps=6, both_ends=True)),
        "Q4_K": _Search(2.0, AffineGrid(first=-2, last=1, uppers=9, lower_step=0.03, lowers=3)),
        "Q5_K": _Search(2.0, AffineGrid(first=-2, last=1, uppers=7, lower_step=0.02, lowers=3)),
        "Q6_K": _Search(0.5, SymmetricGrid(reach=0.11, steps=6, both_ends=False)),
        "IQ4_NL": _Search(0.3, SymmetricGrid(reach=0.19, steps=6, both_ends=True)),
        "IQ4_XS": _Search(0.3, SymmetricGrid(reach=0.19, steps=6, both_ends=True)),
    }
)


def fit(
    name: str, values_RI: Values, importance: Values | None = None, *, weighting: Weighting = "magnitude"
) -> BlockParams:
    """Scales and offsets for rows of weights. ``importance`` is [I], or [R, I] where rows differ.

    Raises QuantizationError where a weight is beyond 65504.
    """
    shape = BLOCK_SHAPES[name]
    search = _SEARCHES[name]
    _refuse_huge(name, values_RI)
    values_NE = np.ascontiguousarray(values_RI, np.float32).reshape(-1, shape.block_size)
    weights = _normalized(importance, values_RI.shape)
    spread = search.spread if importance is None else _SPREAD_WITH_IMPORTANCE
    spread = spread if weighting == "magnitude" else _NO_LEAN
    rows = values_RI.shape[0]
    if isinstance(search.grid, AffineGrid):
        return _fit_affine(shape, values_NE, weights=weights, grid=search.grid, spread=spread, rows=rows)
    return _fit_symmetric(shape, values_NE, weights=weights, grid=search.grid, spread=spread, rows=rows)


def _fit_affine(
    shape: BlockShape, values_NE: Values, *, weights: Values, grid: AffineGrid, spread: float, rows: int
) -> BlockParams:
    blocks = values_NE.shape[0]
    scale_N, offset_N = np.empty(blocks, np.float32), np.empty(blocks, np.float32)
    sub_scale = sub_offset = None
    if shape.has_subs:
        sub_scale, sub_offset = (np.empty((blocks, shape.groups), np.int16) for _ in range(2))
        fit_affine_superblocks(
            scale_N, offset_N, sub_scale, sub_offset, values_NE, weights, grid, shape.code_high, shape.sub_high, spread
        )
        sub_scale, sub_offset = sub_scale.reshape(rows, -1), sub_offset.reshape(rows, -1)
    else:
        fit_affine_blocks(scale_N, offset_N, values_NE, weights, grid, shape.code_high, spread)
    return effective_params(
        block_scale_RS=scale_N.reshape(rows, -1),
        block_offset_RS=offset_N.reshape(rows, -1),
        sub_scale_RG=sub_scale,
        sub_offset_RG=sub_offset,
    )


def _fit_symmetric(
    shape: BlockShape, values_NE: Values, *, weights: Values, grid: SymmetricGrid, spread: float, rows: int
) -> BlockParams:
    blocks = values_NE.shape[0]
    book = np.array(shape.levels or (), np.float32)
    ends = (book[0], book[-1]) if shape.levels else (np.float32(shape.code_low), np.float32(shape.code_high))
    levels = Levels(*ends, book)
    scale_N = np.empty(blocks, np.float32)
    sub_scale = None
    if shape.has_subs:
        sub_scale = np.empty((blocks, shape.groups), np.int16)
        fit_symmetric_superblocks(
            scale_N, sub_scale, values_NE, weights, grid, levels, shape.sub_low, shape.sub_high, spread
        )
        sub_scale = sub_scale.reshape(rows, -1)
    else:
        fit_symmetric_blocks(scale_N, values_NE, weights, grid, levels, spread)
    return effective_params(
        block_scale_RS=scale_N.reshape(rows, -1), block_offset_RS=None, sub_scale_RG=sub_scale, sub_offset_RG=None
    )


def _refuse_huge(name: str, values_RI: Values) -> None:
    largest = max(values_RI.max(initial=0), -values_RI.min(initial=0))
    if not largest <= _LARGEST:
        raise QuantizationError(
            f"{name}: a weight of magnitude {largest:g} is beyond what its float16 scales reach ({_LARGEST:g}); use BF16"
        )


def _normalized(importance: Values | None, shape: tuple[int, ...]) -> Values:
    """Importances as one flat array, the largest of a row 1, so that no product under- or overflows; empty for none."""
    if importance is None:
        return np.empty(0, np.float32)
    if importance.shape not in (shape, shape[1:]):
        raise QuantizationError(f"importance of shape {importance.shape} does not fit weights of shape {shape}")
    largest = importance.max(axis=-1, keepdims=True, initial=0)
    # A scale that the row shares changes no choice; a power of two changes no digit either.
    scaled = np.ldexp(importance, -np.frexp(largest)[1])
    return np.ascontiguousarray(scaled, np.float32).reshape(-1)
