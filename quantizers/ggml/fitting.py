"""Find scales and offsets for rows of weights: which search each block format uses, and what it minimizes.

Shapes: # R rows  I columns  N blocks  E elements a block  S blocks a row  G groups a row

A search minimizes Σ w (x - stored)² over a block, with w = importance · sqrt(spread · mean(x²) + x²). The root makes
errors in large weights count more, as llama.cpp does; the larger ``spread``, the less so. With an importance vector
llama.cpp's spread is 1 or 2, by format. Without one it weighs with |x|, x², rms + |x| or nothing, by format. The
numbers here are chosen so that two errors fall below llama.cpp's: the one that llama.cpp minimizes, and the one without
any such weighting (``benchmarks/ggml_kernels.py`` measures both). A solver that brings the diagonal of a Hessian needs
the importance alone: ``weighting="importance"``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qwen3_export.errors import QuantizationError
from qwen3_export.quantizers.compile import read_only
from qwen3_export.quantizers.formats import Values, Weighting
from qwen3_export.quantizers.ggml.affine import AffineGrid, fit_affine_blocks, fit_affine_superblocks
from qwen3_export.quantizers.ggml.packing import effective_params
from qwen3_export.quantizers.ggml.params import BlockParams
from qwen3_export.quantizers.ggml.shapes import BlockShape
from qwen3_export.quantizers.ggml.symmetric import (
    Levels,
    SymmetricGrid,
    fit_symmetric_blocks,
    fit_symmetric_superblocks,
)

__all__ = ["fit"]

_LARGEST = 65504.0
"""Scales and offsets are float16, so that a larger weight might not be stored."""

_TILE = 256
_NO_LEAN = -1.0


class _Search(NamedTuple):
    """How a format is searched; one spread is for weights without importances, the other for weights with them."""

    spread: float
    spread_with_importance: float
    grid: AffineGrid | SymmetricGrid


class _Work(NamedTuple):
    """The input of a kernel: weights row after row, importances likewise (or one row, or none), and the row length."""

    values: Values
    importance: Values
    columns: int
    spread: float


class _Stored(NamedTuple):
    """The output of a kernel, for all blocks in order."""

    scale_N: Values
    offset_N: Values | None
    sub_scale_G: NDArray[np.int16] | None
    sub_offset_G: NDArray[np.int16] | None


_SEARCHES: Mapping[str, _Search] = MappingProxyType(
    {
        "Q8_0": _Search(_NO_LEAN, 1.0, SymmetricGrid(reach=0.02, steps=2, both_ends=False)),
        "Q4_0": _Search(_NO_LEAN, 1.0, SymmetricGrid(reach=0.15, steps=4, both_ends=True)),
        "Q5_0": _Search(_NO_LEAN, 1.0, SymmetricGrid(reach=0.08, steps=4, both_ends=True)),
        "Q4_1": _Search(_NO_LEAN, 1.0, AffineGrid(first=-2, last=1, uppers=7, lower_step=0.03, lowers=3)),
        "Q5_1": _Search(_NO_LEAN, 1.0, AffineGrid(first=-2, last=1, uppers=7, lower_step=0.02, lowers=3)),
        "Q2_K": _Search(1.0, 2.0, AffineGrid(first=-1, last=1, uppers=8, lower_step=0.1, lowers=3)),
        "Q3_K": _Search(0.3, 2.5, SymmetricGrid(reach=0.45, steps=6, both_ends=True)),
        "Q4_K": _Search(2.0, 2.0, AffineGrid(first=-2, last=1, uppers=9, lower_step=0.03, lowers=3)),
        "Q5_K": _Search(2.0, 2.0, AffineGrid(first=-2, last=1, uppers=7, lower_step=0.02, lowers=3)),
        "Q6_K": _Search(0.5, 2.0, SymmetricGrid(reach=0.11, steps=6, both_ends=False)),
        "IQ4_NL": _Search(0.08, 2.0, SymmetricGrid(reach=0.19, steps=6, both_ends=True)),
        "IQ4_XS": _Search(0.3, 2.0, SymmetricGrid(reach=0.19, steps=6, both_ends=True)),
    }
)


def fit(
    name: str,
    values_RI: Values,
    importance: Values | None,
    *,
    shape: BlockShape,
    weighting: Weighting,
) -> BlockParams:
    """Scales and offsets for rows of weights. ``importance`` is [I], or [R, I] where rows differ.

    Raises QuantizationError where a weight is beyond 65504, or the importance has another shape.
    """
    search = _SEARCHES[name]
    _refuse_huge(name, values_RI)
    spread = search.spread if importance is None else search.spread_with_importance
    work = _lay_out(
        values_RI, _normalized(importance, values_RI.shape), spread=spread if weighting == "usual" else _NO_LEAN
    )
    if isinstance(search.grid, AffineGrid):
        stored = _fit_affine(shape, work, grid=search.grid)
    else:
        stored = _fit_symmetric(shape, work, grid=search.grid)
    rows, blocks = values_RI.shape[0], values_RI.size // shape.block_size
    offset, sub_scale, sub_offset = stored.offset_N, stored.sub_scale_G, stored.sub_offset_G
    return effective_params(
        block_scale_RS=stored.scale_N[:blocks].reshape(rows, -1),
        block_offset_RS=None if offset is None else offset[:blocks].reshape(rows, -1),
        sub_scale_RG=None if sub_scale is None else sub_scale.reshape(rows, -1),
        sub_offset_RG=None if sub_offset is None else sub_offset.reshape(rows, -1),
    )


def _fit_affine(shape: BlockShape, work: _Work, *, grid: AffineGrid) -> _Stored:
    blocks = work.values.size // shape.block_size
    scale_N, offset_N = np.empty(blocks, np.float32), np.empty(blocks, np.float32)
    if not shape.has_subs:
        fit_affine_blocks(
            scale_N,
            offset_N,
            work.values,
            work.importance,
            work.columns,
            shape.group_size,
            grid,
            shape.code_high,
            work.spread,
        )
        return _Stored(scale_N, offset_N, None, None)
    sub_scale_G, sub_offset_G = (np.empty(blocks * shape.groups, np.int16) for _ in range(2))
    fit_affine_superblocks(
        scale_N,
        offset_N,
        sub_scale_G,
        sub_offset_G,
        work.values,
        work.importance,
        shape.group_size,
        grid,
        shape.code_high,
        shape.sub_high,
        work.spread,
    )
    return _Stored(scale_N, offset_N, sub_scale_G, sub_offset_G)


def _fit_symmetric(shape: BlockShape, work: _Work, *, grid: SymmetricGrid) -> _Stored:
    blocks = work.values.size // shape.block_size
    book = np.array(shape.levels or (), np.float32)
    lowest, highest = (book[0], book[-1]) if shape.levels else (shape.code_low, shape.code_high)
    levels = Levels(np.float32(lowest), np.float32(highest), book)
    scale_N = np.empty(blocks, np.float32)
    if not shape.has_subs:
        fit_symmetric_blocks(
            scale_N, work.values, work.importance, work.columns, shape.group_size, grid, levels, work.spread
        )
        return _Stored(scale_N, None, None, None)
    sub_scale_G = np.empty(blocks * shape.groups, np.int16)
    fit_symmetric_superblocks(
        scale_N,
        sub_scale_G,
        work.values,
        work.importance,
        shape.group_size,
        grid,
        levels,
        shape.sub_low,
        shape.sub_high,
        work.spread,
    )
    return _Stored(scale_N, None, sub_scale_G, None)


def _lay_out(values_RI: Values, importance: Values, *, spread: float) -> _Work:
    """Flat arrays of rows that are long enough to fill a kernel's lanes: eight groups of 32.

    Shorter rows (of a toy model) are taken as one long row, with zeros at the end if even that is too short.
    """
    values = np.ascontiguousarray(values_RI, np.float32).reshape(-1)
    if values_RI.shape[1] >= _TILE:
        return _Work(read_only(values), read_only(importance), values_RI.shape[1], spread)
    missing = max(_TILE - values.size, 0)
    if importance.size:
        importance = np.pad(np.resize(importance, values.size), (0, missing))
    values = np.pad(values, (0, missing))
    return _Work(read_only(values), read_only(importance), values.size, spread)


def _refuse_huge(name: str, values_RI: Values) -> None:
    largest = max(values_RI.max(initial=0), -values_RI.min(initial=0))
    if not largest <= _LARGEST:
        raise QuantizationError(
            f"{name}: a weight of magnitude {largest:g} is beyond the {_LARGEST:g} that its scales reach; use BF16"
        )


def _normalized(importance: Values | None, shape: tuple[int, ...]) -> Values:
    """Importances as one flat array, scaled so that the largest of a row is about 1; empty where there are none."""
    if importance is None:
        return np.empty(0, np.float32)
    if importance.shape not in (shape, shape[1:]):
        raise QuantizationError(f"`importance` of shape {importance.shape} does not fit weights of shape {shape}")
    largest = importance.max(axis=-1, keepdims=True, initial=0)
    # So that no product over- or underflows. A power of two changes no digit, and no choice where a row shares it.
    scaled = np.ldexp(importance, -np.frexp(largest)[1])
    return np.ascontiguousarray(scaled, np.float32).reshape(-1)
