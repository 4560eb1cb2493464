"""The best scales of blocks for given codes, under a whole Hessian: what turns GPTQ's first guess into a solution.

A format's own ``fit`` sees a diagonal: how much each column matters. Once codes are there, the error is a quadratic
function of the scales, and correlated columns count as such. With value = d·s·level - m·z (d and m float16 numbers of
the block, s and z integers of the group; see ``BlockShape``), H the metric and g = H (value - target):

* ``_choose_subs`` tries integers within two of a group's present s and z, both at once. A change by (a, b) moves the
  values by  a·d·u - b·m·1  (u the group's levels), hence the error by a quadratic in (a, b) of which the three sums
  u'Hu, u'H1, 1'H1 and the two g'u, g'1 are taken once.
* ``_refit_blocks`` solves for d and m in closed form, rounds them to float16, and keeps them if the error fell.

Both change arrays in place; ``gradient_RJ`` is g, kept up to date.

Shapes: # R rows  J columns of one slab  S blocks of one slab  G groups of one slab
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qwen3_export.quantizers.codebook import level_of
from qwen3_export.quantizers.compile import inlined, kernel
from qwen3_export.quantizers.formats import Codebook, Values
from qwen3_export.quantizers.ggml.codes import codes_to_values
from qwen3_export.quantizers.ggml.packing import effective_params
from qwen3_export.quantizers.ggml.params import BlockParams
from qwen3_export.quantizers.ggml.shapes import BlockShape

__all__ = ["refit_params"]

Codes = NDArray[np.int8]
Integers = NDArray[np.int16]

_REACH = 2


class SubRange(NamedTuple):
    """The integers that groups may take; ``offset_high`` is 0 where groups have no offset."""

    scale_low: int
    scale_high: int
    offset_high: int


def refit_params(
    shape: BlockShape,
    book: Codebook,
    codes_RJ: Codes,
    params: BlockParams,
    *,
    gradient_RJ: Values,
    metric_JJ: Values,
) -> tuple[BlockParams, Values]:
    """Parameters with better scales and offsets, and the gradient under them."""
    gradient_RJ = gradient_RJ.copy()
    values_RJ = codes_to_values(shape, codes_RJ, scale_RG=params.scale_RG, offset_RG=params.offset_RG)
    numbers = _Numbers.of(params, groups=codes_RJ.shape[1] // shape.group_size)
    if shape.has_subs:
        limits = SubRange(shape.sub_low, shape.sub_high, shape.sub_high if shape.has_offset else 0)
        _choose_subs(values_RJ, gradient_RJ, codes_RJ, metric_JJ, *numbers, limits, book)
    _refit_blocks(values_RJ, gradient_RJ, codes_RJ, metric_JJ, *numbers, book)
    return numbers.stored(params), gradient_RJ


class _Numbers(NamedTuple):
    """The numbers of ``BlockParams`` in arrays that kernels may change; ones or zeros where a format has none."""

    scale_RS: Values
    offset_RS: Values
    sub_scale_RG: Integers
    sub_offset_RG: Integers

    @staticmethod
    def of(params: BlockParams, *, groups: int) -> _Numbers:
        rows = params.block_scale_RS.shape[0]
        scale, offset = params.block_scale_RS, params.block_offset_RS
        sub_scale, sub_offset = params.sub_scale_RG, params.sub_offset_RG
        ones_RG = np.ones((rows, groups), np.int16)
        return _Numbers(
            scale_RS=scale.copy(),
            offset_RS=np.zeros_like(scale) if offset is None else offset.copy(),
            sub_scale_RG=ones_RG if sub_scale is None else sub_scale.copy(),
            sub_offset_RG=ones_RG * np.int16(offset is not None) if sub_offset is None else sub_offset.copy(),
        )

    def stored(self, like: BlockParams) -> BlockParams:
        """As parameters again, with None where ``like`` has it."""
        return effective_params(
            block_scale_RS=self.scale_RS,
            block_offset_RS=None if like.block_offset_RS is None else self.offset_RS,
            sub_scale_RG=None if like.sub_scale_RG is None else self.sub_scale_RG,
            sub_offset_RG=None if like.sub_offset_RG is None else self.sub_offset_RG,
        )


@kernel
def _choose_subs(
    values_RJ: Values,
    gradient_RJ: Values,
    codes_RJ: Codes,
    metric_JJ: Values,
    block_scale_RS: Values,
    block_offset_RS: Values,
    sub_scale_RG: Integers,
    sub_offset_RG: Integers,
    limits: SubRange,
    book: Codebook,
) -> None:
    """Move the integers of each group, one group after the other."""
    columns, groups = codes_RJ.shape[1], sub_scale_RG.shape[1]
    size, groups_a_block = columns // groups, groups // block_scale_RS.shape[1]
    levels = np.empty(columns, np.float32)
    for r in range(codes_RJ.shape[0]):
        for j in range(columns):
            levels[j] = level_of(np.int64(codes_RJ[r, j]), book)
        for g in range(groups):
            start = g * size
            scale, offset = block_scale_RS[r, g // groups_a_block], block_offset_RS[r, g // groups_a_block]
            a, b = _best_change(
                gradient_RJ[r],
                levels,
                metric_JJ,
                start,
                size,
                scale,
                offset,
                sub_scale_RG[r, g],
                sub_offset_RG[r, g],
                limits,
            )
            if a == 0 and b == 0:
                continue
            sub_scale_RG[r, g] += a
            sub_offset_RG[r, g] += b
            group_scale = scale * np.float32(sub_scale_RG[r, g])
            group_offset = offset * np.float32(sub_offset_RG[r, g])
            for j in range(start, start + size):
                value = group_scale * levels[j] - group_offset
                step = value - values_RJ[r, j]
                values_RJ[r, j] = value
                for k in range(columns):
                    gradient_RJ[r, k] += step * metric_JJ[j, k]


@inlined
def _best_change(
    gradient_J: Values,
    levels: Values,
    metric_JJ: Values,
    start: int,
    size: int,
    scale: np.float32,
    offset: np.float32,
    sub_scale: np.int16,
    sub_offset: np.int16,
    limits: SubRange,
) -> tuple[int, int]:
    """By how much to change a group's two integers."""
    gu, g1, uu, u1, ones = np.float32(0), np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    for j in range(start, start + size):
        row_u, row_1 = np.float32(0), np.float32(0)
        for k in range(start, start + size):
            row_u += metric_JJ[j, k] * levels[k]
            row_1 += metric_JJ[j, k]
        gu += gradient_J[j] * levels[j]
        g1 += gradient_J[j]
        uu += levels[j] * row_u
        u1 += row_u
        ones += row_1
    best, best_a, best_b = np.float32(0), 0, 0
    reach = _REACH if limits.offset_high > 0 else 0
    for a in range(-_REACH, _REACH + 1):
        if not limits.scale_low <= sub_scale + a <= limits.scale_high:
            continue
        for b in range(-reach, reach + 1):
            if not 0 <= sub_offset + b <= limits.offset_high:
                continue
            x, y = np.float32(a) * scale, np.float32(b) * offset
            change = 2 * (x * gu - y * g1) + x * x * uu - 2 * x * y * u1 + y * y * ones
            if change < best:
                best, best_a, best_b = change, a, b
    return best_a, best_b


@kernel
def _refit_blocks(
    values_RJ: Values,
    gradient_RJ: Values,
    codes_RJ: Codes,
    metric_JJ: Values,
    block_scale_RS: Values,
    block_offset_RS: Values,
    sub_scale_RG: Integers,
    sub_offset_RG: Integers,
    book: Codebook,
) -> None:
    """Solve for the two float16 numbers of each block, one block after the other."""
    columns, blocks = codes_RJ.shape[1], block_scale_RS.shape[1]
    size, group_size = columns // blocks, columns // sub_scale_RG.shape[1]
    u, v = np.zeros(columns, np.float32), np.zeros(columns, np.float32)
    metric_u, metric_v = np.empty(columns, np.float32), np.empty(columns, np.float32)
    for r in range(codes_RJ.shape[0]):
        for s in range(blocks):
            start = s * size
            for j in range(start, start + size):
                group = j // group_size
                u[j] = np.float32(sub_scale_RG[r, group]) * level_of(np.int64(codes_RJ[r, j]), book)
                v[j] = np.float32(sub_offset_RG[r, group])
            _multiply(metric_u, metric_JJ, u, start, size)
            _multiply(metric_v, metric_JJ, v, start, size)
            gu, gv, uu, uv, vv = np.float32(0), np.float32(0), np.float32(0), np.float32(0), np.float32(0)
            for j in range(start, start + size):
                gu += gradient_RJ[r, j] * u[j]
                gv += gradient_RJ[r, j] * v[j]
                uu += u[j] * metric_u[j]
                uv += v[j] * metric_u[j]
                vv += v[j] * metric_v[j]
            a, b = _solve(gu, gv, uu, uv, vv)
            scale = _nearest_half(block_scale_RS[r, s] + a)
            offset = _nearest_half(max(block_offset_RS[r, s] + b, np.float32(0)))
            a, b = scale - block_scale_RS[r, s], offset - block_offset_RS[r, s]
            if 2 * (a * gu - b * gv) + a * a * uu - 2 * a * b * uv + b * b * vv >= 0:
                continue
            block_scale_RS[r, s], block_offset_RS[r, s] = scale, offset
            for j in range(start, start + size):
                group = j // group_size
                group_scale = scale * np.float32(sub_scale_RG[r, group])
                group_offset = offset * np.float32(sub_offset_RG[r, group])
                values_RJ[r, j] = group_scale * level_of(np.int64(codes_RJ[r, j]), book) - group_offset
            for k in range(columns):
                gradient_RJ[r, k] += a * metric_u[k] - b * metric_v[k]


@inlined
def _multiply(product: Values, metric_JJ: Values, vector: Values, start: int, size: int) -> None:
    """The metric times a vector that is zero outside one block."""
    for k in range(product.size):
        product[k] = 0
    for j in range(start, start + size):
        if vector[j] != 0:
            for k in range(product.size):
                product[k] += vector[j] * metric_JJ[j, k]


@inlined
def _solve(
    gu: np.float32, gv: np.float32, uu: np.float32, uv: np.float32, vv: np.float32
) -> tuple[np.float32, np.float32]:
    """The changes a, b that minimize  2 (a gu - b gv) + a² uu - 2ab uv + b² vv."""
    determinant = uu * vv - uv * uv
    if determinant > np.float32(1e-6) * uu * vv:
        return (uv * gv - vv * gu) / determinant, (uu * gv - uv * gu) / determinant
    if uu > 0:
        return -gu / uu, np.float32(0)
    return np.float32(0), np.float32(0)


@inlined
def _nearest_half(x: np.float32) -> np.float32:
    """The nearest number that float16 can hold (``search.nearest_half`` on one number)."""
    if abs(x) < np.float32(2.0**-14):
        return np.float32(np.rint(x * np.float32(16777216.0)) * np.float32(1.0 / 16777216.0))
    shifted = x * np.float32(8193.0)
    return min(max(shifted - (shifted - x), np.float32(-65504.0)), np.float32(65504.0))
