"""Round values to codes, and turn codes into values, under given scales and offsets: the same for all block formats.

Shapes: # R rows  I columns  G groups a row  L levels

The group size is I / G. So a single column of every row can be rounded too: values [R, 1] under scales [R, 1].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qwen3_export.quantizers.compile import kernel, read_only
from qwen3_export.quantizers.ggml.shapes import BlockShape

__all__ = ["codes_to_values", "round_to_codes"]

Codes = NDArray[np.int8]
Values = NDArray[np.float32]


def round_to_codes(shape: BlockShape, values_RI: Values, *, scale_RG: Values, offset_RG: Values) -> Codes:
    """The code whose value is nearest to each weight; where the scale is zero, the code nearest to zero."""
    codes_RI = np.empty(values_RI.shape, np.int8)
    values_RI, scale_RG, offset_RG = read_only(values_RI), read_only(scale_RG), read_only(offset_RG)
    if shape.levels is None:
        _round_uniform(codes_RI, values_RI, scale_RG, offset_RG, shape.code_low, shape.code_high)
    else:
        _round_to_levels(codes_RI, values_RI, scale_RG, _midpoints(shape.levels))
    return codes_RI


def codes_to_values(shape: BlockShape, codes_RI: Codes, *, scale_RG: Values, offset_RG: Values) -> Values:
    """``scale * level(code) - offset``, with each product rounded to float32 as runtimes do."""
    values_RI = np.empty(codes_RI.shape, np.float32)
    levels = range(-128, 128) if shape.levels is None else shape.levels
    first = -128 if shape.levels is None else 0
    scale_RG, offset_RG = read_only(scale_RG), read_only(offset_RG)
    _look_up(values_RI, read_only(codes_RI), scale_RG, offset_RG, np.array(levels, np.float32), first)
    return values_RI


def _midpoints(levels: tuple[int, ...]) -> Values:
    steps = np.array(levels, np.float32)
    return (steps[1:] + steps[:-1]) * np.float32(0.5)


@kernel
def _round_uniform(
    codes_RI: Codes, values_RI: Values, scale_RG: Values, offset_RG: Values, low: int, high: int
) -> None:
    group_size = values_RI.shape[1] // scale_RG.shape[1]
    lowest, highest = np.float32(low), np.float32(high)
    for r in range(values_RI.shape[0]):
        for g in range(scale_RG.shape[1]):
            scale, offset = scale_RG[r, g], offset_RG[r, g]
            inverse = np.float32(1) / scale if scale != 0 else np.float32(0)
            for i in range(g * group_size, (g + 1) * group_size):
                code = np.rint((values_RI[r, i] + offset) * inverse)
                codes_RI[r, i] = np.int8(min(max(code, lowest), highest))


@kernel
def _round_to_levels(codes_RI: Codes, values_RI: Values, scale_RG: Values, midpoints_L: Values) -> None:
    """Count the midpoints below each value, one midpoint after the other: this loop is vectorized, a search is not."""
    group_size = values_RI.shape[1] // scale_RG.shape[1]
    position, count = np.empty(group_size, np.float32), np.empty(group_size, np.float32)
    for r in range(values_RI.shape[0]):
        for g in range(scale_RG.shape[1]):
            scale, first = scale_RG[r, g], g * group_size
            inverse = np.float32(1) / scale if scale != 0 else np.float32(0)
            for i in range(group_size):
                position[i] = values_RI[r, first + i] * inverse
                count[i] = np.float32(0)
            for level in range(midpoints_L.shape[0]):
                midpoint = midpoints_L[level]
                for i in range(group_size):
                    count[i] += np.float32(1) if position[i] > midpoint else np.float32(0)
            for i in range(group_size):
                codes_RI[r, first + i] = np.int8(count[i])


@kernel
def _look_up(
    values_RI: Values, codes_RI: Codes, scale_RG: Values, offset_RG: Values, levels_L: Values, first: int
) -> None:
    group_size = codes_RI.shape[1] // scale_RG.shape[1]
    for r in range(codes_RI.shape[0]):
        for g in range(scale_RG.shape[1]):
            scale, offset = scale_RG[r, g], offset_RG[r, g]
            for i in range(g * group_size, (g + 1) * group_size):
                values_RI[r, i] = scale * levels_L[codes_RI[r, i] - first] - offset
