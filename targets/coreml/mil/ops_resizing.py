"""Resize images along their last two axes.

Source: coremltools' ``defs/iOS15/image_resizing.py``, which says where each output pixel is sampled, and its successors
for iOS 16 and 17. Sampling is separable: one axis after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from qwen3_export.targets.coreml.mil.calls import Ints

__all__ = ["OPS"]


def _upsample_nearest_neighbor(x: Tensor, scale_factor_height: float = 1, scale_factor_width: float = 1) -> Tensor:
    return _nearest(x, _scaled_sizes(x, scale_factor_height, scale_factor_width))


def _resize_nearest_neighbor(x: Tensor, target_size_height: int, target_size_width: int) -> Tensor:
    return _nearest(x, {-2: target_size_height, -1: target_size_width})


def _upsample_bilinear(
    x: Tensor,
    scale_factor_height: float = 1,
    scale_factor_width: float = 1,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    centred = (not align_corners) if half_pixel_centers is None else half_pixel_centers
    mode = "STRICT_ALIGN_CORNERS" if align_corners else ("UNALIGN_CORNERS" if centred else "DEFAULT")
    return _linear(x, _scaled_sizes(x, scale_factor_height, scale_factor_width), mode)


def _resize_bilinear(
    x: Tensor, target_size_height: int = 1, target_size_width: int = 1, sampling_mode: str = "DEFAULT"
) -> Tensor:
    return _linear(x, {-2: target_size_height, -1: target_size_width}, sampling_mode)


def _resize(
    x: Tensor, shape: Ints, resized_dims: int, interpolation_mode: str = "LINEAR", sampling_mode: str = "DEFAULT"
) -> Tensor:
    """``shape`` ends with the sizes of the last ``resized_dims`` axes; 0 leaves an axis unchanged."""
    wanted = shape[len(shape) - resized_dims :]
    sizes = {axis - resized_dims: size or x.shape[axis - resized_dims] for axis, size in enumerate(wanted)}
    if interpolation_mode == "NEAREST_NEIGHBOR":
        return _nearest(x, sizes)
    return _linear(x, sizes, sampling_mode)


def _scaled_sizes(x: Tensor, height: float, width: float) -> dict[int, int]:
    return {-2: math.floor(x.shape[-2] * height), -1: math.floor(x.shape[-1] * width)}


def _nearest(x: Tensor, sizes: Mapping[int, int]) -> Tensor:
    for axis, size in sizes.items():
        places = (torch.arange(size, dtype=torch.float64) * (x.shape[axis] / size)).floor().long()
        x = x.index_select(axis, places.clamp_max(x.shape[axis] - 1))
    return x


def _linear(x: Tensor, sizes: Mapping[int, int], mode: str) -> Tensor:
    for axis, size in sizes.items():
        points = _grid(x.shape[axis], size, mode)
        low = points.floor().long()
        high = (low + 1).clamp_max(x.shape[axis] - 1)
        share = (points - low).to(x.dtype).reshape([-1 if i == axis % x.dim() else 1 for i in range(x.dim())])
        x = x.index_select(axis, low) * (1 - share) + x.index_select(axis, high) * share
    return x


def _grid(before: int, after: int, mode: str) -> Tensor:
    """The position in the input of each element of the output."""
    step = torch.arange(after, dtype=torch.float64)
    if mode == "ALIGN_CORNERS" and after == 1:
        return torch.tensor([(before - 1) / 2], dtype=torch.float64)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        points = step * ((before - 1) / max(1, after - 1))
    elif mode == "DEFAULT":
        points = step * (before / after)  # (Xin - Xin/Xout) / (Xout - 1)
    elif mode == "OFFSET_CORNERS":
        points = (step + 0.5) * (max(1, before - 1) / after)
    elif mode == "UNALIGN_CORNERS":
        points = (step + 0.5) * (before / after) - 0.5
    else:
        raise ValueError(f"its sampling mode {mode} is not known to this executor")
    return points.clamp(0, before - 1)


OPS: Mapping[str, Callable[..., Tensor]] = {
    "resize": _resize,
    "resize_bilinear": _resize_bilinear,
    "resize_nearest_neighbor": _resize_nearest_neighbor,
    "upsample_bilinear": _upsample_bilinear,
    "upsample_nearest_neighbor": _upsample_nearest_neighbor,
}
