"""Scales and offsets for rows of weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qwen3_export.quantizers.ggml.packing import effective_params
from qwen3_export.quantizers.ggml.params import BlockParams
from qwen3_export.quantizers.ggml.shapes import BLOCK_SHAPES

__all__ = ["fit"]


def fit(name: str, values_RI: NDArray[np.float32], importance: NDArray[np.float32] | None = None) -> BlockParams:
    shape = BLOCK_SHAPES[name]
    rows, columns = values_RI.shape
    groups = values_RI.reshape(rows, columns // shape.group_size, shape.group_size)
    if shape.has_offset:
        low, high = groups.min(-1), groups.max(-1)
        if shape.has_subs:
            low = np.minimum(low, 0)
        scale, offset = (high - low) / shape.code_high, -low
        if not shape.has_subs:
            return effective_params(block_scale_RS=_half(scale), block_offset_RS=_half(offset), sub_scale_RG=None, sub_offset_RG=None)
        d, sub = _sub(scale, shape, rows)
        dmin, subm = _sub(offset, shape, rows)
        return effective_params(block_scale_RS=d, block_offset_RS=dmin, sub_scale_RG=sub, sub_offset_RG=subm)
    index = np.abs(groups).argmax(-1)[..., None]
    extreme = np.take_along_axis(groups, index, -1)[..., 0]
    scale = extreme / (shape.code_low if shape.levels is None else shape.levels[0])
    if not shape.has_subs:
        return effective_params(block_scale_RS=_half(np.abs(scale) if name == "Q8_0" else scale), block_offset_RS=None, sub_scale_RG=None, sub_offset_RG=None)
    d, sub = _sub(scale, shape, rows)
    return effective_params(block_scale_RS=d, block_offset_RS=None, sub_scale_RG=sub, sub_offset_RG=None)


def _half(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return x.astype(np.float16).astype(np.float32)


def _sub(scale: NDArray[np.float32], shape, rows):
    s = scale.reshape(rows, -1, shape.groups)
    index = np.abs(s).argmax(-1)[..., None]
    extreme = np.take_along_axis(s, index, -1)
    top = shape.sub_low if shape.sub_low < 0 else shape.sub_high
    d = _half(extreme / np.float32(top))
    sub = np.clip(np.rint(s / np.where(d == 0, 1, d)), shape.sub_low, shape.sub_high).astype(np.int16)
    return d[..., 0], sub.reshape(scale.shape)
